"""What a demo found, and what to try on the log that it leaves."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from cdc.demo import model
from cdc.demo.capturing import STREAM
from cdc.demo.comparing import Counts, Rebuilt


@dataclass(slots=True, kw_only=True)
class Summary:
    """What the run found. Times are seconds."""

    log: str
    flights: int = 0
    transactions: int = 0
    applied: Counts = field(default_factory=lambda: Counts(inserts=0, updates=0, deletes=0))
    captured: Counts = field(default_factory=lambda: Counts(inserts=0, updates=0, deletes=0))
    killed_at_offset: int = 0
    rebuilt: list[Rebuilt] = field(default_factory=list)
    score: model.Score | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    next: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether the log holds exactly what the application did."""
        return self.applied == self.captured and all(table.equal for table in self.rebuilt)

    def as_json(self) -> dict[str, Any]:
        tables = [{**asdict(table), "equal": table.equal} for table in self.rebuilt]
        return {"equal": self.equal, **asdict(self), "rebuilt": tables}


def suggestions(summary: Summary) -> list[str]:
    """Commands for a shell that work on the log that the demo left."""
    half = summary.rebuilt[0].offset
    log = ["--log", summary.log]
    commands = [
        ["streams"],
        ["read", STREAM, "--table", "flights", "--start", str(half), "--stop", str(half + 20)],
        ["read", model.METRICS, "--start", "0", "--stop", "4", "--json"],
        [
            *("snapshot", "export", STREAM, "--table", "flights", "--at", str(half)),
            *("--out", "flights.parquet"),
        ],
        ["check"],
    ]
    return [shlex.join(["eventlog", *words, *log]) for words in commands]
