"""Payload bodies: many records under one codec, immutable once stored (D5).

::

    0    4 5 6     8      12     16          24            32          40
    +----+-+-+-----+------+------+-----------+-------------+-----------+------------+---------+
    |EVLB|v|z|codec|count | zero | raw bytes | stored bytes| xxh3-64   | ends u32×n | records |
    +----+-+-+-----+------+------+-----------+-------------+-----------+------------+---------+

Little-endian. `z` is the compression: 0 none, 1 zstd (one frame over ends and records). `ends` are
the records' end positions, counted from the first record's start. `raw bytes` counts ends and
records before compression, `stored bytes` after it. The checksum covers the first 32 bytes and
everything after the header.

Compressed bodies differ in size. Zeros after the body fill the last part up to one of a few numbers
of pages, so that pages that are freed fit what comes later.

A body may be of 4 GB. A large one is never joined into one piece: what it was made of is hashed,
compressed and cut into parts where it is.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from eventlog.errors import DamagedLog, LogVersionError

PART_BYTES = 64 * 4096 - 16
"""A body is cut into parts of this size: one size class in LMDB (a value plus its page header)."""

HEADER_BYTES = 40
BODY_BYTES_MAX = 2**32 - 1
"""Positions are u32. The largest record of a source (1 GB in Postgres) fits; more is refused."""

NONE, ZSTD = 0, 1
COMPRESS_BYTES_MIN = 2048
"""A body that is smaller shares a page with others: compressed, it would not free one."""

JOIN_BYTES_MAX = 1 << 20
"""A body of no more is one piece: joining costs less than handling several."""

_LEVEL = 1
_STEP_BYTES = 1 << 20
_SIZES = [pages * 4096 - 16 for pages in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)]
_MAGIC = b"EVLB"
_VERSION = 1
_HEAD = struct.Struct("<4sBBHIIQQ")
_SUM = struct.Struct("<Q")
_END = struct.Struct("<I")

Positions = npt.NDArray[np.uint32]
Bytes: TypeAlias = bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """An encoded payload, ready to be stored; `raw_bytes` are its ends and records uncompressed.

    Its bytes are `pieces`, end to end, the header first; `size` is how many.
    """

    codec: int
    count: int
    checksum: int
    pieces: tuple[Bytes, ...]
    size: int
    raw_bytes: int
    compression: int = NONE

    @property
    def data(self) -> bytes:
        """All its bytes, for what is known to be small."""
        return bytes(self.pieces[0]) if len(self.pieces) == 1 else b"".join(self.pieces)

    def parts(self) -> Iterator[bytes]:
        """The stored values, each of PART_BYTES but the last."""
        padding = _padding(self.size) if self.compression else 0
        if self.size + padding <= PART_BYTES:
            yield self.data + bytes(padding)
            return
        part: list[memoryview] = []
        room = PART_BYTES
        for whole in (*self.pieces, bytes(padding)):
            piece = memoryview(whole)
            at = 0
            while at < len(piece):
                part.append(piece[at : at + room])
                at += len(part[-1])
                room -= len(part[-1])
                if not room:
                    yield b"".join(part)
                    part, room = [], PART_BYTES
        if part:
            yield b"".join(part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A decoded payload: `data` holds the records end to end, `ends` where each one ends."""

    codec: int
    ends: Positions
    data: bytes

    def records(self, slots: Sequence[int] | range) -> list[bytes]:
        """The records at these places."""
        # A list of all ends costs as much as to take some tens of them from the array.
        few = len(slots) * 32 < len(self.ends)
        ends: Any = self.ends.data if few else self.ends.tolist()
        data = self.data
        return [data[ends[s - 1] if s else 0 : ends[s]] for s in slots]


