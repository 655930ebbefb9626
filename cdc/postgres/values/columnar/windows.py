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

    Windows may reach beyond the buffer's end: what is not there is zero. REQUIRES: no place is
    below zero.
    """
    last = len(data) - width
    if last < 0:
        return _outside(data, at, width)
    view = np.ndarray((last + 1,), f"V{width}", data, strides=(1,))
    try:
        return _words(view[at], width)
    except IndexError:
        pass
    # Those of a buffer's last values, mostly: few.
    beyond = np.flatnonzero(at > last)
    found = _words(view[np.minimum(at, last)], width)
    found[beyond] = _outside(data, at[beyond], width)
    return found


def _outside(data: Bytes, at: Places, width: int) -> Words:
    """Byte by byte, for the few windows that reach beyond the buffer."""
    if not len(data):
        return np.zeros((len(at), width // WORD), np.uint64)
    places = np.minimum(at, len(data))[:, None] + np.arange(width)
    found = np.where(places < len(data), data[np.minimum(places, len(data) - 1)], np.uint8(0))
    return _words(found.reshape(-1), width)


def _words(found: Array, width: int) -> Words:
    return found.view("<u8").reshape(-1, width // WORD)
