"""What the integrity check finds: invariants that the stored bytes break, by name."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken invariant.

    `invariant` is `I1`, `I2`, `I4` or `I6` (DESIGN.md), or the part of the format that is damaged:
    `format`, `meta`, `counters`, `head`, `index`, `payload`, `schema`, `consumer`, `staging`,
    `ids`, `pins`, `store`.
    `where` names the row, the entry or the payload; `what` is one sentence.
    """

    invariant: str
    stream: str | None
    where: str
    what: str

    def __str__(self) -> str:
        place = self.where if self.stream is None else f"stream {self.stream!r}, {self.where}"
        return f"{self.invariant}: {place}: {self.what}"


@dataclass(slots=True)
class Report:
    """Gathers violations while the check goes on past them."""

    violations: list[Violation] = field(default_factory=list)

    def add(self, invariant: str, where: str, what: str, *, stream: str | None = None) -> None:
        self.violations.append(
            Violation(invariant=invariant, stream=stream, where=where, what=what)
        )
