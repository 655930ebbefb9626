"""Index entries: where a stretch of a stream's offsets lies, and what is in it (D5).

::

    0    4 5 6    8          16         24         32    36      40    44     48
    +----+-+-+----+----------+----------+----------+-----+-------+-----+------+
    |EVLI|v|f|rels|payload id|p.checksum|body bytes|slots|records|epoch|txs   |
    +----+-+-+----+----------+----------+----------+-----+-------+-----+------+
    48         56         64         72         80
    +----------------------+------------+-----------------+
    |(relation, schema) × n|states u8×s |transactions × t |
    +----------------------+------------+-----------------+
    +-------+-------------+-----------+
    |map u32|map (msgpack)|xxh3-64    |      transactions: first u32×t, time i64×t, tx u64×t,
    +-------+-------------+-----------+                    position u64×t, an array after the other

Little-endian; times are µs since 1970 UTC. `f` bit 0: states follow (else every slot is live), bit
1: the transactions are packed (`eventlog.engine.packing`) behind their length, a u32. `txs`
transactions begin in or reach into the stretch: `first` is the slot where each begins (0 where it
began before), `back` how many records of the first one lie before this entry. A slot's state: 0
live, 1 dropped (no offset), 2 erased, 3 compacted, 4 lost (all three keep their offset). The map is
msgpack, for what later versions add; it is kept. Its `raw` is the payload's length uncompressed,
where that is compressed, its `body` a small payload itself, whose id is 0 then. The checksum covers
the key and all before it.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import xxhash

from eventlog.engine import packing
from eventlog.engine.payload import HEADER_BYTES
from eventlog.errors import DamagedLog, LogVersionError

_MAGIC = b"EVLI"
_VERSION = 1
_HAS_STATES = 1
_PACKED = 2
_FLAGS = _HAS_STATES | _PACKED
_FIXED = struct.Struct("<4sBBHQQQIIIIqqqQ")
_KEY = struct.Struct(">IQ")
_TAIL = struct.Struct("<I")
_SUM = struct.Struct("<Q")

RAW = "raw"
"""In an entry's map: the payload's bytes before it was compressed, header left out."""

BODY = "body"
"""In an entry's map: the payload's body itself, where it is small. The payload id is 0 then."""

UNFINISHED = "unfinished"
"""In a staged entry's map: parts of its payload are still to come, each few in a commit."""

