"""Ids of events: an append under an id that the stream knows stores nothing again (D8).

::

    database `ids`     stream u32, 0, digest (16 bytes)  =  offset u64, sequence u64, sum
                       stream u32, 1, sequence u64       =  digest, sum

Big-endian; `sum` is XXH3-64 over the key and the rest of the value. The digest is BLAKE2b of the
id's UTF-8 with 16 bytes: nobody can make two ids that collide. A stream knows the last IDS_KEPT ids
that were stored in it: each new one beyond takes the place of the oldest. They are looked up and
stored in the write transaction of the append itself, so that of two processes that append the same
id at the same time one finds the other's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import xxhash

from eventlog.engine.batch import Batch
from eventlog.engine.index import DROPPED
from eventlog.engine.plan import Append
from eventlog.engine.rows import StreamRow
from eventlog.engine.store import Store, Txn
from eventlog.errors import DamagedLog

IDS_KEPT = 1_000_000
"""Ids that a stream remembers: about 100 MB on disk."""

_DIGEST = struct.Struct(">IB16s")
_PLACE = struct.Struct(">IBQ")
_VALUE = struct.Struct(">QQ")
_BY_DIGEST, _BY_SEQUENCE = 0, 1
_SUM_BYTES = 8


@dataclass(slots=True)
class Known:
    """For each record of an append: the offset under which it is stored already, or its digest.

    A digest of None is that of a record without an id.
    """

    stream: int
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

    def store(self, store: Store, txn: Txn, added: range) -> None:
        """Remember the ids of the new records, and forget as many of the oldest as are too many."""
        low, high = bounds(store, txn, self.stream)
        fresh = dict(zip(self.found, self.offsets(added), strict=True))
        for digest, offset in fresh.items():
            if not isinstance(digest, bytes):
                continue
            _put(store, txn, _DIGEST.pack(self.stream, _BY_DIGEST, digest), offset, high)
            key = _PLACE.pack(self.stream, _BY_SEQUENCE, high)
            txn.put(key, digest + _sum(key, digest), db=store.ids)
            high += 1
        for sequence in range(low, high - IDS_KEPT):
            key = _PLACE.pack(self.stream, _BY_SEQUENCE, sequence)
            digest = _checked(key, txn.get(key, db=store.ids))
            txn.delete(_DIGEST.pack(self.stream, _BY_DIGEST, digest), db=store.ids)
            txn.delete(key, db=store.ids)


def digest_of(event_id: str) -> bytes:
    return blake2b(event_id.encode(), digest_size=16).digest()


def offset_of(store: Store, txn: Txn, stream_id: int, digest: bytes) -> int | None:
    """Where the record of an id is, None for an id that is not known."""
    key = _DIGEST.pack(stream_id, _BY_DIGEST, digest)
    stored = txn.get(key, db=store.ids)
    if stored is None:
        return None
    offset, _ = _VALUE.unpack(_checked(key, stored))
    return int(offset)


def leave_out_known(
    store: Store, txn: Txn, stream: StreamRow, append: Append
) -> tuple[list[Batch], Known]:
    """The batches of an append without the records that are known, and what is known of all.

    REQUIRES: as many ids as records, no staged part, batches without states.
    """
    found: list[int | bytes | None] = []
    digests: set[bytes] = set()
    again: list[bool] = []
    for event_id in append.ids:
        digest = None if event_id is None else digest_of(event_id)
        offset = None if digest is None else offset_of(store, txn, stream.id, digest)
        found.append(digest if offset is None else offset)
        again.append(offset is not None or digest in digests)
        if digest is not None:
            digests.add(digest)
    batches = []
    at = 0
    for batch in append.batches:
        known = np.array(again[at : at + batch.body.count])
        at += batch.body.count
        if known.any():
            if known.all():
                continue
            batch = replace(batch, states=known.astype(np.uint8) * np.uint8(DROPPED))
        batches.append(batch)
    return batches, Known(stream.id, found)


def bounds(store: Store, txn: Txn, stream_id: int) -> tuple[int, int]:
    """The sequence numbers of a stream's ids, half-open."""
    cursor = txn.cursor(db=store.ids)
    low_key = _PLACE.pack(stream_id, _BY_SEQUENCE, 0)
    if not cursor.set_range(low_key) or cursor.key()[:5] != low_key[:5]:
        return 0, 0
    low = _PLACE.unpack(cursor.key())[2]
    # What follows all places of a stream is a key of the next one, or nothing.
    positioned = cursor.set_range(_PLACE.pack(stream_id, _BY_SEQUENCE + 1, 0))
    if positioned:
        cursor.prev()
    else:
        cursor.last()
    return int(low), int(_PLACE.unpack(cursor.key())[2]) + 1


