"""The capture of one Postgres source: prepare, copy, stream, and again after a fault.

Everything that reaches Postgres as acknowledged was stored by a synced commit before (I5), each
commit holds the changes and the position that covers them (I4), and only whole transactions are
published (I6). What a commit stores is decided in `assembler.py`, when in `streaming.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cdc.errors import CaptureError, SlotInUse
from cdc.options import Event, Options, Outcome, Report
from cdc.postgres import setup
from cdc.postgres.attending.attendant import Attendant
from cdc.postgres.attending.link import Stopped
from cdc.postgres.attending.samples import Samples
from cdc.postgres.beginning import HELD_FIRST_S, HELD_SLOT_S, Beginning
from cdc.postgres.connection import Connection, connect, connect_replication
from cdc.postgres.copy.copying import CopyProgress
from cdc.postgres.copy.throttle import Throttle
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.replication import start_replication
from cdc.postgres.protocol.transport import Transport, Wake
from cdc.postgres.state import Phase, SourceState
from cdc.postgres.streaming import Streamer
from cdc.postgres.taking_up import gate_and_book, taken_up
from eventlog import Log
from eventlog.changes.quantities import counted
from eventlog.engine import Writer, generation
from eventlog.engine.withdrawing import withdraw_stream
from eventlog.errors import EventLogError

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0


class Capture:
    """One run of a capture. `stop` may be called from a signal handler or another thread."""

    def __init__(
        self, log: Log, name: str, dsn: str, options: Options, report: Report = lambda _: None
    ) -> None:
        self._log = log
        self._engine = log.engine
        self._name = name
        self._dsn = dsn
        self._options = options
        self._report = report
        self._wake = Wake()
        self._stopping = False
        self._rows = 0
        self._until: Lsn | None = None
        self._streamed = False
        # The connection that holds a temporary slot, which must not be closed before streaming.
        self._temporary: Connection | None = None
        # Whether neither the log nor the server has anything of this source.
        self._untouched = True
        self._made_beside: Sequence[Path] = ()
        rate = options.copy_rate
        self._throttle = Throttle(None if rate is None else rate * 1e6)

    def stop(self) -> None:
        """End the capture in order: what was received whole is stored and acknowledged."""
        self._stopping = True
        self._wake.set()

    def run(self) -> Outcome:
        """Capture until told to stop, or until `options.until` is reached.

        Raises WriterActive, and the errors of `cdc.errors` that trying again cannot mend.
        """
        if self._options.until not in (None, "current"):
            self._until = Lsn.parse(self._options.until)
        # Ask the server first: a wrong DSN must not leave a stream behind.
        conn = connect(self._dsn)
        try:
            new = self._name not in self._engine.stream_names()
            epoch = self._engine.create_stream(self._name, "captured").writer_epoch
            # Another process may have begun it meanwhile, and ended: it is not new any more.
            new = new and self._engine.source_state(self._name) is None
            try:
                writer = self._engine.writer(self._name)
                epoch = writer.epoch
                try:
                    state = self._prepare(conn, writer)
                    state = self._stream_for_ever(writer, state)
                finally:
                    writer.close()
            except Stopped:
                # Before there was a slot: nothing is kept at the server, nothing was captured.
                return Outcome(position=str(Lsn(0)), rows=0, slot=None)
            finally:
                if new and self._untouched:
                    self._withdraw(epoch)
        finally:
            conn.close()
            if self._temporary is not None:
                self._temporary.close()
            setup.remove_trial(self._dsn, self._engine.source_state(self._name), self._report)
            self._wake.close()
        kept = None if state.temporary else state.slot
        by_hand = kept is not None and not state.slot_ours
        return Outcome(
            position=str(state.position),
            rows=self._rows,
            slot=kept,
            slot_drop=f"SELECT pg_drop_replication_slot('{state.slot}');" if by_hand else None,
        )

    @property
    def made_beside(self) -> Sequence[Path]:
        """Files beside the log that this run made, such as a key."""
        return self._made_beside

    def _withdraw(self, epoch: int) -> None:
        """Leave nothing in the log of a first capture that came to nothing."""
        with suppress(EventLogError):  # What led here is told, and an empty stream harms nobody.
            withdraw_stream(self._engine, self._name, writer_epoch=epoch)

    # Preparation

    def _prepare(self, conn: Connection, writer: Writer) -> SourceState:
        stored = self._engine.source_state(self._name)
        state = None if stored is None else SourceState.from_map(stored)
        if state is not None:
            setup.require_same_request(self._name, state, self._options)
            restored = generation.restored(self._engine, self._name)
            if restored is not None:
                setup.require_nothing_captured_since(conn, state, generation=restored)
            if state.phase is Phase.STREAMING:
                return state
        beginning = Beginning(
            log=self._log,
            name=self._name,
            dsn=self._dsn,
            options=self._options,
            writer=writer,
            throttle=self._throttle,
            progress=self._report_copy,
            report=self._report,
            stopped=lambda: self._stopping,
        )
        try:
            state = beginning.state(conn, state)
        finally:
            self._untouched = beginning.untouched
            self._made_beside = beginning.made_beside
        self._temporary = beginning.temporary
        return state

    def _report_copy(self, progress: CopyProgress) -> None:
        kind = "copied" if progress.done else "copying"
        if progress.done:
            self._rows += progress.rows
        self._report(
            Event(
                kind=kind,
                text=f"{kind} {progress.table}: {counted(progress.rows, 'row')}",
                table=progress.table,
                rows=progress.rows,
                rows_estimate=progress.rows_estimate,
                bytes=progress.bytes,
                bytes_estimate=progress.bytes_estimate,
            )
        )

    # Streaming

    def _stream_for_ever(self, writer: Writer, state: SourceState) -> SourceState:
        failures = 0
        held_until = time.monotonic() + HELD_SLOT_S
        while not self._stopping and state.phase is Phase.STREAMING:
            progress_before = state.position
            try:
                return self._stream(writer, state)
            except CaptureError as error:
                stored = self._engine.source_state(self._name)
                assert stored is not None
                state = SourceState.from_map(stored)
                # Before the first stream a fault is told at once; but a server may still hold the
                # slot for a capture that was killed a moment ago.
                left_s = held_until - time.monotonic()
                hopeful = self._streamed or (isinstance(error, SlotInUse) and left_s > 0)
                if not (error.retry and hopeful) or state.temporary:
                    raise
                failures = 0 if state.position > progress_before else failures + 1
                first_s, most_s = BACKOFF_FIRST_S, BACKOFF_MAX_S
                if not self._streamed:
                    first_s, most_s = HELD_FIRST_S, left_s
                self._pause(error, min(first_s * 2 ** min(max(failures - 1, 0), 10), most_s))
        return state

    def _pause(self, error: CaptureError, pause_s: float) -> None:
        self._report(Event(kind="retry", text=f"{error}; trying again in {pause_s:g} s"))
        deadline = time.monotonic() + pause_s
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _stream(self, writer: Writer, state: SourceState) -> SourceState:
        describer = connect(self._dsn)
        replication, self._temporary = self._temporary, None
        try:
            if replication is None:
                replication = connect_replication(self._dsn)
                state = setup.require_resumable(describer, replication, state, held=self._streamed)
                if generation.settle(self._engine, self._name):
                    text = f"the log was a backup; nothing was captured since {state.position}"
                    self._report(Event(kind="warning", text=text))
            until = self._target(describer, replication)
            stream = start_replication(
                replication, state.slot, state.position, list(state.publications), self._wake
            )
            try:
                return self._attended(writer, state, describer, stream, until)
            finally:
                stream.close()
        finally:
            describer.close()
            if replication is not None:
                replication.close()

    def _attended(
        self,
        writer: Writer,
        state: SourceState,
        describer: Connection,
        stream: Transport,
        until: Lsn | None,
    ) -> SourceState:
        """Stream, with an attendant who looks after the tables."""
        known = Samples(state.looked)
        gate, book = gate_and_book(self._log, self._name, self._options, state, describer, known)
        copies = taken_up(self._engine, self._name, state, book, gate)
        streamer = Streamer(
            self._engine,
            writer,
            state,
            stream,
            book,
            self._options,
            copies=copies,
            gate=gate,
            noticed=lambda: attendant.look_soon(),
            wake=self._wake.set,
            report=self._report,
            stopping=lambda: self._stopping or attendant.failed,
        )
        attendant = Attendant(
            self._log,
            self._name,
            self._dsn,
            streamer,
            known,
            self._options,
            throttle=self._throttle,
            progress=self._report_copy,
            report=self._report,
            stopping=lambda: self._stopping,
        )
        self._streamed = True
        text = f"streaming {self._name} from {state.position}"
        self._report(Event(kind="streaming", text=text, position=str(state.position)))
        attendant.start()
        try:
            state = streamer.run(until, settled=lambda: attendant.at_rest)
        finally:
            self._rows += streamer.changes
            attendant.stop()
        attendant.require_done(all_of_it=not self._stopping)
        return state

    def _target(self, conn: Connection, replication: Connection) -> Lsn | None:
        if self._options.until == "current" and self._until is None:
            self._until = setup.current_end(conn, replication)
        return self._until
