"""Which of many events leave a row behind, found by sorting them by key.

An event is the hash of a key (or of a whole row) and a number: twice the offset, plus one where a
row is put there, so that a record that removes one row and puts another does so in that order.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from eventlog.changes.split import Places
from eventlog.snapshots.state.hashing import NUMBER, Hashes

Mask: TypeAlias = npt.NDArray[np.bool_]

_SPARSE = 3
"""Keys that are numbers are looked up in a table of at most so many places for each event."""


class Grouped(NamedTuple):
    """Places of events in the order of their keys, and where each key begins in that order."""

    order: Places
    first: Mask


def grouped(hashes: Hashes) -> Grouped:
    """Bring equal keys together; events of one key stay in the order that they had."""
    count = len(hashes.first)
    bits = max(count.bit_length(), 1)
    low = np.uint64((1 << bits) - 1)
    # The upper bits of the hash and the place in one word: a plain sort is the fastest there is.
    packed = np.sort((hashes.spread() & ~low) | np.arange(count, dtype=np.uint64))
    order = (packed & low).astype(np.int64)
    same = _same(hashes, order)
    prefix = packed >> np.uint64(bits)
    near = prefix[1:] == prefix[:-1]
    if bool((near & ~same).any()):
        _part_strangers(hashes, order, near, same)
        same = _same(hashes, order)
    return Grouped(order, np.concatenate([np.ones(min(count, 1), np.bool_), ~same]))


def latest(found: Grouped, numbers: Places) -> Places:
    """The places of each key's last event, where that put a row."""
    last = np.ones(len(found.first), np.bool_)
    last[:-1] = found.first[1:]
    places = found.order[last]
    kept: Places = places[(numbers[places] & 1) == 1]
    return kept


def latest_numbers(hashes: Hashes, numbers: Places) -> Places | None:
    """As `latest`, without sorting; None where keys are no numbers, or too far from each other."""
    count = len(numbers)
    if not count or (hashes.second != NUMBER).any():
        return None
    low, high = hashes.first.min(), hashes.first.max()
    if int(high - low) >= _SPARSE * count:
        return None
    last = np.full(int(high - low) + 1, -1, np.int64)
    # Of several values for one place the last one stays.
    last[hashes.first - low] = np.arange(count)
    places = last[last >= 0]
    kept: Places = places[(numbers[places] & 1) == 1]
    return kept


def unmatched(found: Grouped, numbers: Places) -> Places:
    """The places of rows that no later event took away, each taking the last equal row.

    As a stack for each key: a row is gone where the stack, later, is lower than the row stands.
    """
    order, first = found
    count = len(order)
    if not count:
        return order
    puts = (numbers[order] & 1) == 1
    delta = np.where(puts, 1, -1)
    group = np.cumsum(first) - 1
    apart = group * (2 * count + 2)
    total = np.cumsum(delta)
    begin = (total - delta)[first][group]
    height = total - begin
    # Taking from an empty stack does nothing: heights count from the lowest so far.
    lowest = np.minimum.accumulate(height - apart) + apart
    height = height - np.minimum(lowest, 0)
    later = np.minimum.accumulate((height + apart)[::-1])[::-1] - apart
    kept: Places = order[puts & (later == height)]
    return kept


def _same(hashes: Hashes, order: Places) -> Mask:
    one, two = hashes.first[order], hashes.second[order]
    same: Mask = (one[1:] == one[:-1]) & (two[1:] == two[:-1])
    return same


def _part_strangers(hashes: Hashes, order: Places, near: Mask, same: Mask) -> None:
    """Sort out, in place, keys that agree in the upper bits alone."""
    block = np.concatenate([[0], np.cumsum(~near)])
    mixed = np.unique(block[1:][near & ~same])
    at = np.flatnonzero(np.isin(block, mixed))
    places = order[at]
    order[at] = places[np.lexsort((places, hashes.second[places], hashes.first[places]))]
