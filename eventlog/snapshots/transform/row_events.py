"""Which events the changes of a table make in a derived stream, before any row is transformed.

::

    change                            events
    copied, inserted, updated         its key, with its row
    deleted                           its key, without
    key changed                       the old key without, then the new key with its row

Columns first, as splits have them: a key's texts are one list, and rows of one schema version that
follow each other become one table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from eventlog.changes.arrow import Conversion, change_table
from eventlog.changes.change import RESETS, Op, RawChange
from eventlog.changes.runs import ChangeRun
from eventlog.changes.schema import Schema
from eventlog.changes.split import (
    IS_ABSENT,
    IS_UNCHANGED,
    OP_NUMBER,
    Places,
    Split,
    Texts,
    joined_columns,
)
from eventlog.snapshots.transform.definition import OFFSET

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPart:
    """Rows of one relation that follow each other."""

    codec: Any
    split: Split
    offsets: Places


def parts(run: ChangeRun) -> Iterator[RowPart | RawChange]:
    """The rows and the resets of a run, in the order of their offsets."""
    splits = list(run.splits())
    resets = [raw.slot for raw in run.rare() if raw.op in RESETS]
    if len(splits) == 1 and not resets:
        offsets = run.offsets_of(splits[0].slots)
        yield RowPart(codec=run.piece.codec, split=splits[0], offsets=offsets)
        return
    # Whose each record is: -1 of none that matters, -2 of a reset.
    owners = np.full(len(run), -1, np.int64)
    for number, split in enumerate(splits):
        owners[np.searchsorted(run.slots, split.slots)] = number
    owners[np.searchsorted(run.slots, resets)] = -2
    bounds = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(run)]
    for start, stop in pairwise(bounds):
        piece = run.cut(start, stop)
        if owners[start] >= 0:
            (split,) = piece.splits()
            yield RowPart(codec=run.piece.codec, split=split, offsets=piece.offsets)
        elif owners[start] == -2:
            yield from piece.rare()


@dataclass(slots=True, kw_only=True)
class _Group:
    """Rows of one schema version: their columns and offsets, part by part."""

    schema: Schema
    codec: Any
    columns: list[Sequence[Texts | None]] = field(default_factory=list)
    offsets: list[Places] = field(default_factory=list)


class RowEvents:
    """Events in order: the key of each, and whether it has a row; the rows stand apart."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.has_row: list[bool] = []
        self._groups: list[_Group] = []

    def add_tombstones(self, keys: Sequence[str]) -> None:
        """Add events without a row."""
        self.keys += keys
        self.has_row += [False] * len(keys)

    def add(self, part: RowPart, columns: Sequence[Texts]) -> None:
        """Add the events of rows; `columns` are their new rows, filled."""
        codec, split, offsets = part.codec, part.split, part.offsets
        keys = key_texts(split.schema, codec, _now(split))
        deletes = split.ops == OP_NUMBER[Op.DELETE]
        moved = _moved(split, codec, keys, deletes)
        if moved or deletes.any():
            self._add_mixed(keys, deletes.tolist(), moved)
            kept = np.flatnonzero(~deletes)
            self._add_rows(codec, split, [texts.take(kept) for texts in columns], offsets[kept])
        else:
            self.keys += keys
            self.has_row += [True] * len(keys)
            self._add_rows(codec, split, columns, offsets)

    def tables(self, conversion: Conversion) -> Iterator[pa.Table]:
        """The rows in order, `_offset` before the table's columns. Raises ValueDoesNotFit."""
        import pyarrow as pa

        for group in self._groups:
            offsets = np.concatenate(group.offsets)
            yield change_table(
                group.codec,
                group.schema,
                joined_columns(group.columns),
                offsets=offsets,
                conversion=conversion,
                head=[(OFFSET, pa.array(offsets, pa.int64()))],
            )

    def _add_mixed(
        self, keys: Sequence[str], deletes: Sequence[bool], moved: dict[int, str]
    ) -> None:
        for place, (key, is_delete) in enumerate(zip(keys, deletes, strict=True)):
            if place in moved:
                self.keys.append(moved[place])
                self.has_row.append(False)
            self.keys.append(key)
            self.has_row.append(not is_delete)

    def _add_rows(
        self, codec: Any, split: Split, columns: Sequence[Texts], offsets: Places
    ) -> None:
        if not len(offsets):
            return
        last = self._groups[-1] if self._groups else None
        if last is None or last.schema is not split.schema:
            last = _Group(schema=split.schema, codec=codec)
            self._groups.append(last)
        last.columns.append(columns)
        last.offsets.append(offsets)


def key_texts(schema: Schema, codec: Any, columns: Sequence[Texts]) -> list[str]:
    """The keys as texts: of a one-column key the source's own, else a JSON object."""
    found = [
        [text if text.__class__ is bytes else b"" for text in texts.to_list()] for texts in columns
    ]
    if len(found) == 1:
        return [text.decode("utf-8", "replace") for text in found[0]]
    names = [schema.names[place] for place in schema.key_indexes]
    loaders = codec.loaders(schema, "json")
    values = [
        map(loaders[place], texts) for place, texts in zip(schema.key_indexes, found, strict=True)
    ]
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    return [encode(dict(zip(names, row, strict=True))) for row in zip(*values, strict=True)]


def _now(split: Split) -> list[Texts]:
    """The columns of the key as it is behind each record; of a delete the last one."""
    return [_either(split, place, split.new_texts(place), old=False) for place in _keys(split)]


def _moved(
    split: Split, codec: Any, keys: Sequence[str], deletes: np.ndarray[Any, Any]
) -> dict[int, str]:
    """The old keys of updates that changed it, by the places of their records."""
    if split.old is None:
        return {}
    sent = np.flatnonzero((split.old.lengths != IS_ABSENT).any(axis=0) & ~deletes)
    if not len(sent):
        return {}
    old = [_either(split, p, split.old_texts(p), old=True).take(sent) for p in _keys(split)]
    olds = key_texts(split.schema, codec, old)
    return {p: key for p, key in zip(sent.tolist(), olds, strict=True) if key != keys[p]}


def _either(split: Split, place: int, texts: Texts, *, old: bool) -> Texts:
    """A column's texts; what one of the two rows leaves out is taken from the other."""
    if split.old is None:
        return texts
    other = split.new_texts(place) if old else split.old_texts(place)
    out = (texts.lengths == IS_UNCHANGED) | (texts.lengths == IS_ABSENT)
    if not out.any():
        return texts
    return Texts(
        data=split.data,
        starts=np.where(out, other.starts, texts.starts),
        lengths=np.where(out, other.lengths, texts.lengths),
    )


def _keys(split: Split) -> tuple[int, ...]:
    return split.schema.key_indexes
