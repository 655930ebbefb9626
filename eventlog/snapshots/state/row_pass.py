"""The row pass: the live rows of a state, moved to the columns of its last schema version.

Values that an update did not send are fetched from the records that have them, by windows of about
`FETCH_BYTES`: rows that were updated last tend to lie near each other, their values anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eventlog.changes.split import (
    IS_ABSENT,
    IS_NULL,
    IS_UNCHANGED,
    Places,
)
from eventlog.snapshots.state.checkpoint import Checkpoint
from eventlog.snapshots.state.fetching import ENTRY_BYTES, Window
from eventlog.snapshots.state.moves import Move, Moves, Segments
from eventlog.snapshots.state.offset_set import OffsetSet
from eventlog.snapshots.state.state_rows import StateRows, contains_mask
from eventlog.snapshots.state.steps import Chunk, Holds, Steps
from eventlog.snapshots.state.unsent import Unsent

FETCH_BYTES = 64 << 20
"""What fetched values may take at a time, but for those of one row and of one more payload."""

_FIRST_FETCH = 4096
"""Values fetched before anything is known about their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where rows are read: a base, if any, and the steps of the log from `start` on."""

    base: Checkpoint | None
    steps: Steps
    start: int

    def chunks(
        self, stop: int, holds: Holds, moves: Moves, columns: Sequence[int]
    ) -> Iterator[Chunk]:
        """All chunks below `stop` with offsets that `holds` may tell of, for these columns."""
        if self.base is not None:
            comes_from = moves.of(self.base.offset - 1)
            wanted = {comes_from[column] for column in columns}
            places = sorted(move for move in wanted if isinstance(move, int))
            yield from self.base.chunks(holds, places)
        for part in self.steps.walk(self.start, stop, holds=holds):
            for step in part.steps:
                if isinstance(step, Chunk):
                    yield step


class RowPass:
    """Reads the rows of `live` in `[from_offset, stop)`, columns by place in the last version.

    Made for one walk, by one thread.
    """

    def __init__(
        self,
        source: Source,
        segments: Segments,
        live: OffsetSet,
        unsent: Unsent,
        *,
        stop: int,
        columns: Sequence[int],
        from_offset: int = 0,
    ) -> None:
        self._source = source
        self._moves = Moves(segments)
        self._live = live
        self._stop = stop
        self._columns = list(columns)
        wanted = unsent.take(np.isin(unsent.columns, self._columns) & (unsent.sources >= 0))
        self._unsent = wanted.ordered()
        self._from = from_offset
        self._fetch_entries = _FIRST_FETCH
        self._fetched: Window | None = None

    def __iter__(self) -> Iterator[StateRows]:
        """The rows in order."""
        live = self._live if not self._from else self._live.from_start(self._from)
        found = self._source.chunks(self._stop, live.holds, self._moves, self._columns)
        for chunk in found:
            places = np.flatnonzero(live.mask(chunk.offsets))
            if len(places):
                yield from self._filled(_moved(chunk, places, self._moves, self._columns))

    def _filled(self, rows: StateRows) -> Iterator[StateRows]:
        """Put fetched values in the place of those that were not sent."""
        entries = self._unsent.offsets
        at = 0
        first, last = np.searchsorted(entries, [rows.offsets[0], rows.offsets[-1] + 1]).tolist()
        while first < last:
            fetched = self._fetched
            if fetched is None or not fetched.start <= first < fetched.stop:
                fetched = self._fetched = self._fetch(first)
            stop, until = len(rows), last
            if fetched.stop < last:  # As many rows as are fetched; a window has them whole.
                until = fetched.stop
                stop = int(np.searchsorted(rows.offsets, entries[until]))
            yield self._with_fetched(rows.slice(at, stop), fetched, first, until)
            at, first = stop, until
        if at < len(rows):
            yield rows.slice(at, len(rows)) if at else rows

    def _with_fetched(self, rows: StateRows, fetched: Window, first: int, until: int) -> StateRows:
        data, starts, lengths = fetched.values(first, until)
        found = self._unsent.take(np.arange(first, until))
        places = np.searchsorted(rows.offsets, found.offsets)
        row_of = np.zeros(max(self._columns, default=0) + 1, np.int64)
        row_of[self._columns] = np.arange(len(self._columns))
        all_starts, all_lengths = rows.starts.copy(), rows.lengths.copy()
        all_starts[row_of[found.columns], places] = starts + len(rows.data)
        all_lengths[row_of[found.columns], places] = lengths
        return StateRows(
            offsets=rows.offsets,
            data=np.concatenate([rows.data, data]),
            starts=all_starts,
            lengths=all_lengths,
        )

    def _fetch(self, first: int) -> Window:
        """Fetch the values of the rows from that entry on, as many as FETCH_BYTES hold."""
        window = Window(self._unsent, first, entries=self._fetch_entries)

        def holds(start: int, stop: int) -> bool:
            low, high = np.searchsorted(window.sources, [start, stop]).tolist()
            return bool(low < high)

        columns = window.columns
        for chunk in self._source.chunks(self._stop, holds, self._moves, columns):
            places = np.flatnonzero(contains_mask(window.sources, chunk.offsets))
            if len(places):
                window.put(_moved(chunk, places, self._moves, columns))
                window.shrink(FETCH_BYTES)
        size = window.size + ENTRY_BYTES * len(window)
        self._fetch_entries = max(FETCH_BYTES * len(window) // size, 1)
        return window


def _moved(chunk: Chunk, places: Places, moves: Moves, columns: Sequence[int]) -> StateRows:
    """Rows of a chunk under the target's columns; what was not sent is IS_UNCHANGED."""
    comes_from = moves.of(int(chunk.offsets[places[0]]))
    as_it_is = tuple(comes_from) == tuple(columns) == tuple(range(len(chunk.new.starts)))
    if as_it_is and chunk.old is None and len(places) == len(chunk):
        return StateRows(
            offsets=chunk.offsets,
            data=chunk.data,
            starts=chunk.new.starts,
            lengths=chunk.new.lengths,
        )
    starts = np.zeros((len(columns), len(places)), np.int64)
    lengths = np.full((len(columns), len(places)), IS_NULL, np.int64)
    defaults: list[bytes] = []
    end = len(chunk.data)
    for row, column in enumerate(columns):
        move: Move = comes_from[column]
        if isinstance(move, bytes):
            starts[row], lengths[row] = end, len(move)
            defaults.append(move)
            end += len(move)
        elif move is not None:
            starts[row] = chunk.new.starts[move][places]
            lengths[row] = chunk.new.lengths[move][places]
            if chunk.old is not None and (lengths[row] == IS_UNCHANGED).any():
                old = chunk.old.lengths[move][places]
                sent = (lengths[row] == IS_UNCHANGED) & (old != IS_ABSENT)
                starts[row][sent] = chunk.old.starts[move][places][sent]
                lengths[row][sent] = old[sent]
    data = chunk.data
    if defaults:
        data = np.concatenate([data, np.frombuffer(b"".join(defaults), np.uint8)])
    return StateRows(offsets=chunk.offsets[places], data=data, starts=starts, lengths=lengths)
