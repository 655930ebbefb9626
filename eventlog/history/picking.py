"""Reading single records of a captured stream by their offsets: only their batches are read.

Offsets that follow each other in one batch cost one reading of it, and the last few batches are
kept. What is erased, compacted or lost has no record any more and is passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from eventlog.changes.decoding import Located
from eventlog.changes.reading import Moment, Piece, pieces
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine, IndexEntry

KEPT_BATCHES = 4
"""Some MB at most; following a row and then printing it read the same ones twice."""

GROUP_RECORDS = 4096
"""Offsets of one batch that are decoded together."""


class Picker:
    """Reads records of one relation, and `data_loss` records of all. Belongs to one thread."""

    def __init__(self, engine: Engine, history: SchemaHistory, relation: int) -> None:
        self._engine = engine
        self._history = history
        self._relations = frozenset([relation])
        self._kept: OrderedDict[int, Piece] = OrderedDict()

    def at(self, offsets: Iterable[int]) -> Iterator[Located]:
        """The records at ascending offsets, read as they are iterated. Raises DamagedLog."""
        group: list[int] = []
        piece: Piece | None = None
        for offset in offsets:
            if group and piece is not None:
                if offset < piece.entry.stop and len(group) < GROUP_RECORDS:
                    group.append(offset)
                    continue
                yield from self._located(piece, group)
            piece, group = self._piece(offset), [offset]
        if group and piece is not None:
            yield from self._located(piece, group)

    def one(self, offset: int) -> Located | None:
        """The record at an offset; None where it cannot be read any more."""
        return next(self.at([offset]), None)

    def _piece(self, offset: int) -> Piece | None:
        """The batch that holds an offset."""
        for first, kept in self._kept.items():
            if first <= offset < kept.entry.stop:
                self._kept.move_to_end(first)
                return kept
        found = next(pieces(self._engine, self._history, offset, offset + 1), None)
        if found is not None:
            self._kept[found.entry.first_offset] = found
            if len(self._kept) > KEPT_BATCHES:
                self._kept.popitem(last=False)
        return found

    def _located(self, piece: Piece, offsets: list[int]) -> Iterator[Located]:
        slots, places = piece.entry.readable_slots(offsets[0], offsets[-1] + 1)
        if len(places) != len(offsets):
            wanted = set(offsets)
            pairs = [pair for pair in zip(slots, places, strict=True) if pair[1] in wanted]
            slots, places = [slot for slot, _ in pairs], [place for _, place in pairs]
        chosen = replace(piece, slots=slots, offsets=places, relations=self._relations)
        for offset, raw in chosen.changes():
            schema = None if raw.relation is None else piece.schemas[raw.relation]
            yield Located(offset, raw, schema, piece.codec, _moment(piece.entry, raw.slot))


def _moment(entry: IndexEntry, slot: int) -> Moment:
    transactions = entry.transactions
    place = int(np.searchsorted(transactions.first, slot, side="right")) - 1
    return Moment(
        int(transactions.tx[place]),
        int(transactions.position[place]),
        int(transactions.time[place]),
    )
