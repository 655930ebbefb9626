"""How the capture of a source begins: tables, publications, slot, and the rows that are there.

::

    plan ──▶ creating ──▶ slot ──▶ copying ──▶ initial copy ──▶ streaming
                                      │ a restart finds the slot, not its snapshot
                                      └──▶ streaming; the attendant copies the rest

What it waits for at the server, locks on tables and transactions that are older than the slot, has
a limit, and ends at once when the capture is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cdc.errors import CaptureError, MissingTable, ServerError, SlotInUse, TableLocked
from cdc.options import Event, Options, Report
from cdc.postgres import locks, setup
from cdc.postgres.attending.link import Stopped
from cdc.postgres.attending.samples import Samples
from cdc.postgres.cancelling import cancelled_on
from cdc.postgres.connection import Connection, connect, connect_replication
from cdc.postgres.copy import copying
from cdc.postgres.copy.chunks import CopyCursor
from cdc.postgres.copy.copying import CopyProgress
from cdc.postgres.copy.snapshot_reader import Job, Snapshot
from cdc.postgres.copy.throttle import Throttle
from cdc.postgres.privacy import hashing
from cdc.postgres.privacy.hash_key import HashKey
from cdc.postgres.protocol.answers import CANCELLED
from cdc.postgres.publishing import slot
from cdc.postgres.schema.describing import describe
from cdc.postgres.schema.observation import observe
from cdc.postgres.schema.schema_book import SchemaBook
from cdc.postgres.setup import Prepared
from cdc.postgres.state import Phase, SourceState
from cdc.postgres.taking_up import gate_and_book
from cdc.postgres.traces import Traces
from cdc.requests import Fact, creation, tell
from eventlog import Log
from eventlog.engine import Append, Batch, Plan, SourceUpdate, Writer

HELD_SLOT_S = 5.0
"""How long a restart waits for the server to notice that the slot's last user is gone."""

HELD_FIRST_S = 0.1


