"""What a snapshot of the server sees: exactly which transactions, as their ids tell.

::

    pg_current_snapshot() = xmin:xmax:running,running,…      ids of 64 bits

    seen       ended before the snapshot: below xmax and not among the running
    not seen   at or above xmax, or still running then, whatever its place in the log

The order in which transactions become visible differs from the order of their commit records, so
a position in the write-ahead log cannot tell what a snapshot sees; ids can. The stream names
transactions by the lower 32 bits, compared on the circle as the server does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

_CIRCLE = 1 << 32
_HALF = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Visibility:
    """The transactions that a snapshot sees; ids of 32 bits."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `pg_current_snapshot()::text` gives."""
        xmin, xmax, running = text.split(":")
        ids = (int(word) % _CIRCLE for word in running.split(",") if word)
        return cls(xmin=int(xmin) % _CIRCLE, xmax=int(xmax) % _CIRCLE, running=frozenset(ids))

    def sees(self, xid: int) -> bool:
        """Whether the effects of that transaction are seen, if it committed."""
        return xid not in self.running and is_newer(self.xmax, xid)

    def sees_all_until(self, xid: int) -> bool:
        """Whether that transaction and all with older ids are seen."""
        return is_newer(self.xmin, xid)


def is_newer(one: int, other: int) -> bool:
    """Whether an id comes behind another on the circle."""
    return (one - 1 - other) % _CIRCLE < _HALF
