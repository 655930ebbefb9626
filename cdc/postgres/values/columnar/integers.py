"""Columns of whole numbers, read as digits that end where the value ends."""

from __future__ import annotations

import numpy as np

from cdc.postgres.values.columnar.digits import whole_numbers
from cdc.postgres.values.columnar.windows import WORD, Array, Mask, Words, windows
from eventlog.changes.split import Bytes, Places

_MINUS = ord("-")
_WINDOW_MAX = 3 * WORD


def window_width(lengths: Places) -> int:
    """The bytes to fetch so that the longest value is seen whole, up to 24."""
    return min(-(-int(lengths.max()) // WORD) * WORD, _WINDOW_MAX)


def read_integers(
    data: Bytes, starts: Places, lengths: Places, kind: np.dtype[np.integer]
) -> tuple[Array, Mask]:
    """Values of that kind, and which of the texts are such (see `fixed.Reader`)."""
    negative = data[starts] == _MINUS
    width = window_width(lengths)
    held = windows(data, starts + lengths - width, width)
    words = [held[:, at] for at in reversed(range(width // WORD))]
    values, good = whole_numbers(words, lengths - negative)
    info = np.iinfo(kind)
    if not negative.any():
        good &= values <= np.uint64(info.max)
        return values.astype(kind), good
    if not info.min:
        good &= ~negative
    good &= values <= np.uint64(info.max) + negative.astype(np.uint64)
    return signed(values, negative).astype(kind), good


def signed(values: Words, negative: Mask) -> Array:
    """The values as signed numbers, those marked turned negative."""
    turn = -negative.astype(np.int64)
    found: Array = values.view(np.int64) ^ turn
    found -= turn
    return found
