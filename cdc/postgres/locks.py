"""Locks that others hold on tables: how long they are waited for, and who holds them.

An application's long ALTER TABLE or LOCK TABLE keeps a table from being published and copied. A
wait for it has a limit, after which it is told who is waited for, and what needs no such lock goes
on.
"""

from __future__ import annotations

from collections.abc import Collection

import psycopg

from cdc.errors import TableLocked
from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated

WAIT_MS = 2_000
"""How long the attendant waits for a table, while it does nothing else."""

BEGIN_WAIT_MS = 10_000
"""How long the beginning of a capture waits for a table; as long as for a transaction."""

HINT = "wait for the end of the transaction that holds the lock, or end it"

# pg_locks shows everyone's locks; pg_stat_activity hides others' from plain users. Who waits for a
# lock of these kinds keeps later ones waiting as well.
_HOLDERS = """
with recursive tree as (
    select oid from pg_class where oid = any(%(oids)s::oid[])
    union
    select inhrelid from tree join pg_inherits on inhparent = oid
)
select n.nspname, c.relname, l.mode, l.granted, l.pid,
       (select gid from pg_prepared_xacts p
         where l.pid is null and '-1/' || p.transaction::text = l.virtualtransaction),
       to_char(a.xact_start at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')
  from pg_locks l join pg_class c on c.oid = l.relation
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'relation' and l.relation in (select oid from tree)
   and l.database = (select oid from pg_database where datname = current_database())
   and l.mode in ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
                  'ExclusiveLock', 'AccessExclusiveLock')
   and l.pid is distinct from pg_backend_pid()
 order by l.mode = 'AccessExclusiveLock' desc, l.granted desc, a.xact_start
 limit 3
"""

_WORDS = {
    "ShareUpdateExclusiveLock": "SHARE UPDATE EXCLUSIVE",
    "ShareLock": "SHARE",
    "ShareRowExclusiveLock": "SHARE ROW EXCLUSIVE",
    "ExclusiveLock": "EXCLUSIVE",
    "AccessExclusiveLock": "ACCESS EXCLUSIVE",
}


def limit_waiting(conn: Connection, *, ms: int) -> None:
    """Let statements of this session fail with TableLocked that wait longer for a lock."""
    with translated("preparing the session"):
        conn.execute("select set_config('lock_timeout', %s, false)", [str(ms)])


def explained(conn: Connection, error: TableLocked, oids: Collection[int]) -> TableLocked:
    """The error with the transactions that hold locks on these tables, where some still do.

    REQUIRES: no transaction is under way that has failed. The same holders give the same words.
    """
    try:
        found = holders(conn, oids)
    except psycopg.Error:
        return error
    if not found or any(words in str(error) for words in found):
        return error
    return TableLocked(f"{error}: {'; '.join(found)}", hint=error.hint)


def require_open(conn: Connection, oids: Collection[int]) -> None:
    """Raise TableLocked where somebody holds one of these tables for himself alone."""
    with translated("looking for locks on tables"):
        rows = conn.execute(_HOLDERS, {"oids": list(oids)}).fetchall()
    for row in rows:
        if row[2] == "AccessExclusiveLock" and row[3]:
            raise TableLocked(_words(*row), hint=HINT)


def holders(conn: Connection, oids: Collection[int]) -> list[str]:
    """Who holds, or waits for, a lock on these tables that others have to wait for; in words."""
    rows = conn.execute(_HOLDERS, {"oids": list(oids)}).fetchall()
    return [_words(*row) for row in rows]


def _words(
    schema: str,
    table: str,
    mode: str,
    granted: bool,
    pid: int | None,
    gid: str | None,
    since: str | None,
) -> str:
    does = "is locked by" if granted else "is waited for by"
    who = f"pid {pid}" if pid is not None else f"the prepared transaction {gid!r}"
    began = "" if since is None else f", which began at {since} UTC"
    return f"{schema}.{table} {does} {who} ({_WORDS[mode]}){began}"
