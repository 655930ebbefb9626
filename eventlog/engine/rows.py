"""The small rows of a log: streams, consumers, owners of staging, sources, counters.

Each is a sealed map. Keys in `meta`: `format`, `log`, `counters`, `stream/NAME`, `source/NAME`,
`owner/` + id (u64). Keys in `consumer`: stream id (u32) + name. Keys in `schema`: stream id (u32)
+ schema id (u32). Numbers in keys are big-endian.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eventlog.engine.sealed import seal, unseal
from eventlog.engine.store import Store, Txn

FORMAT_KEY = b"format"
LOG_KEY = b"log"
COUNTERS_KEY = b"counters"
STREAM_KEYS = b"stream/"
SOURCE_KEYS = b"source/"
OWNER_KEYS = b"owner/"

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_PAIR = struct.Struct(">II")

StreamKind = Literal["events", "captured"]
OwnerKind = Literal["append", "capture"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRow:
    """A stream's identity. `start` is the first retained offset.

    `writer_epoch` rises whenever a single writer (a capture) takes over; a commit that carries an
    older one is refused.
    """

    id: int
    name: str
    kind: StreamKind
    created_us: int
    start: int = 0
    writer_epoch: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerRow:
    """A named consumer: everything below `offset` is done. A rewind starts a new `epoch`."""

    offset: int
    epoch: int
    filter: str
    updated_us: int
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerRow:
    """Whoever staged batches: an `append` in progress, or the `capture` of a stream."""

    id: int
    kind: OwnerKind
    stream: int
    more: Mapping[str, Any] = field(default_factory=dict)


def read_map(store: Store, txn: Txn, key: bytes) -> dict[str, Any] | None:
    stored = txn.get(key, db=store.meta)
    return None if stored is None else unseal(key, stored)


def write_map(store: Store, txn: Txn, key: bytes, value: Mapping[str, Any]) -> None:
    txn.put(key, seal(key, value), db=store.meta)


def take_number(store: Store, txn: Txn, counter: str, *, count: int = 1) -> int:
    """Reserve `count` numbers that were never given before; returns the first."""
    counters = read_map(store, txn, COUNTERS_KEY) or {}
    first = int(counters.get(counter, 1))
    write_map(store, txn, COUNTERS_KEY, {**counters, counter: first + count})
    return first


# Streams


def stream_row(store: Store, txn: Txn, name: str) -> StreamRow | None:
    stored = read_map(store, txn, STREAM_KEYS + name.encode())
    return None if stored is None else load_row(StreamRow, stored)


def write_stream(store: Store, txn: Txn, row: StreamRow) -> None:
    write_map(store, txn, STREAM_KEYS + row.name.encode(), _stored(row))


def stream_rows(store: Store, txn: Txn) -> list[StreamRow]:
    """All streams, by name."""
    return [load_row(StreamRow, stored) for _, stored in _meta_prefix(store, txn, STREAM_KEYS)]


# Sources: the state of whoever feeds a captured stream. The engine keeps it, opaque.


def source_state(store: Store, txn: Txn, stream: str) -> dict[str, Any] | None:
    return read_map(store, txn, SOURCE_KEYS + stream.encode())


def write_source(store: Store, txn: Txn, stream: str, state: Mapping[str, Any]) -> None:
    write_map(store, txn, SOURCE_KEYS + stream.encode(), state)


# Owners of staging


def write_owner(store: Store, txn: Txn, row: OwnerRow) -> None:
    write_map(store, txn, OWNER_KEYS + _U64.pack(row.id), _stored(row))


def owner_row(store: Store, txn: Txn, owner_id: int) -> OwnerRow | None:
    stored = read_map(store, txn, OWNER_KEYS + _U64.pack(owner_id))
    return None if stored is None else load_row(OwnerRow, stored)


def delete_owner(store: Store, txn: Txn, owner_id: int) -> None:
    txn.delete(OWNER_KEYS + _U64.pack(owner_id), db=store.meta)


def owner_rows(store: Store, txn: Txn) -> list[OwnerRow]:
    return [load_row(OwnerRow, stored) for _, stored in _meta_prefix(store, txn, OWNER_KEYS)]


# Consumers


def consumer_key(stream_id: int, name: str) -> bytes:
    return _U32.pack(stream_id) + name.encode()


def consumer_row(store: Store, txn: Txn, stream_id: int, name: str) -> ConsumerRow | None:
    key = consumer_key(stream_id, name)
    stored = txn.get(key, db=store.consumer)
    return None if stored is None else load_row(ConsumerRow, unseal(key, stored))


def write_consumer(store: Store, txn: Txn, stream_id: int, name: str, row: ConsumerRow) -> None:
    key = consumer_key(stream_id, name)
    txn.put(key, seal(key, _stored(row)), db=store.consumer)


def consumer_rows(store: Store, txn: Txn) -> list[tuple[int, str, ConsumerRow]]:
    """All consumers as (stream id, name, row)."""
    found = []
    for key, value in txn.cursor(db=store.consumer):
        (stream_id,) = _U32.unpack_from(key)
        found.append((stream_id, key[4:].decode(), load_row(ConsumerRow, unseal(key, value))))
    return found


# Schema versions


def write_schema(
    store: Store, txn: Txn, stream_id: int, schema_id: int, stored: Mapping[str, Any]
) -> None:
    key = _PAIR.pack(stream_id, schema_id)
    txn.put(key, seal(key, stored), db=store.schema)


def schema_maps(
    store: Store, txn: Txn, stream_id: int, *, first: int = 0
) -> list[tuple[int, dict[str, Any]]]:
    """The schema versions of a stream from number `first` on, in order."""
    found = []
    cursor = txn.cursor(db=store.schema)
    positioned = cursor.set_range(_PAIR.pack(stream_id, first))
    while positioned:
        key, value = cursor.item()
        owner, schema_id = _PAIR.unpack(key)
        if owner != stream_id:
            break
        found.append((schema_id, unseal(key, value)))
        positioned = cursor.next()
    return found


def _meta_prefix(store: Store, txn: Txn, prefix: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    cursor = txn.cursor(db=store.meta)
    positioned = cursor.set_range(prefix)
    while positioned:
        key, value = cursor.item()
        if not key.startswith(prefix):
            break
        yield key, unseal(key, value)
        positioned = cursor.next()


def _stored(row: Any) -> dict[str, Any]:
    fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    return {**fields.pop("more"), **fields}


def load_row(cls: Any, stored: Mapping[str, Any]) -> Any:
    names = {f.name for f in dataclasses.fields(cls)} - {"more"}
    known = {name: value for name, value in stored.items() if name in names}
    more = {name: value for name, value in stored.items() if name not in names}
    return cls(**known, more=more)
