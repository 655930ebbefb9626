"""What `doctor` reads from a server before it judges: facts, without an opinion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from cdc.errors import CaptureError, MissingTable
from cdc.postgres.connection import Connection, connect_replication
from cdc.postgres.faults import translated
from cdc.postgres.privacy import hashing
from cdc.postgres.publishing import column_list
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import PassedOver, Table
from cdc.postgres.schema.table_spec import ColumnName, TableSpec
from eventlog.changes.table_name import TableName
from eventlog.errors import UsageError

MANAGED_REPLICATION_ROLES = ("rds_replication",)
"""Roles by which managed services let a user replicate who has no REPLICATION attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFact:
    """A slot that nothing streams from, and the WAL that the server keeps for it."""

    name: str
    wal_status: str | None
    retained_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFact:
    """What the present role may do with a table, and what of it would be stored.

    `select`: it may read all that a copy reads, by a grant of the table or of columns. Where it may
    read a part, `lacking` has the other columns by relation, partitions' too, `ctid` among them, by
    which a table is copied in parts; `*` for all of a relation. `candidate` could serve as replica
    identity. Of the table's columns a hash is stored for `hashed`, and nothing for `left_out`.
    `refusal`: why its list of columns cannot be published.
    """

    table: Table
    owner: str
    owner_is_superuser: bool = False
    owned: bool
    usage: bool
    select: bool
    row_security: bool
    candidate: str | None
    hashed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    refusal: CaptureError | None = None
    lacking: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A server, a role on it and the tables asked for.

    `replication_fault` is why no replication connection could be made, None if one was. Times are
    in ms and 0 means "never"; `idle_slot_timeout_ms` is None where the server has no such limit.
    `slot_wal_keep_mb` is -1 for "without limit". `missing`: what was asked for and is not there.
    """

    version: int
    database: str
    user: str
    wal_level: str
    standby: bool
    may_replicate: bool
    may_create: bool
    replication_fault: CaptureError | None
    slots_used: int
    slots_max: int
    senders_used: int
    senders_max: int
    wal_sender_timeout_ms: int
    idle_slot_timeout_ms: int | None
    slot_wal_keep_mb: int
    inactive_slots: tuple[SlotFact, ...]
    tables: tuple[TableFact, ...]
    missing: tuple[CaptureError | UsageError, ...]
    passed_over: tuple[PassedOver, ...]


def gather(
    dsn: str,
    conn: Connection,
    names: Sequence[TableName | TableSpec],
    hashes: Sequence[str] = (),
) -> Facts:
    """Read the facts; makes a replication connection for a moment, and changes nothing.

    `hashes` name the columns to hash.
    """
    tables, missing = _resolved(conn, names, hashes)
    fault = _replication_fault(dsn)
    with translated("reading the server's settings"):
        settings: dict[str, str] = dict(conn.execute(_SETTINGS).fetchall())
        row = conn.execute(_ROLE, {"roles": list(MANAGED_REPLICATION_ROLES)}).fetchone()
        used = conn.execute(_USED).fetchone()
        slots = conn.execute(_INACTIVE_SLOTS).fetchall()
    assert row is not None and used is not None
    idle = settings.get("idle_replication_slot_timeout")
    return Facts(
        version=conn.info.server_version,
        database=conn.info.dbname,
        user=conn.info.user,
        wal_level=settings["wal_level"],
        standby=row[0],
        may_replicate=row[1],
        may_create=row[2],
        replication_fault=fault,
        slots_used=used[0],
        slots_max=int(settings["max_replication_slots"]),
        senders_used=used[1],
        senders_max=int(settings["max_wal_senders"]),
        wal_sender_timeout_ms=int(settings["wal_sender_timeout"]),
        idle_slot_timeout_ms=None if idle is None else int(idle) * 1000,
        slot_wal_keep_mb=int(settings["max_slot_wal_keep_size"]),
        inactive_slots=tuple(
            SlotFact(name=name, wal_status=status, retained_bytes=retained)
            for name, status, retained in slots
        ),
        tables=_table_facts(conn, tables, hashes),
        missing=tuple(missing),
        passed_over=tuple(catalog.passed_over(conn, names)),
    )


def _resolved(
    conn: Connection, names: Sequence[TableName | TableSpec], hashes: Sequence[str]
) -> tuple[dict[int, Table], list[CaptureError | UsageError]]:
    """The tables that are there, and each error of what is not."""
    found: list[TableName | TableSpec] = []
    tables: list[Table] = []
    missing: list[CaptureError | UsageError] = []
    for name in names:
        try:
            tables = catalog.resolve_tables(conn, [*found, name])
        except (MissingTable, UsageError) as error:
            missing.append(error)
        else:
            found.append(name)
    for column in hashes:
        try:
            hashing.require_present([column], tables)
        except (MissingTable, UsageError) as error:
            missing.append(error)
    return {table.oid: table for table in tables}, missing


_SETTINGS = """
select name, setting from pg_settings
 where name in ('wal_level', 'max_replication_slots', 'max_wal_senders', 'wal_sender_timeout',
                'idle_replication_slot_timeout', 'max_slot_wal_keep_size')
