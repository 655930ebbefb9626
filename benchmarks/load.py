"""The seeded events that every contender of a program stores."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from eventlog.codecs.events import CODEC

EVENT_BYTES = 100
SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """So many events a call, so many calls a sample, from so many threads at once."""

    call: int
    calls: int
    threads: int = 1

    @property
    def name(self) -> str:
        single = "single" if self.threads == 1 else f"single, {self.threads} threads"
        return single if self.call == 1 else f"{self.call:,} a call"

    @property
    def events(self) -> int:
        """Events of one sample."""
        return self.call * self.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The events of one case, by call: as values and as records of EVENT_BYTES."""

    case: Case
    values: list[list[dict[str, Any]]]
    records: list[list[bytes]]


def load_of(case: Case) -> Load:
    """The same events for the same case, whenever it is asked."""
    chance = random.Random(SEED)
    encoder = CODEC.encoder()
    values = [[_event(chance) for _ in range(case.call)] for _ in range(case.calls)]
    records = [encoder.many(None, call) for call in values]
    assert {len(record) for call in records for record in call} == {EVENT_BYTES}
    return Load(case=case, values=values, records=records)


def _event(chance: random.Random) -> dict[str, Any]:
    """A mapping that takes EVENT_BYTES as a record."""
    return {
        "user": chance.randrange(70_000, 4_000_000_000),
        "page": f"/{chance.getrandbits(128):032x}",
        "ms": chance.random() * 1000,
        "agent": f"{chance.getrandbits(112):028x}",
    }
