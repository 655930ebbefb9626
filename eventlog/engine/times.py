"""From offsets to times and back, and to the bounds of source transactions.

Commit times are not monotonic in commit order, so the way from a time to an offset uses the running
greatest commit time, which is (D15).
"""

from __future__ import annotations

import numpy as np

from eventlog.engine.index import I64, IndexEntry
from eventlog.engine.rows import StreamRow
from eventlog.engine.scan import entry_at
from eventlog.engine.store import Store, Txn


def slot_of(entry: IndexEntry, offset: int) -> int:
    """The slot that bears `offset`."""
    if entry.states is None:
        return offset - entry.first_offset
    return int(np.searchsorted(entry.slot_offsets(), offset, side="right")) - 1


def record_time(entry: IndexEntry, offset: int) -> int:
    """The commit time of one record, in µs since 1970 UTC."""
    transactions = entry.transactions
    place = int(np.searchsorted(transactions.first, slot_of(entry, offset), side="right")) - 1
    return int(transactions.time[place])


def transaction_start(entry: IndexEntry, offset: int) -> int:
    """Where the source transaction begins that the record at `offset` is part of.

    Records under the transaction word 0 (copied rows, events) belong to none: `offset` itself.
    """
    transactions = entry.transactions
    place = int(np.searchsorted(transactions.first, slot_of(entry, offset), side="right")) - 1
    if not transactions.tx[place]:
        return offset
    if place == 0:
        return entry.first_offset - transactions.back
    return int(entry.slot_offsets()[int(transactions.first[place])])


def offset_at(store: Store, txn: Txn, stream: StreamRow, time_us: int) -> int:
    """Find the first offset whose running greatest time is >= `time_us`, by bisection.

    O(log n) look-ups in the index, then one pass over a single entry's transactions.
    """
    low, high = stream.start, stream.end
    # Invariant: every offset below low has a lesser running time, every entry from high on has
    # reached time_us.
    while low < high:
        entry = entry_at(store, txn, stream, (low + high) // 2)
        if entry.time_running_max < time_us:
            low = entry.stop
        elif _running_before(store, txn, stream, entry) >= time_us:
            high = max(entry.first_offset, low)
        else:
            return _within(entry, time_us)
    return low


def _running_before(store: Store, txn: Txn, stream: StreamRow, entry: IndexEntry) -> int:
    if entry.first_offset <= stream.start:
        return stream.time_dropped_max
    return entry_at(store, txn, stream, entry.first_offset - 1).time_running_max


def _within(entry: IndexEntry, time_us: int) -> int:
    reached: I64 = np.maximum.accumulate(entry.transactions.time)
    place = int(np.searchsorted(reached, time_us, side="left"))
    if place == len(reached):
        # What reached that time was dropped, and a repair did not know any more.
        return entry.first_offset
    return int(entry.slot_offsets()[int(entry.transactions.first[place])])
