"""Arrow values as JSON has them: the forms of `read --json`, whatever the rows went through.

::

    integers, finite floats, booleans, null    themselves
    NaN, Infinity, -Infinity                   text
    decimal                                    text, every digit: "12.50"
    date, time, timestamp                      text as Postgres has it: 2026-01-31 12:00:00.5+00
    bytes                                      text, hex after `\\x`
    interval                                   text, ISO 8601
    lists, structs                             arrays and objects of the same
    maps                                       arrays of [key, value]
    anything else                              its text
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.changes.value_texts import value_texts

if TYPE_CHECKING:
    import pyarrow as pa


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """One mapping a row, from column names, which differ, to JSON values."""
    rows: list[dict[str, Any]] = [{} for _ in range(table.num_rows)]
    for name, column in zip(table.column_names, table.columns, strict=True):
        # A third of what it takes to make each mapping of its pairs.
        for row, value in zip(rows, plain_column(column), strict=True):
            row[name] = value
    return rows


def plain_column(column: pa.ChunkedArray) -> list[Any]:
    """The JSON values of a column."""
    if column.num_chunks == 1:
        return plain_array(column.chunk(0))
    return [value for chunk in column.chunks for value in plain_array(chunk)]


def python_column(column: pa.ChunkedArray) -> list[Any]:
    """The Python values of a column; what Python cannot hold (infinity, BC) as JSON has it."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (OverflowError, ValueError):
        return [_python(array[at : at + 1]) for array in column.chunks for at in range(len(array))]


def _python(one: pa.Array) -> Any:
    """The value of an array of one."""
    try:
        return one[0].as_py()
    except (OverflowError, ValueError):
        return plain_array(one)[0]


def plain_array(array: pa.Array) -> list[Any]:
    """The JSON values of an array."""
    from pyarrow import types

    kind = array.type
    if types.is_integer(kind) or types.is_string(kind) or types.is_boolean(kind):
        return array.to_pylist()  # type: ignore[no-any-return]
    if types.is_floating(kind):
        return _floats(array)
    if types.is_dictionary(kind):
        return plain_array(array.dictionary_decode())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        bounds = array.offsets.to_numpy()
        return _rows(array, bounds, *(p.slice(bounds[0]) for p in _parts(array)))
    if types.is_fixed_size_list(kind):
        bounds = (np.arange(len(array) + 1) + array.offset) * kind.list_size
        return _rows(array, bounds, array.values.slice(bounds[0]))
    if types.is_struct(kind):
        names = [field.name for field in kind]
        rows = zip(*map(plain_array, array.flatten()), strict=True)
        structs = (dict(zip(names, row, strict=True)) for row in rows)
        valid = array.is_valid().to_pylist()
        return [row if here else None for row, here in zip(structs, valid, strict=True)]
    texts = value_texts(array)
    if texts is not None:
        return texts.to_pylist()  # type: ignore[no-any-return]
    return [plain_value(value) for value in array.to_pylist()]


def _floats(array: pa.Array) -> list[Any]:
    """Single and half precision as the shortest text that means the same, as Postgres does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if array.type != pa.float64():
        array = array.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    values: list[Any] = array.to_pylist()
    if pc.all(pc.is_finite(array)).as_py() is not False:
        return values
    return [None if value is None else _float(value) for value in values]


def _parts(array: pa.Array) -> list[pa.Array]:
    """What lists hold, or the keys and the items of maps, from the first row of the buffers on."""
    from pyarrow import types

    return [array.keys, array.items] if types.is_map(array.type) else [array.values]


def _rows(array: pa.Array, bounds: npt.NDArray[Any], *parts: pa.Array) -> list[Any]:
    """The items by the rows that they are of, as pairs where there are two parts; None for null."""
    total = int(bounds[-1] - bounds[0])
    items, *more = (plain_array(part.slice(0, total)) for part in parts)
    if more:
        items = [list(pair) for pair in zip(items, *more, strict=True)]
    ends = (bounds - bounds[0]).tolist()
    rows = zip(ends[:-1], ends[1:], array.is_valid().to_pylist(), strict=True)
    return [items[start:stop] if here else None for start, stop, here in rows]


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
