"""The codec of application events (number 2).

::

    record = msgpack array [key, value]
    key    = str | nil
    value  = nil | bool | int (64 bits) | float | str | bin | array of values | map of str to values
             | timestamp (extension -1; an aware datetime, read back in UTC)

A nil value under a key is a tombstone; without a key it is not written.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from eventlog.changes.event_split import EventTexts
from eventlog.changes.split import Places, Texts
from eventlog.codecs.event_split import split_events
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

DEPTH_MAX = 100
"""Arrays and maps inside each other: bounded, so that every reader can walk them."""


class UnsuitableValue(UsageError, TypeError):
    """A value that an event cannot hold; the message names the path to it.

    `place` is that of the value, from 0, in an append of many.
    """

    place: int | None = None


class EventEncoder:
    """Makes records of keys and values. Belongs to one thread."""

    def __init__(self) -> None:
        self._pack = msgpack.Packer(datetime=True).pack

    def one(self, key: str | None, value: Any) -> bytes:
        """The record of one event. Raises UnsuitableValue, which is a TypeError."""
        if type(value) not in _LEAVES:
            _check(value, (), 0)
        try:
            record: bytes = self._pack((key, value))
        except (OverflowError, ValueError, TypeError) as error:
            raise _unpackable(value, error) from error
        return record

    def many(self, keys: Sequence[str | None] | None, values: Sequence[Any]) -> list[bytes]:
        """The records of many events, without a key each where `keys` is None.

        Raises UnsuitableValue with its place. Flat values are checked by their types all at once.
        """
        if _flat(values):
            try:
                return list(map(self._pack, zip(keys or repeat(None), values, strict=False)))
            except (OverflowError, ValueError, TypeError):
                pass  # One of them; the loop below says which.
        records = []
        for place, (key, value) in enumerate(zip(keys or repeat(None), values, strict=False)):
            try:
                records.append(self.one(key, value))
            except UnsuitableValue as error:
                error.place = place
                raise
        return records


class Encoders(threading.local):
    """An encoder for each thread that asks."""

    def mine(self) -> EventEncoder:
        found: EventEncoder | None = getattr(self, "_encoder", None)
        if found is None:
            found = self._encoder = EventEncoder()
        return found


def _flat(values: Sequence[Any]) -> bool:
    """Whether all values are leaves, or all mappings from str to leaves."""
    types = set(map(type, values))
    if types <= _LEAVES:
        return True
    if types != {dict} or not set(map(type, chain.from_iterable(values))) <= {str}:
        return False
    return set(map(type, chain.from_iterable(map(dict.values, values)))) <= _LEAVES


class EventCodec:
    """Reads and writes events."""

    id = 2
    name = "msgpack"

    def encoder(self) -> EventEncoder:
        """What makes records, for one thread."""
        return EventEncoder()

    def decode(self, record: bytes) -> tuple[str | None, Any]:
        """The key and the value of a record. Raises DamagedLog."""
        try:
            key, value = msgpack.unpackb(record, timestamp=3, ext_hook=_refused)
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
            raise DamagedLog(f"a record is no event: {error}") from error
        return key, value

    def pairs(self, payload: Payload, slots: Places) -> list[tuple[str | None, Any]] | None:
        """The keys and values of the records at these places, which ascend.

        None where not all of them can be read: `decode` says which one, and why.
        """
        starts, stops = _bounds(payload, slots)
        ends = np.cumsum(stops - starts)
        whole = len(ends) and ends[-1] == len(payload.data)
        data = payload.data if whole else b"".join(payload.records(slots.tolist()))
        found = unpacked(data, ends)
        try:
            return None if found is None else [(key, value) for key, value in found]
        except (ValueError, TypeError):
            return None

    def split(self, payload: Payload, slots: Places) -> EventTexts:
        """Find the keys and values of the records at these places, which ascend."""
        data = np.frombuffer(payload.data, np.uint8)
        return split_events(data, *_bounds(payload, slots))

    def json_array(self, values: Texts) -> pa.Array:
        """Stored values as JSON text, null for nil; each is as `json_text` of what it decodes to.

        Raises DamagedLog where one cannot be read.
        """
        from eventlog.codecs.event_json import json_array

        return json_array(values)


def unpacked(data: bytes, ends: Places) -> list[Any] | None:
    """The values that lie end to end in `data`; None where one is damaged, or ends elsewhere."""
    size = max(len(data), 1)
    unpacker = msgpack.Unpacker(max_buffer_size=size, timestamp=3, ext_hook=_refused)
    unpacker.feed(data)
    unpack, tell = unpacker.unpack, unpacker.tell
    try:
        found = [(unpack(), tell()) for _ in range(len(ends))]
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return None
    values = [value for value, _ in found]
    return values if np.array_equal([end for _, end in found], ends) else None


def _refused(number: int, data: bytes) -> Any:
    raise ValueError(f"there is an extension of kind {number}, and only timestamps are written")


def _bounds(payload: Payload, slots: Places) -> tuple[Places, Places]:
    """Where the records at these places begin and end."""
    ends = np.concatenate([np.zeros(1, np.int64), payload.ends])
    return ends[slots], ends[slots + 1]


def key_text(key: str | int | None) -> str | None:
    """The stored form of a key: text as it is, an int as its decimal form."""
    if key is None or type(key) is str:
        return key
    if isinstance(key, str):
        return str(key)
    if not isinstance(key, bool):
        try:
            return str(operator.index(key))
        except TypeError:
            pass
    raise UnsuitableValue(
        f"a key is text or an integer, not {type(key).__name__}",
        hint="write the key as text",
    )


_LEAVES = frozenset({str, int, float, bool, type(None), bytes})
_Path = tuple[str | int, ...]


def _check(value: Any, path: _Path, depth: int) -> None:
    """Refuse what msgpack would take, but give back as something else, or not at all."""
    if depth > DEPTH_MAX:
        raise UnsuitableValue(f"{_at(path[:3])} nests deeper than {DEPTH_MAX} levels", hint=_HINT)
    if isinstance(value, dict):
        for name, item in value.items():
            if type(name) is not str:
                raise UnsuitableValue(
                    f"{_at(path)} has the name {name!r}, which is no text",
                    hint="names of a mapping are str, as in JSON",
                )
            if type(item) not in _LEAVES:
                _check(item, (*path, name), depth + 1)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if type(item) not in _LEAVES:
                _check(item, (*path, place), depth + 1)
    elif type(value) is datetime:
        if value.utcoffset() is None:
            raise UnsuitableValue(
                f"{_at(path)} is a datetime without a time zone",
                hint="say what it means: value.replace(tzinfo=datetime.UTC), or astimezone()",
            )
        try:
            value.astimezone(UTC)
        except OverflowError as error:
            raise UnsuitableValue(
                f"{_at(path)} is outside the years 1 to 9999 in UTC", hint="write it as text"
            ) from error
    elif not isinstance(value, str | int | float):
        raise UnsuitableValue(
            f"{_at(path)} is a {type(value).__name__}, which an event cannot hold", hint=_HINT
        )


def _unpackable(value: Any, error: Exception) -> UnsuitableValue:
    found = _culprit(value, ())
    if found is None:
        return UnsuitableValue(f"the value cannot be stored: {error}", hint=_HINT)
    path, leaf = found
    if isinstance(leaf, int):
        return UnsuitableValue(
            f"{_at(path)} is an integer of more than 64 bits", hint="write it as text"
        )
    return UnsuitableValue(
        f"{_at(path)} is text with lone surrogates, which is not Unicode",
        hint="store such text as bytes",
    )


def _culprit(value: Any, path: _Path) -> tuple[_Path, Any] | None:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        inner = (_culprit(item, (*path, name)) for name, item in pairs)
        found = next((culprit for culprit in inner if culprit is not None), None)
        if found is not None or isinstance(value, list):
            return found
        return next((hit for name in value if (hit := _culprit(name, path)) is not None), None)
    try:
        msgpack.packb(value, datetime=True)
    except (OverflowError, ValueError, TypeError):
        return path, value
    return None


def _at(path: _Path) -> str:
    return "value" + "".join(f"[{step!r}]" for step in path)


_HINT = (
    "events hold None, bool, int, float, str, bytes, aware datetimes, and lists and dicts of "
    "these; convert other values first, numpy's with .item() or .tolist()"
)

CODEC = EventCodec()
