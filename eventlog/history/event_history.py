"""The history of one key of an event stream: every event under it.

A tombstone ends a life; the next event under the key begins another one. What changed is told by
the names of mappings, else of the value as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import frame
from eventlog.changes.codec import codec
from eventlog.changes.cut import utc
from eventlog.changes.decoding import json_line, json_value
from eventlog.changes.event import Event
from eventlog.changes.schemas import SchemaHistory
from eventlog.codecs.events import key_text
from eventlog.engine import Engine
from eventlog.engine.scan import Stretch
from eventlog.engine.times import record_time
from eventlog.errors import UsageError
from eventlog.history.hashing import EVENTS, key_hash
from eventlog.history.key_index import UNWRITABLE, Progress, key_index

if TYPE_CHECKING:
    import pyarrow as pa

_GONE = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventVersion:
    """An event of a key, with the number of its life and what it changed (see `Version`).

    `changed` has names of a mapping, or `value` for other values; a name that is not there on one
    side has None.
    """

    change: Event
    life: int
    changed: Mapping[str, tuple[Any, Any]] | None


class EventHistory:
    """The events of a key in `[start, stop)`: read as it is iterated, which may be repeated.

    `notes` says, after that, whether the index could not be written.
    """

    def __init__(
        self,
        engine: Engine,
        history: SchemaHistory,
        key: Any,
        start: int,
        stop: int,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Raises UsageError for what is no key."""
        text = key_text(key)
        if text is None:
            raise UsageError("a history is that of a key", hint="name it with key=")
        self.stream = history.stream
        self.key = text
        self.start = start
        self.stop = stop
        self.notes: list[str] = []
        self._engine = engine
        self._history = history
        self._progress = progress

    def __iter__(self) -> Iterator[Event]:
        return (version.change for version in self.versions())

    def versions(self) -> Iterator[EventVersion]:
        """The events, each with its life and what it changed. Raises DamagedLog."""
        for event, life, changed in self._found():
            yield EventVersion(change=event, life=life, changed=changed)

    def as_json(self) -> Iterator[dict[str, Any]]:
        """The events as JSON values: the fields of `read --json`, `life` and `changed`."""
        for event, life, changed in self._found():
            pairs = None if changed is None else {n: list(pair) for n, pair in changed.items()}
            yield {
                "offset": event.offset,
                "time": event.time.isoformat(),
                "key": event.key,
                "value": json_value(event.value),
                "life": life,
                "changed": json_value(pairs),
            }

    def json_lines(self) -> Iterator[str]:
        """The events as lines of JSON, without line ends."""
        return map(json_line, self.as_json())

    def to_arrow(self) -> pa.Table:
        """The events as an Arrow table: `_offset`, `_time`, `_life`, `key`, `value` (JSON text)."""
        from eventlog.history.version_tables import event_versions

        return event_versions((event, life) for event, life, _ in self._found())

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow())

    def _found(self) -> Iterator[tuple[Event, int, dict[str, tuple[Any, Any]] | None]]:
        life, before = 0, _GONE
        for event in self._events():
            changed = None
            if before is _GONE:
                life += 1
            elif event.value is not None:
                changed = _changed(before, event.value)
            before = _GONE if event.value is None else event.value
            if event.offset >= self.start:
                yield event, life, changed

    def _events(self) -> Iterator[Event]:
        index = key_index(self._engine, self._history)
        found = index.view(self.stop, progress=self._progress)
        self.notes = [UNWRITABLE + index.unwritable] if index.unwritable else []
        low, _ = self._engine.bounds(self.stream)
        hashes = [key_hash(EVENTS, [self.key.encode()])]
        batch: Stretch | None = None
        for offset, _ in found.places(hashes, low, self.stop):
            if batch is None or offset >= batch.entry.stop:
                batch = None  # Its memory is what the next one takes.
                batch = self._batch(offset)
            event = None if batch is None else _event(batch, offset)
            if event is not None and event.key == self.key:
                yield event

    def _batch(self, offset: int) -> Stretch | None:
        """The batch that holds an offset."""
        walk = self._engine.scan(self.stream, offset, offset + 1, lambda entry: True)
        return next(walk, None)

    def __str__(self) -> str:
        return f"key {self.key!r}"

    def __repr__(self) -> str:
        return f"<EventHistory of {self}, stream {self.stream!r}>"


def _event(batch: Stretch, offset: int) -> Event | None:
    """The event at an offset of a batch; None where it cannot be read any more."""
    payload = batch.payload
    assert payload is not None
    for slot in batch.entry.readable_slots(offset, offset + 1)[0]:
        record = payload.data[int(payload.ends[slot - 1]) if slot else 0 : int(payload.ends[slot])]
        key, value = codec(payload.codec).decode(record)
        return Event(offset, utc(record_time(batch.entry, offset)), key, value)
    return None


def _changed(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return {} if _same(before, after) else {"value": (before, after)}
    return {
        name: (before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if not _same(before.get(name, _GONE), after.get(name, _GONE))
    }


def _same(one: Any, other: Any) -> bool:
    """Equal and of one type: 1, 1.0 and True are three values."""
    return type(one) is type(other) and one == other
