"""Columns of bytea: `\\x` and two hexadecimal digits for each byte, all pairs looked up at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc.postgres.values.columnar.gather import gather
from cdc.postgres.values.columnar.windows import Mask
from eventlog.changes.arrow_texts import bitmap
from eventlog.changes.split import Texts

_PREFIX = b"\\x"
_NO_BYTE = 256


def read_hex(texts: Texts) -> tuple[pa.Array, Mask]:
    """The values as `binary`, null where nothing fits, and which texts did (nothings do not)."""
    good: Mask = texts.lengths >= len(_PREFIX)
    good &= texts.lengths % 2 == 0
    for place, char in enumerate(_PREFIX):
        rows = np.flatnonzero(good)
        good[rows] = texts.data[texts.starts[rows] + place] == char
    count = len(texts)
    if not good.any():
        return pa.nulls(count, pa.binary()), good
    digits = gather(
        Texts(
            data=texts.data,
            starts=texts.starts + len(_PREFIX),
            lengths=np.where(good, texts.lengths - len(_PREFIX), -1),
        )
    )
    _, offset_buffer, digit_buffer = digits.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, count + 1) // 2
    pair_count = int(offsets[-1])
    pairs = np.frombuffer(digit_buffer or b"", "<u2", pair_count)
    found = _bytes_of_pairs().take(pairs)
    wrong = np.flatnonzero(found == _NO_BYTE)
    good[np.searchsorted(offsets, wrong, "right") - 1] = False
    held = found.astype(np.uint8)
    buffers = [bitmap(good), pa.py_buffer(offsets), pa.py_buffer(held)]
    return pa.Array.from_buffers(pa.binary(), count, buffers), good


@cache
def _bytes_of_pairs() -> npt.NDArray[np.uint16]:
    """By two characters as a number of 16 bits: the byte that they write, or _NO_BYTE."""
    table = np.full(1 << 16, _NO_BYTE, np.uint16)
    digits = [(ord(char), int(char, 16)) for char in "0123456789abcdefABCDEF"]
    for high_char, high in digits:
        for low_char, low in digits:
            table[high_char | low_char << 8] = high << 4 | low
    return table
