"""What part of the year a demo replays, and what part of that its model learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cdc.demo.flights import JANUARY_AND_FEBRUARY, YEAR, Schedule

_MONTH = np.timedelta64(31, "D")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What part of the year is replayed: `months`, of these the first `days` if given.

    The model is trained on the first month, or on the first half of the days.
    """

    months: range = JANUARY_AND_FEBRUARY
    days: int | None = None

    @classmethod
    def year(cls) -> Plan:
        return cls(months=YEAR)

    def stop(self, schedule: Schedule) -> int:
        """The event of the schedule to stop before."""
        if self.days is None:
            return len(schedule)
        until = schedule.at[0] + np.timedelta64(self.days, "D")
        return int(np.searchsorted(schedule.at, until))

    def training_stop(self, schedule: Schedule) -> np.datetime64:
        """The departure at which training ends, in UTC."""
        span = _MONTH if self.days is None else np.timedelta64(self.days * 12, "h")
        stop: np.datetime64 = schedule.at[0] + span
        return stop
