"""A process that dies at any failpoint loses nothing acknowledged, and leaves nothing by halves."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

import eventlog
from eventlog.engine import failpoint
from eventlog.errors import NotALog
from tests import workload

ROOT = Path(__file__).parents[1]
DEATHS = 4
"""For each failpoint: at the first and the last time it is reached, and at others, drawn by lot."""


def run_to_its_death(directory: Path, armed: str) -> tuple[int, dict[str, int]]:
    """Run the workload with a failpoint armed; returns the exit code and what was acknowledged."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.workload", str(directory)],
        cwd=ROOT,
        env={**os.environ, failpoint.VARIABLE: armed},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, failpoint.EXIT_CODE), done.stderr
    return done.returncode, workload.heard(done.stdout)


AT_WORK = [name for name in failpoint.NAMES if not name.startswith("repair.")]
"""A repair is made of a damaged log, and has tests of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a whole run leaves, and how often it reaches each failpoint."""

    truth: dict[str, object]
    reached: Counter[str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    reached: Counter[str] = Counter()
    directory = tmp_path_factory.mktemp("undisturbed") / "log"
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(failpoint, "_armed", "any"))
        patches.enter_context(
            mock.patch.object(failpoint, "_count", lambda name: reached.update([name]))
        )
        workload.run_alone(directory)
    with eventlog.open(directory) as log:
        assert log.check() == []
        return Undisturbed(truth=workload.contents(log), reached=reached)


def test_the_workload_reaches_every_failpoint(undisturbed: Undisturbed) -> None:
    assert sorted(undisturbed.reached) == sorted(AT_WORK)


@pytest.mark.parametrize("name", AT_WORK)
def test_after_a_death_the_log_is_whole_and_the_work_can_be_finished(
    name: str, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    truth, last = undisturbed.truth, undisturbed.reached[name]
    times = {1, last, *(chance.randint(1, last) for _ in range(DEATHS - 2))}
    for number in sorted(times):
        directory = tmp_path / f"log-{number}"
        code, safe = run_to_its_death(directory, f"{name}:{number}")
        assert code == failpoint.EXIT_CODE
        try:
            with eventlog.open(directory) as log:
                assert log.check() == []
                workload.require_whole(log, truth, safe)
                assert [owner.kind for owner in log.engine.owners()] in ([], ["capture"])
        except NotALog:
            assert safe == {} and number == 1, "it died while the log was being made"
        workload.run_alone(directory)
        with eventlog.open(directory) as log:
            assert workload.contents(log) == truth
            assert log.engine.owners() == [] and log.check() == []
        with eventlog.open(workload.backup_of(directory)) as copy:
            found = workload.contents(copy)
            assert all(found[stream] == truth[stream] for stream in workload.STREAMS)
            assert copy.check() == []
        assert list((directory / "locks").glob("owner-*")) == []


def test_a_process_may_die_again_and_again(tmp_path: Path, undisturbed: Undisturbed) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    safe: dict[str, int] = {}
    for _ in range(12):
        name = chance.choice(AT_WORK)
        number = chance.randint(1, -(-undisturbed.reached[name] // 6))
        _, more = run_to_its_death(tmp_path / "log", f"{name}:{number}")
        safe |= more
    with eventlog.open(tmp_path / "log", create=True) as log:
        workload.require_whole(log, undisturbed.truth, safe)
    workload.run_alone(tmp_path / "log")
    with eventlog.open(tmp_path / "log") as log:
        assert workload.contents(log) == undisturbed.truth and log.check() == []


def test_every_failpoint_is_documented_and_stands_in_the_code() -> None:
    documented = re.findall(r"^    ([a-z]+\.[a-z]+)  ", failpoint.__doc__ or "", re.MULTILINE)
    assert tuple(documented) == failpoint.NAMES
    reached = [
        name
        for path in sorted((ROOT / "eventlog").rglob("*.py"))
        for name in re.findall(r'\breach\("([^"]+)"\)', path.read_text("utf-8"))
    ]
    assert sorted(reached) == sorted(failpoint.NAMES)


@pytest.mark.parametrize("wrong", ["commit", "commit.before:", "commit.before:0", "x:1", ":3"])
def test_a_failpoint_that_is_none_is_an_error(wrong: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import eventlog.engine"],
        cwd=ROOT,
        env={**os.environ, failpoint.VARIABLE: wrong},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and f"${failpoint.VARIABLE}" in done.stderr


def test_no_failpoint_is_armed_without_being_asked_for() -> None:
    for name in failpoint.NAMES:
        failpoint.reach(name)
