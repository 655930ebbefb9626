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
    Pattern,
    eight_digits,
    first_bytes,
    fits,
    misfits,
    pairs,
    word,
)
from cdc.postgres.values.columnar.windows import WORD, Array, Mask, Words, windows
from eventlog.changes.split import Bytes, Places

_YEAR_MONTH, _DAY, _DAY_CLOCK = map(Pattern.of, (b"0000-00-", b"00", b"00 00:00"))
_SECOND, _CLOCK, _FRACTION = map(Pattern.of, (b":00", b"00:00:00", b".000000"))
_FRACTION_CHARS = 7
_DATE_CHARS, _CLOCK_CHARS, _MOMENT_CHARS = 10, 8, 19
_BYTE, _TWO, _THREE = np.uint64(0xFF), np.uint64(0xFFFF), np.uint64(0xFFFFFF)
_ZONE = word(b"+00")
_YEARS = 10_000


def read_dates(data: Bytes, starts: Places, lengths: Places) -> tuple[Array, Mask]:
    """Days since 1970 as int32, and which texts are dates (see `fixed.Reader`)."""
    held = windows(data, starts, 2 * WORD)
    year_month = _of_all(held[:, 0]) ^ _YEAR_MONTH.text
    day = (held[:, 1] & _TWO) ^ _DAY.text
    good = fits(misfits(year_month, _YEAR_MONTH.limits) | misfits(day, _DAY.limits))
    good &= lengths == _DATE_CHARS
    days = _days(year_month, _number_at(pairs(day), 0), good)
    return days.astype(np.int32), good


def read_times(data: Bytes, starts: Places, lengths: Places) -> tuple[Array, Mask]:
    """Microseconds of the day as int64, and which texts are times."""
    held = windows(data, starts, 2 * WORD)
    clock = held[:, 0] ^ _CLOCK.text
    micros, spoilt, good = _fraction(held[:, 1], lengths - _CLOCK_CHARS)
    good &= fits(misfits(clock, _CLOCK.limits) | spoilt)
    two = pairs(clock)
    hour, minute, second = (_number_at(two, place) for place in (0, 3, 6))
    micros += _clock(hour, minute, second, good)
    return micros, good


def read_moments(
    data: Bytes, starts: Places, lengths: Places, *, zoned: bool
) -> tuple[Array, Mask]:
    """Microseconds since 1970 UTC as int64, and which texts are moments with a zone, or without."""
    held = windows(data, starts, 4 * WORD)
    last, beyond = held[:, 2].copy(), held[:, 3].copy()
    year_month = _of_all(held[:, 0]) ^ _YEAR_MONTH.text
    day_clock = held[:, 1] ^ _DAY_CLOCK.text
    second = (last & _THREE) ^ _SECOND.text
    spoilt = misfits(day_clock, _DAY_CLOCK.limits)
    spoilt |= misfits(second, _SECOND.limits)
    spoilt |= misfits(year_month, _YEAR_MONTH.limits)
    chars = lengths - (_MOMENT_CHARS + 3 * zoned)
    last >>= np.uint64(24)
    micros, wrong, good = _fraction(last | (beyond << np.uint64(40)), chars)
    if zoned:
        good &= _utc(last, beyond, chars)
    good &= fits(spoilt | wrong)
    two = pairs(day_clock)
    days = _days(year_month, _number_at(two, 0), good)
    clock = _clock(_number_at(two, 3), _number_at(two, 6), _number_at(pairs(second), 1), good)
    days *= 86_400_000_000
    micros += days
    micros += clock
    return micros, good


def _of_all(held: Words) -> Words:
    """The one word that all rows have; times of a log often lie in one month."""
    return held[:1] if (held == held[0]).all() else held


def _number_at(two: Words, place: int) -> Array:
    """The number of two digits that begins at that byte."""
    found = two >> np.uint64(8 * place)
    found &= _BYTE
    return found.view(np.int64)


def _days(year_month: Words, day: Array, good: Mask) -> Array:
    """Days since 1970; what is no day of the calendar is taken out of `good`.

    `year_month` is one word for each day, or one for all.
    """
    first_days, lengths = _calendar()
    two = pairs(year_month)
    month = _number_at(two, 5)
    months = _number_at(two, 0)
    months *= 100
    months += _number_at(two, 2)
    months *= 12
    months += month
    good &= month >= 1
    good &= month <= 12
    good &= day >= 1
    good &= day <= lengths.take(months, mode="clip")
    found: Array = first_days.take(months, mode="clip") + day
    return found


@cache
def _calendar() -> tuple[Array, Array]:
    """By 12 years and month: the day before the month's first, and its days; of year 0 none."""
    months = np.arange(0, 12 * _YEARS + 1) - 12 * 1970
    firsts = months.astype("M8[M]").astype("M8[D]").astype(np.int64)
    lengths = np.diff(firsts).astype(np.int8)
    lengths[:12] = 0
    return np.insert(firsts[:-1] - 1, 0, 0), np.insert(lengths, 0, 0)


def _clock(hour: Array, minute: Array, second: Array, good: Mask) -> Array:
    """Microseconds of the day; what no clock shows is taken out of `good`."""
    good &= hour < 24
    good &= minute < 60
    good &= second < 60
    micros = hour * 3600
    micros += minute * 60
    micros += second
    micros *= 1_000_000
    return micros


def _fraction(held: Words, chars: Array) -> tuple[Array, Words, Mask]:
    """Microseconds of a point and up to six digits, misfits, and whether `chars` are so many."""
    masked: Words = held ^ _FRACTION.text
    masked &= first_bytes().take(chars, mode="clip")
    spoilt = misfits(masked, _FRACTION.limits)
    good = chars <= _FRACTION_CHARS
    good &= chars >= 0
    good &= chars != 1
    masked <<= np.uint64(8)
    return eight_digits(masked).view(np.int64), spoilt, good


def _utc(last: Words, beyond: Words, chars: Array) -> Mask:
    """Whether +00 follows after so many characters of `last` (five are left in it) and `beyond`.

    A shift of 64 bits and more leaves nothing, and one below zero counts as such.
    """
    shift = chars.view(np.uint64) << np.uint64(3)
    zone = last >> shift
    zone |= beyond << (np.uint64(40) - shift)
    zone |= beyond >> (shift - np.uint64(40))
    zone &= _THREE
    good: Mask = zone == _ZONE
    return good
