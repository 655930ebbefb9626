"""Payload bodies: many records under one codec, immutable once stored (D5).

::

    0    4 5 6     8      12     16          24            32          40
    +----+-+-+-----+------+------+-----------+-------------+-----------+------------+---------+
    |EVLB|v|z|codec|count | zero | raw bytes | stored bytes| xxh3-64   | ends u32×n | records |
    +----+-+-+-----+------+------+-----------+-------------+-----------+------------+---------+

Little-endian. `z` is the compression (0: none). `ends` are the records' end positions, counted
from the first record's start. `raw bytes` counts ends and records before compression, `stored
bytes` after it. The checksum covers the first 32 bytes and everything after the header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from eventlog.errors import DamagedLog, LogVersionError

PART_BYTES = 64 * 4096 - 16
"""A body is cut into parts of this size: one size class in LMDB (a value plus its page header)."""

HEADER_BYTES = 40
BODY_BYTES_MAX = 2**32 - 1
"""Positions are u32. The largest record of a source (1 GB in Postgres) fits; more is refused."""

_MAGIC = b"EVLB"
_VERSION = 1
_HEAD = struct.Struct("<4sBBHIIQQ")
_SUM = struct.Struct("<Q")

Positions = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """An encoded payload, ready to be stored."""

    codec: int
    count: int
    checksum: int
    data: bytes

    def parts(self) -> Iterator[bytes]:
        """The stored values, each of PART_BYTES but the last."""
        if len(self.data) <= PART_BYTES:
            yield self.data
            return
        for start in range(0, len(self.data), PART_BYTES):
            yield self.data[start : start + PART_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A decoded payload: `data` holds the records end to end, `ends` where each one ends."""

    codec: int
    ends: Positions
    data: bytes

    def records(self, slots: Sequence[int] | range) -> list[bytes]:
        """The records at these places."""
        ends = self.ends.tolist()
        data = self.data
        return [data[ends[s - 1] if s else 0 : ends[s]] for s in slots]


def part_count(body_bytes: int) -> int:
    """How many parts a body of that size is cut into."""
    return max(-(-body_bytes // PART_BYTES), 1)


def fits_one_part(*, records: int, records_bytes: int) -> bool:
    """Tell whether that many records of that size make a body of a single part."""
    return HEADER_BYTES + 4 * records + records_bytes <= PART_BYTES


def encode(codec: int, ends: Positions, data: bytes) -> Body:
    """Build the body of one payload.

    REQUIRES: `ends` ascends and its last element is `len(data)`.
    """
    count = len(ends)
    size = 4 * count + len(data)
    if size > BODY_BYTES_MAX:
        raise ValueError(f"a payload of {size} bytes passes the limit of {BODY_BYTES_MAX}")
    head = _HEAD.pack(_MAGIC, _VERSION, 0, codec, count, 0, size, size)
    packed_ends = ends.astype("<u4", copy=False).tobytes()
    checksum = _checksum(head, packed_ends, data)
    body = b"".join((head, _SUM.pack(checksum), packed_ends, data))
    return Body(codec=codec, count=count, checksum=checksum, data=body)


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
    if version != _VERSION or compression != 0:
        raise LogVersionError(
            f"{where} has version {version} and compression {compression}, unknown here",
            hint="read this log with a newer version of eventlog-cdc",
        )
    records_at = HEADER_BYTES + 4 * count
    if raw != stored or records_at > len(body):
        raise _damaged(where, "its record boundaries contradict its length")
    ends = np.frombuffer(body, "<u4", count, HEADER_BYTES)
    if (int(ends[-1]) if count else 0) != len(body) - records_at:
        raise _damaged(where, "its record boundaries contradict its length")
    return Payload(codec=codec, ends=ends, data=body[records_at:])


def _checksum(*pieces: bytes | memoryview) -> int:
    state = xxhash.xxh3_64()
    for piece in pieces:
        state.update(piece)
    return state.intdigest()


def _damaged(where: str, why: str) -> DamagedLog:
    return DamagedLog(
        f"{where} is damaged: {why}",
        hint="records outside it can still be read; restore the directory from a copy",
    )


def stored_checksum(body: bytes) -> int:
    """The checksum that a whole body carries."""
    (checksum,) = _SUM.unpack_from(body, 32)
    return int(checksum)
