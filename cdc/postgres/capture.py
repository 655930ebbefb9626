"""The capture of one Postgres source: prepare, copy, stream, and again after a fault.

Everything that reaches Postgres as acknowledged was stored by a synced commit before (I5), each
commit holds the changes and the position that covers them (I4), and only whole transactions are
published (I6). What a commit stores is decided in `assembler.py`, when in `streaming.py`.
"""

from __future__ import annotations

import time
from dataclasses import replace

from cdc.errors import CaptureError, MissingTable, SlotInUse
from cdc.options import Event, Options, Outcome, Report
from cdc.postgres import catalog, copying, setup
from cdc.postgres.catalog import CatalogRelation, Table
from cdc.postgres.connection import Connection, connect, connect_replication
from cdc.postgres.copying import CopyProgress
from cdc.postgres.libpq import ReplicationStream, Wake
from cdc.postgres.lsn import Lsn
from cdc.postgres.schema_book import SchemaBook
from cdc.postgres.setup import Prepared
from cdc.postgres.state import Phase, SourceState
from cdc.postgres.streaming import Streamer
from eventlog import Log
from eventlog.changes.schema import Column, Schema
from eventlog.engine import Append, Batch, Plan, SourceUpdate, Writer, generation

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
HELD_SLOT_S = 5.0
"""How long a restart waits for the server to notice that the slot's last user is gone."""

