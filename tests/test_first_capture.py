"""A first capture that fails, or is stopped, leaves nothing that was not there before."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

import cdc
import eventlog
from cdc.commands.capture import capture
from cdc.errors import (
    MissingTable,
    PermissionMissing,
    ServerNotReady,
    SlotBlocked,
    SlotExists,
    TooManyConnections,
)
from cdc.options import Event
from cdc.postgres import beginning, setup
from cdc.postgres.connection import Connection
from cdc.postgres.publishing import slot
from cdc.postgres.server import EmbeddedServer
from eventlog.engine import Plan
from eventlog.engine.withdrawing import remove_empty_log, withdraw_stream
from eventlog.errors import DiskFull, LogInUse, WriterActive
from tests.fix_capture import Background, captured_in_background, state_of, until
from tests.fix_postgres import SETTINGS, WHEEL, Database, bindir

TABLE = "create table t (id int primary key, mail text); insert into t values (1, 'a@b')"
LEFT = (
    "select pubname::text from pg_publication union all"
    " select slot_name::text from pg_replication_slots where database = current_database()"
)
"""What a capture may leave at the server."""


def shop(database: Database) -> cdc.Source:
    return cdc.Source("shop", database.dsn, ["t"])


def run(*args: str) -> Result:
    return CliRunner().invoke(capture, args)


Fault = Callable[[pytest.MonkeyPatch, Database], None]


def no_slot(patched: pytest.MonkeyPatch, database: Database) -> None:
    """The slot waits for a transaction that runs."""
    patched.setattr(slot, "LOCK_TIMEOUT_MS", 50)
    make = slot.create

    def create(*args: Any, **options: Any) -> slot.CreatedSlot:
        with psycopg.connect(database.dsn) as busy:
            busy.execute("insert into t values (2)")
            return make(*args, **{**options, "lock_timeout_ms": 50})

    patched.setattr(slot, "create", create)


def no_slot_yet(patched: pytest.MonkeyPatch, database: Database) -> None:
    """The same, and the server lets the slot go only after it said so."""
    no_slot(patched, database)
    make, inspect, held = slot.create, slot.inspect, []

    def create(replication: Connection, name: str, **options: Any) -> slot.CreatedSlot:
        try:
            return make(replication, name, **options)
        finally:
            database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
            held.append(replication.info.backend_pid)

    def look(conn: Connection, name: str) -> slot.SlotState | None:
        found = inspect(conn, name)
        if held and found is not None:
            found = replace(found, active=True, active_pid=held.pop())
            database.execute("select pg_drop_replication_slot(%s)", [name])
        return found

    patched.setattr(slot, "create", create)
    patched.setattr(slot, "inspect", look)


def no_state(patched: pytest.MonkeyPatch, database: Database) -> None:
    """The disk is full when the state is to be stored."""
    _full_at(patched, 1)


def no_second_state(patched: pytest.MonkeyPatch, database: Database) -> None:
    """The disk is full once the slot is made."""
    _full_at(patched, 2)


def _full_at(patched: pytest.MonkeyPatch, number: int) -> None:
    store, calls = beginning.Beginning._store, []

    def full(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise DiskFull("the disk is full", hint="free some space")
        return store(*args, **options)

    patched.setattr(beginning.Beginning, "_store", full)


def no_look(patched: pytest.MonkeyPatch, database: Database) -> None:
    """The table goes between the publications and the slot."""

    def gone(*args: Any) -> Any:
        raise MissingTable("table public.t was dropped meanwhile", hint="name another")

    patched.setattr(beginning, "observe", gone)


def interrupted(patched: pytest.MonkeyPatch, database: Database) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    patched.setattr(setup, "make_slot", interrupt)


FAULTS: list[tuple[Fault, type[BaseException]]] = [
    (no_slot, SlotBlocked),
    (no_slot_yet, SlotBlocked),
    (no_state, DiskFull),
    (no_second_state, DiskFull),
    (no_look, MissingTable),
    (interrupted, KeyboardInterrupt),
]


@pytest.mark.parametrize(("fault", "error"), FAULTS)
def test_a_first_capture_that_fails_leaves_log_and_server_as_they_were(
    database: Database,
    log: eventlog.Log,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    error: type[BaseException],
) -> None:
    database.execute(TABLE)
    log.stream("clicks", create=True).append({"n": 1})
    with monkeypatch.context() as patched:
        fault(patched, database)
        with pytest.raises(error):
            shop(database).capture(log, until="current")
    assert [info.name for info in log.streams()] == ["clicks"]
    assert log.source("shop") is None and log.check() == []
    assert not list((log.path / "locks").glob("stream-*"))
    assert database.fetch(LEFT) == []
    # The number of the stream is given again, and all is well.
    shop(database).capture(log, until="current")
    assert log.snapshot("shop").table("public.t").to_arrow().num_rows >= 1


@pytest.mark.parametrize(("fault", "error"), FAULTS)
def test_the_command_removes_the_log_that_it_made(
    database18: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    error: type[BaseException],
) -> None:
    database18.execute(TABLE)
    arguments = ["--source", "shop", "--dsn", database18.dsn, "--table", "t"]
    arguments += ["--hash", "t.mail", "--until", "current"]
    with monkeypatch.context() as patched:
        fault(patched, database18)
        done = run(*arguments, "--log", str(tmp_path / "a" / "b" / "log"))
        assert done.exit_code == 1
        assert list(tmp_path.iterdir()) == [], "neither folders nor the hashes' key"
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patched:
        fault(patched, database18)
        run(*arguments, "--log", str(tmp_path / "empty"))
        assert list(tmp_path.iterdir()) == [tmp_path / "empty"], "it was there before"
        assert list((tmp_path / "empty").iterdir()) == []
    assert run(*arguments, "--log", str(tmp_path / "empty")).exit_code == 0


def test_a_directory_that_holds_other_things_stays_as_it_was(
    database18: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database18.execute(TABLE)
    arguments = ["--source", "shop", "--dsn", database18.dsn, "--table", "t"]
    for number, names in enumerate(
        [["notes.txt"], ["derived/mine.csv"], ["blobs/mine.bin"], ["locks/mine.lock"]]
    ):
        directory = tmp_path / str(number)
        for name in names:
            (directory / name).parent.mkdir(parents=True)
            (directory / name).write_text("mine")
        with monkeypatch.context() as patched:
            no_state(patched, database18)
            assert run(*arguments, "--log", str(directory)).exit_code == 1
        if names == ["derived/mine.csv"]:  # A log could be made beside it, and stays.
            assert (directory / "derived/mine.csv").read_text() == "mine"
        else:
            kept = [str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()]
            assert kept == names


@contextmanager
def server(**settings: str) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(bindir=bindir(WHEEL), settings={**SETTINGS, **settings}) as started:
        with psycopg.connect(started.dsn, autocommit=True) as conn:
            conn.execute(TABLE)
        yield started


def test_a_server_that_is_not_ready_leaves_no_log(tmp_path: Path, log: eventlog.Log) -> None:
    with server(wal_level="replica") as unready:
        source = cdc.Source("shop", unready.dsn, ["t"])
        with pytest.raises(ServerNotReady, match="wal_level"):
            source.capture(log, until="current")
        assert log.streams() == []
        done = run(
            "--source", "shop", "--dsn", unready.dsn, "--table", "t", "--log", str(tmp_path / "l")
        )
        assert done.exit_code == 1 and not (tmp_path / "l").exists()


@pytest.mark.parametrize(
    ("setting", "error"),
    [("max_wal_senders", TooManyConnections), ("max_replication_slots", ServerNotReady)],
)
def test_a_server_without_room_for_one_more_leaves_no_log(
    tmp_path: Path, log: eventlog.Log, setting: str, error: type[Exception]
) -> None:
    with (
        server(**{setting: "1"}) as full,
        closing(psycopg.connect(f"{full.dsn} replication=database", autocommit=True)) as taker,
    ):
        taker.execute("CREATE_REPLICATION_SLOT other TEMPORARY LOGICAL pgoutput")
        with pytest.raises(error):
            cdc.Source("shop", full.dsn, ["t"]).capture(log, until="current")
        assert log.streams() == []
        with psycopg.connect(full.dsn) as conn:
            assert conn.execute("select pubname from pg_publication").fetchall() == []


def test_a_user_who_may_not_publish_leaves_no_log(database: Database, log: eventlog.Log) -> None:
    role = f"weak_{database.name}"
    database.execute(f"{TABLE}; create role {role} login replication; grant select on t to {role}")
    with pytest.raises(PermissionMissing):
        cdc.Source("shop", f"{database.dsn} user={role}", ["t"]).capture(log, until="current")
    assert log.streams() == [] and database.fetch(LEFT) == []
    database.execute(f"drop owned by {role}; drop role {role}")


def test_a_capture_that_is_stopped_before_its_slot_leaves_nothing(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(TABLE)
    with psycopg.connect(database.dsn) as busy:
        busy.execute("insert into t values (2)")
        running = Background(log, shop(database))
        waits = (
            "select count(*) from pg_stat_activity where query like 'CREATE_REPL%'"
            " and state = 'active' and datname = current_database()"
        )
        until(lambda: database.value(waits), "the wait for the transaction")
        running.stop()
    running.expect_alive()
    assert running.outcome is not None and running.outcome.slot is None
    assert log.streams() == [] and database.fetch(LEFT) == []


def test_what_was_there_before_stays(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(TABLE)
    database.execute("create publication eventlog_shop with (publish_via_partition_root = true)")
    database.execute("select pg_create_logical_replication_slot('eventlog_shop', 'pgoutput')")
    log.engine.create_stream("shop", "captured")
    with pytest.raises(SlotExists):
        shop(database).capture(log, until="current")
    no_state(monkeypatch, database)
    with pytest.raises(DiskFull):
        shop(database).capture(log, until="current", copy=False)
    assert [info.name for info in log.streams()] == ["shop"]
    left = {name for (name,) in database.fetch(LEFT)}
    assert left == {"eventlog_shop"}, "the publication that was made is gone, the other is not"
    assert len(database.fetch(LEFT)) == 2


def test_a_slot_that_somebody_made_meanwhile_keeps_its_publications(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(TABLE)
    make = setup.make_slot

    def late(*args: Any) -> Any:
        database.execute("select pg_create_logical_replication_slot('eventlog_shop', 'pgoutput')")
        return make(*args)

    monkeypatch.setattr(setup, "make_slot", late)
    with pytest.raises(SlotExists):
        shop(database).capture(log, until="current")
    assert log.streams() == []
    assert len(database.fetch(LEFT)) == 3


def test_a_slot_that_came_when_ours_was_refused_is_not_ours(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(TABLE)
    make = setup.make_slot
    other = cdc.Source("shop", database.dsn, ["t"])

    def refused(*args: Any) -> Any:
        with monkeypatch.context() as patched:
            no_slot(patched, database)
            try:
                return make(*args)
            finally:
                made = "select pg_create_logical_replication_slot('eventlog_shop', 'pgoutput')"
                database.execute(made)

    monkeypatch.setattr(setup, "make_slot", refused)
    with pytest.raises(SlotBlocked):
        other.capture(log, until="current")
    assert log.streams() == []
    assert len(database.fetch(LEFT)) == 3, "the slot, and the publications that it needs"


def test_a_source_that_another_process_began_meanwhile_stays(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(TABLE)
    source = cdc.Source("shop", database.dsn, ["t"])
    make, begun = log.engine.create_stream, []

    def late(*args: Any) -> Any:
        if not begun:
            begun.append(1)
            source.capture(log, until="current", copy=False)
        return make(*args)

    monkeypatch.setattr(log.engine, "create_stream", late)
    source.capture(log, until="current", copy=False)
    assert log.source("shop") is not None
    assert len(database.fetch(LEFT)) == 3
    database.execute("insert into t values (2)")
    source.capture(log, until="current")
    assert [change.op for change in log.stream("shop").read()] == ["insert"]


def test_a_slot_that_cannot_be_removed_stays_known(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(TABLE)
    told: list[Event] = []
    with monkeypatch.context() as patched:
        no_second_state(patched, database)

        def refused(*args: Any) -> None:
            raise PermissionMissing("must be owner of the slot", hint="ask a DBA")

        patched.setattr(slot, "drop", refused)
        with pytest.raises(DiskFull):
            shop(database).capture(log, until="current", report=told.append)
    assert state_of(log).phase == "creating"
    [text] = [event.text for event in told if "may stay there" in event.text]
    assert "must be owner" in text and "drop-source" in text
    shop(database).capture(log, until="current")
    assert log.snapshot("shop").table("public.t").to_arrow().num_rows == 1


def test_a_later_capture_that_fails_leaves_what_the_first_one_stored(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(TABLE)
    shop(database).capture(log, until="current")
    before = log.source("shop"), log.stream("shop").end
    database.execute(
        "drop publication eventlog_shop; select pg_drop_replication_slot('eventlog_shop')"
    )
    with pytest.raises(cdc.errors.SlotMissing):
        shop(database).capture(log, until="current")
    assert (log.source("shop"), log.stream("shop").end) == before


# Other processes


def test_only_what_nothing_was_stored_in_is_taken_back(log: eventlog.Log) -> None:
    engine = log.engine

    def made(name: str) -> int:
        return engine.create_stream(name, "captured").writer_epoch

    epoch = made("a")
    made("b")
    assert not withdraw_stream(engine, "a", writer_epoch=epoch), "a later one is there"
    assert not withdraw_stream(engine, "b", writer_epoch=7), "another writer came since"
    writer = engine.writer("b")
    assert not withdraw_stream(engine, "b", writer_epoch=writer.epoch), "it is being written"
    writer.close()
    engine.consumer("b", "reader", start=0)
    assert not withdraw_stream(engine, "b", writer_epoch=writer.epoch), "a consumer waits for it"
    log.stream("clicks", create=True)
    assert not withdraw_stream(engine, "clicks", writer_epoch=0), "it is of events"
    assert not withdraw_stream(engine, "nowhere", writer_epoch=0)
    epoch = made("c")
    assert withdraw_stream(engine, "c", writer_epoch=epoch)
    assert [info.name for info in log.streams()] == ["a", "b", "clicks"]
    assert engine.create_stream("c", "events").kind == "events"
    assert log.stream("c").append({"n": 1}) == 0


def test_two_that_begin_the_same_capture_at_once_leave_one(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(TABLE)
    with captured_in_background(log, shop(database)) as running:
        running.saw("streaming")
        with pytest.raises(WriterActive):
            shop(database).capture(log, until="current")
    assert log.snapshot("shop").table("public.t").to_arrow().num_rows == 1


def test_a_log_that_holds_anything_is_not_removed(tmp_path: Path) -> None:
    for number, put in enumerate(
        [
            lambda path: _with_stream(path),
            lambda path: (path / "blobs" / ("0" * 64)).write_text("a model"),
            lambda path: (path / "notes.txt").write_text("mine"),
            lambda path: (path / "data.mdb").write_bytes(b"damaged" * 9_999),
            lambda path: ((path / "data.mdb").unlink(), (path / "locks" / "owner-1.lock").touch()),
        ]
    ):
        path = tmp_path / str(number)
        eventlog.open(path, create=True).close()
        put(path)
        before = sorted(p for p in path.rglob("*") if p.name != "open.lock")
        assert not remove_empty_log(path)
        assert sorted(p for p in path.rglob("*") if p.name != "open.lock") == before
    path = tmp_path / "unused"
    eventlog.open(path, create=True).close()
    assert remove_empty_log(path) and list(path.iterdir()) == []
    assert not remove_empty_log(tmp_path / "nowhere")


def _with_stream(path: Path) -> None:
    with eventlog.open(path) as log:
        log.stream("clicks", create=True)


def test_a_log_that_another_process_has_open_is_not_removed(tmp_path: Path) -> None:
    path, key = tmp_path / "log", tmp_path / "log.hash-key"
    eventlog.open(path, create=True).close()
    key.write_text("its key")
    holding = (
        "import eventlog, sys\n"
        "with eventlog.open(sys.argv[1]) as log:\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    log.stream('clicks', create=True).append({'n': 1})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        assert not remove_empty_log(path, beside=[key])
        assert key.exists()
        other.communicate("\n")
    assert other.returncode == 0
    assert not remove_empty_log(path, beside=[key]), "it holds something by now"
    with eventlog.open(path) as log:
        assert log.stream("clicks").end == 1 and log.check() == []


def test_whoever_opens_a_log_while_it_is_removed_gets_a_sound_one_or_a_reason(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            remove_empty_log(path)

    removing = threading.Thread(target=remove)
    removing.start()
    try:
        opened = 0
        while opened < 30:
            try:
                log = eventlog.open(path, create=True)
            except (LogInUse, eventlog.errors.LogUnreadable, eventlog.errors.NotALog):
                continue  # Told, and nothing is lost: there was nothing.
            with log:
                log.engine.commit(Plan(create={"clicks": "events"}))
                assert log.check() == []
            opened += 1
    finally:
        stop.set()
        removing.join()
    with eventlog.open(path) as log:
        assert [info.name for info in log.streams()] == ["clicks"]
