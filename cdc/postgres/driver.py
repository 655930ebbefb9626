"""Postgres as a kind of source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdc.options import Options, Report
from cdc.postgres import catalog, publication, slot
from cdc.postgres.capture import Capture
from cdc.postgres.connection import connect, connect_replication, has_password_in_text
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
        publication that the user named is left alone.
        """
        if state is None:
            slots = [slot.slot_name(name)]
            names = [publication.publication_name(name), publication.inserts_publication_name(name)]
        else:
            known = SourceState.from_map(state)
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
        finally:
            conn.close()
        return dropped

    def lag(self, dsn: str, state: Mapping[str, Any]) -> tuple[int, float | None]:
        """WAL between the log's position and the server's end.

        Seconds are 0 where nothing is behind; else the server cannot tell them. Raises OtherSystem
        where another cluster answers.
        """
        known = SourceState.from_map(state)
        replication = connect_replication(dsn)
        try:
            server = catalog.identify(replication)
        finally:
            replication.close()
        require_same_system(known, server)
        behind = max(int(server.wal_position) - int(known.position), 0)
        return behind, None if behind else 0.0

    def warnings(self, dsn: str) -> list[str]:
        """A password in the argument list is seen by other users."""
        if not has_password_in_text(dsn):
            return []
        return [
            "the connection string shows a password, which other users see in the process list; "
            "use ~/.pgpass, service=NAME or env:VAR"
        ]


DRIVER = PostgresDriver()