HELD_FIRST_S = 0.1


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
            self._engine.create_stream(self._name, "captured")
            writer = self._engine.writer(self._name)
            try:
                state = self._prepare(conn, writer)
                state = self._stream_for_ever(writer, state)
            finally:
                writer.close()
        finally:
            conn.close()
            if self._temporary is not None:
                self._temporary.close()
            self._wake.close()
        kept = None if state.temporary else state.slot
        by_hand = kept is not None and not state.slot_ours
        return Outcome(
            position=str(state.position),
            rows=self._rows,
            slot=kept,
            slot_drop=f"SELECT pg_drop_replication_slot('{state.slot}');" if by_hand else None,
        )

    # Preparation and copy

    def _prepare(self, conn: Connection, writer: Writer) -> SourceState:
        stored = self._engine.source_state(self._name)
        state = None if stored is None else SourceState.from_map(stored)
        if state is not None:
            setup.require_same_request(self._name, state, self._options)
            restored = generation.restored(self._engine, self._name)
            if restored is not None:
                setup.require_nothing_captured_since(conn, state, generation=restored)
        if state is not None and state.phase is Phase.STREAMING:
            return state
        if state is not None:
            self._report(Event(kind="warning", text="the last copy was cut off; it begins anew"))
            self._drop_unfinished(conn, state)
        replication = connect_replication(self._dsn)
        try:
            prepared = setup.plan_source(conn, replication, self._name, self._options, self._report)
            self._store(writer, prepared.state)
            state, created = setup.make_slot(conn, replication, prepared.state)
            self._store(writer, state)
            if created is not None and created.snapshot is not None:
                state = self._copy(writer, prepared, state, created.snapshot)
        except BaseException:
            replication.close()
            raise
        if state.temporary:
            self._temporary = replication
        else:
            replication.close()
        return state

    def _drop_unfinished(self, conn: Connection, state: SourceState) -> None:
        deadline = time.monotonic() + HELD_SLOT_S
        while True:
            try:
                return setup.drop_unfinished(conn, state)
            except SlotInUse:
                # The server may not have noticed yet that the capture that made it was killed.
                if time.monotonic() > deadline:
                    raise
                time.sleep(HELD_FIRST_S)

    def _copy(
        self, writer: Writer, prepared: Prepared, state: SourceState, snapshot_name: str
    ) -> SourceState:
        def store(batches: list[Batch]) -> None:
            self._store(writer, state, book=book, batches=batches)

        conn = connect(self._dsn)
        try:
            snapshot = copying.begin(conn, snapshot_name, state.position)
            describer = connect(self._dsn)
            book = self._book(describer, state)
            try:
                for table in prepared.tables:
                    schema = self._schema(describer, book, table)
                    whole = copying.copy_table(
                        conn,
                        table,
                        schema,
                        snapshot,
                        where=prepared.row_filters.get(table.oid),
                        store=store,
                        progress=self._report_copy,
                        stopped=lambda: self._stopping,
                    )
                    if not whole:
                        return state
            finally:
                describer.close()
        finally:
            conn.close()
        streaming = replace(state, phase=Phase.STREAMING)
        self._store(writer, streaming)
        return streaming

    def _report_copy(self, progress: CopyProgress) -> None:
        kind, verb = ("copied", "copied") if progress.done else ("copying", "copying")
        if progress.done:
            self._rows += progress.rows
        self._report(
            Event(
                kind=kind,
                text=f"{verb} {progress.table}: {progress.rows:,} rows",
                table=progress.table,
                rows=progress.rows,
                rows_estimate=progress.rows_estimate,
                bytes=progress.bytes,
            )
        )

    def _store(
        self,
        writer: Writer,
        state: SourceState,
        *,
        book: SchemaBook | None = None,
        batches: list[Batch] | None = None,
    ) -> None:
        update = SourceUpdate(
            stream=self._name,
            writer_epoch=writer.epoch,
            state=state.to_map(),
            schemas=book.take_pending() if book else (),
        )
        appends = [Append(stream=self._name, batches=batches)] if batches else []
        self._engine.commit(Plan(appends=appends, sources=[update]))

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
            stream = ReplicationStream(
                replication, state.slot, state.position, list(state.publications), self._wake
            )
            streamer = Streamer(
                self._engine,
                writer,
                state,
                stream,
                self._book(describer, state),
                self._options,
                wake=self._wake.set,
                report=self._report,
                stopping=lambda: self._stopping,
            )
            self._streamed = True
            text = f"streaming {self._name} from {state.position}"
            self._report(Event(kind="streaming", text=text, position=str(state.position)))
            try:
                return streamer.run(until)
            finally:
                self._rows += streamer.rows
                stream.close()
        finally:
            describer.close()
            if replication is not None:
                replication.close()

    def _target(self, conn: Connection, replication: Connection) -> Lsn | None:
        if self._options.until == "current" and self._until is None:
            self._until = setup.current_end(conn, replication)
        return self._until

    # Schemas

    def _book(self, describer: Connection, state: SourceState) -> SchemaBook:
        stored = self._engine.schemas(self._name)
        versions = [Schema.from_map(number, fields) for number, fields in stored]
        return SchemaBook(
            versions,
            describe=lambda oid: _view(describer, oid),
            inserts_only=state.partial,
        )

    def _schema(self, conn: Connection, book: SchemaBook, table: Table) -> Schema:
        relation = catalog.describe_relation(conn, table.oid)
        view = CatalogViewOf(relation)
        columns = tuple(column for column in view.columns if column.name in table.columns)
        schema = Schema(
            id=0,
            offset=0,
            relation=relation.oid,
            namespace=relation.schema,
            name=relation.name,
            identity=relation.identity,
            columns=columns,
            types=relation.types,
        )
        book.adopt(schema)
        adopted = book.schema(table.oid)
        assert adopted is not None
        return adopted


class CatalogViewOf:
    """A relation of the catalog in the terms of the log's schemas."""

    def __init__(self, relation: CatalogRelation) -> None:
        full = relation.identity == "f"
        self.columns = tuple(
            Column(
                name=column.name,
                type=column.type,
                typmod=column.typmod,
                # The server flags every column under REPLICA IDENTITY FULL.
                key=full or column.key,
                attribute=column.attribute,
                missing=column.missing,
            )
            for column in relation.columns
            if not column.generated
        )
        self.types = relation.types


def _view(conn: Connection, oid: int) -> CatalogViewOf | None:
    try:
        return CatalogViewOf(catalog.describe_relation(conn, oid))
    except MissingTable:
        return None
