"""Decimal digits in words: eight texts' bytes checked and added up by whole-word arithmetic.

A word holds eight characters, the first in its lowest byte. After an exclusive or with what should
stand there, digits are 0 to 9 and separators 0::

    "2026-01-"  ^  "0000-00-"   =   02 00 02 06 00 00 01 00
                 + 76 76 76 76 7f 76 76 7f         sets a byte's highest bit where it is too high

A carry out of a byte can only spoil a word that is spoilt already.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cdc.postgres.values.columnar.windows import WORD, Mask, Words
from eventlog.changes.split import Places

_HIGH_BITS = np.uint64(0x8080808080808080)
_ALL = (1 << 64) - 1


def word(text: bytes) -> np.uint64:
    """Up to eight characters as a word."""
    return np.uint64(int.from_bytes(text, "little"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What up to eight characters must be: `0` stands for any digit, all else for itself.

    `text` is for the exclusive or, `limits` are added so that highest bits tell misfits.
    """

    text: np.uint64
    limits: np.uint64

    @classmethod
    def of(cls, chars: bytes) -> Pattern:
        """The pattern of that form."""
        limits = bytes(0x76 if char == ord("0") else 0x7F for char in chars)
        return cls(text=word(chars), limits=word(limits))


_DIGITS = Pattern.of(b"0" * WORD)


def misfits(held: Words, limit: np.uint64) -> Words:
    """Words whose high bits are set where a byte of `held` is beyond its limit (see `fits`)."""
    found: Words = (held + limit) | held
    return found


def fits(found: Words) -> Mask:
    """Which rows have no misfit."""
    good: Mask = (found & _HIGH_BITS) == 0
    return good


@cache
def last_bytes(chars_max: int, word_number: int) -> Words:
    """By a number of characters at the end of a window, the mask of them in one of its words.

    `word_number` counts from the window's end. Numbers beyond `chars_max` mean a full word.
    """
    counts = [min(max(n - WORD * word_number, 0), WORD) for n in range(chars_max + 1)]
    return np.array([_ALL >> (64 - 8 * n) << (64 - 8 * n) if n else 0 for n in counts], np.uint64)


@cache
def first_bytes() -> Words:
    """By a number of characters, 0 to 8, the mask of so many at a word's beginning."""
    return np.array([(1 << 8 * n) - 1 for n in range(WORD + 1)], np.uint64)


_MASK = np.uint64(0x000000FF000000FF)
_HUNDREDS = np.uint64(100 + (1_000_000 << 32))
_ONES = np.uint64(1 + (10_000 << 32))


def pairs(held: Words) -> Words:
    """Ten times each digit and the one behind it, in the former's byte."""
    found: Words = held * np.uint64(10)
    found += held >> np.uint64(8)
    return found


def eight_digits(held: Words) -> Words:
    """The number that the eight digits of each word make."""
    two = pairs(held)
    high = two >> np.uint64(16)
    two &= _MASK
    two *= _HUNDREDS
    high &= _MASK
    high *= _ONES
    two += high
    two >>= np.uint64(32)
    return two


DIGITS_MAX = 19
"""The digits that always fit an unsigned word."""


def whole_numbers(words: list[Words], digits: Places) -> tuple[Words, Mask]:
    """The number that the last `digits` characters of each window make, and whether it is one.

    `words` are the window's, the last first. More digits than they hold, than DIGITS_MAX, or none,
    is no number.
    """
    chars_max = WORD * len(words)
    total = spoilt = None
    for number, held in enumerate(words):
        masked: Words = held ^ _DIGITS.text
        masked &= last_bytes(chars_max, number).take(digits, mode="clip")
        found = misfits(masked, _DIGITS.limits)
        part = eight_digits(masked)
        if total is None or spoilt is None:
            total, spoilt = part, found
        else:
            part *= np.uint64(10 ** (WORD * number))
            total += part
            spoilt |= found
    assert total is not None and spoilt is not None
    good = fits(spoilt)
    good &= digits >= 1
    good &= digits <= min(chars_max, DIGITS_MAX)
    return total, good
