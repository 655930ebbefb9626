"""Texts to Arrow the exact way: whatever text it is, its value, or the word that it does not fit.

Conversion is Arrow's own, over all texts at once, wherever Arrow reads Postgres's text exactly.
Where some value stops it, the column is halved until that value stands alone; then it is read by
hand (`_by_hand`), or has no place in the type. What Arrow would read wrongly without a word (digits
beyond a decimal's width, finite numbers beyond a float's) never reaches it.
"""

from __future__ import annotations

import datetime as dt
import re
from binascii import unhexlify
from collections.abc import Callable
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc.postgres.values.columnar.gather import as_strings

Way: TypeAlias = Callable[[pa.Array, pa.DataType], pa.Array]

BYTEA, NUMERIC = 17, 1700
WHOLE = frozenset({20, 21, 23, 26})

_ENDLESS = pa.array([b"infinity", b"-infinity", b"Infinity", b"-Infinity", b"NaN"], pa.binary())
"""Texts that only floats and texts hold; common, so set aside before a column is halved."""

_NOT_EXACT = (ValueError, ArithmeticError)
"""What a text that does not fit raises; ArrowInvalid is a ValueError."""


def convert(oid: int, texts: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Convert texts of type `oid`, an array of `binary`, and name the places that do not fit."""
    way = _way(oid, target)
    try:
        return way(texts, target), []
    except pa.ArrowNotImplementedError:
        return pa.nulls(len(texts), target), _places(texts.is_valid())
    except _NOT_EXACT:
        pass
    unfit: list[int] = []
    if not _holds_endless(target):
        endless = pc.is_in(texts, _ENDLESS)
        unfit = _places(endless)
        texts = pc.if_else(endless, pa.scalar(None, texts.type), texts)
    pieces = _halve(texts, 0, way, target, unfit)
    return pa.concat_arrays(pieces), sorted(unfit)


def _holds_endless(target: pa.DataType) -> bool:
    texts = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    return target in texts or bool(pa.types.is_floating(target))


def _places(mask: pa.Array) -> list[int]:
    places: list[int] = pc.indices_nonzero(mask).to_pylist()
    return places


def _halve(
    texts: pa.Array, start: int, way: Way, target: pa.DataType, unfit: list[int]
) -> list[pa.Array]:
    """Convert as few pieces as the bad values allow; `start` is the first value's place."""
    try:
        return [way(texts, target)]
    except _NOT_EXACT:
        pass
    if len(texts) == 1:
        try:
            return [_by_hand(texts[0].as_py() or b"", target)]
        except _NOT_EXACT:
            unfit.append(start)
            return [pa.nulls(1, target)]
    middle = len(texts) // 2
    return [
        *_halve(texts[:middle], start, way, target, unfit),
        *_halve(texts[middle:], start + middle, way, target, unfit),
    ]


def _way(oid: int, target: pa.DataType) -> Way:
    """The conversion of a whole column of that source type."""
    kind = pa.types
    if kind.is_boolean(target):
        return _bools
    if kind.is_binary(target) or kind.is_large_binary(target):
        return _bytes if oid == BYTEA else _cast
    if kind.is_decimal(target):
        return _decimals if oid in WHOLE or oid == NUMERIC else _one_by_one
    if kind.is_integer(target):
        return _cast if oid in WHOLE else _one_by_one
    if kind.is_floating(target):
        return _floats
    if kind.is_timestamp(target):
        return _timestamps
    return _times if kind.is_time(target) else _cast


def _cast(texts: pa.Array, target: pa.DataType) -> pa.Array:
    strings = as_strings(texts)
    return strings if pa.types.is_string(target) else strings.cast(target)


def _one_by_one(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Leave every value that is not null to `_by_hand`."""
    if texts.null_count < len(texts):
        raise ValueError
    return pa.nulls(len(texts), target)


def _bools(texts: pa.Array, target: pa.DataType) -> pa.Array:
    return pa.array([None if v is None else _BOOLS[v] for v in texts.to_pylist()], target)


class _Bools(dict[bytes, bool]):
    def __missing__(self, key: bytes) -> bool:
        raise ValueError(key)


_BOOLS = _Bools({b"t": True, b"f": False})


def _bytes(texts: pa.Array, target: pa.DataType) -> pa.Array:
    return pa.array([None if v is None else _unhex(v) for v in texts.to_pylist()], target)


def _unhex(text: bytes) -> bytes:
    if text[:2] != b"\\x":
        raise ValueError(text)
    return unhexlify(text[2:])


def _decimals(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast where Arrow's reading is sound.

    Where a text has more digits than the type can hold, its sums wrap round; an exponent far out
    (no server writes one, but a damaged log may) makes it read memory that is not its own.
    """
    texts = as_strings(texts)
    length = pc.binary_length(texts)
    point = pc.find_substring(texts, ".")
    whole = pc.if_else(pc.less(point, 0), length, point)
    widest = 38 if pa.types.is_decimal128(target) else 76
    longest, most_whole = pc.max(length).as_py() or 0, pc.max(whole).as_py() or 0
    if longest > widest or most_whole + target.scale > widest:
        raise ValueError
    if pc.any(pc.match_substring(texts, "e", ignore_case=True)).as_py():
        raise ValueError
    return texts.cast(target)


def _floats(texts: pa.Array, target: pa.DataType) -> pa.Array:
    texts = as_strings(texts)
    array = texts.cast(target)
    held = np.frombuffer(array.buffers()[1] or b"", target.to_pandas_dtype())
    if np.isinf(held).any():  # Of nulls, too, but then the rest of it is looked at in vain.
        infinite = pc.is_inf(array)
        said = pc.match_substring(pc.filter(texts, infinite), "inf", ignore_case=True)
        if not pc.all(said).as_py():
            raise ValueError
    return array


def _timestamps(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Go by way of microseconds, from where a cast to a finer unit is checked."""
    return _cast(texts, pa.timestamp("us", target.tz)).cast(target)


def _times(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Arrow reads no text as a time, but the time within a timestamp."""
    texts = as_strings(texts)
    day = pc.binary_join_element_wise(pa.scalar("1970-01-01"), texts, " ")
    return day.cast(pa.timestamp("us")).cast(target)


def _by_hand(text: bytes, target: pa.DataType) -> pa.Array:
    """Read one value that Arrow refused, or was not asked to read. Raises one of _NOT_EXACT."""
    kind = pa.types
    if kind.is_decimal(target):
        return pa.array([_exact_decimal(text, target)], target)
    if kind.is_integer(target):
        value = _number(text)
        if value.adjusted() < 20 and value == value.to_integral_value():
            return pa.array([int(value)], target)
    if kind.is_date(target):
        days, clock_us = _moment(text, None)
        if clock_us is None:
            return pa.array([days], pa.int32()).cast(pa.date32()).cast(target)
    if kind.is_timestamp(target):
        days, clock_us = _moment(text, target.tz)
        micros = pa.array([days * _DAY_US + (clock_us or 0)], pa.int64())
        return micros.cast(pa.timestamp("us", target.tz)).cast(target)
    raise ValueError(text)


def _number(text: bytes) -> Decimal:
    value = Decimal(text.decode())
    if b"_" in text or not value.is_finite():
        raise ValueError(text)
    return value


def _exact_decimal(text: bytes, target: pa.DataType) -> Decimal:
    """Bring a number to the type's scale. Raises where a digit would be lost on either side."""
    unit = Decimal(1).scaleb(-target.scale)
    exact = Context(prec=target.precision, traps=[Inexact, InvalidOperation])
    return _number(text).quantize(unit, context=exact)


_DAY_US = 86_400_000_000
_ISO = re.compile(
    r"(?P<year>\d{4,7})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?: (?P<clock>\d\d:\d\d:\d\d(?:\.\d{1,6})?)(?P<zone>\+00)?)?(?P<bc> BC)?",
    re.ASCII,
)
_ERA_YEARS, _ERA_DAYS = 400, 146_097


def _moment(text: bytes, zone: str | None) -> tuple[int, int | None]:
    """Days from 1970 and microseconds of the day of an ISO text, whatever its year, BC too.

    A date has no time of day. A text with a zone has no place in a type without one, and the other
    way round.
    """
    iso = _ISO.fullmatch(text.decode())
    if iso is None or (zone is None) != (iso["zone"] is None):
        raise ValueError(text)
    year = 1 - int(iso["year"]) if iso["bc"] else int(iso["year"])
    eras, year_of_era = divmod(year - 1, _ERA_YEARS)  # the calendar repeats every 400 years
    day = dt.date(year_of_era + 1, int(iso["month"]), int(iso["day"])).toordinal()
    days = day + eras * _ERA_DAYS - dt.date(1970, 1, 1).toordinal()
    if iso["clock"] is None:
        return days, None
    time = dt.time.fromisoformat(iso["clock"])
    seconds = (time.hour * 60 + time.minute) * 60 + time.second
    return days, seconds * 1_000_000 + time.microsecond
