"""Staging in commits that the disk takes well: how large they are, learnt from how long they take.

The disk and the clock are made up: it flushes in FLUSH_S, and writes so many bytes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given

import eventlog
from eventlog.engine import Batch, Engine, Owner, Transactions, batch_of, writer
from eventlog.engine.locks import FileLock
from eventlog.engine.rows import OwnerRow
from eventlog.engine.writer import COMMIT_BYTES, COMMIT_BYTES_MAX

MIB = 1 << 20
FLUSH_S = 0.002


class Disk(FileLock):
    """A lock whose file lies on a disk that flushes in `seconds`; it counts the questions."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = 0

    def flush_s(self) -> float:
        self.asked += 1
        return self.seconds


def owner_on(disk: Disk) -> Owner:
    row = OwnerRow(id=1, kind="append", stream=1)
    return Owner(None, row, disk, "none")  # type: ignore[arg-type]


def test_a_bulk_writer_begins_with_commits_of_a_mebibyte() -> None:
    assert (COMMIT_BYTES, COMMIT_BYTES_MAX) == (1 * MIB, 16 * MIB)
    assert owner_on(Disk(FLUSH_S)).commit_bytes == 1 * MIB


@pytest.mark.parametrize("bytes_per_s", [50e6, 1e9, 2.5e9, 20e9])
def test_a_commit_comes_to_take_five_flushes_three_of_them_writing(bytes_per_s: float) -> None:
    owner = owner_on(Disk(FLUSH_S))
    for _ in range(40):
        took_s = 2 * FLUSH_S + owner.commit_bytes / bytes_per_s
        owner._learn(owner.commit_bytes, took_s)
    wanted = min(max(3 * FLUSH_S * bytes_per_s, 1 * MIB), 16 * MIB)
    assert owner.commit_bytes == pytest.approx(wanted, rel=0.01)


def test_a_commit_that_took_longer_makes_the_next_one_smaller() -> None:
    owner = owner_on(Disk(FLUSH_S))
    sizes = []
    for flushes in (5, 2.5, 10, 40, 0.01, 5_000):
        owner._learn(4 * MIB, flushes * FLUSH_S)
        sizes.append(round(owner.commit_bytes / MIB, 3))
    assert sizes == [4, 8, 2, 1, 16, 1]


@given(
    flush_s=st.floats(1e-7, 1),
    commits=st.lists(st.tuples(st.integers(0, 1 << 32), st.floats(1e-7, 1e4)), max_size=20),
)
def test_commits_stay_between_one_and_sixteen_mebibytes_on_any_disk(
    flush_s: float, commits: list[tuple[int, float]]
) -> None:
    disk = Disk(flush_s)
    owner = owner_on(disk)
    for size, took_s in commits:
        before = owner.commit_bytes
        owner._learn(size, took_s)
        assert 1 * MIB <= owner.commit_bytes <= 16 * MIB
        assert owner.commit_bytes == before or size >= MIB // 2, "a small one teaches nothing"
    assert disk.asked == any(size >= MIB // 2 for size, _ in commits), "the flush is timed once"


def test_what_is_staged_is_timed_as_one_commit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")
    owner = engine.appender("s")
    monkeypatch.setattr(FileLock, "flush_s", lambda lock: FLUSH_S)
    now_s, taken_s = 0.0, 2.5 * FLUSH_S

    def clock() -> float:
        nonlocal now_s
        now_s += taken_s
        return now_s

    monkeypatch.setattr(writer, "time", SimpleNamespace(perf_counter=clock))
    batches = [
        batch_of(2, [bytes(200_000)], Transactions.one(time_us=0, back=n)) for n in range(10)
    ]
    owner.stage(batches[:1])
    assert owner.commit_bytes == 1 * MIB, "too little to learn from"
    owner.stage(batches[1:])
    stored = sum(len(batch.body.data) for batch in batches[1:])
    assert owner.commit_bytes == pytest.approx(2 * stored, abs=2)
    owner.close()


@pytest.mark.parametrize("most", [1 * MIB, 3 * MIB])
def test_a_large_append_is_staged_in_commits_of_that_size(
    log: eventlog.Log, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    sizes: list[int] = []
    real = Owner.stage

    def stage(owner: Owner, batches: Sequence[Batch]) -> None:
        real(owner, batches)
        sizes.append(sum(len(batch.body.data) for batch in batches))

    def learn(owner: Owner, size: int, took_s: float) -> None:
        owner.commit_bytes = most

    monkeypatch.setattr(Owner, "stage", stage)
    monkeypatch.setattr(Owner, "_learn", learn)
    stream = log.stream("s", create=True)
    assert stream.append_many("." * 1_000 for _ in range(15_000)) == range(15_000)
    assert len(sizes) >= 4 and max(sizes) <= most
    # Its first ones may be gathered before what the disk takes is known.
    assert min(sizes[3:]) > most - 300_000
