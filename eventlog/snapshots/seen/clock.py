"""Event time: the greatest commit time up to each offset, which only grows (D15).

Commit times are not monotonic in commit order. With the running greatest, rows inserted within a
span of time are a range of offsets, and no later record changes what was within it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventlog.engine import Engine

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """By transaction: its first offset, its commit time, and the greatest up to it.

    Times are µs since 1970 UTC.
    """

    first: I64
    time: I64
    running: I64

    def times(self, offsets: I64) -> I64:
        """The commit time of each record."""
        return self.time[self._transactions(offsets)]

    def event_times(self, offsets: I64) -> I64:
        """The event time of each record."""
        return self.running[self._transactions(offsets)]

    def later_than(self, times: I64) -> I64:
        """The first offset whose event time is greater; one beyond all where there is none."""
        beyond = np.append(self.first, np.iinfo(np.int64).max)
        return beyond[np.searchsorted(self.running, times, side="right")]

    def _transactions(self, offsets: I64) -> I64:
        return np.searchsorted(self.first, offsets, side="right") - 1


def clock_of(engine: Engine, stream: str, start: int, stop: int) -> Clock:
    """The clock of `[start, stop)`, out of the index alone. `start` is the first retained offset.

    24 bytes a transaction.
    """
    firsts, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for stretch in engine.scan(stream, start, stop, lambda entry: False):
        transactions = stretch.entry.transactions
        offsets = stretch.entry.slot_offsets()[transactions.first]
        at = max(int(np.searchsorted(offsets, stretch.start, side="right")) - 1, 0)
        firsts.append(np.maximum(offsets[at:], stretch.start))
        times.append(transactions.time[at:])
    time = np.concatenate(times)
    before = engine.stream(stream).time_dropped_max
    running = np.maximum(np.maximum.accumulate(time), before) if len(time) else time
    return Clock(first=np.concatenate(firsts), time=time, running=running)
