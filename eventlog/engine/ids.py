"""Ids of events: an append under an id that the stream knows stores nothing again (D8).

::

    database `ids`     stream u32, 0, digest (16 bytes)  =  offset u64, sequence u64, sum
                       stream u32, 1, sequence u64       =  digest, sum

Big-endian; `sum` is XXH3-64 over the key and the rest of the value. The digest is BLAKE2b of the
id's UTF-8 with 16 bytes: nobody can make two ids that collide. A stream knows the last IDS_KEPT ids
that were stored in it: each new one beyond takes the place of the oldest. They are looked up and
stored in the write transaction of the append itself, so that of two processes that append the same
id at the same time one finds the other's.

Each digest names the next one of its stream, zeros after the last; before the first one stands a
row under zeros. So the digest before it proves that an id is not known: one that vanished is
damage, and is not stored again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import xxhash

from eventlog.engine.batch import Batch
from eventlog.engine.index import DROPPED
from eventlog.engine.plan import Append
from eventlog.engine.rows import StreamRow
from eventlog.engine.sealed import REPAIR_HINT
from eventlog.engine.store import Store, Txn
from eventlog.errors import DamagedLog

IDS_KEPT = 1_000_000
"""Ids that a stream remembers: 100 to 150 MB on disk, and as much again in free pages while they
change."""

_DIGEST = struct.Struct(">IB16s")
_PLACE = struct.Struct(">IBQ")
_VALUE = struct.Struct(">QQ16s")
_ENDS = bytes(16)
"""Before the first digest of a stream and after the last."""

_BY_DIGEST, _BY_SEQUENCE = 0, 1
_SUM_BYTES = 8


@dataclass(slots=True)
class Known:
    """For each record of an append: the offset under which it is stored already, or its digest.

    A digest of None is that of a record without an id.
    """

    stream: StreamRow
    found: list[int | bytes | None]

    def offsets(self, added: range) -> list[int]:
        """The offset of each record, the new ones having got `added` in order."""
        fresh = iter(added)
        given: dict[bytes, int] = {}
        result = []
        for item in self.found:
            if isinstance(item, int):
                result.append(item)
            elif item is None:
                result.append(next(fresh))
            else:
                if item not in given:
                    given[item] = next(fresh)
                result.append(given[item])
        return result

    def store(self, store: Store, txn: Txn, added: range) -> int:
        """Remember the ids of the new records, and forget as many of the oldest as are too many.

        Returns the sequence number of the next one.
        """
        stream_id = self.stream.id
        high = self.stream.ids
        low = lowest(store, txn, stream_id, default=high)
        fresh = dict(zip(self.found, self.offsets(added), strict=True))
        known = [(digest, at) for digest, at in fresh.items() if isinstance(digest, bytes)]
        if not known:
            return high
        put_all(store, txn, stream_id, enumerate(known, high))
        high += len(known)
        for sequence in range(low, high - IDS_KEPT):
            key = _PLACE.pack(stream_id, _BY_SEQUENCE, sequence)
            _forget(store, txn, stream_id, _checked(key, txn.get(key, db=store.ids)))
            txn.delete(key, db=store.ids)
        return high


def digest_of(event_id: str) -> bytes:
    return blake2b(event_id.encode(), digest_size=16).digest()


def offset_of(store: Store, txn: Txn, stream: StreamRow, digest: bytes) -> int | None:
    """Where the record of an id is, None for an id that is not known.

    Raises DamagedLog where it might have been.
    """
    if not stream.ids:
        return None
    stored = _row(store, txn, stream.id, digest)
    if stored is None:
        _, before = _before(store, txn, stream.id, digest)
        if before.next == digest:
            raise DamagedLog(f"an id of stream {stream.name!r} is gone", hint=REPAIR_HINT)
        return None
    return stored.offset


def leave_out_known(
    store: Store, txn: Txn, stream: StreamRow, append: Append
) -> tuple[list[Batch], Known]:
    """The batches of an append without the records that are known, and what is known of all.

    REQUIRES: as many ids as records, of one transaction, no staged part, batches without states.
    """
    found: list[int | bytes | None] = []
    digests: set[bytes] = set()
    again: list[bool] = []
    for event_id in append.ids:
        digest = None if event_id is None else digest_of(event_id)
        offset = None if digest is None else offset_of(store, txn, stream, digest)
        found.append(digest if offset is None else offset)
        again.append(offset is not None or digest in digests)
        if digest is not None:
            digests.add(digest)
    batches = []
    at = gone = 0
    for batch in append.batches:
        known = np.array(again[at : at + batch.body.count])
        at += batch.body.count
        if gone:
            mine = batch.transactions
            batch = replace(batch, transactions=replace(mine, back=mine.back - gone))
        gone += int(known.sum())
        if known.any():
            if known.all():
                continue
            batch = replace(batch, states=known.astype(np.uint8) * np.uint8(DROPPED))
        batches.append(batch)
    return batches, Known(stream, found)


def lowest(store: Store, txn: Txn, stream_id: int, *, default: int) -> int:
    """The sequence number of a stream's oldest id, `default` where it has none."""
    cursor = txn.cursor(db=store.ids)
    first = _PLACE.pack(stream_id, _BY_SEQUENCE, 0)
    if not cursor.set_range(first) or cursor.key()[:5] != first[:5]:
        return default
    return int(_PLACE.unpack(cursor.key())[2])


def is_row(key: bytes, value: bytes) -> bool:
    """Whether this is a row of `ids`, undamaged."""
    return len(key) in (_DIGEST.size, _PLACE.size) and value[-_SUM_BYTES:] == _sum(
        key, value[:-_SUM_BYTES]
    )


