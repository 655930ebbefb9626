"""A child process with the resources that it used."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

WATCH_S = 0.02


class ChildFailed(RuntimeError):
    """A contender's process ended with a failure; the message has its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """`started` and `ended` are of the monotonic clock. `anonymous_bytes`: greatest RssAnon."""

    output: str
    started: float
    ended: float
    cpu_s: float
    anonymous_bytes: int


def run_child(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> Usage:
    """Run a program to its end; its output and errors go through files in `directory`.

    Raises ChildFailed.
    """
    with (directory / "output").open("w+b") as output, (directory / "errors").open("w+b") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        watch = _Watch(process.pid)
        try:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
            watch.end()
        ended = time.monotonic()
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            said = errors.read().decode(errors="replace").strip()[-2_000:]
            name = Path(command[0]).name
            raise ChildFailed(f"{name} ended with {process.returncode}: {said}")
        return Usage(
            output=output.read().decode(),
            started=started,
            ended=ended,
            cpu_s=used.ru_utime + used.ru_stime,
            anonymous_bytes=watch.greatest,
        )


class _Watch:
    """Looks at a process's anonymous memory every WATCH_S."""

    def __init__(self, pid: int) -> None:
        self.greatest = 0
        self._status = Path(f"/proc/{pid}/status")
        self._ended = Event()
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(WATCH_S):
            try:
                text = self._status.read_text("utf-8")
            except OSError:
                return
            for line in text.splitlines():
                if line.startswith("RssAnon:"):
                    self.greatest = max(self.greatest, int(line.split()[1]) * 1024)
