"""Texts as an Arrow array: every value copied into one buffer, by way of Arrow's string views.

Where all are equally long, one fancy index of items that wide copies them.

::

    a view   | length | first 4 bytes | buffer | offset |      of a text longer than 12 bytes
             | length | the text, up to 12 bytes        |      of a shorter one

Views need no copy of long texts, and those of short ones come with one fancy index; Arrow then
makes a plain array of them all at the speed of memory.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cdc.postgres.values.columnar.windows import WORD, Mask, windows
from eventlog.changes.split import Bytes, Places, Texts

_INLINE_MAX = 12
_ALIKE_MAX = 256
"""Values of one length up to it are copied by numpy, an item each."""

_BUFFER_BITS = 30
TEXT_MAX = (1 << _BUFFER_BITS) - 1
"""The bytes of a text: so each lies within one of the buffers of two GiB that begin each GiB."""

BYTES_MAX = (1 << 31) - 1
"""The bytes of all values that one array holds."""


def cut_up(texts: Texts) -> list[Texts]:
    """Cut a column where the bytes of its values exceed what one array holds."""
    if len(texts) * int(texts.lengths.max(initial=0)) <= BYTES_MAX:
        return [texts]
    ends = np.cumsum(np.maximum(texts.lengths, 0))
    if int(ends[-1]) <= BYTES_MAX:
        return [texts]
    parts, start, before = [], 0, 0
    while start < len(texts):
        stop = int(np.searchsorted(ends, before + BYTES_MAX, "right"))
        stop = max(stop, start + 1)
        parts.append(
            Texts(
                data=texts.data,
                starts=texts.starts[start:stop],
                lengths=texts.lengths[start:stop],
            )
        )
        start, before = stop, int(ends[stop - 1])
    return parts


def require_sound(texts: Texts) -> None:
    """Raise where a value is not within the buffer, or too long: nothing below looks again."""
    starts, lengths, size = texts.starts, texts.lengths, len(texts.data)
    longest = int(lengths.max(initial=0))
    # A start below zero is a huge one without a sign.
    inside = starts.view(np.uint64).max(initial=0) <= size and longest <= min(size, TEXT_MAX)
    if inside and (starts + lengths).max(initial=0) <= size:
        return
    beyond = (starts < 0) | (starts > size - lengths)
    if (beyond & (lengths >= 0)).any():
        raise IndexError(f"a value reaches beyond its buffer of {size} bytes")
    if longest > TEXT_MAX:
        raise ValueError(f"a value has {longest} bytes, and no database holds more than {TEXT_MAX}")


def bitmap(valid: Mask) -> pa.Buffer | None:
    """Arrow's validity of these; None where all are valid."""
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def gather(texts: Texts) -> pa.Array:
    """The values as `binary`, nothings as null. REQUIRES: `require_sound`, at most BYTES_MAX."""
    valid: Mask = texts.lengths >= 0
    count = len(texts)
    if not valid.any():
        return pa.nulls(count, pa.binary())
    starts, lengths = texts.starts, texts.lengths
    if valid.all():
        return _gathered(texts.data, starts, lengths)
    held = _gathered(texts.data, starts[valid], lengths[valid])
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(np.maximum(lengths, 0), out=offsets[1:])
    buffers = [bitmap(valid), pa.py_buffer(offsets), held.buffers()[2]]
    return pa.Array.from_buffers(pa.binary(), count, buffers)


def _gathered(data: Bytes, starts: Places, lengths: Places) -> pa.Array:
    """Values of which none is a nothing, and there is one."""
    longest = int(lengths.max())
    if 0 < longest <= _ALIKE_MAX and longest == lengths.min():
        alike = np.ndarray((len(data) - longest + 1,), f"V{longest}", data, strides=(1,))
        offsets = np.arange(0, longest * len(starts) + 1, longest, dtype=np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(alike[starts])]
        return pa.Array.from_buffers(pa.binary(), len(starts), buffers)
    return _viewed(data, starts, lengths).cast(pa.binary())


def _viewed(data: Bytes, starts: Places, lengths: Places) -> pa.Array:
    """The same as views into `data`."""
    long = lengths > _INLINE_MAX
    if long.all():
        views = np.empty((len(starts), 4), np.int32)
    else:
        views = windows(data, starts - 4, 2 * WORD).view(np.int32)
    views[:, 0] = lengths
    np.copyto(views[:, 2], starts >> _BUFFER_BITS, "same_kind", where=long)
    np.copyto(views[:, 3], starts & ((1 << _BUFFER_BITS) - 1), "same_kind", where=long)
    size = 1 << _BUFFER_BITS
    buffers = [
        pa.py_buffer(data[at : at + 2 * size - 1]) for at in range(0, max(len(data), 1), size)
    ]
    return pa.Array.from_buffers(
        pa.binary_view(), len(starts), [None, pa.py_buffer(views), *buffers]
    )


def as_strings(values: pa.Array) -> pa.Array:
    """The same bytes as `string`. Raises ArrowInvalid where some value is not UTF-8."""
    held = values.buffers()[2]
    if values.offset or held is None:
        return values.cast(pa.string())
    is_ascii = np.frombuffer(held, np.uint8).max(initial=0) < 128
    return values.view(pa.string()) if is_ascii else values.cast(pa.string())
