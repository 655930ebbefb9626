"""What a capture refuses, and what it survives: a sentence, a hint, and nothing lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import ExecStatus

import cdc
import eventlog
from cdc.errors import (
    CaptureError,
    ConnectionRefused,
    MissingPublication,
    MissingTable,
    OtherSystem,
    PositionBehindSlot,
    PositionBeyondServer,
    ServerNotReady,
    SlotExists,
    SlotInUse,
    SlotMissing,
    TimelineForked,
)
from cdc.postgres import capture as capture_module
from cdc.postgres import streaming
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.schema.catalog import ServerIdentity, TimelineSwitch
from cdc.postgres.server import EmbeddedServer
from cdc.postgres.state import Phase, SourceState, require_not_behind, require_same_history
from eventlog.changes.change import Op
from eventlog.engine import Plan, SourceUpdate
from eventlog.errors import EventLogError, UsageError, WriterActive
from tests.fix_capture import (
    Background,
    assert_snapshot_equals_postgres,
    captured_in_background,
    state_of,
    until,
    wal_position,
)
from tests.fix_postgres import SETTINGS, WHEEL, Database, bindir

SLOT = "eventlog_shop"


@pytest.fixture(autouse=True)
def store_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The position of an idle source is stored sooner than every 10 s."""
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)


@pytest.fixture
def source(database: Database) -> cdc.Source:
    """A source with one table of one row."""
    database.execute("create table t (id int primary key); insert into t values (1)")
    return cdc.Source("shop", database.dsn, ["t"])


