"""A run: entries of the key index over offsets `[start, stop)` of a stream, sorted, in one file.

::

    0    4  6     8       12   16     32         40     48    56   64    72   80       88
    +----+--+-----+-------+----+------+----------+------+-----+----+-----+----+--------+
    |EVKX|v |block|rares  |zero|log id|generation|stream|start|stop|count|mark|checksum|
    +----+--+-----+-------+----+------+----------+------+-----+----+-----+----+--------+
    blocks    each of `block` entries, the last one of fewer: hashes u64×m, places u32×m
    fences    u64 × blocks      the first hash of each
    sums      u64 × blocks      the xxh3-64 of each
    rares     (relation i64, place i64) × rares

Little-endian. Entries are sorted by (hash, place); places count from `start << 2`. `mark` is the
xxh3-64 of the last record and its time: another log, or one that was repaired, has another. The
checksum covers the header before it, fences, sums and rares, and is looked at when the run is
opened; a block's is, whenever the block is read. So a look-up costs the blocks it reads.

Thread safety: an open run may be shared among threads.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from eventlog.engine.directory import sync_directory
from eventlog.history.entries import FLAG_BITS, I64, Entries
from eventlog.history.hashing import U64, VERSION

BLOCK = 4096
SPAN_MAX = 2 ** (32 - FLAG_BITS)
"""Offsets of one run: places are u32."""

SUFFIX = ".run"
TEMPORARY = ".tmp"
_MAGIC = b"EVKX"
_HEAD = struct.Struct("<4sHHIxxxx16sQQQQQQ")
_SUM = struct.Struct("<Q")
_BLOCKS_AT = _HEAD.size + _SUM.size
_ENTRY_BYTES = 12


class UnusableRun(Exception):
    """The file is damaged, or of another log, stream or version: to be dropped and built anew."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongs:
    """What a run is of."""

    log_id: bytes
    generation: int
    stream_id: int


class Source(Protocol):
    """Where entries are looked up: a run, or entries in memory."""

    @property
    def rare(self) -> I64:
        """Rows of (relation or ALL_TABLES, place), by offset."""
        ...

    def find(self, key_hash: int) -> Iterator[U64]:
        """The places under a hash in ascending order, array by array."""
        ...


class MemoryRun:
    """Entries in memory, sorted."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries

    @property
    def rare(self) -> I64:
        return self.entries.rare

    def find(self, key_hash: int) -> Iterator[U64]:
        hashes, wanted = self.entries.hashes, np.uint64(key_hash)
        low = int(np.searchsorted(hashes, wanted, side="left"))
        high = int(np.searchsorted(hashes, wanted, side="right"))
        if low < high:
            yield self.entries.places[low:high]


class Run:
    """An open run file. Raises UnusableRun where what it reads is not what was written."""

    start: int
    stop: int
    count: int
    mark: int

    def __init__(self, path: Path, belongs: Belongs) -> None:
        """Map the file. Raises UnusableRun, FileNotFoundError, OSError."""
        self.path = path
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < _BLOCKS_AT:
                raise UnusableRun(f"{path} is cut short", self)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, block, rares, log_id, generation, stream, *numbers = _HEAD.unpack_from(
            self._map
        )
        self.start, self.stop, self.count, self.mark = numbers
        found = Belongs(log_id=log_id, generation=generation, stream_id=stream)
        if (magic, version, block) != (_MAGIC, VERSION, BLOCK) or found != belongs:
            raise UnusableRun(f"{path} is not of this log", self)
        blocks = -(-self.count // BLOCK)
        tail = _BLOCKS_AT + self.count * _ENTRY_BYTES
        if tail + 16 * (blocks + rares) != len(self._map):
            raise UnusableRun(f"{path} has another length than it says", self)
        words = self._map[tail:]
        (checksum,) = _SUM.unpack_from(self._map, _HEAD.size)
        if checksum != _checksum(self._map[: _HEAD.size], words):
            raise UnusableRun(f"the checksum of {path} is wrong", self)
        self._fences = np.frombuffer(words, "<u8", blocks)
        self._sums = np.frombuffer(words, "<u8", blocks, 8 * blocks)
        self.rare: I64 = np.frombuffer(words, "<i8", 2 * rares, 16 * blocks).reshape(-1, 2)
        self._base = np.uint64(self.start << FLAG_BITS)

    def find(self, key_hash: int) -> Iterator[U64]:
        wanted = np.uint64(key_hash)
        # Entries under it may begin in the block before the first whose fence is not below it.
        first = int(np.searchsorted(self._fences, wanted, side="left"))
        last = int(np.searchsorted(self._fences, wanted, side="right"))
        for number in range(max(first - 1, 0), last):
            hashes, places = self.block(number)
            low = int(np.searchsorted(hashes, wanted, side="left"))
            high = int(np.searchsorted(hashes, wanted, side="right"))
            if low < high:
                yield places[low:high]

    @property
    def bytes(self) -> int:
        return len(self._map)

    @property
    def blocks(self) -> int:
        return len(self._fences)

    def block(self, number: int) -> tuple[U64, U64]:
        """The hashes and places of one block."""
        count = min(BLOCK, self.count - number * BLOCK)
        at = _BLOCKS_AT + number * BLOCK * _ENTRY_BYTES
        data = self._map[at : at + count * _ENTRY_BYTES]
        if xxhash.xxh3_64_intdigest(data) != int(self._sums[number]):
            raise UnusableRun(f"block {number} of {self.path} is damaged", self)
        hashes = np.frombuffer(data, "<u8", count)
        places = np.frombuffer(data, "<u4", count, 8 * count).astype(np.uint64)
        places += self._base
        return hashes, places


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a run to be written says of itself."""

    belongs: Belongs
    start: int
    stop: int
    count: int
    mark: int


