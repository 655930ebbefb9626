"""Postgres as a kind of source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cdc.driver import Lag
from cdc.errors import CaptureError, SlotMissing
from cdc.options import Options, Report
from cdc.postgres.capture import Capture
from cdc.postgres.connection import (
    Connection,
    connect,
    connect_replication,
    has_password_in_text,
)
from cdc.postgres.publishing import publication, slot
from cdc.postgres.publishing.slot import SlotState
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import ServerIdentity
from cdc.postgres.schema.table_spec import ColumnName, TableSpec
from cdc.postgres.state import SourceState, require_same_system
from eventlog import Log


class PostgresDriver:
    """See `cdc.SourceDriver`."""

    def capture(self, log: Log, name: str, dsn: str, options: Options, report: Report) -> Capture:
        """A capture by logical replication."""
        return Capture(log, name, dsn, options, report)

    def drop(self, dsn: str, name: str, state: Mapping[str, Any] | None) -> list[str]:
        """Drop the slot and the publications that the capture made.

        Without a `state` (the log is gone), those whose names derive from the source's. A slot or
        publication that the user named is left alone. Raises OtherSystem where another cluster
        than the captured one answers: its slot of the same name is not ours; SlotMissing where
        neither the log nor the server knows the source.
        """
        if state is None:
            slots = [slot.slot_name(name)]
            names = [publication.publication_name(name), publication.inserts_publication_name(name)]
        else:
            known = SourceState.from_map(state)
            _require_system(dsn, known)
            slots = [known.slot] if known.slot_ours else []
            names = list(known.publications) if known.publications_ours else []
        dropped = []
        conn = connect(dsn)
        try:
            for slot_name in slots:
                if slot.inspect(conn, slot_name) is not None:
                    slot.drop(conn, slot_name)
                    dropped.append(f"slot {slot_name}")
            for publication_name in names:
                if publication.drop(conn, publication_name):
                    dropped.append(f"publication {publication_name}")
        except CaptureError as error:
            if dropped:
                raise type(error)(
                    f"{error} (removed before: {', '.join(dropped)})", hint=error.hint
                ) from error
            raise
        else:
            if state is None and not dropped:
                raise _unknown(conn, name)
        finally:
            conn.close()
        return dropped

    def lag(self, dsn: str, state: Mapping[str, Any]) -> Lag:
        """WAL between the log's position and the server's end, and what the slot keeps of it.

        Seconds are 0 where nothing is behind; else the server cannot tell them. Raises OtherSystem
        where another cluster answers.
        """
        known = SourceState.from_map(state)
        server = _require_system(dsn, known)
        behind = max(int(server.wal_position) - int(known.position), 0)
        conn = connect(dsn)
        try:
            found = slot.inspect(conn, known.slot)
        finally:
            conn.close()
        return Lag(
            bytes=behind,
            seconds=None if behind else 0.0,
            retained_bytes=None if found is None else found.retained_bytes,
            warning=threat(known, found),
        )

    def spelled(self, table: str) -> str:
        """`schema.table`, a pattern, or a table with the columns that may leave it."""
        return str(TableSpec.parse(table))

    def spelled_column(self, column: str) -> str:
        """`schema.table.column`."""
        return str(ColumnName.parse(column))

    def tables(self, dsn: str, patterns: Sequence[str]) -> list[str]:
        """The tables that can be captured, by schema and name."""
        conn = connect(dsn)
        try:
            found = catalog.resolve_tables(conn, list(map(TableSpec.parse, patterns)))
        finally:
            conn.close()
        return [str(table.table) for table in found]

    def copied_share(self, cursor: Mapping[str, Any]) -> float | None:
        """By the pages of the table's leaves; None before they are known."""
        leaves = cursor.get("leaves") or ()
        pages = [int(mark[2]) for mark in leaves]
        if not sum(pages):
            return None
        done = sum(pages[: cursor["leaf"]]) + int(cursor["page"])
        return min(done / sum(pages), 1.0)

    def warnings(self, dsn: str) -> list[str]:
        """A password in the argument list is seen by other users."""
        if not has_password_in_text(dsn):
            return []
        return [
            "the connection string shows a password, which other users see in the process list; "
            "use ~/.pgpass, service=NAME or env:VAR"
        ]


def _require_system(dsn: str, known: SourceState) -> ServerIdentity:
    replication = connect_replication(dsn)
    try:
        server = catalog.identify(replication)
    finally:
        replication.close()
    require_same_system(known, server)
    return server


def _unknown(conn: Connection, name: str) -> SlotMissing:
    """The error for a source that left nothing at the server, and that the log does not know."""
    found = slot.names_like_ours(conn)
    known = (
        f"slots that look like ours there: {', '.join(found)}" if found else "it has no such slot"
    )
    return SlotMissing(
        f"the server holds no slot and no publication of a source {name!r}, and the log knows none",
        hint=f"check the name, the database and --log; {known}",
    )


def threat(state: SourceState, found: SlotState | None) -> str | None:
    """What keeps, or may soon keep, the capture from going on."""
    if found is None:
        return None if state.temporary else f"its slot {state.slot!r} is not on the server any more"
    if found.lost:
        return f"the server invalidated its slot {found.name!r}: changes are lost to this log"
    if found.wal_status == "unreserved":
        return f"the server may soon remove WAL that its slot {found.name!r} needs"
    return None


DRIVER = PostgresDriver()
