"""Whether two tables are the same to the bit; NaN is equal to NaN, 0.0 is not -0.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def difference(one: pa.Table, other: pa.Table) -> str | None:
    """The first column in which they differ, in values, type or place; None where in none."""
    for place in range(max(one.num_columns, other.num_columns)):
        if place >= min(one.num_columns, other.num_columns):
            longer = one if one.num_columns > other.num_columns else other
            return str(longer.column_names[place])
        name: str = one.column_names[place]
        if name != other.column_names[place] or not _same(one.column(place), other.column(place)):
            return name
    return None


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if one.type != other.type or len(one) != len(other):
        return False
    if not pa.types.is_floating(one.type):
        if one.equals(other):
            return True
        # Floats inside lists and the like: their texts tell NaN and -0.0.
        nested = pa.types.is_nested(one.type)
        return nested and repr(one.to_pylist()) == repr(other.to_pylist())
    if not one.is_null().equals(other.is_null()):
        return False
    bits = [pc.fill_null(c, 0.0).to_numpy().tobytes() for c in (one, other)]
    return bool(bits[0] == bits[1])
