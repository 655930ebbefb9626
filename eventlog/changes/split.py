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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

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
_NOTHINGS: Mapping[int, Text] = {length: text for text, length in _NOTHING.items()}

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

    def text(self, place: int) -> Text:
        """One value."""
        start, length = int(self.starts[place]), int(self.lengths[place])
        return self.data[start : start + length].tobytes() if length >= 0 else _NOTHINGS[length]

    def to_list(self) -> list[Text]:
        """The values one by one."""
        data = self._bytes()
        return [
            data[start : start + length] if length >= 0 else _NOTHINGS[length]
            for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        ]

    def _bytes(self) -> bytes:
        """The whole buffer, which is not copied where it was made of bytes."""
        base: object = self.data.base
        return base if isinstance(base, bytes) and len(base) == len(self.data) else bytes(self.data)


def texts_of(values: Iterable[Text]) -> Texts:
    """A column of values that were at hand one by one."""
    texts: list[bytes] = []
    lengths = []
    for text in values:
        if isinstance(text, bytes):
            lengths.append(len(text))
            texts.append(text)
        else:
            lengths.append(_NOTHING[text])
    sizes = np.array(lengths, np.int64)
    ends = np.cumsum(np.maximum(sizes, 0))
    return Texts(
        data=np.frombuffer(b"".join(texts), np.uint8),
        starts=ends - np.maximum(sizes, 0),
        lengths=sizes,
    )


def columns_of(rows: Sequence[tuple[Text, ...] | None], width: int) -> list[Texts]:
    """Rows that were at hand one by one, as `width` columns; a row that is None is all NULL."""
    return [texts_of(None if row is None else row[at] for row in rows) for at in range(width)]


def repeated(text: Text, count: int) -> Texts:
    """A column that holds the same value `count` times."""
    one = texts_of([text])
    return one.take(np.zeros(count, np.int64))


def joined(parts: Sequence[Texts]) -> Texts:
    """Columns one behind the other, over one buffer."""
    (found,) = joined_columns([[part] for part in parts])
    assert found is not None
    return found


def joined_columns(parts: Sequence[Sequence[Texts | None]]) -> list[Texts | None]:
    """Tables of as many columns one behind the other; buffers that columns share are copied once.

    A column that is None in one is None in all. REQUIRES: there is a part.
    """
    if len(parts) == 1:
        return list(parts[0])
    begins: dict[int, int] = {}
    buffers = [np.zeros(0, np.uint8)]
    size = 0
    for texts in chain.from_iterable(parts):
        if texts is not None and id(texts.data) not in begins:
            begins[id(texts.data)] = size
            buffers.append(texts.data)
            size += len(texts.data)
    data = np.concatenate(buffers) if len(buffers) > 2 else buffers[-1]
    return [
        None if column[0] is None else _joined(data, column, begins)
        for column in zip(*parts, strict=True)
    ]


