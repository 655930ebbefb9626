"""Keys as 128-bit hashes, of many rows at once.

::

    column 0: length, words of 8 bytes; column 1: length, words; …     mixed in, one after the other

Two lanes of 64 bits are mixed by different, invertible steps (the finaliser of MurmurHash3) from
random seeds that a fold draws for itself, so that nobody can prepare keys that collide. Of a
billion different keys the chance that any two are taken for one is below 2⁻⁶⁸. A length below zero
(NULL, unchanged, absent) counts as such. Long values are hashed one by one, by XXH3.

A single column's value that is a number (see `number_keys`) is not hashed: it is the first half
itself, and the second half is `NUMBER`. A hash is taken for one with a chance of 2⁻¹²⁸.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from eventlog.changes.split import Bytes, Places
from eventlog.snapshots.state.number_keys import number_keys

LONG_BYTES = 64
"""Values above it are hashed one by one: a loop over their words would be longer than that."""

U64: TypeAlias = npt.NDArray[np.uint64]

_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_STEPS = (
    (33, 0xFF51AFD7ED558CCD, 33, 0xC4CEB9FE1A85EC53, 33),
    (30, 0xBF58476D1CE4E5B9, 27, 0x94D049BB133111EB, 31),
)


NUMBER = np.uint64(0)
"""The second half of what is a number."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)


class Hashes(NamedTuple):
    """The two halves of each row's hash."""

    first: U64
    second: U64

    def take(self, places: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Hashes:
        """Those at these places."""
        return Hashes(self.first[places], self.second[places])

    def spread(self) -> U64:
        """The first halves mapped one to one, so that numbers differ in their upper bits, too."""
        return self.first * _SPREAD


class KeyHasher:
    """Hashes rows under seeds of its own."""

    def __init__(self) -> None:
        self._seeds = [np.uint64(secrets.randbits(64)) for _ in range(2)]
        self._long_seed = secrets.randbits(63)

    def hashes(self, data: Bytes, columns: Iterable[tuple[Places, Places]], count: int) -> Hashes:
        """Hash `count` rows, given where each column's values start in `data`, and their lengths.

        REQUIRES: every value lies in `data`.
        """
        padded = np.concatenate([data, np.zeros(8, np.uint8)])
        words = np.ndarray(len(data) + 1, "<u8", padded, strides=(1,))
        known = list(columns)
        numbers = None
        if len(known) == 1:
            numbers = number_keys(words, *known[0])
            if len(numbers[0]) == count:
                return Hashes(numbers[1], np.full(count, NUMBER))
        hashes = self._mixed(data, words, known, count)
        if numbers is not None:
            places, found = numbers
            hashes.first[places], hashes.second[places] = found, NUMBER
        return hashes

    def _mixed(
        self, data: Bytes, words: U64, columns: list[tuple[Places, Places]], count: int
    ) -> Hashes:
        lanes = [np.full(count, seed, np.uint64) for seed in self._seeds]
        for starts, lengths in columns:
            self._mix_all(lanes, lengths.astype(np.uint64))
            self._mix_values(lanes, data, words, starts, lengths)
        return Hashes(*lanes)

    def _mix_values(
        self, lanes: list[U64], data: Bytes, words: U64, starts: Places, lengths: Places
    ) -> None:
        longest = int(lengths.max(initial=0))
        for at in range(0, min(longest, LONG_BYTES), 8):
            rows = np.flatnonzero((lengths > at) & (lengths <= LONG_BYTES))
            left = np.minimum(lengths[rows] - at, 8)
            found = words[starts[rows] + at] & _MASKS[left]
            if len(rows) == len(starts):
                self._mix_all(lanes, found)
            else:
                parts = [lane[rows] for lane in lanes]
                self._mix_all(parts, found)
                for lane, part in zip(lanes, parts, strict=True):
                    lane[rows] = part
        if longest > LONG_BYTES:
            for row in np.flatnonzero(lengths > LONG_BYTES).tolist():
                start = int(starts[row])
                value = data[start : start + int(lengths[row])].tobytes()
                number = xxhash.xxh3_128_intdigest(value, self._long_seed)
                for lane, half in zip(lanes, (number & (1 << 64) - 1, number >> 64), strict=True):
                    one = lane[row : row + 1]
                    self._mix_all([one], np.array([half], np.uint64))

    @staticmethod
    def _mix_all(lanes: list[U64], words: U64) -> None:
        """Mix one word into each row, in place."""
        for lane, (a, b, c, d, e) in zip(lanes, _STEPS, strict=False):
            lane ^= words
            lane ^= lane >> np.uint64(a)
            lane *= np.uint64(b)
            lane ^= lane >> np.uint64(c)
            lane *= np.uint64(d)
            lane ^= lane >> np.uint64(e)
