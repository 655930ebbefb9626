"""Columns of whole numbers, read as digits that end where the value ends."""

from __future__ import annotations

import numpy as np

from cdc.postgres.values.columnar.digits import (
    DIGITS_MAX,
    aligned,
    fits,
    leading_minus,
    whole_numbers,
)
from cdc.postgres.values.columnar.windows import WORD, Array, Mask, Words, windows
from eventlog.changes.split import Bytes, Places

_WIDTH_MAX = 3 * WORD


def window_width(longest: int) -> int:
    """The bytes to fetch so that a value of that length is seen whole, up to 24."""
    return min(-(-longest // WORD) * WORD, _WIDTH_MAX)


def read_integers(
    data: Bytes, starts: Places, lengths: Places, kind: np.dtype[np.integer]
) -> tuple[Array, Mask]:
    """Values of that kind, and which of the texts are such (see `fixed.Reader`)."""
    longest = int(lengths.max())
    width = window_width(longest)
    held = windows(data, starts, width)
    negative = leading_minus(held)
    values, spoilt = whole_numbers(aligned(held, lengths))
    good = fits(spoilt)
    if longest > min(width, DIGITS_MAX):
        digits = lengths if negative is None else lengths - negative
        good &= digits <= DIGITS_MAX
        good &= lengths <= width
    info = np.iinfo(kind)
    is_bounded = 10**longest <= info.max
    if negative is not None:
        good &= lengths > negative
        if not info.min:
            good &= ~negative
        if not is_bounded:  # The longest may have no minus, though others have one.
            good &= values <= np.uint64(info.max) + negative.astype(np.uint64)
        return signed(values, negative).astype(kind), good
    if not is_bounded:
        good &= values <= np.uint64(info.max)
    return values.astype(kind), good


def signed(values: Words, negative: Mask) -> Array:
    """The values as signed numbers, those marked turned negative."""
    turn = -negative.astype(np.int64)
    found: Array = values.view(np.int64) ^ turn
    found -= turn
    return found
