"""The codec of captured changes: raw `pgoutput` messages, byte for byte as the server sent them.

::

    I  relation:u32 'N' row                         insert
    U  relation:u32 [('K' | 'O') row] 'N' row       update
    D  relation:u32 ('K' | 'O') row                 delete
    T  count:u32 = 1 options:u8 relation:u32        truncate of one table
    M  flags:u8 lsn:u64 prefix NUL length:i32 bytes message

    row = count:u16 (('n' | 'u') | 't' length:u32 text)*

Messages of protocol 1: what came in a stream block lost its transaction id before it was stored.
In a 'K' row only the key's columns were sent, the others are ABSENT.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from cdc.postgres.pgoutput_split import Amiss, by_relation, found_at, split_rows
from cdc.postgres.protocol import wire
from cdc.postgres.protocol.messages import LogicalMessage, Truncate
from cdc.postgres.values.text_codec import TextCodec, is_worth_arrays
from eventlog.changes.change import ABSENT, UNCHANGED, Op, RawChange, Text
from eventlog.changes.codec import ChangeCodec
from eventlog.changes.schema import Schema
from eventlog.changes.split import Split, SplitPayload, split_changes
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog

_TEXT, _NULL, _UNCHANGED = b"tnu"
_INSERT, _UPDATE, _DELETE = b"IUD"
_NEW, _KEY, _OLD = b"NKO"

_relation_at_1 = struct.Struct(">xI").unpack_from
_length_at = struct.Struct(">I").unpack_from


class PgoutputCodec(TextCodec):
    """Reads captured changes."""

    id = 3
    name = "pgoutput"

    def split(
        self, payload: Payload, slots: Sequence[int], schemas: dict[int, Schema]
    ) -> SplitPayload:
        """Find every value of the records at `slots`, across rows (D3).

        Raises DamagedLog as `decode` does. REQUIRES: `slots` ascend.
        """
        if is_worth_arrays(rows=len(slots), size=len(payload.data)):
            try:
                return self._split(payload, slots, schemas)
            except Amiss:
                pass  # Now the row decoder shall say what is wrong.
        return split_changes(self.decode(payload.records(slots), slots, schemas), schemas)

    def _split(
        self, payload: Payload, slots: Sequence[int], schemas: dict[int, Schema]
    ) -> SplitPayload:
        rows: list[Split] = []
        rare: list[RawChange] = []
        for schema, found in by_relation(found_at(payload, slots), schemas):
            if schema is not None and is_worth_arrays(rows=len(found.slots), size=found.size):
                rows.append(split_rows(found, schema))
                continue
            few = found.slots.tolist()
            one_by_one = split_changes(self.decode(payload.records(few), few, schemas), schemas)
            rows += one_by_one.rows
            rare += one_by_one.rare
        return SplitPayload(rows=rows, rare=rare)

    def decode(
        self,
        records: Sequence[bytes],
        slots: Sequence[int],
        schemas: dict[int, Schema],
    ) -> Iterator[RawChange]:
        """Make a RawChange of every message.

        Raises DamagedLog for a message that is cut, too long, or does not match its schema.
        """
        insert, update, delete = Op.INSERT, Op.UPDATE, Op.DELETE
        widths = {relation: len(schema.columns) for relation, schema in schemas.items()}
        for slot, record in zip(slots, records, strict=True):
            try:
                tag = record[0]
                if tag == _INSERT:
                    (relation,) = _relation_at_1(record)
                    new, at = _row(record, 5, widths[relation])
                    if record[5] != _NEW or at != len(record):
                        raise IndexError
                    yield RawChange(slot, insert, relation, None, new, None)
                elif tag == _UPDATE:
                    (relation,) = _relation_at_1(record)
                    kind, at, old = record[5], 5, None
                    if kind != _NEW:
                        old, at = _row(record, 5, widths[relation])
                        old = _old(kind, old, schemas[relation])
                    if record[at] != _NEW:
                        raise IndexError
                    new, at = _row(record, at, widths[relation])
                    if at != len(record):
                        raise IndexError
                    yield RawChange(slot, update, relation, old, new, None)
                elif tag == _DELETE:
                    (relation,) = _relation_at_1(record)
                    old, at = _row(record, 5, widths[relation])
                    if at != len(record):
                        raise IndexError
                    old = _old(record[5], old, schemas[relation])
                    yield RawChange(slot, delete, relation, old, None, None)
                else:
                    yield _rare(slot, record)
            except (IndexError, struct.error, wire.WireError) as error:
                raise DamagedLog(f"record {slot} is no message of a change, or is cut") from error
            except ValueError as error:
                raise DamagedLog(f"record {slot} {error}") from error
            except KeyError as error:
                raise DamagedLog(
                    f"record {slot} is of relation {error}, of which its batch has no schema"
                ) from error


def _row(record: bytes, at: int, width: int) -> tuple[tuple[Text, ...], int]:
    """Read the row behind the kind byte at `at`; also gives where it ends."""
    if (record[at + 1] << 8) + record[at + 2] != width:
        found = (record[at + 1] << 8) + record[at + 2]
        raise ValueError(f"has a row of {found} values, but its table has {width} columns")
    at += 3
    row: list[Text] = []
    append = row.append
    for _ in range(width):
        kind = record[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _length_at(record, at + 1)[0]
            append(record[start:at])
        elif kind == _NULL:
            append(None)
            at += 1
        elif kind == _UNCHANGED:
            append(UNCHANGED)
            at += 1
        else:
            raise IndexError
    return tuple(row), at


def _old(kind: int, row: tuple[Text, ...], schema: Schema) -> tuple[Text, ...]:
    if kind == _OLD:
        return row
    if kind != _KEY:
        raise IndexError
    return tuple(
        value if column.key else ABSENT for value, column in zip(row, schema.columns, strict=True)
    )


def _rare(slot: int, record: bytes) -> RawChange:
    message = wire.parse(record)
    if isinstance(message, Truncate) and len(message.relations) == 1:
        return RawChange(slot, Op.TRUNCATE, message.relations[0], None, None, None)
    if isinstance(message, LogicalMessage):
        fields = {
            "prefix": message.prefix,
            "content": message.content,
            "transactional": message.transactional,
        }
        return RawChange(slot, Op.MESSAGE, None, None, None, fields)
    raise IndexError


CODEC: ChangeCodec = PgoutputCodec()
