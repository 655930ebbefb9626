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

from cdc.postgres.values.columnar.windows import WORD, Array, Mask, windows
from eventlog.changes.arrow_texts import bitmap
from eventlog.changes.split import Bytes, Places, Texts

_INLINE_MAX = 12
_LENGTH_BYTES = 4
_ALIKE_MAX = 256
"""Values of one length up to it are copied by numpy, an item each."""

_BUFFER_BITS = 30
TEXT_MAX = (1 << _BUFFER_BITS) - 1
"""The bytes of a text: so each lies within one of the buffers of two GiB that begin each GiB."""

BYTES_MAX = (1 << 31) - 1
"""The bytes of all values that one array holds."""


def cut_up(texts: Texts, longest: int) -> list[Texts]:
    """Cut a column where the bytes of its values exceed what one array holds."""
    if len(texts) * longest <= BYTES_MAX:
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


def require_sound(texts: Texts) -> int:
    """Raise where a value is not within the buffer, or too long: nothing below looks again.

    Returns the length of the longest value.
    """
    starts, lengths, size = texts.starts, texts.lengths, len(texts.data)
    longest = int(lengths.max(initial=0))
    if longest <= min(size, TEXT_MAX):
        # A start below zero is a huge one without a sign.
        last = starts.view(np.uint64).max(initial=0)
        if last <= size - longest:
            return longest
        if last <= size and (starts + lengths).max(initial=0) <= size:
            return longest
    beyond = (starts < 0) | (starts > size - lengths)
    if (beyond & (lengths >= 0)).any():
        raise IndexError(f"a value reaches beyond its buffer of {size} bytes")
    if longest > TEXT_MAX:
        raise ValueError(f"a value has {longest} bytes, and no database holds more than {TEXT_MAX}")
    return longest


def gather(texts: Texts) -> pa.Array:
    """The values as `binary`, nothings as null. REQUIRES: `require_sound`, at most BYTES_MAX."""
    starts, lengths, count = texts.starts, texts.lengths, len(texts)
    if count and lengths.min() >= 0:
        return _gathered(texts.data, starts, lengths)
    valid: Mask = lengths >= 0
    valid_count = int(np.count_nonzero(valid))
    if not valid_count:
        return pa.nulls(count, pa.binary())
    sizes = np.maximum(lengths, 0)
    if 2 * valid_count >= count:
        return _viewed(texts.data, starts, sizes, bitmap(valid)).cast(pa.binary())
    places = np.flatnonzero(valid)
    held = _gathered(texts.data, starts[places], lengths[places])
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
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
    return _viewed(data, starts, lengths, None).cast(pa.binary())


def _viewed(data: Bytes, starts: Places, lengths: Places, valid: pa.Buffer | None) -> pa.Array:
    """The same as views into `data`, with nothings as empty ones that are not valid."""
    long = lengths > _INLINE_MAX if lengths.max() > _INLINE_MAX else None
    if long is not None and (long | (lengths == 0)).all():
        views = np.zeros((len(starts), 4), np.int32)
    else:
        views = _inline_views(data, starts)
    views[:, 0] = lengths
    size = 1 << _BUFFER_BITS
    if long is not None:
        places = (starts & (size - 1)) << 32
        if len(data) > size:
            places |= starts >> _BUFFER_BITS
        np.copyto(views.view("<i8")[:, 1], places, where=long)
    buffers = [
        pa.py_buffer(data[at : at + 2 * size - 1]) for at in range(0, max(len(data), 1), size)
    ]
    return pa.Array.from_buffers(
        pa.binary_view(), len(starts), [valid, pa.py_buffer(views), *buffers]
    )


def _inline_views(data: Bytes, starts: Places) -> Array:
    """Views whose last twelve bytes are those from each start on."""
    before = starts - _LENGTH_BYTES
    if before.min() >= 0:
        return windows(data, before, 2 * WORD).view(np.int32)
    first = np.flatnonzero(before < 0)
    views = windows(data, np.maximum(before, 0), 2 * WORD).view(np.int32)
    views[first, 1:] = windows(data, np.maximum(starts[first], 0), 2 * WORD).view(np.int32)[:, :3]
    return views


def as_strings(values: pa.Array) -> pa.Array:
    """The same bytes as `string`. Raises ArrowInvalid where some value is not UTF-8."""
    held = values.buffers()[2]
    if values.offset or held is None:
        return values.cast(pa.string())
    is_ascii = np.frombuffer(held, np.uint8).max(initial=0) < 128
    return values.view(pa.string()) if is_ascii else values.cast(pa.string())
