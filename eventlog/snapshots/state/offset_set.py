"""A set of offsets of one range, a bit for each: 12.5 MB for a log of 100M records."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from eventlog.changes.split import Places

_BLOCK = 1 << 23
"""Bits that are spread out at a time."""


class OffsetSet:
    """Offsets of `[start, stop)`."""

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self._bits = np.zeros((max(stop - start, 0) + 7) // 8, np.uint8)

    def __len__(self) -> int:
        return int(np.bitwise_count(self._bits).sum(dtype=np.int64))

    def add(self, offsets: Places) -> None:
        """Put offsets in. REQUIRES: they ascend, and lie in the range."""
        if not len(offsets):
            return
        places = offsets - self.start
        first = int(places[0]) & ~7
        while len(places):
            count = int(np.searchsorted(places, first + _BLOCK))
            if count:
                width = (int(places[count - 1]) - first) // 8 + 1
                dense = np.zeros(8 * width, np.bool_)
                dense[places[:count] - first] = True
                at = first // 8
                self._bits[at : at + width] |= np.packbits(dense)
            places = places[count:]
            first += _BLOCK

    def clear(self) -> None:
        """Take all out."""
        self._bits[:] = 0

    def mask(self, offsets: Places) -> npt.NDArray[np.bool_]:
        """Which of the offsets are in it. REQUIRES: they lie in the range."""
        places = offsets - self.start
        found = self._bits[places >> 3] >> (7 - (places & 7)).astype(np.uint8)
        mask: npt.NDArray[np.bool_] = (found & 1).astype(np.bool_)
        return mask

    def holds(self, start: int, stop: int) -> bool:
        """Whether any offset of `[start, stop)` may be in it; false is certain."""
        low = max(start - self.start, 0) >> 3
        high = max(min(stop, self.stop) - self.start + 7, 0) >> 3
        return bool(self._bits[low:high].any())

    def from_start(self, start: int) -> OffsetSet:
        """Its offsets from `start` on."""
        found = OffsetSet(self.start, self.stop)
        found._bits[:] = self._bits
        whole, rest = divmod(min(max(start, self.start), self.stop) - self.start, 8)
        found._bits[:whole] = 0
        if rest:
            found._bits[whole] &= 0xFF >> rest
        return found

    def blocks(self) -> Iterator[Places]:
        """All of them in order, a block at a time."""
        step = _BLOCK // 8
        for at in range(0, len(self._bits), step):
            found = np.flatnonzero(np.unpackbits(self._bits[at : at + step]))
            if len(found):
                yield found + (self.start + 8 * at)
