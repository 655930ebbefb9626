"""Stored texts as Arrow binary arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from eventlog.changes.gathering import gathered
from eventlog.changes.split import Texts

_GAPS_BYTES_MAX = (1 << 31) - 1


def binary_array(texts: Texts) -> pa.Array:
    """The values as `binary`; a nothing is null.

    Values that lie in order are taken out by Arrow, which sees each gap between two of them as a
    value, too; others are gathered.
    """
    count = len(texts)
    present = texts.lengths >= 0
    if not count or not present.any():
        return pa.nulls(count, pa.binary())
    lengths = np.maximum(texts.lengths, 0)
    # A nothing begins where the value before it ends.
    stops = np.maximum.accumulate(np.where(present, texts.starts + lengths, 0))
    starts = texts.starts
    if not present.all():
        starts = np.where(present, starts, np.maximum(stops, int(starts[present.argmax()])))
        stops = np.where(present, stops, starts)
    in_order = bool((starts[1:] >= stops[:-1]).all()) and len(texts.data) <= _GAPS_BYTES_MAX
    if not in_order:
        data, starts = gathered(texts.data, texts.starts, texts.lengths)
        ends = np.append(starts, len(data)).astype(np.int32)
        return _array(count, ends, data, present)
    bounds = np.empty(2 * count, np.int32)
    bounds[::2], bounds[1::2] = starts, stops
    between = _array(2 * count - 1, bounds, texts.data, None)
    found = between.take(pa.array(np.arange(0, 2 * count, 2, dtype=np.int32)))
    if present.all():
        return found
    _, ends_buffer, data_buffer = found.buffers()
    return pa.Array.from_buffers(pa.binary(), count, [bitmap(present), ends_buffer, data_buffer])


def _array(count: int, ends: np.ndarray, data: np.ndarray, present: np.ndarray | None) -> pa.Array:
    buffers = [
        None if present is None else bitmap(present),
        pa.py_buffer(ends),
        pa.py_buffer(data),
    ]
    return pa.Array.from_buffers(pa.binary(), count, buffers)


def bitmap(present: np.ndarray) -> pa.Buffer | None:
    """Arrow's validity of these; None where all are valid."""
    return None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
