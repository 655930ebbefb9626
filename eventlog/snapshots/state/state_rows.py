"""Rows of a state: whole columns of some of its rows, over one buffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventlog.changes.gathering import gathered
from eventlog.changes.split import Bytes, Places, Texts

_SPARSE = 4
"""A buffer of more than this many times the bytes that are used of it is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRows:
    """Rows with their offsets, which ascend; `starts` and `lengths` are of (columns, rows).

    The columns are those that were asked for.
    """

    offsets: Places
    data: Bytes
    starts: Places
    lengths: Places

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def text_bytes(self) -> int:
        """The bytes of all values."""
        return int(np.maximum(self.lengths, 0).sum())

    def texts(self, column: int) -> Texts:
        """The values of one of the columns."""
        return Texts(data=self.data, starts=self.starts[column], lengths=self.lengths[column])

    def slice(self, start: int, stop: int) -> StateRows:
        """The rows at the places `[start, stop)`."""
        return StateRows(
            offsets=self.offsets[start:stop],
            data=self.data,
            starts=self.starts[:, start:stop],
            lengths=self.lengths[:, start:stop],
        )

    def compact(self) -> StateRows:
        """The same over a buffer of nothing else, where it is mostly unused."""
        if len(self.data) <= _SPARSE * self.text_bytes + 4096:
            return self
        width, count = self.starts.shape
        data, starts = gathered(self.data, self.starts.ravel(), self.lengths.ravel())
        return StateRows(
            offsets=self.offsets,
            data=data,
            starts=starts.reshape(width, count),
            lengths=self.lengths,
        )


def joined_rows(parts: Sequence[StateRows]) -> StateRows:
    """Rows one behind the other. REQUIRES: there are some."""
    if len(parts) == 1:
        return parts[0]
    width = len(parts[0].starts)
    starts = np.empty((width, sum(map(len, parts))), np.int64)
    at = base = 0
    for part in parts:
        np.add(part.starts, base, out=starts[:, at : at + len(part)])
        at += len(part)
        base += len(part.data)
    return StateRows(
        offsets=np.concatenate([part.offsets for part in parts]),
        data=np.concatenate([part.data for part in parts]),
        starts=starts,
        lengths=np.concatenate([part.lengths for part in parts], axis=1),
    )


def batched(parts: Iterable[StateRows], *, max_rows: int, max_bytes: int) -> Iterator[StateRows]:
    """The same rows by `max_rows`; fewer where values are long, and at the end."""
    held: list[StateRows] = []
    rows = size = 0
    for part in parts:
        found = part.compact()
        held.append(found)
        rows += len(found)
        size += len(found.data) + 16 * found.starts.size
        if rows < max_rows and size < max_bytes:
            continue
        whole = joined_rows(held)
        at = 0
        while rows - at >= max_rows:
            yield whole.slice(at, at + max_rows)
            at += max_rows
        held, rows, size = [], rows - at, 0
        if rows:
            rest = whole.slice(at, at + rows)
            if len(whole.data) >= max_bytes:
                yield rest
                rows = 0
            else:
                held = [rest.compact()]
                size = len(held[0].data) + 16 * rest.starts.size
    if rows:
        yield joined_rows(held)


def contains_mask(ascending: Places, values: Places) -> npt.NDArray[np.bool_]:
    """Which of the values are in an ascending array."""
    if not len(ascending):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: npt.NDArray[np.bool_] = ascending[at] == values
    return found
