"""Group commit: threads that wait for the disk share a commit, and each gets its own result."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.engine import Advance, Append, Engine, Plan, SourceUpdate, batch_of_one, commit, store
from eventlog.engine.group import GroupCommitter
from eventlog.engine.store import Store
from eventlog.errors import ConsumerFenced, DiskFull, UnknownStream

Hold = Callable[[int], list[int]]


def plan(record: bytes, stream: str = "s") -> Plan:
    return Plan(appends=[Append(stream=stream, batches=[batch_of_one(2, record, time_us=0)])])


def together(*work: Callable[[], Any]) -> list[Any]:
    """Run in threads of their own; returns what each returned or raised."""
    results: list[Any] = [None] * len(work)

    def run(place: int) -> None:
        try:
            results[place] = work[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.fixture
def hold(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Makes the first group wait until that many plans are there; returns the groups' sizes."""
    engine.create_stream("s", "events")
    real = GroupCommitter._run

    def until(plans: int) -> list[int]:
        groups: list[int] = []

        def run(committer: GroupCommitter, group: list[Any], **more: bool) -> None:
            first = not groups
            groups.append(len(group))
            deadline = time.monotonic() + 20
            while first and len(group) + len(committer._waiting) < plans:
                assert time.monotonic() < deadline, "they did not all come"
                time.sleep(0.001)
            real(committer, group, **more)

        monkeypatch.setattr(GroupCommitter, "_run", run)
        return groups

    return until


def test_threads_share_commits_and_every_one_gets_its_offset(engine: Engine, hold: Hold) -> None:
    groups = hold(20)
    work = [lambda n=n: engine.commit(plan(b"%d" % n)).offsets[0].start for n in range(20)]
    offsets = together(*work)
    assert sorted(offsets) == list(range(20))
    assert len(groups) <= 2 and sum(groups) == 20, "those that waited shared one commit"
    found: dict[int, bytes] = {}
    for stretch in engine.scan("s", 0, 20, lambda entry: True):
        assert stretch.payload is not None
        slots, at = stretch.readable_slots()
        found |= dict(zip(at, stretch.payload.records(slots), strict=True))
    assert found == {offset: b"%d" % n for n, offset in enumerate(offsets)}


def test_a_refused_plan_fails_none_of_its_neighbours(engine: Engine, hold: Hold) -> None:
    hold(11)  # The stream of one is not there, which is seen before.
    engine.consumer("s", "c", start=0)
    stale = Advance(stream="s", consumer="c", offset=0, expected_offset=3, expected_epoch=1)
    bad = Plan(appends=plan(b"bad").appends, advances=[stale])
    works: list[Callable[[], Any]] = [
        lambda n=n: engine.commit(plan(b"%d" % n)).offsets[0].start for n in range(10)
    ]
    works.insert(3, lambda: engine.commit(bad))
    works.insert(7, lambda: engine.commit(plan(b"x", "nowhere")))
    results = together(*works)
    assert isinstance(results.pop(7), UnknownStream)
    assert isinstance(results.pop(3), ConsumerFenced)
    assert sorted(results) == list(range(10))
    assert engine.bounds("s") == (0, 10)


def test_a_full_disk_is_told_to_every_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")

    def full(store: Store) -> Any:
        time.sleep(0.02)
        raise DiskFull("the disk is full", hint="free some space")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        results = together(*[lambda n=n: engine.commit(plan(b"%d" % n)) for n in range(8)])
    assert [type(result) for result in results] == [DiskFull] * 8
    assert engine.bounds("s") == (0, 0)
    assert engine.commit(plan(b"x")).offsets == (range(1),)


