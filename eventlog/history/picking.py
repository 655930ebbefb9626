"""Reading single records of a captured stream by their offsets: only their batches are read.

Offsets that follow each other in one batch cost one reading of it. There is one batch in memory at
a time, which goes before the next one comes: so that takes its place, in pages that are there
already, while fresh ones would cost half as much again as reading it. What is erased, compacted or
lost has no record any more and is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from eventlog.changes.decoding import Located
from eventlog.changes.reading import Moment, Piece, pieces
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine, IndexEntry

KEPT_RECORDS = 64
"""Following a row through its keys and then printing it ask for the same ones twice."""

KEPT_BYTES = 4096
"""The values of a record that is kept: more are as well read again."""

GROUP_RECORDS = 4096
"""Offsets of one batch that are decoded together."""


class Picker:
    """Reads records of one relation, and `data_loss` records of all. Belongs to one thread."""

    def __init__(self, engine: Engine, history: SchemaHistory, relation: int) -> None:
        self._engine = engine
        self._history = history
        self._relations = frozenset([relation])
        self._piece: Piece | None = None
        self._kept: dict[int, Located] = {}

    def at(self, offsets: Iterable[int]) -> Iterator[Located]:
        """The records at ascending offsets, read as they are iterated. Raises DamagedLog."""
        group: list[int] = []
        stop = 0
        for offset in offsets:
            kept = self._kept.get(offset)
            if group and (kept is not None or offset >= stop or len(group) == GROUP_RECORDS):
                yield from self._located(group)
                group = []
            if kept is not None:
                yield kept
                continue
            if not group:
                stop = self._load(offset)
            group.append(offset)
        if group:
            yield from self._located(group)

    def one(self, offset: int) -> Located | None:
        """The record at an offset; None where it cannot be read any more. Raises DamagedLog.

        Kept, if it is small, for when `at` comes by.
        """
        found = self._kept.get(offset)
        if found is None:
            self._load(offset)
            found = next(self._located([offset]), None)
            if found is not None and _size(found) <= KEPT_BYTES:
                if len(self._kept) == KEPT_RECORDS:
                    del self._kept[next(iter(self._kept))]
                self._kept[offset] = found
        return found

    def _load(self, offset: int) -> int:
        """Have the batch that holds an offset; returns where it ends."""
        piece = self._piece
        if piece is None or not piece.entry.first_offset <= offset < piece.entry.stop:
            piece = self._piece = None
            found = pieces(self._engine, self._history, offset, offset + 1)
            piece = self._piece = next(found, None)
        return offset + 1 if piece is None else piece.entry.stop

    def _located(self, offsets: list[int]) -> Iterator[Located]:
        """Records of the batch that was loaded last, which holds them all, if there is one."""
        piece = self._piece
        if piece is None:
            return
        slots, places = piece.entry.readable_slots(offsets[0], offsets[-1] + 1)
        if len(places) != len(offsets):
            wanted = set(offsets)
            pairs = [pair for pair in zip(slots, places, strict=True) if pair[1] in wanted]
            slots, places = [slot for slot, _ in pairs], [place for _, place in pairs]
        chosen = replace(piece, slots=slots, offsets=places, relations=self._relations)
        for offset, raw in chosen.changes():
            schema = None if raw.relation is None else piece.schemas[raw.relation]
            yield Located(offset, raw, schema, piece.codec, _moment(piece.entry, raw.slot))


def _size(located: Located) -> int:
    """The bytes of a record's values."""
    rows = (located.raw.old or (), located.raw.new or ())
    return sum(len(text) for row in rows for text in row if isinstance(text, bytes))


def _moment(entry: IndexEntry, slot: int) -> Moment:
    transactions = entry.transactions
    place = int(np.searchsorted(transactions.first, slot, side="right")) - 1
    return Moment(
        int(transactions.tx[place]),
        int(transactions.position[place]),
        int(transactions.time[place]),
    )