def file_name(start: int, stop: int) -> str:
    return f"{start:016x}-{stop:016x}{SUFFIX}"


def write_run(folder: Path, head: Head, parts: Iterable[tuple[U64, U64]], rare: I64) -> Path:
    """Write a run of sorted entries, which come in parts; whole and durable, or not at all.

    REQUIRES: the parts hold `head.count` entries; the offsets span at most SPAN_MAX.
    """
    assert head.stop - head.start <= SPAN_MAX
    descriptor, name = tempfile.mkstemp(suffix=TEMPORARY, dir=folder)
    try:
        with open(descriptor, "wb") as file:
            give_to_owner(folder, descriptor)
            file.seek(_BLOCKS_AT)
            fences, sums = [], []
            for hashes, places in _blocks(parts):
                offsets = (places - np.uint64(head.start << FLAG_BITS)).astype("<u4")
                data = hashes.astype("<u8", copy=False).tobytes() + offsets.tobytes()
                fences.append(int(hashes[0]))
                sums.append(xxhash.xxh3_64_intdigest(data))
                file.write(data)
            words = np.array([*fences, *sums], "<u8").tobytes() + rare.astype("<i8").tobytes()
            file.write(words)
            file.seek(0)
            packed = _packed(head, len(rare))
            file.write(packed + _SUM.pack(_checksum(packed, words)))
            file.flush()
            os.fsync(file.fileno())
        path = folder / file_name(head.start, head.stop)
        os.rename(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    sync_directory(folder)
    return path


def give_to_owner(folder: Path, what: int | Path) -> None:
    """Give what an administrator makes to who owns the folder: else it kept the owner out."""
    owner = os.stat(folder)
    if os.geteuid() == 0 and os.stat(what).st_uid != owner.st_uid:
        os.chown(what, owner.st_uid, owner.st_gid)


def _packed(head: Head, rares: int) -> bytes:
    belongs = head.belongs
    return _HEAD.pack(
        _MAGIC,
        VERSION,
        BLOCK,
        rares,
        belongs.log_id,
        belongs.generation,
        belongs.stream_id,
        head.start,
        head.stop,
        head.count,
        head.mark,
    )


def _blocks(parts: Iterable[tuple[U64, U64]]) -> Iterator[tuple[U64, U64]]:
    """The same entries in parts of BLOCK, the last one of fewer."""
    hashes, places = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    for more_hashes, more_places in parts:
        hashes = np.concatenate([hashes, more_hashes])
        places = np.concatenate([places, more_places])
        whole = len(hashes) // BLOCK * BLOCK
        for at in range(0, whole, BLOCK):
            yield hashes[at : at + BLOCK], places[at : at + BLOCK]
        hashes, places = hashes[whole:], places[whole:]
    if len(hashes):
        yield hashes, places


def _checksum(head: bytes, words: bytes) -> int:
    state = xxhash.xxh3_64(head)
    state.update(words)
    return state.intdigest()
