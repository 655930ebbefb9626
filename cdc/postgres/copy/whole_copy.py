"""The copy of a table without a key beside the stream: whole, at its consistent point (D12).

::

    wait for the transactions that run ──▶ hold the stream ──▶ temporary slot
                                                                    │ consistent point P,
                                 run up to P ◀──────────────────────┘ exported snapshot
                                      └──▶ copy_begin, all rows, copy_end ──▶ let the stream go on

Without a key nothing tells which copied row a later change means, so every row must stand before
all changes that its snapshot does not see. The server keeps the WAL meanwhile. The stream must be
held before P is known: a stream that went on would be past it by then, and what it has put into the
log stays. The slot waits for all transactions that run, so the hold begins when those are gone that
a look found: it then waits for younger ones only, and for each `patience_ms` at most.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import psycopg

from cdc.errors import TableLocked
from cdc.options import Event, Report
from cdc.postgres.attending.link import Link, Stopped
from cdc.postgres.connection import Connection, connect, connect_replication
from cdc.postgres.copy.chunks import CopyCursor
from cdc.postgres.copy.copies import BEGUN
from cdc.postgres.copy.copying import CopyProgress, copy_tables
from cdc.postgres.copy.snapshot_reader import Job, Snapshot, seeing
from cdc.postgres.copy.throttle import Throttle
from cdc.postgres.copy.watermark import Watermarks
from cdc.postgres.copy.writers import Writing
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.publishing import slot
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.describing import Described, describe
from eventlog.changes.schema import Schema
from eventlog.engine import Batch

RUNNING_LOOK_S = 0.2
RUNNING_TELL_S = 10.0

PATIENCE_FIRST_MS = 1_000
"""How long the held stream waits for each transaction, at the first attempt."""


class _Rewritten(Exception):
    """The table was rewritten after the snapshot, which then shows none of its rows."""


class WholeCopy:
    """The copy of one table, all of it in one step of `steps`."""

    def __init__(
        self,
        conn: Connection,
        dsn: str,
        link: Link,
        watermarks: Watermarks,
        table: Table,
        *,
        name: str,
        patience_ms: int,
        workers: int,
        throttle: Throttle,
        progress: Callable[[CopyProgress], None],
        report: Report,
        stopped: Callable[[], bool],
    ) -> None:
        """`name`: of the temporary slot. `conn` is asked for what runs at the server."""
        self.table = table
        self.rows = 0
        self._conn = conn
        self._dsn = dsn
        self._link = link
        self._watermarks = watermarks
        self._name = name
        self._patience_ms = patience_ms
        self._workers = workers
        self._throttle = throttle
        self._progress = progress
        self._report = report
        self._stopped = stopped
        self._replication: Connection | None = None

    def cancel(self) -> None:
        """End a wait for the slot. Any thread may ask."""
        if self._replication is not None:
            with contextlib.suppress(psycopg.Error):
                self._replication.cancel_safe(timeout=1.0)

    def steps(self) -> Iterator[None]:
        """Do the copy. Raises CaptureError; the stream goes on in any case."""
        while True:
            yield from self._wait_for_running()
            try:
                self._held()
                return
            except _Rewritten:
                yield

    def _wait_for_running(self) -> Iterator[None]:
        """Wait, while the stream goes on, for what the slot would wait for."""
        running = Writing.now(self._conn)
        told = time.monotonic()
        while left := running.left(self._conn):
            if time.monotonic() - told > RUNNING_TELL_S:
                told = time.monotonic()
                text = f"the copy of {self.table.table} waits for the end of {left[0]}"
                self._report(Event(kind="warning", text=text, table=str(self.table.table)))
            self._link.pause(RUNNING_LOOK_S)
            yield

    def _held(self) -> None:
        """Copy the table while the stream is held."""
        assembler = self._link.streamer.assembler
        self._replication = connect_replication(self._dsn)
        try:
            self._link.ask(lambda: assembler.hold(Lsn(0)))
            self._link.until(lambda: assembler.stopped)
            created = slot.create(
                self._replication,
                self._name,
                temporary=True,
                lock_timeout_ms=self._patience_ms,
            )
            assert created.snapshot is not None
            self._copy(Snapshot(name=created.snapshot, position=created.consistent_point))
        finally:
            self._replication.close()
            self._link.streamer.call(assembler.release)

    def _copy(self, snapshot: Snapshot) -> None:
        assembler = self._link.streamer.assembler
        with contextlib.closing(connect(self._dsn)) as conn:
            # A transaction of ours behind the point: so the stream comes there if all else idles.
            self._watermarks.write(conn, self._watermarks.next())
        self._link.ask(lambda: assembler.hold(snapshot.position))
        self._link.until(lambda: assembler.stopped)
        described = self._described(snapshot)
        schema = self._link.ask(lambda: self._adopted(described.schema))
        whole = copy_tables(
            self._dsn,
            snapshot,
            [Job(table=self.table, schema=schema, where=described.where)],
            begun=self._link.streamer.end(),
            store=self._store,
            workers=self._workers,
            throttle=self._throttle,
            gate=self._link.streamer.gate,
            progress=self._progress,
            rewritten=self._refuse,
            waits=self._locked,
            stopped=self._stopped,
        )
        if not whole:
            raise Stopped

    def _described(self, snapshot: Snapshot) -> Described:
        """The table as the snapshot has it, which the stream goes on from."""
        with seeing(self._dsn, snapshot) as conn:
            return describe(conn, self.table.oid, self._link.streamer.state.publications)

    def _adopted(self, schema: Schema) -> Schema:
        book = self._link.streamer.book
        book.adopt(schema)
        adopted = book.schema(schema.relation)
        assert adopted is not None
        return adopted

    def _refuse(self, job: Job) -> None:
        raise _Rewritten

    def _locked(self, job: Job, error: TableLocked) -> None:
        # The stream is held: it must not wait for whoever has the table.
        raise error

    def _store(self, job: Job, batches: list[Batch], cursor: CopyCursor) -> None:
        """Put batches behind all that came before the hold, and wait until they are durable."""
        streamer = self._link.streamer
        self.rows = cursor.rows

        def put() -> Future[None]:
            streamer.book.copy_begins(job.table.oid)
            streamer.assembler.insert(batches)
            # With its copy_begin the table is reset: no older cursor may be taken up behind it.
            if cursor.done:
                streamer.copies.drop(job.table.oid)
            else:
                streamer.copies.put(job.table.oid, BEGUN)
            return streamer.change()

        self._link.wait(self._link.ask(put))
