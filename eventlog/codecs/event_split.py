"""Finding keys and values in the records of events, across all of them at once.

::

    record    = 92 key value
    key       = c0                          nil: no key
              | a0..bf text                 fixstr: the length is in the low five bits
              | d9 n:u8 text | da n:u16 text | db n:u32 text
    value     = whatever is left of the record; c0 under a key: a tombstone

Numbers are big-endian. What a record says about lengths is held against where it ends.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eventlog.changes.event_split import EventTexts
from eventlog.changes.split import IS_NULL, Bytes, Places, Texts

_PAIR, _NIL = 0x92, 0xC0
_FIXSTR, _FIXSTR_END = 0xA0, 0xC0
_SIZED = {0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Heads of longer texts, and how many bytes of length follow."""

_HEAD_BYTES = 6


def split_events(data: Bytes, starts: Places, stops: Places) -> EventTexts:
    """Split the records at `[starts, stops)`. REQUIRES: these lie in `data`, in order."""
    padded = np.concatenate([data, np.zeros(_HEAD_BYTES, np.uint8)])
    kind = padded[starts + 1]
    odd = (padded[starts] != _PAIR) | (stops - starts < 3)
    sizes = kind.astype(np.int64) - _FIXSTR
    heads = np.full(len(starts), 2, np.int64)
    unusual = (kind < _FIXSTR) | (kind >= _FIXSTR_END)
    if unusual.any():
        _measure(padded, starts, kind, np.flatnonzero(unusual), sizes=sizes, heads=heads)
        odd |= sizes < IS_NULL
    begins = starts + heads
    ends = begins + np.maximum(sizes, 0)
    odd |= ends >= stops
    last = padded[np.minimum(ends, len(data))]
    tombstone = ~odd & (sizes != IS_NULL) & (last == _NIL) & (ends + 1 == stops)
    return EventTexts(
        keys=Texts(data=data, starts=begins, lengths=np.where(odd, IS_NULL, sizes)),
        values=Texts(data=data, starts=ends, lengths=np.where(odd, IS_NULL, stops - ends)),
        tombstone=tombstone,
        odd=odd,
    )


def _measure(
    padded: Bytes,
    starts: Places,
    kind: Bytes,
    which: Places,
    *,
    sizes: npt.NDArray[np.int64],
    heads: npt.NDArray[np.int64],
) -> None:
    """Put in place sizes and heads of keys that are no short text; IS_NULL - 1 for no key."""
    found = kind[which]
    sizes[which] = np.where(found == _NIL, IS_NULL, IS_NULL - 1)
    for head, width in _SIZED.items():
        rows = which[found == head]
        if len(rows):
            size = np.zeros(len(rows), np.int64)
            for at in range(width):
                size = size << 8 | padded[starts[rows] + 2 + at]
            sizes[rows], heads[rows] = size, 2 + width
