"""What a run of the benchmarks may be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Common to all programs.

    `directory` is where logs and other files are written: its disk is part of what is measured.
    `rows` replaces a program's own number of rows or events. `postgres` is a major version: 18 is
    the wheel's, others Debian's. `note` shows what goes on.
    """

    directory: Path
    quick: bool
    samples: int
    rows: int | None
    transaction_rows: int
    postgres: int
    note: Callable[[str], None]
