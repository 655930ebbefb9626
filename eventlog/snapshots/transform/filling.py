"""Filling what updates left unchanged, for the records of a whole split at once.

What `eventlog.changes.fold.Filler` does record by record, and defines: a value is that of the row's
version before, else that of the old row as sent. Rows that only come or are whole are taken in
together; only records that lack a value, or take a row away, are looked at one by one.

Not for several threads. Memory: the latest row of each key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np

from eventlog.changes.change import Op, RawChange
from eventlog.changes.fold import Placed, Row, filled_row
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import places
from eventlog.changes.split import (
    IS_ABSENT,
    IS_UNCHANGED,
    OP_NUMBER,
    Places,
    Rows,
    Split,
    Texts,
    texts_of,
)


class SplitFiller:
    """The rows of tables with a key, as the records taken in so far left them."""

    def __init__(self) -> None:
        self._tables: dict[int, _Table] = {}

    def fill(self, split: Split, offsets: Places) -> list[Texts]:
        """Take records in; returns the columns of their new rows, filled where that can be done.

        REQUIRES: offset order, and a schema version with a key.
        """
        table = self._tables.get(split.schema.relation)
        if table is None:
            table = self._tables[split.schema.relation] = _Table()
        return _columns(split, table.take(split, offsets))

    def reset(self, raw: RawChange) -> None:
        """Take a truncate or the begin of a copy in."""
        if raw.relation is not None:
            self._tables.pop(raw.relation, None)


def lacks_values(split: Split) -> bool:
    """Whether an update among the records left a value out as unchanged."""
    return bool((split.new.lengths == IS_UNCHANGED).any())


class _Table:
    """The rows of one relation by their keys, under its latest schema version."""

    def __init__(self) -> None:
        self._schema: Schema | None = None
        self._rows: dict[Any, Placed] = {}
        self._key_of: Callable[[Row], Any] = tuple

    def take(self, split: Split, offsets: Places) -> dict[int, Row]:
        """Take records in; returns the rows that were filled, by their places in the split."""
        self._switch(split.schema)
        rows, key_of = self._rows, self._key_of
        new = split.new.tuples(split.data)
        keys = list(map(key_of, new))
        placed = list(zip(offsets.tolist(), new, strict=True))
        lacking = (split.new.lengths == IS_UNCHANGED).any(axis=0)
        deletes = split.ops == OP_NUMBER[Op.DELETE]
        olds = _old_rows(split)
        special = lacking | deletes
        special[list(olds)] = True
        filled: dict[int, Row] = {}
        at = 0
        for place in np.flatnonzero(special).tolist():
            rows.update(zip(keys[at:place], placed[at:place], strict=True))
            at = place + 1
            old, row = olds.get(place), new[place]
            if deletes[place]:
                rows.pop(key_of(row if old is None else old), None)
                continue
            before = rows.get(keys[place]) if old is None else rows.pop(key_of(old), None)
            if lacking[place]:
                row = filled[place] = filled_row(row, None if before is None else before[1], old)
            rows[key_of(row)] = placed[place][0], row
        rows.update(zip(keys[at:], placed[at:], strict=True))
        return filled

    def _switch(self, schema: Schema) -> None:
        """Go on under another schema version, all rows moved to it."""
        before, self._schema = self._schema, schema
        if before is schema:
            return
        self._key_of = itemgetter(*schema.key_indexes)
        if before is not None:
            placed = sorted(self._rows.values(), key=itemgetter(0))
            moved = _moved(placed, before, schema)
            self._rows = {self._key_of(row): (offset, row) for offset, row in moved}


def _moved(placed: Iterable[Placed], source: Schema, target: Schema) -> Iterator[Placed]:
    at = places(source, target)
    defaults = [
        None if column.missing is None else column.missing.encode() for column in target.columns
    ]
    columns = list(zip(at, defaults, strict=True))
    for offset, row in placed:
        yield offset, tuple(default if p is None else row[p] for p, default in columns)


def _old_rows(split: Split) -> dict[int, Row]:
    """The old rows that were sent, by the places of their records."""
    if split.old is None:
        return {}
    sent: Places = np.flatnonzero((split.old.lengths != IS_ABSENT).any(axis=0))
    chosen = Rows(starts=split.old.starts[:, sent], lengths=split.old.lengths[:, sent])
    return dict(zip(sent.tolist(), chosen.tuples(split.data), strict=True))


def _columns(split: Split, filled: dict[int, Row]) -> list[Texts]:
    """The new rows column by column, over one buffer, those of `filled` in their places."""
    width = len(split.schema.columns)
    columns = [split.new_texts(place) for place in range(width)]
    if not filled:
        return columns
    rows = np.array(list(filled), np.int64)
    added = texts_of(row[place] for place in range(width) for row in filled.values())
    # The records may be a few of a large buffer.
    is_there = split.new.lengths >= 0
    begin = int(split.new.starts.min(where=is_there, initial=len(split.data)))
    stops = split.new.starts + split.new.lengths
    own = split.data[begin : int(stops.max(where=is_there, initial=begin))]
    data = np.concatenate([own, added.data])
    found = []
    for place, texts in enumerate(columns):
        starts, lengths = np.where(is_there[place], texts.starts - begin, 0), texts.lengths.copy()
        mine = slice(place * len(rows), (place + 1) * len(rows))
        starts[rows] = added.starts[mine] + len(own)
        lengths[rows] = added.lengths[mine]
        found.append(Texts(data=data, starts=starts, lengths=lengths))
    return found
