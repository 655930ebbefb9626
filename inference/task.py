"""What is predicted, from what, and when the truth is known: one definition for both paths.

Training and live inference read the same expressions over the same rows, so they cannot disagree
(D17). Expressions are row-wise DuckDB SQL over the row's columns and `old.` columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from eventlog.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Task:
    """A supervised task on a captured table.

    `on` and `when` tell which changes are instances, `features` name the columns of X by their
    expressions, `target` is the truth, NULL until it is known. `time` and `label_time` give the
    event times of an instance and of its label, as TIMESTAMP expressions.
    """

    name: str
    version: int
    source: str
    table: str
    when: str
    features: Mapping[str, str]
    target: str
    time: str
    label_time: str
    on: frozenset[str] = field(default_factory=lambda: frozenset({"insert", "update"}))

    def __post_init__(self) -> None:
        if not self.features:
            raise UsageError(f"task {self.name!r} has no features", hint="name at least one column")

    @property
    def predictions(self) -> str:
        """The stream that predictions go to."""
        return f"{self.name}-predictions"

    @property
    def labels(self) -> str:
        """The stream that joined labels go to."""
        return f"{self.name}-labels"

    @property
    def metrics(self) -> str:
        """The stream that scores go to."""
        return f"{self.name}-metrics"

    @property
    def models(self) -> str:
        """The stream that tells which model was trained on what."""
        return f"{self.name}-models"
