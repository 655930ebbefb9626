"""A replication slot: the server's promise to keep WAL until it is acknowledged.

::

    create ──▶ consistent point, exported snapshot     the copy reads under that snapshot, which
       │                                               lives until the connection's next command
       ▼
    inspect ──▶ reserved │ extended │ unreserved │ lost
       │
       ▼
     drop
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from cdc.errors import (
    PermissionMissing,
    ServerNotReady,
    SlotBlocked,
    SlotExists,
    SlotInUse,
    SlotLost,
    SlotMissing,
)
from cdc.postgres.connection import Connection
from cdc.postgres.faults import failed, translated
from cdc.postgres.protocol.lsn import Lsn
from eventlog.errors import UsageError

PLUGIN = "pgoutput"
LOCK_TIMEOUT_MS = 10_000
"""How long creating a slot waits for each transaction that is still running."""

_NAME_BYTES_MAX = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedSlot:
    """A new slot: changes from `consistent_point` on are sent; `snapshot` shows all before."""

    name: str
    consistent_point: Lsn
    snapshot: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """A slot as the server shows it.

    `wal_status`: reserved, extended (kept beyond max_wal_size), unreserved (may soon be lost) or
    lost. `invalidation_reason` is told from PostgreSQL 17 on. `retained_bytes` is the WAL that the
    server keeps for it.
    """

    name: str
    plugin: str
    database: str
    active: bool
    active_pid: int | None
    temporary: bool
    confirmed_flush_lsn: Lsn | None
    restart_lsn: Lsn | None
    wal_status: str | None
    invalidation_reason: str | None
    retained_bytes: int

    @property
    def lost(self) -> bool:
        return self.wal_status == "lost" or self.invalidation_reason is not None


_PREFIX = "eventlog_"


def slot_name(source: str) -> str:
    """The slot of a source; slots' names know no hyphen."""
    name = f"{_PREFIX}{source.replace('-', '_')}"
    if len(name.encode()) > _NAME_BYTES_MAX:
        raise UsageError(
            f"the source name {source!r} makes a slot name above 63 bytes",
            hint="choose a shorter source name, or name the slot with --slot",
        )
    return name


