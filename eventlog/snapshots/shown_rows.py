"""What rows can be shown as: Arrow, pandas, NumPy; whole or by pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eventlog.changes.arrow import Unfit, frame, require_names, unfit_counts
from eventlog.errors import UnknownColumn, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

MAX_ROWS = 65_536
"""Rows in a piece: enough to be fast, little enough to hold beside others."""


class Numbers(NamedTuple):
    """Features as float64 of shape (rows, columns), the target (None without one), the offsets."""

    X: npt.NDArray[np.float64]
    y: npt.NDArray[Any] | None
    ids: npt.NDArray[np.int64]


class ShownRows(ABC):
    """Rows in the order of their offsets, which are their ids."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """The number of rows."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The Arrow schema of `to_arrow()`."""

    @abstractmethod
    def to_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[pa.Table]:
        """The rows as Arrow tables of at most `max_rows` each, in bounded memory.

        At least one comes, be it empty. What `unfit="null"` dropped is counted in each piece.
        """

    @abstractmethod
    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
    ) -> pa.Table:
        """The rows as an Arrow table; with `offsets`, column `_offset` comes first."""

    def to_pandas(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
    ) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow(columns, cast=cast, unfit=unfit, offsets=offsets))

    def to_numpy(
        self, columns: Sequence[str] | None = None, *, target: str | None = None
    ) -> Numbers:
        """`X, y, ids`: numbers as float64, one column of `X` for each of `columns`.

        Without `columns`, all but the target. NULL is NaN in `X`. `y` is float64 for a target of
        numbers, else an array of objects, whose NULL is None. `ids` are the rows' offsets. Raises
        UsageError for a column of `X` that is no number.
        """
        names = number_columns(self.schema, columns, target)
        wanted = names if target is None or target in names else [*names, target]
        return numbers(self.to_arrow(wanted, offsets=True), names, target)


def number_columns(
    schema: pa.Schema, columns: Sequence[str] | None, target: str | None
) -> list[str]:
    """The columns that become `X`: those named, else all but the target.

    Raises UnknownColumn, and UsageError for one that is no number.
    """
    require_names(columns or ())
    for name in [*(columns or ()), *(() if target is None else (target,))]:
        if name not in schema.names:
            raise UnknownColumn(
                f"there is no column {name!r}", hint=f"there is {', '.join(schema.names)}"
            )
    chosen = [n for n in schema.names if n != target] if columns is None else list(columns)
    others = [n for n in chosen if not is_number(schema.field(n).type)]
    if others:
        kinds = ", ".join(f"{name} ({schema.field(name).type})" for name in others)
        raise UsageError(
            f"not all columns are numbers: {kinds}",
            hint="name those that are with columns=, or take to_arrow() and encode the others",
        )
    return chosen


def numbers(table: pa.Table, names: Sequence[str], target: str | None) -> Numbers:
    """Those columns of a table that has `_offset`, as NumPy arrays; see `ShownRows.to_numpy`."""
    import numpy as np

    found = np.empty((table.num_rows, len(names)), np.float64)
    for place, name in enumerate(names):
        found[:, place] = _floats(table.column(name))
    y = None
    if target is not None:
        column = table.column(target)
        y = _floats(column) if is_number(column.type) else _objects(column)
    return Numbers(found, y, table.column("_offset").to_numpy())


def is_number(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type become float64: integers, floats, decimals, booleans."""
    import pyarrow as pa

    t = pa.types
    kinds = (t.is_integer, t.is_floating, t.is_decimal, t.is_boolean)
    return any(is_kind(kind) for is_kind in kinds)


def stripped(table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """A piece without the counts of what did not fit, so that all have one schema; and those."""
    import pyarrow as pa

    from eventlog.changes.arrow import UNFIT

    counts = unfit_counts(table)
    if not counts:
        return table, counts
    fields = [
        field.with_metadata({k: v for k, v in (field.metadata or {}).items() if k != UNFIT})
        for field in table.schema
    ]
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields)), counts


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    import numpy as np
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    found = column.cast(pa.float64(), safe=False)
    return np.asarray(found.to_numpy(), np.float64)


def _objects(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    import numpy as np

    found = np.empty(len(column), object)
    found[:] = column.to_pylist()
    return found
