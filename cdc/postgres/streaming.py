"""When to commit, to stage, to acknowledge: the loop of one replication connection.

::

    read a block ──▶ assemble ──▶ is the committer idle?
        ▲                          ├─ a large open transaction: stage what came of it
        │                          ├─ whole transactions: commit them with their position
        │                          └─ only the position moved: store it, at most every 10 s
        └── acknowledge what is durable, on a timer of its own ◀──┘

One commit is under way at a time and what arrives meanwhile is gathered for the next: commits grow
with the load by themselves (group commit). At `buffer_bytes` the source is made to wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from cdc.committer import Committer
from cdc.options import Event, Options, Report
from cdc.postgres.assembler import Assembler, Flush
from cdc.postgres.libpq import Transport
from cdc.postgres.lsn import Lsn
from cdc.postgres.schema_book import SchemaBook
from cdc.postgres.state import SourceState
from cdc.postgres.wire import status_update
from eventlog.engine import Append, Engine, Plan, SourceUpdate, Writer, now_us

COMMIT_BYTES = 1 << 20
"""So much is committed at once without waiting for more."""

BULK_BYTES_PER_S = 4 << 20
"""Above this rate a commit waits for LINGER_S to gather, and reads for GATHER_S."""

LINGER_S = 0.01
GATHER_S = 0.001
IDLE_READ_S = 0.2
STATUS_S = 5.0
"""A status goes out at least so often: a twelfth of wal_sender_timeout's default."""

ACKNOWLEDGE_S = 0.5
"""A position that moved is acknowledged after so long."""

IDLE_STORE_S = 10.0
REPORT_S = 0.2


class Streamer:
    """Runs one connection to its end. All but commits happens on the thread that calls `run`."""

    def __init__(
        self,
        engine: Engine,
        writer: Writer,
        state: SourceState,
        transport: Transport,
        book: SchemaBook,
        options: Options,
        *,
        wake: Callable[[], None],
        report: Report,
        stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._state = state
        self._transport = transport
        self._assembler = Assembler(book, state.position)
        self._options = options
        self._committer = Committer(wake)
        self._report = report
        self._stopping = stopping
        self._stream = writer.stream.name
        self._next_state = state
        self._acknowledged = Lsn(0)
        self._staged = False
        now = time.monotonic()
        self._waiting_since = now
        self._status_at = self._stored_at = self._reported_at = self._rate_at = now
        self._bulk = False
        self._bytes = 0

    @property
    def rows(self) -> int:
        """Rows received, those of transactions that are not whole yet included."""
        return self._assembler.rows

    def run(self, until: Lsn | None) -> SourceState:
        """Stream until told to stop or until `until` is stored; returns the state then.

        Raises ConnectionLost and what the server answers; what was whole by then is stored.
        """
        self._writer.owner.discard()
        try:
            while not self._stopping() and not (until and self._state.position >= until):
                self._step(until)
            self._drain()
            self._acknowledge(force=True)
        except BaseException:
            self._committer.close()
            raise
        self._committer.close()
        self._tell(force=True)
        return self._state

    def _step(self, until: Lsn | None) -> None:
        assembler = self._assembler
        waiting = assembler.has_complete or assembler.open_bytes > 0
        frames = self._transport.read(
            timeout_s=LINGER_S if waiting and not self._committer.busy else IDLE_READ_S,
            gather_s=GATHER_S if self._bulk else 0.0,
        )
        now = time.monotonic()
        if frames is not None:
            if not assembler.has_complete:
                self._waiting_since = now
            assembler.feed(frames)
            self._bytes += len(frames.data)
        self._measure_rate(now)
        self._settle(timeout_s=0.0)
        if not self._committer.busy:
            self._submit(now, until)
        buffered = assembler.complete_bytes + assembler.open_bytes
        while self._committer.busy and buffered >= self._options.buffer_bytes:
            self._settle(timeout_s=1.0)
            self._acknowledge()
        self._ask_for_keepalive(now, until)
        self._acknowledge()
        self._tell()

    def _measure_rate(self, now: float) -> None:
        elapsed = now - self._rate_at
        if elapsed >= 0.05:
            self._bulk = self._bytes / elapsed > BULK_BYTES_PER_S
            self._bytes, self._rate_at = 0, now

    def _submit(self, now: float, until: Lsn | None) -> None:
        assembler = self._assembler
        if assembler.open_bytes >= self._options.stage_bytes:
            if assembler.has_complete:
                self._commit(assembler.take_complete())
            else:
                batches = assembler.take_open()
                self._committer.submit(lambda: self._writer.owner.stage(batches))
        elif assembler.has_complete:
            enough = assembler.complete_bytes >= COMMIT_BYTES
            if enough or not self._bulk or now - self._waiting_since >= LINGER_S:
                self._commit(assembler.take_complete())
        elif assembler.reached > self._state.position:
            wanted = assembler.reply_requested or (until and assembler.reached >= until)
            if wanted or now - self._stored_at >= IDLE_STORE_S:
                self._commit(assembler.take_complete())

    def _commit(self, flush: Flush) -> None:
        state = replace(self._state, position=flush.position)
        append = Append(
            stream=self._stream,
            batches=flush.batches,
            staged=None if flush.staged_end is None else self._writer.owner.id,
            staged_position=flush.staged_end,
        )
        update = SourceUpdate(
            stream=self._stream,
            writer_epoch=self._writer.epoch,
            state=state.to_map(),
            schemas=flush.schemas,
        )
        appends = [append] if flush.batches or flush.staged_end is not None else []
        plan = Plan(appends=appends, sources=[update])

        def work() -> None:
            self._engine.commit(plan)

        self._next_state = state
        self._committer.submit(work)

    def _settle(self, *, timeout_s: float) -> None:
        if self._committer.busy and self._committer.settle(timeout_s=timeout_s):
            self._state = self._next_state
            self._stored_at = time.monotonic()

    def _drain(self) -> None:
        """Store what is whole, and wait for it."""
        while self._committer.busy or self._assembler.has_complete:
            self._settle(timeout_s=1.0)
            if not self._committer.busy and self._assembler.has_complete:
                self._commit(self._assembler.take_complete())
            self._acknowledge()

    def _acknowledge(self, *, force: bool = False) -> None:
        now = time.monotonic()
        position = self._state.position
        since = now - self._status_at
        moved = position > self._acknowledged and since >= ACKNOWLEDGE_S
        answer = self._assembler.reply_requested and not self._committer.busy
        if force or moved or answer or since >= STATUS_S:
            self._transport.send(status_update(position, position, position, now_us()))
            self._acknowledged = position
            self._status_at = now
            self._assembler.reply_requested = False

    def _ask_for_keepalive(self, now: float, until: Lsn | None) -> None:
        # A server that has nothing to send tells how far it is when it is asked.
        if until and now - self._status_at >= ACKNOWLEDGE_S and not self._committer.busy:
            position = self._state.position
            self._transport.send(status_update(position, position, position, now_us(), reply=True))
            self._acknowledged = position
            self._status_at = now

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._reported_at < REPORT_S:
            return
        self._reported_at = now
        position = self._state.position
        lag = max(int(self._assembler.server_end) - int(position), 0)
        text = f"{self.rows:,} rows, position {position}, {lag:,} bytes behind"
        self._report(
            Event(
                kind="progress",
                text=text,
                rows=self.rows,
                position=str(position),
                lag_bytes=lag,
            )
        )
