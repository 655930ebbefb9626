"""A progress bar on stderr, for what takes longer than a second on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

PATIENCE_S = 1.0
EVERY_S = 0.1


@contextmanager
def bar(verb: str) -> Iterator[Callable[[int, int], None]]:
    """A function of how much is done and how much there is; silent where stderr is no terminal."""
    shown_at = time.monotonic() + PATIENCE_S
    line = StatusLine()

    def progress(done: int, total: int) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now >= shown_at:
            shown_at = now + EVERY_S
            line.show(f"{verb}: {done:,} of {total:,} ({done * 100 // max(total, 1)} %)")

    try:
        yield progress
    finally:
        line.clear()


class StatusLine:
    """One line of stderr that is written over; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._dirty = False

    def show(self, text: str) -> None:
        """Write `text` over what stood there."""
        if self._terminal:
            click.echo(f"\r\x1b[2K{text}", nl=False, err=True)
            self._dirty = True

    def clear(self) -> None:
        """Take the line away, before something else is printed."""
        if self._dirty:
            click.echo("\r\x1b[2K", nl=False, err=True)
            self._dirty = False
