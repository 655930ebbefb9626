"""Backup: a whole and consistent copy of a log that others write, and what opening it begins."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import cdc
import eventlog
from cdc.commands.status import status
from cdc.errors import OtherSystem, RestoredFromBackup
from cdc.options import Event
from cdc.postgres import streaming
from cdc.postgres.state import Phase
from eventlog.engine import generation, rows
from eventlog.engine.upkeep import backup as backing_up
from eventlog.engine.upkeep import rewrite as rewriting
from eventlog.engine.upkeep.retain import retain
from eventlog.errors import DamagedLog, DiskFull, LogExists, LogUnreadable
from tests import workload
from tests.fix_capture import (
    assert_snapshot_equals_postgres,
    captured_in_background,
    confirmed,
    state_of,
    until,
    wal_position,
)
from tests.fix_postgres import Database, RunCli, assert_explained
from tests.test_compact import waste
from tests.test_sharing import running


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """Where the backup comes; if it is there at the end, it must be sound and nothing beside it."""
    place = tmp_path / "backups" / "copy"
    yield place
    if place.exists():
        with eventlog.open(place) as log:
            assert log.check() == []
        assert [path.name for path in place.parent.iterdir()] == ["copy"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of every kind of row."""
    directory = tmp_path_factory.mktemp("made") / "log"
    with eventlog.open(directory, create=True) as log:
        workload.run(log)
    return directory


@pytest.fixture
def worked(made: Path, log_dir: Path) -> Iterator[eventlog.Log]:
    """The same, opened; it must be sound at the end."""
    shutil.copytree(made, log_dir)
    with eventlog.open(log_dir) as log:
        yield log
        assert log.check() == []


# What a backup holds


def test_a_backup_holds_what_the_log_holds(worked: eventlog.Log, copy: Path) -> None:
    truth = workload.contents(worked)
    waste(worked.engine)
    told: list[tuple[int, int]] = []
    done = worked.backup(copy, progress=lambda *numbers: told.append(numbers))
    records = sum(info.end - info.start for info in worked.streams())
    assert done.records == records and told[-1] == (records, records)
    size = (copy / "data.mdb").stat().st_size
    assert done.bytes == size < (worked.path / "data.mdb").stat().st_size - (3 << 20)
    modes = {path.name: path.stat().st_mode & 0o777 for path in copy.rglob("*")}
    assert modes == {"data.mdb": 0o600, "blobs": 0o700}
    assert copy.stat().st_mode & 0o777 == 0o700
    with eventlog.open(copy) as log:
        assert workload.contents(log) == truth
        identities = [each.engine.identity() for each in (worked, log)]
        assert identities[0]["id"] == identities[1]["id"]
        assert log.engine.owners() == []
    assert worked.generation == 1 and workload.contents(worked) == truth


def test_opening_a_backup_begins_a_generation_once(
    worked: eventlog.Log, copy: Path, tmp_path: Path
) -> None:
    ends = {info.name: info.end for info in worked.streams()}
    worked.backup(copy)
    program = "log = eventlog.open(path); print(log.generation); print(log.generation)"
    opened = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys, eventlog; path = sys.argv[1];" + program,
                str(copy),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [child.communicate(timeout=60)[0] for child in opened] == ["2\n2\n"] * 4
    with eventlog.open(copy) as log:
        identity = log.engine.identity()
        assert identity["covers"] == {"2": ends} and "backup" not in identity
        named = log.stream("named")
        assert named.append("other", id=workload.id_of(2)) == 2, "ids are known"
        assert named.append("more") == ends["named"], "event streams just go on"
        log.backup(tmp_path / "second")
    with eventlog.open(tmp_path / "second") as log:
        assert log.generation == 3
        more = {**ends, "named": ends["named"] + 1}
        assert log.engine.identity()["covers"] == {"2": ends, "3": more}
        assert generation.restored(log.engine, "shop") == 3
        assert generation.restored(log.engine, "named") is None
        assert log.check() == []


@pytest.mark.parametrize(
    "command", [("check",), ("check", "--json"), ("repair", "--dry-run"), ("repair",)], ids=" ".join
)
def test_looking_at_a_backup_does_not_begin_its_generation(
    worked: eventlog.Log, copy: Path, run_cli: RunCli, command: tuple[str, ...]
) -> None:
    worked.backup(copy)
    before = hashlib.sha256((copy / "data.mdb").read_bytes()).digest()
    done = run_cli(*command, "--log", str(copy))
    assert (done.returncode, done.stderr) == (0, "")
    assert hashlib.sha256((copy / "data.mdb").read_bytes()).digest() == before
    with eventlog.open(copy) as log:
        assert log.generation == 2 and log.check() == []


