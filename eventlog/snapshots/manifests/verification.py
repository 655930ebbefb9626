"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Whether all tables are what was saved. True in a condition where they are.

    `reasons` say what differs and why, or cannot be proven; where all is equal, what is worth
    knowing all the same. `rows` counts the rows that were proven. `unproven`: nothing differs, and
    something is missing to prove all of it. `hint` says what would help, where that is known.
    """

    equal: bool
    reasons: list[str] = field(default_factory=list)
    rows: int = 0
    unproven: bool = False
    hint: str = ""

    def __bool__(self) -> bool:
        return self.equal
