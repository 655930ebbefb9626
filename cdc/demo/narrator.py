"""Who tells what happens in a demo: its course knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Changes applied by the application and captured in the log; `at` is the replay's time."""

    total: int
    applied: int
    captured: int
    at: np.datetime64


class Narrator(Protocol):
    """Tells what happens, as it happens."""

    def step(self, title: str) -> None:
        """A new part begins."""
        ...

    def say(self, text: str) -> None:
        """A line of it."""
        ...

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows under headings."""
        ...

    def progress(self, now: Progress) -> None:
        """How far application and capture are."""
        ...
