"""The tables of a publication, by oid: statements name them, and names may pass to other tables.

::

    names of now ──▶ ALTER PUBLICATION ... ADD TABLE name ──▶ read back by oid ──▶ commit
         ▲           (which locks the table: it keeps that          │
         │            name until the transaction ends)              │ another table was meant
         └──────────────────────── roll back ◀──────────────────────┘ by that name

Between a look at the catalog and a statement a table may be renamed, dropped and made anew, or
swapped with another. A publication must not send a table that nobody asked for, nor lose one, not
even until the next look. So what a statement did is looked at before it is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import LiteralString, TypeVar

import psycopg
from psycopg import sql

from cdc.errors import MissingTable, PermissionMissing, ServerError
from cdc.postgres.connection import Connection
from cdc.postgres.faults import failed, translated
from cdc.postgres.publishing.column_list import LISTS_VERSION
from cdc.postgres.schema.catalog import Table

Result = TypeVar("Result")

ATTEMPTS = 10
"""A rename falls into the gap between two statements once in a while, never many times in a row."""

_NO_SUCH_NAME = frozenset({"42P01", "3F000", "42704", "42710", "42809", "22023", "42703"})
"""What the server answers where a name is gone, is no member's, a member's already, no table's, or
that of a table without the columns."""

_NAMES = """
select c.oid::int8, n.nspname, c.relname
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = any(%s)
"""

_MEMBERS = """
select c.oid::int8, c.relkind::text, n.nspname, c.relname, {}
  from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
  join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
 where p.pubname = %s
"""

_LISTED = """case when r.prattrs is not null then
    array(select a.attname::text from pg_attribute a
           where a.attrelid = c.oid and a.attnum = any(r.prattrs::int2[])) end,
    r.prqual is not null"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A table of a publication: how it is named in a statement, and what is sent of it.

    `columns` None: all, those added later too.
    """

    name: sql.Composed
    columns: frozenset[str] | None
    filtered: bool = False

    @property
    def clause(self) -> sql.Composed:
        """The table as it is added."""
        if self.columns is None:
            return self.name
        columns = sql.SQL(", ").join(map(sql.Identifier, sorted(self.columns)))
        return sql.SQL("{} ({})").format(self.name, columns)


class _Moved(Exception):
    """A name was another table's when a statement used it."""


def surely(conn: Connection, work: Callable[[], Result]) -> Result:
    """Do `work` in a transaction, again from the start where a name passed to another table.

    REQUIRES: no transaction is open; `work` takes names from `named_now` and `members`. Raises
    ServerError where that goes on and on.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            with translated("altering the publications"), conn.transaction():
                return work()
        except _Moved:
            pass
        except ServerError as error:
            if not left or error.sqlstate not in _NO_SUCH_NAME:
                raise
    raise ServerError(
        "altering the publications: tables are renamed again and again",
        hint="try again when whatever renames them has ended",
    )


def named_now(conn: Connection, tables: Sequence[Table]) -> list[Table]:
    """The tables under the names that they have now. Raises MissingTable for one that is gone."""
    if not tables:
        return []
    with translated("looking at the names of tables"):
        rows = conn.execute(_NAMES, [[table.oid for table in tables]]).fetchall()
    names = {oid: (schema, name) for oid, schema, name in rows}
    for table in tables:
        if table.oid not in names:
            raise MissingTable(
                f"table {table.table} was dropped meanwhile",
                hint="a table that was made anew under its name is another one",
            )
    return [replace(t, schema=names[t.oid][0], name=names[t.oid][1]) for t in tables]


def member(table: Table) -> Member:
    """A table as it is to be sent."""
    columns = frozenset(table.columns) if table.listed else None
    return Member(name=_named(table.kind, table.schema, table.name), columns=columns)


def members(conn: Connection, publication: str) -> dict[int, Member]:
    """The tables that a publication names, by oid, under the names that they have now."""
    details = _LISTED if conn.info.server_version >= LISTS_VERSION else "null::text[], false"
    with translated(f"reading the publication {publication!r}"):
        rows = conn.execute(_MEMBERS.format(details).encode(), [publication]).fetchall()
    return {
        oid: Member(
            name=_named(kind, schema, table),
            columns=None if columns is None else frozenset(columns),
            filtered=filtered,
        )
        for oid, kind, schema, table, columns, filtered in rows
    }


def change(
    conn: Connection,
    publication: str,
    wanted: Mapping[int, Member],
    *,
    dropping: Collection[int] | None,
) -> set[int]:
    """Let a publication send what is wanted, and those of `dropping` no more; None: no others.

    Returns those that changed. REQUIRES: the transaction of `surely`, since a member that changes
    leaves and comes again.
    """
    present = members(conn, publication)
    adding = {
        oid: found
        for oid, found in wanted.items()
        if oid not in present or present[oid].filtered or present[oid].columns != found.columns
    }
    leaving = {
        oid: found
        for oid, found in present.items()
        if oid in adding or (oid not in wanted if dropping is None else oid in dropping)
    }
    if leaving:
        names = sql.SQL(", ").join(found.name for found in leaving.values())
        run(conn, alter(publication, "DROP TABLE {}", names), publication)
        expect(conn, publication, present.keys() - leaving.keys())
    if adding:
        clauses = sql.SQL(", ").join(found.clause for found in adding.values())
        run(conn, alter(publication, "ADD TABLE {}", clauses), publication)
        expect(conn, publication, (present.keys() - leaving.keys()) | adding.keys())
    return adding.keys() | leaving.keys()


def expect(conn: Connection, publication: str, oids: Set[int]) -> None:
    """Have the transaction of `surely` begin anew unless a publication names just these tables."""
    if members(conn, publication).keys() != oids:
        raise _Moved


def alter(publication: str, change: LiteralString, what: sql.Composable) -> sql.Composed:
    """The statement that alters a publication."""
    head = sql.SQL("ALTER PUBLICATION {} ").format(sql.Identifier(publication))
    return head + sql.SQL(change).format(what)


def run(conn: Connection, statement: sql.Composed, publication: str) -> None:
    """Run a statement about a publication. Raises PermissionMissing with what a DBA would run."""
    try:
        conn.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        said = error.diag.message_primary or "permission denied"
        raise PermissionMissing(
            f"user {conn.info.user!r} may not make or alter the publication {publication!r}: "
            f"{said}",
            hint=f"a DBA, or the tables' owner, runs: {statement.as_string(conn)};",
        ) from error
    except psycopg.Error as error:
        raise failed(error, f"making the publication {publication!r}") from error


def _named(kind: str, schema: str, table: str) -> sql.Composed:
    only = sql.SQL("" if kind == "p" else "ONLY ")
    return sql.SQL("{}{}").format(only, sql.Identifier(schema, table))