def create(
    replication: Connection,
    name: str,
    *,
    temporary: bool = False,
    export: bool = True,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> CreatedSlot:
    """Create a slot on a walsender's connection.

    With `export` the snapshot is valid until the next command on this connection, or its close.
    Creating waits for every transaction that runs, `lock_timeout_ms` for each at most.

    Raises SlotBlocked naming the transaction, SlotExists, ServerNotReady, PermissionMissing.
    """
    try:
        replication.execute(sql.SQL("SET lock_timeout = {}").format(lock_timeout_ms))
        row = replication.execute(
            _creation(replication, name, temporary=temporary, export=export)
        ).fetchone()
    except psycopg.errors.LockNotAvailable as error:
        blocker = _blocker(replication)
        waited = lock_timeout_ms / 1000
        raise SlotBlocked(
            f"creating the slot {name!r} waited {waited:g} s for {blocker}, and gave up",
            hint="end that transaction, or wait for its end: a slot begins when all older"
            " transactions have ended",
        ) from error
    except psycopg.errors.DuplicateObject as error:
        raise SlotExists(
            f"a replication slot {name!r} is there already",
            hint="choose another name with --slot, or drop it: "
            + _drop_statement(replication, name),
        ) from error
    except psycopg.errors.ConfigurationLimitExceeded as error:
        raise ServerNotReady(
            "all replication slots of the server are in use",
            hint="drop one that is not needed, or a DBA raises max_replication_slots and restarts",
        ) from error
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        raise ServerNotReady(
            f"the server cannot make a logical slot: {error.diag.message_primary}",
            hint="a DBA runs: ALTER SYSTEM SET wal_level = 'logical'; and restarts the server",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise PermissionMissing(
            f"user {replication.info.user!r} may not create a replication slot",
            hint=f"a DBA runs: ALTER ROLE {replication.info.user} REPLICATION;",
        ) from error
    except psycopg.Error as error:
        raise failed(error, f"creating the slot {name!r}") from error
    assert row is not None
    return CreatedSlot(name=row[0], consistent_point=Lsn.parse(row[1]), snapshot=row[2] or None)


def names_like_ours(conn: Connection) -> list[str]:
    """The slots of this database that are named as captures name theirs."""
    with translated("listing the slots"):
        rows = conn.execute(
            "select slot_name::text from pg_replication_slots"
            " where database = current_database() and starts_with(slot_name::text, %s) order by 1",
            [_PREFIX],
        ).fetchall()
    return [row[0] for row in rows]


def inspect(conn: Connection, name: str) -> SlotState | None:
    """The slot's state; None if there is no slot of that name."""
    reason = "invalidation_reason" if conn.info.server_version >= 170_000 else "null"
    with translated(f"reading the slot {name!r}"):
        row = conn.execute(
            "select plugin, database, active, active_pid, temporary, confirmed_flush_lsn::text,"
            f" restart_lsn::text, wal_status, {reason},"
            " case when pg_is_in_recovery() then 0 else"
            " coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8 end"
            " from pg_replication_slots where slot_name = %s",
            [name],
        ).fetchone()
    if row is None:
        return None
    return SlotState(
        name=name,
        plugin=row[0] or "",
        database=row[1] or "",
        active=row[2],
        active_pid=row[3],
        temporary=row[4],
        confirmed_flush_lsn=Lsn.parse(row[5]) if row[5] else None,
        restart_lsn=Lsn.parse(row[6]) if row[6] else None,
        wal_status=row[7],
        invalidation_reason=row[8],
        retained_bytes=row[9],
    )


def require_usable(conn: Connection, name: str) -> SlotState:
    """The state of a slot that can be streamed from now.

    Raises SlotMissing, SlotLost, SlotInUse; ServerNotReady for a slot of another plugin or
    database.
    """
    state = inspect(conn, name)
    if state is None:
        raise _slot_missing(name)
    if state.plugin != PLUGIN or state.database != conn.info.dbname:
        raise ServerNotReady(
            f"the slot {name!r} is of plugin {state.plugin or 'none'!r} in database"
            f" {state.database or 'none'!r}, and capturing needs {PLUGIN!r} in"
            f" {conn.info.dbname!r}",
            hint="choose another name with --slot",
        )
    if state.lost:
        reason = state.invalidation_reason or "wal_removed"
        raise SlotLost(
            f"the server invalidated the slot {name!r} ({reason}): changes since"
            f" {state.confirmed_flush_lsn} are gone",
            hint="drop the source and capture it anew; raise max_slot_wal_keep_size against a"
            " repetition",
        )
    if state.active:
        raise slot_in_use(name, state.active_pid)
    return state


def drop(conn: Connection, name: str) -> None:
    """Drop the slot, which lets the server remove the WAL it kept.

    Raises SlotInUse, SlotMissing, PermissionMissing.
    """
    try:
        conn.execute("select pg_drop_replication_slot(%s)", [name])
    except psycopg.errors.ObjectInUse as error:
        state = inspect(conn, name)
        raise slot_in_use(name, state.active_pid if state else None) from error
    except psycopg.errors.UndefinedObject as error:
        raise _slot_missing(name) from error
    except psycopg.Error as error:
        raise failed(error, f"dropping the slot {name!r}") from error


def slot_in_use(name: str, pid: int | None) -> SlotInUse:
    """The error for a slot that a process streams from."""
    holder = "another process" if pid is None else f"pid {pid} of the server"
    return SlotInUse(
        f"replication slot {name!r} is held by {holder}",
        hint="stop the process that streams from it, or choose another name with --slot",
    )


def _creation(replication: Connection, name: str, *, temporary: bool, export: bool) -> sql.Composed:
    if replication.info.server_version >= 150_000:
        action = "(SNAPSHOT 'export')" if export else "(SNAPSHOT 'nothing')"
    else:
        action = "EXPORT_SNAPSHOT" if export else "NOEXPORT_SNAPSHOT"
    return sql.SQL("CREATE_REPLICATION_SLOT {} {} LOGICAL {} {}").format(
        sql.Identifier(name),
        sql.SQL("TEMPORARY" if temporary else ""),
        sql.SQL(PLUGIN),
        sql.SQL(action),
    )


# pg_locks shows everyone's transactions; pg_stat_activity hides others' from plain users.
_BLOCKERS = """
select l.pid, (select gid from pg_prepared_xacts p where p.transaction = l.transactionid),
       a.usename, a.datname, extract(epoch from now() - a.xact_start)::float8
  from pg_locks l left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
   and l.pid is distinct from pg_backend_pid()
 order by age(l.transactionid) desc limit 1
"""


def _blocker(replication: Connection) -> str:
    """Describe the oldest transaction that runs, which a new slot must wait for."""
    try:
        row = replication.execute(_BLOCKERS).fetchone()
    except psycopg.Error:
        row = None
    if row is None:
        return "a transaction that has ended since"
    pid, gid, user, database, age_s = row
    if pid is None:
        return f"the prepared transaction {gid!r}"
    parts = [f"the transaction of pid {pid}"]
    if user is not None:
        parts.append(f"of user {user!r} in database {database!r}")
    if age_s is not None:
        parts.append(f"which has run for {age_s:.0f} s")
    return ", ".join(parts)


def _slot_missing(name: str) -> SlotMissing:
    return SlotMissing(
        f"there is no replication slot {name!r} on the server",
        hint="check the name and the server; if the slot was dropped, changes since then are lost"
        " to this log: capture the source anew",
    )


def _drop_statement(conn: Connection, name: str) -> str:
    return sql.SQL("SELECT pg_drop_replication_slot({});").format(sql.Literal(name)).as_string(conn)
