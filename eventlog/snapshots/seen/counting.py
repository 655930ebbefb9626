"""How many rows stood under a code just below an offset, of those born at or after another.

A row is a stay: under `code`, from `start` to `end`, of a row born at `born` (a change of code ends
one stay and begins another of the same birth). Sorted by (code, born), what is born in time is one
range; stays that have ended, and those that began later than they were born, are corrected by the
number of values below a bound in a range, for all questions at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventlog.snapshots.seen.codes import Codes
from eventlog.snapshots.seen.linking import FOR_EVER
from eventlog.snapshots.seen.lives import Lives

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stays:
    """Stays of rows under codes: counted for offsets q with starts < q <= ends.

    `born` are places of records, `starts` and `ends` offsets.
    """

    codes: Codes
    born: I64
    starts: I64
    ends: I64

    def take(self, places: npt.NDArray[np.integer]) -> Stays:
        """Those at these places, or where a mask is true."""
        return Stays(
            codes=self.codes[places],
            born=self.born[places],
            starts=self.starts[places],
            ends=self.ends[places],
        )


def stays_of(codes: Codes, offsets: I64, ends: I64, lives: Lives) -> Stays:
    """The stays of a table's rows: versions of one row and one code that follow each other are one.

    `codes`, `offsets` and `ends` are by record; a code below 0, or an end at the offset, is of no
    row.
    """
    order = lives.order
    code, start, end = codes[order], offsets[order], ends[order]
    counts = (code >= 0) & (end > start)
    joins = np.zeros(len(order), np.bool_)
    joins[1:] = (
        counts[1:]
        & counts[:-1]
        & (lives.begin[1:] == lives.begin[:-1])
        & (code[1:] == code[:-1])
        & (end[:-1] == start[1:])
    )
    first = np.flatnonzero(counts & ~joins)
    last = np.flatnonzero(counts & ~np.append(joins[1:], False))
    born = order[lives.begin[first]]
    return Stays(codes=code[first], born=born, starts=start[first], ends=end[last])


def counted(
    stays: Stays, offsets: I64, *, asked: Codes, born_from: I64, at: I64
) -> npt.NDArray[np.int64]:
    """For each question, the stays under its code at offset `at`, born at `born_from` or behind.

    `offsets` are those of the table's records. REQUIRES: `at` and `born_from` ascend.
    """
    # In the order of their codes, questions find their places in one go through memory.
    bits = len(asked).bit_length()
    order = np.sort((asked << bits) | np.arange(len(asked))) & ((1 << bits) - 1)
    questions = _Questions(
        codes=asked[order],
        low=np.searchsorted(offsets, born_from)[order],
        high=np.searchsorted(offsets, at)[order],
        at=at[order],
        bits=(len(offsets) + 1).bit_length(),
    )
    ended = stays.take(stays.ends != FOR_EVER)
    moved = stays.take(stays.starts != offsets[stays.born])
    answers = questions.born(stays) - questions.born(moved)
    answers += questions.born_and_below(moved, moved.starts)
    answers -= questions.born_and_below(ended, ended.ends)
    found = np.empty_like(answers)
    found[order] = answers
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Questions:
    """Questions in the order of their codes; `low` and `high` bound the births that count.

    A code and a birth are one number: the birth takes the lower `bits`.
    """

    codes: Codes
    low: I64
    high: I64
    at: I64
    bits: int

    def born(self, stays: Stays) -> I64:
        """Stays born in time."""
        low, high = self._ranges(np.sort(self._keys(stays)))
        return high - low

    def born_and_below(self, stays: Stays, values: I64) -> I64:
        """Stays born in time whose value is below the question's offset."""
        keys = self._keys(stays)
        order = np.argsort(keys)
        low, high = self._ranges(keys[order])
        found = np.zeros(len(low), np.int64)
        some = np.flatnonzero(high > low)  # few: what ends or moves is rare
        found[some] = _below(values[order], low[some], high[some], self.at[some])
        return found

    def _keys(self, stays: Stays) -> I64:
        return (stays.codes << self.bits) | stays.born

    def _ranges(self, keys: I64) -> tuple[I64, I64]:
        sought = np.maximum(self.codes, 0) << self.bits
        low = np.searchsorted(keys, sought | self.low)
        high = np.searchsorted(keys, sought | self.high)
        return low, np.where(self.codes < 0, low, np.maximum(high, low))


def _below(values: I64, low: I64, high: I64, bounds: I64) -> I64:
    """For each question, how many of values[low:high] are less than the bound.

    A wavelet matrix: bit by bit of the values' ranks, from the highest, those with a 0 move before
    those with a 1, and each question's range with them. O((values + questions) · log values).
    """
    found = np.zeros(len(low), np.int64)
    if not len(values) or not len(low):
        return found
    distinct, ranks = np.unique(values, return_inverse=True)
    bound = np.searchsorted(distinct, bounds)
    bits = len(distinct).bit_length()  # a bound may be len(distinct): above all
    for bit in range(bits - 1, -1, -1):
        ones = (ranks >> bit & 1).astype(np.bool_)
        zeros_before = np.zeros(len(ranks) + 1, np.int64)
        np.cumsum(~ones, out=zeros_before[1:])
        zero_low, zero_high = zeros_before[low], zeros_before[high]
        takes_one = (bound >> bit & 1).astype(np.bool_)
        found += np.where(takes_one, zero_high - zero_low, 0)
        zeros = int(zeros_before[-1])
        low = np.where(takes_one, zeros + low - zero_low, zero_low)
        high = np.where(takes_one, zeros + high - zero_high, zero_high)
        ranks = np.concatenate([ranks[~ones], ranks[ones]])
    return found
