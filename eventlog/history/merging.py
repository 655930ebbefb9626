"""Merging runs: few files stay, however often the index was brought up to date.

::

    level of a run    0 below 2**15 entries, 1 below 2**18, 2 below 2**21, ...
    after each new run: it takes in those of lower levels right before it;
                        where FANOUT runs at the end are of one level, they become one

So levels never rise along the chain, and there are at most FANOUT - 1 runs of each. Runs follow
each other in offsets; where hashes are equal, taking them run by run keeps the order of offsets.
Memory: a few blocks of each run, however large they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from eventlog.history.hashing import U64, order_of
from eventlog.history.run import SPAN_MAX, Run

FANOUT = 8
_BLOCKS_AT_ONCE = 16
_LEAST_BITS, _LEVEL_BITS = 15, 3


def level(count: int) -> int:
    """The level of a run of so many entries."""
    return max(0, -((_LEAST_BITS - count.bit_length()) // _LEVEL_BITS))


def due(runs: Sequence[Run]) -> int:
    """How many runs at the end are to be merged now; 0 for none."""
    if not runs:
        return 0
    levels = [level(run.count) for run in runs]
    last = levels[-1]
    lower = alike = 1
    while lower < len(levels) and levels[-1 - lower] < last:
        lower += 1
    while alike < len(levels) and levels[-1 - alike] == last:
        alike += 1
    count = lower if lower > 1 else alike if alike >= FANOUT else 0
    return count if count and runs[-1].stop - runs[-count].start <= SPAN_MAX else 0


def merged(runs: Sequence[Run]) -> Iterator[tuple[U64, U64]]:
    """All entries of the runs, sorted by hash and place, in parts. Raises UnusableRun."""
    cursors = [_Cursor(run) for run in runs]
    while True:
        for cursor in cursors:
            cursor.fill()
        # Behind the end of what is in memory of a run, hashes from its last one on may follow.
        limits = [int(cursor.hashes[-1]) for cursor in cursors if cursor.has_more]
        if not limits:
            yield _sorted([cursor.take(len(cursor.hashes)) for cursor in cursors])
            return
        limit = np.uint64(min(limits))
        parts = [cursor.below(limit) for cursor in cursors]
        if any(len(hashes) for hashes, _ in parts):
            yield _sorted(parts)
        else:
            for cursor in cursors:
                yield from cursor.all_of(limit)


class _Cursor:
    """What was read of a run, and not taken yet."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._next = 0
        self.hashes: U64 = np.zeros(0, np.uint64)
        self._places: U64 = np.zeros(0, np.uint64)

    @property
    def has_more(self) -> bool:
        return self._next < self._run.blocks

    def fill(self) -> None:
        """Read on where nothing is left."""
        if len(self.hashes) or not self.has_more:
            return
        stop = min(self._next + _BLOCKS_AT_ONCE, self._run.blocks)
        read = [self._run.block(number) for number in range(self._next, stop)]
        self._next = stop
        self.hashes = np.concatenate([hashes for hashes, _ in read])
        self._places = np.concatenate([places for _, places in read])

    def take(self, count: int) -> tuple[U64, U64]:
        taken = self.hashes[:count], self._places[:count]
        self.hashes, self._places = self.hashes[count:], self._places[count:]
        return taken

    def below(self, limit: np.uint64) -> tuple[U64, U64]:
        return self.take(int(np.searchsorted(self.hashes, limit, side="left")))

    def all_of(self, key_hash: np.uint64) -> Iterator[tuple[U64, U64]]:
        """The entries of one hash at the head, however many they are."""
        while len(self.hashes) and self.hashes[0] == key_hash:
            yield self.take(int(np.searchsorted(self.hashes, key_hash, side="right")))
            self.fill()


def _sorted(parts: Sequence[tuple[U64, U64]]) -> tuple[U64, U64]:
    hashes = np.concatenate([found for found, _ in parts])
    places = np.concatenate([found for _, found in parts])
    order = order_of(hashes)
    return hashes[order], places[order]