"""

_ROLE = """
select pg_is_in_recovery(),
       r.rolsuper or r.rolreplication or exists (
           select from pg_roles m
            where m.rolname = any(%(roles)s) and pg_has_role(current_user, m.oid, 'usage')),
       has_database_privilege(current_database(), 'create')
  from pg_roles r where r.rolname = current_user
"""

_USED = """
select (select count(*)::int from pg_replication_slots),
       (select count(*)::int from pg_stat_replication)
"""

_INACTIVE_SLOTS = """
select slot_name, wal_status,
       case when pg_is_in_recovery() then 0 else
           coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8 end
  from pg_replication_slots where not active order by slot_name
"""

_TABLES = """
select c.oid::int8, o.rolname, o.rolsuper, pg_has_role(c.relowner, 'usage'),
       has_schema_privilege(c.relnamespace, 'usage'),
       (c.relrowsecurity and not r.rolsuper and not r.rolbypassrls
           and (c.relforcerowsecurity or not pg_has_role(c.relowner, 'usage'))),
       (select x.relname from pg_index i join pg_class x on x.oid = i.indexrelid
         where i.indrelid = c.oid and i.indisunique and i.indimmediate and i.indisvalid
           and i.indpred is null and i.indexprs is null
           and not exists (
               select from pg_attribute a where a.attrelid = c.oid and not a.attnotnull
                  and a.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1]))
         order by i.indisprimary desc, x.relname limit 1)
  from pg_class c join pg_roles o on o.oid = c.relowner
  cross join (select * from pg_roles where rolname = current_user) r
 where c.oid = any(%s)
"""


_COLUMNS = """
select attrelid::int8, array_agg(attname::text order by attnum)
  from pg_attribute where attrelid = any(%s) and attnum > 0 and not attisdropped group by attrelid
"""


# What a copy reads: the rows' places in each leaf, and columns there and in the root.
_READABLE = """
with recursive tree as (
    select oid as root, oid from pg_class where oid = any(%s)
    union all
    select t.root, i.inhrelid from tree t join pg_inherits i on i.inhparent = t.oid
      join pg_class c on c.oid = i.inhrelid and c.relispartition
)
select t.root::int8, n.nspname, c.relname, a.attname,
       has_column_privilege(c.oid, a.attnum, 'select')
  from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace
  join pg_attribute a on a.attrelid = c.oid and not a.attisdropped
   and (a.attnum > 0 or (a.attnum = -1 and c.relkind = 'r'))
 order by t.root, t.oid, a.attnum
"""


def _lacking(conn: Connection, tables: dict[int, Table]) -> dict[int, dict[str, list[str]]]:
    """By table and relation, which of the columns that a copy reads the role may not read.

    A relation of which nothing may be read has the one entry `*`.
    """
    with translated("reading the privileges on the columns"):
        rows = conn.execute(_READABLE, [list(tables)]).fetchall()
    wanted: dict[tuple[int, str], list[tuple[str, bool]]] = {}
    for root, schema, name, column, readable in rows:
        if column == "ctid" or column in tables[root].columns:
            table = str(TableName(schema=schema, name=name))
            wanted.setdefault((root, table), []).append((column, readable))
    found: dict[int, dict[str, list[str]]] = {}
    for (root, table), columns in wanted.items():
        closed = [column for column, readable in columns if not readable]
        if closed:
            whole = len(closed) == len(columns)
            found.setdefault(root, {})[table] = ["*"] if whole else closed
    return found


def _table_facts(
    conn: Connection, tables: dict[int, Table], hashes: Sequence[str]
) -> tuple[TableFact, ...]:
    columns_to_hash = [ColumnName.parse(text) for text in hashes]
    with translated("reading the privileges on the tables"):
        rows = conn.execute(_TABLES, [list(tables)]).fetchall()
        columns: dict[int, list[str]] = dict(conn.execute(_COLUMNS, [list(tables)]).fetchall())
    identities = column_list.identities(conn, list(tables))
    closed = _lacking(conn, tables)
    facts = []
    for oid, owner, superuser, owned, usage, row_security, candidate in rows:
        table = tables[oid]
        lacking = closed.get(oid, {})
        whole = lacking == {str(table.table): ["*"]}
        facts.append(
            TableFact(
                table=table,
                owner=owner,
                owner_is_superuser=superuser,
                owned=owned,
                usage=usage,
                select=not lacking,
                row_security=row_security,
                candidate=None if candidate is None else _quoted(conn, candidate),
                hashed=tuple(c for c in table.columns if _any(columns_to_hash, table, c)),
                left_out=tuple(c for c in columns.get(oid, ()) if c not in table.columns),
                refusal=column_list.refusal(
                    table,
                    identities.get(oid, column_list.NO_IDENTITY),
                    version=conn.info.server_version,
                ),
                lacking=()
                if whole
                else tuple((name, tuple(columns)) for name, columns in lacking.items()),
            )
        )
    return tuple(sorted(facts, key=lambda fact: (fact.table.schema, fact.table.name)))


def _any(names: Sequence[ColumnName], table: Table, column: str) -> bool:
    return any(n.column == column and n.table.matches(table.schema, table.name) for n in names)


def _quoted(conn: Connection, name: str) -> str:
    return sql.Identifier(name).as_string(conn)


def _replication_fault(dsn: str) -> CaptureError | None:
    try:
        with connect_replication(dsn) as replication:
            catalog.identify(replication)
    except CaptureError as error:
        return error
    return None
