"""One initial copy as a process of its own, as the daemon does it; prints what only it can tell.

::

    python -m benchmarks.copy_process DSN_VARIABLE LOG WORKERS

It prints one JSON line: when the copy began, its snapshot being there, and when the last row was
durable (the monotonic clock, which processes share), the CPU seconds used in between, and the rows
that the log holds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import eventlog
from cdc.options import Event
from cdc.postgres.copy import copying
from cdc.source import Source

SOURCE = "bench"
TABLE = "public.orders"


def main(dsn_variable: str, directory: str, workers: str) -> None:
    """Capture the table into a new log, up to the server's position at the start."""
    began: list[tuple[float, float]] = []
    copied: list[tuple[float, float, int]] = []
    copy_tables = copying.copy_tables

    def timed(*args: Any, **options: Any) -> bool:
        began.append((time.monotonic(), time.process_time()))
        return copy_tables(*args, **options)

    def report(event: Event) -> None:
        if event.kind == "copied":
            copied.append((time.monotonic(), time.process_time(), event.rows))

    with eventlog.open(Path(directory), create=True) as log:
        source = Source(SOURCE, f"env:{dsn_variable}", [TABLE])
        with mock.patch.object(copying, "copy_tables", timed):
            source.capture(
                log, report=report, until="current", temporary=True, copy_workers=int(workers)
            )
    ((started, cpu_started),) = began
    ((ended, cpu_ended, rows),) = copied
    told = {"started": started, "ended": ended, "cpu_s": cpu_ended - cpu_started, "rows": rows}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
