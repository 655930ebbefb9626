"""Packed transactions: the four arrays of an entry as differences, transposed and compressed.

::

    length:u32  zstd(bytes of the differences, the lowest bytes of all of them first)

Transactions that follow each other differ little: first slots and transaction numbers by one or
two, positions by some hundred bytes, times by less than a second. Of the 8 bytes of a difference
most are zero, and lie together once they are transposed. What took 28 bytes takes 3 to 8.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

COUNT_MIN = 32
"""Fewer transactions are not packed: they would not save a page."""

_LENGTH = struct.Struct("<I")
_WORDS = 4
_LEVEL = 1

Arrays = tuple[Any, Any, Any, Any]


def pack(
    first: npt.NDArray[np.uint32],
    time: npt.NDArray[np.int64],
    tx: npt.NDArray[np.uint64],
    position: npt.NDArray[np.uint64],
) -> tuple[bytes, ...]:
    """The packed form, in pieces to be joined. Differences wrap around, as their sums will."""
    words = np.empty((_WORDS, len(first)), "<u8")
    arrays: Arrays = first, time, tx, position
    for row, array in zip(words, arrays, strict=True):
        row[:] = array.astype("<i8", copy=False).view("<u8")
    words[:, 1:] -= words[:, :-1].copy()
    planes = words.reshape(-1).view(np.uint8).reshape(-1, 8).T
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes())
    return _LENGTH.pack(len(packed)), packed


def size(value: bytes, at: int) -> int:
    """How many bytes the packed form takes that begins at `at`, as far as it is there."""
    if at + _LENGTH.size > len(value):
        return _LENGTH.size
    (length,) = _LENGTH.unpack_from(value, at)
    return _LENGTH.size + int(length)


def unpack(value: bytes, at: int, length: int, count: int) -> Arrays:
    """The arrays again. Raises ValueError where these bytes are no packed form of `count`."""
    raw_bytes = 8 * _WORDS * count
    packed = memoryview(value)[at + _LENGTH.size : at + length]
    try:
        planes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=raw_bytes)
    except zstandard.ZstdError as error:
        raise ValueError(f"they cannot be decompressed: {error}") from error
    if len(planes) != raw_bytes:
        raise ValueError(f"they have {len(planes)} bytes instead of {raw_bytes}")
    words = np.frombuffer(planes, np.uint8).reshape(8, -1).T.copy().view("<u8")
    sums = np.cumsum(words.reshape(_WORDS, count), axis=1, dtype=np.uint64)
    first, time, tx, position = sums
    return first.astype("<u4"), time.view("<i8"), tx, position