def refused(
    error: type[Exception], source: cdc.Source, log: eventlog.Log, **options: object
) -> str:
    """The sentence of the refusal; the log is as it was, and readable."""
    before = log.source("shop")
    streams = [(info.name, info.end) for info in log.streams()]
    with pytest.raises(error) as caught:
        source.capture(log, until="current", **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and not sentence.endswith(".") and sentence[0].islower()
    hint = getattr(caught.value, "hint", "")
    assert hint and "\n" not in hint
    assert log.source("shop") == before
    assert [(info.name, info.end) for info in log.streams()] == streams
    assert log.check() == []
    return sentence


def forge(log: eventlog.Log, **changed: object) -> None:
    """Store another state of the source, as if it had been captured elsewhere."""
    writer = log.engine.writer("shop")
    state = replace(state_of(log), **changed)
    update = SourceUpdate(stream="shop", writer_epoch=writer.epoch, state=state.to_map())
    log.engine.commit(Plan(sources=[update]))
    writer.close()


# Refusals of D7


def test_a_slot_that_is_gone_is_refused(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    source.capture(log, until="current")
    database.execute("select pg_drop_replication_slot(%s)", [SLOT])
    assert SLOT in refused(SlotMissing, source, log)


def test_a_slot_that_moved_on_without_the_log_is_refused(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    source.capture(log, until="current")
    database.execute("insert into t values (2)")
    database.execute("select pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [SLOT])
    sentence = refused(PositionBehindSlot, source, log)
    assert str(state_of(log).position) in sentence


def test_another_cluster_is_refused(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    source.capture(log, until="current")
    forge(log, system_id=4711)
    assert "4711" in refused(OtherSystem, source, log)


def test_a_server_that_was_restored_to_an_earlier_time_is_refused(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    source.capture(log, until="current")
    beyond = Lsn(int(wal_position(database)) + (1 << 40))
    forge(log, position=beyond)
    assert str(beyond) in refused(PositionBeyondServer, source, log)


def test_a_position_that_the_history_of_the_server_lacks_is_refused(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    source.capture(log, until="current")
    forge(log, timeline=7)
    refused(TimelineForked, source, log)


STATE = SourceState(
    phase=Phase.STREAMING,
    slot="s",
    slot_ours=True,
    temporary=False,
    publications=("p",),
    publications_ours=True,
    partial=False,
    tables=("t",),
    copied=True,
    system_id=1,
    timeline=2,
    position=Lsn(1000),
)


def at(timeline: int, wal: int = 5000, system_id: int = 1) -> ServerIdentity:
    return ServerIdentity(system_id=system_id, timeline=timeline, wal_position=Lsn(wal))


def switches(*ends: int) -> list[TimelineSwitch]:
    return [TimelineSwitch(timeline=i, end=Lsn(end)) for i, end in enumerate(ends, 1)]


@pytest.mark.parametrize(
    ("server", "history"),
    [
        (at(2), switches(500)),
        (at(2, wal=1000), switches(500)),
        (at(3), switches(500, 1000)),
        (at(3), switches(500, 3000)),
        (at(4), switches(500, 3000, 3000)),
    ],
)
def test_a_server_whose_history_goes_through_the_position_is_taken(
    server: ServerIdentity, history: list[TimelineSwitch]
) -> None:
    require_same_history(STATE, server, history)


@pytest.mark.parametrize(
    ("server", "history", "error"),
    [
        (at(2, wal=999), switches(500), PositionBeyondServer),
        (at(2, system_id=2), switches(500), OtherSystem),
        (at(3), switches(500, 999), TimelineForked),
        (at(4), switches(500, 800, 900), TimelineForked),
        (at(1), switches(), TimelineForked),
        (at(4), switches(500)[:1], TimelineForked),
    ],
)
def test_a_server_that_left_the_position_is_refused(
    server: ServerIdentity, history: list[TimelineSwitch], error: type[CaptureError]
) -> None:
    with pytest.raises(error) as caught:
        require_same_history(STATE, server, history)
    assert caught.value.hint and not caught.value.retry


def test_a_slot_may_be_behind_the_log_but_not_before_it() -> None:
    for confirmed in (None, Lsn(0), Lsn(999), Lsn(1000)):
        require_not_behind(STATE, confirmed)
    with pytest.raises(PositionBehindSlot, match="lost to this log"):
        require_not_behind(STATE, Lsn(1001))


# Other refusals


def test_a_slot_in_use_is_refused_after_some_retries(
    database: Database, source: cdc.Source, log: eventlog.Log, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(capture_module, "HELD_SLOT_S", 1.0)
    source.capture(log, until="current")
    forged = state_of(log)
    told: list[cdc.options.Event] = []
    with (
        eventlog.open(tmp_path / "other", create=True) as other,
        captured_in_background(
            other, cdc.Source("shop", database.dsn, ["t"]), copy=False, slot=SLOT
        ) as holder,
    ):
        holder.saw("streaming")
        pid = database.value(
            "select active_pid from pg_replication_slots where slot_name = %s", [SLOT]
        )
        assert f"pid {pid}" in refused(SlotInUse, source, log, report=told.append)
        assert [event.kind for event in told].count("retry") >= 3
        assert state_of(log) == forged


def test_a_slot_that_is_let_go_in_time_is_taken(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    source.capture(log, until="current")
    # One that acknowledges nothing, as a capture that was killed a moment ago.
    with closing(psycopg.connect(f"{database.dsn} replication=database", autocommit=True)) as held:
        options = "(proto_version '1', publication_names 'eventlog_shop')"
        started = held.pgconn.exec_(f"START_REPLICATION SLOT {SLOT} LOGICAL 0/0 {options}".encode())
        assert started.status == ExecStatus.COPY_BOTH
        with captured_in_background(log, source, until="current") as waiting:
            waiting.saw("retry")
            held.close()
            waiting.ended()
    assert waiting.outcome is not None


def test_a_slot_that_is_there_and_a_copy_are_refused(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [SLOT])
    assert SLOT in refused(SlotExists, source, log)
    assert log.source("shop") is None


def test_a_slot_of_another_plugin_is_refused(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    database.execute("select pg_create_logical_replication_slot('other', 'test_decoding')")
    assert "test_decoding" in refused(ServerNotReady, source, log, copy=False, slot="other")


def test_missing_tables_and_publications_are_refused_and_leave_no_slot(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    absent = cdc.Source("shop", database.dsn, ["t", "absent"])
    assert "absent" in refused(MissingTable, absent, log)
    assert "gone" in refused(MissingPublication, source, log, publication="gone")
    assert "no table" in refused(UsageError, cdc.Source("shop", database.dsn), log)
    assert not database.fetch(
        "select * from pg_replication_slots where database = current_database()"
    )


def test_other_tables_slots_and_publications_on_a_restart_are_refused(
    database: Database, source: cdc.Source, log: eventlog.Log
) -> None:
    source.capture(log, until="current")
    database.execute("create table u (id int primary key)")
    other = cdc.Source("shop", database.dsn, ["t", "u"])
    assert "tables ['t'], not ['t', 'u']" in refused(UsageError, other, log)
    assert "slot" in refused(UsageError, source, log, slot="another")
    assert "publication" in refused(UsageError, source, log, publication="another")
    cdc.Source("shop", database.dsn).capture(log, until="current")


def test_two_captures_of_one_stream_are_refused(source: cdc.Source, log: eventlog.Log) -> None:
    with captured_in_background(log, source) as first:
        first.saw("streaming")
        with pytest.raises(WriterActive) as caught:
            source.capture(log, until="current")
        assert caught.value.hint
        first.expect_alive()


def test_a_stream_of_events_is_not_captured_into(source: cdc.Source, log: eventlog.Log) -> None:
    log.stream("shop", create=True).append({"a": 1})
    with pytest.raises(EventLogError) as caught:
        source.capture(log, until="current")
    assert caught.value.hint and log.source("shop") is None


def test_a_wrong_address_leaves_no_stream(log: eventlog.Log) -> None:
    nowhere = cdc.Source("shop", "host=127.0.0.1 port=1 dbname=x", ["t"])
    with pytest.raises(ConnectionRefused) as caught:
        nowhere.capture(log)
    assert caught.value.hint and log.streams() == []


def test_a_server_that_cannot_decode_is_refused(tmp_path: Path, log: eventlog.Log) -> None:
    settings = {**SETTINGS, "wal_level": "replica"}
    with EmbeddedServer.start(bindir=bindir(WHEEL), settings=settings) as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("create table t (id int primary key)")
        assert "wal_level" in refused(ServerNotReady, cdc.Source("shop", server.dsn, ["t"]), log)


# Faults on the way


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server of this test's own, to be ill-treated."""
    with EmbeddedServer.start(bindir=bindir(WHEEL), settings=SETTINGS) as server:
        yield server


def insert_some(dsn: str, start: int, stop: int) -> None:
    with psycopg.connect(dsn) as conn:
        for number in range(start, stop):
            conn.execute("insert into t values (%s)", [number])
            conn.commit()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_restarts_is_connected_to_again(
    own_server: EmbeddedServer, log: eventlog.Log, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "BACKOFF_FIRST_S", 0.1)
    with psycopg.connect(own_server.dsn, autocommit=True) as conn:
        conn.execute("create table t (id int primary key)")
    source = cdc.Source("shop", own_server.dsn, ["t"])
    with captured_in_background(log, source) as running:
        running.saw("streaming")
        for turn in range(3):
            insert_some(own_server.dsn, turn * 100, turn * 100 + 100)
            own_server.stop(mode)
            running.saw("retry")
            own_server.restart()
            running.saw("streaming", turn + 2)
        with psycopg.connect(own_server.dsn, autocommit=True) as conn:
            conn.execute("insert into t values (1000)")
            position = conn.execute(
                "select pg_logical_emit_message(true, 'eventlog', 'test')::text"
            ).fetchone()
        assert position
        running.reached(Lsn.parse(position[0]))
    inserted = [c.key for c in log.stream("shop").read() if c.op is Op.INSERT]
    assert inserted == [*range(300), 1000]


def test_connections_that_are_cut_under_load_lose_nothing_and_double_nothing(
    database: Database, source: cdc.Source, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "BACKOFF_FIRST_S", 0.05)
    with captured_in_background(log, source, stage_bytes=20_000) as running:
        running.saw("streaming")
        writing = threading.Thread(target=insert_some, args=(database.dsn, 10, 2000))
        writing.start()
        database.execute("insert into t select g from generate_series(100000, 150000) g")
        for turn in range(8):
            streaming = sum(event.kind == "streaming" for event in running.events)
            # Any of its connections: the walsender, or the one that looks into the catalog.
            kind = "walsender" if turn % 2 else "client backend"
            database.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname ="
                " current_database() and application_name = 'eventlog' and backend_type = %s",
                [kind],
            )
            if kind == "walsender":
                running.saw("streaming", streaming + 1)
        writing.join()
        database.execute("create table u (id int); alter table t add column n int default 5")
        database.execute("insert into t values (9, 9)")
        running.reached(wal_position(database))
    inserted = [c.key for c in log.stream("shop").read() if c.op is Op.INSERT]
    assert len(inserted) == len(set(inserted)) == 1990 + 50_001 + 1
    # What was sent again and again is counted once.
    assert running.outcome is not None
    assert running.outcome.rows == 1 + len(inserted)
    small = [key for key in inserted if 10 <= key < 2000]
    assert small == list(range(10, 2000)), "in order"
    assert_snapshot_equals_postgres(log, database, "t")


def test_a_schema_is_not_guessed_because_a_connection_broke(
    database: Database, source: cdc.Source, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "BACKOFF_FIRST_S", 0.05)
    with captured_in_background(log, source) as running:
        running.saw("streaming")
        database.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname ="
            " current_database() and application_name = 'eventlog'"
            " and backend_type = 'client backend'"
        )
        database.execute("alter table t add column n int default 5; insert into t values (9, 9)")
        running.reached(wal_position(database))
    assert not any(stored["inferred"] for _, stored in log.engine.schemas("shop"))
    assert_snapshot_equals_postgres(log, database, "t")


def test_a_slot_that_is_dropped_meanwhile_ends_the_capture(
    database: Database, source: cdc.Source, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "BACKOFF_FIRST_S", 0.5)
    running = Background(log, source)
    running.saw("streaming")
    database.execute(
        "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots"
        " where slot_name = %s",
        [SLOT],
    )
    until(lambda: _dropped(database), "the slot's end")
    running.ended()
    assert isinstance(running.error, SlotMissing) and running.error.hint
    assert "while it was streamed from" in str(running.error)
    with pytest.raises(SlotMissing):
        source.capture(log, until="current")


def _dropped(database: Database) -> bool:
    try:
        database.execute("select pg_drop_replication_slot(%s)", [SLOT])
    except psycopg.errors.ObjectInUse:
        return False
    return True
