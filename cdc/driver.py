"""What a kind of source must bring, and which one a connection string means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from cdc.options import Options, Outcome, Report
from eventlog import Log
from eventlog.errors import UsageError

GROUP = "cdc.sources"
_DEFAULT = "postgresql"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How far a log is behind its source, in bytes, and in seconds where they can be told.

    `retained_bytes` is what the source keeps for the capture, None where it keeps nothing for it;
    `warning` says what threatens that.
    """

    bytes: int
    seconds: float | None = None
    retained_bytes: int | None = None
    warning: str | None = None


class Running(Protocol):
    """A capture that was set up and is not started."""

    def run(self) -> Outcome:
        """Capture until stopped, or until the options' end."""
        ...

    def stop(self) -> None:
        """End it in order; safe in a signal handler."""
        ...

    @property
    def made_beside(self) -> Sequence[Path]:
        """Files beside the log that this run made, such as a key."""
        ...


class SourceDriver(Protocol):
    """One kind of source. Registered as an entry point of group `cdc.sources`, by scheme."""

    def capture(self, log: Log, name: str, dsn: str, options: Options, report: Report) -> Running:
        """Set up a capture of the source at `dsn` into the stream `name`."""
        ...

    def drop(self, dsn: str, name: str, state: Mapping[str, Any] | None) -> list[str]:
        """Remove what captures of `name` left at the source; returns what was removed.

        Raises a CaptureError where neither a state nor the source tells of such captures.
        """
        ...

    def lag(self, dsn: str, state: Mapping[str, Any]) -> Lag:
        """How far the log is behind the source at `dsn`, and what that keeps for it."""
        ...

    def spelled(self, table: str) -> str:
        """A table or pattern in the form that is kept; raises UsageError for what is none."""
        ...

    def spelled_column(self, column: str) -> str:
        """A column of a table in the form that is kept; raises UsageError for what is none."""
        ...

    def tables(self, dsn: str, patterns: Sequence[str]) -> list[str]:
        """The tables at the source that these mean. Raises MissingTable where one means none."""
        ...

    def copied_share(self, cursor: Mapping[str, Any]) -> float | None:
        """How much of a copy is done, from 0 to 1, by its entry in the state's `copies`."""
        ...

    def warnings(self, dsn: str) -> list[str]:
        """What is unwise about this connection string, such as a password in sight."""
        ...


def driver_of_state(state: Mapping[str, Any]) -> SourceDriver:
    """The driver of a source that the log knows, by the kind in its state."""
    return driver_of(f"{state.get('kind', _DEFAULT)}://")


def driver_of(dsn: str) -> SourceDriver:
    """The driver for a connection string: by its scheme, Postgres where it has none."""
    found = _SCHEME.match(dsn)
    scheme = found.group(1) if found else _DEFAULT
    scheme = _DEFAULT if scheme == "postgres" else scheme
    points = {point.name: point for point in entry_points(group=GROUP)}
    if scheme not in points:
        raise UsageError(
            f"no source of kind {scheme!r} is installed",
            hint=f"installed kinds: {', '.join(sorted(points))}",
        )
    driver: SourceDriver = points[scheme].load()
    return driver
