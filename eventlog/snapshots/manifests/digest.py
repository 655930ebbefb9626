"""The digest of a table: SHA-256 over its stored texts, in a form that no library changes (D15).

::

    table   = SHA-256( "EVLD" version:u32 rows:u64 columns:u32 offsets:32 column:32 * columns )
    offsets = SHA-256( offset:i64 * rows )
    column  = SHA-256( name type lengths:32 bytes:32 )      name, type = length:u32 UTF-8
    lengths = SHA-256( length:i32 * rows )                  -1: NULL
    bytes   = SHA-256( the texts end to end )

Numbers are little-endian; docs/format.md has a worked example. Each column has two running hashes,
so how the rows are cut into pieces changes nothing, whole buffers are hashed, and a column that
differs can be named.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1
_HEAD = struct.Struct("<4sIQI")
_LENGTH_MAX = 2**31 - 1

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What was digested: rows, the bytes of their texts, and digests as 64 hexadecimal digits.

    `table` stands for all; `offsets` and `columns`, one for each, tell where two tables differ.
    """

    rows: int
    bytes: int
    table: str
    offsets: str
    columns: tuple[str, ...]


class TableDigest:
    """Digests the rows of a table, piece by piece, in order.

    `columns` are names and types as they enter the digest. Not for several threads.
    """

    def __init__(self, columns: Sequence[tuple[str, str]]) -> None:
        self._columns = [_Column(name, kind) for name, kind in columns]
        self._offsets = hashlib.sha256()
        self._rows = 0

    def add(self, offsets: Offsets, columns: Sequence[Any]) -> None:
        """Take in rows: their offsets, and an Arrow array of texts (null is NULL) for each column.

        REQUIRES: binary or string arrays, as many as columns, as long as `offsets`.
        """
        assert len(columns) == len(self._columns), "one array for each column"
        self._rows += len(offsets)
        self._offsets.update(np.ascontiguousarray(offsets, "<i8").data)
        for column, array in zip(self._columns, columns, strict=True):
            column.add(array, len(offsets))

    def done(self) -> Digest:
        """The digest of all rows so far."""
        offsets = self._offsets.hexdigest()
        columns = tuple(column.digest().hex() for column in self._columns)
        return Digest(
            rows=self._rows,
            bytes=sum(column.size for column in self._columns),
            table=combined(self._rows, offsets, columns),
            offsets=offsets,
            columns=columns,
        )


def combined(rows: int, offsets: str, columns: Sequence[str]) -> str:
    """The digest of a table, of the number of its rows and the digests of its parts.

    REQUIRES: 0 <= rows < 2**64, and digests of 64 hexadecimal digits.
    """
    head = _HEAD.pack(b"EVLD", VERSION, rows, len(columns))
    parts = [bytes.fromhex(digest) for digest in (offsets, *columns)]
    return hashlib.sha256(b"".join([head, *parts])).hexdigest()


class _Column:
    def __init__(self, name: str, kind: str) -> None:
        self._head = b"".join(map(_text, (name, kind)))
        self._lengths = hashlib.sha256()
        self._bytes = hashlib.sha256()
        self.size = 0

    def add(self, array: Any, rows: int) -> None:
        chunks = array.chunks if hasattr(array, "chunks") else [array]
        for chunk in chunks:
            lengths, data = lengths_and_bytes(chunk)
            rows -= len(lengths)
            self.size += len(data)
            self._lengths.update(lengths.data)
            self._bytes.update(data)
        assert rows == 0, "each array is as long as the offsets"

    def digest(self) -> bytes:
        parts = self._head, self._lengths.digest(), self._bytes.digest()
        return hashlib.sha256(b"".join(parts)).digest()


def _text(text: str) -> bytes:
    stored = text.encode()
    return struct.pack("<I", len(stored)) + stored


def lengths_and_bytes(array: Any) -> tuple[npt.NDArray[np.int32], memoryview]:
    """The length of each text of an array, -1 for null, and the texts end to end."""
    ends, data = _layout(array)
    lengths = np.diff(ends)
    if len(lengths) and int(lengths.max()) > _LENGTH_MAX:
        raise ValueError("a text of 2 GiB or more has no digest")
    found = lengths.astype("<i4")
    if array.null_count:
        null = ~array.is_valid().to_numpy(zero_copy_only=False)
        if found[null].any():  # Arrow leaves open what lies under a null.
            ends, data = _layout(array.drop_null())
        found[null] = -1
    return found, data[int(ends[0]) : int(ends[-1])]


def _layout(array: Any) -> tuple[npt.NDArray[Any], memoryview]:
    """Where the texts of an array begin and end, and the buffer that they lie in."""
    import pyarrow as pa

    width: np.dtype[Any]
    if pa.types.is_binary(array.type) or pa.types.is_string(array.type):
        width = np.dtype("<i4")
    elif pa.types.is_large_binary(array.type) or pa.types.is_large_string(array.type):
        width = np.dtype("<i8")
    else:
        array, width = array.cast(pa.large_binary()), np.dtype("<i8")
    _, places, data = array.buffers()
    if not len(array) or places is None:
        return np.zeros(1, width), memoryview(b"")
    ends = np.frombuffer(places, width, len(array) + 1, array.offset * width.itemsize)
    return ends, memoryview(b"" if data is None else data).cast("B")
