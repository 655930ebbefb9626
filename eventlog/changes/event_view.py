"""How the records of an event stream are read and shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import Conversion
from eventlog.changes.cut import utc
from eventlog.changes.decoding import json_value
from eventlog.changes.event import Event
from eventlog.changes.event_run import EventRun, StoredEvent
from eventlog.engine import Engine
from eventlog.engine.scan import Damaged
from eventlog.errors import DamagedLog

if TYPE_CHECKING:
    import pyarrow as pa


class EventView:
    """All events of a stream. `damaged` is told of what is passed over.

    Which records a run has is known without decoding any: one that is damaged is noticed where
    values are asked for.
    """

    def __init__(self, engine: Engine, stream: str, *, damaged: Damaged | None = None) -> None:
        self._engine = engine
        self._stream = stream
        self._damaged = damaged

    def runs(self, start: int, stop: int) -> Iterator[EventRun]:
        """Walk the events. Raises DamagedLog or CodecNotInstalled, behind the events before."""
        walk = self._engine.scan(
            self._stream, start, stop, lambda entry: True, damaged=self._damaged
        )
        return filter(len, map(EventRun.of, walk))

    def items(self, start: int, stop: int) -> Iterator[StoredEvent]:
        """Walk the events one by one. Raises DamagedLog, behind the events before."""
        return chain.from_iterable(map(self._decoded, self.runs(start, stop)))

    def _decoded(self, run: EventRun) -> Iterator[StoredEvent]:
        """The events of a run, decoded all at once where none is damaged."""
        pairs = run.codec.pairs(run.payload, run.slots)
        if pairs is None:
            return self._one_by_one(run)
        heads = zip(run.offsets.tolist(), run.times.tolist(), pairs, strict=True)
        return (StoredEvent(offset, time_us, *pair) for offset, time_us, pair in heads)

    def _one_by_one(self, run: EventRun) -> Iterator[StoredEvent]:
        offsets, times = run.offsets.tolist(), run.times.tolist()
        records = run.payload.records(run.slots.tolist())
        for offset, time_us, record in zip(offsets, times, records, strict=True):
            try:
                key, value = run.codec.decode(record)
            except DamagedLog as error:
                self._tell(offset, error)
                continue
            yield StoredEvent(offset, time_us, key, value)

    def _tell(self, offset: int, error: DamagedLog) -> None:
        named = damaged_record(self._stream, offset, error)
        if self._damaged is None:
            raise named from error
        self._damaged(offset, offset + 1, named)

    def records(self, runs: Iterable[EventRun]) -> Iterator[Event]:
        """The events as users see them."""
        for run in runs:
            last_us, time = None, utc(0)
            for offset, time_us, key, value in self._decoded(run):
                if time_us != last_us:  # Those of one append share it.
                    last_us, time = time_us, utc(time_us)
                yield Event(offset, time, key, value)

    def json(self, runs: Iterable[EventRun]) -> Iterator[dict[str, Any]]:
        """The events as lines of `read --json` have them."""
        for run in runs:
            for offset, time_us, key, value in self._decoded(run):
                yield {
                    "offset": offset,
                    "time": utc(time_us).isoformat(),
                    "key": key,
                    "value": json_value(value),
                }

    def arrow(
        self,
        runs: Iterable[EventRun],
        stop: int,
        conversion: Conversion,
        *,
        own: bool,
    ) -> pa.Table:
        """The events as an Arrow table."""
        from eventlog.changes.event_arrow import event_table, run_table, stacked_events

        tables = []
        for run in runs:
            found = run_table(run)  # Else one of them is damaged: decoding says which.
            tables.append(event_table(self._decoded(run)) if found is None else found)
        return stacked_events(tables)


def damaged_record(stream: str, offset: int, error: DamagedLog) -> DamagedLog:
    """The same error, with the place."""
    return DamagedLog(
        f"the record at offset {offset} of stream {stream!r} is damaged: {error}",
        hint="records around it can still be read: damaged='skip', or --skip-damaged",
    )
