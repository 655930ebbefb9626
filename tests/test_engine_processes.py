"""Many processes on one log: nothing lost, nothing twice, and what died leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventlog.engine import (
    Advance,
    Append,
    Engine,
    Plan,
    SourceUpdate,
    Transactions,
    batch_of,
    check,
)
from eventlog.errors import ConsumerFenced, WriterActive

PRELUDE = """
import sys
from pathlib import Path
from eventlog.engine import *
from eventlog.errors import *
engine = Engine.open(Path(sys.argv[1]))

def append(stream, *records, **more):
    batch = batch_of(2, list(records), Transactions.one(time_us=0))
    return engine.commit(Plan(appends=[Append(stream=stream, batches=[batch], **more)])).offsets[0]

def read(stream, start, stop):
    found = []
    for stretch in engine.scan(stream, start, stop, lambda entry: True):
        slots, _ = stretch.readable_slots()
        found += stretch.payload.records(slots)
    return found
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def output(child: subprocess.Popen[str]) -> str:
    """What a process printed that ended well."""
    text, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    return text


@contextmanager
def running(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said `ready`; killed at the end."""
    child = start(program, *arguments)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def records(engine: Engine, stream: str) -> list[bytes]:
    found: list[bytes] = []
    for stretch in engine.scan(stream, *engine.bounds(stream), lambda entry: True):
        assert stretch.payload is not None
        slots, _ = stretch.readable_slots()
        found += stretch.payload.records(slots)
    return found


APPENDS = """
for number in range(60):
    offsets = append("s", *[f"{sys.argv[2]}:{number}:{i}".encode() for i in range(number % 3 + 1)])
    assert read("s", offsets.start, offsets.stop)[0] == f"{sys.argv[2]}:{number}:0".encode()
    if number % 10 == 0:
        owner = engine.appender("s")
        for i in range(3):
            engine.stage(owner, [batch_of(2, [f"{sys.argv[2]}:staged {number}:{i}".encode()],
                                          Transactions.one(time_us=0, back=i))])
        engine.commit(Plan(appends=[Append(stream="s", staged=owner.id)]))
        owner.close()
"""

READS = """
seen, at, done = [], 0, -1
while at < int(sys.argv[2]):
    done = engine.wait(done, timeout_s=60)
    end = engine.bounds("s")[1]
    more = read("s", at, end)
    assert len(more) == end - at, (at, end, len(more))
    seen += more
    at = end
assert read("s", 0, at) == seen, "what was read stays"
print(len(seen), len(set(seen)))
"""


def test_many_processes_append_and_read_at_once_and_nothing_is_lost(engine: Engine) -> None:
    engine.create_stream("s", "events")
    each = [f"{number}:{i}" for number in range(60) for i in range(number % 3 + 1)]
    each += [f"staged {number}:{i}" for number in range(0, 60, 10) for i in range(3)]
    total = 4 * len(each)
    children = [start(READS, engine.path, total) for _ in range(4)]
    children += [start(APPENDS, engine.path, writer) for writer in range(4)]
    outputs = [output(child) for child in children]
    assert outputs[:4] == [f"{total} {total}\n"] * 4
    found = [record.decode() for record in records(engine, "s")]
    assert sorted(found) == sorted(f"{writer}:{text}" for writer in range(4) for text in each)
    for writer in range(4):
        mine = [text for text in found if text.startswith(f"{writer}:") and "staged" not in text]
        assert mine == [f"{writer}:{text}" for text in each if "staged" not in text], "in order"
    assert engine.owners() == []


CONSUMES = """
name = sys.argv[2]
won = lost = 0
while True:
    row = engine.consumer("in", "c", start=0)
    if row.offset == 50:
        break
    batch = batch_of(2, [f"{row.offset}".encode()], Transactions.one(time_us=0))
    advance = Advance(stream="in", consumer="c", offset=row.offset + 1,
                      expected_offset=row.offset, expected_epoch=row.epoch)
    try:
        engine.commit(Plan(appends=[Append(stream="out", batches=[batch])], advances=[advance]))
        won += 1
    except ConsumerFenced:
        lost += 1
print(won, lost)
"""


def test_two_processes_of_one_consumer_fence_each_other(engine: Engine) -> None:
    for name in ("in", "out"):
        engine.create_stream(name, "events")
    batch = batch_of(2, [b"x"] * 50, Transactions.one(time_us=0))
    engine.commit(Plan(appends=[Append(stream="in", batches=[batch])]))
    children = [start(CONSUMES, engine.path, name) for name in "ab"]
    outputs = [output(child).split() for child in children]
    assert sum(int(won) for won, _ in outputs) == 50
    assert records(engine, "out") == [b"%d" % number for number in range(50)]


def test_a_rewind_fences_the_process_that_read_before_it(engine: Engine) -> None:
    engine.create_stream("in", "events")
    batch = batch_of(2, [b"x"] * 9, Transactions.one(time_us=0))
    engine.commit(Plan(appends=[Append(stream="in", batches=[batch])]))
    program = """
row = engine.consumer("in", "c", start=3)
engine.commit(Plan(advances=[Advance(stream="in", consumer="c", offset=3, rewind=True,
    expected_offset=row.offset, expected_epoch=row.epoch)]))
"""
    row = engine.consumer("in", "c", start=3)
    assert output(start(program, engine.path)) == ""
    advance = Advance(stream="in", consumer="c", offset=4, expected_offset=3, expected_epoch=1)
    plan = Plan(appends=[Append(stream="in", batches=[batch])], advances=[advance])
    with pytest.raises(ConsumerFenced, match=r"stands at \(offset, epoch\) \(3, 2\)") as error:
        engine.commit(plan)
    assert error.value.hint and engine.bounds("in") == (0, 9), "nothing of the plan was done"
    assert engine.consumer("in", "c", start=0).epoch == row.epoch + 1


CAPTURES = """
import time
writer = engine.writer("shop")
engine.stage(writer.owner, [batch_of(3, [b"half"], Transactions.one(time_us=0, tx=1))])
print("ready", flush=True)
time.sleep(600)
"""


def test_one_living_process_writes_a_captured_stream(engine: Engine) -> None:
    engine.create_stream("shop", "captured")
    with running(CAPTURES, engine.path) as child:
        with pytest.raises(WriterActive, match=f"by process {child.pid}") as error:
            engine.writer("shop")
        assert error.value.hint and check(engine) == []
        Engine.open(engine.path).close()
        assert len(engine.owners()) == 1
    # The dead one's staged batches wait for the next capture, and for no one else.
    assert len(engine.owners()) == 1 and check(engine) == []
    writer = engine.writer("shop")
    assert writer.epoch == 2 and [row.id for row in engine.owners()] == [writer.owner.id]
    assert engine.bounds("shop") == (0, 0) and check(engine) == []
    writer.close()
    assert engine.owners() == []


def test_a_replaced_writer_is_refused(engine: Engine) -> None:
    engine.create_stream("shop", "captured")
    first = engine.writer("shop")
    first._lock.release()
    second = engine.writer("shop")
    stale = SourceUpdate(stream="shop", writer_epoch=first.epoch, state={"position": 9})
    batch = batch_of(3, [b"x"], Transactions.one(time_us=0))
    with pytest.raises(WriterActive, match="another process has taken over"):
        engine.commit(Plan(appends=[Append(stream="shop", batches=[batch])], sources=[stale]))
    assert engine.source_state("shop") is None and engine.bounds("shop") == (0, 0)
    second.close()


KILLED = """
import itertools
print("ready", flush=True)
for number in itertools.count():
    big = [b"%s:%d:%d" % (sys.argv[2].encode(), number, i) + b"." * 90_000 for i in range(7)]
    owner = engine.appender("s")
    for batch in batches_of(2, big, time_us=0):
        engine.stage(owner, [batch])
    engine.commit(Plan(appends=[Append(stream="s", staged=owner.id)]))
    owner.close()
    append("s", *[record[:-90_000] for record in big])
"""

KILLS = 30


def test_killing_appenders_at_any_moment_publishes_nothing_by_halves(
    engine: Engine, log_dir: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    engine.create_stream("s", "events")
    leftovers = 0
    for life in range(KILLS):
        with running(KILLED, log_dir, life) as child:
            time.sleep(chance.uniform(0, 0.12))
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert check(engine) == []
        leftovers += len(engine.owners())
        engine.close()
        engine = Engine.open(log_dir)
        assert engine.owners() == [], "dropped by whoever opens the log next"
        assert [path.name for path in (log_dir / "locks").iterdir()] == ["open.lock"]
        assert check(engine) == []
    assert leftovers, "some died while they had staged"
    found = [record.rstrip(b".") for record in records(engine, "s")]
    for at in range(0, len(found), 7):
        life, number, _ = found[at].split(b":")
        assert found[at : at + 7] == [b"%s:%s:%d" % (life, number, i) for i in range(7)]
    engine.close()


def test_a_living_appender_keeps_what_it_staged(engine: Engine) -> None:
    engine.create_stream("s", "events")
    owner = engine.appender("s")
    engine.stage(owner, [batch_of(2, [b"x"], Transactions.one(time_us=0))])
    assert output(start("engine.close()", engine.path)) == ""
    assert [row.id for row in engine.owners()] == [owner.id] and check(engine) == []
    done = engine.commit(Plan(appends=[Append(stream="s", staged=owner.id)]))
    assert done.offsets == (range(1),)
    owner.close()
    assert not os.path.exists(engine.path / "locks" / f"owner-{owner.id}.lock")


def test_processes_may_create_a_log_at_the_same_moment(log_dir: Path) -> None:
    program = "from pathlib import Path; from eventlog.engine import Engine; import sys\n" + (
        "with Engine.open(Path(sys.argv[1]), create=True) as engine:\n"
        "    print(engine.identity()['id'].hex())\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(log_dir)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    assert len({output(child) for child in children}) == 1
    with Engine.open(log_dir) as engine:
        assert check(engine) == []
