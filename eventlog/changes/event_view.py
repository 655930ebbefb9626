"""How the records of an event stream are read and shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from eventlog.changes.arrow import Conversion, times_array
from eventlog.changes.codec import codec
from eventlog.changes.cut import utc
from eventlog.changes.decoding import json_text, json_value
from eventlog.changes.event import Event
from eventlog.changes.runs import ItemRun
from eventlog.engine import Engine
from eventlog.engine.scan import Damaged, Stretch
from eventlog.errors import DamagedLog

if TYPE_CHECKING:
    import pyarrow as pa


class StoredEvent(NamedTuple):
    """An event with its time in µs since 1970 UTC."""

    offset: int
    time_us: int
    key: str | None
    value: Any


class EventView:
    """All events of a stream. `damaged` is told of what is passed over."""

    def __init__(self, engine: Engine, stream: str, *, damaged: Damaged | None = None) -> None:
        self._engine = engine
        self._stream = stream
        self._damaged = damaged

    def runs(self, start: int, stop: int) -> Iterator[ItemRun[StoredEvent]]:
        """Walk the events. Raises DamagedLog or CodecNotInstalled, behind the events before."""
        walk = self._engine.scan(
            self._stream, start, stop, lambda entry: True, damaged=self._damaged
        )
        for stretch in walk:
            events: list[StoredEvent] = []
            try:
                self._decode(stretch, events)
            except DamagedLog:
                if events:
                    yield ItemRun(items=events, version=_no_version)
                raise
            if events:
                yield ItemRun(items=events, version=_no_version)

    def items(self, start: int, stop: int) -> Iterator[StoredEvent]:
        """Walk the events one by one, as `runs`."""
        return chain.from_iterable(run.items for run in self.runs(start, stop))

    def _decode(self, stretch: Stretch, events: list[StoredEvent]) -> None:
        entry, payload = stretch.entry, stretch.payload
        assert payload is not None
        decode = codec(payload.codec).decode
        slots, offsets = stretch.readable_slots()
        times = entry.transactions.time[entry.slot_transactions()].tolist()
        for slot, offset, record in zip(slots, offsets, payload.records(slots), strict=True):
            try:
                key, value = decode(record)
            except DamagedLog as error:
                self._tell(offset, error)
                continue
            events.append(StoredEvent(offset, times[slot], key, value))

    def _tell(self, offset: int, error: DamagedLog) -> None:
        named = DamagedLog(
            f"the record at offset {offset} of stream {self._stream!r} is damaged: {error}",
            hint="records around it can still be read: damaged='skip', or --skip-damaged",
        )
        if self._damaged is None:
            raise named from error
        self._damaged(offset, offset + 1, named)

    def records(self, runs: Iterable[ItemRun[StoredEvent]]) -> Iterator[Event]:
        """The events as users see them."""
        for run in runs:
            for item in run.items:
                yield Event(item.offset, utc(item.time_us), item.key, item.value)

    def json(self, runs: Iterable[ItemRun[StoredEvent]]) -> Iterator[dict[str, Any]]:
        """The events as lines of `read --json` have them."""
        for run in runs:
            for item in run.items:
                yield {
                    "offset": item.offset,
                    "time": utc(item.time_us).isoformat(),
                    "key": item.key,
                    "value": json_value(item.value),
                }

    def arrow(
        self,
        runs: Iterable[ItemRun[StoredEvent]],
        stop: int,
        conversion: Conversion,
        *,
        own: bool,
    ) -> pa.Table:
        """The events as an Arrow table."""
        return event_table([item for run in runs for item in run.items])


def _no_version(item: StoredEvent) -> None:
    """None: events have no schema."""


def event_table(events: list[StoredEvent]) -> pa.Table:
    """Events as Arrow: `_offset`, `_time`, `key`, and `value` as JSON text (null: a tombstone)."""
    import pyarrow as pa

    values = [None if e.value is None else json_text(e.value) for e in events]
    return pa.table(
        {
            "_offset": pa.array([e.offset for e in events], pa.int64()),
            "_time": times_array([e.time_us for e in events]),
            "key": pa.array([e.key for e in events], pa.string()),
            "value": pa.array(values, pa.string()),
        }
    )
