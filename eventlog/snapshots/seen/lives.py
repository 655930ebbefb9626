"""Lives of rows: the records of each row one behind the other, and values carried along them.

::

    life 0    insert 0   update 3   update 5 (new key)   delete 9
    life 1    insert 1   update 4
    order     0 3 5 9  1 4

A value that an update left unchanged is the one that stands before it in its life.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from eventlog.changes.split import IS_ABSENT, IS_UNCHANGED, Texts, joined
from eventlog.snapshots.seen.compacting import taken
from eventlog.snapshots.seen.gathering import TableRecords
from eventlog.snapshots.seen.linking import Links, from_old

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives:
    """The records of a table in the order (life, offset).

    By record: `root`, the first of its life, and `at`, its place in the order. By place in the
    order: `order`, the record, and `begin`, the place where its life begins.
    """

    root: I64
    at: I64
    order: I64
    begin: I64

    def last_with(self, mask: npt.NDArray[np.bool_]) -> I64:
        """By record, the last record of its life up to it where the mask is true.

        REQUIRES: it is true of all that begin a life.
        """
        places = np.arange(len(self.order))
        last = np.maximum.accumulate(np.where(mask[self.order], places, 0))
        return self._by_record(self.order[last])

    def next_with(self, mask: npt.NDArray[np.bool_]) -> I64:
        """By record, the first later one of its life where the mask is true; -1 if none."""
        count = len(self.order)
        if not count:
            return self.order
        places = np.where(mask[self.order], np.arange(count), count)
        first = np.minimum.accumulate(places[::-1])[::-1]
        first = np.append(first[1:], count)
        begin = np.append(self.begin, count)
        found = np.where(begin[first] == self.begin, np.append(self.order, -1)[first], -1)
        return self._by_record(found)

    def _by_record(self, ordered: I64) -> I64:
        found = np.empty_like(ordered)
        found[self.order] = ordered
        return found


def lives_of(links: Links) -> Lives:
    """Follow the links. 32 bytes a record."""
    count = len(links.before)
    places = np.arange(count)
    root = np.where(links.before < 0, places, links.before)
    while True:  # each round doubles how far back the roots reach
        further = root[root]
        if np.array_equal(further, root):
            break
        root = further
    bits = max(count, 1).bit_length()
    order = np.sort((root << bits) | places) & ((1 << bits) - 1)
    at = np.empty_like(order)
    at[order] = places
    return Lives(root=root, at=at, order=order, begin=at[root[order]])


class Rows:
    """The rows of a table as each of its records left them, by column.

    A delete leaves what its row was. A value that the log does not know is IS_ABSENT where the
    source did not send it, IS_UNCHANGED where it sent that it did not change.
    """

    def __init__(self, records: TableRecords, links: Links) -> None:
        self.records = records
        self.links = links
        self._columns: dict[int, Texts] = {}

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def lives(self) -> Lives:
        return lives_of(self.links)

    def values(self, column: int) -> Texts:
        """One column of the rows, by record."""
        found = self._columns.get(column)
        if found is None:
            found = self._columns[column] = self._filled_column(column)
        return found

    def _filled_column(self, column: int) -> Texts:
        records = self.records
        texts = records.new[column]
        own = (texts.lengths != IS_UNCHANGED) & (texts.lengths != IS_ABSENT)
        if own.all():
            return texts
        # What begins a life has nothing before it but what the source sent of it.
        begins = np.flatnonzero(~own & (self.links.before < 0))
        texts = from_old(texts, records.old[column], records.old_at, begins)
        own[begins] = True
        return texts.take(self.lives.last_with(own))

    def values_before(self, column: int, places: I64) -> Texts:
        """What the rows of these records were just before them.

        Where the log has no row before, what the source sent of it, else IS_ABSENT.
        """
        before = self.links.before[places]
        texts, old_at = self.values(column), self.records.old_at
        if not len(old_at):
            return taken(texts, before)
        found = np.minimum(np.searchsorted(old_at, places), len(old_at) - 1)
        sent = (before < 0) & (old_at[found] == places)
        if not sent.any():
            return taken(texts, before)
        both = joined([texts, self.records.old[column]])
        return taken(both, np.where(sent, len(texts) + found, before))
