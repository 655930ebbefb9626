"""A follower as a process of its own; prints what it saw, and what that took.

::

    python -m benchmarks.follow_process HOW LOG commits COMMITS [FIFO]
    python -m benchmarks.follow_process HOW LOG idle SECONDS

It follows so many commits of an event each, or waits so long where none comes. HOW is `for`,
`async for`, `polling` (a `for` that gets no inotify) or `pipe`, which reads one byte of FIFO for
each commit and never looks at the log.

It tells the log's stream `ready` when it is about to wait. One JSON line has the times at which it
had each event (ns of the monotonic clock, which processes share), and the CPU and wall seconds
since SETTLE_S after that.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import eventlog
from eventlog.engine.watch import Watch

EVENTS = "events"
READY = "ready"
SETTLE_S = 0.1
PATIENCE_S = 120.0


class Follower:
    """Takes the events of `commits` commits, or none for `seconds`."""

    def __init__(self, log: eventlog.Log, *, commits: int, seconds: float) -> None:
        self._received: list[int] = []
        self._commits = commits
        self._seconds = seconds
        stream = log.stream(EVENTS)
        start = stream.end
        until = start + commits if commits else None
        self._following = stream.follow(start, until=until, stop=self._over)
        self._settled = False
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        log.stream(READY).append("ready")

    def iterate(self) -> None:
        for batch in self._following:
            self._take(batch)

    async def iterate_awaited(self) -> None:
        async for batch in self._following:
            self._take(batch)

    def read(self, fifo: Path) -> None:
        with fifo.open("rb", buffering=0) as file:
            while came := file.read(self._commits):
                self._received += [time.monotonic_ns()] * len(came)

    def told(self) -> dict[str, Any]:
        cpu_s, wall_s = time.process_time() - self._cpu_began, time.monotonic() - self._began
        if len(self._received) != self._commits:
            raise SystemExit(f"{len(self._received)} events came, not {self._commits}")
        return {"received": self._received, "cpu_s": cpu_s, "wall_s": wall_s}

    def _take(self, batch: Any) -> None:
        for event in batch:
            if event.value != len(self._received):
                raise SystemExit(f"event {event.value} came as number {len(self._received)}")
            self._received.append(time.monotonic_ns())

    def _over(self) -> bool:
        passed_s = time.monotonic() - self._began
        if not self._settled and passed_s >= SETTLE_S:
            self._settled = True
            self._began, self._cpu_began = time.monotonic(), time.process_time()
            return False
        return passed_s >= self._seconds


def main(how: str, directory: str, what: str, amount: str, *fifo: str) -> None:
    """Follow, then tell."""
    with eventlog.open(directory) as log:
        if what == "idle":
            follower = Follower(log, commits=0, seconds=float(amount))
        else:
            follower = Follower(log, commits=int(amount), seconds=PATIENCE_S)
        if how == "async for":
            asyncio.run(follower.iterate_awaited())
        elif how == "pipe":
            follower.read(Path(fifo[0]))
        elif how == "polling":
            with mock.patch.object(Watch, "open", return_value=Watch()):
                follower.iterate()
        else:
            follower.iterate()
    print(json.dumps(follower.told()))


if __name__ == "__main__":
    main(*sys.argv[1:])
