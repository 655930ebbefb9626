"""Decimal digits in words: eight texts' bytes checked and added up by whole-word arithmetic.

A word holds eight characters, the first in its lowest byte. After an exclusive or with what should
stand there, digits are 0 to 9 and separators 0::

    "2026-01-"  ^  "0000-00-"   =   02 00 02 06 00 00 01 00
                 + 76 76 76 76 7f 76 76 7f         sets a byte's highest bit where it is too high

A carry out of a byte can only spoil a word that is spoilt already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cdc.postgres.values.columnar.windows import WORD, Mask, Words
from eventlog.changes.split import Places

_HIGH_BITS = np.uint64(0x8080808080808080)


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

DIGIT_ZERO = ord("0")
CHAR = np.uint64(0xFF)
"""The first character of a word."""

_MINUS = np.uint64(ord("-"))
_MINUS_TO_ZERO = np.uint64(ord("-") ^ DIGIT_ZERO)


def leading_minus(held: Words) -> Mask | None:
    """Which windows begin with a minus, each made the digit 0; None where none does."""
    first = held[:, 0]
    found: Mask = (first & CHAR) == _MINUS
    if not found.any():
        return None
    first ^= found * _MINUS_TO_ZERO
    return found


def aligned(held: Words, lengths: Places) -> list[Words]:
    """The digits of texts at the windows' beginnings, moved so that they end where the windows do.

    Gives the words of the windows, the last first, already without the digit 0's bits; before the
    texts are zeros. Of a text longer than its window the words mean nothing.
    """
    count = held.shape[1]
    before = np.uint64(8 * WORD * count) - (lengths.view(np.uint64) << np.uint64(3))
    words = [held[:, at] ^ _DIGITS.text for at in range(count)]
    found = []
    for at in reversed(range(count)):
        moved = words[at] << before
        for source in range(at):
            # A shift of 64 bits and more leaves nothing, and one below zero counts as such.
            shift = before - np.uint64(8 * WORD * (at - source))
            moved |= words[source] << shift
            moved |= words[source] >> -shift
        found.append(moved)
    return found


def whole_numbers(words: list[Words]) -> tuple[Words, Words]:
    """The number that the digits of each row make (as `aligned` gives them), and its misfits.

    More digits than DIGITS_MAX make no number.
    """
    total, spoilt = eight_digits(words[0]), misfits(words[0], _DIGITS.limits)
    for number, held in enumerate(words[1:], start=1):
        part = eight_digits(held)
        part *= np.uint64(10 ** (WORD * number))
        total += part
        spoilt |= misfits(held, _DIGITS.limits)
    return total, spoilt
