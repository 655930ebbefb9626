"""A server that a benchmark starts, waits for, and stops."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_S = 20.0
STOP_S = 20.0
LOOPBACK = "127.0.0.1"


class NotStarted(RuntimeError):
    """A server ended, or did not answer in time; the message has its last words."""


def find_program(name: str) -> str | None:
    """The path of a program: beside this Python, where wheels put it, or else on the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at the moment."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], directory: Path, *, answers: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """A server from when `answers` says so until the block ends; its words go to `directory`.

    Raises NotStarted.
    """
    with (directory / "output").open("w+b") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + START_S
            while not answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    said = output.read().decode(errors="replace").strip()[-2_000:]
                    raise NotStarted(f"{Path(command[0]).name} does not answer: {said}")
                time.sleep(0.02)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
