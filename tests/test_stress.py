"""Ten processes use one log at once, and some are killed: nothing lost, nothing twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import eventlog
from eventlog.engine import Engine
from eventlog.engine.locks import FileLock
from eventlog.engine.staging import lock_path
from tests.stress_worker import AGED, CONSUMER, COPIED, EVENTS, THREADS

ROOT = Path(__file__).parents[1]
SECONDS = 15.0
SOAK_SECONDS = 60.0
PARTS = (
    ("single", "one"),
    ("single", "killed"),
    ("threads", "crowd"),
    ("bulk", "bulky"),
    ("staging", "stager"),
    ("consumer", "first"),
    ("consumer", "second"),
    ("reader", "reader"),
    ("aging", "aging"),
    ("visitor", "visitor"),
)
"""Roles and names: ten processes."""

KILLED = frozenset({"killed", "crowd", "stager", "second", "aging"})
"""Those that are killed now and then, and started again."""

KILL_EVERY_S = 1.5


@dataclass(slots=True)
class Part:
    """One process, and what it told into its file."""

    role: str
    name: str
    log_dir: Path
    told: Path
    process: subprocess.Popen[bytes] | None = None
    killed: int = 0

    def start(self, seconds: float) -> None:
        words = [self.role, str(self.log_dir), str(seconds), self.name]
        with self.told.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.stress_worker", *words], cwd=ROOT, stdout=output
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.killed += 1

    def acknowledged(self) -> int:
        """The greatest number that it told; a line may be cut."""
        whole, _, _ = self.told.read_text().rpartition("\n")
        return max(map(int, whole.split()), default=0)


def stress(directory: Path, seconds: float) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    log_dir = directory / "log"
    with eventlog.open(log_dir, create=True) as log:
        for name in (EVENTS, COPIED, AGED):
            log.stream(name, create=True)
    parts = [
        Part(role=role, name=name, log_dir=log_dir, told=directory / name) for role, name in PARTS
    ]
    end = time.monotonic() + seconds
    try:
        for part in parts:
            part.start(seconds)
        victims = [part for part in parts if part.name in KILLED]
        while (left := end - time.monotonic()) > 2 * KILL_EVERY_S:
            time.sleep(chance.uniform(0.5, 1.5) * KILL_EVERY_S)
            victim = chance.choice(victims)
            victim.kill()
            victim.start(left - KILL_EVERY_S)
        for part in parts:
            assert part.process is not None and part.process.wait(timeout=120) == 0, part.name
    finally:
        for part in parts:
            if part.process is not None and part.process.poll() is None:
                part.process.kill()
                part.process.wait()
    assert sum(part.killed for part in parts) > seconds / KILL_EVERY_S / 3
    require_nothing_lost_and_nothing_twice(log_dir, {part.name: part for part in parts})


def require_nothing_lost_and_nothing_twice(log_dir: Path, parts: dict[str, Part]) -> None:
    with eventlog.open(log_dir) as log:
        events = [(e.value["by"], e.value["n"]) for e in log.stream(EVENTS).read()]
        copied = [tuple(event.value) for event in log.stream(COPIED).read()]
        by: dict[str, list[int]] = defaultdict(list)
        for name, number in events:
            by[name].append(number)
        print({name: len(numbers) for name, numbers in by.items()}, {"copied": len(copied)})
        assert set(by) == {"one", "killed", "bulky", "stager"} | {
            f"crowd-{number}" for number in range(THREADS)
        }
        for name, numbers in by.items():
            assert numbers == list(range(len(numbers))), f"{name}: in order, each once"
        for name in ("one", "killed", "bulky", "stager", "crowd"):
            stored = len(by["crowd-0" if name == "crowd" else name])
            assert stored >= parts[name].acknowledged() > 0, f"{name}: nothing lost"
        assert copied == events[: len(copied)], "each event copied once, in order"
        (consumer,) = log.consumers()
        assert (consumer.name, consumer.offset) == (CONSUMER, len(copied))
        told = max(parts["first"].acknowledged(), parts["second"].acknowledged())
        assert len(copied) >= told > 0
        aged = log.stream(AGED)
        assert [event.value for event in aged.read()] == list(range(aged.start, aged.end))
        assert aged.end >= parts["aging"].acknowledged() > aged.start > 0
        assert log.engine.owners() == [] and log.check() == []
    assert list((log_dir / "locks").glob("owner-*")) == []


def test_an_owner_is_not_refused_by_whoever_looks_whether_it_died(engine: Engine) -> None:
    engine.create_stream(EVENTS, "events")
    # A process that opens the log found the new owner's lock file before the owner had locked it.
    looking = FileLock.take(lock_path(engine.path, 1))
    assert looking is not None
    with ThreadPoolExecutor(1) as pool:
        registered = pool.submit(engine.appender, EVENTS)
        time.sleep(0.05)
        assert not registered.done()
        looking.release(remove=True)
        owner = registered.result()
    assert owner.id == 1
    owner.close()


def test_ten_processes_write_and_read_at_once_and_some_are_killed(tmp_path: Path) -> None:
    stress(tmp_path, SECONDS)


@pytest.mark.soak
def test_ten_processes_write_and_read_for_a_minute(tmp_path: Path) -> None:
    stress(tmp_path, SOAK_SECONDS)