def part_count(body_bytes: int) -> int:
    """How many parts a body of that size is cut into."""
    return max(-(-body_bytes // PART_BYTES), 1)


def fits_one_part(*, records: int, records_bytes: int) -> bool:
    """Tell whether that many records of that size make a body of a single part."""
    return HEADER_BYTES + 4 * records + records_bytes <= PART_BYTES


def encode(codec: int, ends: Positions, data: Bytes) -> Body:
    """Build the body of one payload.

    REQUIRES: `ends` ascends and its last element is `len(data)`.
    """
    return _body(codec, len(ends), ends.astype("<u4", copy=False).tobytes(), data)


def encode_one(codec: int, record: bytes) -> Body:
    """Build the body of a payload of one record."""
    return _body(codec, 1, _END.pack(len(record) & 0xFFFFFFFF), record)


def _body(codec: int, count: int, ends: bytes, data: Bytes) -> Body:
    size = len(ends) + len(data)
    if size > BODY_BYTES_MAX:
        raise ValueError(f"a payload of {size} bytes passes the limit of {BODY_BYTES_MAX}")
    head = _HEAD.pack(_MAGIC, _VERSION, NONE, codec, count, 0, size, size)
    checksum = _checksum(head, ends, data)
    return Body(
        codec=codec,
        count=count,
        checksum=checksum,
        pieces=_pieces((head, _SUM.pack(checksum), ends, data), HEADER_BYTES + size),
        size=HEADER_BYTES + size,
        raw_bytes=size,
    )


def compressed(body: Body) -> Body:
    """The body compressed, or as it is where that would save too little to matter."""
    if body.raw_bytes < COMPRESS_BYTES_MIN or body.compression:
        return body
    packed = _packed(body, bytes_max=body.raw_bytes * 7 // 8)
    if packed is None:
        return body
    size = sum(map(len, packed))
    head = _HEAD.pack(_MAGIC, _VERSION, ZSTD, body.codec, body.count, 0, body.raw_bytes, size)
    checksum = _checksum(head, *packed)
    return Body(
        codec=body.codec,
        count=body.count,
        checksum=checksum,
        pieces=_pieces((head, _SUM.pack(checksum), *packed), HEADER_BYTES + size),
        size=HEADER_BYTES + size,
        raw_bytes=body.raw_bytes,
        compression=ZSTD,
    )


def _pieces(pieces: tuple[Bytes, ...], size: int) -> tuple[Bytes, ...]:
    return (b"".join(pieces),) if size <= JOIN_BYTES_MAX else pieces


def _packed(body: Body, *, bytes_max: int) -> list[bytes] | None:
    """What follows the header, as one zstd frame in pieces; None where they pass `bytes_max`."""
    compressor = _local.compressor()
    if len(body.pieces) == 1:
        packed = compressor.compress(memoryview(body.pieces[0])[HEADER_BYTES:])
        return None if len(packed) > bytes_max else [packed]
    stream = compressor.compressobj(size=body.raw_bytes)
    found: list[bytes] = []
    size, skip = 0, HEADER_BYTES
    for piece in body.pieces:
        content, skip = memoryview(piece)[skip:], max(skip - len(piece), 0)
        for start in range(0, len(content), _STEP_BYTES):
            found.append(stream.compress(content[start : start + _STEP_BYTES]))
            size += len(found[-1])
            if size > bytes_max:
                return None
    found.append(stream.flush())
    return None if size + len(found[-1]) > bytes_max else found


def decode(body: bytes, *, where: str) -> Payload:
    """Read a body back; `where` names it in errors.

    Raises DamagedLog, or LogVersionError for a version or compression that is not known here.
    """
    if len(body) < HEADER_BYTES:
        raise _damaged(where, f"it has {len(body)} bytes, fewer than its header")
    magic, version, compression, codec, count, _, raw, stored = _HEAD.unpack_from(body)
    if magic != _MAGIC:
        raise _damaged(where, "its magic bytes are wrong")
    if len(body) != HEADER_BYTES + stored:
        raise _damaged(where, f"it has {len(body)} bytes instead of {HEADER_BYTES + stored}")
    (checksum,) = _SUM.unpack_from(body, 32)
    view = memoryview(body)
    if checksum != _checksum(view[:32], view[HEADER_BYTES:]):
        raise _damaged(where, "its checksum is wrong")
    if version != _VERSION or compression not in (NONE, ZSTD):
        raise LogVersionError(
            f"{where} has version {version} and compression {compression}, unknown here",
            hint="read this log with a newer version of eventlog-cdc",
        )
    packed: Any = view[HEADER_BYTES:]
    if compression == ZSTD:
        try:
            packed = _local.decompressor().decompress(packed, max_output_size=raw)
        except zstandard.ZstdError as error:
            raise _damaged(where, f"it cannot be decompressed: {error}") from error
    if raw != len(packed) or 4 * count > raw:
        raise _damaged(where, "its record boundaries contradict its length")
    ends = np.frombuffer(packed, "<u4", count)
    if (int(ends[-1]) if count else 0) != raw - 4 * count:
        raise _damaged(where, "its record boundaries contradict its length")
    return Payload(codec=codec, ends=ends, data=bytes(packed[4 * count :]))


class _Local(threading.local):
    """Compressors of a thread: they are no thread's but their maker's."""

    def compressor(self) -> zstandard.ZstdCompressor:
        found: zstandard.ZstdCompressor | None = getattr(self, "_compressor", None)
        if found is None:
            found = self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        return found

    def decompressor(self) -> zstandard.ZstdDecompressor:
        found: zstandard.ZstdDecompressor | None = getattr(self, "_decompressor", None)
        if found is None:
            found = self._decompressor = zstandard.ZstdDecompressor()
        return found


_local = _Local()


def _padding(size: int) -> int:
    """Zeros that bring the last part of a compressed body up to a size of _SIZES."""
    last = size % PART_BYTES if size > PART_BYTES else size
    if last < COMPRESS_BYTES_MIN:
        return 0
    return _SIZES[bisect_left(_SIZES, last)] - last


def _checksum(*pieces: Bytes) -> int:
    state = xxhash.xxh3_64()
    for piece in pieces:
        state.update(piece)
    return state.intdigest()


def _damaged(where: str, why: str) -> DamagedLog:
    return DamagedLog(
        f"{where} is damaged: {why}",
        hint="records outside it can still be read; `eventlog repair` drops what is damaged",
    )


def stored_checksum(body: bytes) -> int:
    """The checksum that a whole body carries."""
    (checksum,) = _SUM.unpack_from(body, 32)
    return int(checksum)
