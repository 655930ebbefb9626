"""The publications of a source: what the server sends of which tables (D13).

::

    eventlog_<source>            insert, update, delete, truncate    tables whose updates pass
    eventlog__inserts_<source>   insert, truncate                    tables without an identity

An UPDATE or DELETE on a published table without replica identity is refused at the source, hence
the second one, whose name no source's first one can have: sources' names begin with a letter. Both
are made, empty if need be, before the slot: a publication that comes later than the slot's
consistent point makes it fail for ever. A source keeps the names that its state holds.

Members are named one by one: a table's inheritance children are tables of their own (`ONLY`), and
a column list is the user's. From 18 on stored generated columns are sent. A publication that the
user gave is read and never altered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import LiteralString

from psycopg import sql

from cdc.errors import MissingPublication, PermissionMissing, ServerNotReady
from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated
from cdc.postgres.publishing.column_list import require_publishable
from cdc.postgres.publishing.members import alter, change, expect, member, named_now, run, surely
from cdc.postgres.schema.catalog import Table, tables_by_oid, with_columns
from cdc.postgres.schema.sent import sent_by
from eventlog.errors import UsageError

_IDENTIFIER_BYTES_MAX = 63
_FEW = frozenset({"insert", "truncate"})
_ALL = _FEW | {"update", "delete"}

_GENERATED_VERSION = 180_000
"""The server_version_num that brought `publish_generated_columns`."""

_GENERATED: LiteralString = "publish_generated_columns = stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A publication as it stands; `row_filters` are SQL conditions by relation id.

    The `columns` of its tables are those that it sends, `listed` where it has a list of them.
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
    return _checked(f"eventlog__inserts_{source}", source)


def names_of(source: str) -> tuple[str, str]:
    """Both publications of a new source."""
    return publication_name(source), inserts_publication_name(source)


def ensure_both(conn: Connection, source: str, tables: Sequence[Table]) -> tuple[str, str]:
    """Make both publications of a source send exactly these tables; returns their names.

    Raises PermissionMissing with the SQL that a DBA would run, and the refusals of
    `column_list.require_publishable`.
    """
    names = names_of(source)
    require_publishable(conn, tables)
    absent = [name for name in names if not is_there(conn, name)]

    def ensured() -> None:
        updatable, others = _parted(named_now(conn, tables))
        _ensure(conn, names[0], updatable, _ALL)
        _ensure(conn, names[1], others, _FEW)

    try:
        surely(conn, ensured)
    except PermissionMissing as error:
        if len(absent) < len(names):
            raise
        # Both at once: a DBA should be asked once.
        updatable, others = _parted(tables)
        made = [_create(conn, names[0], updatable, _ALL), _create(conn, names[1], others, _FEW)]
        statements = " ".join(f"{statement.as_string(conn)};" for statement in made)
        hint = f"a DBA, or the tables' owner, runs: {statements}"
        raise PermissionMissing(str(error), hint=hint) from error
    return names


def _ensure(conn: Connection, name: str, tables: Sequence[Table], operations: Set[str]) -> None:
    """Make the publication send exactly these tables, creating or altering it if it must change.

    Raises PermissionMissing with the SQL that a DBA would run; ServerNotReady if a publication of
    that name is there and sends other operations.
    """
    present = _head(conn, name)
    if present is None:
        run(conn, _create(conn, name, tables, operations), name)
        expect(conn, name, {table.oid for table in tables})
        return
    if present.all_tables or present.operations != operations or not present.via_partition_root:
        sends = ", ".join(sorted(present.operations)) or "nothing"
        raise ServerNotReady(
            f"the publication {name!r} is there and differs: it sends {sends}",
            hint=f"if nothing uses it: {_drop(name).as_string(conn)}; or choose another source's "
            "name",
        )
    if not present.generated and conn.info.server_version >= _GENERATED_VERSION:
        run(conn, alter(name, "SET ({})", sql.SQL(_GENERATED)), name)
    change(conn, name, {table.oid: member(table) for table in tables}, dropping=None)


def add(conn: Connection, names: Sequence[str], tables: Sequence[Table]) -> list[Table]:
    """Let a source's publications send these tables too, each in the one that its identity allows.

    `names` are the two of the source's state. A table whose identity came or went is moved, one
    whose column list changed gets the new one. Returns the tables for which something changed.
    Raises like `ensure_both`, and MissingTable for a table that is gone.
    """
    require_publishable(conn, tables)

    def added() -> set[int]:
        changed: set[int] = set()
        for name, here in zip(names, _parted(named_now(conn, tables)), strict=True):
            wanted = {table.oid: member(table) for table in here}
            elsewhere = {table.oid for table in tables} - wanted.keys()
            changed |= change(conn, name, wanted, dropping=elsewhere)
        return changed

    changed = surely(conn, added)
    return [table for table in tables if table.oid in changed]


def remove(conn: Connection, names: Sequence[str], oids: Sequence[int]) -> None:
    """Let a source's publications send these relations no more; those that are gone are no matter.

    Raises PermissionMissing with the SQL that a DBA would run.
    """

    def removed() -> None:
        for name in names:
            change(conn, name, {}, dropping=oids)

    surely(conn, removed)


def read(conn: Connection, name: str) -> Publication:
    """A publication and the tables it sends. Raises MissingPublication."""
    head = _head(conn, name)
    if head is None:
        raise MissingPublication(
            f"there is no publication {name!r} in database {conn.info.dbname!r}",
            hint="list the publications with \\dRp in psql, or leave --publication out",
        )
    found = sent_by(conn, name)
    known = tables_by_oid(conn, [sent.relation for sent in found])
    tables = [
        known[sent.relation]
        if sent.columns is None
        else replace(with_columns(known[sent.relation], sent.columns), listed=sent.listed)
        for sent in found
        if sent.relation in known
    ]
    return Publication(
        name=name,
        all_tables=head.all_tables,
        operations=head.operations,
        via_partition_root=head.via_partition_root,
        tables=tuple(sorted(tables, key=lambda table: (table.schema, table.name))),
        row_filters={sent.relation: sent.where for sent in found if sent.where},
    )


def is_there(conn: Connection, name: str) -> bool:
    """Whether there is a publication of that name."""
    return _head(conn, name) is not None


def drop(conn: Connection, name: str) -> bool:
    """Drop the publication; False if it was not there."""
    if not is_there(conn, name):
        return False
    run(conn, _drop(name), name)
    return True


@dataclass(frozen=True, slots=True)
class _Head:
    all_tables: bool
    operations: frozenset[str]
    via_partition_root: bool
    generated: bool


def _parted(tables: Sequence[Table]) -> tuple[list[Table], list[Table]]:
    return [t for t in tables if t.updatable], [t for t in tables if not t.updatable]


def _head(conn: Connection, name: str) -> _Head | None:
    with translated(f"reading the publication {name!r}"):
        # As JSON, because columns of this catalog differ between versions.
        row = conn.execute(
            "select puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,"
            " coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false)"
            " from pg_publication p where pubname = %s",
            [name],
        ).fetchone()
    if row is None:
        return None
    verbs = zip(("insert", "update", "delete", "truncate"), row[1:5], strict=True)
    return _Head(row[0], frozenset(verb for verb, sent in verbs if sent), row[5], row[6])


def _create(
    conn: Connection, name: str, tables: Sequence[Table], operations: Set[str]
) -> sql.Composed:
    parts: list[sql.Composable] = [sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name))]
    if tables:
        members = sql.SQL(", ").join(member(table).clause for table in tables)
        parts.append(sql.SQL("FOR TABLE {}").format(members))
    ordered = [verb for verb in ("insert", "update", "delete", "truncate") if verb in operations]
    generated = conn.info.server_version >= _GENERATED_VERSION
    parts.append(
        sql.SQL("WITH (publish = {}, publish_via_partition_root = true{})").format(
            sql.Literal(", ".join(ordered)), sql.SQL(f", {_GENERATED}" if generated else "")
        )
    )
    return sql.SQL(" ").join(parts)


def _drop(name: str) -> sql.Composed:
    return sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name))


def _checked(name: str, source: str) -> str:
    if len(name.encode()) > _IDENTIFIER_BYTES_MAX:
        raise UsageError(
            f"the source name {source!r} makes a publication name above 63 bytes",
            hint="choose a shorter source name, of 45 characters at most",
        )
    return name
