"""What a capture tells while it runs: lines and a moving one for people, JSON for programs.

Warnings and retries go to stderr, so does the moving line, which a terminal alone shows.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Self

import click

from cdc.options import Event, Outcome
from eventlog.cli.printing import one_line, write_json, write_lines
from eventlog.cli.progress import EVERY_S, StatusLine

_MOVING = frozenset({"copying", "progress"})
_ASIDE = {"warning": "Warning: ", "retry": "Retry: "}


class TextReport:
    """Tells people. A context manager: leaving it takes the moving line away."""

    def __init__(self) -> None:
        self._line = StatusLine()
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._line.clear()

    def __call__(self, event: Event) -> None:
        text = one_line(event.text)
        if event.kind in _MOVING:
            now = time.monotonic()
            if now - self._shown_at >= EVERY_S:
                self._shown_at = now
                self._line.show(text)
            return
        self._line.clear()
        if event.kind in _ASIDE:
            click.echo(_ASIDE[event.kind] + text, err=True)
        else:
            write_lines([text], flush=True)

    def end(self, source: str, outcome: Outcome, drop: str | None) -> None:
        """Say how the capture ended, and what stays at the server."""
        lines = [f"captured {source} up to {outcome.position}: {outcome.rows:,} changes"]
        if outcome.slot is not None:
            lines += [
                f"The server now keeps its WAL for slot {outcome.slot}, until the capture goes on.",
                f"To end that for good: {drop}",
            ]
        write_lines(lines, flush=True)


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
