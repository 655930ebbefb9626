"""How the records of an event stream are read and shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from eventlog.changes.arrow import Conversion, times_array
from eventlog.changes.codec import codec
from eventlog.changes.cut import utc
from eventlog.changes.decoding import json_line, json_value
from eventlog.changes.event import Event
from eventlog.engine import Engine
from eventlog.engine.scan import Damaged
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

    def items(self, start: int, stop: int) -> Iterator[StoredEvent]:
        """Walk the events. Raises DamagedLog or CodecNotInstalled."""
        walk = self._engine.scan(
            self._stream, start, stop, lambda entry: True, damaged=self._damaged
        )
        for stretch in walk:
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
                yield StoredEvent(offset, times[slot], key, value)

    def _tell(self, offset: int, error: DamagedLog) -> None:
        named = DamagedLog(
            f"the record at offset {offset} of stream {self._stream!r} is damaged: {error}",
            hint="records around it can still be read: damaged='skip', or --skip-damaged",
        )
        if self._damaged is None:
            raise named from error
        self._damaged(offset, offset + 1, named)

    def version(self, item: StoredEvent) -> None:
        """None: events have no schema."""

    def record(self, item: StoredEvent) -> Event:
        return Event(item.offset, utc(item.time_us), item.key, item.value)

    def json(self, item: StoredEvent) -> dict[str, Any]:
        return {
            "offset": item.offset,
            "time": utc(item.time_us).isoformat(),
            "key": item.key,
            "value": json_value(item.value),
        }

    def arrow(
        self, items: list[StoredEvent], stop: int, conversion: Conversion, *, own: bool
    ) -> pa.Table:
        return event_table(items)


def event_table(events: list[StoredEvent]) -> pa.Table:
    """Events as Arrow: `_offset`, `_time`, `key`, and `value` as JSON text (null: a tombstone)."""
    import pyarrow as pa

    values = [None if e.value is None else json_line(json_value(e.value)) for e in events]
    return pa.table(
        {
            "_offset": pa.array([e.offset for e in events], pa.int64()),
            "_time": times_array([e.time_us for e in events]),
            "key": pa.array([e.key for e in events], pa.string()),
            "value": pa.array(values, pa.string()),
        }
    )
