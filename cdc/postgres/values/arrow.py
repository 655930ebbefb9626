"""Values as Arrow: the type that follows from a declared type, and texts converted to it.

Conversion is Arrow's own, over the whole column at once, wherever Arrow reads Postgres's text
exactly. Where some value stops it, the column is halved until that value stands alone; then it is
read by hand (`_by_hand`), or has no place in the type. What Arrow would read wrongly without a word
(digits beyond a decimal's width, finite numbers beyond a float's) never reaches it.
"""

from __future__ import annotations

import datetime as dt
import re
from binascii import unhexlify
from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Context, Decimal, Inexact, InvalidOperation
from itertools import accumulate
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from cdc.postgres.values.arrays import parse_array
from cdc.postgres.values.builtin_types import delimiter, element, underlying
from cdc.postgres.values.type_names import numeric_modifier
from eventlog.changes.change import Text
from eventlog.changes.schema import Schema

Values: TypeAlias = list[bytes | None]

BOOL, BYTEA, NUMERIC = 16, 17, 1700
WHOLE = frozenset({20, 21, 23, 26})

_FIXED = {
    16: pa.bool_(),
    17: pa.binary(),
    20: pa.int64(),
    21: pa.int16(),
    23: pa.int32(),
    26: pa.uint32(),
    700: pa.float32(),
    701: pa.float64(),
    1082: pa.date32(),
    1083: pa.time64("us"),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", "UTC"),
}

_ENDLESS = frozenset({b"infinity", b"-infinity", b"Infinity", b"-Infinity", b"NaN"})
"""Texts that only floats and strings hold; common, so set aside before a column is halved."""

_NOT_EXACT = (ValueError, ArithmeticError)
"""What a text that does not fit raises; ArrowInvalid is a ValueError."""


def arrow_type(schema: Schema, oid: int, typmod: int) -> pa.DataType:
    """The type of a column declared so (API.md, "Arrow and Parquet types")."""
    oid, typmod = underlying(schema, oid, typmod)
    inner = element(schema, oid)
    if inner:
        return pa.list_(arrow_type(schema, inner, typmod))
    if oid == NUMERIC:
        return _decimal_type(typmod)
    return _FIXED.get(oid, pa.string())


def _decimal_type(typmod: int) -> pa.DataType:
    modifier = numeric_modifier(typmod)
    if modifier is None:
        return pa.decimal128(38, 9)
    precision, scale = modifier
    if precision > 76 or not 0 <= scale <= precision:
        return pa.string()
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def arrow_array(
    schema: Schema, oid: int, texts: Sequence[Text], target: pa.DataType
) -> tuple[pa.Array, list[int]]:
    """Convert texts of type `oid` to `target`, and name the places whose value does not fit it.

    Markers become null, and so do the places that do not fit.
    """
    return _convert(schema, oid, [t if isinstance(t, bytes) else None for t in texts], target)


def _convert(
    schema: Schema, oid: int, values: Values, target: pa.DataType
) -> tuple[pa.Array, list[int]]:
    oid, _ = underlying(schema, oid)
    if pa.types.is_list(target) or pa.types.is_large_list(target):
        return _lists(schema, oid, values, target)
    convert = _way(oid, target)
    try:
        return convert(values, target), []
    except pa.ArrowNotImplementedError:
        return _nothing_fits(values, target)
    except _NOT_EXACT:
        pass
    unfit: list[int] = []
    if not (pa.types.is_floating(target) or pa.types.is_string(target)):
        unfit = [place for place, value in enumerate(values) if value in _ENDLESS]
        values = [None if value in _ENDLESS else value for value in values]
    pieces = _halve(values, 0, convert, target, unfit)
    return pa.concat_arrays(pieces), sorted(unfit)


