"""Retention of event streams: by age, size and offset, and nothing that a consumer still needs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import eventlog
from eventlog.changes.quantities import byte_count, duration_us
from eventlog.engine.upkeep import retain as retention
from eventlog.errors import OffsetOutOfRange, OffsetsDropped, UsageError
from tests.fix_log import HOUR_US, T0_US, MadeSource
from tests.fix_postgres import RunCli, assert_explained


def fill(
    log: eventlog.Log, name: str = "clicks", *, batches: int = 10, size: int = 200_000
) -> None:
    """Batches of 10 events an hour apart, too large to be merged with others."""
    stream = log.stream(name, create=True)
    for number in range(batches):
        with mock.patch("eventlog.outbox.now_us", return_value=T0_US + number * HOUR_US):
            stream.append_many([f"{number}:{i}" + "." * 20_000 for i in range(10)])


def values(stream: eventlog.Stream) -> list[str]:
    return [event.value.rstrip(".") for event in stream.read()]


@pytest.fixture
def clicks(log: eventlog.Log) -> eventlog.Stream:
    fill(log)
    return log.stream("clicks")


def test_what_lies_below_an_offset_goes_in_whole_batches(clicks: eventlog.Stream) -> None:
    done = clicks.retain(below=37)
    assert (done.start, done.end, done.offsets, done.held_by) == (30, 100, 30, ())
    assert done.bytes > 600_000
    assert (clicks.start, clicks.end) == (30, 100)
    assert values(clicks) == [f"{n}:{i}" for n in range(3, 10) for i in range(10)]
    with pytest.raises(OffsetsDropped, match="the first retained one is 30"):
        clicks.read(29)
    assert clicks.retain(below=37).offsets == 0, "again is nothing"
    assert clicks.append("next") == 100, "offsets go on"


def test_an_age_counts_back_from_the_newest_event(clicks: eventlog.Stream) -> None:
    assert clicks.retain(older_than="3h").start == 60
    assert clicks.retain(older_than="90d").start == 60
    assert clicks.retain(older_than=timedelta(hours=2)).start == 70
    assert clicks.offset_at("2026-01-01T08:00Z") == 80
    assert clicks.offset_at("2026-01-01T00:00Z") == 70, "what was dropped has no time any more"


def test_a_size_keeps_the_newest_batches(clicks: eventlog.Stream) -> None:
    assert clicks.retain(max_bytes="650KB").start == 70
    assert clicks.retain(max_bytes=100).start == 100, "not even one batch is so small"
    assert values(clicks) == []
    assert clicks.append("next") == 100


def test_of_several_limits_each_is_kept(clicks: eventlog.Stream) -> None:
    done = clicks.retain(below=25, older_than="4h", max_bytes="1.1MB")
    assert (done.asked, done.start) == (50, 50)


def test_what_a_consumer_has_not_passed_stays_unless_forced(clicks: eventlog.Stream) -> None:
    slow = clicks.consumer("slow", start=20)
    clicks.consumer("fast", start=90)
    done = clicks.retain(below=80)
    assert (done.start, done.asked, done.held_by) == (20, 80, ("slow",))
    assert clicks.retain(below=80, force=True).start == 80
    with pytest.raises(OffsetsDropped, match="consumer 'slow' stands at 20") as error:
        next(iter(slow.follow()))
    assert "rewind(to=80)" in error.value.hint
    slow.rewind(to=80)
    batch = next(iter(slow.follow()))
    assert batch.start == 80


def test_a_dry_run_tells_and_drops_nothing(clicks: eventlog.Stream) -> None:
    clicks.consumer("slow", start=50)
    told = clicks.retain(below=80, dry_run=True)
    assert clicks.start == 0
    assert clicks.retain(below=80) == told


def test_a_captured_stream_is_not_cut(shop: MadeSource) -> None:
    with pytest.raises(UsageError, match="is captured"):
        shop.stream.retain(below=1)


def test_without_a_limit_nothing_is_guessed(clicks: eventlog.Stream) -> None:
    with pytest.raises(UsageError, match="nothing says what stream 'clicks' shall keep") as caught:
        clicks.retain()
    assert all(f"{name}=" in caught.value.hint for name in ("below", "older_than", "max_bytes"))


@pytest.mark.parametrize("below", [-1, 101, 10**9, "101"])
def test_a_cut_outside_the_stream_is_refused(clicks: eventlog.Stream, below: int | str) -> None:
    with pytest.raises(OffsetOutOfRange, match=r"outside \[0, 100\]") as caught:
        clicks.retain(below=below)
    assert "--below end" in caught.value.hint and clicks.start == 0


def test_all_may_go_and_what_went_before_may_be_named_again(clicks: eventlog.Stream) -> None:
    assert clicks.retain(below="end").start == 100
    assert clicks.retain(below=0).offsets == 0
    assert clicks.append("next") == 100


def test_a_consumer_that_is_not_needed_is_moved_out_of_the_way(clicks: eventlog.Stream) -> None:
    idle = clicks.consumer("idle")
    assert clicks.retain(below=50).held_by == ("idle",)
    idle.rewind(to="end")
    assert idle.offset == 100
    assert (clicks.retain(below=50).start, clicks.start) == (50, 50)


@pytest.mark.parametrize(
    "text", ["", "d", "3", "-3d", "3 days", "3D", 3, None, b"3d", timedelta(days=-3)]
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        duration_us(text)


def test_durations_and_sizes_have_their_units() -> None:
    assert [duration_us(t) for t in ("2w", timedelta(hours=1.5), "90s", "5ms")] == [
        14 * 86_400_000_000,
        5_400_000_000,
        90_000_000,
        5_000,
    ]
    assert [byte_count(t) for t in ("10GB", "2GiB", "1.5k", "7", 7)] == [
        10**10,
        2**31,
        1500,
        7,
        7,
    ]
    for bad in ("GB", "-1", "1XB", -1, True):
        with pytest.raises(UsageError, match="size"):
            byte_count(bad)
    for read, bad in ((byte_count, "9" * 400 + "GB"), (duration_us, "9" * 400 + "d")):
        with pytest.raises(UsageError, match="a number of 400 digits"):
            read(bad)


def test_entries_that_wait_to_be_merged_may_go_too(log: eventlog.Log) -> None:
    stream = log.stream("tiny", create=True)
    for number in range(100):
        stream.append(number)
    start = stream.retain(below=99).start
    assert 90 <= start <= 99
    for number in range(100, 200):
        stream.append(number)
    assert [event.value for event in stream.read()] == list(range(start, 200))


def test_progress_reaches_the_end(clicks: eventlog.Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCHES", 3)
    seen: list[tuple[int, int]] = []
    assert clicks.retain(below=95, progress=lambda *told: seen.append(told)).start == 90
    assert seen == [(30, 95), (60, 95), (90, 95)]


def test_freed_pages_are_used_again(log: eventlog.Log) -> None:
    fill(log, batches=20)
    stream = log.stream("clicks")
    before = (log.path / "data.mdb").stat().st_size
    for _ in range(10):
        stream.retain(max_bytes="1MB")
        fill(log, batches=10)
    after = (log.path / "data.mdb").stat().st_size
    assert after < before * 1.2, "ten times the retained size was appended since"


READS = """
import sys
import eventlog
with eventlog.open(sys.argv[1]) as log:
    for event in log.stream("clicks").read():
        if event.offset == 15:
            print("ready", flush=True)
            sys.stdin.readline()
