"""The answer of a query, taken from DuckDB piece by piece.

A thread of its own waits for each piece, so that the caller can be interrupted meanwhile: a query
may compute for minutes between two rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventlog.errors import UsageError
from eventlog.snapshots.sql.kept_rows import KeptRows, keep

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 2_048
"""What DuckDB works on at a time: where values are long, more of them would take much memory."""

_WITHOUT_ARROW = frozenset(
    {"bignum", "bit", "geometry", "time with time zone", "uhugeint", "variant"}
)
"""Types that Arrow has not: DuckDB would hand on other values, or bytes of its own."""

_NESTED = frozenset({"array", "list", "map", "struct", "union"})


def answer(connection: Any, query: str, path: Path) -> KeptRows:
    """Run a query that was looked at, and keep its rows; see `keep` for `path`.

    Raises UsageError for a column without an Arrow type, DuckDB's errors, and OSError with the text
    of such an error once rows have come.
    """
    import duckdb

    try:
        found = connection.sql(query)
    except (duckdb.BinderException, duckdb.CatalogException):
        # Nothing ran yet; asked in this way, DuckDB says the position, too.
        connection.execute(query)
        raise
    _require_arrow_types(found.columns, found.types)
    reader = found.to_arrow_reader(BATCH_ROWS)
    return keep(reader.schema, _interruptible(connection, reader), path)


def _interruptible(connection: Any, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="eventlog-sql") as pool:
        while True:
            pending = pool.submit(next, reader, None)
            try:
                batch = pending.result()
            except BaseException:
                if not pending.done():
                    connection.interrupt()
                raise
            if batch is None:
                return
            yield batch


def _require_arrow_types(names: Sequence[str], types: Sequence[Any]) -> None:
    for name, kind in zip(names, types, strict=True):
        found = next((part for part in _parts(kind) if part.id in _WITHOUT_ARROW), None)
        if found is not None:
            raise UsageError(
                f"column {name!r} of the result has values of type {found}, which Arrow has not",
                hint="cast them to text in the query: col::VARCHAR",
            )


def _parts(kind: Any) -> Iterator[Any]:
    """A type of DuckDB, and those that it is made of."""
    yield kind
    if kind.id in _NESTED:
        for _, child in kind.children:
            if hasattr(child, "id"):  # An array's size stands beside its type.
                yield from _parts(child)
