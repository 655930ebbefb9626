"""Power that fails at any moment: the log opens as it was before a commit or after it.

A store double forgets whatever was not synced. LMDB writes the data pages of a commit, flushes
them, and then writes one of the two meta pages through, which makes the commit count. So from the
file's images before and after a commit every image follows that a loss of power may leave::

    before a flush      any of the data pages, whole or torn between sectors; the old meta page
    the meta page       torn at any byte, or whole, on all data pages
"""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import eventlog
from eventlog.engine import Engine, check, store
from eventlog.engine.store import Store
from eventlog.errors import NotALog
from tests import workload
from tests.forgetful_store import PAGE, Commit, ForgetfulStore, page
from tests.onlooker import Onlooker, Seen

SECTOR = 512
COMMITS_EACH = 9
"""Commits of each step of the workload whose images are looked at."""


def run_watched(directory: Path, wanted: Callable[[str, int], bool]) -> ForgetfulStore:
    with eventlog.open(directory, create=True) as log:
        double = ForgetfulStore(directory / "data.mdb", wanted)
        with double.watching():
            for step in workload.STEPS:
                double.step = step.name
                step.do(log, double.told)
        assert log.check() == []
    return double


@pytest.fixture(scope="module")
def chance() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory, chance: random.Random) -> list[Commit]:
    """Commits of every step, drawn by lot; of the single ones half are those that merge."""
    place = tmp_path_factory.mktemp("watched")
    counted = run_watched(place / "counted", lambda step, number: False).counted
    wanted: dict[str, set[int]] = defaultdict(set)
    for step, total in counted.items():
        drawn = chance.sample(range(1, total + 1), min(COMMITS_EACH, total))
        wanted[step] = {total, *drawn}
        if total > 16 * COMMITS_EACH:
            wanted[step] |= set(chance.sample(range(16, total, 16), COMMITS_EACH))
    return run_watched(place / "log", lambda step, number: number in wanted[step]).commits


@pytest.fixture
def onlooker(tmp_path: Path) -> Iterator[Onlooker]:
    with Onlooker(tmp_path / "seen", names=workload.NAMES, exact=True) as looking:
        yield looking


def crashed(commit: Commit, pages: list[int], chance: random.Random, *, torn: bool) -> bytes:
    """The image after a crash that let only these pages, or sectors of them, reach the disk."""
    grown = chance.choice([len(commit.before), len(commit.after)])
    image = bytearray(commit.before.ljust(grown, b"\0"))
    for number in pages:
        at = number * PAGE
        for sector in range(at, at + PAGE, SECTOR):
            if not torn or chance.random() < 0.5:
                image[len(image) :] = bytes(max(sector + SECTOR - len(image), 0))
                image[sector : sector + SECTOR] = commit.after[sector : sector + SECTOR]
    return bytes(image)


def torn_meta(commit: Commit, meta: int, chance: random.Random) -> bytes:
    """All data pages, and the meta page up to a byte within what the commit changed in it."""
    at = meta * PAGE
    pairs = zip(page(commit.before, meta), page(commit.after, meta), strict=True)
    changed = [n for n, (old, new) in enumerate(pairs) if old != new]
    cut = at + chance.randint(changed[0], changed[-1])
    return (
        commit.after[:at]
        + commit.after[at:cut]
        + commit.before[cut : at + PAGE]
        + (commit.after[at + PAGE :])
    )


def whole_data(commit: Commit, meta: int) -> bytes:
    at = meta * PAGE
    return commit.after[:at] + page(commit.before, meta) + commit.after[at + PAGE :]


def test_a_commit_writes_one_meta_page_within_one_sector(commits: list[Commit]) -> None:
    assert {commit.step for commit in commits} == {step.name for step in workload.STEPS}
    for commit in commits:
        data, metas = commit.changed()
        assert data and len(metas) == 1
        old, new = page(commit.before, metas[0]), page(commit.after, metas[0])
        changed = [n for n, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]]
        assert changed[0] // SECTOR == changed[-1] // SECTOR


def test_the_store_flushes_data_and_meta_pages_of_every_commit(engine: Engine) -> None:
    flags = engine.store._env.flags()
    assert (flags["sync"], flags["metasync"], flags["writemap"]) == (True, True, False)


def test_power_loss_leaves_the_log_before_a_commit_or_after_it(
    commits: list[Commit], chance: random.Random, onlooker: Onlooker
) -> None:
    looked: Counter[str] = Counter()
    for commit in commits:
        data, (meta,) = commit.changed()
        for name, image in (("B", commit.before), ("A", commit.after)):
            seen = onlooker.remember(name, image)
            assert not seen.died and seen.violations == ()
            assert all("UnknownStream" in error for error in seen.errors), "to come later"
        some = [number for number in data if chance.random() < 0.5]
        images = {
            "whole pages of the data": (crashed(commit, some, chance, torn=False), "B"),
            "sectors of the data": (crashed(commit, data, chance, torn=True), "B"),
            "all of the data": (whole_data(commit, meta), "B"),
            "a torn meta page": (torn_meta(commit, meta, chance), "AB"),
            "all": (commit.after, "A"),
        }
        for what, (image, allowed) in images.items():
            seen = onlooker.look(image)
            assert set(seen.equal) & set(allowed), (commit.step, what, seen)
            looked[what] += 1
    print(dict(looked))