"""


def test_a_reader_that_retention_overtakes_is_told_so(log: eventlog.Log) -> None:
    fill(log, batches=60)
    child = subprocess.Popen(
        [sys.executable, "-c", READS, str(log.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        log.stream("clicks").retain(below=590)
        _, errors = child.communicate("\n", timeout=60)
        assert "OffsetsDropped" in errors and "the first retained one is 590" in errors
    finally:
        child.kill()
        child.wait()


KILLED = """
import sys
import eventlog
from eventlog.engine.upkeep import retain
retain.BATCHES = 1
with eventlog.open(sys.argv[1]) as log:
    print("ready", flush=True)
    while True:
        log.stream("clicks").append_many(["." * 20_000] * 10)
        log.stream("clicks").retain(max_bytes="1MB")
"""


def test_killed_in_the_middle_a_stream_begins_somewhere_in_between(log: eventlog.Log) -> None:
    fill(log, batches=40)
    for life in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(log.path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(0.03 * life)
        child.kill()
        child.communicate()
        assert log.check() == []
        stream = log.stream("clicks")
        found = [event.offset for event in stream.read()]
        assert found == list(range(stream.start, stream.end))


def test_the_command_says_what_it_dropped_and_for_whom_it_kept(
    clicks: eventlog.Stream, log: eventlog.Log, run_cli: RunCli
) -> None:
    clicks.consumer("slow", start=20)
    where = ("--log", str(log.path))
    told = run_cli("retain", "clicks", "--below", "50", "--dry-run", "--json", *where)
    assert json.loads(told.stdout)["start"] == 20 and clicks.start == 0
    done = run_cli("retain", "clicks", "--older-than", "1h", *where)
    assert done.returncode == 0
    assert done.stdout.startswith("dropped 20 offsets, ")
    assert "it holds [20, 100)" in done.stdout and "kept for slow" in done.stdout
    assert 'rewind(to="end")' in done.stdout
    forced = run_cli("retain", "clicks", "--below", "50", "--force", "--json", *where)
    assert json.loads(forced.stdout)["start"] == 50
    unnamed = run_cli("retain", "clicks", *where)
    assert unnamed.returncode == 2 and "--max-bytes" in unnamed.stderr
    none = run_cli("retain", "clicks", "--below", "55", "--force", *where)
    assert "dropped 0 offsets" in none.stdout
    assert "the batch at 50 reaches past 55, and whole batches go" in none.stdout
    assert_explained(run_cli("retain", "clicks", "--older-than", "soon", *where))
    assert_explained(run_cli("retain", "nothing", "--below", "1", *where))


def test_a_damaged_batch_is_named_and_read_past_on_request(tmp_path: Path, run_cli: RunCli) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        fill(log, batches=5)
        stream = log.stream("clicks")
        store = log.engine.store
        with store.write() as txn:
            key = (2).to_bytes(8, "big") + bytes(4)
            stored = txn.get(key, db=store.payload)
            txn.put(key, stored[:-1] + b"!", db=store.payload)
            txn.delete((1).to_bytes(4, "big") + (30).to_bytes(8, "big"), db=store.index)
        with pytest.raises(eventlog.EventLogError, match=r"'clicks', offsets \[10, 20\)"):
            list(stream.read())
        found = stream.read(5, 45, damaged="skip")
        for _ in range(2):
            assert [event.offset for event in found] == [
                *range(5, 10),
                *range(20, 30),
                *range(40, 45),
            ]
        assert [(damage.start, damage.stop) for damage in found.damaged] == [(10, 20), (30, 40)]
        with pytest.raises(UsageError, match="no way 'foo' with damage") as caught:
            stream.read(damaged="foo")
        assert caught.value.hint == "there are `raise` and `skip`"
        assert "checksum" in found.damaged[0].why and "no index entry" in found.damaged[1].why
        done = run_cli("read", "clicks", "--json", "--skip-damaged", "--log", str(log.path))
        assert done.returncode == 1 and len(done.stdout.splitlines()) == 30
        assert "offsets [10, 20) were passed over" in done.stderr
        assert_explained(run_cli("read", "clicks", "--json", "--log", str(log.path)))
