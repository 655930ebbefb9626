"""Numbers and times of Arrow arrays as the texts that Postgres writes, whole columns at once.

::

    decimal      every digit, no exponent              12.50  0.000000001
    date         ISO; BC behind the rest               2026-01-31  0044-03-15 BC  infinity
    timestamp    without zeros at the fraction's end   2026-01-31 12:00:00.5+00  -infinity
    time         the same                              12:00:00.5  24:00:00
    interval     ISO 8601                              P1Y2M3DT4H5M6.5S
    bytes        hex                                   \\x00ff

What Arrow writes for most values at once is Arrow's; values that Python's own types do not hold
(infinity as DuckDB has it, years beyond 9999, BC) are written one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

I64 = npt.NDArray[np.int64]

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_DAY_S = 86_400
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_800
"""Years 1 to 9999 lie in `[_FIRST_S, _LAST_S)`."""

_UTC = frozenset({"UTC", "Etc/UTC", "Z", "+00:00"})
_DATE_INFINITY, _INFINITY = 2**31 - 1, 2**63 - 1
_MONTHS, _MICRO = 12, 1_000


def value_texts(array: pa.Array) -> pa.Array | None:
    """The texts of an array of one of the types above; None for other types."""
    from pyarrow import types

    kind = array.type
    if types.is_decimal(kind):
        return _decimals(array)
    if types.is_date(kind):
        return _dates(array)
    if types.is_timestamp(kind) and (kind.tz is None or kind.tz in _UTC):
        return _timestamps(array, "" if kind.tz is None else "+00")
    if types.is_time(kind):
        return _times(array)
    if types.is_interval(kind):
        return _each(array, _interval)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return _each(array, lambda value: "\\x" + value.hex())
    return None


def _each(array: pa.Array, text: Callable[[Any], str]) -> pa.Array:
    import pyarrow as pa

    return pa.array([None if v is None else text(v) for v in array.to_pylist()], pa.string())


def _decimals(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = array.cast(pa.string())
    odd = pc.fill_null(pc.match_substring(found, "E"), False)
    if not pc.any(odd).as_py():
        return found
    plain = [format(value, "f") for value in array.filter(odd).to_pylist()]
    return pc.replace_with_mask(found, odd, pa.array(plain, pa.string()))


def _integers(array: pa.Array, kind: pa.DataType) -> I64:
    """The numbers that stand for times, 0 for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.fill_null(array.view(kind), 0).cast(pa.int64())
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def _dates(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    if array.type == pa.date64():
        days = _integers(array, pa.int64()) // (_DAY_S * 1_000)
    else:
        days = _integers(array, pa.int32())
    normal = (days >= _FIRST_S // _DAY_S) & (days < _LAST_S // _DAY_S)
    shown = pa.array(np.where(normal, days, 0).astype(np.int32)).view(pa.date32())
    return _patched(array, shown.cast(pa.string()), ~normal, lambda i: _date(int(days[i])))


def _timestamps(array: pa.Array, zone: str) -> pa.Array:
    import pyarrow as pa

    digits = _DIGITS[array.type.unit]
    numbers = _integers(array, pa.int64())
    seconds, fraction = np.divmod(numbers, 10**digits)
    normal = (seconds >= _FIRST_S) & (seconds < _LAST_S)
    shown = pa.array(np.where(normal, seconds, 0)).view(pa.timestamp("s")).cast(pa.string())
    texts = _joined(shown, _fractions(fraction, digits), zone)

    def moment(place: int) -> str:
        if abs(int(numbers[place])) == _INFINITY:
            return "infinity" if numbers[place] > 0 else "-infinity"
        day, second = divmod(int(seconds[place]), _DAY_S)
        date, _, era = _date(day).partition(" ")
        rest = _fractions(fraction[place : place + 1], digits)[0].as_py()
        return f"{date} {_clock(second)}{rest}{zone}{era and ' ' + era}"

    return _patched(array, texts, ~normal, moment)


def _times(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    digits = _DIGITS[array.type.unit]
    numbers = _integers(array, pa.int32() if array.type.bit_width == 32 else pa.int64())
    seconds, fraction = np.divmod(numbers, 10**digits)
    normal = (seconds >= 0) & (seconds < _DAY_S)
    shown = pa.array(np.where(normal, seconds, 0).astype(np.int32)).view(pa.time32("s"))
    texts = _joined(shown.cast(pa.string()), _fractions(fraction, digits), "")
    return _patched(array, texts, ~normal, lambda i: _clock(int(seconds[i])))


def _fractions(fraction: I64, digits: int) -> pa.Array:
    """`.5` and so on; empty for 0."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # 1000500 has the zeros that 500 lacks; the 1 becomes the point.
    padded = pc.utf8_rtrim(pa.array(fraction + 10**digits).cast(pa.string()), "0")
    trimmed = pc.utf8_slice_codeunits(padded, 1)
    return pc.if_else(pc.equal(trimmed, ""), "", pc.binary_join_element_wise(".", trimmed, ""))


def _joined(texts: pa.Array, fractions: pa.Array, zone: str) -> pa.Array:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(texts, fractions, zone, "")


def _patched(
    array: pa.Array, texts: pa.Array, odd: npt.NDArray[np.bool_], text: Callable[[int], str]
) -> pa.Array:
    """The texts, those at odd places written one by one, null where the array is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if odd.any():
        written = [text(place) for place in np.flatnonzero(odd).tolist()]
        texts = pc.replace_with_mask(texts, pa.array(odd), pa.array(written, pa.string()))
    if array.null_count:
        texts = pc.if_else(array.is_valid(), texts, pa.scalar(None, pa.string()))
    return texts


def _date(days: int) -> str:
    if abs(days) == _DATE_INFINITY:
        return "infinity" if days > 0 else "-infinity"
    year, month, day = _civil(days)
    era = " BC" if year <= 0 else ""
    return f"{year if year > 0 else 1 - year:04}-{month:02}-{day:02}{era}"


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a number of days since 1970, in the Gregorian calendar for ever.

    Years are counted from March, in eras of 400 years, which have 146,097 days each.
    """
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (
        day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    from_march = (5 * day_of_year + 2) // 153
    month = from_march + 3 if from_march < 10 else from_march - 9
    year = year_of_era + era * 400 + (month <= 2)
    return year, month, day_of_year - (153 * from_march + 2) // 5 + 1


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _interval(value: Any) -> str:
    """Months, days and nanoseconds, signed each, as Postgres writes them with iso_8601."""
    months, days, nanoseconds = value
    micro = abs(nanoseconds) // _MICRO
    sign = "-" if nanoseconds < 0 else ""
    years, months = _toward_zero(months, _MONTHS)
    hours, rest = divmod(micro, 3_600_000_000)
    minutes, micro = divmod(rest, 60_000_000)
    whole, fraction = divmod(micro, 1_000_000)
    seconds = f"{whole}.{fraction:06}".rstrip("0").rstrip(".")
    date = "".join(f"{n}{unit}" for n, unit in ((years, "Y"), (months, "M"), (days, "D")) if n)
    clock = "".join(
        f"{sign}{n}{unit}"
        for n, unit in ((hours, "H"), (minutes, "M"), (seconds, "S"))
        if n not in (0, "0")
    )
    return f"P{date}" + (f"T{clock}" if clock else "" if date else "T0S")


def _toward_zero(number: int, by: int) -> tuple[int, int]:
    whole = abs(number) // by * (1 if number >= 0 else -1)
    return whole, number - whole * by