def is_row(key: bytes, value: bytes) -> bool:
    """Whether this is a row of `ids`, undamaged."""
    return len(key) in (_DIGEST.size, _PLACE.size) and value[-_SUM_BYTES:] == _sum(
        key, value[:-_SUM_BYTES]
    )


def stored_id(key: bytes, value: bytes) -> tuple[bytes, int, int] | None:
    """Digest, offset and sequence number out of an id's row; None for a place, or for damage."""
    try:
        _, kind, digest = _DIGEST.unpack(key)
        offset, sequence = _VALUE.unpack(_checked(key, value))
    except (DamagedLog, struct.error):
        return None
    return (digest, offset, sequence) if kind == _BY_DIGEST else None


def put_all(
    store: Store, txn: Txn, stream_id: int, known: Iterable[tuple[int, tuple[bytes, int]]]
) -> None:
    """Store digests with their offsets, each under its sequence number: these must be dense."""
    for sequence, (digest, offset) in known:
        _put(store, txn, _DIGEST.pack(stream_id, _BY_DIGEST, digest), offset, sequence)
        key = _PLACE.pack(stream_id, _BY_SEQUENCE, sequence)
        txn.put(key, digest + _sum(key, digest), db=store.ids)


def damages(store: Store, txn: Txn, streams: Sequence[StreamRow]) -> Iterator[tuple[str, str]]:
    """What the integrity check finds wrong here, as (where, what).

    Every id has a place, every place an id that names it.
    """
    known = {row.id: row for row in streams}
    for key, value in txn.cursor(db=store.ids):
        try:
            stored = _checked(key, value)
            stream_id, kind = struct.unpack_from(">IB", key)
            if stream_id not in known:
                yield f"id {key!r}", f"no stream has number {stream_id}"
            elif kind == _BY_DIGEST:
                offset, sequence = _VALUE.unpack(stored)
                place = _PLACE.pack(stream_id, _BY_SEQUENCE, sequence)
                back = txn.get(place, db=store.ids)
                if offset >= known[stream_id].end:
                    yield f"id {key!r}", f"it names offset {offset}, beyond the stream's end"
                if back is None or back[:16] != key[5:]:
                    yield f"id {key!r}", f"place {sequence} does not name it"
            elif txn.get(_DIGEST.pack(stream_id, _BY_DIGEST, stored), db=store.ids) is None:
                yield f"id {key!r}", "the id that it names is not there"
        except (DamagedLog, struct.error) as error:
            yield f"id {key!r}", f"{error}"


def _put(store: Store, txn: Txn, key: bytes, offset: int, sequence: int) -> None:
    value = _VALUE.pack(offset, sequence)
    txn.put(key, value + _sum(key, value), db=store.ids)


def _checked(key: bytes, stored: bytes | None) -> bytes:
    if stored is None or stored[-_SUM_BYTES:] != _sum(key, stored[:-_SUM_BYTES]):
        raise DamagedLog(
            f"the value under {key!r} in `ids` is damaged", hint="run `eventlog check`"
        )
    return stored[:-_SUM_BYTES]


def _sum(key: bytes, value: bytes) -> bytes:
    return bytes(xxhash.xxh3_64(key + value).digest())
