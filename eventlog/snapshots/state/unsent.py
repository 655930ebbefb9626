"""Unsent values: columns that an update left unchanged, and which earlier record has them.

::

    offset 3   insert  7  'long text'
    offset 5   update  7  (unchanged)     5 ──▶ 3
    offset 9   update  7  (unchanged)     9 ──▶ 5 ──▶ 3, and so 9 ──▶ 3

A source is the offset of the record that has the value; UNKNOWN where the log never saw it. Where
keys are folded in several passes, a row whose key changed may have come from another pass: its
source is an alias, -2 - offset, of the entry that the other pass finds, until all are at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventlog.changes.schema import Schema
from eventlog.changes.schemas import places
from eventlog.changes.split import Places
from eventlog.snapshots.state.state_rows import contains_mask

UNKNOWN = -1
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Unsent:
    """For the row at each offset, the column that was not sent, and the source of its value."""

    offsets: Places
    columns: Places
    sources: Places

    @classmethod
    def none(cls) -> Unsent:
        """No such value."""
        return cls(_NONE, _NONE, _NONE)

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, which: npt.NDArray[np.bool_] | Places) -> Unsent:
        """Some of them."""
        return Unsent(self.offsets[which], self.columns[which], self.sources[which])

    def ordered(self) -> Unsent:
        """By offset, then column."""
        return self.take(np.lexsort((self.columns, self.offsets)))

    def of_rows(self, offsets: Places) -> Unsent:
        """Those of the rows at these offsets, which ascend."""
        return self.take(contains_mask(offsets, self.offsets))

    def moved(self, source: Schema, target: Schema) -> Unsent:
        """The same under the columns of another schema version; what that lacks is left out."""
        if not len(self.offsets):
            return self
        to = np.full(len(source.columns), -1, np.int64)
        for place, found in enumerate(places(source, target)):
            if found is not None:
                to[found] = place
        columns = to[self.columns]
        return Unsent(self.offsets, columns, self.sources).take(columns >= 0)


def merged(parts: list[Unsent]) -> Unsent:
    """All of them, ordered."""
    if not parts:
        return Unsent.none()
    return Unsent(
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.sources for part in parts]),
    ).ordered()


def resolved(fresh: Unsent, known: Unsent, *, width: int) -> Unsent:
    """Follow the sources of `fresh` through each other and through `known`, to where a value is.

    A source that is itself a row of `known` or `fresh` whose column was not sent stands for that
    row's own source. REQUIRES: a source is less than its offset; there are `width` columns.
    """
    width = max(width, 1)
    codes = fresh.offsets * width + fresh.columns
    order = np.argsort(codes)
    codes, sources = codes[order], fresh.sources[order]
    wanted = np.where(sources >= 0, sources * width + fresh.columns[order], -1)
    if len(known.offsets):
        known_codes = known.offsets * width + known.columns
        by_code = np.argsort(known_codes)
        known_codes = known_codes[by_code]
        at = np.minimum(np.searchsorted(known_codes, wanted), len(known_codes) - 1)
        hit = known_codes[at] == wanted
        sources = np.where(hit, known.sources[by_code][at], sources)
    at = np.minimum(np.searchsorted(codes, wanted), max(len(codes) - 1, 0))
    parent = np.where(codes[at] == wanted, at, np.arange(len(codes))) if len(codes) else at
    while True:
        above = parent[parent]
        if bool((above == parent).all()):
            break
        parent = above
    return Unsent(fresh.offsets[order], fresh.columns[order], sources[parent])


def without_aliases(found: Unsent, crossed: Unsent, *, width: int) -> Unsent:
    """`found`, with each alias replaced by what the entry of `crossed` that it stands for has."""
    width = max(width, 1)
    sources = found.sources.copy()
    if not len(crossed.offsets):
        return found
    crossed = crossed.ordered()
    codes = crossed.offsets * width + crossed.columns
    while True:
        open_ = np.flatnonzero(sources < UNKNOWN)
        if not len(open_):
            return Unsent(found.offsets, found.columns, sources)
        wanted = alias(sources[open_]) * width + found.columns[open_]
        at = np.searchsorted(codes, wanted)
        sources[open_] = crossed.sources[at]


def alias(offset: Places) -> Places:
    """The source that stands for the entry of that offset, and back."""
    return -2 - offset
