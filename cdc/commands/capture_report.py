"""What a capture tells while it runs: lines and a moving one for people, JSON for programs.

Warnings and retries go to stderr, so do the moving line and the bars of copies, which a terminal
alone shows.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Self

import click

from cdc.options import Event, Outcome
from eventlog.changes.quantities import counted
from eventlog.cli.printing import one_line, write_json, write_lines
from eventlog.cli.progress import EVERY_S, StatusLine

if TYPE_CHECKING:
    from cdc.commands.copy_bar import CopyBars

_MOVING = frozenset({"copying", "progress"})
_ASIDE = {"warning": "Warning: ", "retry": "Retry: "}


class TextReport:
    """Tells people. A context manager: leaving it takes away what moves."""

    def __init__(self) -> None:
        self._line = StatusLine()
        self._bars = _copy_bars()
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._clear()

    def __call__(self, event: Event) -> None:
        text = one_line(event.text)
        if event.kind in _MOVING:
            now = time.monotonic()
            if now - self._shown_at >= EVERY_S:
                self._shown_at = now
                self._move(event, text)
            return
        self._clear(event.table if event.kind == "copied" else None)
        if event.kind in _ASIDE:
            click.echo(_ASIDE[event.kind] + text, err=True)
        else:
            write_lines([text], flush=True)

    def _move(self, event: Event, text: str) -> None:
        if self._bars is not None and event.kind == "copying":
            self._line.clear()
            self._bars.show(event)
        elif self._bars is None or not self._bars.shown:
            self._line.show(text)

    def _clear(self, copied: str | None = None) -> None:
        self._line.clear()
        if self._bars is not None:
            self._bars.clear(copied)

    def end(self, source: str, outcome: Outcome, drop: str | None) -> None:
        """Say how the capture ended, and what stays at the server."""
        lines = [f"captured {source} up to {outcome.position}: {counted(outcome.rows, 'change')}"]
        if outcome.slot is not None:
            lines += [
                f"The server now keeps its WAL for slot {outcome.slot}, until the capture goes on.",
                f"To end that for good: {drop}",
            ]
        write_lines(lines, flush=True)


def _copy_bars() -> CopyBars | None:
    """What draws bars, where there is a terminal to draw on."""
    if not sys.stderr.isatty():
        return None
    from cdc.commands.copy_bar import CopyBars

    return CopyBars()


class JsonReport:
    """Tells programs: each event is an object, and so is the end, of kind `ended`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        write_json(dataclasses.asdict(event))

    def end(self, source: str, outcome: Outcome, drop: str | None) -> None:
        """Write the outcome, and the command that removes the slot that stays."""
        ended = {"kind": "ended", "source": source, **dataclasses.asdict(outcome)}
        write_json({**ended, "drop": drop})
