"""Runs of events: records of a payload, to be cut into batches, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eventlog.changes.codec import codec
from eventlog.changes.schema import Schema
from eventlog.changes.split import Places
from eventlog.engine.payload import Payload
from eventlog.engine.scan import Stretch


class StoredEvent(NamedTuple):
    """An event with its time in µs since 1970 UTC."""

    offset: int
    time_us: int
    key: str | None
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRun:
    """Events of one payload, undecoded; `slots`, `offsets` and `times` (µs) have one for each."""

    codec: Any
    payload: Payload
    slots: Places
    offsets: Places
    times: Places

    @classmethod
    def of(cls, stretch: Stretch) -> EventRun:
        """All readable events of a stretch. REQUIRES: it has a payload."""
        entry, payload = stretch.entry, stretch.payload
        assert payload is not None
        slots, offsets = (np.array(found, np.int64) for found in stretch.readable_slots())
        transactions = np.searchsorted(entry.transactions.first, slots, side="right") - 1
        return cls(
            codec=codec(payload.codec),
            payload=payload,
            slots=slots,
            offsets=offsets,
            times=entry.transactions.time[transactions],
        )

    def __len__(self) -> int:
        return len(self.slots)

    def offset(self, place: int) -> int:
        """The offset of one event."""
        return int(self.offsets[place])

    def cut(self, start: int, stop: int) -> EventRun:
        """The events at the places `[start, stop)`."""
        return EventRun(
            codec=self.codec,
            payload=self.payload,
            slots=self.slots[start:stop],
            offsets=self.offsets[start:stop],
            times=self.times[start:stop],
        )

    def versions(self) -> Sequence[tuple[int, Schema]]:
        """None: events have no schema."""
        return ()