def test_the_mark_says_what_was_backed_up_and_when(worked: eventlog.Log, copy: Path) -> None:
    before_us = time.time_ns() // 1000
    worked.backup(copy)
    # As a program would find it that does not open it as a log.
    store = rewriting.Store(copy, create=False)
    with store.read() as txn:
        found = rows.read_map(store, txn, rows.LOG_KEY) or {}
    store.close()
    mark = found["backup"]
    assert mark["of_generation"] == found["generation"] == 1
    assert before_us <= mark["taken_us"] <= time.time_ns() // 1000


def test_a_compacted_backup_is_one_that_was_opened(worked: eventlog.Log, copy: Path) -> None:
    from eventlog.engine.upkeep.compact import compact

    worked.backup(copy)
    compact(copy)
    with eventlog.open(copy) as log:
        assert log.generation == 2 and generation.restored(log.engine, "shop") == 2


# While others write

WRITES = """
log = eventlog.open(path)
clicks, left = log.stream("clicks"), log.stream("left")
consumer = clicks.consumer("c")
print("ready", flush=True)
number = 0
while True:
    clicks.append({"number": number}, id=number)
    with log.transaction() as tx:
        tx.append("left", number)
        tx.append("right", number)
    if number % 25 == 0:
        clicks.append_many([{"number": -1, "text": "x" * 200}] * 2_000)
    for batch in consumer.follow(until=clicks.end, max_rows=500):
        with consumer.commit(batch) as tx:
            tx.append("outputs", len(batch))
    number += 1
"""


def test_backups_of_a_log_that_is_written_are_consistent(log: eventlog.Log, copy: Path) -> None:
    names = ("clicks", "left", "right", "outputs")
    for name in names:
        log.stream(name, create=True)
    ends = []
    with running(WRITES, log.path):
        for _ in range(6):
            log.backup(copy)
            with eventlog.open(copy) as taken:
                assert taken.check() == []
                found = {name: taken.stream(name) for name in names}
                assert found["left"].end == found["right"].end, "one transaction"
                (consumer,) = taken.consumers()
                outputs = [event.value for event in found["outputs"].read()]
                assert consumer.offset == sum(outputs), "outputs and offset in one commit"
                for name, stream in found.items():
                    original = log.stream(name).read(0, stream.end)
                    assert [e.value for e in stream.read()] == [e.value for e in original]
                ends.append(found["clicks"].end)
                if ends[-1]:
                    assert found["clicks"].append("again", id=0) == 0
            shutil.rmtree(copy)
    assert ends == sorted(ends) and ends[-1] > ends[0], "it went on meanwhile"


