"""Read a stream: index entries and payloads of an offset range, in short read transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eventlog.engine import index, payload_store
from eventlog.engine.index import IndexEntry
from eventlog.engine.payload import Payload
from eventlog.engine.store import Store, Txn
from eventlog.errors import DamagedLog

READ_BYTES = 4 << 20
"""Bodies copied out in one read transaction: it is amortised, and pins pages only shortly."""

READ_ENTRIES = 4096
"""Entries walked in one read transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One index entry, and its payload where it was wanted."""

    entry: IndexEntry
    payload: Payload | None


def last_entry(store: Store, txn: Txn, stream_id: int) -> IndexEntry | None:
    """The entry with the greatest offsets of a stream."""
    return entry_before(store, txn, stream_id, 2**64 - 1)


def entry_before(store: Store, txn: Txn, stream_id: int, offset: int) -> IndexEntry | None:
    """The last entry that begins at or before `offset`."""
    cursor = txn.cursor(db=store.index)
    target = index.key(stream_id, offset)
    positioned = cursor.set_range(target)
    if positioned and cursor.key() == target:
        return _entry(cursor)
    if not (cursor.prev() if positioned else cursor.last()):
        return None
    found, _ = index.split_key(cursor.key())
    return _entry(cursor) if found == stream_id else None


def entries_from(
    store: Store, txn: Txn, stream_id: int, offset: int, stop: int
) -> Iterator[IndexEntry]:
    """The entries that hold offsets of `[offset, stop)`, in order."""
    cursor = txn.cursor(db=store.index)
    before = entry_before(store, txn, stream_id, offset)
    first = offset if before is None or before.stop <= offset else before.first_offset
    positioned = cursor.set_range(index.key(stream_id, first))
    while positioned:
        found, first_offset = index.split_key(cursor.key())
        if found != stream_id or first_offset >= stop:
            break
        yield _entry(cursor)
        positioned = cursor.next()


def scan(
    store: Store,
    stream_id: int,
    stream: str,
    start: int,
    stop: int,
    wanted: Callable[[IndexEntry], bool],
) -> Iterator[Stretch]:
    """Walk `[start, stop)`; payloads of entries that are not `wanted` are not read.

    No read transaction is open while the caller works, and nothing returned points into the map.
    Raises DamagedLog when it comes to a damaged payload, or to offsets that no entry covers.
    """
    at = start
    while at < stop:
        gathered: list[tuple[IndexEntry, bytes | None]] = []
        size = 0
        with store.read() as txn:
            for entry in entries_from(store, txn, stream_id, at, stop):
                body = None
                if wanted(entry):
                    body = payload_store.get_body(
                        store, txn, entry.payload_id, size=entry.body_bytes
                    )
                    size += len(body)
                gathered.append((entry, body))
                if size >= READ_BYTES or len(gathered) >= READ_ENTRIES:
                    break
            if not gathered:
                _expect_end(store, txn, stream_id, stream, at)
                return
        for entry, body in gathered:
            if entry.first_offset > at:
                raise _gap(stream, at, entry.first_offset)
            at = entry.stop
            loaded = None if body is None else payload_store.load(body, entry, stream=stream)
            yield Stretch(entry=entry, payload=loaded)


def _expect_end(store: Store, txn: Txn, stream_id: int, stream: str, at: int) -> None:
    last = last_entry(store, txn, stream_id)
    if last is not None and at < last.stop:
        raise _gap(stream, at, last.first_offset)


def _gap(stream: str, start: int, stop: int) -> DamagedLog:
    return DamagedLog(
        f"no index entry of stream {stream!r} covers offset {start} and on, below {stop}",
        hint="records outside them can still be read; restore the directory from a copy",
    )


def _entry(cursor: object) -> IndexEntry:
    key, value = cursor.item()  # type: ignore[attr-defined]
    _, first_offset = index.split_key(key)
    return index.unpack(first_offset, value, under=key)
