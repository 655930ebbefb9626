"""Typed values as bytes, so that a transform's output can be digested as texts are (D15).

::

    number, date, time, decimal   the bytes of Arrow's layout, little-endian; a NaN is the quiet one
    boolean                       one byte, 0 or 1
    text, bytes                   themselves
    list                          its items end to end, each after its length:i32 (-1: null)
    value of a dictionary         as if it stood there itself

A type goes into the digest under the name that `type_text` gives it, which no library decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.errors import UsageError
from eventlog.snapshots.manifests.digest import TableDigest, lengths_and_bytes

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 65_536


def add_output(digest: TableDigest, offsets: npt.NDArray[np.int64], table: pa.Table) -> None:
    """Digest typed rows, one for each offset. Raises UsageError for types that have no such form.

    REQUIRES: the digest's columns have the names of the table's, and types by `type_text`.
    """
    for start in range(0, len(offsets), ROWS):
        part = table.slice(start, ROWS).combine_chunks()
        columns = [_whole(column) for column in part.columns]
        digest.add(offsets[start : start + ROWS], list(map(encoded, columns)))


def type_text(kind: pa.DataType) -> str:
    """The name of a type in a digest. Raises UsageError for one that has no form as bytes."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return type_text(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind):
        return f"list({type_text(kind.value_type)})"
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    if types.is_decimal(kind):
        return f"decimal{kind.bit_width}({kind.precision},{kind.scale})"
    if types.is_timestamp(kind):
        return f"timestamp({kind.unit})" if kind.tz is None else f"timestamp({kind.unit},{kind.tz})"
    if types.is_time(kind) or types.is_duration(kind):
        return f"{'time' if types.is_time(kind) else 'duration'}{kind.bit_width}({kind.unit})"
    if types.is_date(kind):
        return f"date{kind.bit_width}"
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind):
        return f"{'int' if types.is_signed_integer(kind) else 'uint'}{kind.bit_width}"
    if types.is_floating(kind):
        return f"float{kind.bit_width}"
    if types.is_null(kind):
        return "null"
    raise UsageError(
        f"values of type {kind} have no form that could be digested",
        hint="let the transform return numbers, texts, times, booleans, or lists of them",
    )


def encoded(array: pa.Array) -> pa.Array:
    """The values as large binary; null stays null."""
    import pyarrow as pa
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        return encoded(array.dictionary_decode())
    if types.is_list(kind) or types.is_large_list(kind):
        return _lists(array)
    if types.is_null(kind):
        return pa.nulls(len(array), pa.large_binary())
    if types.is_string(kind) or types.is_large_string(kind):
        return array.cast(pa.large_string()).cast(pa.large_binary())
    if types.is_binary(kind) or types.is_large_binary(kind):
        return array.cast(pa.large_binary())
    if types.is_boolean(kind):
        array = array.cast(pa.uint8())
    return _fixed(array, _width(array.type))


def _fixed(array: pa.Array, width: int) -> pa.Array:
    data = array.buffers()[1]
    if not len(array) or data is None:
        return _binary(np.zeros(len(array) + 1, np.int64), b"", array)
    values = np.frombuffer(data, np.uint8, len(array) * width, array.offset * width)
    if str(array.type) in ("halffloat", "float", "double"):
        floats = values.view(f"<f{width}").copy()
        floats[np.isnan(floats)] = np.nan
        values = floats.view(np.uint8)
    return _binary(np.arange(len(array) + 1, dtype=np.int64) * width, values, array)


def _lists(array: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    lengths, data = lengths_and_bytes(encoded(array.flatten()))
    sizes = np.maximum(lengths, 0).astype(np.int64) + 4
    item_ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    joined = np.empty(int(item_ends[-1]), np.uint8)
    is_data = np.ones(len(joined), bool)
    heads = item_ends[:-1, None] + np.arange(4)
    is_data[heads] = False
    joined[heads] = lengths.view(np.uint8).reshape(-1, 4)
    joined[is_data] = np.frombuffer(data, np.uint8)
    items = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(items, dtype=np.int64)])
    return _binary(item_ends[ends], joined, array)


def _binary(ends: npt.NDArray[np.int64], data: Any, like: pa.Array) -> pa.Array:
    """The slices of `data` as binary, null where `like` is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    buffers = [None, pa.py_buffer(np.ascontiguousarray(ends, "<i8")), pa.py_buffer(data)]
    found = pa.Array.from_buffers(pa.large_binary(), len(like), buffers)
    if not like.null_count:
        return found
    return pc.if_else(like.is_valid(), found, pa.scalar(None, pa.large_binary()))


def _width(kind: pa.DataType) -> int:
    return int(kind.bit_width) // 8


def _whole(column: Any) -> pa.Array:
    """A column of a combined table as one array."""
    import pyarrow as pa

    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
