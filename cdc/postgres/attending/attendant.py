"""Looks after the tables of a source while its changes are streamed, on a thread of its own.

::

    every LOOK_S, when the stream describes a table anew,
    and when something was asked for                              a round (`rounds.py`)
    between two rounds                                            one copy at a time, by chunks

What it decides is done by the streaming thread, which alone owns state, schemas and batches. A
fault of one table is told, and tried again later; a fault of the connection makes it new. A table
that somebody else has locked is waited for a moment: then it is told who, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg

from cdc.errors import CaptureError, MissingTable, TableLocked
from cdc.options import Event, Options, Report
from cdc.postgres import locks
from cdc.postgres.attending.link import Link, Stopped
from cdc.postgres.attending.rounds import Rounds
from cdc.postgres.attending.samples import Samples
from cdc.postgres.attending.tables import Tables
from cdc.postgres.connection import Connection, connect
from cdc.postgres.copy import chunks
from cdc.postgres.copy.backfill import Backfill, KeyChanged
from cdc.postgres.copy.copies import is_begun
from cdc.postgres.copy.copying import CopyProgress
from cdc.postgres.copy.throttle import Throttle
from cdc.postgres.copy.watermark import Watermarks
from cdc.postgres.copy.whole_copy import PATIENCE_FIRST_MS, WholeCopy
from cdc.postgres.publishing import membership
from cdc.postgres.publishing.slot import LOCK_TIMEOUT_MS
from cdc.postgres.schema import catalog
from cdc.postgres.schema.describing import describe
from cdc.postgres.streaming import Streamer
from cdc.requests import Fact, FactKind, NewRequests, tell
from eventlog import Log
from eventlog.changes.quantities import counted
from eventlog.errors import EventLogError

LOOK_S = 5.0
SOON_S = 1.0
"""The next round comes so soon where one waits for the stream."""

ASKED_S = 0.25
"""How soon a request is noticed."""

TRY_AGAIN_S = 30.0
"""A table whose copy failed is tried again after so long."""

LOCKED_S = 3.0
"""A copy that had to wait for a lock is taken up again after so long."""

MISSING_S = 0.5
RECONNECT_S = 1.0
CANCEL_S = 0.5


@dataclass(slots=True, kw_only=True)
class _Job:
    """A copy to be done: of which relation, why, for which requests, and not before when."""

    relation: int
    why: str
    requests: tuple[int, ...] = ()
    not_before: float = 0.0
    copy: Backfill | WholeCopy | None = None
    steps: Iterator[None] | None = None
    error: CaptureError | None = None
    said: bool = False
    failures: int = 0


class Attendant:
    """The thread. `start` and `stop` it around the streaming."""

    def __init__(
        self,
        log: Log,
        name: str,
        dsn: str,
        streamer: Streamer,
        known: Samples,
        options: Options,
        *,
        throttle: Throttle,
        progress: Callable[[CopyProgress], None],
        report: Report,
        stopping: Callable[[], bool],
    ) -> None:
        self._name = name
        self._dsn = dsn
        self._streamer = streamer
        self._workers = options.copy_workers
        self._throttle = throttle
        self._progress = progress
        self._report = report
        self._ended = False
        self._fault: BaseException | None = None
        self._round_error: EventLogError | None = None
        self._conn: Connection | None = None
        self._link = Link(streamer, lambda: self._ended or stopping())
        self._watermarks = Watermarks()
        tables = Tables(
            name, self._link, known, copy=self._enqueue, drop_copy=self._drop, report=report
        )
        self._rounds = Rounds(log, name, self._link, options, tables, report)
        self._asked = NewRequests(log, name)
        self._jobs: list[_Job] = []
        self._told: set[str] = set()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, name="attendant", daemon=True)

    def start(self) -> None:
        for relation, cursor in self._streamer.state.copies.items():
            why = "its copy was cut off" if cursor else "its rows are not copied yet"
            self._jobs.append(_Job(relation=int(relation), why=why))
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it is at is given up."""
        self._ended = True
        self._wake.set()
        while self._thread.is_alive():
            self._cancel()
            self._thread.join(CANCEL_S)

    def _cancel(self) -> None:
        """End what the thread may be waiting for at the server."""
        conn = self._conn
        if conn is not None and not conn.closed:
            with contextlib.suppress(psycopg.Error):
                conn.cancel_safe(timeout=CANCEL_S)
        for job in list(self._jobs):
            if isinstance(job.copy, WholeCopy):
                job.copy.cancel()

    @property
    def at_rest(self) -> bool:
        """Whether the last round found nothing, and no copy can go on. Any thread may ask."""
        # A round that was asked for at the moment when the thread came to rest is still to come.
        return self._idle.is_set() and not self._wake.is_set()

    @property
    def failed(self) -> bool:
        """Whether the thread came upon a fault of its own. Any thread may ask."""
        return self._fault is not None

    def require_done(self, *, all_of_it: bool) -> None:
        """Raise what ended the thread; with `all_of_it` also what keeps a copy from being done.

        REQUIRES: stopped.
        """
        if self._fault is not None:
            raise self._fault
        if not all_of_it:
            return
        error = self._round_error
        if error is not None and not (isinstance(error, CaptureError) and error.retry):
            raise error
        for job in self._jobs:
            if job.error is not None and not job.error.retry:
                raise job.error

    def look_soon(self) -> None:
        """Make a round at once: the stream told of something new. Any thread may ask."""
        self._idle.clear()
        self._wake.set()

    def _run(self) -> None:
        try:
            while True:
                self._connected()
                self._link.pause(RECONNECT_S)
        except Stopped:
            return
        except BaseException as error:
            self._fault = error
            self._streamer.wake()

    def _connected(self) -> None:
        """Attend until the connection is lost, or a round fails."""
        try:
            with contextlib.closing(connect(self._dsn)) as conn:
                self._conn = conn
                chunks.steer(conn)
                locks.limit_waiting(conn, ms=locks.WAIT_MS)
                self._attend(conn)
        except EventLogError as error:
            if self._ended:
                raise Stopped from error  # which cancels what runs at the server
            for job in self._jobs:
                job.steps = None
            self._round_error = error
            if not (isinstance(error, CaptureError) and error.retry):
                # What only a person can mend is no reason to wait for a capture's end.
                self._rest()
            if not self._ended:
                self._told_once(f"looking after the tables: {error}; it is tried again")

    def _attend(self, conn: Connection) -> None:
        due = 0.0
        while True:
            self._link.expect_running()
            now = time.monotonic()
            if now >= due or self._wake.is_set() or self._asked.came():
                self._idle.clear()
                self._wake.clear()
                self._round(conn)
                due = time.monotonic() + (SOON_S if self._rounds.unsettled else LOOK_S)
            job = next((job for job in self._jobs if job.not_before <= now), None)
            if job is not None:
                self._advance(conn, job)
            elif not self._wake.is_set():
                # What only a person can mend is no reason to wait for a capture's end.
                settled = self._round_error is None and not self._rounds.unsettled
                if settled and all(job.error and not job.error.retry for job in self._jobs):
                    self._rest()
                self._wake.wait(min(max(due - time.monotonic(), 0.01), ASKED_S))

    def _rest(self) -> None:
        """Tell that nothing is left to do; the stream may wait for nothing else."""
        if not self._idle.is_set():
            self._idle.set()
            self._streamer.wake()

    def _round(self, conn: Connection) -> None:
        try:
            self._rounds.make(conn)
        except TableLocked as error:
            self._idle.clear()
            error = locks.explained(conn, error, self._streamer.state.relations or ())
            self._round_error = error
            text = f"looking after the tables waits for a lock: {error}; the stream goes on"
            self._told_once(text)
        else:
            self._round_error = None

    # Copies

    def _enqueue(self, relation: int, why: str, request: int | None = None) -> None:
        """Have a table copied from the start, also where its copy is under way."""
        self._idle.clear()
        # Who asked for the copy that this one replaces is answered by this one.
        asked = [
            number for job in self._jobs if job.relation == relation for number in job.requests
        ]
        if request is not None:
            asked.append(request)
        self._drop(relation)
        self._jobs.append(_Job(relation=relation, why=why, requests=tuple(asked)))

    def _drop(self, relation: int) -> None:
        """Give up the copy of a table."""
        self._jobs = [job for job in self._jobs if job.relation != relation]

    def _advance(self, conn: Connection, job: _Job) -> None:
        """Do a step of a copy."""
        try:
            if job.steps is None:
                self._begin(conn, job)
            assert job.steps is not None and job.copy is not None
            for _ in job.steps:
                return
            self._finish(job, job.copy)
        except KeyChanged:
            # Another kind of copy is due, at once.
            job.steps = job.copy = None
        except MissingTable as error:
            # The next round finds out whether the table is gone for good, or sends it again.
            job.steps = job.copy = None
            job.not_before = time.monotonic() + MISSING_S
            self._told_once(str(error))
            self.look_soon()
        except TableLocked as error:
            if self._ended:
                raise Stopped from error
            self._put_off(job, locks.explained(conn, error, [job.relation]), LOCKED_S)
        except CaptureError as error:
            if self._ended:
                raise Stopped from error  # which cancels what runs at the server
            if error.retry and conn.closed:
                raise
            self._put_off(job, error, TRY_AGAIN_S)

    def _begin(self, conn: Connection, job: _Job) -> None:
        streamer, link = self._streamer, self._link
        state = streamer.state
        found = catalog.tables_by_oid(conn, [job.relation])
        if job.relation not in found:
            raise MissingTable(
                f"the table with oid {job.relation} is gone", hint="it is copied no more"
            )
        table = found[job.relation]
        if state.publications_ours:
            membership.require_member(conn, state, table)
        # As it is now: a chunk that is placed may not be stored yet, and comes once.
        stored = link.ask(lambda: streamer.copies.cursors.get(job.relation, {}))
        seen = describe(conn, job.relation, state.publications)
        if seen.schema.key_indexes and table.updatable and not state.partial:
            job.copy = Backfill(
                conn,
                link,
                self._watermarks,
                table,
                stored=stored if is_begun(stored) else {},
                slow_down=lambda size: link.pause(self._throttle.pause_s(size)),
                progress=self._progress,
                report=self._report,
            )
        else:
            job.copy = WholeCopy(
                conn,
                self._dsn,
                link,
                self._watermarks,
                table,
                # The server may still hold the one of a capture that was killed a moment ago.
                name=f"{state.slot[:40]}_copy_{secrets.token_hex(4)}",
                patience_ms=min(PATIENCE_FIRST_MS << job.failures, LOCK_TIMEOUT_MS),
                workers=self._workers,
                throttle=self._throttle,
                progress=self._progress,
                report=self._report,
                stopped=lambda: not link.running,
            )
        job.steps, job.error = job.copy.steps(), None
        if job.said:
            return
        job.said = True
        text = f"copying {table.table} beside the stream: {job.why}"
        self._report(Event(kind="copying", text=text, table=str(table.table)))
        self._say(job, "copying", str(table.table))

    def _finish(self, job: _Job, copy: Backfill | WholeCopy) -> None:
        self._jobs = [other for other in self._jobs if other is not job]
        name = str(copy.table.table)
        if isinstance(copy, Backfill):  # a whole copy told so by its progress
            text = f"copied {name}: {counted(copy.rows, 'row')}"
            self._report(Event(kind="copied", text=text, table=name, rows=copy.rows))
        self._say(job, "copied", name, rows=copy.rows)

    def _say(self, job: _Job, fact: FactKind, table: str, *, rows: int | None = None) -> None:
        said = [
            Fact(
                fact=fact,
                table=table,
                relation=job.relation,
                rows=rows,
                why=job.why,
                request=request,
                at=self._streamer.end(),
            )
            for request in job.requests or (None,)
        ]
        self._link.wait(self._link.ask(lambda: self._streamer.change(None, tell(self._name, said))))

    def _put_off(self, job: _Job, error: CaptureError, pause_s: float) -> None:
        job.steps = job.copy = None
        job.error = error
        job.failures += 1
        job.not_before = time.monotonic() + pause_s
        self._told_once(f"a table is not copied yet: {error}")

    def _told_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._report(Event(kind="warning", text=text))
