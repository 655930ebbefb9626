"""Columns of decimals, read as unscaled whole numbers of up to 18 digits.

The server writes a `numeric(p,s)` with s decimals always, so the point has one place in all rows.
Rows with another number of decimals are read group by group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cdc.postgres.values.columnar.digits import (
    CHAR,
    DIGIT_ZERO,
    aligned,
    fits,
    leading_minus,
    whole_numbers,
)
from cdc.postgres.values.columnar.integers import signed, window_width
from cdc.postgres.values.columnar.windows import WORD, Array, Mask, Words, windows
from eventlog.changes.split import Bytes, Places

_POINT = np.uint64(ord(".") ^ DIGIT_ZERO)
DIGITS_MAX = 18
"""The digits that a signed word always holds."""


class _Numbers(NamedTuple):
    """Texts as words of digits that end together, the last first; `chars` without the minus."""

    words: list[Words]
    chars: Places
    negative: Mask | None

    def take(self, places: Places) -> _Numbers:
        """Some of them."""
        negative = None if self.negative is None else self.negative[places]
        return _Numbers([held[places] for held in self.words], self.chars[places], negative)


def read_decimals(
    data: Bytes, starts: Places, lengths: Places, precision: int, scale: int
) -> tuple[Array, Mask]:
    """Unscaled int64 values of decimal(precision, scale), and which texts are such."""
    held = windows(data, starts, window_width(int(lengths.max())))
    negative = leading_minus(held)
    chars = lengths if negative is None else lengths - negative
    numbers = _Numbers(aligned(held, lengths), chars, negative)
    values, good = np.empty(0, np.int64), np.empty(0, np.bool_)
    left: Places | None = None
    for decimals in _likely_decimals(scale):
        here = _has_point(numbers.words, decimals)
        if not here.any():
            continue
        if left is None and here.all():
            values, good = _with_decimals(numbers, decimals, precision, scale)
            if good.all():
                return values, good
            left = np.flatnonzero(~good)
            numbers = numbers.take(left)
            continue
        if left is None:
            left = np.arange(len(starts))
            values, good = np.zeros(len(left), np.int64), np.zeros(len(left), np.bool_)
        places = np.flatnonzero(here)
        found, fit = _with_decimals(numbers.take(places), decimals, precision, scale)
        values[left[places]], good[left[places]] = found, fit
        rest = np.flatnonzero(~good[left])
        left, numbers = left[rest], numbers.take(rest)
        if not len(left):
            break
    if left is None:
        return np.zeros(len(starts), np.int64), np.zeros(len(starts), np.bool_)
    return values, good


def _likely_decimals(scale: int) -> Iterator[int]:
    """The type's own scale, then fewer decimals, and none at last."""
    if scale < DIGITS_MAX:
        yield scale
    yield from range(max(1, scale - DIGITS_MAX + 1), min(scale, DIGITS_MAX))
    if 0 < scale < DIGITS_MAX:
        yield 0


def _has_point(words: list[Words], decimals: int) -> Mask:
    """Whether there is a point before so many decimals; without any, nothing is looked for."""
    if not decimals:
        return np.ones(len(words[0]), np.bool_)
    number, behind = divmod(decimals, WORD)
    if number >= len(words):
        return np.zeros(len(words[0]), np.bool_)
    found: Mask = (words[number] >> np.uint64(8 * (WORD - 1 - behind))) & CHAR == _POINT
    return found


def _with_decimals(
    numbers: _Numbers, decimals: int, precision: int, scale: int
) -> tuple[Array, Mask]:
    """Values of exactly so many decimals, a point before them."""
    words, digits, negative = numbers
    if decimals:
        words = _without_point(words, decimals)
        digits = digits - 1
    unsigned, spoilt = whole_numbers(words)
    missing = scale - decimals
    good = fits(spoilt)
    good &= digits > decimals
    good &= digits <= DIGITS_MAX - missing
    values = unsigned.view(np.int64)
    if missing:
        values *= 10**missing
    if precision < DIGITS_MAX and int(digits.max(initial=0)) + missing > precision:
        good &= values < 10**precision
    return values if negative is None else signed(unsigned, negative), good


def _without_point(words: list[Words], decimals: int) -> list[Words]:
    """Move what stands before the point one place on, over the point."""
    number, behind = divmod(decimals, WORD)
    joined = list(words)
    for at in range(number, len(words)):
        moved = words[at] << np.uint64(8)
        if at + 1 < len(words):
            moved |= words[at + 1] >> np.uint64(56)
        if at == number and behind:
            kept = np.uint64((1 << 64) - (1 << (64 - 8 * behind)))
            moved &= ~kept
            moved |= words[at] & kept
        joined[at] = moved
    return joined


def decimal_buffer(values: Array, bits: int) -> Array:
    """int64 values as little-endian integers of 128 or 256 bits."""
    wide = np.empty((len(values), bits // 64), np.int64)
    wide[:, 0] = values
    wide[:, 1:] = (values >> 63)[:, None]
    return wide
