"""Group commit: threads that wait for the disk share a commit, and each gets its own result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from eventlog.engine import Advance, Append, Engine, Plan, SourceUpdate, batch_of_one
from eventlog.engine.store import Store
from eventlog.errors import ConsumerFenced, DiskFull, UnknownStream


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
def held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes commits slow enough for threads to gather, and counts those that were made."""
    engine.create_stream("s", "events")
    commits: list[int] = []
    real = Store.write

    def slow(store: Store) -> Any:
        commits.append(1)
        time.sleep(0.05)
        return real(store)

    monkeypatch.setattr(Store, "write", slow)
    return commits


def test_threads_share_commits_and_every_one_gets_its_offset(
    engine: Engine, held: list[int]
) -> None:
    work = [lambda n=n: engine.commit(plan(b"%d" % n)).offsets[0].start for n in range(20)]
    offsets = together(*work)
    assert sorted(offsets) == list(range(20))
    assert len(held) <= 10, "twenty plans in a few commits"
    found: dict[int, bytes] = {}
    for stretch in engine.scan("s", 0, 20, lambda entry: True):
        assert stretch.payload is not None
        slots, at = stretch.readable_slots()
        found |= dict(zip(at, stretch.payload.records(slots), strict=True))
    assert found == {offset: b"%d" % n for n, offset in enumerate(offsets)}


def test_a_refused_plan_fails_none_of_its_neighbours(engine: Engine, held: list[int]) -> None:
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


def test_an_interrupt_of_the_main_thread_touches_no_other_plan(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")
    real = Store.write

    def interrupted(store: Store) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.02)
        return real(store)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", interrupted)
        results: list[int] = []
        threads = [
            threading.Thread(
                target=lambda n=n: results.append(engine.commit(plan(b"%d" % n)).offsets[0].start)
            )
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        with pytest.raises(KeyboardInterrupt):
            engine.commit(plan(b"main"))
        for thread in threads:
            thread.join(60)
    assert sorted(results) == list(range(8)) and engine.bounds("s") == (0, 8)


def test_plans_of_a_capture_and_of_consumers_gather_too(engine: Engine, held: list[int]) -> None:
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
    assert engine.source_state("shop") == {"position": 5}
    assert (engine.bounds("s"), engine.bounds("shop")) == ((0, 6), (0, 1))
    writer.close()
