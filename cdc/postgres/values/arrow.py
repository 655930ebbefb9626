"""Values as Arrow: the type that follows from a declared type, and columns of texts turned to it.

Common types have a way of their own over the whole column (`columnar`): it takes the texts that
Postgres writes, and leaves every other to the exact way (`columnar.exact`), value by value if need
be. What both take, both read alike: from the outside nobody can tell which of them read a value.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc.postgres.values.arrays import parse_array
from cdc.postgres.values.builtin_types import delimiter, element, underlying
from cdc.postgres.values.columnar import exact
from cdc.postgres.values.columnar.decimals import decimal_buffer, read_decimals
from cdc.postgres.values.columnar.fixed import Reader, read_bools, read_fixed
from cdc.postgres.values.columnar.gather import cut_up, gather, require_sound
from cdc.postgres.values.columnar.hex_bytes import read_hex
from cdc.postgres.values.columnar.integers import read_integers
from cdc.postgres.values.columnar.times import read_dates, read_moments, read_times
from cdc.postgres.values.columnar.windows import Array, Mask
from cdc.postgres.values.type_names import numeric_modifier
from eventlog.changes.arrow_texts import bitmap
from eventlog.changes.schema import Schema
from eventlog.changes.split import Texts, texts_of

Converted: TypeAlias = tuple[pa.Array, list[int]]
"""An array, and the places whose value does not fit it."""

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


def arrow_type(schema: Schema, oid: int, typmod: int) -> pa.DataType:
    """The type of a column declared so (API.md, "Arrow and Parquet types")."""
    oid, typmod = underlying(schema, oid, typmod)
    inner = element(schema, oid)
    if inner:
        return pa.list_(arrow_type(schema, inner, typmod))
    if oid == exact.NUMERIC:
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


def arrow_array(schema: Schema, oid: int, texts: Texts, target: pa.DataType) -> Converted:
    """Convert texts of type `oid` to `target`, and name the places whose value does not fit it.

    Nothings become null, and so do the places that do not fit. The result is a ChunkedArray where
    the texts are more bytes than one array holds. Raises IndexError for a text outside its buffer,
    ValueError for one of more than a GiB, which no database holds.
    """
    parts = cut_up(texts, require_sound(texts))
    if len(parts) == 1:
        return _convert(schema, oid, texts, target)
    arrays, unfit, start = [], [], 0
    for part in parts:
        array, bad = _convert(schema, oid, part, target)
        arrays.append(array)
        unfit += [start + place for place in bad]
        start += len(part)
    return pa.chunked_array(arrays, target), unfit


def _convert(schema: Schema, oid: int, texts: Texts, target: pa.DataType) -> Converted:
    oid, _ = underlying(schema, oid)
    if texts.lengths.max(initial=-1) < 0:
        return pa.nulls(len(texts), target), []
    if pa.types.is_list(target) or pa.types.is_large_list(target):
        return _lists(schema, oid, texts, target)
    if oid == exact.BYTEA and pa.types.is_binary(target):
        array, good = read_hex(texts)
        return _with_the_odd(oid, texts, array, good)
    reader = _reader(target)
    if reader is None:
        return exact.convert(oid, gather(texts), target)
    values, good = read_fixed(texts, reader)
    buffers = [bitmap(good), pa.py_buffer(_stored(values, target))]
    array = pa.Array.from_buffers(target, len(texts), buffers)
    return _with_the_odd(oid, texts, array, good)


def _with_the_odd(oid: int, texts: Texts, array: pa.Array, good: Mask) -> Converted:
    """Convert what a reader did not take, and put it into its places."""
    if good.all():
        return array, []
    odd = (texts.lengths >= 0) & ~good
    places = np.flatnonzero(odd)
    if not len(places):
        return array, []
    rest, bad = exact.convert(oid, gather(texts.take(places)), array.type)
    return pc.replace_with_mask(array, pa.array(odd), rest), places[bad].tolist()


_UNZONED, _ZONED = pa.timestamp("us"), pa.timestamp("us", "UTC")
_READERS: dict[pa.DataType, Reader] = {
    pa.bool_(): read_bools,
    pa.date32(): read_dates,
    pa.time64("us"): read_times,
    _UNZONED: partial(read_moments, zoned=False),
    _ZONED: partial(read_moments, zoned=True),
}


def _reader(target: pa.DataType) -> Reader | None:
    """The way to read a whole column as that type, whatever the type of its source."""
    if pa.types.is_decimal128(target) or pa.types.is_decimal256(target):
        return partial(read_decimals, precision=target.precision, scale=target.scale)
    if pa.types.is_integer(target):
        return partial(read_integers, kind=np.dtype(target.to_pandas_dtype()))
    return _READERS.get(target)


def _stored(values: Array, target: pa.DataType) -> Array:
    """The values as Arrow lays them out."""
    if pa.types.is_boolean(target):
        return np.packbits(values, bitorder="little")
    return decimal_buffer(values, target.bit_width) if pa.types.is_decimal(target) else values


def _lists(schema: Schema, oid: int, texts: Texts, target: pa.DataType) -> Converted:
    """Flatten arrays, convert all their elements at once, and cut them up again.

    An array with a second dimension does not fit, nor one whose bounds a list cannot tell.
    """
    inner = element(schema, oid)
    mark = delimiter(schema, inner)
    unfit: list[int] = []
    rows: list[list[Any] | None] = []
    for place, text in enumerate(gather(texts).to_pylist()):
        row = None
        if text is not None:
            with suppress(ValueError):
                row = parse_array(text, bytes, mark)
            if not inner or row is None or any(isinstance(item, list) for item in row):
                unfit.append(place)
                row = None
        rows.append(row)
    flat = texts_of(item for row in rows if row is not None for item in row)
    elements, bad = _convert(schema, inner, flat, target.value_type) if inner else (None, [])
    if bad:
        owners = [place for place, row in enumerate(rows) for _ in row or ()]
        unfit = sorted({*unfit, *(owners[place] for place in bad)})
    if elements is None:
        return pa.nulls(len(texts), target), unfit
    missing = set(unfit) | {p for p, row in enumerate(rows) if row is None}
    offsets = list(accumulate((len(row or ()) for row in rows), initial=0))
    large = pa.types.is_large_list(target)
    make = pa.LargeListArray if large else pa.ListArray
    array = make.from_arrays(
        pa.array(offsets, pa.int64() if large else pa.int32()),
        elements,
        type=target,
        mask=pa.array([place in missing for place in range(len(texts))], pa.bool_()),
    )
    return array, unfit
