"""No room at any write: one clear error, nothing of the step is there, and it succeeds later.

Each kind of step is done in a copy of one log under a limit on the file's size: at first the file
may not grow at all, then by one page, by two, until the step succeeds. A reader that stays pins all
pages, so that every commit must grow the file.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, setrlimit
from typing import Any
from unittest import mock

import pytest

import eventlog
from eventlog.engine import Engine, Plan, SourceUpdate
from eventlog.engine.store import DATABASES
from eventlog.engine.upkeep.retain import retain
from eventlog.errors import DiskFull
from tests import workload

ROOT = Path(__file__).parents[1]
PAGE = 4096
PAGES_MAX = 200
"""No step takes more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that writes, and can be done again where it failed.

    `commits` counts the commits that it may have done when the last one fails; with none, a failure
    leaves every stored byte as it was. After some, `tidies` says, another one tidies up.
    """

    do: Callable[[eventlog.Log], None]
    commits: int = 0
    tidies: bool = False


def noise(size: int) -> bytes:
    """Bytes that no compression makes fewer, the same ones each time."""
    return random.Random(size).randbytes(size)


def append_one(log: eventlog.Log) -> None:
    log.stream("left").append({"number": -1})


def append_many(log: eventlog.Log) -> None:
    log.stream("bulk").append_many({"number": number} for number in range(4_000))


def append_a_large_record(log: eventlog.Log) -> None:
    log.stream("bulk").append(noise(40_000))


def append_so_that_the_tail_is_merged(log: eventlog.Log) -> None:
    stream = log.stream("clicks")
    assert stream.end % 16 == 15
    stream.append({"number": -1})


def stage_and_publish(log: eventlog.Log) -> None:
    with workload.small_commits():
        log.stream("staged").append_many(noise(workload.LARGE_BYTES) for _ in range(5))


def append_with_ids(log: eventlog.Log) -> None:
    stream = log.stream("named")
    known, new = workload.id_of(3), "new"
    assert stream.append_many(["again", "new"], ids=[known, new]) == [3, workload.IDS]


def append_compressed(log: eventlog.Log) -> None:
    log.stream("packed").append_many(noise(500) + bytes(4_000) for _ in range(30))


def drop_what_is_old(log: eventlog.Log) -> None:
    retain(log.engine.store, "bulk", below=workload.BULK_EVENTS)


def append_in_a_transaction(log: eventlog.Log) -> None:
    with log.transaction() as tx:
        tx.append("left", 1)
        tx.append("right", list(range(500)))


def create_a_stream(log: eventlog.Log) -> None:
    log.stream("new", create=True)


def create_a_consumer(log: eventlog.Log) -> None:
    log.stream("clicks").consumer("late")


def commit_a_consumer(log: eventlog.Log) -> None:
    consumer = log.stream("left").consumer("idle")
    for batch in consumer.follow(max_rows=5, until=workload.IDLE + 5):
        with consumer.commit(batch) as tx:
            tx.append("doubled", [event.value for event in batch])


def take_the_writer(log: eventlog.Log) -> None:
    log.engine.writer("shop").close()


def capture(log: eventlog.Log) -> None:
    writer = log.engine.writer("shop")
    try:
        writer.owner.stage([workload.changes(99, 1, 0)])
        writer.owner.discard()
        state = {"codec": 3, "position": 999}
        source = SourceUpdate(stream="shop", writer_epoch=writer.epoch, state=state)
        log.engine.commit(Plan(sources=[source]))
    finally:
        writer.close()


STEPS = {
    "append one": Step(do=append_one),
    "append many": Step(do=append_many),
    "append a large record": Step(do=append_a_large_record),
    "append so that the tail is merged": Step(do=append_so_that_the_tail_is_merged),
    "stage and publish": Step(do=stage_and_publish, commits=4),
    "append in a transaction": Step(do=append_in_a_transaction),
    "append with ids": Step(do=append_with_ids),
    "append compressed": Step(do=append_compressed),
    "drop what is old": Step(do=drop_what_is_old),
    "create a stream": Step(do=create_a_stream),
    "create a consumer": Step(do=create_a_consumer),
    "commit a consumer": Step(do=commit_a_consumer),
    "take the writer": Step(do=take_the_writer, commits=2),
    "capture": Step(do=capture, commits=5, tidies=True),
}


def prepare(directory: Path) -> None:
    """Make `log` in a directory: all kinds of rows, and no free page inside."""
    numbers = {"SINGLES": 31, "BULKS": 1, "LARGES": 1, "CHANGES": 5}
    with (
        mock.patch.multiple(workload, **numbers),
        eventlog.open(directory / "made", create=True) as log,
    ):
        workload.run(log)
        directory.joinpath("log").mkdir()
        log.engine.store._env.copy(str(directory / "log"), compact=True)
    with eventlog.open(directory / "log"):
        pass


def everything(engine: Engine) -> list[tuple[str, bytes, bytes]]:
    """All that is stored."""
    with engine.store.read() as txn:
        return [
            (name, bytes(key), bytes(value))
            for name in DATABASES
            for key, value in txn.cursor(db=getattr(engine.store, name))
        ]


@contextmanager
def limited(data: Path, pages: int) -> Iterator[None]:
    """Within it the data file may grow by so many pages, and none is used again."""
    setrlimit(RLIMIT_FSIZE, (data.stat().st_size + pages * PAGE, RLIM_INFINITY))
    try:
        yield
    finally:
        setrlimit(RLIMIT_FSIZE, (RLIM_INFINITY, RLIM_INFINITY))


def try_with_ever_more_room(directory: Path, name: str) -> None:
    """Do a step in copies of the log, with one page more for each, until it succeeds at once."""
    step = STEPS[name]
    done: dict[str, Any] = {}
    for pages in (PAGES_MAX, *range(PAGES_MAX)):
        path = directory / f"{name}-{pages}"
        shutil.copytree(directory / "log", path)
        with eventlog.open(path) as log:
            before, stored = workload.contents(log), everything(log.engine)
            refused = None
            with log.engine.store.read(), limited(path / "data.mdb", pages):
                try:
                    step.do(log)
                except DiskFull as error:
                    refused = error
            if refused is not None:
                assert refused.hint.startswith("free some space")
                found = workload.contents(log)
                assert found == before or (step.tidies and found == done)
                assert step.commits or everything(log.engine) == stored
                assert log.check() == []
                step.do(log)
            done = done or workload.contents(log)
            assert workload.contents(log) == done
            assert log.check() == []
        with eventlog.open(path) as log:
            assert workload.contents(log) == done and log.engine.owners() == []
            assert log.check() == []
        shutil.rmtree(path)
        if refused is None and pages < PAGES_MAX:
            print(pages)
            return


TRIES = """
import sys
from pathlib import Path
from tests.test_no_room import try_with_ever_more_room
try_with_ever_more_room(Path(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    prepare(directory)
    return directory


@pytest.mark.parametrize("name", STEPS)
def test_without_room_nothing_is_done_and_later_all(name: str, prepared: Path) -> None:
    tried = subprocess.run(
        [sys.executable, "-c", TRIES, str(prepared), name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert tried.returncode == 0, tried.stderr
    assert int(tried.stdout) > 0, "with no page more than it had, the step must have been refused"