def stored_id(key: bytes, value: bytes) -> tuple[bytes, int, int] | None:
    """Digest, offset and sequence number out of an id's row; None for a place, or for damage."""
    try:
        _, kind, digest = _DIGEST.unpack(key)
        offset, sequence, _ = _VALUE.unpack(_checked(key, value))
    except (DamagedLog, struct.error):
        return None
    return (digest, offset, sequence) if kind == _BY_DIGEST and digest != _ENDS else None


def put_all(
    store: Store, txn: Txn, stream_id: int, known: Iterable[tuple[int, tuple[bytes, int]]]
) -> None:
    """Store digests with their offsets, each under its sequence number: these must be dense."""
    if _row(store, txn, stream_id, _ENDS) is None:
        _put(store, txn, stream_id, _ENDS, _Row(0, 0, _ENDS))
    for sequence, (digest, offset) in known:
        at, before = _before(store, txn, stream_id, digest)
        _put(store, txn, stream_id, digest, _Row(offset, sequence, before.next))
        _put(store, txn, stream_id, at, before._replace(next=digest))
        key = _PLACE.pack(stream_id, _BY_SEQUENCE, sequence)
        txn.put(key, digest + _sum(key, digest), db=store.ids)


def damages(store: Store, txn: Txn, streams: Sequence[StreamRow]) -> Iterator[tuple[str, str]]:
    """What the integrity check finds wrong here, as (where, what).

    Every id has a place, every place an id that names it.
    """
    known = {row.id: row for row in streams}
    due: dict[int, bytes | None] = {row.id: _ENDS if row.ids else None for row in streams}
    homeless: dict[int, int] = {}
    for key, value in txn.cursor(db=store.ids):
        where = f"id {key[5:].hex()} of stream number {int.from_bytes(key[:4], 'big')}"
        try:
            stream_id, kind = struct.unpack_from(">IB", key)
            if stream_id not in known:
                homeless[stream_id] = homeless.get(stream_id, 0) + 1
                continue
            stored = _checked(key, value)
            if kind == _BY_DIGEST:
                digest = key[5:]
                row = _Row(*_VALUE.unpack(stored))
                if digest != due[stream_id]:
                    yield where, "it is not the one that the id before it names"
                due[stream_id] = row.next if row.next != _ENDS else None
                if digest == _ENDS:
                    continue
                place = _PLACE.pack(stream_id, _BY_SEQUENCE, row.sequence)
                back = txn.get(place, db=store.ids)
                if row.offset >= known[stream_id].end:
                    yield where, f"it names offset {row.offset}, beyond the stream's end"
                if back is None or back[:16] != digest:
                    yield where, f"place {row.sequence} does not name it"
            elif txn.get(_DIGEST.pack(stream_id, _BY_DIGEST, stored), db=store.ids) is None:
                yield where, "the id that it names is not there"
        except (DamagedLog, struct.error) as error:
            yield where, f"{error}"
    for stream_id, count in homeless.items():
        yield f"stream number {stream_id}", f"{count} rows of ids of a stream with no row"
    for stream_id, digest in due.items():
        if digest is not None:
            yield (
                f"ids of stream {known[stream_id].name!r}",
                f"that of digest {digest.hex()} is gone",
            )


class _Row(NamedTuple):
    offset: int
    sequence: int
    next: bytes


def _row(store: Store, txn: Txn, stream_id: int, digest: bytes) -> _Row | None:
    key = _DIGEST.pack(stream_id, _BY_DIGEST, digest)
    stored = txn.get(key, db=store.ids)
    return None if stored is None else _Row(*_VALUE.unpack(_checked(key, stored)))


def _before(store: Store, txn: Txn, stream_id: int, digest: bytes) -> tuple[bytes, _Row]:
    """The digest before one, and its row; raises DamagedLog where one should lie between."""
    cursor = txn.cursor(db=store.ids)
    key = _DIGEST.pack(stream_id, _BY_DIGEST, digest)
    there = cursor.prev() if cursor.set_range(key) else cursor.last()
    if there and cursor.key()[:5] == key[:5]:
        row = _Row(*_VALUE.unpack(_checked(cursor.key(), cursor.value())))
        if row.next == _ENDS or row.next >= digest:
            return cursor.key()[5:], row
    raise DamagedLog(f"an id of stream number {stream_id} is gone", hint=REPAIR_HINT)


def _put(store: Store, txn: Txn, stream_id: int, digest: bytes, row: _Row) -> None:
    key = _DIGEST.pack(stream_id, _BY_DIGEST, digest)
    value = _VALUE.pack(*row)
    txn.put(key, value + _sum(key, value), db=store.ids)


def _forget(store: Store, txn: Txn, stream_id: int, digest: bytes) -> None:
    row = _row(store, txn, stream_id, digest)
    at, before = _before(store, txn, stream_id, digest)
    if row is None or before.next != digest:
        raise DamagedLog(f"an id of stream number {stream_id} is gone", hint=REPAIR_HINT)
    _put(store, txn, stream_id, at, before._replace(next=row.next))
    txn.delete(_DIGEST.pack(stream_id, _BY_DIGEST, digest), db=store.ids)


def _checked(key: bytes, stored: bytes | None) -> bytes:
    if stored is None or stored[-_SUM_BYTES:] != _sum(key, stored[:-_SUM_BYTES]):
        raise DamagedLog(f"the row {key.hex()} of `ids` is damaged", hint=REPAIR_HINT)
    return stored[:-_SUM_BYTES]


def _sum(key: bytes, value: bytes) -> bytes:
    return bytes(xxhash.xxh3_64(key + value).digest())
