"""Columns of dates, times of day and moments in ISO text, read at their fixed places.

::

    2026-01-31 12:34:56.123456+00
    |------||------||------||----     words of eight; the fraction has 0 to 6 digits, and only a
    0       8       16      24        timestamptz has a zone, which is always +00

Everything that is not of this form, or that no calendar of the years 1 to 9999 has, is left to the
exact way: infinity, BC, years of five digits, 24:00.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from cdc.postgres.values.columnar.digits import (
    CHAR,
    Pattern,
    eight_digits,
    fits,
    misfits,
    pairs,
    word,
)
from cdc.postgres.values.columnar.windows import WORD, Array, Mask, Words, windows
from eventlog.changes.split import Bytes, Places

_YEAR_MONTH, _DAY, _DAY_CLOCK = map(Pattern.of, (b"0000-00-", b"00", b"00 00:00"))
_CLOCK, _EIGHT, _FRACTION = map(Pattern.of, (b"00:00:00", b"00000000", b".000000"))
_FRACTION_CHARS = 7
_DATE_CHARS, _CLOCK_CHARS, _MOMENT_CHARS = 10, 8, 19
_TWO, _THREE = np.uint64(0xFFFF), np.uint64(0xFFFFFF)
_COLON, _POINT, _ZERO_ZERO, _ZONE = map(word, (b":", b".", b"00", b"+00"))
_BITS = np.uint64(64)
_8, _24, _40, _48 = map(np.uint64, (8, 24, 40, 48))
_ONE, _MONTHS, _HOURS, _MINUTES, _HUNDRED = map(np.uint64, (1, 12, 24, 60, 100))
_YEARS = 10_000
_MINUTE_US, _DAY_US = 60_000_000, 86_400_000_000

_FIELDS = np.uint64(0x00FF0000FF0000FF)
"""Where in pairs of `DD HH:MM` the three numbers are."""

_FIELD_LIMITS = np.uint64((0x7F - 31) | (0x7F - 23) << 24 | (0x7F - 59) << 48)
_TO_MINUTES = np.uint64(1 + (60 << 24) + (1440 << 48))
"""Adds up the three, in minutes, in the upper 16 bits: 31 days and less always fit."""


def read_dates(data: Bytes, starts: Places, lengths: Places) -> tuple[Array, Mask]:
    """Days since 1970 as int32, and which texts are dates (see `fixed.Reader`)."""
    held = windows(data, starts, 2 * WORD)
    year_month = _of_all(held[:, 0]) ^ _YEAR_MONTH.text
    day = (held[:, 1] & _TWO) ^ _DAY.text
    good = fits(misfits(year_month, _YEAR_MONTH.limits) | misfits(day, _DAY.limits))
    good &= lengths == _DATE_CHARS
    before, most = _months(year_month, good)
    number = pairs(day) & CHAR
    good &= number - _ONE < most
    return (before + number.view(np.int64)).astype(np.int32), good


def read_times(data: Bytes, starts: Places, lengths: Places) -> tuple[Array, Mask]:
    """Microseconds of the day as int64, and which texts are times."""
    held = windows(data, starts, 2 * WORD)
    clock = held[:, 0] ^ _CLOCK.text
    micros, spoilt, good = _of_minute(held[:, 0] >> _48, held[:, 1], lengths - _CLOCK_CHARS)
    two = pairs(clock)
    hour, minute = two & CHAR, (two >> _24) & CHAR
    good &= fits(misfits(clock, _CLOCK.limits) | spoilt)
    good &= hour < _HOURS
    good &= minute < _MINUTES
    hour *= _MINUTES
    hour += minute
    micros += hour.view(np.int64) * _MINUTE_US
    return micros, good


def read_moments(
    data: Bytes, starts: Places, lengths: Places, *, zoned: bool
) -> tuple[Array, Mask]:
    """Microseconds since 1970 UTC as int64, and which texts are moments with a zone, or without."""
    held = windows(data, starts, 4 * WORD)
    year_month = _of_all(held[:, 0]) ^ _YEAR_MONTH.text
    day_clock = held[:, 1] ^ _DAY_CLOCK.text
    last, beyond = held[:, 2], held[:, 3]
    tail = last >> _24
    tail |= beyond << _40
    chars = lengths - (_MOMENT_CHARS + 3 * zoned)
    micros, spoilt, good = _of_minute((last >> _8) & _TWO, tail, chars)
    good &= (last & CHAR) == _COLON
    if zoned:
        good &= _utc(tail, beyond >> _24, chars)
    spoilt |= misfits(day_clock, _DAY_CLOCK.limits)
    two = pairs(day_clock)
    two &= _FIELDS
    spoilt |= two + _FIELD_LIMITS
    good &= fits(spoilt)
    good &= fits(misfits(year_month, _YEAR_MONTH.limits))
    before, most = _months(year_month, good)
    good &= (two & CHAR) - _ONE < most
    two *= _TO_MINUTES
    two >>= _48
    minutes = two.view(np.int64)
    minutes *= _MINUTE_US
    micros += minutes
    micros += before * _DAY_US
    return micros, good


def _of_all(held: Words) -> Words:
    """The one word that all rows have; times of a log often lie in one month."""
    return held[:1] if (held == held[0]).all() else held


def _months(year_month: Words, good: Mask) -> tuple[Array, Words]:
    """The day before each month's first, counted from 1970, and the days that it has.

    What is no month of the calendar is taken out of `good`. `year_month` is one word for each row,
    or one for all.
    """
    first_days, lengths = _calendar()
    two = pairs(year_month)
    month = (two >> _40) & CHAR
    good &= month - _ONE < _MONTHS
    months = (two & CHAR) * _HUNDRED
    months += (two >> np.uint64(16)) & CHAR
    months *= _MONTHS
    months += month
    places = months.view(np.int64)
    return first_days.take(places, mode="clip"), lengths.take(places, mode="clip")


@cache
def _calendar() -> tuple[Array, Array]:
    """By 12 years and month: the day before the month's first, and its days; of year 0 none."""
    months = np.arange(0, 12 * _YEARS + 1) - 12 * 1970
    firsts = months.astype("M8[M]").astype("M8[D]").astype(np.int64)
    lengths = np.diff(firsts).astype(np.uint64)
    lengths[:12] = 0
    return np.insert(firsts[:-1] - 1, 0, 0), np.insert(lengths, 0, 0)


