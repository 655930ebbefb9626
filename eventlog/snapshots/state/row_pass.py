"""The row pass: the live rows of a state, moved to the columns of its last schema version.

Values that an update did not send are fetched from the records that have them, by windows of about
`FETCH_BYTES`: rows that were updated last tend to lie near each other, their values anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from eventlog.changes.split import (
    IS_ABSENT,
    IS_NULL,
    IS_UNCHANGED,
    Bytes,
    Places,
)
from eventlog.snapshots.state.checkpoint import Checkpoint
from eventlog.snapshots.state.moves import Move, Moves, Segments
from eventlog.snapshots.state.offset_set import OffsetSet
from eventlog.snapshots.state.state_rows import StateRows, contains_mask, gathered
from eventlog.snapshots.state.steps import Chunk, Holds, Steps
from eventlog.snapshots.state.unsent import Unsent

FETCH_BYTES = 64 << 20
"""About what fetched values may take at a time."""

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


@dataclass(slots=True)
class _Fetched:
    """Values of the entries `[start, stop)` of the unsent ones."""

    start: int = 0
    stop: int = 0
    data: Bytes = field(default_factory=lambda: np.zeros(0, np.uint8))
    starts: Places = field(default_factory=lambda: np.zeros(0, np.int64))
    lengths: Places = field(default_factory=lambda: np.zeros(0, np.int64))


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
        self._fetch_rows = _FIRST_FETCH
        self._fetched = _Fetched()

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
            if first >= self._fetched.stop or first < self._fetched.start:
                self._fetch(first)
            stop, until = len(rows), last
            if self._fetched.stop < last:  # As many rows as are fetched whole.
                boundary = int(entries[self._fetched.stop])
                stop, until = (
                    int(np.searchsorted(where, boundary)) for where in (rows.offsets, entries)
                )
            yield self._with_fetched(rows.slice(at, stop), first, until)
            at, first = stop, until
        if at < len(rows):
            yield rows.slice(at, len(rows)) if at else rows

    def _with_fetched(self, rows: StateRows, first: int, until: int) -> StateRows:
        fetched = self._fetched
        which = slice(first - fetched.start, until - fetched.start)
        lengths = fetched.lengths[which]
        data, starts = gathered(fetched.data, fetched.starts[which], lengths)
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

    def _fetch(self, first: int) -> None:
        """Fetch the values of a window, at least those of its first row."""
        ends_at = np.searchsorted(self._unsent.offsets, self._unsent.offsets[first] + 1)
        stop = min(max(first + self._fetch_rows, int(ends_at)), len(self._unsent))
        window = self._unsent.take(np.arange(first, stop))
        lengths = np.full(len(window), IS_UNCHANGED, np.int64)
        starts = np.zeros(len(window), np.int64)
        buffers: list[Bytes] = []
        size = 0
        sources = np.unique(window.sources)
        by_source = np.argsort(window.sources, kind="stable")
        ordered = window.sources[by_source]
        columns = np.unique(window.columns).tolist()
        for chunk in self._source.chunks(self._stop, _holds_any(sources), self._moves, columns):
            places = np.flatnonzero(contains_mask(sources, chunk.offsets))
            if not len(places):
                continue
            rows = _moved(chunk, places, self._moves, columns)
            low, high = np.searchsorted(ordered, [rows.offsets[0], rows.offsets[-1] + 1]).tolist()
            entries = by_source[low:high]
            at = np.searchsorted(columns, window.columns[entries])
            place = np.searchsorted(rows.offsets, window.sources[entries])
            hit = rows.offsets[np.minimum(place, len(rows) - 1)] == window.sources[entries]
            entries, at, place = entries[hit], at[hit], place[hit]
            lengths[entries] = rows.lengths[at, place]
            data, found = gathered(rows.data, rows.starts[at, place], rows.lengths[at, place])
            starts[entries] = found + size
            buffers.append(data)
            size += len(data)
        data = np.concatenate(buffers) if buffers else np.zeros(0, np.uint8)
        self._fetched = _Fetched(first, first + len(window), data, starts, lengths)
        self._fetch_rows = max(FETCH_BYTES * len(window) // max(size, 1), 1)


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


def _holds_any(offsets: Places) -> Holds:
    def holds(start: int, stop: int) -> bool:
        low, high = np.searchsorted(offsets, [start, stop]).tolist()
        return bool(low < high)

    return holds
