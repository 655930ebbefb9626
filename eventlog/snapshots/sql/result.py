"""The result of a query: an Arrow table, and the cuts that it was asked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import frame
from eventlog.changes.cut import Cut
from eventlog.changes.plain import plain_column, plain_rows

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_ROWS = 20
SHOWN_WIDTH = 40


class Result:
    """Rows and columns, whole in memory.

    `cuts` says, by the name that the query gave it, where each stream that it read was cut.
    `unfit` counts, by table and column, the values that `unfit="null"` dropped. Iterating gives
    tuples of Python values. Thread safety: may be shared among threads.
    """

    def __init__(
        self, table: pa.Table, *, cuts: Mapping[str, Cut], unfit: Mapping[str, int]
    ) -> None:
        self.cuts = dict(cuts)
        self.unfit = dict(unfit)
        self._table = table.rename_columns(_told_apart(table.column_names))

    @property
    def columns(self) -> list[str]:
        """The names of the columns; one that stands twice is numbered: `n`, `n_1`."""
        names: list[str] = self._table.column_names
        return names

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return int(self._table.num_rows)

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table."""
        return self._table

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self._table)

    def as_json(self) -> list[dict[str, Any]]:
        """One mapping a row, the values in the forms of `read --json`."""
        return plain_rows(self._table)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self._table.to_batches(max_chunksize=10_000):
            columns = [column.to_pylist() for column in batch.columns]
            yield from zip(*columns, strict=True)

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        """The first rows as an aligned table."""
        head = self._table.slice(0, SHOWN_ROWS)
        cells = [[_cell(v) for v in plain_column(column)] for column in head.columns]
        widths = [
            max(map(len, [name, *column])) for name, column in zip(self.columns, cells, strict=True)
        ]
        rows = [self.columns, ["-" * width for width in widths], *zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        more = self.num_rows - head.num_rows
        count = "1 row" if self.num_rows == 1 else f"{self.num_rows:,} rows"
        tail = f"... and {more:,} more" if more else count
        return "\n".join([*lines, tail])


def _told_apart(names: list[str]) -> list[str]:
    seen: set[str] = set()
    found = []
    for name in names:
        number, fresh = 0, name
        while fresh in seen or (number and fresh in names):
            number += 1
            fresh = f"{name}_{number}"
        seen.add(fresh)
        found.append(fresh)
    return found


def _cell(value: Any) -> str:
    text = "-" if value is None else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= SHOWN_WIDTH else text[: SHOWN_WIDTH - 1] + "…"
