"""Fetching values that updates did not send, from the records that have them, a window at a time.

::

    unsent    row 10: a, b │ row 11: a │ row 15: a, b, c │ …     by row, a window ends between two
              └──────── window ────────┘
    sources   3 5 5 …                                            anywhere below, walked in order

How large values are is known once they are found. A window that turns out to be too large gives up
its last rows, again and again, so that what is held is bounded whatever the first guess was.
"""

from __future__ import annotations

import numpy as np

from eventlog.changes.gathering import gathered
from eventlog.changes.split import IS_UNCHANGED, Bytes, Places
from eventlog.snapshots.state.state_rows import StateRows
from eventlog.snapshots.state.unsent import Unsent

ENTRY_BYTES = 64
"""What an entry of a window takes beside its value."""


class Window:
    """The entries `[start, stop)` of the unsent ones, those of whole rows, and what was found.

    `columns` are those that any of them is of; `sources` ascend.
    """

    def __init__(self, unsent: Unsent, start: int, *, entries: int) -> None:
        """At most so many entries, but those of one row at least. REQUIRES: `unsent` is ordered."""
        stop = _row_end(unsent.offsets, start, min(start + entries, len(unsent)))
        self.start = start
        self.size = 0
        self._entries = unsent.take(np.arange(start, stop))
        self.columns: list[int] = np.unique(self._entries.columns).tolist()
        self._starts = np.zeros(stop - start, np.int64)
        self._lengths = np.full(stop - start, IS_UNCHANGED, np.int64)
        self._buffers: list[Bytes] = []
        self._sort()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def stop(self) -> int:
        """Behind its last entry."""
        return self.start + len(self._entries)

    def put(self, rows: StateRows) -> None:
        """Take over what is wanted of these rows, which have `columns`."""
        low, high = np.searchsorted(self._ordered, [rows.offsets[0], rows.offsets[-1] + 1]).tolist()
        entries = self._by_source[low:high]
        at = np.searchsorted(self.columns, self._entries.columns[entries])
        place = np.searchsorted(rows.offsets, self._entries.sources[entries])
        hit = rows.offsets[np.minimum(place, len(rows) - 1)] == self._entries.sources[entries]
        entries, at, place = entries[hit], at[hit], place[hit]
        self._lengths[entries] = rows.lengths[at, place]
        data, found = gathered(rows.data, rows.starts[at, place], rows.lengths[at, place])
        self._starts[entries] = found + self.size
        self._buffers.append(data)
        self.size += len(data)

    def shrink(self, bytes_max: int) -> None:
        """Give up the last rows while more bytes were found, and it has more rows than one."""
        while self.size > bytes_max:
            offsets = self._entries.offsets
            stop = _row_end(offsets, 0, len(offsets) // 2)
            if stop == len(offsets):
                return
            self._entries = self._entries.take(np.arange(stop))
            self._lengths = self._lengths[:stop].copy()
            data, self._starts = gathered(self._joined(), self._starts[:stop], self._lengths)
            self._buffers, self.size = [data], len(data)
            self._sort()

    def values(self, start: int, stop: int) -> tuple[Bytes, Places, Places]:
        """The values of the entries `[start, stop)` of all: a buffer, starts and lengths."""
        which = slice(start - self.start, stop - self.start)
        lengths = self._lengths[which]
        data, starts = gathered(self._joined(), self._starts[which], lengths)
        return data, starts, lengths

    def _joined(self) -> Bytes:
        if len(self._buffers) != 1:
            self._buffers = [np.concatenate([np.zeros(0, np.uint8), *self._buffers])]
        return self._buffers[0]

    def _sort(self) -> None:
        sources = self._entries.sources
        self.sources = np.unique(sources)
        self._by_source = np.argsort(sources, kind="stable")
        self._ordered = sources[self._by_source]


def _row_end(offsets: Places, start: int, stop: int) -> int:
    """Where a row's entries end: at or below `stop`, but behind those of the first row."""
    if stop < len(offsets):
        stop = int(np.searchsorted(offsets, offsets[stop]))
    if stop > start:
        return stop
    return int(np.searchsorted(offsets, offsets[start], side="right"))
