"""Compacting: the same log in less space, or the log as it was, whenever it is cut off."""

from __future__ import annotations

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
from typing import Any

import pytest

import eventlog
from eventlog.engine import Engine, Transactions, batch_of, check, index, rows
from eventlog.engine.sealed import unseal
from eventlog.engine.store import DATABASES, Store
from eventlog.engine.upkeep import compact as compacting
from eventlog.engine.upkeep import rewrite as rewriting
from eventlog.engine.upkeep.compact import Compacted, compact
from eventlog.errors import DamagedLog, DiskFull, LogInUse, LogUnreadable, NotALog
from tests import workload
from tests.fix_postgres import RunCli, assert_explained
from tests.test_sharing import OPENS, running


def waste(engine: Engine, size: int = 4 << 20) -> None:
    """Leave that many bytes of free pages in the data file."""
    owner = engine.appender(engine.streams()[0].name)
    for number in range(size // (64 << 10)):
        one = Transactions.one(time_us=0)
        engine.stage(owner, [batch_of(2, [number.to_bytes(2) * (32 << 10)], one)])
    owner.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of every kind of row, with free space."""
    directory = tmp_path_factory.mktemp("made") / "log"
    with eventlog.open(directory, create=True) as log:
        workload.run(log)
        waste(log.engine)
    return directory


@pytest.fixture
def worked(made: Path, log_dir: Path) -> Iterator[Path]:
    """The same, to be worked on; it must be sound at the end."""
    shutil.copytree(made, log_dir)
    yield log_dir
    with eventlog.open(log_dir) as log:
        assert log.check() == []


def stored(directory: Path) -> dict[str, Any]:
    """All that a log stores, payload ids and the counter of them left out."""
    found: dict[str, Any] = {}
    with Engine.open(directory) as engine, engine.store.read() as txn:
        for name in set(DATABASES) - {"payload", "index"}:
            found[name] = dict(txn.cursor(db=getattr(engine.store, name)))
        numbers = unseal(rows.COUNTERS_KEY, found["meta"].pop(rows.COUNTERS_KEY))
        numbers.pop("payload")
        found["counters"] = numbers
        for row in rows.stream_rows(engine.store, txn):
            for key, value in txn.cursor(db=engine.store.index):
                stream, first = index.split_key(key)
                if stream == row.id:
                    entry = index.unpack(first, value, under=key)
                    bodies = dict(txn.cursor(db=engine.store.payload))
                    parts = [v for k, v in bodies.items() if k[:8] == entry.payload_id.to_bytes(8)]
                    packed = index.pack(replace(entry, payload_id=0), under=key)
                    found[f"{row.name} {first}"] = (packed, parts)
    return found


def test_a_compacted_log_holds_the_same_in_less_space(worked: Path) -> None:
    before = stored(worked)
    size = (worked / "data.mdb").stat().st_size
    told: list[tuple[int, int]] = []
    done = compact(worked, progress=lambda *numbers: told.append(numbers))
    assert done == Compacted(bytes_before=size, bytes_after=(worked / "data.mdb").stat().st_size)
    assert done.bytes_after < size - (3 << 20)
    assert stored(worked) == before
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    with eventlog.open(worked) as log:
        live = sum(info.end - info.start for info in log.streams())
        assert told[-1] == (2 * live, 2 * live)
        assert log.generation == 1
        payloads = [e.payload_id for e in entries(log.engine) if e.body is None]
        assert sorted(payloads) == list(range(1, len(payloads) + 1)), "ids are given anew"
    again = compact(worked)
    assert again.bytes_after <= again.bytes_before == done.bytes_after
    left = {path.name for path in worked.iterdir()}
    assert left == {"data.mdb", "lock.mdb", "locks", "blobs", "derived"}
    assert list((worked / "derived").iterdir()) == []


def entries(engine: Engine) -> Iterator[Any]:
    for row in sorted(engine.streams(), key=lambda row: row.id):
        for stretch in engine.scan(row.name, *engine.bounds(row.name), lambda entry: False):
            yield stretch.entry


def test_work_goes_on_in_a_compacted_log(worked: Path) -> None:
    with eventlog.open(worked) as log:
        truth = workload.contents(log)
    compact(worked)
    with eventlog.open(worked) as log:
        assert workload.contents(log) == truth
        clicks = log.stream("clicks")
        first = clicks.end
        for number in range(300):
            clicks.append({"number": number})
        assert [e.value["number"] for e in clicks.read(first)] == list(range(300))
        assert log.stream("named").append("again", id=workload.id_of(3)) == 3
        assert log.stream("named").append("new", id="new") == log.stream("named").end - 1
        log.engine.writer("shop").close()


def test_an_empty_log_and_an_empty_stream_are_compacted(log_dir: Path) -> None:
    for _ in range(2):
        with eventlog.open(log_dir, create=True) as log:
            log.stream("empty", create=True)
        assert compact(log_dir).bytes_after > 0
    with eventlog.open(log_dir) as log:
        assert log.stream("empty").append(1) == 0 and log.check() == []


def test_what_this_version_does_not_know_is_kept(worked: Path) -> None:
    with Engine.open(worked) as engine, engine.store.write() as txn:
        store = engine.store
        row = rows.stream_rows(store, txn)[0]
        rows.write_stream(store, txn, replace(row, more={**row.more, "later": [1, {"x": b"y"}]}))
        found = rows.read_map(store, txn, rows.FORMAT_KEY) or {}
        rows.write_map(store, txn, rows.FORMAT_KEY, {**found, "may_ignore": ["new"]})
        rows.write_map(store, txn, b"new/row", {"of": "a later version"})
        cursor = txn.cursor(db=store.index)
        assert cursor.first()
        key, value = cursor.item()
        entry = index.unpack(0, value, under=key)
        entry = replace(entry, more={**entry.more, "later": 7})
        txn.put(key, index.pack(entry, under=key), db=store.index)
    before = stored(worked)
    compact(worked)
    assert stored(worked) == before
    assert b"new/row" in before["meta"]


def test_what_dead_appenders_staged_is_left_behind(worked: Path) -> None:
    with Engine.open(worked) as engine:
        # As a capture leaves it that was killed.
        writer = engine.writer("shop")
        writer.owner.stage([batch_of(3, [b"x" * 1000], Transactions.one(time_us=0))])
        writer.owner._lock.release()
        writer._lock.release()
        assert len(engine.owners()) == 1
    compact(worked)
    with Engine.open(worked) as engine:
        assert engine.owners() == [] and check(engine) == []
        writer = engine.writer("shop")
        assert writer.owner.id > 1, "numbers are not given again"
        writer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_root_makes_still_belongs_to_the_owner_of_the_log(worked: Path) -> None:
    (worked / "locks" / "open.lock").unlink()
    for path in (worked, *worked.rglob("*")):
        os.chown(path, 12345, 12346)
    compact(worked)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in worked.rglob("*")}
    assert owners == {(12345, 12346)}


# Refused


def test_a_log_in_use_is_refused_and_the_processes_are_named(worked: Path, run_cli: RunCli) -> None:
    inode = (worked / "data.mdb").stat().st_ino
    with running(OPENS, worked) as child:
        done = run_cli("compact", "--log", str(worked))
        assert_explained(done)
        assert f"process {child.pid} has it open" in done.stderr
    with Engine.open(worked), pytest.raises(LogInUse, match=r"\(this one\)"):
        compact(worked)
    assert (worked / "data.mdb").stat().st_ino == inode


def test_nobody_opens_a_log_while_it_is_compacted(worked: Path) -> None:
    said = []

    def progress(done: int, total: int) -> None:
        with pytest.raises(LogInUse, match=f"process {os.getpid()} is compacting the log") as error:
            Engine.open(worked)
        said.append(error.value.hint)

    compact(worked, progress=progress)
    assert said


def test_a_full_disk_is_told_before_it_begins(
    worked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = stored(worked), os.statvfs

    def nearly_full(path: Any) -> Any:
        values = list(real(path))
        values[4] = 3 << 20 >> 12  # f_bavail
        values[1] = 4096  # f_frsize
        return os.statvfs_result(values)

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", nearly_full)
        patch.setattr(rewriting, "rewrite", None)
        with pytest.raises(
            DiskFull, match=r"needs [\d,]+ bytes .* the disk has 3,145,728"
        ) as error:
            compact(worked)
    assert "unchanged" in error.value.hint
    assert stored(worked) == before


@pytest.mark.parametrize("commits", [0, 1, 2, 3])
def test_a_disk_that_fills_up_meanwhile_changes_nothing(
    worked: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    before, real = stored(worked), Store.write
    left = commits

    def write(store: Store) -> Any:
        nonlocal left
        if store._directory.name == "compacting":
            if not left:
                raise DiskFull("the disk is full", hint="free some space")
            left -= 1
        return real(store)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", write)
        with pytest.raises(DiskFull):
            compact(worked)
    assert list((worked / "derived").iterdir()) == []
    assert stored(worked) == before
    compact(worked)


def test_a_damaged_batch_stops_it_and_is_named(worked: Path) -> None:
    with Engine.open(worked) as engine:
        entry = engine.entry_holding("bulk", 2_500)
        assert entry is not None
        key = entry.payload_id.to_bytes(8) + bytes(4)
        with engine.store.write() as txn:
            body = bytearray(txn.get(key, db=engine.store.payload))
            body[100] ^= 1
            txn.put(key, bytes(body), db=engine.store.payload)
    where = rf"stream 'bulk', offsets \[{entry.first_offset}, {entry.stop}\)"
    with pytest.raises(DamagedLog, match=where) as error:
        compact(worked)
    assert "eventlog repair" in error.value.hint
    assert list((worked / "derived").iterdir()) == []
    mend(worked, key, lambda value: value[:100] + bytes([value[100] ^ 1]) + value[101:])


def mend(directory: Path, key: bytes, change: Any, database: str = "payload") -> None:
    with Engine.open(directory) as engine, engine.store.write() as txn:
        value = txn.get(key, db=getattr(engine.store, database))
        txn.put(key, change(value), db=getattr(engine.store, database))


def test_a_missing_or_damaged_entry_stops_it_and_is_named(worked: Path) -> None:
    with Engine.open(worked) as engine:
        entry = engine.entry_holding("bulk", 2_500)
        assert entry is not None
        key = index.key(engine.stream("bulk").id, entry.first_offset)
        with engine.store.write() as txn:
            value = txn.get(key, db=engine.store.index)
            txn.put(key, value[:-1], db=engine.store.index)
    with pytest.raises(DamagedLog, match=f"stream 'bulk'.* at offset {entry.first_offset}"):
        compact(worked)
    with Engine.open(worked) as engine, engine.store.write() as txn:
        txn.delete(key, db=engine.store.index)
    with pytest.raises(DamagedLog, match=f"'bulk' begins at offset {entry.first_offset}") as error:
        compact(worked)
    assert "eventlog repair" in error.value.hint
    with Engine.open(worked) as engine, engine.store.write() as txn:
        txn.put(key, value, db=engine.store.index)


def test_a_log_that_is_not_sound_stays_as_it_is(worked: Path) -> None:
    with Engine.open(worked) as engine, engine.store.write() as txn:
        stream = rows.stream_row(engine.store, txn, "left")
        assert stream is not None
        row = rows.consumer_row(engine.store, txn, stream, "idle")
        assert row is not None
        wrong = replace(row, offset=10**6)
        rows.write_consumer(engine.store, txn, stream.id, "idle", wrong)
    size = (worked / "data.mdb").stat().st_size
    with pytest.raises(DamagedLog, match="not sound, and stays as it is: I2") as error:
        compact(worked)
    assert "eventlog check" in error.value.hint
    assert (worked / "data.mdb").stat().st_size == size
    with Engine.open(worked) as engine, engine.store.write() as txn:
        rows.write_consumer(engine.store, txn, stream.id, "idle", row)


def test_what_is_no_log_is_not_compacted(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotALog):
            compact(directory)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_in_the_way_is_explained(worked: Path) -> None:
    (worked / "derived" / "compacting").touch()
    with pytest.raises(LogUnreadable, match="cannot compact") as error:
        compact(worked)
    assert error.value.hint
    (worked / "derived" / "compacting").unlink()
    compact(worked)


# Cut off

DIES = """
import os, sys
from pathlib import Path
from eventlog.engine.store import Store
from eventlog.engine.upkeep.compact import compact
calls = 0

def dies_at(holder, name):
    real = getattr(holder, name)
    def call(*arguments, **more):
        global calls
        for _ in range(2):          # before the call, and after it
            calls += 1
            if calls == int(sys.argv[2]):
                os._exit(91)
            if _ == 0:
                result = real(*arguments, **more)
        return result
    setattr(holder, name, call)

for name in ("mkdir", "rename", "unlink", "fsync"):
    dies_at(os, name)
dies_at(Store, "close")
compact(Path(sys.argv[1]))
print(calls)
"""


def dying(directory: Path, call: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DIES, str(directory), str(call)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_may_die_at_each_call_to_the_system(worked: Path) -> None:
    before = stored(worked)
    whole = dying(worked, 0)
    assert whole.returncode == 0, whole.stderr
    calls = int(whole.stdout)
    assert calls >= 12
    ends: list[bool] = []
    for call in range(1, calls + 1):
        inode = (worked / "data.mdb").stat().st_ino
        assert dying(worked, call).returncode == 91
        ends.append((worked / "data.mdb").stat().st_ino != inode)
        assert stored(worked) == before
        with Engine.open(worked) as engine:
            assert check(engine) == []
    assert ends == sorted(ends) and len(set(ends)) == 2, "the old one up to the rename"
    compact(worked)
    assert list((worked / "derived").iterdir()) == []


KILLS = 25


def test_it_may_be_killed_at_any_moment(worked: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    before = stored(worked)
    program = """
from eventlog.engine.upkeep.compact import compact
print("ready", flush=True)
while True:
    compact(path)
"""
    for _ in range(KILLS):
        with running(program, worked) as child:
            time.sleep(chance.uniform(0, 0.15))
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert stored(worked) == before
    with Engine.open(worked) as engine:
        assert check(engine) == []
    compact(worked)
    assert list((worked / "derived").iterdir()) == []


# The command


def test_the_command_tells_what_it_gave_back(worked: Path, run_cli: RunCli) -> None:
    done = run_cli("compact", "--log", str(worked), "--json")
    assert done.returncode == 0 and done.stderr == ""
    sizes = json.loads(done.stdout)
    assert set(sizes) == {"bytes_before", "bytes_after"}
    with Engine.open(worked) as engine:
        waste(engine, 1 << 20)
    before = (worked / "data.mdb").stat().st_size
    done = run_cli("compact", "--log", str(worked))
    after = (worked / "data.mdb").stat().st_size
    said = f"gave back {before - after:,} bytes; {before:,} before, {after:,} now"
    assert (done.returncode, done.stdout) == (0, f"{worked}: {said}\n")
    assert after < before
    assert "nothing to give back" in run_cli("compact", "--log", str(worked)).stdout


def test_it_is_written_in_commits_of_a_bounded_size(
    worked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(worked)
    sizes: list[int] = []
    real = rewriting.Target._flush

    def flush(target: Any) -> None:
        sizes.append(sum(len(part) for _, _, parts in target._pending for part in parts))
        real(target)

    monkeypatch.setattr(rewriting.Target, "_flush", flush)
    monkeypatch.setattr(rewriting, "COMMIT_BYTES", 64 << 10)
    monkeypatch.setattr(rewriting, "READ_BYTES", 16 << 10)
    monkeypatch.setattr(rewriting, "READ_ENTRIES", 3)
    monkeypatch.setattr(rewriting, "COMMIT_ROWS", 2)
    compact(worked)
    with Engine.open(worked) as engine:
        largest = max(entry.body_bytes for entry in entries(engine))
    assert len(sizes) > 5 and max(sizes) < (64 << 10) + largest
    assert stored(worked) == before
    assert compacting.SPARE_BYTES > 0
