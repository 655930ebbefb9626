"""What users of other captures complain about, where no other test shows that it is not so here."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

import cdc
import eventlog
from cdc.driver import driver_of
from cdc.errors import SlotLost
from cdc.postgres import capture as capture_module
from cdc.postgres import streaming
from cdc.postgres.attending import attendant
from cdc.postgres.server import EmbeddedServer
from cdc.requests import ask
from tests.fix_capture import (
    Background,
    assert_snapshot_equals_postgres,
    captured_in_background,
    confirmed,
    flushed,
    state_of,
    until,
    wal_position,
)
from tests.fix_postgres import SETTINGS, WHEEL, Database, bindir
from tests.test_every_event import memory_peak


def shop(database: Database, *tables: str) -> cdc.Source:
    return cdc.Source("shop", database.dsn, tables or ("public.*",))


def test_an_idle_database_lets_the_server_drop_its_wal(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WAL that grows without end because nothing that is captured changes."""
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)
    retained = (
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8"
        "  from pg_replication_slots where slot_name = 'eventlog_shop'"
    )
    database.execute("create table t (id int primary key)")
    with (
        captured_in_background(log, shop(database)) as running,
        psycopg.connect(database.server.dsn, autocommit=True) as elsewhere,
    ):
        running.saw("streaming")
        # Another database of the server is busy.
        elsewhere.execute("create table if not exists busy (x text)")
        elsewhere.execute("insert into busy select repeat('x', 90) from generate_series(1, 60000)")
        elsewhere.execute("drop table busy")
        written = database.value(retained)
        assert written > 5_000_000
        target = flushed(database)
        until(lambda: confirmed(database) >= target, "the slot's move")

        def dropped() -> bool:
            # What a slot needs moves with the records that a checkpoint writes.
            database.execute("checkpoint")
            return bool(database.value(retained) < written / 5)

        until(dropped, "WAL that nobody needs any more")
        lag = driver_of(database.dsn).lag(database.dsn, log.source("shop") or {})
        assert lag.retained_bytes is not None and lag.retained_bytes < written / 5


def test_a_lost_slot_is_said_and_nothing_begins_from_now_on(log: eventlog.Log) -> None:
    """A slot that is lost without a word, after which a capture goes on from anywhere."""
    settings = {**SETTINGS, "max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB"}
    with (
        EmbeddedServer.start(bindir=bindir(WHEEL), settings=settings) as server,
        psycopg.connect(server.dsn, autocommit=True) as conn,
    ):
        source = cdc.Source("shop", server.dsn, ("public.t",))
        conn.execute("create table t (id int primary key); insert into t values (1)")
        source.capture(log, until="current")
        before, end = state_of(log), log.stream("shop").end
        conn.execute("insert into t values (2)")
        for _ in range(4):
            conn.execute("select pg_logical_emit_message(true, 'x', 'y')")
            conn.execute("select pg_switch_wal()")
        conn.execute("checkpoint")
        conn.execute("insert into t values (3)")
        for _ in range(2):
            with pytest.raises(SlotLost, match=r"changes since \S+ are gone") as caught:
                source.capture(log, until="current")
            assert caught.value.hint and not caught.value.retry
        assert state_of(log) == before, "no position is taken that nothing was captured up to"
        assert log.stream("shop").end == end
        warning = driver_of(server.dsn).lag(server.dsn, log.source("shop") or {}).warning
        assert warning is not None and "lost to this log" in warning
        slots = conn.execute("select slot_name, wal_status from pg_replication_slots").fetchall()
        assert slots == [("eventlog_shop", "lost")], "no other slot was made"