def _joined(data: Bytes, column: Sequence[Texts | None], begins: Mapping[int, int]) -> Texts:
    known = [texts for texts in column if texts is not None]
    count = sum(map(len, known))
    starts, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
    at = 0
    for texts in known:
        stop = at + len(texts)
        np.add(texts.starts, begins[id(texts.data)], out=starts[at:stop])
        lengths[at:stop] = texts.lengths
        at = stop
    return Texts(data=data, starts=starts, lengths=lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of n records, `starts` and `lengths` of shape (columns, n).

    A record that has no such row has IS_ABSENT in every column.
    """

    starts: Places
    lengths: Places

    def cut(self, start: int, stop: int) -> Rows:
        """The rows of records `[start, stop)`."""
        return Rows(starts=self.starts[:, start:stop], lengths=self.lengths[:, start:stop])

    def tuples(self, data: Bytes) -> list[tuple[Text, ...]]:
        """The rows one by one."""
        width, count = self.starts.shape
        if width == 0:
            return [()] * count
        pairs = zip(self.starts, self.lengths, strict=True)
        columns = [Texts(data=data, starts=s, lengths=n).to_list() for s, n in pairs]
        return list(zip(*columns, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The inserts, updates, deletes and copied rows of one relation in a payload, by slot.

    `slots` are their places in the payload (int64, ascending), `ops` numbers of OPS (uint8). `old`
    is None where none of them has an old row. The other columns of an old row that is only a key
    are IS_ABSENT. What was cut out of another split knows of which, and where it began there.
    """

    schema: Schema
    slots: Places
    ops: npt.NDArray[np.uint8]
    data: Bytes
    new: Rows
    old: Rows | None
    whole: Split | None = None
    begin: int = 0

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

    def cut(self, start: int, stop: int, *, first_slot: int = 0) -> Split:
        """Its records `[start, stop)`, by their places in it; slots count from `first_slot` on."""
        slots = self.slots[start:stop]
        return Split(
            schema=self.schema,
            slots=slots - first_slot if first_slot else slots,
            ops=self.ops[start:stop],
            data=self.data,
            new=self.new.cut(start, stop),
            old=None if self.old is None else self.old.cut(start, stop),
            whole=self.whole or self,
            begin=self.begin + start,
        )

    def changes(self) -> Iterator[RawChange]:
        """The records one by one; an update of whose old row nothing was sent has none."""
        nothing = [None] * len(self)
        is_delete = self.ops == OP_NUMBER[Op.DELETE]
        new = _rows_where(~is_delete, self.new, self.data)
        old: Sequence[tuple[Text, ...] | None] = nothing
        if self.old is not None:
            was_sent = is_delete | (self.old.lengths != IS_ABSENT).any(axis=0)
            old = _rows_where(was_sent, self.old, self.data)
        ops = map(OPS.__getitem__, self.ops.tolist())
        relations = repeat(self.schema.relation)
        return map(RawChange, self.slots.tolist(), ops, relations, old, new, nothing)


def mended(splits: Iterable[Split]) -> list[Split]:
    """The same records in as few splits: what was cut apart is put together again.

    The slots of those put together are the ones of their whole.
    """
    found: list[Split] = []
    whole, stop = None, 0
    for split in splits:
        if whole is not None and split.whole is whole and split.begin == stop:
            stop += len(split)
            continue
        if found:
            found[-1] = _extended(found[-1], stop)
        found.append(split)
        whole, stop = split.whole, split.begin + len(split)
    if found:
        found[-1] = _extended(found[-1], stop)
    return found


def _extended(split: Split, stop: int) -> Split:
    """It with what follows in its whole, up to the place `stop` there."""
    if split.whole is None or stop == split.begin + len(split):
        return split
    return split.whole.cut(split.begin, stop)


def _rows_where(
    mask: npt.NDArray[np.bool_], rows: Rows, data: Bytes
) -> list[tuple[Text, ...] | None]:
    """The rows one by one, None where the mask is false."""
    found: list[tuple[Text, ...] | None] = [*rows.tuples(data)]
    for place in np.flatnonzero(~mask).tolist():
        found[place] = None
    return found


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
    texts: list[bytes] = []
    width = len(schema.columns)
    new, end = _rows([raw.new for raw in changes], width, texts, 0)
    old = None
    if any(raw.old is not None for raw in changes):
        old, _ = _rows([raw.old for raw in changes], width, texts, end)
    return Split(
        schema=schema,
        slots=np.array([raw.slot for raw in changes], np.int64),
        ops=np.array([OP_NUMBER[raw.op] for raw in changes], np.uint8),
        new=new,
        old=old,
        data=np.frombuffer(b"".join(texts), np.uint8),
    )


def _rows(
    rows: list[tuple[Text, ...] | None], width: int, texts: list[bytes], end: int
) -> tuple[Rows, int]:
    """Where the values will lie once the texts are joined, `end` bytes being there already."""
    starts = np.zeros((width, len(rows)), np.int64)
    lengths = np.full((width, len(rows)), IS_ABSENT, np.int64)
    for place, row in enumerate(rows):
        for column, text in enumerate(row or ()):
            if isinstance(text, bytes):
                starts[column, place], lengths[column, place] = end, len(text)
                end += len(text)
                texts.append(text)
            else:
                lengths[column, place] = _NOTHING[text]
    return Rows(starts=starts, lengths=lengths), end
