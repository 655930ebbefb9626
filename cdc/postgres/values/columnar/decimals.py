"""Columns of decimals, read as unscaled whole numbers of up to 18 digits.

The server writes a `numeric(p,s)` with s decimals always, so the point has one place in all rows.
Rows with another number of decimals are read group by group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cdc.postgres.values.columnar.digits import whole_numbers
from cdc.postgres.values.columnar.integers import signed, window_width
from cdc.postgres.values.columnar.windows import WORD, Array, Mask, Words, windows
from eventlog.changes.split import Bytes, Places

_MINUS, _POINT = ord("-"), ord(".")
DIGITS_MAX = 18
"""The digits that a signed word always holds."""


def read_decimals(
    data: Bytes, starts: Places, lengths: Places, precision: int, scale: int
) -> tuple[Array, Mask]:
    """Unscaled int64 values of decimal(precision, scale), and which texts are such."""
    values = np.zeros(len(starts), np.int64)
    good = np.zeros(len(starts), np.bool_)
    left: Places | slice = slice(None)
    for decimals in _likely_decimals(scale):
        at, length = starts[left], lengths[left]
        here = _has_point(data, at, length, decimals)
        if not here.any():
            continue
        if not here.all():
            at, length = at[here], length[here]
            left = np.flatnonzero(here) if isinstance(left, slice) else left[here]
        missing = scale - decimals
        found, fit = _with_decimals(data, at, length, decimals, DIGITS_MAX - missing)
        if missing:
            found *= 10**missing
        if precision < DIGITS_MAX:
            fit &= np.abs(found) < 10**precision
        values[left], good[left] = found, fit
        left = np.flatnonzero(~good)
        if not len(left):
            break
    return values, good


def _likely_decimals(scale: int) -> Iterator[int]:
    """The type's own scale, then fewer decimals, and none at last."""
    if scale < DIGITS_MAX:
        yield scale
    yield from range(max(1, scale - DIGITS_MAX + 1), min(scale, DIGITS_MAX))
    if 0 < scale < DIGITS_MAX:
        yield 0


def _has_point(data: Bytes, starts: Places, lengths: Places, decimals: int) -> Mask:
    """Whether there is a point before so many decimals; without any, nothing is looked for."""
    if not decimals:
        return np.ones(len(starts), np.bool_)
    point = lengths - (decimals + 1)
    found: Mask = data[starts + np.maximum(point, 0)] == _POINT
    found &= point >= 1
    return found


def _with_decimals(
    data: Bytes, starts: Places, lengths: Places, decimals: int, digits_max: int
) -> tuple[Array, Mask]:
    """Values of exactly so many decimals, a point before them."""
    negative = data[starts] == _MINUS
    width = window_width(lengths)
    held = windows(data, starts + lengths - width, width)
    words: list[Words] = [held[:, at] for at in reversed(range(width // WORD))]
    digits = lengths - negative
    if decimals:
        words = _without_point(words, decimals)
        digits -= 1
    values, good = whole_numbers(words, digits)
    good &= digits > decimals
    good &= digits <= digits_max
    return signed(values, negative) if negative.any() else values.view(np.int64), good


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