def test_whatever_changes_between_two_reads_of_a_backup_it_is_one_cut(
    log: eventlog.Log, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for name, value in (("READ_ENTRIES", 2), ("READ_BYTES", 4 << 10), ("CATCH_UP_BYTES", 1)):
        monkeypatch.setattr(rewriting, name, value)
    names = ("a", "b", "c")
    streams = [log.stream(name, create=True, compression="zstd") for name in names]
    truth: dict[str, list[int]] = {name: [] for name in names}

    def change() -> None:
        stream = chance.choice(streams)
        values = truth[stream.name]
        match chance.randrange(6):
            case 0:
                for _ in range(chance.randrange(40)):
                    stream.append(len(values))
                    values.append(len(values))
            case 1:
                more = list(range(len(values), len(values) + chance.randrange(3_000)))
                stream.append_many(more)
                values += more
            case 2:
                below = chance.randint(stream.start, stream.end)
                retain(log.engine.store, stream.name, below=below)
            case 3:
                consumer = stream.consumer("c", start="end")
                if stream.start <= consumer.offset:
                    consumer.rewind("end")
            case 4:
                with log.transaction() as tx:
                    for name in names:
                        tx.append(name, len(truth[name]))
                        truth[name].append(len(truth[name]))

    dropped = 0
    for _ in range(8):
        for _ in range(10):
            change()
        starts, ends = [s.start for s in streams], [s.end for s in streams]
        log.backup(copy, progress=lambda done, total: change())
        dropped += [s.start for s in streams] != starts
        with eventlog.open(copy) as taken:
            assert taken.check() == []
            for name, start, end in zip(names, starts, ends, strict=True):
                stream = taken.stream(name)
                assert stream.start >= start and stream.end >= end
                values = [event.value for event in stream.read()]
                assert values == truth[name][stream.start : stream.end]
                for number in range(20):
                    stream.append(number)
            assert taken.check() == []
        shutil.rmtree(copy)
    assert dropped, "retention ran amid a backup"


def test_no_read_transaction_is_open_while_its_progress_is_told(
    log: eventlog.Log, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "READ_BYTES", 300_000)
    stream = log.stream("s", create=True)
    stream.append_many(["x" * 1_000] * 10_000)
    for number in range(20):
        stream.append(number)
    pinned: list[int] = []

    def open_reads() -> int:
        lines = log.engine.store._env.readers().splitlines()
        return sum(line.split()[-1].isdigit() for line in lines)

    log.backup(copy, progress=lambda done, total: pinned.append(open_reads()))
    assert len(pinned) > 20 and set(pinned) == {0}
    with log.engine.store.read():
        assert open_reads() == 1


# Refused, or cut off


def test_a_place_that_is_taken_is_refused(log: eventlog.Log, tmp_path: Path) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "mine").touch()
    file.touch()
    link.symlink_to(tmp_path / "empty")
    for place, why in (
        (full, "is not empty"),
        (file, "is no directory"),
        (link, "is no directory"),
        (log.path, "lies in the log itself"),
        (log.path / "derived" / "copy", "lies in the log itself"),
        (Path("/proc"), "is where a disk is mounted"),
    ):
        with pytest.raises(LogExists, match=why) as error:
            log.backup(place)
        assert error.value.hint
    assert [path.name for path in full.iterdir()] == ["mine"]
    assert not list(tmp_path.glob(".*"))


def test_an_empty_directory_and_a_relative_one_will_do(
    log: eventlog.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "new"):
        log.backup(name)
        with eventlog.open(tmp_path / name) as taken:
            assert taken.check() == [] and taken.generation == 2


def test_a_place_that_cannot_be_written_is_explained(
    log: eventlog.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogUnreadable, match="cannot make the backup") as error:
        log.backup(tmp_path / "file" / "copy")
    assert error.value.hint

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(backing_up, "sync_directory", full)
    with pytest.raises(DiskFull, match="no room for the backup") as error:
        log.backup(tmp_path / "copy")
    assert error.value.hint
    assert not (tmp_path / "copy").exists() and not list(tmp_path.glob(".*"))


def test_a_damaged_batch_stops_it_and_is_named(worked: eventlog.Log, copy: Path) -> None:
    engine = worked.engine
    entry = engine.entry_holding("bulk", 2_500)
    assert entry is not None
    key = entry.payload_id.to_bytes(8) + bytes(4)
    with engine.store.write() as txn:
        sound = txn.get(key, db=engine.store.payload)
        txn.put(key, sound[:-9] + b"?" + sound[-8:], db=engine.store.payload)
    where = rf"stream 'bulk', offsets \[{entry.first_offset}, {entry.stop}\)"
    with pytest.raises(DamagedLog, match=where) as error:
        worked.backup(copy)
    assert "eventlog repair" in error.value.hint
    assert list(copy.parent.iterdir()) == []
    with engine.store.write() as txn:
        txn.put(key, sound, db=engine.store.payload)
    worked.backup(copy)


def test_files_come_along_and_are_held_against_their_names(log: eventlog.Log, copy: Path) -> None:
    contents = [b"", b"a model", os.urandom(3 << 20)]
    blobs = log.path / "blobs"
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    for name, content in zip(names, contents, strict=True):
        (blobs / name).write_bytes(content)
    (blobs / "tmp-being-written").write_bytes(b"half")
    assert log.backup(copy).bytes > 3 << 20
    found = {path.name: path.read_bytes() for path in (copy / "blobs").iterdir()}
    assert found == dict(zip(names, contents, strict=True))
    assert {path.stat().st_mode & 0o777 for path in (copy / "blobs").iterdir()} == {0o600}
    shutil.rmtree(copy)
    (blobs / names[1]).write_bytes(b"a muddle")
    with pytest.raises(DamagedLog, match=names[1]) as error:
        log.backup(copy)
    assert error.value.hint and not copy.exists()