@dataclass(slots=True, kw_only=True)
class Beginning:
    """Brings a source to where its changes can be streamed.

    `temporary` is the connection that holds a temporary slot: it must stay open until streaming.
    `untouched`: nothing of the source is at the server, and the log has but its first state, which
    may be forgotten. `made_beside` are files beside the log that were made.
    """

    log: Log
    name: str
    dsn: str
    options: Options
    writer: Writer
    throttle: Throttle
    progress: Callable[[CopyProgress], None]
    report: Report
    stopped: Callable[[], bool]
    temporary: Connection | None = None
    untouched: bool = True
    made_beside: Sequence[Path] = ()
    _state: SourceState | None = field(init=False, default=None)

    def state(self, conn: Connection, stored: SourceState | None) -> SourceState:
        """The state to stream from; its phase is not `streaming` where the copy was stopped.

        Raises Stopped where the capture was stopped before there is a slot.
        """
        self.untouched = stored is None
        if stored is not None and self._may_go_on(conn, stored):
            text = "the last copy was cut off; what is left is copied beside the stream"
            self.report(Event(kind="warning", text=text))
            return self._store(replace(stored, phase=Phase.STREAMING))
        if stored is not None:
            self.report(Event(kind="warning", text="the last copy was cut off; it begins anew"))
            self._drop_unfinished(conn, stored)
        replication = connect_replication(self.dsn)
        locks.limit_waiting(conn, ms=locks.BEGIN_WAIT_MS)
        try:
            state = self._new(conn, replication, stored)
        except BaseException:
            replication.close()
            raise
        if state.temporary:
            self.temporary = replication
        else:
            replication.close()
        return state

    def _may_go_on(self, conn: Connection, stored: SourceState) -> bool:
        """Whether the slot of a copy that was cut off kept all changes since it was made."""
        if stored.phase is not Phase.COPYING or stored.temporary or not stored.copies:
            return False
        return slot.inspect(conn, stored.slot) is not None

    def _new(
        self, conn: Connection, replication: Connection, stored: SourceState | None
    ) -> SourceState:
        traces = Traces.before(conn, replication, self.dsn, self.name, self.options, self.report)
        try:
            with self._stoppable(conn, replication):
                prepared = setup.plan_source(
                    conn,
                    replication,
                    self.name,
                    self.options,
                    self.report,
                    hashes=hashing.wanted(self.name, stored, self.options),
                    take_key=lambda: self._take_key(stored),
                )
                # Looked at before the slot is made: what changes between is noticed, not missed.
                facts = observe(conn, prepared.state.relations or (), prepared.state.publications)
                self._store(prepared.state)
                if self.stopped():
                    raise Stopped
                traces.slot_asked = prepared.state.slot_ours and not prepared.state.temporary
                try:
                    state, created = setup.make_slot(conn, replication, prepared.state)
                except CaptureError:
                    # After an answer of the server a slot of that name is somebody else's.
                    traces.slot_asked &= replication.closed
                    raise
            observed = {oid: found.to_map() for oid, found in facts.items()}
            self._store(state, said=[tell(self.name, observed=observed)])
        except BaseException as error:
            replication.close()
            if stored is None:
                self.untouched = traces.removed(error)
            raise
        self.untouched = False
        if created is None or created.snapshot is None:
            return state
        return self._copied(prepared, state, created.snapshot)

    @contextmanager
    def _stoppable(self, *conns: Connection) -> Iterator[None]:
        """Raise Stopped where the capture is stopped while these connections are waited for."""
        try:
            with cancelled_on(self.stopped, *conns):
                yield
        except ServerError as error:
            if error.sqlstate != CANCELLED or not self.stopped():
                raise
            raise Stopped from error

    def _copied(self, prepared: Prepared, state: SourceState, snapshot_name: str) -> SourceState:
        """Copy all tables under the slot's snapshot; a stop leaves the phase `copying`."""
        self._state = state
        with closing(connect(self.dsn)) as describer:
            gate, book = gate_and_book(
                self.log, self.name, self.options, state, describer, Samples(state.looked)
            )
            jobs = self._jobs(describer, prepared, state, book)

        def store(job: Job, batches: list[Batch], cursor: CopyCursor) -> None:
            assert self._state is not None
            copies = {**self._state.copies, str(job.table.oid): cursor.to_map()}
            said = []
            if cursor.done:
                del copies[str(job.table.oid)]
                said = [tell(self.name, [self._copied_fact(job, cursor)])]
            state = replace(self._state, copies=copies)
            self._store(state, book=book, batches=batches, said=said)

        def rewritten(job: Job) -> None:
            text = f"{job.table.table} was altered while the copy began; it is copied afterwards"
            self.report(Event(kind="warning", text=text, table=str(job.table.table)))

        told: set[str] = set()

        def waits(job: Job, error: TableLocked) -> None:
            text = f"the copy of {job.table.table} waits for a lock: {error}"
            if text not in told:
                told.add(text)
                self.report(Event(kind="warning", text=text, table=str(job.table.table)))

        whole = copying.copy_tables(
            self.dsn,
            Snapshot(name=snapshot_name, position=state.position),
            jobs,
            begun=self.log.stream(self.name).end,
            workers=self.options.copy_workers,
            throttle=self.throttle,
            gate=gate,
            store=store,
            progress=self.progress,
            rewritten=rewritten,
            waits=waits,
            stopped=self.stopped,
        )
        if not whole:
            return self._state
        return self._store(replace(self._state, phase=Phase.STREAMING))

    def _copied_fact(self, job: Job, cursor: CopyCursor) -> Fact:
        return Fact(
            fact="copied",
            table=str(job.table.table),
            relation=job.table.oid,
            rows=cursor.rows,
            why="the capture began",
            at=self.log.stream(self.name).end,
        )

    def _jobs(
        self, conn: Connection, prepared: Prepared, state: SourceState, book: SchemaBook
    ) -> list[Job]:
        """The tables to copy; one that was dropped since it was found is left to the attendant."""
        jobs = []
        for table in prepared.tables:
            try:
                described = describe(conn, table.oid, state.publications).schema
            except MissingTable as error:
                self.report(Event(kind="warning", text=f"{table.table} is not copied: {error}"))
                continue
            # Until its copy begins, a snapshot of the table would lack its rows.
            book.await_copy(table.oid)
            book.adopt(described)
            adopted = book.schema(table.oid)
            assert adopted is not None
            where = prepared.row_filters.get(table.oid)
            jobs.append(Job(table=table, schema=adopted, where=where))
        return jobs

    def _drop_unfinished(self, conn: Connection, state: SourceState) -> None:
        deadline = time.monotonic() + HELD_SLOT_S
        while not self.stopped():
            try:
                return setup.drop_unfinished(conn, state)
            except SlotInUse:
                # The server may not have noticed yet that the capture that made it was killed.
                if time.monotonic() > deadline:
                    raise
                time.sleep(HELD_FIRST_S)
        raise Stopped

    def _take_key(self, stored: SourceState | None) -> HashKey | None:
        key = hashing.take_key(self.log, self.name, stored, self.options)
        if key is not None and key.made:
            self.made_beside = (Path(key.place),)
        if key is not None and key.notice is not None:
            self.report(Event(kind="warning", text=key.notice))
        return key

    def _store(
        self,
        state: SourceState,
        *,
        book: SchemaBook | None = None,
        batches: Sequence[Batch] = (),
        said: Sequence[Append] = (),
    ) -> SourceState:
        update = SourceUpdate(
            stream=self.name,
            writer_epoch=self.writer.epoch,
            state=state.to_map(),
            schemas=book.take_pending() if book else (),
        )
        append = self.writer.relieved(Append(stream=self.name, batches=batches))
        appends = [append] if batches else []
        plan = Plan(appends=[*appends, *said], sources=[update])
        if said:
            plan.create = creation(self.name)
        self.log.engine.commit(plan)
        self._state = state
        return state
