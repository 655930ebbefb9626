"""What the server's catalog tells: who the server is, and which tables a name means.

A partitioned table is one table: patterns mean it, not its partitions, and our publications send
the changes of its partitions as its own (`publish_via_partition_root`). A partition that is named
by itself, without its root, is a table of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from cdc.errors import MissingTable, ServerNotReady, UnsupportedServer
from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.schema import catalog_queries as queries
from cdc.postgres.schema.table_spec import TableSpec, as_spec
from eventlog.changes.table_name import TableName, quoted
from eventlog.errors import UsageError

OLDEST_VERSION = 140_000
"""The oldest server_version_num that can be captured: 14 brought pgoutput's `messages`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """Which database cluster it is, and where its WAL ends (D7)."""

    system_id: int
    timeline: int
    wal_position: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSwitch:
    """The place at which a timeline ended, and the next one began."""

    timeline: int
    end: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that can be captured.

    `kind`: r table, p partitioned. `identity`: d primary key, n nothing, f full, i index.
    `has_key`: its identity is a primary key or an index that exists. `updatable`: publishing
    updates and deletes does not break them at the source (D13). `columns`: what may leave the
    source, in order; `listed`: the user chose them, so that columns added later stay out.
    `rows_estimate` comes from statistics, None if there are none.
    """

    oid: int
    schema: str
    name: str
    kind: str
    identity: str
    has_key: bool
    updatable: bool
    columns: tuple[str, ...]
    rows_estimate: int | None
    listed: bool = False

    @property
    def table(self) -> TableName:
        return TableName(schema=self.schema, name=self.name)

    @property
    def identifier(self) -> sql.Identifier:
        """Its name for a statement, quoted."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """A relation that a pattern matches and that cannot be captured, and why."""

    schema: str
    name: str
    reason: str


def server_version(conn: Connection) -> int:
    """The server's version as a number: 150018 is 15.18."""
    return conn.info.server_version


def require_capturable(conn: Connection) -> None:
    """Raise UnsupportedServer or ServerNotReady unless this server can be captured at all."""
    version = server_version(conn)
    if version < OLDEST_VERSION:
        raise UnsupportedServer(
            f"the server is PostgreSQL {version // 10_000}, and 14 is the oldest that is captured",
            hint="upgrade the server",
        )
    with translated("reading the server's settings"):
        row = conn.execute("select current_setting('wal_level'), pg_is_in_recovery()").fetchone()
    wal_level, standby = row or ("", False)
    if wal_level != "logical":
        raise ServerNotReady(
            f"wal_level of the server is {wal_level!r}, and capturing needs 'logical'",
            hint="a DBA runs: ALTER SYSTEM SET wal_level = 'logical'; and restarts the server",
        )
    if standby:
        raise ServerNotReady(
            "the server is a standby, on which no publication can be made",
            hint="connect to the primary",
        )


def identify(replication: Connection) -> ServerIdentity:
    """Ask a walsender who it is."""
    with translated("identifying the server"):
        row = replication.execute("IDENTIFY_SYSTEM").fetchone()
    assert row is not None
    return ServerIdentity(
        system_id=int(row[0]), timeline=int(row[1]), wal_position=Lsn.parse(row[2])
    )


def timeline_history(replication: Connection, timeline: int) -> list[TimelineSwitch]:
    """Where the timelines before `timeline` ended, oldest first; nothing before the first."""
    if timeline <= 1:
        return []
    with translated(f"reading the history of timeline {timeline}"):
        cursor = replication.execute(sql.SQL("TIMELINE_HISTORY {}").format(timeline))
    result = cursor.pgresult
    content = (result.get_value(0, 1) if result else None) or b""
    switches = []
    for line in content.decode("utf-8", "replace").splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) >= 2:
            switches.append(TimelineSwitch(timeline=int(fields[0]), end=Lsn.parse(fields[1])))
    return switches


def resolve_tables(conn: Connection, patterns: Sequence[TableName | TableSpec]) -> list[Table]:
    """The tables that these names and patterns mean, by schema and name, each once.

    A list of columns narrows its table, also where a pattern means that table too. Raises
    MissingTable for a name that is not there or cannot be captured, for a pattern that matches no
    table and for a column that is not there; UsageError for lists that contradict each other.
    """
    relations = list(_relations(conn))
    specs = [as_spec(pattern) for pattern in patterns]
    chosen: dict[int, _Relation] = {}
    named: dict[int, TableSpec] = {}
    for spec in specs:
        pattern = spec.table
        matching = [r for r in relations if pattern.matches(r.table.schema, r.table.name)]
        usable = [r for r in matching if r.obstacle is None]
        if pattern.is_pattern:
            usable = [r for r in usable if not r.root]
        if not usable:
            raise _missing(pattern, matching, relations)
        chosen.update((r.table.oid, r) for r in usable)
        if not pattern.is_pattern:
            oid = usable[0].table.oid
            if named.setdefault(oid, spec).columns != spec.columns:
                raise UsageError(
                    f"{pattern} is given twice, as {named[oid]} and as {spec}",
                    hint="name the table once, with the columns that may be stored",
                )
    tables = []
    for oid, relation in chosen.items():
        columns = named[oid].columns if oid in named else None
        roots = [chosen[above] for above in relation.ancestors if above in chosen]
        if roots and columns is not None:
            raise UsageError(
                f"{named[oid]} is a partition of {roots[-1].table.table}, whose rows are captured "
                "as one table",
                hint=f"give the columns to {roots[-1].table.table} instead",
            )
        if not roots:
            tables.append(relation.table if columns is None else _listed(relation.table, columns))
    return sorted(tables, key=lambda table: (table.schema, table.name))


