"""Following and consuming: one place, moved together with what was made of it (I2, I3)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

import eventlog
from eventlog.errors import (
    ConsumerFenced,
    NotCommitted,
    OffsetOutOfRange,
    UnknownTable,
    UsageError,
)
from tests.fix_log import INT, MadeSource, column, insert


@pytest.fixture
def clicks(log: eventlog.Log) -> eventlog.Stream:
    stream = log.stream("clicks", create=True)
    stream.append_many(range(10))
    log.stream("out", create=True)
    return stream


def values(batches: Any) -> list[Any]:
    return [event.value for batch in batches for event in batch]


def test_following_until_current_ends_at_the_end_of_the_call(clicks: eventlog.Stream) -> None:
    following = clicks.follow("begin", until="current", max_rows=4)
    clicks.append("later")
    batches = list(following)
    assert [(b.start, b.stop, len(b)) for b in batches] == [(0, 4, 4), (4, 8, 4), (8, 10, 2)]
    assert values(following) == list(range(10)), "it can be iterated again"
    assert values(clicks.follow(until="current")) == []
    assert values(clicks.follow(3, until=5)) == [3, 4]


def test_following_waits_for_what_comes(clicks: eventlog.Stream) -> None:
    def write() -> None:
        for number in range(10, 13):
            clicks.append(number)

    writer = threading.Timer(0.05, write)
    writer.start()
    assert values(clicks.follow(until=13)) == [10, 11, 12]
    writer.join()


def test_a_stop_is_noticed_while_waiting(clicks: eventlog.Stream) -> None:
    asked = iter([False, False, False, True])
    assert values(clicks.follow("begin", stop=lambda: next(asked, True))) == list(range(10))


def test_following_can_be_awaited_and_cancelled(clicks: eventlog.Stream) -> None:
    got: list[Any] = []

    async def follow() -> None:
        async for batch in clicks.follow("begin", max_rows=3):
            got.extend(event.value for event in batch)

    async def main() -> None:
        task = asyncio.create_task(follow())
        while len(got) < 10:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(clicks.append, "later")
        while len(got) < 11:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert got == [*range(10), "later"]


def test_outputs_and_offset_commit_together(log: eventlog.Log, clicks: eventlog.Stream) -> None:
    consumer = clicks.consumer("double")
    for batch in consumer.follow(until="current", max_rows=4):
        with consumer.commit(batch) as tx:
            tx.append("out", [2 * event.value for event in batch])
    assert consumer.offset == 10
    assert [event.value for event in log.stream("out").read()] == [2 * n for n in range(10)]
    (info,) = log.consumers()
    assert (info.stream, info.name, info.offset, info.epoch, info.lag) == (
        "clicks",
        "double",
        10,
        1,
        0,
    )
    assert clicks.consumer("double", start="begin").offset == 10, "start counts for a new one only"


def test_an_exception_commits_nothing(log: eventlog.Log, clicks: eventlog.Stream) -> None:
    consumer = clicks.consumer("double")
    batch = next(consumer.follow(until="current"))

    def fail() -> None:
        with consumer.commit(batch) as tx:
            tx.append("out", ["half"])
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fail()
    assert (consumer.offset, log.stream("out").end) == (0, 0)
    with consumer.commit(batch):
        pass
    assert clicks.consumer("double").offset == 10


@pytest.mark.parametrize("how", ["left out", "failed", "without a block"])
def test_going_on_after_a_batch_that_was_not_committed_is_refused(
    clicks: eventlog.Stream, how: str
) -> None:
    consumer = clicks.consumer("double")
    batches = consumer.follow(until="current", max_rows=4)
    batch = next(batches)
    if how == "failed":
        with pytest.raises(RuntimeError), consumer.commit(batch):
            raise RuntimeError("no")
    elif how == "without a block":
        consumer.commit(batch)
    with pytest.raises(NotCommitted) as caught:
        next(batches)
    assert "with consumer.commit" in caught.value.hint
    again = next(consumer.follow(until=4))
    assert values([again]) == [0, 1, 2, 3], "a new iteration gives it again"


def test_a_batch_is_committed_once(clicks: eventlog.Stream) -> None:
    consumer = clicks.consumer("double")
    batch = next(consumer.follow(until="current"))
    with consumer.commit(batch):
        pass
    with pytest.raises(UsageError, match="does not begin at 10"):
        consumer.commit(batch)


def test_a_stale_consumer_is_fenced_and_stores_nothing(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    one, two = clicks.consumer("double"), clicks.consumer("double")
    batch = next(one.follow(until="current"))
    with two.commit(next(two.follow(until="current"))) as tx:
        tx.append("out", "two")
    with pytest.raises(ConsumerFenced), one.commit(batch) as tx:
        tx.append("out", "one")
    assert [event.value for event in log.stream("out").read()] == ["two"]


def test_a_rewind_starts_a_new_epoch_and_fences_the_others(clicks: eventlog.Stream) -> None:
    one, two = clicks.consumer("double"), clicks.consumer("double")
    with one.commit(next(one.follow(until=5, max_rows=5))):
        pass
    one.rewind(to=5)
    assert (one.offset, one.epoch) == (5, 2)
    batch = next(two.follow(until="current"))
    with pytest.raises(ConsumerFenced), two.commit(batch):
        pass
    one.rewind(to="begin")
    assert values([next(one.follow(until="current"))]) == list(range(10))
    with pytest.raises(OffsetOutOfRange):
        one.rewind(to=11)


def test_a_rewind_inside_the_loop_goes_on_from_there(clicks: eventlog.Stream) -> None:
    consumer = clicks.consumer("double")
    starts = []
    for batch in consumer.follow(until="current", max_rows=5):
        starts.append(batch.start)
        if starts == [0, 5]:
            consumer.rewind(to=2)
        else:
            with consumer.commit(batch):
                pass
    assert starts == [0, 5, 2, 7]
    assert (consumer.offset, consumer.epoch) == (10, 2)


def test_a_new_consumer_outside_the_stream_is_refused(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    with pytest.raises(OffsetOutOfRange) as caught:
        clicks.consumer("double", start=11)
    assert "[0, 10]" in caught.value.hint
    with pytest.raises(UsageError, match="name of a consumer"):
        clicks.consumer("Double!")
    assert log.consumers() == []
    assert clicks.consumer("late", start="end").offset == 10


def test_a_range_without_matches_is_committed_by_the_loop_itself(shop: MadeSource) -> None:
    orders = shop.table("orders", column("id", INT, key=True), relation=1)
    users = shop.table("users", column("id", INT, key=True), relation=2)
    shop.commit(insert(orders, 1), insert(users, 1))
    for number in range(2, 6):
        shop.commit(insert(users, number))
    consumer = shop.stream.consumer("mailer")
    batches = []
    for batch in consumer.follow(table="orders", until="current"):
        batches.append((batch.start, batch.stop, [change.key for change in batch]))
        with consumer.commit(batch):
            pass
    assert batches == [(0, 6, [1])]
    shop.commit(insert(users, 9))
    assert list(consumer.follow(table="orders", until="current")) == []
    assert consumer.offset == 7
    assert shop.stream.consumer("mailer").offset == 7


def test_another_table_is_refused_until_a_rewind(shop: MadeSource) -> None:
    orders = shop.table("orders", column("id", INT, key=True), relation=1)
    users = shop.table("users", column("id", INT, key=True), relation=2)
    shop.commit(insert(orders, 1), insert(users, 2))
    consumer = shop.stream.consumer("mailer")
    with consumer.commit(next(consumer.follow(table="orders"))):
        pass
    again = shop.stream.consumer("mailer")
    for other in ("users", None):
        with pytest.raises(UsageError) as caught:
            again.follow(table=other)
        assert "public.orders" in str(caught.value) and "rewind" in caught.value.hint
    again.follow(table="public.orders", until="current")
    again.rewind(to=0)
    assert [change.key for change in next(again.follow(table="users"))] == [2]


def test_an_unknown_table_is_refused_before_waiting(shop: MadeSource) -> None:
    shop.commit(insert(shop.table("orders", column("id", INT, key=True)), 1))
    with pytest.raises(UnknownTable) as caught:
        shop.stream.follow(table="public.order")
    assert "public.orders" in caught.value.hint
    with pytest.raises(UnknownTable):
        shop.stream.consumer("mailer").follow(table="ordres")


WORKER = """
import os, signal, sys, eventlog
log = eventlog.open(sys.argv[1])
consumer = log.stream("clicks").consumer("worker")
turns = int(sys.argv[2])
for batch in consumer.follow(max_rows=3, until="current"):
    with consumer.commit(batch) as tx:
        tx.append("out", [event.value for event in batch])
        if turns == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    turns -= 1
"""


def test_a_worker_killed_inside_its_commit_makes_every_output_once(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    for turns in (0, 1, 2):
        done = subprocess.run(
            [sys.executable, "-c", WORKER, os.fspath(log.path), str(turns)], check=False, timeout=60
        )
        assert done.returncode == -signal.SIGKILL or turns == 2
    subprocess.run(
        [sys.executable, "-c", WORKER, os.fspath(log.path), "99"], check=True, timeout=60
    )
    assert [event.value for event in log.stream("out").read()] == list(range(10))
