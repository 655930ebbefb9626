"""What a contender of `append` is: a way to store a load, and to count what it has stored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Load


class Absent(Exception):
    """A contender is not installed; the message says what to install."""


class NotStored(RuntimeError):
    """A contender holds another number of events than it was given: its rate means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appender:
    """`append_all` stores the whole load, each call durable before the next.

    `stored` counts the events that the store itself says it has, None where it cannot tell.
    """

    append_all: Callable[[], None]
    stored: Callable[[], int] | None
    version: str = ""


Opener = Callable[[Load, Path, ExitStack], Appender]
"""Makes a contender in a directory of its own; it ends with the stack. Raises Absent."""
