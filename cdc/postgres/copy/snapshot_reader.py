"""Reading tables under the snapshot that a slot exported, on several connections at once.

::

    open ──▶ lock, look, first range, unlock       ahead of its turn, where others do not hold it
                │ there is more
                ▼
    hold ──▶ lock, look again ──▶ read, read, ... ──▶ release

Every transaction takes the snapshot over anew and is no longer than what it reads, so that a lock
is held for no longer either: on the files of one table, while that table is read. What changes a
table before or after that is told by the files and columns that it has then. One connection holds
the table. The others read without waiting: where an ALTER TABLE waits for the first, they would
wait for that, and the copy for them, for ever. So they soon let the first one read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from psycopg import IsolationLevel, pq, sql

from cdc.errors import ServerError, TableLocked, TooManyConnections
from cdc.postgres import locks
from cdc.postgres.connection import Connection, connect
from cdc.postgres.copy import chunks
from cdc.postgres.copy.chunks import CopyCursor
from cdc.postgres.copy.crew import Crew, OnlyOn
from cdc.postgres.copy.ranges import Leaf, Range
from cdc.postgres.copy.throttle import Throttle
from cdc.postgres.faults import translated
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.schema.catalog import Table
from eventlog.changes.schema import Schema

UNDEFINED_TABLE = "42P01"

LOCK_TIMEOUT_MS = 200
"""How long a connection waits for a lock that it can do without.

Less than the server's deadlock_timeout: what waits for both ends of a circle is no application.
"""

Waits = Callable[["Job", TableLocked], None]
"""Told of a table that somebody else has locked; what it raises ends the copy."""


COLUMNS = """
select attnum, attname, atttypid, atttypmod from pg_attribute
 where attrelid = %s and attnum > 0 and not attisdropped order by attnum
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of the database that is copied: the name of the exported snapshot, its position."""

    name: str
    position: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A table to copy: under which schema version, and of which rows (SQL; None: of all)."""

    table: Table
    schema: Schema
    where: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A table whose files were found, its first range, and that range's lines.

    `rewritten`: the snapshot does not show it as it is now, and nothing of it was read. `locked`:
    somebody else has it, and nothing is known of it.
    """

    leaves: tuple[Leaf, ...] = ()
    rewritten: bool = False
    locked: bool = False
    first: Range | None = None
    lines: Run | None = None


class SnapshotReader:
    """What the crew does, a call at a time. A table is held before more of it is read."""

    def __init__(
        self,
        crew: Crew,
        snapshot: Snapshot,
        throttle: Throttle,
        present: Connection,
        waits: Waits,
    ) -> None:
        """`present` is a connection that sees the catalog as it is now."""
        self._present = present
        self._crew = crew
        self._snapshot = snapshot
        self._throttle = throttle
        self._waits = waits
        self._holder: Connection | None = None
        # Connections that waited in vain, and for which table.
        self._shut_out: set[tuple[Connection, int]] = set()

    def open(self, job: Job, *, ahead: bool) -> Future[Opened]:
        """Read a table's first range; with `ahead` only if that needs no waiting."""
        return self._crew.submit(lambda conn: self._open(conn, job, ahead=ahead))

    def hold(self, job: Job, opened: Opened) -> Future[bool]:
        """Lock a table's files until `release`; False where they are others than were opened.

        REQUIRES: no table is held.
        """
        return self._crew.submit(lambda conn: self._hold(conn, job, opened))

    def read(self, job: Job, rng: Range, *, any_size: bool = False) -> Future[Run | None]:
        """A range's lines; None where they are too many for one chunk, unless told to take them.

        REQUIRES: held.
        """
        return self._crew.submit(lambda conn: self._read(conn, job, rng, any_size=any_size))

    def release(self) -> Future[None]:
        """Let go of the table that is held."""
        return self._crew.submit(self._release)

    def _open(self, conn: Connection, job: Job, *, ahead: bool) -> Opened:
        while True:
            try:
                with self._seeing(conn, wait_ms=LOCK_TIMEOUT_MS if ahead else locks.WAIT_MS):
                    opened = self._looked(conn, job)
                    if opened.rewritten or not opened.leaves:
                        return opened
                    start = CopyCursor.at_start(opened.leaves, begun=0)
                    first = start.range(opened.leaves, pages=chunks.PAGES_FIRST)
                    lines = self._fetch(conn, job, first, any_size=False)
                    return replace(opened, first=first, lines=lines)
            except TableLocked as error:
                if ahead:
                    return Opened(locked=True)
                self._waits(job, locks.explained(self._present, error, [job.table.oid]))

    def _looked(self, conn: Connection, job: Job) -> Opened:
        """Lock a table's files and compare it with the snapshot."""
        leaves = _locked(conn, job)
        rewritten = chunks.rewritten(conn, leaves) or self._is_other(conn, job)
        return Opened(leaves=leaves, rewritten=rewritten)

    def _hold(self, conn: Connection, job: Job, opened: Opened) -> bool:
        assert self._holder is None
        with translated(f"locking {job.table.table}"):
            conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self._take_over(conn)
        while True:
            try:
                with translated("preparing to copy"), conn.transaction():
                    _limit_waiting(conn, ms=locks.WAIT_MS)
                    found = self._looked(conn, job)
                break
            except TableLocked as error:
                self._waits(job, locks.explained(self._present, error, [job.table.oid]))
        if found.rewritten or not chunks.same_files(opened.leaves, found.leaves):
            conn.rollback()
            return False
        self._holder = conn
        return True

    def _release(self, conn: Connection) -> None:
        if self._holder is None:
            return
        if conn is not self._holder:
            raise OnlyOn(self._holder)
        self._holder = None
        with translated("ending a part of a copy"):
            conn.rollback()

    def _is_other(self, conn: Connection, job: Job) -> bool:
        """Whether the table's columns changed since the snapshot, or since they were described.

        REQUIRES: the table is locked, so that they change no more.
        """
        with translated(f"reading the catalog about {job.table.table}"):
            seen, now = (
                each.execute(COLUMNS, [job.table.oid]).fetchall() for each in (conn, self._present)
            )
        names = {row[1] for row in now}
        return seen != now or not names.issuperset(job.schema.names)

    def _read(self, conn: Connection, job: Job, rng: Range, *, any_size: bool) -> Run | None:
        # What was read before is paid for now, so that no chunk waits for its commit meanwhile.
        self._crew.pause(self._throttle.pause_s(0))
        holder = self._holder
        assert holder is not None
        if (conn, job.table.oid) in self._shut_out:
            raise OnlyOn(holder)
        try:
            with self._seeing(conn, wait_ms=0 if conn is holder else LOCK_TIMEOUT_MS):
                return self._fetch(conn, job, rng, any_size=any_size)
        except TableLocked:
            if conn is holder:
                raise
            self._shut_out.add((conn, job.table.oid))
            raise OnlyOn(holder) from None

    def _fetch(self, conn: Connection, job: Job, rng: Range, *, any_size: bool) -> Run | None:
        copy = chunks.statement(rng, job.schema.names, job.where)
        bytes_max = None if any_size else chunks.BYTES_MAX
        lines = chunks.fetch(conn, copy, bytes_max=bytes_max, doing=f"copying {job.table.table}")
        self._throttle.pause_s((bytes_max or 0) if lines is None else len(lines.data))
        return lines

    @contextmanager
    def _seeing(self, conn: Connection, *, wait_ms: int) -> Iterator[None]:
        """See the snapshot; the locks that are taken meanwhile are let go at the end."""
        whole = conn.info.transaction_status == pq.TransactionStatus.IDLE
        doing = "copying under the slot's snapshot"
        with translated(doing), conn.transaction(force_rollback=True):
            if whole:
                self._take_over(conn)
            _limit_waiting(conn, ms=wait_ms)
            yield

    def _take_over(self, conn: Connection) -> None:
        name = sql.Literal(self._snapshot.name)
        conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(name))