def _of_minute(second: Words, tail: Words, chars: Places) -> tuple[Array, Words, Mask]:
    """Microseconds of the minute, misfits, and which rows can be such.

    `second` has the two characters of it and no more, `tail` what follows: a point and up to six
    digits, `chars` in all, or nothing.
    """
    bits = _BITS - (chars.view(np.uint64) << np.uint64(3))
    digits = tail ^ _FRACTION.text
    # A shift of 64 bits and more leaves nothing.
    digits <<= bits
    digits >>= bits
    digits <<= _8
    digits |= second ^ _ZERO_ZERO
    spoilt = misfits(digits, _EIGHT.limits)
    micros = eight_digits(digits).view(np.int64)
    good = micros < _MINUTE_US
    pointed = (tail & CHAR) == _POINT
    pointed &= chars >= 2
    pointed &= chars <= _FRACTION_CHARS
    pointed |= chars == 0
    good &= pointed
    return micros, spoilt, good


def _utc(tail: Words, beyond: Words, chars: Places) -> Mask:
    """Whether +00 follows after so many characters of `tail`, which goes on in `beyond`."""
    shift = chars.view(np.uint64) << np.uint64(3)
    zone = tail >> shift
    zone |= beyond << (_BITS - shift)
    zone &= _THREE
    good: Mask = zone == _ZONE
    return good
