"""The small rows of a log: streams, consumers, owners of staging, sources, counters.

Each is a sealed map. Rows are counted (streams by the counters, the others by their stream's or
owner's row), so that one that vanished is damage, and not taken for one that never was.

Keys in `meta`: `format`, `log`, `counters`, `stream/NAME`, `source/NAME`, `owner/` + id (u64), and
`pin/ID` (`eventlog.engine.pins`). Keys in `consumer`: stream id (u32) + name. Keys in `schema`:
stream id (u32) + schema id (u32). Numbers in keys are big-endian.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eventlog.engine.sealed import REPAIR_HINT, seal, unseal
from eventlog.engine.store import Store, Txn
from eventlog.errors import DamagedLog

FORMAT_KEY = b"format"
LOG_KEY = b"log"
COUNTERS_KEY = b"counters"
STREAM_KEYS = b"stream/"
SOURCE_KEYS = b"source/"
OWNER_KEYS = b"owner/"

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
u32, u64 = _U32.pack, _U64.pack
_PAIR = struct.Struct(">II")

StreamKind = Literal["events", "captured"]
OwnerKind = Literal["append", "capture"]
Compression = Literal["none", "zstd"]

TIME_MIN = -(2**63)
"""The running greatest time of a stream without records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRow:
    """A stream's identity and its head, written again by every append.

    `start` is the first retained offset, `end` the one that the next record gets; the running times
    are the greatest up to `end`, and below `start`. `tail` are the runs of small entries at the end
    that wait to be merged (see `eventlog.engine.merge`). `consumers`, `schemas` and `sources` count
    this stream's rows of these kinds, `ids` is the next sequence number of an id. `writer_epoch`
    rises whenever a single writer (a capture) takes over; a commit that carries an older one is
    refused.
    """

    id: int
    name: str
    kind: StreamKind
    created_us: int
    start: int = 0
    end: int = 0
    time_running_max: int = TIME_MIN
    time_dropped_max: int = TIME_MIN
    compression: Compression = "none"
    tail: Sequence[Sequence[int]] = ()
    consumers: int = 0
    schemas: int = 0
    sources: int = 0
    ids: int = 0
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
    """Whoever staged batches: an `append` in progress, or the `capture` of a stream.

    `staged` counts the entries under its id.
    """

    id: int
    kind: OwnerKind
    stream: int
    staged: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)


def read_map(store: Store, txn: Txn, key: bytes) -> dict[str, Any] | None:
    stored = txn.get(key, db=store.meta)
    return None if stored is None else unseal(key, stored)


def write_map(store: Store, txn: Txn, key: bytes, value: Mapping[str, Any]) -> None:
    txn.put(key, seal(key, value), db=store.meta)


def counters(store: Store, txn: Txn) -> dict[str, Any]:
    """The next numbers. Raises DamagedLog where the row is gone: every log has one."""
    found = read_map(store, txn, COUNTERS_KEY)
    if found is None:
        raise vanished("the row of the counters is gone")
    return found


def take_number(store: Store, txn: Txn, counter: str, *, count: int = 1) -> int:
    """Reserve `count` numbers that were never given before; returns the first."""
    found = counters(store, txn)
    first = int(found.get(counter, 1))
    found[counter] = first + count
    write_map(store, txn, COUNTERS_KEY, found)
    return first


def vanished(what: str) -> DamagedLog:
    """The error for rows that are fewer than they were counted."""
    return DamagedLog(what, hint=REPAIR_HINT)


# Streams


def stream_row(store: Store, txn: Txn, name: str) -> StreamRow | None:
    """The row of a stream; None where there never was one of that name."""
    key = STREAM_KEYS + name.encode()
    stored = txn.get(key, db=store.meta)
    if stored is not None:
        # Every append and every read asks for it: the same bytes are not decoded twice.
        before, row = store.decoded.get(key, (b"", None))
        if stored != before:
            row = load_row(StreamRow, unseal(key, stored))
            store.decoded[key] = stored, row
        return row  # type: ignore[no-any-return]
    return next((row for row in stream_rows(store, txn) if row.name == name), None)


def write_stream(store: Store, txn: Txn, row: StreamRow) -> None:
    write_map(store, txn, STREAM_KEYS + row.name.encode(), stored_map(row))


def write_head(
    store: Store,
    txn: Txn,
    row: StreamRow,
    *,
    end: int,
    time_running_max: int,
    tail: Sequence[Sequence[int]],
    ids: int,
) -> None:
    """Write a stream's row with another head: what every append does."""
    key = STREAM_KEYS + row.name.encode()
    stored = stored_map(row)
    stored.update(end=end, time_running_max=time_running_max, tail=tail, ids=ids)
    sealed = seal(key, stored)
    txn.put(key, sealed, db=store.meta)
    store.decoded[key] = sealed, load_row(StreamRow, stored)


def stream_rows(store: Store, txn: Txn) -> list[StreamRow]:
    """All streams, by name."""
    found = [load_row(StreamRow, stored) for _, stored in meta_maps(store, txn, STREAM_KEYS)]
    made = int(counters(store, txn).get("stream", 1)) - 1
    if len(found) != made:
        raise vanished(f"{made} streams were made, and the rows of {len(found)} are there")
    return found


def stream_names(store: Store, txn: Txn) -> list[str]:
    """The names in the keys of streams' rows, whatever the rows hold."""
    found = []
    cursor = txn.cursor(db=store.meta)
    positioned = cursor.set_range(STREAM_KEYS)
    while positioned and cursor.key().startswith(STREAM_KEYS):
        name = cursor.key().removeprefix(STREAM_KEYS)
        found.append(name.decode("utf-8", "backslashreplace"))
        positioned = cursor.next()
    return found