def _limit_waiting(conn: Connection, *, ms: int) -> None:
    """Let statements fail that wait longer for a lock; 0: never."""
    with translated("preparing to copy"):
        conn.execute("select set_config('lock_timeout', %s, true)", [str(ms)])


def _locked(conn: Connection, job: Job) -> tuple[Leaf, ...]:
    """The table's files, under a lock that keeps them from being rewritten.

    REQUIRES: a transaction. Raises TableLocked.
    """
    leaves = chunks.leaves(conn, job.table)
    while True:
        try:
            with translated(f"locking {job.table.table}"), conn.transaction():
                chunks.lock(conn, leaves)
        except ServerError as error:
            if error.sqlstate != UNDEFINED_TABLE:
                raise
        locked = chunks.leaves(conn, job.table)
        # Under the same names as before the lock: so these are locked, and no namesakes of theirs.
        if chunks.same_files(leaves, locked):
            return locked
        leaves = locked


def connections(dsn: str, workers: int, stack: ExitStack) -> list[Connection]:
    """Connections that read: as many as asked for, or as the server has, at least 1."""
    conns: list[Connection] = []
    for _ in range(workers):
        try:
            conn = connect(dsn)
        except TooManyConnections:
            if not conns:
                raise
            break
        stack.callback(conn.close)
        chunks.steer(conn)
        conn.isolation_level = IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        conns.append(conn)
    return conns


@contextmanager
def seeing(dsn: str, snapshot: Snapshot) -> Iterator[Connection]:
    """A connection in a transaction that sees the snapshot."""
    with ExitStack() as stack:
        (conn,) = connections(dsn, 1, stack)
        with translated("using the slot's snapshot"):
            stack.enter_context(conn.transaction(force_rollback=True))
            name = sql.Literal(snapshot.name)
            conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(name))
        yield conn


def server_time_us(conn: Connection) -> int:
    with translated("asking the server for the time"):
        row = conn.execute("select (extract(epoch from clock_timestamp()) * 1e6)::int8").fetchone()
    assert row is not None
    return int(row[0])
