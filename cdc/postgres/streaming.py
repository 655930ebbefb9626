"""When to commit, to stage, to acknowledge: the loop of one replication connection.

::

    read a block ──▶ assemble ──▶ is the committer idle?
        ▲                          ├─ a large open transaction: stage what came of it
        │                          ├─ whole transactions: commit them with their position
        │                          └─ only the position moved: store it, at most every 10 s
        └── acknowledge what is durable, on a timer of its own ◀──┘

One commit is under way at a time and what arrives meanwhile is gathered for the next: commits grow
with the load by themselves (group commit). At `buffer_bytes` the source is made to wait.

Another thread, which looks after the source's tables, has things done here between two blocks:
`call` runs a function on this thread, `change` alters the state that the next commit stores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from cdc.committer import Committer
from cdc.options import Event, Options, Report
from cdc.postgres.assembler import Assembler
from cdc.postgres.attending.inbox import Inbox
from cdc.postgres.copy.copies import Copies
from cdc.postgres.gathered import Flush
from cdc.postgres.privacy.gate import Gate
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.transport import Transport
from cdc.postgres.protocol.wire import status_update
from cdc.postgres.renaming import Renaming
from cdc.postgres.schema.schema_book import SchemaBook
from cdc.postgres.state import SourceState
from cdc.requests import creation
from eventlog.changes.quantities import counted
from eventlog.engine import Append, Engine, Plan, SourceUpdate, Writer, now_us

Result = TypeVar("Result")

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
        copies: Copies,
        gate: Gate,
        noticed: Callable[[], None],
        wake: Callable[[], None],
        report: Report,
        stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._state = state
        self._transport = transport
        self._book = book
        self._copies = copies
        self._gate = gate
        self._noticed = noticed
        self._assembler = Assembler(book, state.position, copies=copies, gate=gate)
        self._options = options
        self._committer = Committer(wake)
        self.wake = wake
        self._inbox = Inbox(wake)
        self._report = report
        self._stopping = stopping
        self._stream = writer.stream.name
        self._next_state = self._wanted = state
        self._said: list[Append] = []
        self.renaming = Renaming(book)
        self._unstored: list[Future[None]] = []
        self._being_stored: list[Future[None]] = []
        self._acknowledged = Lsn(0)
        self._staged = False
        now = time.monotonic()
        self._waiting_since = now
        self._status_at = self._stored_at = self._reported_at = self._rate_at = now
        self._reported = (-1, state.position, 0)
        self._changes = 0
        self._bulk = False
        self._bytes = 0
        self._under_way = 0

    @property
    def rows(self) -> int:
        """Rows received, those of transactions that are not whole yet included."""
        return self._assembler.rows

    @property
    def changes(self) -> int:
        """Records of the transactions that are stored: what comes again is not among them."""
        return self._changes

    @property
    def state(self) -> SourceState:
        """The state that the next commit will store, but for its position."""
        return self._wanted

    @property
    def position(self) -> Lsn:
        """The stored position. Any thread may ask."""
        return self._state.position

    @property
    def assembler(self) -> Assembler:
        """For the streaming thread alone."""
        return self._assembler

    @property
    def copies(self) -> Copies:
        """For the streaming thread alone, but for what its documentation says."""
        return self._copies

    @property
    def gate(self) -> Gate:
        """For the streaming thread alone."""
        return self._gate

    def end(self) -> int:
        """The stream's end. Any thread may ask."""
        return self._engine.bounds(self._stream)[1]

    def remember(self, *, looked: int) -> None:
        """Note in the state at which offset all was well; the next commit stores it.

        REQUIRES: the streaming thread.
        """
        self._wanted = replace(self._wanted, looked=max(self._wanted.looked, looked))

    @property
    def book(self) -> SchemaBook:
        """For the streaming thread alone."""
        return self._book

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Have `work` done on the streaming thread, between two blocks. Any thread may ask."""
        return self._inbox.put(work)

    def change(
        self, new: Callable[[SourceState], SourceState] | None = None, *said: Append
    ) -> Future[None]:
        """Alter the state, and append what is `said`; done once that is durable.

        REQUIRES: the streaming thread. The commit holds all that is whole by now.
        """
        if new is not None:
            self._wanted = new(self._wanted)
        self._said += said
        stored: Future[None] = Future()
        self._unstored.append(stored)
        return stored

    def run(self, until: Lsn | None, *, settled: Callable[[], bool] = lambda: True) -> SourceState:
        """Stream until told to stop or until `until` is stored; returns the state then.

        With `until` the stream goes on until `settled` says that nothing else is left to do. Raises
        ConnectionLost and what the server answers; what was whole by then is stored.
        """
        self._writer.owner.discard()
        try:
            while not self._stopping() and not (
                until and self._state.position >= until and self._at_rest and settled()
            ):
                self._step(until)
            self._inbox.close()
            self._drain()
            self._acknowledge(force=True)
        except BaseException:
            self._committer.close()
            raise
        finally:
            self._inbox.close()
            self._copies.close()
            for future in (*self._unstored, *self._being_stored):
                future.cancel()
        self._committer.close()
        self._tell(force=True)
        return self._state

    def _step(self, until: Lsn | None) -> None:
        assembler = self._assembler
        frames = None
        if assembler.stopped:
            self._inbox.wait(IDLE_READ_S)
        else:
            waiting = assembler.has_complete or assembler.open_bytes > 0 or self._unstored
            frames = self._transport.read(
                timeout_s=LINGER_S if waiting and not self._committer.busy else IDLE_READ_S,
                gather_s=GATHER_S if self._bulk else 0.0,
            )
        now = time.monotonic()
        # Before what came is taken in: a chunk was put here before its watermark was written.
        self._inbox.run()
        if frames is not None:
            if not assembler.has_complete:
                self._waiting_since = now
            described = assembler.described
            assembler.feed(frames)
            if assembler.described != described:
                self._noticed()
            self._bytes += len(frames.data)
            frames = None  # It may be of a gigabyte, and the commit be waited for below.
        self._measure_rate(now)
        self._settle(timeout_s=0.0)
        if not self._committer.busy:
            self._submit(now, until)
        while self._committer.busy and self._held_bytes >= self._options.buffer_bytes:
            if self._settle(timeout_s=1.0):
                self._submit(now, until)
            self._acknowledge()
        self._ask_for_keepalive(now, until)
        self._acknowledge()
        self._tell()

    @property
    def _held_bytes(self) -> int:
        """Bytes that wait for a commit; and of one under way if it has an uncommonly large row."""
        under_way = max(self._under_way - 2 * self._options.buffer_bytes, 0)
        return self._assembler.complete_bytes + self._assembler.open_bytes + under_way

    def _measure_rate(self, now: float) -> None:
        elapsed = now - self._rate_at
        if elapsed >= 0.05:
            self._bulk = self._bytes / elapsed > BULK_BYTES_PER_S
            self._bytes, self._rate_at = 0, now

    def _submit(self, now: float, until: Lsn | None) -> None:
        assembler = self._assembler
        if assembler.open_bytes >= self._options.stage_bytes:
            if assembler.has_complete or self._unstored:
                self._commit(assembler.take_complete())
            else:
                batches = assembler.take_open()
                self._under_way = sum(batch.body.size for batch in batches)
                self._committer.submit(lambda: self._writer.owner.stage(batches))
        elif assembler.has_complete:
            enough = assembler.complete_bytes >= COMMIT_BYTES
            if enough or not self._bulk or now - self._waiting_since >= LINGER_S:
                self._commit(assembler.take_complete())
        elif self._unstored:
            self._commit(assembler.take_complete())
        elif assembler.reached > self._state.position:
            wanted = assembler.reply_requested or (until and assembler.reached >= until)
            if wanted or now - self._stored_at >= IDLE_STORE_S:
                self._commit(assembler.take_complete())

    def _commit(self, flush: Flush) -> None:
        state = replace(self._wanted, position=flush.position)
        if flush.cursors is not None:
            copies = {str(relation): cursor for relation, cursor in flush.cursors.items()}
            state = replace(state, copies=copies)
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
        self._under_way = append.bytes
        renamed = Append(stream=self._stream, batches=self.renaming.take(self._state.position))
        appends = [each for each in (renamed, append) if each.batches or each.staged is not None]
        plan = Plan(appends=[*appends, *self._said], sources=[update])
        if self._said:
            plan.create = creation(self._stream)

        if self._assembler.doubts:
            self._noticed()  # The round that the description led to may have been made before.
        whole = self._assembler.whole

        def work() -> None:
            relieved = self._writer.relieved
            plan.appends = [relieved(each) if each is append else each for each in plan.appends]
            self._engine.commit(plan)
            # Counted here: a lost connection ends the streamer, not the commit.
            self._changes = whole

        self._next_state = self._wanted = state
        self._being_stored, self._unstored, self._said = self._unstored, [], []
        self._committer.submit(work)

    def _settle(self, *, timeout_s: float) -> bool:
        """Take note of the end of a commit, for which it is waited; False if none ended."""
        if not self._committer.busy or not self._committer.settle(timeout_s=timeout_s):
            return False
        self._under_way = 0
        self._state = self._next_state
        self._stored_at = time.monotonic()
        stored, self._being_stored = self._being_stored, []
        for future in stored:
            future.set_result(None)
        return True

    @property
    def _at_rest(self) -> bool:
        """Whether there is nothing to store."""
        return not self._assembler.has_complete and not self._unstored

    def _drain(self) -> None:
        """Store what is whole, and wait for it."""
        while self._committer.busy or not self._at_rest:
            self._settle(timeout_s=1.0)
            if not self._committer.busy and not self._at_rest:
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
        if not force and (self.rows, position, lag) == self._reported:
            return
        self._reported = self.rows, position, lag
        text = f"{counted(self.rows, 'row')}, position {position}, {counted(lag, 'byte')} behind"
        self._report(
            Event(
                kind="progress",
                text=text,
                rows=self.rows,
                position=str(position),
                lag_bytes=lag,
            )
        )