def tables_now(conn: Connection, specs: Sequence[TableSpec]) -> list[Table]:
    """What these specs mean now, for a source that is captured already, by schema and name.

    What is not there is passed over. A table is never wider than a list of its columns, also where
    some of these are gone, and is left out where none of them is there.
    """
    chosen: dict[int, _Relation] = {}
    allowed: dict[int, set[str]] = {}
    for r in _relations(conn):
        matching = [s for s in specs if s.table.matches(r.table.schema, r.table.name)]
        if r.root:
            matching = [spec for spec in matching if not spec.table.is_pattern]
        if r.obstacle is not None or not matching:
            continue
        chosen[r.table.oid] = r
        lists = [set(spec.columns) for spec in matching if spec.columns is not None]
        if lists:
            allowed[r.table.oid] = set.intersection(*lists)
    tables = []
    for oid, relation in chosen.items():
        table = relation.table
        if oid in allowed:
            table = replace(with_columns(table, list(allowed[oid])), listed=True)
        if (table.columns or not table.listed) and not chosen.keys() & set(relation.ancestors):
            tables.append(table)
    return sorted(tables, key=lambda table: (table.schema, table.name))


def passed_over(conn: Connection, patterns: Sequence[TableName | TableSpec]) -> list[PassedOver]:
    """What the patterns match and `resolve_tables` leaves out, each with its reason."""
    names = [as_spec(pattern).table for pattern in patterns]
    return [
        PassedOver(schema=r.table.schema, name=r.table.name, reason=r.obstacle)
        for r in _relations(conn)
        if r.obstacle is not None
        and any(n.is_pattern and n.matches(r.table.schema, r.table.name) for n in names)
    ]


def tables_by_oid(conn: Connection, oids: Sequence[int]) -> dict[int, Table]:
    """The tables of these relation ids, those that exist."""
    wanted = set(oids)
    return {r.table.oid: r.table for r in _relations(conn) if r.table.oid in wanted}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relation:
    """A row of the listing: a table, the partitioned tables above it, and why it is no use."""

    table: Table
    ancestors: tuple[int, ...]
    obstacle: str | None

    @property
    def root(self) -> int:
        """The topmost partitioned table; 0 for what is no partition."""
        return self.ancestors[-1] if self.ancestors else 0


def _relations(conn: Connection) -> Iterator[_Relation]:
    with translated("listing the tables"):
        rows = conn.execute(queries.RELATIONS).fetchall()
    for row in rows:
        oid, schema, name, kind, persistence, identity, has_key, leaves_fit = row[:8]
        ancestors, columns, rows_estimate = row[8:]
        yield _Relation(
            table=Table(
                oid=oid,
                schema=schema,
                name=name,
                kind=kind,
                identity=identity,
                has_key=has_key,
                updatable=(has_key or identity == "f") and leaves_fit,
                columns=tuple(columns),
                rows_estimate=None if rows_estimate is None else int(rows_estimate),
            ),
            ancestors=tuple(ancestors),
            obstacle=_obstacle(kind, persistence),
        )


def _obstacle(kind: str, persistence: str) -> str | None:
    """Why changes of such a relation are not in the WAL; None if they are."""
    kinds = {"f": "is a foreign table", "v": "is a view", "m": "is a materialized view"}
    if kind in kinds:
        return kinds[kind]
    return {"t": "is a temporary table", "u": "is an unlogged table"}.get(persistence)


def _missing(
    pattern: TableName, matching: Sequence[_Relation], relations: Sequence[_Relation]
) -> MissingTable:
    if matching and not pattern.is_pattern:
        return MissingTable(
            f"{pattern} {matching[0].obstacle}, whose changes the server does not send",
            hint="name the ordinary tables that its rows come from",
        )
    names = {str(r.table.table): r for r in relations if r.obstacle is None}
    near = difflib.get_close_matches(str(pattern), names, n=3, cutoff=0.6)
    same = [text for text, r in names.items() if r.table.name == pattern.name]
    suggestions = list(dict.fromkeys([*same, *near]))[:3]
    cause = f"no table matches {pattern}" if pattern.is_pattern else f"there is no table {pattern}"
    if suggestions:
        return MissingTable(cause, hint=f"did you mean {', '.join(suggestions)}?")
    return MissingTable(cause, hint="list the tables with \\dt *.* in psql; mind the database")


def _listed(table: Table, columns: Sequence[str]) -> Table:
    for column in columns:
        if column not in table.columns:
            raise missing_column(table, column)
    return replace(with_columns(table, columns), listed=True)


def missing_column(table: Table, column: str) -> MissingTable:
    """The error for a column that the table does not have, or that is computed when read."""
    near = difflib.get_close_matches(column, table.columns, n=3, cutoff=0.6)
    listing = ", ".join(map(quoted, near or table.columns))
    return MissingTable(
        f"{table.table} has no column {quoted(column)} that can be captured",
        hint=f"did you mean {listing}?" if near else f"its columns are {listing}",
    )


def with_columns(table: Table, columns: Sequence[str]) -> Table:
    """The table narrowed to the columns that a publication sends, in the table's own order."""
    wanted = set(columns)
    return replace(table, columns=tuple(name for name in table.columns if name in wanted))
