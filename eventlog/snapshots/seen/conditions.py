"""Conditions on rows: an expression, or a function of an Arrow table (API.md, "Expression").

An expression is DuckDB SQL over the row's columns and those before the change as `old.COLUMN`,
evaluated in a DuckDB that reaches nothing else. Times with a zone are plain UTC in it. What is NULL
is not true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.changes.duck import locked_connection
from eventlog.errors import UsageError
from eventlog.snapshots.seen.definitions import Condition
from eventlog.snapshots.seen.planning import HEAD, old_name
from eventlog.snapshots.sql.expression import boolean_query

if TYPE_CHECKING:
    import pyarrow as pa

PROBE_ROWS = 1_000
"""Of the first so many rows a function is asked in parts, too."""


def holds(condition: Condition, rows: pa.Table, what: str) -> npt.NDArray[np.bool_]:
    """Whether the condition is true of each row. Raises UsageError, naming `what` was asked."""
    if isinstance(condition, str):
        return _expression(condition, rows, what)
    mask = _called(condition, rows, what)
    _require_row_wise(condition, rows, mask, what)
    return mask


def _called(
    condition: Callable[[pa.Table], Any], rows: pa.Table, what: str
) -> npt.NDArray[np.bool_]:
    found: Any = condition(rows)
    found = found.to_numpy(zero_copy_only=False) if hasattr(found, "null_count") else found
    mask = np.asarray(found)
    if mask.dtype == object:  # booleans and nulls
        mask = np.array([value is True or value is np.True_ for value in mask.tolist()], np.bool_)
    if mask.dtype != np.bool_ or mask.shape != (rows.num_rows,):
        raise UsageError(
            f"{what} gave {mask.dtype} of shape {mask.shape} for {rows.num_rows} rows",
            hint="it is given an Arrow table, and returns a boolean for each of its rows",
        )
    return mask


def _require_row_wise(
    condition: Callable[[pa.Table], Any], rows: pa.Table, mask: npt.NDArray[np.bool_], what: str
) -> None:
    """Try on the first rows whether parts give what the whole gave: other rows are the future."""
    count = min(rows.num_rows, PROBE_ROWS)
    for start, stop in ((0, count // 2), (count // 2, count), (0, min(count, 1))):
        if stop - start in (0, rows.num_rows):
            continue
        part = _called(condition, rows.slice(start, stop - start), what)
        if not np.array_equal(part, mask[start:stop]):
            raise UsageError(
                f"{what} is not row by row: it says otherwise of the same rows among fewer",
                hint="a row's answer may depend on that row alone: no sums, means or ranks over "
                "the table, no clock, no chance",
            )


def _expression(text: str, rows: pa.Table, what: str) -> npt.NDArray[np.bool_]:
    import duckdb
    import pyarrow as pa

    given = _for_duckdb(rows)
    if rows.num_rows == 1:  # Of which a sum would be one row, too.
        given = pa.concat_tables([given, given])
    with locked_connection(threads=1) as connection:
        connection.register("rows", given)
        try:
            query = boolean_query(connection, text, "rows", what)
            column: pa.ChunkedArray = connection.sql(query).to_arrow_table().column(0)
        except duckdb.Error as error:
            raise UsageError(
                f"{what} fails: {str(error).splitlines()[0].rpartition('Error: ')[2]}",
                hint="an expression is DuckDB SQL over the row's columns and old.COLUMN",
            ) from error
    mask: npt.NDArray[np.bool_] = column.to_numpy()
    if len(mask) != given.num_rows:
        raise UsageError(f"{what} is not row by row", hint="leave out what sums over all rows")
    return mask[: rows.num_rows]


def _for_duckdb(rows: pa.Table) -> pa.Table:
    """The rows with `old` as one column, in types that DuckDB has."""
    import pyarrow as pa

    plain = [
        name for name in rows.column_names if name in HEAD or old_name(name) in rows.column_names
    ]
    arrays = [_known(rows.column(name).combine_chunks()) for name in plain]
    own = plain[len([name for name in plain if name in HEAD]) :]
    before = [_known(rows.column(old_name(name)).combine_chunks()) for name in own]
    if before:
        arrays.append(pa.StructArray.from_arrays(before, names=own))
    return pa.table(arrays, names=[*plain, "old"] if before else plain)


def _known(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        return array.cast(pa.timestamp("us"))
    if pa.types.is_decimal256(array.type):
        return array.cast(pa.string())
    return array
