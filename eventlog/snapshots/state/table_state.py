"""The state of one table as of a cut: found once, its rows read as often as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.split import Places
from eventlog.engine import Engine
from eventlog.snapshots.state.checkpoint import Checkpoint
from eventlog.snapshots.state.facts import Facts
from eventlog.snapshots.state.live_pass import LivePass, Progress
from eventlog.snapshots.state.moves import Moves
from eventlog.snapshots.state.row_pass import RowPass, Source
from eventlog.snapshots.state.span import Budget
from eventlog.snapshots.state.state_rows import StateRows, batched
from eventlog.snapshots.state.steps import Read, Steps, relation_parts

if TYPE_CHECKING:
    import pyarrow as pa

KEY_BYTES = 256 << 20
"""Keys held at a time, at 24 bytes each and as many again for a run; sorting takes as much once
more. Beyond it (5.6M rows) the log is walked again for each share of the keys."""

KEEP_BYTES = 256 << 20
"""Payloads that a state keeps split, so that a table of that size is read from the log once."""

BATCH_BYTES = 64 << 20
"""Text in a batch: fewer rows where values are long."""

RUN_EVENTS = 1 << 18


class TableState:
    """The rows of one table at a cut, in the order of their offsets.

    Thread safety: may be shared among threads.
    """

    def __init__(self, found: LivePass, source: Source, version: Schema, *, stop: int) -> None:
        self.version = version
        self.facts: Facts = found.facts
        self.records = found.records
        self.base = source.base
        self._source = source
        self._segments = found.segments
        self._unsent = found.unsent
        self._live = found.live
        self._last_version = found.version
        self._stop = stop
        self._start = 0
        self.num_rows = len(self._live)

    def from_start(self, start: int) -> TableState:
        """The rows whose offsets are at or above `start`."""
        found = copy(self)
        found._live = self._live.from_start(start)
        found._start = max(self._start, start)
        found.num_rows = len(found._live)
        return found

    @property
    def is_plain(self) -> bool:
        """Whether all rows are here, under columns as the last record had them.

        What a later fold goes on from must not have been moved to a version that no record has.
        """
        last = self._last_version
        return (
            not self._start
            and last is not None
            and (last.columns, last.identity) == (self.version.columns, self.version.identity)
        )

    def rows(
        self, columns: Sequence[int], *, max_rows: int, behind_base: bool = False
    ) -> Iterator[StateRows]:
        """The rows' values of these columns of `version`, at most `max_rows` at a time.

        With `behind_base`, only of rows that the base does not have.
        """
        found = RowPass(
            self._source,
            self._segments,
            self._live,
            self._unsent,
            stop=self._stop,
            columns=columns,
            from_offset=self.base.offset if behind_base and self.base is not None else 0,
        )
        return batched(found, max_rows=max_rows, max_bytes=BATCH_BYTES)

    def typed_rows(
        self, columns: Mapping[int, pa.DataType]
    ) -> Iterator[tuple[Places, list[pa.Array]]] | None:
        """The base's rows with these columns as their Arrow types; None where it has not all."""
        base = self.base
        if base is None:
            return None
        comes_from = Moves(self._segments).of(base.offset - 1)
        for place, kind in columns.items():
            move = comes_from[place]
            if move != place or not isinstance(move, int):
                return None
            here, there = self.version.columns[place], base.schema.columns[place]
            if (here.type, here.typmod) != (there.type, there.typmod):
                return None
            if not base.has_typed(place, kind):
                return None
        return self._typed(base, list(columns))

    def _typed(
        self, base: Checkpoint, places: list[int]
    ) -> Iterator[tuple[Places, list[pa.Array]]]:
        for offsets, arrays in base.typed(places):
            mask = self._live.mask(offsets)
            if mask.all():
                yield offsets, arrays
            elif mask.any():
                yield offsets[mask], [array.filter(_mask_array(mask)) for array in arrays]


def table_state(
    engine: Engine,
    history: SchemaHistory,
    version: Schema,
    *,
    stop: int,
    base: Checkpoint | None = None,
    as_inserts: bool = False,
    progress: Progress | None = None,
) -> TableState:
    """Fold the relation of `version` up to `stop`, from the state of `base` on."""
    low, _ = engine.bounds(history.stream)
    read = relation_parts(engine, history, version.relation)
    return folded(
        read, version, low=low, stop=stop, base=base, as_inserts=as_inserts, progress=progress
    )


def folded(
    read: Read,
    version: Schema,
    *,
    low: int,
    stop: int,
    base: Checkpoint | None = None,
    as_inserts: bool = False,
    progress: Progress | None = None,
) -> TableState:
    """Fold what `read` brings of `[low, stop)`, from the state of `base` on, under `version`."""
    steps = Steps(read, keep_bytes=KEEP_BYTES)
    source = Source(base=base, steps=steps, start=low if base is None else base.offset)
    found = LivePass(
        source,
        low=low,
        stop=stop,
        as_inserts=as_inserts,
        budget=Budget(key_bytes=KEY_BYTES, run_events=RUN_EVENTS),
        progress=progress,
    )
    if base is not None:
        found.begin(base.schema, base.head.facts, base.offsets())
    found.run(version)
    return TableState(found, source, version, stop=stop)


def _mask_array(mask: npt.NDArray[np.bool_]) -> pa.Array:
    import pyarrow as pa

    return pa.array(mask)
