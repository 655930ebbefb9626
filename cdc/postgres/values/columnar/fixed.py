"""Columns of values of one width: read block by block, with the nothings put aside.

A block's words stay in the processor's cache while they are worked on. Values that a reader does
not take (`fits` false) are left to the exact way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from cdc.postgres.values.columnar.windows import Array, Mask
from eventlog.changes.split import Bytes, Places, Texts

Reader: TypeAlias = Callable[[Bytes, Places, Places], tuple[Array, Mask]]
"""Takes a buffer, starts and lengths of at least one value; gives as many, and which of them fit.

No length is below one, and every value lies within the buffer. What does not fit holds any number.
"""

ROWS_MAX = 16_384
"""Rows in a block."""


def read_fixed(texts: Texts, reader: Reader) -> tuple[Array, Mask]:
    """Read a column of at least one row. Nothings and empty texts are among what does not fit."""
    count = -(-len(texts) // ROWS_MAX)
    if count == 1:
        return _block(texts.data, texts.starts, texts.lengths, reader)
    rows = -(-len(texts) // count)  # A last block of few rows would cost as much as a full one.
    blocks = [
        _block(texts.data, texts.starts[at : at + rows], texts.lengths[at : at + rows], reader)
        for at in range(0, len(texts), rows)
    ]
    values, good = zip(*blocks, strict=True)
    return np.concatenate(values), np.concatenate(good)


def _block(data: Bytes, starts: Places, lengths: Places, reader: Reader) -> tuple[Array, Mask]:
    if lengths.min() > 0:
        return reader(data, starts, lengths)
    held = lengths > 0
    first = int(held.argmax())
    if not held[first]:
        first_value, _ = reader(_STAND_IN, np.zeros(1, np.int64), np.ones(1, np.int64))
        return np.zeros(len(starts), first_value.dtype), held
    # Another row's value stands in for those that are not there, and is masked below.
    values, good = reader(
        data, np.where(held, starts, starts[first]), np.where(held, lengths, lengths[first])
    )
    good &= held
    return values, good


_STAND_IN = np.frombuffer(b"0", np.uint8)


def read_bools(data: Bytes, starts: Places, lengths: Places) -> tuple[Array, Mask]:
    """Whether each text is `t`, and which are `t` or `f`."""
    first = data[starts]
    true: Mask = first == ord("t")
    good: Mask = first == ord("f")
    good |= true
    good &= lengths == 1
    return true, good