LIVE, DROPPED, ERASED, COMPACTED, LOST = range(5)

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transactions:
    """The source transactions of a batch, as packed arrays.

    `first` holds the slot where each begins, `time` its commit time (µs since 1970 UTC), `tx` and
    `position` two words that the codec renders. `back` records of the first one lie before.
    """

    first: U32
    time: I64
    tx: U64
    position: U64
    back: int = 0

    @classmethod
    def one(cls, *, time_us: int, tx: int = 0, position: int = 0, back: int = 0) -> Transactions:
        """All records belong to a single transaction."""
        return cls(
            first=np.zeros(1, np.uint32),
            time=np.array([time_us], np.int64),
            tx=np.array([tx], np.uint64),
            position=np.array([position], np.uint64),
            back=back,
        )

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One stretch `[first_offset, first_offset + records)` of a stream."""

    first_offset: int
    payload_id: int
    payload_checksum: int
    body_bytes: int
    slots: int
    records: int
    time_running_max: int
    relations: tuple[tuple[int, int], ...]
    transactions: Transactions
    states: U8 | None = None
    erasure_epoch: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.first_offset + self.records

    @property
    def body(self) -> bytes | None:
        """The payload's body, where the entry holds it itself."""
        found: bytes | None = self.more.get(BODY)
        return found

    @property
    def raw_bytes(self) -> int:
        """Bytes of the payload's boundaries and records, uncompressed."""
        return int(self.more.get(RAW, self.body_bytes - HEADER_BYTES))

    @property
    def time_min(self) -> int:
        return int(self.transactions.time.min())

    @property
    def time_max(self) -> int:
        return int(self.transactions.time.max())

    def slot_offsets(self) -> I64:
        """The offset of each slot; a dropped slot bears the offset of the next one."""
        if self.states is None:
            return np.arange(self.first_offset, self.stop, dtype=np.int64)
        kept = self.states != DROPPED
        before: I64 = np.cumsum(kept) - kept
        return before + self.first_offset

    def readable_slots(self, start: int, stop: int) -> tuple[Sequence[int], Sequence[int]]:
        """The live slots whose offsets lie in `[start, stop)`, and those offsets."""
        if self.states is None:
            low = max(start - self.first_offset, 0)
            high = max(min(stop, self.stop) - self.first_offset, low)
            return range(low, high), range(self.first_offset + low, self.first_offset + high)
        offsets = self.slot_offsets()
        wanted = (self.states == LIVE) & (offsets >= start) & (offsets < stop)
        return np.flatnonzero(wanted).tolist(), offsets[wanted].tolist()

    @property
    def last_run(self) -> int:
        """Records of the last transaction up to here, those of entries before included."""
        last = int(self.transactions.first[-1])
        kept = self.slots - last
        if self.states is not None:
            kept -= int((self.states[last:] == DROPPED).sum())
        return kept + (self.transactions.back if len(self.transactions) == 1 else 0)

    def slot_transactions(self) -> npt.NDArray[np.intp]:
        """For each slot, the place of its transaction in `transactions`."""
        slots = np.arange(self.slots)
        return np.searchsorted(self.transactions.first, slots, side="right") - 1

    def moved(self, first_offset: int, time_running_max: int) -> IndexEntry:
        """The same entry at another place in a stream."""
        # Once for every append; dataclasses.replace takes three times as long.
        return IndexEntry(
            first_offset=first_offset,
            payload_id=self.payload_id,
            payload_checksum=self.payload_checksum,
            body_bytes=self.body_bytes,
            slots=self.slots,
            records=self.records,
            time_running_max=time_running_max,
            relations=self.relations,
            transactions=self.transactions,
            states=self.states,
            erasure_epoch=self.erasure_epoch,
            more=self.more,
        )

    def with_position(self, position: int) -> IndexEntry:
        """The same entry, with `position` as that of its transactions which have none (0)."""
        known = self.transactions.position
        positions = np.where(known == 0, np.uint64(position), known)
        transactions = dataclasses.replace(self.transactions, position=positions)
        return dataclasses.replace(self, transactions=transactions)


def key(stream_id: int, first_offset: int) -> bytes:
    return _KEY.pack(stream_id, first_offset)


def split_key(stored: bytes) -> tuple[int, int]:
    """The (stream id, first offset) of a key."""
    stream_id, first_offset = _KEY.unpack(stored)
    return stream_id, first_offset


def pack(entry: IndexEntry, *, under: bytes) -> bytes:
    """Encode an entry for storage under the key `under`."""
    transactions = entry.transactions
    count = len(transactions)
    packed = count >= packing.COUNT_MIN
    flags = (0 if entry.states is None else _HAS_STATES) | (_PACKED if packed else 0)
    if count == 1:
        time_min = time_max = int(transactions.time[0])
    else:
        time_min, time_max = entry.time_min, entry.time_max
    head = _FIXED.pack(
        _MAGIC,
        _VERSION,
        flags,
        len(entry.relations),
        entry.payload_id,
        entry.payload_checksum,
        entry.body_bytes,
        entry.slots,
        entry.records,
        entry.erasure_epoch,
        count,
        time_min,
        time_max,
        entry.time_running_max,
        transactions.back,
    )
    more = msgpack.packb(entry.more) if entry.more else b""
    arrays = transactions.first, transactions.time, transactions.tx, transactions.position
    value = b"".join(
        (
            head,
            np.array(entry.relations, "<u4").tobytes() if entry.relations else b"",
            b"" if entry.states is None else entry.states.tobytes(),
            *(packing.pack(*arrays) if packed else _plain(*arrays)),
            _TAIL.pack(len(more)),
            more,
        )
    )
    return value + _SUM.pack(_checksum(under, value))


def _plain(first: U32, time: I64, tx: U64, position: U64) -> tuple[bytes, ...]:
    return (
        first.astype("<u4", copy=False).tobytes(),
        time.astype("<i8", copy=False).tobytes(),
        tx.astype("<u8", copy=False).tobytes(),
        position.astype("<u8", copy=False).tobytes(),
    )


