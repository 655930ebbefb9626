"""What the server's catalog tells: who the server is, which tables a name means, how they look.

A partitioned table is one table: patterns mean it, not its partitions, and our publications send
the changes of its partitions as its own (`publish_via_partition_root`). A partition that is named
by itself, without its root, is a table of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from cdc.errors import MissingTable, ServerNotReady, UnsupportedServer
from cdc.postgres import catalog_queries as queries
from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated
from cdc.postgres.lsn import Lsn
from eventlog.changes.schema import SourceType
from eventlog.changes.table_name import TableName

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
    updates and deletes does not break them at the source (D13). `columns`: what a copy reads, in
    order.
    `rows_estimate` comes from statistics, None if there are none; `bytes` is its size on disk.
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
    bytes: int

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogColumn:
    """A column in the catalog; `missing` is the text of its fast default, None if it has none."""

    attribute: int
    name: str
    type: int
    typmod: int
    key: bool
    generated: bool
    missing: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRelation:
    """A relation as it stands in the catalog now, and every type that its columns use."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[CatalogColumn, ...]
    types: Mapping[int, SourceType]


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


def resolve_tables(conn: Connection, patterns: Sequence[TableName]) -> list[Table]:
    """The tables that these names and patterns mean, by schema and name, each once.

    Raises MissingTable for a name that is not there or cannot be captured, and for a pattern that
    matches no table.
    """
    relations = list(_relations(conn))
    chosen: dict[int, _Relation] = {}
    for pattern in patterns:
        matching = [r for r in relations if pattern.matches(r.table.schema, r.table.name)]
        usable = [r for r in matching if r.obstacle is None]
        if pattern.is_pattern:
            usable = [r for r in usable if not r.root]
        if not usable:
            raise _missing(pattern, matching, relations)
        chosen.update((r.table.oid, r) for r in usable)
    covered = [r for r in chosen.values() if not chosen.keys() & set(r.ancestors)]
    return sorted((r.table for r in covered), key=lambda table: (table.schema, table.name))


def passed_over(conn: Connection, patterns: Sequence[TableName]) -> list[PassedOver]:
    """What the patterns match and `resolve_tables` leaves out, each with its reason."""
    return [
        PassedOver(schema=r.table.schema, name=r.table.name, reason=r.obstacle)
        for r in _relations(conn)
        if r.obstacle is not None
        and any(p.is_pattern and p.matches(r.table.schema, r.table.name) for p in patterns)
    ]


def tables_by_oid(conn: Connection, oids: Sequence[int]) -> dict[int, Table]:
    """The tables of these relation ids, those that exist."""
    wanted = set(oids)
    return {r.table.oid: r.table for r in _relations(conn) if r.table.oid in wanted}


def describe_relation(conn: Connection, oid: int) -> CatalogRelation:
    """A relation, its columns without the dropped ones, and their types with what these rest on.

    Raises MissingTable if it was dropped.
    """
    with translated(f"reading the catalog about relation {oid}"):
        head = conn.execute(queries.RELATION, [oid]).fetchone()
        columns = conn.execute(queries.COLUMNS, {"oid": oid}).fetchall()
        types = conn.execute(queries.TYPES, [[row[2] for row in columns]]).fetchall()
    if head is None:
        raise MissingTable(
            f"the relation with id {oid} is not in the catalog any more",
            hint="the table was dropped; stop naming it",
        )
    return CatalogRelation(
        oid=oid,
        schema=head[0],
        name=head[1],
        identity=head[2],
        columns=tuple(
            CatalogColumn(
                attribute=attribute,
                name=name,
                type=type_id,
                typmod=typmod,
                key=key,
                generated=generated,
                missing=None if missing is None else _only_element(missing),
            )
            for attribute, name, type_id, typmod, key, generated, missing in columns
        ),
        types={
            row[0]: SourceType(
                id=row[0],
                namespace=row[1],
                name=row[2],
                kind=row[3],
                base=row[4],
                base_typmod=row[5],
                element=row[6],
            )
            for row in types
        },
    )


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
        ancestors, columns, rows_estimate, size = row[8:]
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
                bytes=size,
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


def _only_element(array: str) -> str:
    """The one element of an array's text: `{7}`, `{"a b"}`; quotes and backslashes undone."""
    inner = array[1:-1]
    if not inner.startswith('"'):
        return inner
    result, escaped = [], False
    for character in inner[1:-1]:
        if character == "\\" and not escaped:
            escaped = True
            continue
        result.append(character)
        escaped = False
    return "".join(result)


def with_columns(table: Table, columns: Sequence[str]) -> Table:
    """The table narrowed to the columns that a publication sends, in the table's own order."""
    wanted = set(columns)
    return replace(table, columns=tuple(name for name in table.columns if name in wanted))
