"""The codec of the initial copy: raw lines of `COPY ... TO STDOUT` in the text format.

::

    record = field *(TAB field) LF       one row; the LF is part of the record
    field  = '\\N' | text                  '\\N' is NULL
    text   : \\b \\f \\n \\r \\t \\v \\\\ stand for the control characters and the backslash

A payload holds rows of one relation, the only one among its schemas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cdc.postgres.copy_split import MEANT, Amiss, split_lines
from cdc.postgres.values.text_codec import TextCodec, is_worth_arrays
from eventlog.changes.change import Op, RawChange, Text
from eventlog.changes.codec import ChangeCodec
from eventlog.changes.schema import Schema
from eventlog.changes.split import SplitPayload, split_changes
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog

_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)


class CopyCodec(TextCodec):
    """Reads copied rows."""

    id = 4
    name = "copy"

    def split(
        self, payload: Payload, slots: Sequence[int], schemas: dict[int, Schema]
    ) -> SplitPayload:
        """Find every value of the lines at `slots`, all at once (D3).

        Raises DamagedLog as `decode` does. REQUIRES: `slots` ascend.
        """
        if len(schemas) == 1 and is_worth_arrays(rows=len(slots), size=len(payload.data)):
            (schema,) = schemas.values()
            try:
                return SplitPayload(rows=[split_lines(payload, slots, schema)])
            except Amiss:
                pass  # Now the row decoder shall say what is wrong.
        return split_changes(self.decode(payload.records(slots), slots, schemas), schemas)

    def decode(
        self,
        records: Sequence[bytes],
        slots: Sequence[int],
        schemas: dict[int, Schema],
    ) -> Iterator[RawChange]:
        """Make a `read` of every line. Raises DamagedLog for a line that is no row of the table."""
        if len(schemas) != 1:
            raise DamagedLog(f"a batch of copied rows names {len(schemas)} relations instead of 1")
        ((relation, schema),) = schemas.items()
        width = len(schema.columns)
        for slot, line in zip(slots, records, strict=True):
            end = line.find(b"\n")
            if end != len(line) - 1 or end < 0:
                problem = "is cut" if end < 0 else "is more than one line"
                raise DamagedLog(f"record {slot} of a batch of copied rows {problem}")
            fields = line[:-1].split(b"\t") if width else [] if line == b"\n" else [line]
            if len(fields) != width:
                raise DamagedLog(
                    f"record {slot} of a batch of copied rows has {len(fields)} values, "
                    f"but {schema.table} has {width} columns"
                )
            row: tuple[Text, ...] = tuple(fields)
            if b"\\" in line:
                try:
                    row = tuple([f if b"\\" not in f else unescape(f) for f in fields])
                except ValueError as error:
                    raise DamagedLog(f"record {slot} of a batch of copied rows {error}") from error
            yield RawChange(slot, Op.READ, relation, None, row, None)


def unescape(field: bytes) -> bytes | None:
    """The text of one field of a line; None for NULL.

    Raises ValueError for what COPY never writes.
    """
    if field == b"\\N":
        return None
    try:
        return _ESCAPE.sub(lambda match: MEANT[match[1]], field)
    except KeyError as error:
        raise ValueError(f"has an escape {error} that COPY does not write") from None


CODEC: ChangeCodec = CopyCodec()
