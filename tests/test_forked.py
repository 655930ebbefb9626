"""Processes that the nursery starts are as `python -m` would have made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import Nursery

PROGRAM = """
import os, signal, sys

what, *words = sys.argv[1:]
if what == "tell":
    open_files = [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
    handled = [s.name for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)
               if signal.getsignal(s) not in (signal.SIG_DFL, signal.SIG_IGN)]
    print(__name__, words, sys.stdin.read(), os.environ.get("WORD"), sorted(open_files), handled)
    print("said", file=sys.stderr)
elif what == "exit":
    sys.exit(int(words[0]))
elif what == "raise":
    raise ValueError("of the program")
elif what == "wait":
    print("waits", flush=True)
    signal.pause()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module for both kinds of processes, which the nursery has not imported."""
    (tmp_path / "forked_program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "forked_program"


@pytest.fixture
def nursery(module: str) -> Iterator[Nursery]:
    """One of this test's, which finds the module."""
    made = Nursery()
    yield made
    made.close()


def test_a_forked_process_is_as_a_fresh_one(
    nursery: Nursery, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "a word")
    for words in (["tell", "x", "y z"], ["exit", "3"], ["raise"], ["exit", "0"]):
        fresh = subprocess.run(
            [sys.executable, "-m", module, *words],
            input="given",
            capture_output=True,
            text=True,
            timeout=60,
        )
        forked = nursery.run(module, words, input="given")
        assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout), words
        assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:], words


def test_a_forked_process_can_be_killed_and_tells_by_what(nursery: Nursery, module: str) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        waiting = nursery.spawn(module, ["wait"])
        assert waiting.stdout is not None and waiting.stdout.readline() == "waits\n"
        assert waiting.poll() is None
        waiting.send_signal(number)
        assert waiting.wait() == -number
        waiting.kill()  # It is gone: nobody else is meant.
        waiting.close()


def test_what_is_left_running_ends_with_the_nursery(module: str) -> None:
    made = Nursery()
    left = made.spawn(module, ["wait"])
    assert left.stdout is not None and left.stdout.readline() == "waits\n"
    made.close()
    deadline = time.monotonic() + 60
    while _is_alive(left.pid):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
