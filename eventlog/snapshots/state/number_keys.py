"""Keys that are whole numbers: found by their texts, and taken as they are instead of hashed.

::

    0 | [1-9][0-9]{0,15}        each such number has one text, so equal numbers are equal keys

Whatever the declared type is: '007', '-1' or '+1' are no such text. Eight digits are checked and
added up as one word of 64 bits, for all rows at once.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from eventlog.changes.split import Places

DIGITS_MAX = 16

U64: TypeAlias = npt.NDArray[np.uint64]

_ZERO = np.uint64(ord("0"))
_ZEROS = np.uint64(0x3030303030303030)
_ABOVE_NINE = np.uint64(0x7676767676767676)
_HIGH = np.uint64(0x8080808080808080)
_STEPS = (
    (np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(10 << 8 | 1), np.uint64(8)),
    (np.uint64(0x00FF00FF00FF00FF), np.uint64(100 << 16 | 1), np.uint64(16)),
    (np.uint64(0x0000FFFF0000FFFF), np.uint64(10_000 << 32 | 1), np.uint64(32)),
)
_SHIFTS = np.array([8 * (8 - n) for n in range(9)], np.uint64)
_EIGHT_DIGITS = np.uint64(10**8)


def number_keys(words: U64, starts: Places, lengths: Places) -> tuple[Places, U64]:
    """The places of values that are numbers, and these numbers.

    `words` has the eight bytes from each place of the text on. REQUIRES: every value lies there.
    """
    rows = np.flatnonzero((lengths > 0) & (lengths <= DIGITS_MAX))
    if len(rows) < len(starts):
        starts, lengths = starts[rows], lengths[rows]
    long = lengths > 8
    some_long = bool(long.any())
    head = words[starts]
    found, is_number = _eight_digits(head, lengths - 8 * long if some_long else lengths)
    is_number &= ((head & np.uint64(0xFF)) != _ZERO) | (lengths == 1)
    if some_long:
        tail, is_too = _eight_digits(words[(starts + lengths)[long] - 8], np.int64(8))
        found[long] = found[long] * _EIGHT_DIGITS + tail
        is_number[long] &= is_too
    if is_number.all():
        return rows, found
    return rows[is_number], found[is_number]


def _eight_digits(words: U64, counts: Places | np.int64) -> tuple[U64, npt.NDArray[np.bool_]]:
    """The number that the first `counts` characters are, and whether all of them are digits."""
    shifts = _SHIFTS[counts]
    # Characters behind the number go, and zeros come in front of it.
    found = (words << shifts) - (_ZEROS << shifts)
    is_number = ((found | (found + _ABOVE_NINE)) & _HIGH) == 0
    for mask, factor, shift in _STEPS:
        found &= mask
        found *= factor
        found >>= shift
    return found, is_number