def test_a_slot_that_is_lost_while_it_is_streamed_from_ends_the_capture(log: eventlog.Log) -> None:
    """The same, while the capture runs and its disk is too slow."""
    settings = {**SETTINGS, "max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB"}
    with (
        EmbeddedServer.start(bindir=bindir(WHEEL), settings=settings) as server,
        psycopg.connect(server.dsn, autocommit=True) as conn,
    ):
        conn.execute("create table t (id int primary key); insert into t values (1)")
        stuck, commit = threading.Event(), log.engine.commit

        def slow(*args: Any, **options: Any) -> Any:
            if stuck.is_set():
                time.sleep(0.05)
                until(lambda: not stuck.is_set(), "the disk")
            return commit(*args, **options)

        source = cdc.Source("shop", server.dsn, ("public.t",))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(log.engine, "commit", slow)
            patched.setattr(capture_module, "BACKOFF_FIRST_S", 0.05)
            running = Background(log, source)
            try:
                running.saw("streaming")
                stuck.set()
                conn.execute("insert into t values (2)")
                until(lambda: _invalidated(conn), "the slot's end")
                stuck.clear()
                running.ended()
            finally:
                stuck.clear()
                running.stop()
            with pytest.raises(SlotLost):
                running.expect_alive()
        rows = log.snapshot("shop").table("public.t").to_arrow()
        assert rows.num_rows in (1, 2), "what came before is there"


def _invalidated(conn: psycopg.Connection[Any]) -> bool:
    """Write more WAL than is kept; whether the slot is lost by now."""
    conn.execute("select pg_logical_emit_message(true, 'x', repeat('y', 100000))")
    conn.execute("select pg_switch_wal()")
    conn.execute("checkpoint")
    lost = conn.execute("select wal_status = 'lost' from pg_replication_slots").fetchone()
    return lost == (True,)


def test_a_slow_disk_does_not_end_the_connection(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that gives up a capture which is busy storing what it sent."""
    monkeypatch.setattr(streaming, "STATUS_S", 0.2)
    database.execute("create table t (id int primary key)")
    database.execute(f"alter database \"{database.name}\" set wal_sender_timeout = '2s'")
    commit = log.engine.commit

    def slow(*args: Any, **options: Any) -> Any:
        if slow_now.is_set():
            slow_now.clear()
            time.sleep(3.5)  # much longer than the server waits for a word
        return commit(*args, **options)

    slow_now = threading.Event()
    monkeypatch.setattr(log.engine, "commit", slow)
    with captured_in_background(log, shop(database), buffer_bytes=50_000) as running:
        running.saw("streaming")
        slow_now.set()
        # More than is gathered: the source is made to wait.
        database.execute("insert into t select generate_series(1, 30000)")
        database.execute("insert into t select generate_series(30001, 60000)")
        running.reached(wal_position(database))
        assert not slow_now.is_set()
        assert [event.kind for event in running.events].count("streaming") == 1
        assert not any(event.kind == "retry" for event in running.events)
    assert_snapshot_equals_postgres(log, database, "t")


def test_memory_does_not_grow_with_a_transaction(database18: Database, log_dir: Path) -> None:
    """A huge transaction that is gathered in memory."""
    database18.execute("create table t (id int primary key, body text)")
    before = memory_peak(database18.dsn, log_dir)
    size = 120 << 20
    database18.execute(
        f"insert into t select g, repeat('x', 10000) from generate_series(1, {size // 10000}) g"
    )
    assert memory_peak(database18.dsn, log_dir) - before < size / 2
    with eventlog.open(log_dir) as log:
        held = log.snapshot("shop").table("public.t").to_arrow(columns=["id"])
        assert held.num_rows == size // 10000
        assert log.check() == []


def test_a_source_takes_one_slot_whatever_reads_it(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots and walsenders that a server runs out of, each of which decodes all WAL again."""
    monkeypatch.setattr(attendant, "LOOK_S", 0.2)
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)
    slots = (
        "select count(*) from pg_replication_slots"
        " where database = current_database() and not temporary"
    )
    for number in range(5):
        database.execute(f"create table t{number} (id int primary key)")
    with captured_in_background(log, shop(database)) as running:
        running.saw("streaming")
        database.execute("insert into t0 values (1); insert into t4 values (1)")
        running.reached(wal_position(database))
        database.execute("create table later (id int)")
        ask(log, "shop", "recopy", "public.t1")
        for number in range(3):
            consumer = log.stream("shop").consumer(f"reader{number}", start="begin")
            seen = 0
            for batch in consumer.follow(until="current"):
                seen += len(batch)
                with consumer.commit(batch):
                    pass
            assert seen >= 2
        assert database.value(slots) == 1
        until(lambda: not state_of(log).copies, "the end of the copies")
    assert database.value(slots) == 1
