"""How the demo is told: numbered steps, and a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cdc.demo.narrator import Progress as Now

_INDENT = 3
_QUARTERS = 4


@contextmanager
def narrator(*, aside: bool) -> Iterator[TextNarrator]:
    """A narrator on stdout, or `aside` on stderr; takes its bar away at the end."""
    telling = TextNarrator(Console(stderr=aside, highlight=False))
    try:
        yield telling
    finally:
        telling.clear()


class TextNarrator:
    """Tells people. The time at a step's right end is since the beginning."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._steps = 0
        self._bar: Progress | None = None
        self._quarter = 0

    def step(self, title: str) -> None:
        """Number a title, with the time since the beginning."""
        self.clear()
        self._steps += 1
        if self._steps > 1:
            self._line("")
        at = f"{time.monotonic() - self._began:5.1f} s"
        self._print(Text.assemble((f"{self._steps}  {title}", "bold"), (f"  {at}", "dim")))

    def say(self, text: str) -> None:
        """Print an indented line."""
        self._line(" " * _INDENT + text)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print aligned columns; those of numbers to the right."""
        self.clear()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for place, heading in enumerate(headings):
            numbers = bool(rows) and all(_is_number(row[place]) for row in rows)
            table.add_column(heading, justify="right" if numbers else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        with self._console.capture() as drawn:
            self._console.print(table)
        for line in drawn.get().splitlines():
            self._console.out(" " * _INDENT + line.rstrip(), highlight=False)

    def progress(self, now: Now) -> None:
        """Move the bar; where there is no terminal, a line at each quarter."""
        if self._console.is_terminal:
            self._move(now)
            return
        quarter = now.applied * _QUARTERS // now.total
        if quarter > self._quarter:
            self._quarter = quarter
            behind = now.applied - now.captured
            day = str(now.at)[:10]
            self.say(f"{day}: {now.applied:,} of {now.total:,} applied, log {behind:,} behind")

    def end(self, seconds: float, commands: Sequence[str]) -> None:
        """Say how long it took, and what to try next."""
        self.step("What to try next")
        for command in commands:
            self.say(command)
        self._line("")
        self._line(f"Done in {seconds:.1f} s. The server and its data are gone, the log stays.")

    def clear(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _move(self, now: Now) -> None:
        fields: dict[str, Any] = {
            "day": str(now.at)[:10],
            "applied": f"{now.applied:,}",
            "captured": f"{now.captured:,}",
            "behind": f"{now.applied - now.captured:,}",
        }
        if self._bar is None:
            self._bar = _bar(self._console)
            self._bar.add_task("", total=now.total, **fields)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=now.captured, **fields)

    def _line(self, text: str) -> None:
        self._print(Text(text))

    def _print(self, text: Any) -> None:
        self._console.print(text, soft_wrap=True)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn(" " * (_INDENT - 1) + "{task.fields[day]}"),
        BarColumn(bar_width=24),
        TextColumn("applied {task.fields[applied]}  captured {task.fields[captured]}"),
        TextColumn("behind {task.fields[behind]}"),
        console=console,
        transient=True,
    )


def _is_number(text: str) -> bool:
    return text.removesuffix(" min").replace(",", "").lstrip("+-").replace(".", "", 1).isdigit()
