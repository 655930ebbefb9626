"""What happened to one row: the neutral form of a captured record.

`RawChange` carries values as the source's own text (bytes), `Change` as Python values. Three
different nothings never meet (D10): SQL NULL is None, a value the source left out because it did
not change is UNCHANGED, a column outside the replica identity is ABSENT.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple


class Marker(enum.Enum):
    """The two nothings that are not NULL."""

    UNCHANGED = "UNCHANGED"
    ABSENT = "ABSENT"

    def __repr__(self) -> str:
        return self.value

    def __bool__(self) -> bool:
        return False


UNCHANGED = Marker.UNCHANGED
ABSENT = Marker.ABSENT

Text = bytes | None | Marker
"""One value as stored: the source's text, None for NULL, or a marker."""


class Op(enum.StrEnum):
    """What a record tells (D11, D12)."""

    READ = "read"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
    MESSAGE = "message"
    COPY_BEGIN = "copy_begin"
    COPY_END = "copy_end"
    DATA_LOSS = "data_loss"
    RENAME = "rename"


CONTROL_OPS = frozenset({Op.COPY_BEGIN, Op.COPY_END, Op.DATA_LOSS, Op.RENAME})

RESETS = frozenset({Op.TRUNCATE, Op.COPY_BEGIN})
"""Behind these a table's earlier rows do not count."""


class RawChange(NamedTuple):
    """One record as its codec split it.

    `slot` is the record's place in its payload. `old` and `new` hold one Text per column of the
    schema, in schema order; `old_is_key` tells that `old` is the key alone, its other columns
    ABSENT. `fields` are the named values of messages and control records. `relation` is None for
    records of no table.
    """

    slot: int
    op: Op
    relation: int | None
    old: tuple[Text, ...] | None
    new: tuple[Text, ...] | None
    fields: Mapping[str, Any] | None


class Change(NamedTuple):
    """One record of a captured stream, decoded.

    `table` is `schema.table`, None for records of no table. `key` is a scalar for a one-column
    key, else a dict, None where the table has none. `row` and `old` map column names to Python
    values; `row` may hold UNCHANGED, and `old` leaves out what is ABSENT. `position` is the end
    of the source transaction as the source writes it, `tx` its id (None for copied rows). `time`
    is the commit time, aware, in UTC.
    """

    offset: int
    op: Op
    table: str | None
    key: Any
    row: dict[str, Any] | None
    old: dict[str, Any] | None
    tx: str | None
    position: str | None
    time: datetime
