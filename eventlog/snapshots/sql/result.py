"""The result of a query: its rows, and the cuts that it was asked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import frame
from eventlog.changes.cut import Cut
from eventlog.changes.decoding import json_line
from eventlog.changes.plain import plain_column, plain_rows, python_column
from eventlog.changes.quantities import counted
from eventlog.errors import UsageError
from eventlog.snapshots.shown_rows import MAX_ROWS
from eventlog.snapshots.sql.kept_rows import KeptRows

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_ROWS = 20
SHOWN_WIDTH = 40
PIECE_BYTES = 16 << 20
"""A piece of rows is less, or one batch of DuckDB's."""


class Result:
    """Rows and columns. Many are kept in a file without a name, and read when they are asked for.

    `cuts` says, by the name that the query gave it, where each stream that it read was cut.
    `unfit` counts, by table and column, the values that `unfit="null"` dropped. Iterating gives
    tuples of Python values, text for what Python cannot hold, and may be repeated. Thread safety:
    may be shared among threads.
    """

    def __init__(
        self, rows: KeptRows, *, cuts: Mapping[str, Cut], unfit: Mapping[str, int]
    ) -> None:
        self.cuts = dict(cuts)
        self.unfit = dict(unfit)
        self.schema = _told_apart(rows.schema)
        self._rows = rows

    @property
    def columns(self) -> list[str]:
        """The names of the columns; one that stands twice is numbered: `n`, `n_1`."""
        names: list[str] = self.schema.names
        return names

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return self._rows.num_rows

    def to_batches(self, *, max_rows: int = MAX_ROWS) -> Iterator[pa.Table]:
        """The rows as Arrow tables of at most `max_rows` each, in order and in bounded memory.

        At least one comes, be it empty; where values are long, a piece has fewer rows.
        """
        if max_rows < 1:
            raise UsageError(f"max_rows={max_rows} is no number of rows", hint="it is at least 1")
        return self._pieces(max_rows)

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table."""
        import pyarrow as pa

        return pa.concat_tables(self.to_batches())

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow())

    def as_json(self) -> Iterator[dict[str, Any]]:
        """One mapping a row, the values in the forms of `read --json`."""
        for piece in self.to_batches():
            yield from plain_rows(piece)

    def json_lines(self) -> Iterator[str]:
        """The rows as lines of JSON, without line ends."""
        return map(json_line, self.as_json())

    def _pieces(self, max_rows: int) -> Iterator[pa.Table]:
        held: list[pa.RecordBatch] = []
        rows = size = 0
        for batch in self._rows.batches():
            for start in range(0, batch.num_rows, max_rows):
                part = batch.slice(start, max_rows)
                full = rows + part.num_rows > max_rows or size + part.nbytes > PIECE_BYTES
                if held and full:
                    yield self._piece(held)
                    held, rows, size = [], 0, 0
                held.append(part)
                rows += part.num_rows
                size += part.nbytes
        if held or not self.num_rows:
            yield self._piece(held)

    def _piece(self, batches: list[pa.RecordBatch]) -> pa.Table:
        import pyarrow as pa

        whole = pa.Table.from_batches(batches, schema=self._rows.schema)
        if len(batches) > 1:
            whole = whole.combine_chunks()
        return whole.rename_columns(self.columns)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for piece in self.to_batches():
            yield from zip(*map(python_column, piece.columns), strict=True)

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        """The first rows as an aligned table."""
        head = next(self.to_batches(max_rows=SHOWN_ROWS))
        cells = [[_cell(v) for v in plain_column(column)] for column in head.columns]
        widths = [
            max(map(len, [name, *column])) for name, column in zip(self.columns, cells, strict=True)
        ]
        rows = [self.columns, ["-" * width for width in widths], *zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        more = self.num_rows - head.num_rows
        tail = f"... and {more:,} more" if more else counted(self.num_rows, "row")
        return "\n".join([*lines, tail])


def _told_apart(schema: pa.Schema) -> pa.Schema:
    """The same with names that differ."""
    import pyarrow as pa

    names = schema.names
    seen: set[str] = set()
    found = []
    for field in schema:
        number, fresh = 0, field.name
        while fresh in seen or (number and fresh in names):
            number += 1
            fresh = f"{field.name}_{number}"
        seen.add(fresh)
        found.append(field.with_name(fresh))
    return pa.schema(found, metadata=schema.metadata)


def _cell(value: Any) -> str:
    text = "-" if value is None else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= SHOWN_WIDTH else text[: SHOWN_WIDTH - 1] + "…"