# Sources: the state of whoever feeds a captured stream. The engine keeps it, opaque.


def source_state(store: Store, txn: Txn, stream: StreamRow) -> dict[str, Any] | None:
    found = read_map(store, txn, SOURCE_KEYS + stream.name.encode())
    if found is None and stream.sources:
        raise vanished(f"the state of the source of stream {stream.name!r} is gone")
    return found


def write_source(store: Store, txn: Txn, stream: str, state: Mapping[str, Any]) -> None:
    write_map(store, txn, SOURCE_KEYS + stream.encode(), state)


# Owners of staging


def write_owner(store: Store, txn: Txn, row: OwnerRow) -> None:
    write_map(store, txn, OWNER_KEYS + _U64.pack(row.id), stored_map(row))


def owner_row(store: Store, txn: Txn, owner_id: int) -> OwnerRow | None:
    stored = read_map(store, txn, OWNER_KEYS + _U64.pack(owner_id))
    return None if stored is None else load_row(OwnerRow, stored)


def delete_owner(store: Store, txn: Txn, owner_id: int) -> None:
    txn.delete(OWNER_KEYS + _U64.pack(owner_id), db=store.meta)


def owner_rows(store: Store, txn: Txn) -> list[OwnerRow]:
    return [load_row(OwnerRow, stored) for _, stored in meta_maps(store, txn, OWNER_KEYS)]


# Consumers


def consumer_key(stream_id: int, name: str) -> bytes:
    return _U32.pack(stream_id) + name.encode()


def consumer_row(store: Store, txn: Txn, stream: StreamRow, name: str) -> ConsumerRow | None:
    """The row of a consumer; None where there never was one of that name."""
    key = consumer_key(stream.id, name)
    stored = txn.get(key, db=store.consumer)
    if stored is not None:
        return load_row(ConsumerRow, unseal(key, stored))  # type: ignore[no-any-return]
    return dict(consumer_rows(store, txn, stream)).get(name)


def write_consumer(store: Store, txn: Txn, stream_id: int, name: str, row: ConsumerRow) -> None:
    key = consumer_key(stream_id, name)
    txn.put(key, seal(key, stored_map(row)), db=store.consumer)


def consumer_rows(store: Store, txn: Txn, stream: StreamRow) -> list[tuple[str, ConsumerRow]]:
    """All consumers of a stream by name."""
    found = []
    cursor = txn.cursor(db=store.consumer)
    positioned = cursor.set_range(_U32.pack(stream.id))
    while positioned:
        key, value = cursor.item()
        if key[:4] != _U32.pack(stream.id):
            break
        row = load_row(ConsumerRow, unseal(key, value))  # It answers for the name in the key, too.
        found.append((key[4:].decode(), row))
        positioned = cursor.next()
    if len(found) != stream.consumers:
        what = f"stream {stream.name!r} has {stream.consumers} consumers"
        raise vanished(f"{what}, and the rows of {len(found)} are there")
    return found


# Schema versions


def write_schema(
    store: Store, txn: Txn, stream_id: int, schema_id: int, stored: Mapping[str, Any]
) -> None:
    key = _PAIR.pack(stream_id, schema_id)
    txn.put(key, seal(key, stored), db=store.schema)


def schema_maps(
    store: Store, txn: Txn, stream: StreamRow, *, first: int = 0
) -> list[tuple[int, dict[str, Any]]]:
    """The schema versions of a stream from number `first` on, in order."""
    found = []
    cursor = txn.cursor(db=store.schema)
    positioned = cursor.set_range(_PAIR.pack(stream.id, first))
    while positioned:
        key, value = cursor.item()
        owner, schema_id = _PAIR.unpack(key)
        if owner != stream.id:
            break
        found.append((schema_id, unseal(key, value)))
        positioned = cursor.next()
    if [schema_id for schema_id, _ in found] != list(range(first, stream.schemas)):
        what = f"stream {stream.name!r} has {stream.schemas} schema versions"
        raise vanished(f"{what}, and from {first} on {len(found)} rows are there")
    return found


def meta_maps(store: Store, txn: Txn, prefix: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The rows of `meta` whose keys begin so, in order."""
    cursor = txn.cursor(db=store.meta)
    positioned = cursor.set_range(prefix)
    while positioned:
        key, value = cursor.item()
        if not key.startswith(prefix):
            break
        yield key, unseal(key, value)
        positioned = cursor.next()


def stored_map(row: Any) -> dict[str, Any]:
    """The map that `load_row` reads back, unknown names included."""
    stored = dict(row.more)
    for name in _names(type(row)):
        stored[name] = getattr(row, name)
    return stored


def load_row(cls: Any, stored: Mapping[str, Any]) -> Any:
    """A row from its map; names that this version does not know go to `more`, and are kept."""
    names = _names(cls)
    if len(stored) == len(names) and stored.keys() == names.keys():
        return cls(**stored)
    known = {name: value for name, value in stored.items() if name in names}
    more = {name: value for name, value in stored.items() if name not in names}
    return cls(**known, more=more)


def _names(cls: Any) -> dict[str, None]:
    # A mapping for its order and for its keys, which compare as a set.
    found = _NAMES.get(cls)
    if found is None:
        fields = (field.name for field in dataclasses.fields(cls))
        found = _NAMES[cls] = {name: None for name in fields if name != "more"}
    return found


_NAMES: dict[Any, dict[str, None]] = {}
