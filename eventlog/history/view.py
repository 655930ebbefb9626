"""A look into the key index as it was at one moment: entries below a stop, from several sources.

Sources follow each other in offsets, but for one that was scanned for a single history, which may
lie beside them. What is found comes in ascending order, and each record once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eventlog.history.entries import ALL_TABLES, FLAG_BITS, I64
from eventlog.history.hashing import U64
from eventlog.history.run import Source

_FLAGS = (1 << FLAG_BITS) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A source, and the offsets `[start, stop)` that it covers."""

    start: int
    stop: int
    source: Source


class View:
    """Where records about a key are. Belongs to one thread."""

    def __init__(self, parts: Sequence[Part], beside: Sequence[Source] = ()) -> None:
        self._parts = parts
        self._beside = beside

    def beside(self, source: Source) -> View:
        """The same view, with one more source."""
        return View(self._parts, [*self._beside, source])

    def places(
        self, hashes: Iterable[int], start: int, stop: int, *, flag: int = 0
    ) -> Iterator[tuple[int, int]]:
        """(offset, flags) of the records of `[start, stop)` under any of the hashes, ascending.

        With `flag`, only those that bear it. Read as it is iterated. Some may be about other keys.
        """
        found: list[Iterator[int]] = []
        for key_hash in hashes:
            found.append(_flat(self.arrays(key_hash, start, stop), start, stop, flag))
            found += [_flat(s.find(key_hash), start, stop, flag) for s in self._beside]
        last = -1
        for place in found[0] if len(found) == 1 else heapq.merge(*found):
            offset = place >> FLAG_BITS
            if offset != last:
                yield offset, place & _FLAGS
            last = offset

    def rare(self, relation: int, kind: int) -> I64:
        """The offsets of what concerns all rows of a relation, ascending."""
        found = []
        for part in self._parts:
            rows = part.source.rare
            if not len(rows):
                continue
            chosen = ((rows[:, 0] == relation) | (rows[:, 0] == ALL_TABLES)) & (
                rows[:, 1] & _FLAGS == kind
            )
            found.append(rows[chosen, 1] >> FLAG_BITS)
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def arrays(self, key_hash: int, start: int, stop: int) -> Iterator[U64]:
        """The places of `[start, stop)` under a hash, ascending, array by array."""
        low, high = np.uint64(start << FLAG_BITS), np.uint64(stop << FLAG_BITS)
        for part in self._parts:
            if part.stop > start and part.start < stop:
                for places in part.source.find(key_hash):
                    yield places[(places >= low) & (places < high)]


def _flat(arrays: Iterator[U64], start: int, stop: int, flag: int) -> Iterator[int]:
    low, high = np.uint64(start << FLAG_BITS), np.uint64(stop << FLAG_BITS)
    for places in arrays:
        chosen = (places >= low) & (places < high)
        if flag:
            chosen &= (places & np.uint64(flag)) != 0
        yield from places[chosen].tolist()
