"""The thread that commits: what it says of work that ends while somebody waits for it."""

from __future__ import annotations

import threading

import pytest

from cdc.committer import Committer


def test_work_that_ends_just_after_the_wait_has_ended_well() -> None:
    committer = Committer(lambda: None)
    for _ in range(300):
        committer.submit(lambda: None)
        while not committer.settle(timeout_s=0.0):
            pass
    committer.close()


def test_work_that_runs_is_busy_and_settles_when_it_ends() -> None:
    committer, go = Committer(lambda: None), threading.Event()

    def work() -> None:
        assert go.wait(60)

    committer.submit(work)
    assert not committer.settle(timeout_s=0.01)
    assert committer.busy
    go.set()
    assert committer.settle(timeout_s=60)
    assert not committer.busy
    committer.close()


def test_a_timeout_that_the_work_raised_is_not_taken_for_the_wait() -> None:
    def work() -> None:
        raise TimeoutError("the disk")

    committer = Committer(lambda: None)
    committer.submit(work)
    with pytest.raises(TimeoutError, match="the disk"):
        committer.settle(timeout_s=60)
    assert not committer.busy
    committer.close()
