"""The publications of a source: what the server sends of which tables (D13).

::

    eventlog_<source>            insert, update, delete, truncate    tables whose updates pass
    eventlog_<source>_inserts    insert, truncate                    tables without an identity

An UPDATE or DELETE on a published table without replica identity is refused at the source, hence
the second one. Both are made, empty if need be, before the slot: a publication that comes later
than the slot's consistent point makes it fail for ever. A publication that the user gave is read
and never altered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from cdc.errors import MissingPublication, PermissionMissing, ServerNotReady
from cdc.postgres.catalog import Table, tables_by_oid, with_columns
from cdc.postgres.connection import Connection
from cdc.postgres.faults import failed, translated
from eventlog.errors import UsageError

_IDENTIFIER_BYTES_MAX = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A publication as it stands; `row_filters` are SQL conditions by relation id.

    The `columns` of its tables are those that it sends.
    """

    name: str
    all_tables: bool
    operations: frozenset[str]
    via_partition_root: bool
    tables: tuple[Table, ...]
    row_filters: Mapping[int, str]

    @property
    def inserts_only(self) -> bool:
        return not self.operations & {"update", "delete"}


def publication_name(source: str) -> str:
    """The publication of the source's tables whose updates and deletes are captured."""
    return _checked(f"eventlog_{source}", source)


def inserts_publication_name(source: str) -> str:
    """The publication of the source's tables without replica identity."""
    return _checked(f"eventlog_{source}_inserts", source)


def ensure_both(conn: Connection, source: str, tables: Sequence[Table]) -> tuple[str, str]:
    """Make both publications of a source send exactly these tables; returns their names.

    Raises PermissionMissing with the SQL that a DBA would run.
    """
    names = publication_name(source), inserts_publication_name(source)
    with translated("altering the publications"), conn.transaction():
        ensure(conn, names[0], [t for t in tables if t.updatable])
        ensure(conn, names[1], [t for t in tables if not t.updatable], insert_only=True)
    return names


def ensure(
    conn: Connection, name: str, tables: Sequence[Table], *, insert_only: bool = False
) -> None:
    """Make the publication send exactly these tables, creating or altering it if it must change.

    Raises PermissionMissing with the SQL that a DBA would run; ServerNotReady if a publication of
    that name is there and sends other operations.
    """
    operations = {"insert", "truncate"} | (set() if insert_only else {"update", "delete"})
    present = _head(conn, name)
    if present is None:
        _run(conn, _create(name, tables, operations), name)
        return
    if present.all_tables or present.operations != operations or not present.via_partition_root:
        sends = ", ".join(sorted(present.operations)) or "nothing"
        raise ServerNotReady(
            f"the publication {name!r} is there and differs: it sends {sends}",
            hint=f"if nothing uses it: {_text(conn, _drop(name))}; or choose another source name",
        )
    with translated(f"reading the publication {name!r}"):
        rows = conn.execute(_MEMBERS, [name]).fetchall()
    members = {oid: sql.Identifier(schema, table) for oid, schema, table in rows}
    wanted = {table.oid: table.identifier for table in tables}
    for verb, group in (
        ("ADD", [wanted[oid] for oid in wanted if oid not in members]),
        ("DROP", [members[oid] for oid in members if oid not in wanted]),
    ):
        if group:
            statement = sql.SQL("ALTER PUBLICATION {} {} TABLE {}").format(
                sql.Identifier(name), sql.SQL(verb), sql.SQL(", ").join(group)
            )
            _run(conn, statement, name)


def read(conn: Connection, name: str) -> Publication:
    """A publication and the tables it sends. Raises MissingPublication."""
    head = _head(conn, name)
    if head is None:
        raise MissingPublication(
            f"there is no publication {name!r} in database {conn.info.dbname!r}",
            hint="list the publications with \\dRp in psql, or leave --publication out",
        )
    details = "null::text[], null::text"
    if conn.info.server_version >= 150_000:
        details = "p.attnames::text[], p.rowfilter"
    with translated(f"reading the publication {name!r}"):
        rows = conn.execute(
            f"select c.oid::int8, {details} from pg_publication_tables p"
            " join pg_namespace n on n.nspname = p.schemaname"
            " join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename"
            " where p.pubname = %s",
            [name],
        ).fetchall()
    known = tables_by_oid(conn, [oid for oid, _, _ in rows])
    tables = [
        known[oid] if columns is None else with_columns(known[oid], columns)
        for oid, columns, _ in rows
        if oid in known
    ]
    return Publication(
        name=name,
        all_tables=head.all_tables,
        operations=head.operations,
        via_partition_root=head.via_partition_root,
        tables=tuple(sorted(tables, key=lambda table: (table.schema, table.name))),
        row_filters={oid: condition for oid, _, condition in rows if condition},
    )


def drop(conn: Connection, name: str) -> bool:
    """Drop the publication; False if it was not there."""
    if _head(conn, name) is None:
        return False
    _run(conn, _drop(name), name)
    return True


@dataclass(frozen=True, slots=True)
class _Head:
    all_tables: bool
    operations: frozenset[str]
    via_partition_root: bool


_MEMBERS = """
select c.oid::int8, n.nspname, c.relname
  from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
  join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
 where p.pubname = %s
"""


def _head(conn: Connection, name: str) -> _Head | None:
    with translated(f"reading the publication {name!r}"):
        row = conn.execute(
            "select puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot"
            " from pg_publication where pubname = %s",
            [name],
        ).fetchone()
    if row is None:
        return None
    verbs = zip(("insert", "update", "delete", "truncate"), row[1:5], strict=True)
    return _Head(row[0], frozenset(verb for verb, sent in verbs if sent), row[5])


def _create(name: str, tables: Sequence[Table], operations: set[str]) -> sql.Composed:
    parts: list[sql.Composable] = [sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name))]
    if tables:
        members = sql.SQL(", ").join(table.identifier for table in tables)
        parts.append(sql.SQL("FOR TABLE {}").format(members))
    ordered = [verb for verb in ("insert", "update", "delete", "truncate") if verb in operations]
    parts.append(
        sql.SQL("WITH (publish = {}, publish_via_partition_root = true)").format(
            sql.Literal(", ".join(ordered))
        )
    )
    return sql.SQL(" ").join(parts)


def _drop(name: str) -> sql.Composed:
    return sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name))


def _run(conn: Connection, statement: sql.Composed, name: str) -> None:
    try:
        conn.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        said = error.diag.message_primary or "permission denied"
        raise PermissionMissing(
            f"user {conn.info.user!r} may not make or alter the publication {name!r}: {said}",
            hint=f"a DBA, or the tables' owner, runs: {_text(conn, statement)};",
        ) from error
    except psycopg.Error as error:
        raise failed(error, f"making the publication {name!r}") from error


def _text(conn: Connection, statement: sql.Composed) -> str:
    return statement.as_string(conn)


def _checked(name: str, source: str) -> str:
    if len(name.encode()) > _IDENTIFIER_BYTES_MAX:
        raise UsageError(
            f"the source name {source!r} makes a publication name above 63 bytes",
            hint="choose a shorter source name, of 45 characters at most",
        )
    return name
