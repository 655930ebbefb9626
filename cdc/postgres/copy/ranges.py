"""Ranges of row positions in the heaps of a table, and how a range is split.

::

    page 0          page 1          page 2
    +---+---+---    +---+---+---    +---+---+---
    | 1 | 2 | ..    | 1 | 2 | ..    | 1 | 2 | ..      items; (1, 0) stands before all of page 1
    +---+---+---    +---+---+---    +---+---+---
    [(0, 0), (2, 0)) halves into whole pages, a page into parts of items, down to a single row
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from psycopg import sql

ITEMS_MAX = 1200
"""More rows than any page holds, also where pages have 32 KB."""

PARTS = 8
"""Into how many a page is split whose rows are too much for one chunk."""


class Tid(NamedTuple):
    """A row's position in its leaf: (page, item). Items count from 1; 0 is a page's start."""

    page: int
    item: int

    def __str__(self) -> str:
        return f"({self.page},{self.item})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A heap that holds rows of a table. `pages`: how many it had when it was looked at.

    `granted`: the role may read all of it, and not some columns only; `placed`: it may read ctid.
    """

    oid: int
    schema: str
    name: str
    filenode: int
    pages: int
    granted: bool = True
    placed: bool = True

    @property
    def identifier(self) -> sql.Identifier:
        """Its name for a statement, quoted."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The rows at `[low, high)` of a leaf; `high` None: to its end, wherever that is by then."""

    leaf: Leaf
    low: Tid
    high: Tid | None

    @property
    def pages(self) -> int:
        """How many pages it touches, of those that the leaf had when it was looked at."""
        if self.high is None:
            return max(self.leaf.pages - self.low.page, 1)
        return max(self.high.page - self.low.page + (self.high.item > 0), 1)

    @property
    def whole(self) -> bool:
        """Whether it is of whole pages."""
        return self.low.item == 0 and (self.high is None or self.high.item == 0)

    @property
    def single(self) -> bool:
        """Whether it is the place of one row, which must be taken whatever its size."""
        page, item = self.low
        return self.high == Tid(page, item + 1) or (
            self.high == Tid(page + 1, 0) and item >= ITEMS_MAX - 1
        )

    def parts(self) -> tuple[Range, ...]:
        """Smaller ranges that make up this one, in order. REQUIRES: not single."""
        assert not self.single
        low, high = self.low, self.high
        cuts: list[Tid]
        if high is None or Tid(low.page + 1, 0) < high:
            page = low.page + max(self.pages // 2, 1)
            cuts = [low, Tid(page, 0)]
        else:
            last = high.item if high.page == low.page else ITEMS_MAX
            step = max(-(-(last - low.item) // PARTS), 1)
            cuts = [low, *(Tid(low.page, i) for i in range(low.item + step, last, step))]
        stops = [*cuts[1:], high]
        return tuple(
            replace(self, low=start, high=stop) for start, stop in zip(cuts, stops, strict=True)
        )
