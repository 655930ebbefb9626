"""One capture as a process of its own, as the daemon is; prints what only it can tell.

::

    python -m benchmarks.capture_process DSN_VARIABLE LOG SLOT PUBLICATION UNTIL

It prints one JSON line: when it started to stream and when all was durable (the monotonic clock,
which processes share), the CPU seconds it had used by then, and the records that the log holds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import eventlog
from cdc.options import Event
from cdc.source import Source

SOURCE = "bench"
TABLE = "public.orders"


def main(dsn_variable: str, directory: str, slot: str, publication: str, until: str) -> None:
    """Capture the slot's backlog into a new log, up to the LSN `until`."""
    began: list[tuple[float, float]] = []

    def report(event: Event) -> None:
        if event.kind == "streaming":
            began.append((time.monotonic(), time.process_time()))

    with eventlog.open(Path(directory), create=True) as log:
        source = Source(SOURCE, f"env:{dsn_variable}", [TABLE])
        source.capture(
            log, report=report, until=until, copy=False, slot=slot, publication=publication
        )
        ended, cpu_ended = time.monotonic(), time.process_time()
        records = log.stream(SOURCE).end
    (started, cpu_started), *again = began
    told = {
        "started": started,
        "ended": ended,
        "cpu_started": cpu_started,
        "cpu_ended": cpu_ended,
        "connections": 1 + len(again),
        "records": records,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
