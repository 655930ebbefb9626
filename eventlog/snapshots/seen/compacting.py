"""Columns of texts, kept with as few of the bytes around them as is worth while.

::

    split    ...I....7....12.50...I....8....9.99...          a payload, whole
    compact  12.509.99                                       one column of it, end to end

A split column points into the payload that it came from. Where little of a payload is needed, its
columns are moved out, and the payload is let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import ABSENT
from eventlog.changes.split import IS_ABSENT, Texts, repeated, texts_of

if TYPE_CHECKING:
    import pyarrow as pa

LONG_BYTES = 64
"""From this mean length on, values are moved one by one: an index for each byte costs more."""

WORD_BYTES = 8

SPARSE = 4
"""Columns are moved out of a buffer that has more than so many times their bytes."""


def compact(texts: Texts) -> Texts:
    """The same values end to end, in their order."""
    lengths = np.maximum(texts.lengths, 0)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    size = int(ends[-1]) if len(ends) else 0
    if size >= LONG_BYTES * len(lengths):
        data = texts.data.data
        pairs = zip(texts.starts.tolist(), lengths.tolist(), strict=True)
        moved = b"".join([data[start : start + length] for start, length in pairs])
        return Texts(data=np.frombuffer(moved, np.uint8), starts=starts, lengths=texts.lengths)
    at = np.repeat(texts.starts - starts, lengths)
    at += np.arange(size)
    return Texts(data=texts.data[at], starts=starts, lengths=texts.lengths)


def kept(columns: Sequence[Texts]) -> list[Texts]:
    """Columns of one payload, moved out of it where they are but a small part."""
    buffers = {id(texts.data): len(texts.data) for texts in columns}
    needed = sum(int(np.maximum(texts.lengths, 0).sum()) for texts in columns)
    if sum(buffers.values()) <= SPARSE * needed:
        return list(columns)
    return [compact(texts) for texts in columns]


def one_behind_the_other(parts: Sequence[Sequence[Texts]], width: int) -> list[Texts]:
    """`width` columns in parts, joined over one buffer; what columns of a part share comes once."""
    begins: dict[int, int] = {}
    buffers = []
    size = 0
    for texts in (texts for part in parts for texts in part):
        if id(texts.data) not in begins:
            begins[id(texts.data)] = size
            buffers.append(texts.data)
            size += len(texts.data)
    if not buffers:
        return [texts_of([])] * width
    # Some bytes behind the last value: codes are made of whole words.
    data = np.concatenate([*buffers, np.zeros(WORD_BYTES, np.uint8)])
    return [
        Texts(
            data=data,
            starts=np.concatenate([texts.starts + begins[id(texts.data)] for texts in column]),
            lengths=np.concatenate([texts.lengths for texts in column]),
        )
        for column in zip(*parts, strict=True)
    ]


def taken(texts: Texts, places: npt.NDArray[np.int64]) -> Texts:
    """The values at these places; IS_ABSENT where the place is -1."""
    missing = places < 0
    if not missing.any():
        return texts.take(places)
    if missing.all():
        return repeated(ABSENT, len(places))
    found = texts.take(np.maximum(places, 0))
    found.lengths[missing] = IS_ABSENT
    return found


def binary(texts: Texts) -> pa.Array:
    """The values as Arrow binary; every nothing is null."""
    import pyarrow as pa

    packed = compact(texts)
    count = len(packed)
    ends = np.zeros(count + 1, np.int64)
    np.cumsum(np.maximum(packed.lengths, 0), out=ends[1:])
    valid = np.packbits(packed.lengths >= 0, bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(ends), pa.py_buffer(packed.data)]
    return pa.Array.from_buffers(pa.large_binary(), count, buffers)