def test_two_backups_to_one_place_do_not_meet(log: eventlog.Log, copy: Path) -> None:
    log.stream("s", create=True).append_many(range(10))
    refused = []

    def progress(done: int, total: int) -> None:
        with pytest.raises(LogExists, match="another process is making the backup") as error:
            log.backup(copy)
        refused.append(error.value.hint)

    log.backup(copy, progress=progress)
    assert refused and all(refused)


def test_a_neighbour_of_that_name_that_no_backup_made_is_left_alone(
    log: eventlog.Log, tmp_path: Path
) -> None:
    neighbour = tmp_path / ".copy.partial"
    neighbour.mkdir()
    (neighbour / "mine").touch()
    with pytest.raises(LogExists, match="'mine', which no backup made"):
        log.backup(tmp_path / "copy")
    assert (neighbour / "mine").exists()


BACKS_UP = """
import itertools
log = eventlog.open(path)
print("ready", flush=True)
for number in itertools.count():
    log.backup(f"{sys.argv[2]}/{number}")
"""
KILLS = 12


def test_a_killed_backup_leaves_nothing_that_passes_for_one(
    worked: eventlog.Log, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    truth = workload.contents(worked)
    left = 0
    for life in range(KILLS):
        place = tmp_path / f"backups-{life}"
        place.mkdir()
        with running(BACKS_UP, worked.path, place) as child:
            time.sleep(chance.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
            child.wait()
        partial = list(place.glob(".*"))
        left += len(partial)
        for taken in set(place.iterdir()) - set(partial):
            with eventlog.open(taken) as log:
                assert workload.contents(log) == truth and log.check() == []
        for unfinished in partial:
            # The same place again: what was left is replaced.
            named = place / unfinished.name.removeprefix(".").removesuffix(".partial")
            worked.backup(named)
            assert not unfinished.exists()
            with eventlog.open(named) as log:
                assert workload.contents(log) == truth and log.check() == []
    assert left, "some died amid a backup"


# The commands


def test_the_commands_tell_what_was_made_and_which_generation_it_is(
    worked: eventlog.Log, copy: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    records = sum(info.end - info.start for info in worked.streams())
    done = run_cli("backup", str(copy), "--log", str(worked.path))
    size = (copy / "data.mdb").stat().st_size
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{copy} holds {records:,} records, {size:,} bytes\n"
    assert_explained(run_cli("backup", str(copy), "--log", str(worked.path)))
    other = tmp_path / "other"
    done = run_cli("backup", str(other), "--log", str(worked.path), "--json")
    assert json.loads(done.stdout) == {"backup": str(other), "records": records, "bytes": size}
    with eventlog.open(other) as log:
        assert log.check() == []
    assert run_cli("backup").returncode == 2


def test_status_tells_that_a_log_was_a_backup(worked: eventlog.Log, copy: Path) -> None:
    worked.backup(copy)
    for place, said in ((worked.path, ""), (copy, "opened as generation 2\n")):
        done = CliRunner().invoke(status, ["--log", str(place)])
        assert (
            done.exit_code == 0 and done.stderr.endswith(said) and bool(done.stderr) == bool(said)
        )
        assert "shop" in done.stdout


# A captured stream


@pytest.fixture
def shop(database18: Database, monkeypatch: pytest.MonkeyPatch) -> cdc.Source:
    """A source of one table; the position of an idle one is stored sooner than every 10 s."""
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)
    database18.execute("create table orders (id int primary key, amount int)")
    order(database18, 1, 50)
    return cdc.Source("shop", database18.dsn, ("public.*",))


def order(database: Database, first: int, last: int) -> None:
    database.execute(f"insert into orders select g, g from generate_series({first}, {last}) g")


def position_settled(log: eventlog.Log, database: Database) -> None:
    """Wait until the server was told all that the log holds."""
    until(lambda: confirmed(database) == state_of(log).position, "the slot to stand at the log's")


@pytest.fixture
def restored(
    log: eventlog.Log, shop: cdc.Source, database18: Database, copy: Path
) -> Iterator[eventlog.Log]:
    """A backup of a log whose capture ended in order, opened."""
    shop.capture(log, until="current")
    order(database18, 51, 60)
    shop.capture(log, until="current")
    position_settled(log, database18)
    log.backup(copy)
    with eventlog.open(copy) as opened:
        yield opened


def test_a_capture_goes_on_in_a_backup_if_nothing_was_captured_since(
    restored: eventlog.Log, shop: cdc.Source, database18: Database
) -> None:
    assert generation.restored(restored.engine, "shop") == 2
    events: list[Event] = []
    order(database18, 61, 70)
    shop.capture(restored, until="current", report=events.append)
    assert any("was a backup" in event.text for event in events)
    assert generation.restored(restored.engine, "shop") is None
    events.clear()
    order(database18, 71, 80)
    shop.capture(restored, until="current", report=events.append)
    assert not any("backup" in event.text for event in events)
    assert_snapshot_equals_postgres(restored, database18, "orders")


def test_a_backup_whose_original_captured_on_is_refused_and_the_original_goes_on(
    log: eventlog.Log, restored: eventlog.Log, shop: cdc.Source, database18: Database
) -> None:
    order(database18, 61, 70)
    shop.capture(log, until="current")
    end = restored.stream("shop").end
    for _ in range(2):
        with pytest.raises(RestoredFromBackup, match="opened as generation 2") as error:
            shop.capture(restored, until="current")
    assert f"acknowledged up to {confirmed(database18)}" in str(error.value)
    assert f"the backup ends at {state_of(restored).position}" in str(error.value)
    assert "under another name" in error.value.hint and not error.value.retry
    assert restored.stream("shop").end == end
    order(database18, 71, 80)
    shop.capture(log, until="current")
    assert_snapshot_equals_postgres(log, database18, "orders")
    # The remedy.
    anew = cdc.Source("shop2", shop.dsn, shop.tables)
    anew.capture(restored, until="current")
    assert restored.snapshot("shop2").table("public.orders").to_arrow().num_rows == 80
    assert restored.stream("shop").end == end


def test_a_backup_is_refused_at_once_while_the_original_captures(
    log: eventlog.Log, restored: eventlog.Log, shop: cdc.Source, database18: Database
) -> None:
    with captured_in_background(log, shop) as running_capture:
        running_capture.saw("streaming")
        until(
            lambda: database18.value("select active from pg_replication_slots"), "the slot's user"
        )
        with pytest.raises(RestoredFromBackup, match=r"in use by pid \d+ of the server"):
            shop.capture(restored, until="current")
        order(database18, 61, 70)
        running_capture.reached(wal_position(database18))
    assert_snapshot_equals_postgres(log, database18, "orders")


def test_a_backup_whose_slot_is_gone_is_refused(
    restored: eventlog.Log, shop: cdc.Source, database18: Database
) -> None:
    database18.execute("select pg_drop_replication_slot('eventlog_shop')")
    with pytest.raises(RestoredFromBackup, match="its slot 'eventlog_shop' is not on the server"):
        shop.capture(restored, until="current")


def test_a_backup_of_a_copy_that_was_not_done_leaves_the_originals_slot_alone(
    log: eventlog.Log, shop: cdc.Source, database18: Database, copy: Path
) -> None:
    shop.capture(log, until="current")
    with log.engine.store.write() as txn:
        state = replace(state_of(log), phase=Phase.COPYING).to_map()
        rows.write_source(log.engine.store, txn, "shop", state)
    log.backup(copy)
    with log.engine.store.write() as txn:
        state = replace(state_of(log), phase=Phase.STREAMING).to_map()
        rows.write_source(log.engine.store, txn, "shop", state)
    with (
        eventlog.open(copy) as restored,
        pytest.raises(RestoredFromBackup, match="the copy of its tables was not done"),
    ):
        shop.capture(restored, until="current")
    order(database18, 51, 60)
    shop.capture(log, until="current")
    assert_snapshot_equals_postgres(log, database18, "orders")


def test_another_server_settles_nothing(
    restored: eventlog.Log, shop: cdc.Source, database18: Database
) -> None:
    right = state_of(restored)
    for system_id in (right.system_id + 1, right.system_id):
        with restored.engine.store.write() as txn:
            state = replace(right, system_id=system_id).to_map()
            rows.write_source(restored.engine.store, txn, "shop", state)
        if system_id != right.system_id:
            with pytest.raises(OtherSystem):
                shop.capture(restored, until="current")
            assert generation.restored(restored.engine, "shop") == 2
    shop.capture(restored, until="current")
    assert generation.restored(restored.engine, "shop") is None
