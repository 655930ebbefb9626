"""Arrow values as JSON has them: the forms of `read --json`, whatever the rows went through.

::

    integers, finite floats, booleans, null    themselves
    NaN, Infinity, -Infinity                   text
    decimal                                    text, every digit: "12.50"
    date, time, timestamp                      text as Postgres has it: 2026-01-31 12:00:00.5+00
    bytes                                      text, hex after `\\x`
    lists, structs, maps                       arrays and objects of the same
    anything else                              its text
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """One mapping a row, from column names, which differ, to JSON values."""
    names = table.column_names
    columns = [plain_column(column) for column in table.columns]
    if not names:
        return [{} for _ in range(table.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def plain_column(column: pa.ChunkedArray) -> list[Any]:
    """The JSON values of a column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    values: list[Any] = column.to_pylist()
    t = pa.types
    if t.is_integer(kind) or t.is_boolean(kind) or t.is_string(kind) or t.is_null(kind):
        return values
    if t.is_floating(kind) and pc.all(pc.is_finite(column)).as_py() is not False:
        return values
    if t.is_decimal(kind):
        return [None if value is None else format(value, "f") for value in values]
    return [plain_value(value) for value in values]


def plain_value(value: Any) -> Any:
    """One value as JSON has it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    for kind, convert in _FORMS:
        if isinstance(value, kind):
            return convert(value)
    return str(value)


def _float(value: float) -> Any:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _moment(value: datetime) -> str:
    text = _shortened(value.replace(tzinfo=None).isoformat(" "))
    offset = value.strftime("%z")
    if not offset:
        return text
    return text + offset[:3] + (f":{offset[3:5]}" if offset[3:5] != "00" else "")


def _shortened(text: str) -> str:
    """Without zeros at the end of the fraction, which Postgres does not write."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def _list(values: Iterable[Any]) -> list[Any]:
    return [plain_value(value) for value in values]


_FORMS: list[tuple[type, Callable[[Any], Any]]] = [
    (float, _float),
    (Decimal, lambda value: format(value, "f")),
    (datetime, _moment),
    (date, date.isoformat),
    (time, lambda value: _shortened(value.isoformat())),
    (bytes, lambda value: "\\x" + value.hex()),
    (dict, lambda value: {str(name): plain_value(item) for name, item in value.items()}),
    (list, _list),
    (tuple, _list),
]
