"""Which lists of columns a publication may hold without breaking the application (D13).

An UPDATE or DELETE fails at the source if the publication's list lacks a column of the table's
replica identity, and under REPLICA IDENTITY FULL whatever the list is. Of a partitioned table the
identity is that of each partition, by the names of its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cdc.errors import CaptureError, ServerNotReady, UnsupportedServer
from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated
from cdc.postgres.schema.catalog import Table
from eventlog.changes.table_name import quoted

LISTS_VERSION = 150_000
"""The server_version_num that brought column lists."""

_IDENTITIES = """
with recursive tree as (
    select oid as root, oid as leaf from pg_class where oid = any(%s)
    union all
    select root, inhrelid from tree join pg_inherits on inhparent = leaf
      join pg_class c on c.oid = inhrelid where c.relispartition
)
select t.root::int8, bool_or(c.relreplident = 'f'),
       coalesce(array_agg(distinct a.attname::text) filter (where a.attname is not null), '{}')
  from tree t join pg_class c on c.oid = t.leaf
  left join pg_index i on i.indrelid = c.oid and i.indisvalid and (
      (c.relreplident = 'd' and i.indisprimary and i.indimmediate)
      or (c.relreplident = 'i' and i.indisreplident))
  left join pg_attribute a on a.attrelid = c.oid
   and a.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1])
 group by t.root
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The columns of a table's replica identity, by name; `full`: all of them, of some part."""

    full: bool = False
    columns: frozenset[str] = frozenset()


NO_IDENTITY = Identity()


def identities(conn: Connection, oids: Sequence[int]) -> dict[int, Identity]:
    """The replica identities of these tables, their partitions' included."""
    with translated("reading the tables' replica identities"):
        rows = conn.execute(_IDENTITIES, [list(oids)]).fetchall()
    return {oid: Identity(full=full, columns=frozenset(names)) for oid, full, names in rows}


def refusal(table: Table, identity: Identity, *, version: int) -> CaptureError | None:
    """Why this table's list of columns must not be published; None if it may, or has no list.

    `version` is the server_version_num.
    """
    if not table.listed:
        return None
    if version < LISTS_VERSION:
        return UnsupportedServer(
            f"columns of {table.table} cannot be left out: that needs PostgreSQL 15, and the "
            f"server is {version // 10_000}",
            hint="hash columns with --hash instead, or upgrade the server",
        )
    if not table.updatable:
        return None
    if identity.full:
        return ServerNotReady(
            f"columns of {table.table} cannot be left out under REPLICA IDENTITY FULL: its updates "
            "and deletes would fail at the source",
            hint="give it a primary key or REPLICA IDENTITY USING INDEX, or hash columns with "
            "--hash instead",
        )
    lacking = sorted(identity.columns - set(table.columns))
    if lacking:
        names = ", ".join(map(quoted, lacking))
        return ServerNotReady(
            f"the columns of {table.table} lack {names} of its replica identity: its updates and "
            "deletes would fail at the source",
            hint=f"add {names} to the list; --hash keeps a key's values from the disk",
        )
    return None


def sendable(conn: Connection, tables: Mapping[int, Table]) -> dict[int, Table]:
    """The tables by oid, `updatable` only where their lists of columns let updates pass.

    A table's identity may become one that its list lacks: then each update fails at the source,
    until only its inserts are published.
    """
    listed = [oid for oid, table in tables.items() if table.listed]
    found = identities(conn, listed) if listed else {}
    version = conn.info.server_version
    return {
        oid: replace(table, updatable=False)
        if refusal(table, found.get(oid, NO_IDENTITY), version=version) is not None
        else table
        for oid, table in tables.items()
    }


def require_publishable(conn: Connection, tables: Sequence[Table]) -> None:
    """Raise the first refusal among these tables: UnsupportedServer or ServerNotReady."""
    listed = [table for table in tables if table.listed]
    if not listed:
        return
    found = identities(conn, [table.oid for table in listed])
    for table in listed:
        identity = found.get(table.oid, NO_IDENTITY)
        error = refusal(table, identity, version=conn.info.server_version)
        if error is not None:
            raise error
