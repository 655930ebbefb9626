"""Carrying out what was asked about the tables of a source (`eventlog tables`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cdc.errors import CaptureError, MissingTable, ServerError
from cdc.options import Event, Options, Report
from cdc.postgres.attending import samples
from cdc.postgres.attending.link import Link
from cdc.postgres.attending.tables import Tables, joined_fact
from cdc.postgres.connection import Connection
from cdc.postgres.privacy import hashing
from cdc.postgres.protocol.answers import CANCELLED
from cdc.postgres.publishing import membership, publication
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.table_spec import ColumnName, TableSpec
from cdc.postgres.state import SourceState
from cdc.requests import Fact, Request
from eventlog import Log
from eventlog.errors import EventLogError, UsageError


class Answering:
    """Does what requests say, or tells why that cannot be done."""

    def __init__(
        self, log: Log, name: str, link: Link, tables: Tables, options: Options, report: Report
    ) -> None:
        self._log = log
        self._name = name
        self._link = link
        self._tables = tables
        self._options = options
        self._report = report

    def answer(self, conn: Connection, request: Request) -> None:
        """Do what was asked, or tell why it cannot be done; then it is handled."""
        try:
            if request.verb == "add":
                self._add(conn, request)
            elif request.verb == "remove":
                self._remove(conn, request)
            else:
                for table in self._captured(conn, request.table):
                    self._tables.copy_again(table.oid, "it was asked for", request.offset)
            said = []
        except EventLogError as error:
            if conn.closed or _is_passing(error):
                raise  # the request is tried again
            why = f"{error} ({error.hint})" if error.hint else str(error)
            said = [
                Fact(
                    fact="refused",
                    table=request.table,
                    why=str(error),
                    hint=error.hint,
                    request=request.offset,
                )
            ]
            self._report(Event(kind="warning", text=f"{request.verb} {request.table}: {why}"))
        handled = request.offset + 1
        self._tables.store(
            lambda state: replace(state, requests=max(state.requests, handled)), said
        )

    def _add(self, conn: Connection, request: Request) -> None:
        state = self._ours(hint="add the table to the publication, and it is noticed")
        spec = TableSpec.parse(request.table)
        found = membership.to_add(conn, state, spec)
        if not found:
            raise UsageError(
                f"{spec.table} is captured already, as a part of its partitioned table",
                hint="`eventlog tables list` shows the tables that are captured",
            )
        names = {str(table.table) for table in found}
        if request.hash:
            self._widen_gate(conn, request.hash, found)

        def added(state: SourceState) -> SourceState:
            tables = tuple(dict.fromkeys((*state.tables, str(spec))))
            left_out = tuple(name for name in state.left_out if name not in names)
            self._link.streamer.gate.limit(map(TableSpec.parse, tables))
            return replace(state, tables=tables, left_out=left_out)

        captured = state.relations or ()
        limits = [TableSpec.parse(text) for text in (*state.tables, str(spec))]
        self._link.ask(lambda: self._link.streamer.gate.limit(limits))
        self._tables.join(
            conn, [table for table in found if table.oid not in captured], request.offset
        )
        # Last: what could not join is not named as captured.
        known = [str(table.table) for table in found if table.oid in captured]
        self._tables.store(
            added, [joined_fact(name, None, request.offset, at=None) for name in known]
        )

    def _remove(self, conn: Connection, request: Request) -> None:
        state = self._ours(hint="take the table out of the publication")
        spec = TableSpec.parse(request.table)
        found = self._captured(conn, request.table)
        sample = samples.take(conn, self._link.streamer.end)
        oids = [table.oid for table in found]
        publication.remove(conn, state.publications, oids)
        names = tuple(str(table.table) for table in found)

        def removed(state: SourceState) -> SourceState:
            kept = tuple(t for t in state.tables if TableSpec.parse(t).table != spec.table)
            self._link.streamer.gate.limit(map(TableSpec.parse, kept))
            return replace(state, tables=kept, left_out=(*state.left_out, *names))

        self._tables.leave(
            oids,
            sample,
            fact="left",
            reason="it was removed from the capture",
            request=request.offset,
            also=removed,
        )

    def _ours(self, *, hint: str) -> SourceState:
        """The state of a source whose publications we made, and so may alter."""
        state = self._tables.state
        if not state.publications_ours:
            raise UsageError(f"publication {state.publications[0]!r} is never altered", hint=hint)
        return state

    def _captured(self, conn: Connection, text: str) -> list[Table]:
        """The captured tables that a name or pattern means."""
        name = TableSpec.parse(text).table
        present = catalog.tables_by_oid(conn, self._tables.state.relations or ())
        found = [t for t in present.values() if name.matches(t.schema, t.name)]
        if not found:
            raise MissingTable(
                f"no table {name} is captured", hint="`eventlog tables list` shows those that are"
            )
        return found

    def _widen_gate(self, conn: Connection, columns: Sequence[str], found: Sequence[Table]) -> None:
        """Hash columns of tables that are about to join."""
        state, gate = self._tables.state, self._link.streamer.gate
        captured = catalog.tables_by_oid(conn, state.relations or ())
        hashing.require_not_clear(columns, captured.values())
        hashing.require_present(columns, found)
        key = hashing.take_key(self._log, self._name, state, self._options, asked=columns)
        assert key is not None
        names = [ColumnName.parse(text) for text in columns]
        self._link.ask(lambda: gate.widen(names, key.value))
        hashes = tuple(sorted({*state.hashes, *map(str, names)}))
        self._tables.store(lambda state: replace(state, hashes=hashes, hash_check=key.check))


def _is_passing(error: EventLogError) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, ServerError):
        return error.sqlstate == CANCELLED
    return isinstance(error, CaptureError) and error.retry
