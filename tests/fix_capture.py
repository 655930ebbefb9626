"""Captures for tests: in the background, compared with Postgres, and frames made by hand."""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

import cdc
import eventlog
from cdc.options import Event, Outcome
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.state import SourceState
from tests.fix_postgres import Database

PATIENCE_S = 60.0
_EPOCH_US = 946_684_800_000_000

SAME_TEXT = (
    "set timezone = 'UTC'; set intervalstyle = 'iso_8601'; set extra_float_digits = 3;"
    "set datestyle = 'ISO'; set bytea_output = 'hex'; set lc_monetary = 'C'"
)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; returns its true value. Fails after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s in vain for {what}"
        time.sleep(0.02)
    return found


def wal_position(database: Database) -> Lsn:
    """Where everything committed by now ends below, and what a stream will reach.

    A message of our own ends there: it has no offset. Where the server merely has flushed to may
    lie inside a record whose rest comes much later.
    """
    return Lsn.parse(
        database.value("select pg_logical_emit_message(true, 'eventlog', 'test')::text")
    )


def flushed(database: Database) -> Lsn:
    """The end of what the server has flushed."""
    return Lsn.parse(database.value("select pg_current_wal_flush_lsn()::text"))


def state_of(log: eventlog.Log, name: str = "shop") -> SourceState:
    """What the log holds about a source."""
    stored = log.source(name)
    assert stored is not None
    return SourceState.from_map(stored)


def confirmed(database: Database, slot: str = "eventlog_shop") -> Lsn:
    """Up to where a slot was acknowledged."""
    return Lsn.parse(
        database.value(
            "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s",
            [slot],
        )
    )


def drop_slot(database: Database, slot: str = "eventlog_shop") -> None:
    """Drop a slot once the server has noticed that nobody streams from it any more."""
    held = f"select active from pg_replication_slots where slot_name = '{slot}'"
    until(lambda: not database.value(held), f"the end of the stream from {slot}")
    database.execute("select pg_drop_replication_slot(%s)", [slot])


def assert_snapshot_equals_postgres(log: eventlog.Log, database: Database, *tables: str) -> None:
    """Row for row and value for value, as the text that Postgres writes."""
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(SAME_TEXT)
        for table in tables:
            rows = log.snapshot("shop").table(f"public.{table}")
            names = rows.schema.names
            found = rows.to_arrow(cast=dict.fromkeys(names, "text"))
            # The output function's text: a cast writes booleans in another way. A composite value
            # of NULLs is no NULL, but `is null`.
            columns = ", ".join(
                f'case when "{n}" is distinct from null then format($$%s$$, "{n}") end'
                for n in names
            )
            expected = conn.execute(f"select {columns} from public.{table}").fetchall()
            shown = conn.execute(f"select * from public.{table} limit 0")
            assert names == [column.name for column in shown.description]
            rows_found = [tuple(row[name] for name in names) for row in found.to_pylist()]
            too_many = Counter(rows_found) - Counter(expected)
            assert not too_many, (table, list(too_many)[:3])
            too_few = Counter(expected) - Counter(rows_found)
            assert not too_few, (table, list(too_few)[:3])


class Background:
    """A capture on a thread of its own."""

    def __init__(self, log: eventlog.Log, source: cdc.Source, **options: Any) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.outcome: Outcome | None = None
        self._log = log
        self._source = source
        self._running = source.start(log, report=self.events.append, **options)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self._running.run()
        except BaseException as error:
            self.error = error

    def saw(self, kind: str, count: int = 1) -> None:
        """Wait until events of that kind came."""

        def enough() -> bool:
            self.expect_alive()
            return sum(event.kind == kind for event in self.events) >= count

        until(enough, f"{count} events {kind!r}")

    def reached(self, position: Lsn) -> None:
        """Wait until everything up to there is stored."""

        def stored() -> bool:
            self.expect_alive()
            state = self._log.source(self._source.name)
            return state is not None and state["position"] >= int(position)

        until(stored, f"position {position}")

    def expect_alive(self) -> None:
        if self.error is not None:
            raise self.error

    def ended(self) -> None:
        """Wait until it ended by itself."""
        until(lambda: not self._thread.is_alive(), "the end of a capture")

    def stop(self) -> None:
        self._running.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@contextmanager
def captured_in_background(
    log: eventlog.Log, source: cdc.Source, **options: Any
) -> Iterator[Background]:
    """Run a capture until the block's end; what it raised is raised there."""
    running = Background(log, source, **options)
    try:
        yield running
    finally:
        running.stop()
    running.expect_alive()


# Frames by hand


def xlog(payload: bytes, at: int = 0, sent_us: int = 0) -> bytes:
    return b"w" + struct.pack(">QQq", at, at, sent_us - _EPOCH_US) + payload


def keepalive(end: int, *, reply: bool = False) -> bytes:
    return b"k" + struct.pack(">QqB", end, 0, reply)


def begin(commit: int, xid: int, time_us: int = _EPOCH_US) -> bytes:
    return xlog(b"B" + struct.pack(">QqI", commit, time_us - _EPOCH_US, xid))


def commit(at: int, end: int, time_us: int = _EPOCH_US) -> bytes:
    return xlog(b"C" + struct.pack(">BQQq", 0, at, end, time_us - _EPOCH_US), at)


def relation(oid: int, name: str, *columns: str) -> bytes:
    """A table whose first column is its key; all columns are text."""
    parts = [b"R", struct.pack(">I", oid), b"public\0", name.encode(), b"\0d"]
    parts.append(struct.pack(">H", len(columns)))
    for place, column in enumerate(columns):
        parts.append(struct.pack(">B", place == 0) + column.encode() + b"\0")
        parts.append(struct.pack(">Ii", 25, -1))
    return xlog(b"".join(parts))


def row(*values: bytes | None) -> bytes:
    parts = [struct.pack(">H", len(values))]
    for value in values:
        parts.append(b"n" if value is None else b"t" + struct.pack(">I", len(value)) + value)
    return b"".join(parts)


def insert_record(oid: int, *values: bytes | None) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + row(*values)


def message_record(prefix: str, content: bytes, lsn: int, *, transactional: bool) -> bytes:
    head = b"M" + struct.pack(">BQ", transactional, lsn) + prefix.encode() + b"\0"
    return head + struct.pack(">I", len(content)) + content


def truncate_record(*oids: int) -> bytes:
    return b"T" + struct.pack(">IB", len(oids), 0) + struct.pack(f">{len(oids)}I", *oids)


def transaction(end: int, xid: int, records: Sequence[bytes], *before: bytes) -> list[bytes]:
    """The frames of one transaction; `before` are frames that come first in it."""
    rows = [xlog(record, end - 10) for record in records]
    return [begin(end - 8, xid), *before, *rows, commit(end - 8, end)]
