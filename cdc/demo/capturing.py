"""The capture of the demo: a daemon that is killed while the application writes, and goes on.

::

    application   ├──────────── first half ───┤ Moment ├──┬────────────┬─ second half ──┤
    capture       ════════════════════════════════════════╳  not there ╞════════════════════▶ caught
                                                       SIGKILL      restarted               up
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cdc.demo.child import Child
from eventlog.errors import EnvironmentFault, UnknownStream

if TYPE_CHECKING:
    import eventlog

STREAM = "flights"
TABLES = ("public.flights", "public.weather")

START_TIMEOUT_S = 30.0
STALL_S = 10.0
"""How long nothing may arrive before the demo stops waiting and compares what is there."""
FINISH_TIMEOUT_S = 60.0
POLL_S = 0.05

_DSN_VARIABLE = "EVENTLOG_DEMO_DSN"


class Daemon:
    """`eventlog capture` as a process that is started more than once. A context manager."""

    def __init__(self, log: eventlog.Log, dsn: str, scratch: Path) -> None:
        """`scratch` is a private directory for what the processes say."""
        self._log = log
        self._env = {_DSN_VARIABLE: dsn}  # a command line is for all users of the machine to see
        self._scratch = scratch
        self._child: Child | None = None
        self._begin = 0

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def captured(self) -> int:
        """Changes in the log, those of the tables' initial copy aside."""
        return self._log.stream(STREAM).end - self._begin

    def start(self) -> None:
        """Start it where it ended, or for the first time."""
        self._child = self._spawn()

    def await_streaming(self) -> None:
        """Wait until the tables are copied and changes are followed. Raises EnvironmentFault."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            try:
                state = self._log.source(STREAM)
            except UnknownStream:
                state = None
            if state is not None and state["phase"] == "streaming":
                self._begin = self._log.stream(STREAM).end
                return
            time.sleep(POLL_S)
        raise EnvironmentFault(
            f"the capture did not begin within {START_TIMEOUT_S:g} s",
            hint="run the demo again on a machine with less load",
        )

    def check(self) -> None:
        """Raise EnvironmentFault if it failed."""
        if self._child is not None:
            self._child.check()

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def catch_up(self, applied: int, progress: Callable[[], None]) -> None:
        """Wait until `applied` changes are in the log, or nothing has come for a while."""
        last, since = self.captured, time.monotonic()
        while last < applied and time.monotonic() - since < STALL_S:
            time.sleep(POLL_S)
            self.check()
            progress()
            if self.captured != last:
                last, since = self.captured, time.monotonic()

    def finish(self) -> None:
        """Stop it, and capture once more up to the server's position: there is nothing more."""
        self._stop()
        with self._spawn("--until", "current") as last:
            last.wait(FINISH_TIMEOUT_S)

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child.check()
            self._child = None

    def _spawn(self, *more: str) -> Child:
        tables = [word for table in TABLES for word in ("--table", table)]
        source = ["--source", STREAM, "--dsn", f"env:{_DSN_VARIABLE}", *tables]
        return Child(
            "eventlog.cli",
            *("capture", *source, "--log", str(self._log.path), "--json", *more),
            says=self._scratch / "capture.txt",
            env=self._env,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._child is not None:
            self._child.stop()
