"""One pass over a span of the log: which rows live at its end, of one share of the keys.

In a span rows are told apart by the same columns. Events are gathered into runs; at the end of a
run they are sorted together with what lives, and what no later event took away lives on. A run is
as large as the state, so that each event is sorted about twice, however many there are.

Where the keys are too many for the budget, each share of them (by hash) takes a pass of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.changes.split import IS_ABSENT, IS_NULL, IS_UNCHANGED, OP_NUMBER, Places
from eventlog.snapshots.state.hashing import Hashes, KeyHasher
from eventlog.snapshots.state.identity import Identity
from eventlog.snapshots.state.offset_set import OffsetSet
from eventlog.snapshots.state.steps import Chunk
from eventlog.snapshots.state.survivors import (
    Grouped,
    Mask,
    grouped,
    latest,
    latest_numbers,
    unmatched,
)
from eventlog.snapshots.state.unsent import Unsent, alias, merged, resolved

EVENT_BYTES = 24
"""A hash and a number."""

SHARES_MAX = 1024
"""Equal rows cannot be parted: with this many shares a pass goes on beyond its budget."""

_INSERT, _READ = OP_NUMBER[Op.INSERT], OP_NUMBER[Op.READ]
_UPDATE, _DELETE = OP_NUMBER[Op.UPDATE], OP_NUMBER[Op.DELETE]
_NO_LINK = -1
_NONE = np.zeros(0, np.int64)
_NO_HASHES = Hashes(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


class TooManyKeys(Exception):
    """The keys of this share pass the budget: take smaller shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a pass may hold: bytes of keys, and how many events make a run at least."""

    key_bytes: int
    run_events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Keys whose hash leaves `number` when divided by `of`."""

    number: int
    of: int

    def mask(self, hashes: Hashes) -> Mask:
        """Which keys belong to it."""
        spread = hashes.spread() >> np.uint64(32)
        found: Mask = spread % np.uint64(self.of) == np.uint64(self.number)
        return found


class _Events(NamedTuple):
    """Events in order, whose hashes lie beside their numbers; see `survivors`."""

    hashes: Hashes = _NO_HASHES
    numbers: Places = _NONE

    def take(self, places: Mask | Places) -> _Events:
        return _Events(self.hashes.take(places), self.numbers[places])


class _Pending(NamedTuple):
    """Unsent values of a run, and the event whose predecessor is the row that they came from.

    `away`: the row itself belongs to another share.
    """

    offsets: Places
    columns: Places
    links: Places
    away: Mask