@pytest.mark.parametrize("moment", ["in the block", "before its exit", "after the commit"])
def test_an_interrupt_of_the_main_thread_inside_its_transaction_touches_no_other_plan(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    engine.create_stream("s", "events")
    apply, leave, take = commit.apply, store._Transaction.__exit__, GroupCommitter._take
    begun = threading.Event()
    taken: list[Any] = []

    def main() -> bool:
        return threading.current_thread() is threading.main_thread()

    def interrupted_apply(*args: Any, **more: Any) -> Any:
        applied = apply(*args, **more)
        if main():
            begun.set()
            deadline = time.monotonic() + 20
            while len(taken) + len(engine._committer._waiting) < 8:
                assert time.monotonic() < deadline, "the others wait for this transaction"
                time.sleep(0.001)
            if moment == "in the block":
                raise KeyboardInterrupt
        return applied

    def interrupted_exit(transaction: Any, *exc: Any) -> None:
        if main() and transaction.write and moment == "before its exit":
            raise KeyboardInterrupt
        leave(transaction, *exc)
        if main() and transaction.write and moment == "after the commit":
            raise KeyboardInterrupt

    def seen_take(committer: GroupCommitter) -> list[Any]:
        group = take(committer)
        taken.extend(group)  # By whoever leads, and waits for this transaction.
        return group

    results: list[int] = []

    def work(number: int) -> None:
        begun.wait(60)
        results.append(engine.commit(plan(b"%d" % number)).offsets[0].start)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    with monkeypatch.context() as patch:
        patch.setattr(GroupCommitter, "_take", seen_take)
        patch.setattr(commit, "apply", interrupted_apply)
        patch.setattr(store._Transaction, "__exit__", interrupted_exit)
        with pytest.raises(KeyboardInterrupt) as kept:
            engine.commit(plan(b"main"))
        for thread in threads:
            thread.join(20)
    stored = moment == "after the commit"
    assert sorted(results) == list(range(stored, 8 + stored)), "the others went on"
    assert engine.bounds("s") == (0, 8 + stored)
    assert engine.commit(plan(b"main, later")).offsets[0].start == 8 + stored
    assert kept.tb is not None, "a notebook keeps the traceback, and with it the transaction"


def test_a_read_that_an_interrupt_left_ends_with_its_traceback(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")

    def interrupted_exit(transaction: Any, *exc: Any) -> None:
        raise KeyboardInterrupt  # Before its first line.

    def readers() -> int:
        return len(engine.store._env.readers().splitlines()[1:])

    before = readers()
    with monkeypatch.context() as patch:
        patch.setattr(store._Transaction, "__exit__", interrupted_exit)
        with pytest.raises(KeyboardInterrupt) as kept:
            engine.bounds("s")
    assert readers() > before, "it pins the pages that it saw"
    del kept
    gc.collect()
    assert readers() == before
    assert engine.bounds("s") == (0, 0)


def child(program: str, *arguments: object) -> str:
    """What a program printed, which must end well, and in time."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout


CLOSED = """
import collections, random, sys, threading, time
from pathlib import Path
import eventlog

chance = random.Random(int(sys.argv[2]))
ends = collections.Counter()
for number in range(12):
    place = Path(sys.argv[1]) / str(number)
    log = eventlog.open(place, create=True)
    stream = log.stream("s", create=True)
    stream.append_many(["x" * 200] * 2_000)
    last = [-1] * 4
    uses = [
        lambda: stream.append({"n": 1}),
        lambda: stream.append_many(["y"] * 2_000)[-1],
        lambda: stream.append({"n": 1}),
        lambda: len(list(stream.read(0, 2_000))) - 1,
    ]

    def use(which):
        try:
            while True:
                last[which] = uses[which]()
        except BaseException as error:
            ends[type(error).__name__] += 1

    threads = [threading.Thread(target=use, args=(which,), daemon=True) for which in range(4)]
    for thread in threads:
        thread.start()
    while min(last) < 0:  # All of them are at it.
        time.sleep(0.001)
    time.sleep(chance.random() * 0.01)
    log.close()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "one of them hangs"
    with eventlog.open(place) as again:
        assert again.stream("s").end > max(last), "what was appended is there"
        assert again.check() == []
print(dict(ends))
"""


def test_closing_a_log_while_threads_use_it_ends_them_with_closed_log(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    assert child(CLOSED, tmp_path, seed) == "{'ClosedLog': 48}\n"


INTERRUPTED = """
import random, signal, sys, threading, time
import eventlog

chance = random.Random(int(sys.argv[2]))
log = eventlog.open(sys.argv[1])
mine, theirs = log.stream("mine"), log.stream("theirs")
stop, beside, kept, numbers = threading.Event(), [], [], []


def others():
    while not stop.is_set():
        beside.append(theirs.append(len(beside)))


signal.signal(signal.SIGALRM, signal.default_int_handler)
threading.Thread(target=others, daemon=True).start()
for _ in range(150):
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0002, 0.004))
        for _ in range(2_000):
            mine.append(len(numbers), id=len(numbers))
            numbers.append(len(numbers))
    except KeyboardInterrupt as error:
        kept.append(error)  # With its traceback, as a notebook keeps the last one.
    signal.setitimer(signal.ITIMER_REAL, 0)
    before, deadline = len(beside), time.monotonic() + 10
    while len(beside) < before + 2:
        assert time.monotonic() < deadline, "the other thread is blocked"
        time.sleep(0.0005)
print(len(kept), len(numbers), flush=True)
sys.stdin.read()
stop.set()
"""


def test_an_interrupt_at_any_moment_of_an_append_blocks_nobody(log: eventlog.Log) -> None:
    mine, theirs = log.stream("mine", create=True), log.stream("theirs", create=True)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    interrupted = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(log.path), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert interrupted.stdout is not None
        interrupts, acked = map(int, interrupted.stdout.readline().split())
        assert interrupts > 100 and acked > 0
        # It has kept them all, and goes on beside this: other processes append.
        append = "import eventlog, sys; eventlog.open(sys.argv[1]).stream('mine').append('after')"
        child(append, log.path)
    finally:
        interrupted.kill()
        interrupted.communicate()
    kept = [event.value for event in mine.read()]
    assert kept[:acked] == list(range(acked)), "each once, whether the interrupt came after or not"
    assert kept[acked:] in (["after"], [acked, "after"]) and theirs.end > 0


def test_plans_of_a_capture_and_of_consumers_gather_too(engine: Engine, hold: Hold) -> None:
    groups = hold(8)
    engine.create_stream("shop", "captured")
    writer = engine.writer("shop")
    source = SourceUpdate(stream="shop", writer_epoch=writer.epoch, state={"position": 5})
    captured = Plan(appends=plan(b"row", "shop").appends, sources=[source])
    engine.consumer("s", "c", start=0)
    moved = Advance(stream="s", consumer="c", offset=0, expected_offset=0, expected_epoch=1)
    work: list[Callable[[], Any]] = [lambda: engine.commit(captured)]
    work += [lambda: engine.commit(Plan(advances=[moved]))]
    work += [lambda n=n: engine.commit(plan(b"%d" % n)) for n in range(6)]
    assert not [result for result in together(*work) if isinstance(result, Exception)]
    assert len(groups) <= 2 and sum(groups) == 8
    assert engine.source_state("shop") == {"position": 5}
    assert (engine.bounds("s"), engine.bounds("shop")) == ((0, 6), (0, 1))
    writer.close()
