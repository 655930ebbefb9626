"""Arrow rows as lines of CSV, the values in the forms of `read --json`.

::

    "id","amount","at","note"                   texts are quoted; numbers and times are not
    1,12.50,2026-01-31 12:00:00.5+00,"one, two"
    2,,,""                                      null is an empty field, an empty text is not

NaN and infinities are words, bytes are `\\x…`, lists are JSON. Lines are made column by column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from eventlog.changes.decoding import json_line
from eventlog.changes.plain import plain_array
from eventlog.changes.value_texts import value_texts

if TYPE_CHECKING:
    import pyarrow as pa


class CsvLines:
    """Writes tables of one schema to a binary file, under a line of names. For one thread."""

    def __init__(self, schema: pa.Schema, file: IO[bytes]) -> None:
        self._file = file
        names = (name.replace('"', '""') for name in schema.names)
        file.write((",".join(f'"{name}"' for name in names) + "\n").encode())

    def __enter__(self) -> CsvLines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held back."""

    def write_table(self, table: pa.Table) -> None:
        """Write the rows."""
        for batch in table.to_batches():
            if batch.num_columns and batch.num_rows:
                self._file.write(_lines(list(map(_cells, batch.columns))))


def _lines(cells: Sequence[pa.Array]) -> memoryview:
    lines = _joined(_joined(*cells, between=","), "", between="\n")
    _, places, data = lines.buffers()
    ends = np.frombuffer(places, np.int64, len(lines) + 1)
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


def _cells(array: pa.Array) -> pa.Array:
    """The fields of a column as large strings, quoted where they are texts."""
    import pyarrow as pa
    from pyarrow import types

    kind = array.type
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind):
        return array.cast(pa.large_string())
    if types.is_floating(kind):
        return _floats(array)
    if types.is_decimal(kind) or (types.is_temporal(kind) and not types.is_interval(kind)):
        texts = value_texts(array)
        if texts is not None:
            return texts.cast(pa.large_string())
    if not (types.is_string(kind) or types.is_large_string(kind)):
        array = pa.array(list(map(_text, plain_array(array))), pa.large_string())
    return _quoted(array.cast(pa.large_string()))


def _floats(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = array.cast(pa.large_string())
    if pc.all(pc.is_finite(array)).as_py() is False:
        found = pc.replace_substring(found, "nan", "NaN")
        found = pc.replace_substring(found, "inf", "Infinity")
    return found


def _quoted(texts: pa.Array) -> pa.Array:
    """The texts in quotes, null without any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = _joined('"', pc.replace_substring(texts, '"', '""'), '"', between="")
    return pc.if_else(texts.is_valid(), whole, pa.scalar(None, pa.large_string()))


def _joined(*parts: pa.Array | str, between: str) -> pa.Array:
    """Large strings and texts joined row by row; null is an empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    large = (pa.scalar(p, pa.large_string()) if isinstance(p, str) else p for p in parts)
    options: Any = {"null_handling": "replace", "null_replacement": ""}
    separator = pa.scalar(between, pa.large_string())
    return pc.binary_join_element_wise(*large, separator, **options)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_line(value)
