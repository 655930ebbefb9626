"""Read a stream: index entries and payloads of an offset range, in short read transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from eventlog.engine import index, payload_store, rows
from eventlog.engine.index import IndexEntry
from eventlog.engine.payload import Payload
from eventlog.engine.rows import StreamRow
from eventlog.engine.store import Store, Txn
from eventlog.errors import DamagedLog, OffsetsDropped

READ_BYTES = 4 << 20
"""Bodies copied out in one read transaction: it is amortised, and pins pages only shortly."""

READ_ENTRIES = 4096
"""Entries walked in one read transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The part `[start, stop)` of one index entry, and its payload where it was wanted.

    Entries are merged while they are read: one may begin before what was read so far.
    """

    entry: IndexEntry
    payload: Payload | None
    start: int
    stop: int

    def readable_slots(self) -> tuple[Sequence[int], Sequence[int]]:
        """The slots of records that are here to be read, and their offsets."""
        return self.entry.readable_slots(self.start, self.stop)


Damaged = Callable[[int, int, DamagedLog], None]
"""Told of offsets `[start, stop)` that cannot be read, and why."""


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


def entry_at(store: Store, txn: Txn, stream: StreamRow, offset: int) -> IndexEntry:
    """The entry that holds an offset of `[start, end)`; raises DamagedLog where none does."""
    entry = entry_before(store, txn, stream.id, offset)
    # A damaged tree may hand out any entry, and who bisects must come nearer with each.
    if entry is None or not entry.first_offset <= offset < entry.stop:
        raise _gap(stream.name, offset, offset + 1)
    return entry


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
    stream: StreamRow,
    start: int,
    stop: int,
    wanted: Callable[[IndexEntry], bool],
    *,
    damaged: Damaged | None = None,
) -> Iterator[Stretch]:
    """Walk `[start, stop)`; payloads of entries that are not `wanted` are not read.

    No read transaction is open while the caller works, and nothing returned points into the map.
    Raises DamagedLog when it comes to a damaged entry or payload, or to offsets that no entry
    covers; with `damaged`, that is told instead, and the walk goes on behind. Raises OffsetsDropped
    where retention has overtaken it.
    """
    at = start
    broken: DamagedLog | None = None
    while at < stop:
        gathered: list[tuple[int, IndexEntry | DamagedLog, bytes | None]] = []
        size = 0
        ended = True
        with store.read() as txn:
            _expect_retained(store, txn, stream, at)
            for first, found in _walk(store, txn, stream.id, at, stop):
                if isinstance(found, DamagedLog):
                    gathered.append((first, found, None))
                    continue
                body = None
                if wanted(found):
                    size += found.body_bytes
                    body = payload_store.get_body(store, txn, found)
                gathered.append((first, found, body))
                if size >= READ_BYTES or len(gathered) >= READ_ENTRIES:
                    ended = False
                    break
        for first, found, body in gathered:
            if isinstance(found, DamagedLog):
                broken = broken or found
                continue
            if found.stop <= at:
                continue  # Out of order, in a damaged tree: the way goes on, and never back.
            if first > at:
                _tell(damaged, at, first, broken or _gap(stream.name, at, first))
            broken = None
            begin, at = max(at, first), min(found.stop, stop)
            try:
                loaded = None
                if body is not None:
                    loaded = payload_store.load(body, found, stream=stream.name)
            except DamagedLog as error:
                _tell(damaged, begin, at, error)
                continue
            yield Stretch(entry=found, payload=loaded, start=begin, stop=at)
        if ended and at < stop:
            _tell(damaged, at, stop, broken or _gap(stream.name, at, stop))
            return


def _walk(
    store: Store, txn: Txn, stream_id: int, offset: int, stop: int
) -> Iterator[tuple[int, IndexEntry | DamagedLog]]:
    """The entries that hold offsets of `[offset, stop)` by their first one, or why they cannot."""
    cursor = txn.cursor(db=store.index)
    target = index.key(stream_id, offset)
    positioned = cursor.set_range(target)
    if not (positioned and cursor.key() == target):
        # The entry before may reach over the offset.
        before = cursor.prev() if positioned else cursor.last()
        if before and index.split_key(cursor.key())[0] == stream_id:
            positioned = True
        else:
            positioned = cursor.set_range(target)
    while positioned:
        key, value = cursor.item()
        found, first = index.split_key(key)
        if found != stream_id or first >= stop:
            return
        try:
            entry: IndexEntry | DamagedLog = index.unpack(first, value, under=key)
        except DamagedLog as error:
            entry = error
        if isinstance(entry, DamagedLog) or entry.stop > offset:
            yield first, entry
        positioned = cursor.next()


def _expect_retained(store: Store, txn: Txn, stream: StreamRow, offset: int) -> None:
    row = rows.stream_row(store, txn, stream.name)
    if row is not None and offset < row.start:
        raise dropped(stream.name, offset, row.start)


def dropped(stream: str, offset: int, start: int) -> OffsetsDropped:
    """The error for an offset that retention has dropped."""
    return OffsetsDropped(
        f"offset {offset} of stream {stream!r} was dropped; the first retained one is {start}",
        hint=f"start at {start} or above",
    )


def _tell(damaged: Damaged | None, start: int, stop: int, error: DamagedLog) -> None:
    if damaged is None:
        raise error
    damaged(start, stop, error)


def _gap(stream: str, start: int, stop: int) -> DamagedLog:
    return DamagedLog(
        f"no index entry of stream {stream!r} covers offsets [{start}, {stop})",
        hint="records outside them can still be read; `eventlog repair` closes the gap",
    )


def _entry(cursor: object) -> IndexEntry:
    key, value = cursor.item()  # type: ignore[attr-defined]
    _, first_offset = index.split_key(key)
    return index.unpack(first_offset, value, under=key)
