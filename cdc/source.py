"""A source by its name, its connection string and its tables: the Python way to capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cdc.driver import Running, driver_of
from cdc.options import Options, Outcome, Report
from eventlog import Log


def _silent(_: object) -> None:
    return


@dataclass(frozen=True, slots=True)
class Source:
    """A database to capture. `name` is the stream's; `tables` are names or patterns.

    A table's columns may be listed, as in `public.customers(id,tier)`: no other leaves the source.
    `dsn` is a connection string of the source's kind, or `env:VAR`.
    """

    name: str
    dsn: str = field(repr=False)
    tables: Sequence[str] = ()

    def start(self, log: Log, *, report: Report = _silent, **options: Any) -> Running:
        """Set up a capture; `run()` does it, `stop()` ends it from elsewhere."""
        options["hash"] = tuple(options.get("hash", ()))
        chosen = Options(tables=tuple(self.tables), **options)
        return driver_of(self.dsn).capture(log, self.name, self.dsn, chosen, report)

    def capture(self, log: Log, *, report: Report = _silent, **options: Any) -> Outcome:
        """Capture into the log, with the options of `cdc.Options`.

        Without `until` this goes on for ever. Raises the errors drawn in `cdc.errors`.
        """
        return self.start(log, report=report, **options).run()
