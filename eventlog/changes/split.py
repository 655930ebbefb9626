"""Split payloads: where every value of many records lies, before anything is decoded (D3).

::

    data     ...I....7....12.50...I....8....U...             the texts, as they were stored
                     ^    ^            ^
    starts   [column][row]: where each value begins in `data`
    lengths  [column][row]: its bytes, or one of the nothings below

Columns come first, so that all values of one column are two arrays, and whatever is done with them
is done at once (numpy alone; Arrow comes later). A nothing is a length below zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import ABSENT, UNCHANGED, Op, RawChange, Text
from eventlog.changes.schema import Schema

IS_NULL, IS_UNCHANGED, IS_ABSENT = -1, -2, -3
"""What a length below zero means: SQL NULL, not sent as unchanged, outside what was sent."""

OPS = tuple(Op)
"""`Split.ops` holds places in it."""

OP_NUMBER = {op: number for number, op in enumerate(OPS)}

_NOTHING: Mapping[Text, int] = {None: IS_NULL, UNCHANGED: IS_UNCHANGED, ABSENT: IS_ABSENT}

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """One column of n values: value i is `data[starts[i] : starts[i] + lengths[i]]`.

    `starts` and `lengths` are int64 of shape (n,); where a length is below zero, its start means
    nothing.
    """

    data: Bytes
    starts: Places
    lengths: Places

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, places: npt.NDArray[np.integer]) -> Texts:
        """The values at these places, or where a mask of bool is true."""
        return Texts(data=self.data, starts=self.starts[places], lengths=self.lengths[places])

    def to_list(self) -> list[Text]:
        """The values one by one."""
        data = self.data.tobytes()
        nothing: dict[int, Text] = {length: text for text, length in _NOTHING.items()}
        return [
            data[start : start + length] if length >= 0 else nothing[length]
            for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of n records, `starts` and `lengths` of shape (columns, n).

    A record that has no such row has IS_ABSENT in every column.
    """

    starts: Places
    lengths: Places


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The inserts, updates, deletes and copied rows of one relation in a payload, by slot.

    `slots` are their places in the payload (int64, ascending), `ops` numbers of OPS (uint8). `old`
    is None where none of them has an old row. The other columns of an old row that is only a key
    are IS_ABSENT.
    """

    schema: Schema
    slots: Places
    ops: npt.NDArray[np.uint8]
    data: Bytes
    new: Rows
    old: Rows | None

    def __len__(self) -> int:
        return len(self.slots)

    def new_texts(self, column: int) -> Texts:
        """The new rows' values of one column."""
        return Texts(
            data=self.data, starts=self.new.starts[column], lengths=self.new.lengths[column]
        )

    def old_texts(self, column: int) -> Texts:
        """The old rows' values of one column. REQUIRES: `old` is not None."""
        assert self.old is not None
        return Texts(
            data=self.data, starts=self.old.starts[column], lengths=self.old.lengths[column]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPayload:
    """A payload split whole: rows by relation, and the rare records one by one.

    `rare` are truncates, messages and control records, by slot.
    """

    rows: list[Split]
    rare: list[RawChange] = field(default_factory=list)


_ROW_OPS = frozenset({Op.READ, Op.INSERT, Op.UPDATE, Op.DELETE})


def split_changes(changes: Iterable[RawChange], schemas: Mapping[int, Schema]) -> SplitPayload:
    """Put raw changes that a codec decoded one by one into the split form.

    What a codec without columns of its own falls back to, and what the others are tested against.
    """
    rows: dict[int, list[RawChange]] = {}
    rare = []
    for raw in changes:
        if raw.op in _ROW_OPS and raw.relation is not None:
            rows.setdefault(raw.relation, []).append(raw)
        else:
            rare.append(raw)
    return SplitPayload(
        rows=[_split(found, schemas[relation]) for relation, found in rows.items()], rare=rare
    )


def _split(changes: list[RawChange], schema: Schema) -> Split:
    data = bytearray()
    width = len(schema.columns)
    has_old = any(raw.old is not None for raw in changes)
    return Split(
        schema=schema,
        slots=np.array([raw.slot for raw in changes], np.int64),
        ops=np.array([OP_NUMBER[raw.op] for raw in changes], np.uint8),
        new=_rows([raw.new for raw in changes], width, data),
        old=_rows([raw.old for raw in changes], width, data) if has_old else None,
        data=np.frombuffer(bytes(data), np.uint8),
    )


def _rows(rows: list[tuple[Text, ...] | None], width: int, data: bytearray) -> Rows:
    starts = np.zeros((width, len(rows)), np.int64)
    lengths = np.full((width, len(rows)), IS_ABSENT, np.int64)
    for place, row in enumerate(rows):
        for column, text in enumerate(row or ()):
            if isinstance(text, bytes):
                starts[column, place], lengths[column, place] = len(data), len(text)
                data += text
            else:
                lengths[column, place] = _NOTHING[text]
    return Rows(starts=starts, lengths=lengths)