def test_what_was_acknowledged_is_there_after_power_loss(
    commits: list[Commit], chance: random.Random, tmp_path: Path
) -> None:
    for number, commit in enumerate(chance.sample(commits, min(40, len(commits)))):
        data, _ = commit.changed()
        directory = tmp_path / f"log-{number}"
        directory.mkdir()
        (directory / "data.mdb").write_bytes(crashed(commit, data, chance, torn=True))
        with eventlog.open(directory) as log:
            found = workload.contents(log)
            for subject, safe in commit.safe.items():
                there = found[subject][0] if "@" in subject else found[subject][2]
                assert there >= safe, (commit.step, subject)
            assert check(log.engine) == []


class Made:
    """An LMDB environment of a log that is being made: keeps the images around its commits."""

    def __init__(self, env: Any, data: Path, commits: list[Commit]) -> None:
        self._env, self._data, self._commits = env, data, commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def open_db(self, *words: Any, **more: Any) -> Any:
        before = self._data.read_bytes()
        made = self._env.open_db(*words, **more)
        commit = Commit(step="made", before=before, after=self._data.read_bytes(), safe={})
        if any(commit.changed()):
            self._commits.append(commit)
        return made


def images_of_a_creation(directory: Path) -> tuple[bytes, list[Commit]]:
    """The data file when it was just made, and the commits that make the log."""
    commits: list[Commit] = []
    first: list[bytes] = []
    data = directory / "data.mdb"
    real = store._open

    def watched(*words: Any, **more: Any) -> Made:
        env = real(*words, **more)
        first.append(data.read_bytes())
        return Made(env, data, commits)

    with mock.patch.object(store, "_open", watched), ExitStack() as end:
        log = end.enter_context(eventlog.open(directory, create=True))
        commits.append(
            Commit(step="made", before=commits[-1].after, after=data.read_bytes(), safe={})
        )
        assert log.check() == []
    return first[0], commits


def test_power_loss_while_a_log_is_made_leaves_one_that_can_be_made(
    tmp_path: Path, chance: random.Random
) -> None:
    first, commits = images_of_a_creation(tmp_path / "made")
    assert len(commits) > len(store.DATABASES), "each database is made in a commit, then the rows"
    images = [b"", first]
    for commit in commits:
        data, (meta,) = commit.changed()
        images += [
            crashed(commit, data, chance, torn=True),
            whole_data(commit, meta),
            torn_meta(commit, meta, chance),
            commit.after,
        ]
    for number, image in enumerate(images):
        directory = tmp_path / f"log-{number}"
        directory.mkdir()
        (directory / "data.mdb").write_bytes(image)
        with eventlog.open(directory, create=True) as log:
            assert log.streams() == []
            workload.transactions(log, workload.unheard)
            assert log.check() == []


def test_the_first_pages_of_a_log_may_be_torn_and_are_no_log(
    tmp_path: Path, chance: random.Random
) -> None:
    first, _ = images_of_a_creation(tmp_path / "made")
    cuts = [chance.randrange(1, len(first)) for _ in range(8)]
    torn = [first[:cut] for cut in cuts] + [first[:cut].ljust(len(first), b"\0") for cut in cuts]
    for number, image in enumerate([*torn, bytes(len(first))]):
        directory = tmp_path / f"log-{number}"
        directory.mkdir()
        (directory / "data.mdb").write_bytes(image)
        with suppress(NotALog), eventlog.open(directory, create=True) as log:
            assert log.streams() == [] and log.check() == []


def test_the_name_of_a_new_log_is_durable_before_the_log_is(tmp_path: Path) -> None:
    done: list[str] = []
    fsync, write = os.fsync, Store.write

    def noted(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def committed(self: Store) -> Any:
        done.append("commit")
        return write(self)

    with mock.patch("os.fsync", noted), mock.patch.object(Store, "write", committed):
        eventlog.open(tmp_path / "log", create=True).close()
    assert {str(tmp_path), str(tmp_path / "log")} <= set(done[: done.index("commit")])


def test_a_store_that_does_not_flush_would_be_noticed(
    commits: list[Commit], chance: random.Random, onlooker: Onlooker
) -> None:
    # The meta page reached the disk, and only some of the data before it: the double is no sieve.
    noticed = 0
    for commit in chance.sample(commits, 20):
        data, (meta,) = commit.changed()
        onlooker.remember("B", commit.before)
        onlooker.remember("A", commit.after)
        some = [number for number in data if chance.random() < 0.3]
        seen: Seen = onlooker.look(crashed(commit, [*some, meta], chance, torn=False))
        noticed += not seen.equal
    assert noticed > 10