class Pass:
    """Takes in the steps of a span in order; `live` and `unsent` are then what it left."""

    def __init__(
        self,
        schema: Schema | None,
        identity: Identity,
        *,
        share: Share,
        hasher: KeyHasher,
        budget: Budget,
        live: OffsetSet,
        unsent: Unsent,
    ) -> None:
        self.live = live
        self.unsent = unsent
        self.crossed = Unsent.none()
        self._schema = schema
        self._identity = identity
        self._share = share
        self._hasher = hasher
        self._budget = budget
        self._state = _Events()
        self._run: list[_Events] = []
        self._run_events = 0
        self._pending: list[_Pending] = []

    def seed(self, offsets: Places, hashes: Hashes) -> None:
        """Put rows that lived when the span began, in order."""
        unsent = self.unsent
        self._take(_Events(hashes, 2 * offsets + 1))
        self.unsent = unsent  # A run that ended knows nothing yet of the rows that are to come.

    def apply(self, chunk: Chunk) -> None:
        """Take in the records of a chunk. Raises TooManyKeys."""
        if self._identity.kind == "inserted":
            self.live.add(chunk.offsets[(chunk.ops == _INSERT) | (chunk.ops == _READ)])
            return
        if self._identity.loose:
            chunk = self._without_loose(chunk)
        ops = chunk.ops
        has_old = np.zeros(len(chunk), np.bool_)
        if chunk.old is not None and chunk.old.lengths.size:
            has_old = (chunk.old.lengths != IS_ABSENT).any(axis=0)
        puts = ops != _DELETE
        removes = (ops == _DELETE) | ((ops == _UPDATE) & has_old)
        new = self._new_hashes(chunk, puts)
        events = _Events(new, 2 * chunk.offsets[puts] + 1)
        old = _NO_HASHES
        if removes.any():
            old = self._old_hashes(chunk, removes)
            both = _Events(
                Hashes(*(np.concatenate(halves) for halves in zip(new, old, strict=True))),
                np.concatenate([events.numbers, 2 * chunk.offsets[removes]]),
            )
            events = both.take(np.argsort(both.numbers))
        if self._identity.kind == "keyed":
            self._note_unsent(chunk, has_old & removes, (puts, new), (removes, old))
        self._take(events)

    def reset(self) -> None:
        """All rows go."""
        if self._identity.kind == "inserted":
            self.live.clear()  # Else nothing is in it yet but the rows of other shares.
        self.unsent = self.crossed = Unsent.none()
        self._state = _Events()
        self._run, self._run_events, self._pending = [], 0, []

    def switch(self, schema: Schema) -> None:
        """Go on under a version that tells rows apart by the same values."""
        self._flush()
        if self._schema is not None:
            self.unsent = self.unsent.moved(self._schema, schema)
            self.crossed = self.crossed.moved(self._schema, schema)
            at = self._identity
            columns = schema.key_indexes if at.kind == "keyed" else range(len(schema.columns))
            self._identity = replace(at, columns=tuple(columns))
        self._schema = schema

    def finish(self) -> None:
        """End the span: bring `live` and `unsent` up to date."""
        if self._identity.kind != "inserted":
            self._flush()
            offsets = np.sort(self._state.numbers >> 1)
            self.live.add(offsets)
            self.unsent = self.unsent.of_rows(offsets)

    def _take(self, events: _Events) -> None:
        if self._share.of > 1:
            events = events.take(self._share.mask(events.hashes))
        if len(events.numbers):
            self._run.append(events)
            self._run_events += len(events.numbers)
        if self._run_events >= max(self._budget.run_events, len(self._state.numbers)):
            self._flush()
            # The next run may grow as large as what lives.
            held = EVENT_BYTES * (2 * len(self._state.numbers) + len(self.unsent))
            if held > self._budget.key_bytes and self._share.of < SHARES_MAX:
                raise TooManyKeys

    def _without_loose(self, chunk: Chunk) -> Chunk:
        """Put the rows without a key, which nothing takes away; the rest of the chunk."""
        (key,) = self._identity.columns
        loose = (chunk.new.lengths[key] == IS_NULL) & (chunk.ops != _DELETE)
        if not loose.any():
            return chunk
        self.live.add(chunk.offsets[loose])
        return chunk.take(~loose)

    def _new_hashes(self, chunk: Chunk, puts: Mask) -> Hashes:
        """Of the new rows; what an update did not send of them counts as in the old row."""
        columns = []
        for place in self._identity.columns:
            starts, lengths = chunk.new.starts[place], chunk.new.lengths[place]
            if chunk.old is not None:
                old = chunk.old.lengths[place]
                from_old = (lengths == IS_UNCHANGED) & (old != IS_ABSENT)
                if from_old.any():
                    starts = np.where(from_old, chunk.old.starts[place], starts)
                    lengths = np.where(from_old, old, lengths)
            columns.append((starts[puts], lengths[puts]))
        return self._hasher.hashes(chunk.data, columns, int(puts.sum()))

    def _old_hashes(self, chunk: Chunk, removes: Mask) -> Hashes:
        assert chunk.old is not None
        columns = [
            (chunk.old.starts[place][removes], chunk.old.lengths[place][removes])
            for place in self._identity.columns
        ]
        return self._hasher.hashes(chunk.data, columns, int(removes.sum()))

    def _note_unsent(
        self,
        chunk: Chunk,
        has_old: Mask,
        new: tuple[Mask, Hashes],
        old: tuple[Mask, Hashes],
    ) -> None:
        """Note the values that updates left out, and that their old rows do not have either."""
        missing = (chunk.new.lengths == IS_UNCHANGED) & (chunk.ops == _UPDATE)
        if chunk.old is not None:
            missing &= chunk.old.lengths == IS_ABSENT
        if not missing.any():
            return
        columns, rows = np.nonzero(missing)
        offsets = chunk.offsets[rows]
        links = 2 * offsets + np.where(has_old[rows], 0, 1)
        away = np.zeros(len(rows), np.bool_)
        if self._share.of > 1:
            here = self._here(len(chunk), *new)
            came_from = np.where(has_old, self._here(len(chunk), *old), here)
            away = ~here[rows]
            links = np.where(came_from[rows], links, _NO_LINK)
            mine = ~away | (links != _NO_LINK)
            offsets, columns, links, away = (
                offsets[mine],
                columns[mine],
                links[mine],
                away[mine],
            )
        self._pending.append(_Pending(offsets, columns, links, away))
        self._run_events += len(offsets)

    def _here(self, count: int, which: Mask, hashes: Hashes) -> Mask:
        found = np.zeros(count, np.bool_)
        if len(hashes.first):
            found[which] = self._share.mask(hashes)
        return found

    def _flush(self) -> None:
        """Sort the run into the state."""
        if not self._run and not self._pending:
            return
        runs, before = self._run, len(self._state.numbers)
        self._run, self._run_events = [], 0
        parts = [self._state, *runs]
        events = _Events(
            Hashes(
                np.concatenate([part.hashes.first for part in parts]),
                np.concatenate([part.hashes.second for part in parts]),
            ),
            np.concatenate([part.numbers for part in parts]),
        )
        self._state = _Events()
        keyed = self._identity.kind == "keyed"
        kept = latest_numbers(events.hashes, events.numbers) if keyed else None
        if kept is None or self._pending:
            found = grouped(events.hashes)
            if self._pending:
                self._resolve(found, events.numbers, before)
            kept = (latest if keyed else unmatched)(found, events.numbers)
        self._state = events.take(kept)
        if len(self.unsent):
            self.unsent = self.unsent.of_rows(np.sort(self._state.numbers >> 1))

    def _resolve(self, found: Grouped, numbers: Places, before: int) -> None:
        """Find where the unsent values of a run are."""
        pending = _Pending(*(np.concatenate(each) for each in zip(*self._pending, strict=True)))
        self._pending = []
        rank = np.empty(len(found.order), np.int64)
        rank[found.order] = np.arange(len(found.order))
        linked = pending.links != _NO_LINK
        sources = alias(pending.offsets)
        at = rank[before + np.searchsorted(numbers[before:], pending.links[linked])]
        earlier = numbers[found.order[np.maximum(at - 1, 0)]]
        is_row = ~found.first[at] & ((earlier & 1) == 1)
        sources[linked] = np.where(is_row, earlier >> 1, -1)
        assert self._schema is not None
        fresh = Unsent(pending.offsets, pending.columns, sources)
        width = len(self._schema.columns)
        away = pending.away[np.argsort(fresh.offsets * width + fresh.columns)]
        fresh = resolved(fresh, self.unsent, width=width)
        self.unsent = merged([self.unsent, fresh.take(~away)])
        self.crossed = merged([self.crossed, fresh.take(away)])