def _nothing_fits(values: Values, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    unfit = [place for place, value in enumerate(values) if value is not None]
    return pa.nulls(len(values), target), unfit


def _halve(
    values: Values,
    start: int,
    convert: Callable[[Values, pa.DataType], pa.Array],
    target: pa.DataType,
    unfit: list[int],
) -> list[pa.Array]:
    """Convert as few pieces as the bad values allow; `start` is the first value's place."""
    try:
        return [convert(values, target)]
    except _NOT_EXACT:
        pass
    if len(values) == 1:
        try:
            return [_by_hand(values[0] or b"", target)]
        except _NOT_EXACT:
            unfit.append(start)
            return [pa.nulls(1, target)]
    middle = len(values) // 2
    return [
        *_halve(values[:middle], start, convert, target, unfit),
        *_halve(values[middle:], start + middle, convert, target, unfit),
    ]


def _way(oid: int, target: pa.DataType) -> Callable[[Values, pa.DataType], pa.Array]:
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


def _cast(values: Values, target: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).cast(target)


def _one_by_one(values: Values, target: pa.DataType) -> pa.Array:
    """Leave every value that is not null to `_by_hand`."""
    if any(value is not None for value in values):
        raise ValueError
    return pa.nulls(len(values), target)


def _bools(values: Values, target: pa.DataType) -> pa.Array:
    return pa.array([None if v is None else _BOOLS[v] for v in values], target)


class _Bools(dict[bytes, bool]):
    def __missing__(self, key: bytes) -> bool:
        raise ValueError(key)


_BOOLS = _Bools({b"t": True, b"f": False})


def _bytes(values: Values, target: pa.DataType) -> pa.Array:
    return pa.array([None if v is None else _unhex(v) for v in values], target)


def _unhex(text: bytes) -> bytes:
    if text[:2] != b"\\x":
        raise ValueError(text)
    return unhexlify(text[2:])


def _decimals(values: Values, target: pa.DataType) -> pa.Array:
    """Cast where no text has more digits than the type can hold: there Arrow's sums wrap round."""
    texts = pa.array(values, pa.string())
    length = pc.binary_length(texts)
    point = pc.find_substring(texts, ".")
    whole = pc.if_else(pc.less(point, 0), length, point)
    widest = 38 if pa.types.is_decimal128(target) else 76
    longest, most_whole = pc.max(length).as_py() or 0, pc.max(whole).as_py() or 0
    if longest > widest or most_whole + target.scale > widest:
        raise ValueError
    return texts.cast(target)


def _floats(values: Values, target: pa.DataType) -> pa.Array:
    texts = pa.array(values, pa.string())
    array = texts.cast(target)
    infinite = pc.is_inf(array)
    if pc.any(infinite).as_py():
        said = pc.match_substring(pc.filter(texts, infinite), "inf", ignore_case=True)
        if not pc.all(said).as_py():
            raise ValueError
    return array


def _timestamps(values: Values, target: pa.DataType) -> pa.Array:
    """Go by way of microseconds, from where a cast to a finer unit is checked."""
    return _cast(values, pa.timestamp("us", target.tz)).cast(target)


def _times(values: Values, target: pa.DataType) -> pa.Array:
    """Arrow reads no text as a time, but the time within a timestamp."""
    texts = pa.array(values, pa.string())
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


def _lists(
    schema: Schema, oid: int, values: Values, target: pa.DataType
) -> tuple[pa.Array, list[int]]:
    """Flatten arrays, convert all their elements at once, and cut them up again.

    An array with a second dimension does not fit, nor one whose bounds a list cannot tell.
    """
    inner = element(schema, oid)
    mark = delimiter(schema, inner)
    unfit: list[int] = []
    rows: list[list[Any] | None] = []
    for place, text in enumerate(values):
        row = None
        if text is not None:
            with suppress(ValueError):
                row = parse_array(text, bytes, mark)
            if not inner or row is None or any(isinstance(item, list) for item in row):
                unfit.append(place)
                row = None
        rows.append(row)
    flat = [item for row in rows if row is not None for item in row]
    elements, bad = _convert(schema, inner, flat, target.value_type) if inner else (None, [])
    if bad:
        owners = [place for place, row in enumerate(rows) for _ in row or ()]
        unfit = sorted({*unfit, *(owners[place] for place in bad)})
    if elements is None:
        return pa.nulls(len(values), target), unfit
    missing = set(unfit) | {p for p, row in enumerate(rows) if row is None}
    offsets = list(accumulate((len(row or ()) for row in rows), initial=0))
    large = pa.types.is_large_list(target)
    make = pa.LargeListArray if large else pa.ListArray
    array = make.from_arrays(
        pa.array(offsets, pa.int64() if large else pa.int32()),
        elements,
        type=target,
        mask=pa.array([place in missing for place in range(len(values))], pa.bool_()),
    )
    return array, unfit
