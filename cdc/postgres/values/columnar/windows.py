"""Windows: the bytes around each value of a column, fetched at once as words of eight.

::

    data     ...t....1234.56t....7...         a window may begin and end anywhere: what it holds
               |______|                       beside the value is masked by whoever reads it
               window of the value, its last byte the value's

A view of overlapping items (stride 1) makes one fancy index fetch a window for each row, and a
window of 32 bytes costs no more than one of 8.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from eventlog.changes.split import Bytes, Places

Words: TypeAlias = npt.NDArray[np.uint64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Array: TypeAlias = npt.NDArray[Any]

WORD = 8
"""Bytes in a word. The first byte of a text is the lowest of its word."""


def windows(data: Bytes, at: Places, width: int) -> Words:
    """The `width` bytes from each place of `at`, as words of shape (rows, width / 8).

    Places may lie outside the buffer, on either side: what is not there is zero.
    """
    last = len(data) - width
    if last < 0:
        return _outside(data, at, width)
    view = np.ndarray((last + 1,), f"V{width}", data, strides=(1,))
    if not len(at) or (at.min() >= 0 and at.max() <= last):
        return _words(view[at], width)
    held = np.clip(at, 0, last)
    found = _words(view[held], width)
    beyond = np.flatnonzero(held != at)
    found[beyond] = _outside(data, at[beyond], width)
    return found


def _outside(data: Bytes, at: Places, width: int) -> Words:
    """Byte by byte, for the few windows that reach beyond the buffer."""
    if not len(data):
        return np.zeros((len(at), width // WORD), np.uint64)
    places = at[:, None] + np.arange(width)
    there = (places >= 0) & (places < len(data))
    found = np.where(there, data[np.clip(places, 0, len(data) - 1)], np.uint8(0))
    return _words(found, width)


def _words(found: Array, width: int) -> Words:
    return found.reshape(-1).view("<u8").reshape(-1, width // WORD)
