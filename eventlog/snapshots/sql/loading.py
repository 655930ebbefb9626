"""Rows of the log as tables of a locked DuckDB, under the paths that a query writes.

======================  ===========================================================
of the log              in the query
======================  ===========================================================
timestamptz             TIMESTAMP WITH TIME ZONE, shown in UTC
decimal over 38 digits  VARCHAR: DuckDB has no such decimal (`cast` makes it float64)
uuid, json, enums       VARCHAR; functions such as `doc->>'$.a'` take it
value of an event       JSON
`_offset` of a row      a first column of captured tables, where the query names it
======================  ===========================================================

Tables are filled piece by piece, so that those larger than memory spill to disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import Unfit, unfit_counts
from eventlog.errors import UsageError
from eventlog.snapshots.sql.naming import Source

if TYPE_CHECKING:
    import pyarrow as pa

_TAKEN = frozenset({"main", "system", "temp"})
_OFFSET = "_offset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How rows are rebuilt: see `Snapshot.table` and `Table.to_arrow`.

    `cast` is by the names of columns, in whichever table they are.
    """

    cast: Mapping[str, str]
    unfit: Unfit
    as_is: bool
    as_inserts: bool
    progress: Callable[[int, int], None] | None


@dataclass(slots=True, kw_only=True)
class Loader:
    """Fills tables of one connection. `unfit` counts what was dropped, by source and column."""

    connection: Any
    terms: Terms
    names: frozenset[str] | None
    unfit: Counter[str] = field(default_factory=Counter)

    def load(self, source: Source, paths: Sequence[Sequence[str]]) -> None:
        """Make the rows of a source known under each of the paths, read once.

        Raises SnapshotRefused, ValueDoesNotFit, UsageError.
        """
        first, *more = [self._target(path) for path in paths]
        made = False
        for piece in self._pieces(source):
            for name, count in unfit_counts(piece).items():
                self.unfit[f"{source.name}.{name}"] += count
            self._store(first, _for_duckdb(piece), source.kind, fresh=not made)
            made = True
        for other in more:
            self.connection.execute(f"CREATE VIEW {other} AS FROM {first}")

    def _store(self, target: str, rows: pa.Table, kind: str, *, fresh: bool) -> None:
        columns = "* REPLACE (value::JSON AS value)" if kind != "table" else "*"
        self.connection.register("__piece", rows)
        head = f"CREATE TABLE {target} AS" if fresh else f"INSERT INTO {target}"
        self.connection.execute(f"{head} SELECT {columns} FROM temp.__piece")
        self.connection.unregister("__piece")

    def _pieces(self, source: Source) -> Iterator[pa.Table]:
        """The rows, at least one piece, which may be empty."""
        snapshot, terms = source.place.snapshot, self.terms
        if source.kind == "events":
            records = snapshot.changes(source.name)
            empty = True
            for batch in records.batches():
                empty = False
                yield batch.to_arrow()
            if empty:
                yield records.to_arrow()
            return
        if source.version is None:
            yield from snapshot.table(source.name).to_batches(offsets=True)
            return
        table = snapshot.table(
            source.name,
            as_inserts=terms.as_inserts and source.version.inserts_only,
            as_is=terms.as_is,
            progress=terms.progress,
        )
        columns, offsets = self._columns(source)
        cast = {name: terms.cast[name] for name in columns if name in terms.cast}
        yield from table.to_batches(columns, cast=cast, unfit=terms.unfit, offsets=offsets)

    def _columns(self, source: Source) -> tuple[list[str], bool]:
        """The columns that the query can mean, and whether it means `_offset`."""
        assert source.version is not None
        own, names = source.version.names, self.names
        chosen = [name for name in own if names is None or name.lower() in names]
        twice = [n for n, count in Counter(map(str.lower, chosen)).items() if count > 1]
        if twice:
            alike = ", ".join(repr(name) for name in chosen if name.lower() == twice[0])
            raise UsageError(
                f"columns {alike} of table {source.version.table} differ by case alone, which SQL "
                "does not tell apart",
                hint="name other columns than these, or take snapshot.table(...).to_arrow()",
            )
        # With whole rows asked for, `*` must mean the table's own columns alone.
        offsets = not chosen or (names is not None and _OFFSET in names)
        return chosen, offsets and _OFFSET not in map(str.lower, chosen)

    def _target(self, path: Sequence[str]) -> str:
        """Make room for a table of that path; returns the path as SQL."""
        catalog = path[0] if len(path) == 3 else "memory"
        if len(path) == 3 and catalog.lower() in _TAKEN:
            raise UsageError(
                f"a stream named {catalog!r} cannot be asked under that name",
                hint=f"give it another: --at s={catalog}@end, or sql(..., s=snapshot)",
            )
        known = {row[0] for row in self.connection.execute(_CATALOGS).fetchall()}
        if catalog not in known:
            self.connection.execute(f"ATTACH ':memory:' AS {_sql(catalog)}")
        schema = f"{_sql(catalog)}.{_sql(path[-2] if len(path) > 1 else 'main')}"
        self.connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        return f"{schema}.{_sql(path[-1])}"


_CATALOGS = "SELECT database_name FROM duckdb_databases()"


def _sql(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _for_duckdb(rows: pa.Table) -> pa.Table:
    """The rows in types that DuckDB has."""
    import pyarrow as pa

    fields = [pa.field(f.name, _known_type(f.type)) for f in rows.schema]
    if all(new.type == old.type for new, old in zip(fields, rows.schema, strict=True)):
        return rows
    return rows.cast(pa.schema(fields))


def _known_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_decimal256(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_known_type(kind.value_type))
    return kind
