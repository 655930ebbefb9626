"""The codec of the log's own records in captured streams (number 1).

::

    record = msgpack map {"op": "copy_begin" | "copy_end" | "data_loss" | "rename",
                          "relation": int | nil, ...}

All other names are the record's fields: `schema` and `table` name the relation, `position`, where
it is there, is the source's own text and becomes the change's. `copy_begin` resets its table,
`copy_end` closes the copy (D12); `data_loss` tells that changes between `from` and `to` are
missing, of all tables where `relation` is nil. These are words of the source, or offsets of the
stream where `lost_in` is `log`: the log itself was damaged, and repaired. `rename` tells that the
table, which was `was` before, bears the name of the record's schema version from here on; it stands
where the source told so by its catalog, and no change of the table did. A batch that holds a
record of a relation names that relation, with its schema version, in its index entry; a record of
all tables stands in a batch that names none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from eventlog.changes.change import CONTROL_OPS, Op, RawChange
from eventlog.changes.schema import Schema
from eventlog.changes.split import SplitPayload
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog, LogVersionError


class ControlCodec:
    """Reads control records; they hold no rows."""

    id = 1
    name = "control"

    def decode(
        self,
        records: Sequence[bytes],
        slots: Sequence[int],
        schemas: dict[int, Schema],
    ) -> Iterator[RawChange]:
        """Make a RawChange of every record.

        Raises DamagedLog, or LogVersionError for an operation that only a newer version knows.
        """
        for slot, record in zip(slots, records, strict=True):
            fields = _unpack(record)
            name, relation = fields.pop("op"), fields.pop("relation", None)
            if name not in CONTROL_OPS:
                raise LogVersionError(
                    f"a control record says {name!r}, which this version does not know",
                    hint="read this log with a newer version of eventlog-cdc",
                )
            if relation is not None and relation not in schemas:
                raise DamagedLog(
                    f"a control record is of relation {relation}, of which its batch has no schema"
                )
            yield RawChange(slot, Op(name), relation, None, None, fields)

    def split(
        self, payload: Payload, slots: Sequence[int], schemas: dict[int, Schema]
    ) -> SplitPayload:
        """All of them are rare."""
        return SplitPayload(rows=[], rare=list(self.decode(payload.records(slots), slots, schemas)))

    def transaction_text(self, word: int) -> str | None:
        """None: control records belong to no source transaction."""
        return None

    def position_text(self, word: int) -> str | None:
        """None: only the source's codec can write a position; a field may carry it."""
        return None


def control_record(
    op: Op,
    *,
    relation: int | None = None,
    schema: str | None = None,
    table: str | None = None,
    **fields: Any,
) -> bytes:
    """Encode a control record; `schema` and `table` name the relation.

    REQUIRES: `fields` are JSON values.
    """
    if op not in CONTROL_OPS:
        raise ValueError(f"{op!r} is no operation of a control record")
    named = {"schema": schema, "table": table} if relation is not None else {}
    record: bytes = msgpack.packb({"op": str(op), "relation": relation, **named, **fields})
    return record


def _unpack(record: bytes) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(record)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise DamagedLog(f"a control record cannot be read: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("op"), str):
        raise DamagedLog("a control record is no map with an operation")
    return fields


CODEC = ControlCodec()
