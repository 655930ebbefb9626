"""The copies that go on as bars on a terminal: rows, bytes a second, the time that is left.

::

    public.orders ━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━  612,004 rows  48.9 MB/s  0:00:04
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cdc.options import Event
from eventlog.changes.quantities import counted
from eventlog.cli.printing import one_line


class CopyBars:
    """A bar for each table that is being copied."""

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds."""
        self._tasks: dict[str, TaskID] = {}
        # Drawn when something is told: no thread of its own, which a signal may find anywhere.
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[rows]}"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console or Console(file=sys.stderr),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
            get_time=clock,
        )

    def show(self, event: Event) -> None:
        """Draw how far the copy of a table is."""
        table = one_line(event.table or "")
        total = _total(event)
        task = self._tasks.get(table)
        if task is None:
            task = self._tasks[table] = self._progress.add_task(table, total=total, rows="")
        self._progress.start()
        rows = counted(event.rows, "row")
        self._progress.update(task, completed=event.bytes, total=total, rows=rows, refresh=True)

    def clear(self, table: str | None = None) -> None:
        """Take the bars away, to print something else; that of `table` for good."""
        if self._tasks:
            self._progress.stop()
            task = self._tasks.pop(one_line(table or ""), None)
            if task is not None:
                self._progress.remove_task(task)

    @property
    def shown(self) -> bool:
        """Whether a table is being copied."""
        return bool(self._tasks)


def _total(event: Event) -> int | None:
    """The bytes that a copy will have, as far as can be told."""
    if event.bytes_estimate is None and event.rows_estimate is not None and event.rows:
        return max(event.bytes * event.rows_estimate // event.rows, event.bytes)
    return event.bytes_estimate
