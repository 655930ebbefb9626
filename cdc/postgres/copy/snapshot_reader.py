"""Reading tables under the snapshot that a slot exported, on several connections at once.

Each connection is in one transaction with that snapshot until the copy's end, which also holds the
locks that keep the tables' files from being rewritten. One connection opens a table, and waits for
its lock as long as it takes. The others do not: where an ALTER TABLE waits for the first, they
would wait for that, and the copy for them, for ever. So they soon let the first one read.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg
from psycopg import sql

from cdc.errors import ServerError, TooManyConnections
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

UNDEFINED_TABLE, LOCK_NOT_AVAILABLE = "42P01", "55P03"

LOCK_TIMEOUT_MS = 200
"""How long a connection waits for locks on a table that another one has opened."""


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
    """A table whose files are locked, its first range, and that range's lines.

    `rewritten`: the snapshot does not show it as it is now, and nothing of it was read.
    """

    leaves: tuple[Leaf, ...]
    rewritten: bool
    first: Range | None = None
    lines: Run | None = None


class SnapshotReader:
    """What the crew does, a call of `open` and `read` at a time."""

    def __init__(self, crew: Crew, throttle: Throttle, present: Connection) -> None:
        """`present` is a connection that sees the catalog as it is now."""
        self._present = present
        self._crew = crew
        self._throttle = throttle
        self._openers: dict[int, Connection] = {}
        # Connections that waited in vain, and for which table.
        self._shut_out: set[tuple[Connection, int]] = set()

    def open(self, job: Job) -> Future[Opened]:
        """Lock a table's files until the end of the copy, and read its first range."""
        return self._crew.submit(lambda conn: self._open(conn, job))

    def read(self, job: Job, rng: Range) -> Future[Run | None]:
        """A range's lines; None where they are too many for one chunk."""
        return self._crew.submit(lambda conn: self._read(conn, job, rng))

    def _open(self, conn: Connection, job: Job) -> Opened:
        self._openers[job.table.oid] = conn
        _limit_waiting(conn, ms=0)
        leaves = _locked(conn, job)
        if chunks.rewritten(conn, leaves) or self._is_other(conn, job):
            return Opened(leaves=leaves, rewritten=True)
        if not leaves:
            return Opened(leaves=leaves, rewritten=False)
        first = CopyCursor.at_start(leaves, begun=0).range(leaves, pages=chunks.PAGES_FIRST)
        lines = self._read(conn, job, first)
        return Opened(leaves=leaves, rewritten=False, first=first, lines=lines)

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

    def _read(self, conn: Connection, job: Job, rng: Range) -> Run | None:
        doing = f"copying {job.table.table}"
        copy = chunks.statement(rng, job.schema.names, job.where)
        bytes_max = None if rng.single else chunks.BYTES_MAX
        lines: Run | None = None
        # What was read before is paid for now, so that no chunk waits for its commit meanwhile.
        self._crew.pause(self._throttle.pause_s(0))
        opener = self._openers[job.table.oid]
        if (conn, job.table.oid) in self._shut_out:
            raise OnlyOn(opener)
        _limit_waiting(conn, ms=0 if conn is opener else LOCK_TIMEOUT_MS)
        try:
            with translated(doing), conn.transaction():
                lines = chunks.fetch(conn, copy, bytes_max=bytes_max, doing=doing)
                if lines is None:
                    raise psycopg.Rollback
        except ServerError as error:
            if error.sqlstate == LOCK_NOT_AVAILABLE and conn is not opener:
                self._shut_out.add((conn, job.table.oid))
                raise OnlyOn(opener) from None
            raise
        self._throttle.pause_s((bytes_max or 0) if lines is None else len(lines.data))
        return lines


def _limit_waiting(conn: Connection, *, ms: int) -> None:
    """Let statements fail that wait longer for a lock; 0: never."""
    with translated("preparing to copy"):
        conn.execute("select set_config('lock_timeout', %s, true)", [str(ms)])


def _locked(conn: Connection, job: Job) -> tuple[Leaf, ...]:
    """The table's files, under a lock that keeps them from being rewritten."""
    leaves = chunks.leaves(conn, job.table)
    while True:
        try:
            with translated(f"locking {job.table.table}"), conn.transaction():
                chunks.lock(conn, leaves)
        except ServerError as error:
            if error.sqlstate != UNDEFINED_TABLE:
                raise
        locked = chunks.leaves(conn, job.table)
        if [(leaf.oid, leaf.filenode) for leaf in leaves] == [
            (leaf.oid, leaf.filenode) for leaf in locked
        ]:
            return locked
        leaves = locked


def connections(dsn: str, snapshot: Snapshot, workers: int, stack: ExitStack) -> list[Connection]:
    """Connections that see the snapshot: as many as asked for, or as the server has, at least 1."""
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
        with translated("using the slot's snapshot"):
            conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            name = sql.Literal(snapshot.name)
            conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(name))
        conns.append(conn)
    return conns


def server_time_us(conn: Connection) -> int:
    with translated("asking the server for the time"):
        row = conn.execute("select (extract(epoch from clock_timestamp()) * 1e6)::int8").fetchone()
    assert row is not None
    return int(row[0])
