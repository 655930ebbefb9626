"""Following: woken by every commit, by whatever process; idle meanwhile; nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog import following
from eventlog.engine import watch
from eventlog.errors import ClosedLog, UsageError
from tests.fix_log import INT, MadeSource, column, insert
from tests.test_engine_reading import forked

PATIENCE_S = 60.0
"""A wait that lasts so long has missed what should have ended it."""


@pytest.fixture
def clicks(log: eventlog.Log) -> eventlog.Stream:
    return log.stream("clicks", create=True)


@pytest.fixture
def inotify(tmp_path: Path) -> None:
    """This machine has an instance left."""
    tried = watch.Watch.open(tmp_path)
    if tried.fileno() is None:
        pytest.skip("there is no inotify, or none left")
    tried.close()


@pytest.fixture
def no_timer(inotify: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but an event ends a wait."""
    monkeypatch.setattr(watch, "LONGEST_S", 2 * PATIENCE_S)
    monkeypatch.setattr(following, "WAIT_S", 2 * PATIENCE_S)


@pytest.fixture(params=["inotify", "no function", "no instance left", "no watch left"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to wait, and each reason to poll."""
    refuse(monkeypatch, request.param)
    return str(request.param)


def refuse(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    called = watch._called

    def refusing(name: str, *arguments: Any) -> int:
        if (reason, name) == ("no instance left", "inotify_init1"):
            raise OSError(errno.EMFILE, "too many")
        if (reason, name) == ("no watch left", "inotify_add_watch"):
            raise OSError(errno.ENOSPC, "too many")
        return called(name, *arguments)

    monkeypatch.setattr(watch, "_called", refusing)
    if reason == "no function":
        monkeypatch.setattr(watch, "_LIBC", object())


def descriptors() -> dict[int, str]:
    """The open files of this process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # The listing's own.
    return found


def inotifies() -> list[int]:
    return [number for number, name in descriptors().items() if name == "anon_inode:inotify"]


def values(batch: Any) -> list[Any]:
    return [event.value for event in batch]


async def gathered(followed: Any) -> list[Any]:
    return [batch async for batch in followed]


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start `work` in a thread; what is returned waits for its result."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def joined() -> Any:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "it still waits"
        return result[0]

    return joined


def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# Across processes

FOLLOWS = """
import asyncio, json, sys
import eventlog
got = []

def take(batch):
    assert len(batch) > 0 and batch.start == (got[-1][0] + 1 if got else 0)
    got.extend((event.offset, event.value) for event in batch)

async def follow(following):
    async for batch in following:
        take(batch)

with eventlog.open(sys.argv[1]) as log:
    following = log.stream("clicks").follow("begin", until=int(sys.argv[3]), max_rows=7)
    print("ready", flush=True)
    if sys.argv[2] == "async for":
        asyncio.run(follow(following))
    else:
        for batch in following:
            take(batch)
print(json.dumps(got))
"""

APPENDS = """
import sys
import eventlog
with eventlog.open(sys.argv[1]) as log:
    clicks = log.stream("clicks")
    for number in range(0, 120, 3):
        clicks.append([sys.argv[2], number])
        clicks.append_many([[sys.argv[2], number + 1], [sys.argv[2], number + 2]])
        log.stream("other").append(number)
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def output(child: subprocess.Popen[str]) -> str:
    """What a process printed that ended well."""
    try:
        text, _ = child.communicate(timeout=2 * PATIENCE_S)
    finally:
        child.kill()
    assert child.returncode == 0
    return text


def test_followers_in_other_processes_have_every_event_once_and_in_order(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    log.stream("other", create=True)
    followers = [start(FOLLOWS, log.path, how, 360) for how in ("for", "async for")]
    for follower in followers:
        assert follower.stdout is not None and follower.stdout.readline() == "ready\n"
    writers = [start(APPENDS, log.path, name) for name in "abc"]
    for writer in writers:
        output(writer)
    expected = [[event.offset, event.value] for event in clicks.read()]
    assert [offset for offset, _ in expected] == list(range(360))
    for name in "abc":
        assert [n for _, (writer, n) in expected if writer == name] == list(range(120))
    for follower in followers:
        assert json.loads(output(follower)) == expected


APPENDS_ONE = """
import sys
import eventlog
with eventlog.open(sys.argv[1]) as log:
    print(log.stream("clicks").append("from afar"))
"""


@pytest.mark.usefixtures("no_timer")
@pytest.mark.parametrize("how", ["for", "async for"])
def test_a_commit_of_another_process_ends_a_wait_by_itself(
    log: eventlog.Log, clicks: eventlog.Stream, how: str
) -> None:
    followed = clicks.follow(until=1)
    if how == "for":
        joined = in_thread(lambda: list(followed))
    else:
        joined = in_thread(lambda: asyncio.run(gathered(followed)))
    until(inotifies)
    assert output(start(APPENDS_ONE, log.path)) == "0\n"
    assert [values(batch) for batch in joined()] == [["from afar"]]


RETAINS = """
import sys
import eventlog
from eventlog.engine.upkeep.retain import retain
with eventlog.open(sys.argv[1]) as log:
    retain(log.engine.store, "clicks", below=int(sys.argv[2]))
    print(log.stream("clicks").start)
"""


@pytest.mark.parametrize("how", ["for", "async for"])
def test_a_retention_by_another_process_does_not_disturb_a_follower_above_it(
    log: eventlog.Log, clicks: eventlog.Stream, how: str
) -> None:
    for number in range(40):
        clicks.append_many([number] * 100)
    got: list[Any] = []
    starts: list[int] = []

    def take(batch: Any) -> None:
        got.append((batch.start, batch.stop))
        if len(got) in (1, 30):
            starts.append(int(output(start(RETAINS, log.path, batch.stop))))
            clicks.append_many(["more"] * 100)

    followed = clicks.follow("begin", until=4_200, max_rows=100)
    if how == "for":
        for batch in followed:
            take(batch)
    else:

        async def follow() -> None:
            async for batch in followed:
                take(batch)

        asyncio.run(follow())
    assert got == [(first, first + 100) for first in range(0, 4_200, 100)]
    assert 0 < starts[1] <= 3_000, "whole batches are dropped"
    assert clicks.start == starts[1]


# Whatever the means


def test_a_loop_that_waits_and_one_that_is_awaited_see_the_same(
    clicks: eventlog.Stream, means: str
) -> None:
    followed = clicks.follow("begin", until=60, max_rows=8)

    def iterate() -> list[Any]:
        return list(followed)

    def iterate_awaited() -> list[Any]:
        return asyncio.run(gathered(followed))

    followers = [in_thread(iterate), in_thread(iterate_awaited)]
    for size in (1, 20, 1, 2, 30, 6):
        clicks.append_many(range(clicks.end, clicks.end + size))
    for joined in followers:
        found = joined()
        assert [n for batch in found for n in values(batch)] == list(range(60))
        assert [batch.start for batch in found] == [0] + [batch.stop for batch in found[:-1]]
        assert max(map(len, found)) <= 8
    assert means == "inotify" or inotifies() == []
    plain, awaited = iterate(), iterate_awaited()
    assert [(b.start, b.stop, values(b)) for b in plain] == [
        (b.start, b.stop, values(b)) for b in awaited
    ]


@pytest.mark.usefixtures("means")
def test_a_wait_ends_in_time_or_with_the_next_commit(log: eventlog.Log) -> None:
    engine = log.engine
    seen = engine.wait(-1, timeout_s=0)
    assert engine.wait(seen, timeout_s=0.01) == seen
    joined = in_thread(lambda: engine.wait(seen, timeout_s=PATIENCE_S))
    log.stream("clicks", create=True)
    assert joined() == seen + 1
    assert engine.wait(seen, timeout_s=PATIENCE_S) == seen + 1, "it was there already"


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("how", ["wait", "for", "async for"])
def test_closing_the_log_ends_a_wait(log: eventlog.Log, clicks: eventlog.Stream, how: str) -> None:
    engine, followed = log.engine, clicks.follow()
    lent = engine.watches._lent

    def wait() -> Any:
        if how == "wait":
            return engine.wait(engine.wait(-1, timeout_s=0), timeout_s=10 * PATIENCE_S)
        if how == "for":
            return list(followed)
        return asyncio.run(gathered(followed))

    joined = in_thread(wait)
    until(lambda: lent)
    log.close()
    assert isinstance(joined(), ClosedLog)
    assert inotifies() == []


@pytest.mark.usefixtures("no_timer")
@pytest.mark.parametrize("how", ["for", "async for"])
def test_closing_one_handle_ends_its_waits_and_no_others(log: eventlog.Log, how: str) -> None:
    log.stream("clicks", create=True)
    other = eventlog.open(log.path)
    seen = log.engine.wait(-1, timeout_s=0)
    followed = other.stream("clicks").follow()
    if how == "for":
        theirs = in_thread(lambda: list(followed))
    else:
        theirs = in_thread(lambda: asyncio.run(gathered(followed)))
    ours = in_thread(lambda: log.engine.wait(seen, timeout_s=PATIENCE_S))
    until(lambda: len(inotifies()) == 2)
    other.close()
    assert isinstance(theirs(), ClosedLog)
    log.stream("clicks").append("x")
    assert ours() == seen + 1


@pytest.mark.usefixtures("no_timer")
def test_one_commit_wakes_all_threads_and_few_watches_are_kept(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    many = watch.IDLE_MAX + 3
    seen = log.engine.wait(-1, timeout_s=0)
    waits = [in_thread(lambda: log.engine.wait(seen, timeout_s=PATIENCE_S)) for _ in range(many)]
    until(lambda: len(inotifies()) == many)
    clicks.append("x")
    assert [joined() for joined in waits] == [seen + 1] * many
    assert len(inotifies()) == watch.IDLE_MAX
    log.close()
    assert inotifies() == []


OUT_OF_DESCRIPTORS = """
import os, resource, sys, threading
import eventlog
with eventlog.open(sys.argv[1]) as log:
    clicks = log.stream("clicks")
    clicks.append("warm")
    assert [event.value for event in clicks.read()] == ["warm"]  # Loads the codec.
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    try:
        while True:
            taken.append(os.dup(1))
    except OSError:
        pass
    threading.Timer(0.05, clicks.append, ["late"]).start()
    got = [event.value for batch in clicks.follow("begin", until=2) for event in batch]
    for number in taken:
        os.close(number)
print(got)
"""


def test_a_process_out_of_descriptors_polls(log: eventlog.Log, clicks: eventlog.Stream) -> None:
    assert output(start(OUT_OF_DESCRIPTORS, log.path)) == "['warm', 'late']\n"
    assert clicks.end == 2


# What waiting costs


@pytest.fixture
def looked(log: eventlog.Log, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every look at the number of the last commit."""
    found: list[int] = []
    last_transaction = log.engine.store.last_transaction

    def counted() -> int:
        found.append(last_transaction())
        return found[-1]

    monkeypatch.setattr(log.engine.store, "last_transaction", counted)
    return found


def asked(times: int) -> Callable[[], bool]:
    """A `stop` that says yes when it is asked for the last time."""
    answers = iter([False] * (times - 1) + [True])
    return lambda: next(answers)


@pytest.mark.usefixtures("inotify")
def test_an_idle_wait_looks_ten_times_a_second_at_most(
    log: eventlog.Log, looked: list[int]
) -> None:
    seen = log.engine.wait(-1, timeout_s=0)
    looked.clear()
    log.engine.wait(seen, timeout_s=0.45)
    assert 2 <= len(looked) <= 0.45 / watch.LONGEST_S + 3


def test_without_inotify_a_wait_looks_as_often_as_it_polls(
    log: eventlog.Log, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "no instance left")
    seen = log.engine.wait(-1, timeout_s=0)
    looked.clear()
    log.engine.wait(seen, timeout_s=0.2)
    assert 2 <= len(looked) <= 0.2 / watch.POLL_S + 3


@pytest.mark.usefixtures("inotify")
@pytest.mark.parametrize("how", ["for", "async for"])
def test_an_idle_follower_does_not_read_what_it_has_read(
    log: eventlog.Log,
    clicks: eventlog.Stream,
    looked: list[int],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    ranges: list[str] = []
    checked_range = log.engine.checked_range

    def counted(name: str, start: int | None, stop: int | None) -> tuple[int, int]:
        ranges.append(name)
        return checked_range(name, start, stop)

    followed = clicks.follow(stop=asked(6))
    monkeypatch.setattr(log.engine, "checked_range", counted)
    if how == "for":
        assert list(followed) == []
    else:
        assert asyncio.run(gathered(followed)) == []
    assert ranges == ["clicks"], "once, and then it waits"
    assert len(looked) <= 6 * 5


@pytest.mark.usefixtures("inotify")
@pytest.mark.parametrize("how", ["for", "async for"])
def test_commits_to_other_streams_give_no_batch_and_no_busy_loop(
    log: eventlog.Log, clicks: eventlog.Stream, looked: list[int], how: str
) -> None:
    other = log.stream("other", create=True)
    looked.clear()
    followed = clicks.follow(until=1)
    if how == "for":
        joined = in_thread(lambda: list(followed))
    else:
        joined = in_thread(lambda: asyncio.run(gathered(followed)))
    for number in range(20):
        other.append(number)
        time.sleep(0.005)
    clicks.append("x")
    assert [values(batch) for batch in joined()] == [["x"]]
    numbers = len(set(looked))
    assert numbers <= 22
    # Between two numbers: the looks after early events, at doubling distances.
    assert len(looked) <= 100 * numbers


def test_tables_that_are_not_followed_give_no_batch(shop: MadeSource) -> None:
    orders = shop.table("orders", column("id", INT, key=True), relation=1)
    items = shop.table("items", column("id", INT, key=True), relation=2)
    for number in range(3):
        shop.commit(insert(items, number))
    shop.commit(insert(orders, 7))
    shop.commit(insert(items, 8))
    followed = shop.stream.follow("begin", table="orders", until="current")
    plain, awaited = list(followed), asyncio.run(gathered(followed))
    assert [[change.key for change in batch] for batch in plain] == [[7]]
    assert [[change.key for change in batch] for batch in awaited] == [[7]]


def test_an_awaited_loop_reads_in_another_thread(
    log: eventlog.Log, clicks: eventlog.Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: set[int] = set()
    scan = log.engine.scan

    def noted(*arguments: Any, **more: Any) -> Any:
        readers.add(threading.get_ident())
        return scan(*arguments, **more)

    clicks.append_many(range(20))
    monkeypatch.setattr(log.engine, "scan", noted)
    found = asyncio.run(gathered(clicks.follow("begin", until=20, max_rows=5)))
    assert len(found) == 4
    assert len(readers) > 0
    assert threading.get_ident() not in readers


# Nothing left behind


@pytest.mark.usefixtures("inotify")
def test_cancelled_and_broken_loops_leave_no_descriptor_and_no_reader(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    clicks.append("x")
    counts = []

    async def follow(leave: bool) -> None:
        async for _ in clicks.follow("begin"):
            if leave:
                break

    async def waits() -> None:
        while not log.engine.watches._lent:
            await asyncio.sleep(0.001)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(8):
            await follow(True)
            task = asyncio.create_task(follow(False))
            await waits()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert log.engine.watches._lent == set()
            kept = inotifies()
            assert len(kept) == 1, "one is kept for the next wait"
            assert not loop.remove_reader(kept[0])
            counts.append(len(descriptors()))

    before = len(descriptors())
    asyncio.run(main())
    assert len(set(counts)) == 1
    assert len(descriptors()) == before + 1
    log.close()
    assert inotifies() == []


def test_more_loops_can_be_awaited_than_there_are_threads(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    async def main() -> list[Any]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        followed = clicks.follow("begin", until=1)
        tasks = [asyncio.create_task(gathered(followed)) for _ in range(7)]
        while len(log.engine.watches._lent) < len(tasks):
            await asyncio.sleep(0.001)
        await asyncio.to_thread(clicks.append, "x")
        return [values(batch) for task in tasks for batch in await task]

    assert asyncio.run(main()) == [["x"]] * 7


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("inotify")
def test_a_fork_is_refused_and_leaves_its_parent_s_watch_alone(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    engine = log.engine
    with engine.watches.lent() as lent:
        refused, iterated, closed = forked(
            [
                lambda: engine.wait(0, timeout_s=PATIENCE_S),
                lambda: list(clicks.follow(0)),
                log.close,
            ]
        )
        assert refused.startswith("ForkedLog") and "spawn" in refused
        assert iterated.startswith("ForkedLog")
        assert closed == "nothing"
        assert not lent.wait(0)
        clicks.append("x")
        assert lent.wait(0)


# When to look


def test_an_event_that_brought_nothing_is_followed_by_looks_at_doubling_distances() -> None:
    numbers = iter([7] * 40)
    looking = watch.looks(lambda: next(numbers), 7, timeout_s=PATIENCE_S)
    assert next(looking) == watch.LONGEST_S
    assert looking.send(False) == watch.LONGEST_S
    pauses = [looking.send(True)]
    while pauses[-1] < watch.LONGEST_S:
        pauses.append(looking.send(False))
    assert pauses[0] == watch.FIRST_S
    assert pauses[1:-1] == [2 * pause for pause in pauses[:-2]]
    assert looking.send(True) == watch.FIRST_S, "each event starts that anew"


def test_the_looks_end_with_another_number_or_in_time() -> None:
    def results(numbers: Iterator[int], timeout_s: float) -> int:
        looking = watch.looks(lambda: next(numbers), 7, timeout_s=timeout_s)
        try:
            next(looking)
            while True:
                looking.send(True)
        except StopIteration as end:
            return int(end.value)

    assert results(iter([7, 7, 9, 10]), PATIENCE_S) == 9
    assert results(iter([6]), PATIENCE_S) == 6
    assert results(iter([7]), 0) == 7


@pytest.mark.usefixtures("inotify")
def test_a_watch_tells_of_a_write_since_it_was_lent(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"x")
    watches = watch.Watches(data)
    with watches.lent() as first:
        data.write_bytes(b"xy")
        data.write_bytes(b"xyz")
        assert first.wait(0)
        assert not first.wait(0), "both are told of at once"
        data.write_bytes(b"xyz.")
    with watches.lent() as second:
        assert second is first
        assert not second.wait(0), "what came before it was lent is forgotten"
    watches.close()
    assert second.fileno() is None
    with watches.lent() as last:
        assert last.fileno() is None, "a closed pool opens nothing"
    absent = watch.Watch.open(tmp_path / "absent")
    assert absent.fileno() is None
    assert not absent.wait(0)


@pytest.mark.parametrize("until", ["end", "7", 1.5])
def test_what_is_no_end_is_refused(log: eventlog.Log, until: Any) -> None:
    stream = log.stream("clicks", create=True)
    with pytest.raises(UsageError, match="no end") as caught:
        stream.follow(until=until)
    assert "'current'" in caught.value.hint
    with pytest.raises(UsageError, match="no end"):
        next(iter(stream.consumer("c").follow(until=until)))