def unpack(first_offset: int, value: bytes, *, under: bytes) -> IndexEntry:
    """Read an entry back.

    Raises DamagedLog where its bytes are not what was written, LogVersionError where a newer
    version wrote it.
    """
    where = f"the index entry at offset {first_offset}"
    if len(value) < _FIXED.size + _TAIL.size + _SUM.size:
        raise DamagedLog(f"{where} is cut short", hint=_HINT)
    if value[:4] != _MAGIC:
        raise DamagedLog(f"the magic bytes of {where} are wrong", hint=_HINT)
    (checksum,) = _SUM.unpack_from(value, len(value) - _SUM.size)
    if checksum != _checksum(under, value[: -_SUM.size]):
        raise DamagedLog(f"the checksum of {where} is wrong", hint=_HINT)
    if value[4] != _VERSION:
        raise LogVersionError(
            f"{where} has version {value[4]}, known is {_VERSION}",
            hint="read this log with a newer version of eventlog-cdc",
        )
    if value[5] & ~_FLAGS:
        raise LogVersionError(
            f"{where} has flags {value[5]:#x}, of which {value[5] & ~_FLAGS:#x} are unknown here",
            hint="read this log with a newer version of eventlog-cdc",
        )
    (
        _,
        _,
        flags,
        relation_count,
        payload_id,
        payload_checksum,
        body_bytes,
        slots,
        records,
        erasure_epoch,
        count,
        _,
        _,
        time_running_max,
        back,
    ) = _FIXED.unpack_from(value)
    states_bytes = slots if flags & _HAS_STATES else 0
    arrays_at = _FIXED.size + 8 * relation_count + states_bytes
    arrays_bytes = packing.size(value, arrays_at) if flags & _PACKED else 28 * count
    more_at = arrays_at + arrays_bytes
    if more_at + _TAIL.size + _SUM.size > len(value):
        raise DamagedLog(f"the counts of {where} pass its length", hint=_HINT)
    (more_bytes,) = _TAIL.unpack_from(value, more_at)
    if more_at + _TAIL.size + more_bytes + _SUM.size != len(value):
        raise DamagedLog(f"the counts of {where} contradict its length", hint=_HINT)
    more = value[more_at + _TAIL.size : len(value) - _SUM.size]

    at = _FIXED.size
    relations: tuple[tuple[int, int], ...] = ()
    if relation_count:
        pairs = np.frombuffer(value, "<u4", 2 * relation_count, at).reshape(-1, 2)
        relations = tuple((int(r), int(s)) for r, s in pairs.tolist())
        at += 8 * relation_count
    states = np.frombuffer(value, np.uint8, slots, at) if states_bytes else None
    if flags & _PACKED:
        try:
            first, time, tx, position = packing.unpack(value, arrays_at, arrays_bytes, count)
        except ValueError as error:
            raise DamagedLog(f"the transactions of {where}: {error}", hint=_HINT) from error
    else:
        first = np.frombuffer(value, "<u4", count, arrays_at)
        time = np.frombuffer(value, "<i8", count, arrays_at + 4 * count)
        tx = np.frombuffer(value, "<u8", count, arrays_at + 12 * count)
        position = np.frombuffer(value, "<u8", count, arrays_at + 20 * count)
    return IndexEntry(
        first_offset=first_offset,
        payload_id=payload_id,
        payload_checksum=payload_checksum,
        body_bytes=body_bytes,
        slots=slots,
        records=records,
        time_running_max=time_running_max,
        relations=relations,
        transactions=Transactions(first=first, time=time, tx=tx, position=position, back=back),
        states=states,
        erasure_epoch=erasure_epoch,
        more=msgpack.unpackb(more) if more_bytes else {},
    )


def stored_times(value: bytes) -> tuple[int, int]:
    """The least and greatest time that a packed entry states (for the integrity check)."""
    least, greatest = _FIXED.unpack_from(value)[11:13]
    return least, greatest


def _checksum(under: bytes, value: bytes) -> int:
    state = xxhash.xxh3_64(under)
    state.update(value)
    return state.intdigest()


_HINT = "run `eventlog check` to see what else is damaged, and `eventlog repair` to drop it"
