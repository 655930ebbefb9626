"""Links: which record made the row that another record changes, found for all of them at once.

A record may *take* a row away from its key (an update, a delete) and *put* one there (all but
deletes). Sorted by key, then by offset, a record's row before it is what stands next to it::

    key 7    put 0 │ take 3 · put 3 │ take 9                   insert, update, delete
    key 8    put 1 │ take 5                                    ... and an update that gives it
    key 9    put 5                                             the key 9

`before[i]` is the place of the record that made the row which record i takes, -1 where the log has
none. `ends[i]` is the offset of the record that took, replaced or swept away what record i put: its
own where it put nothing, FOR_EVER where it stands. Tables without one key all along are linked row
by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import ABSENT, RESETS, UNCHANGED, Op, RawChange
from eventlog.changes.fold import Row, moved_row
from eventlog.changes.schema import Schema
from eventlog.changes.split import IS_UNCHANGED, OP_NUMBER, Texts, joined
from eventlog.snapshots.seen.codes import Codes, coded
from eventlog.snapshots.seen.gathering import Identity, TableRecords

I64 = npt.NDArray[np.int64]
Walk: TypeAlias = Callable[[], Iterator[tuple[int, RawChange, Schema | None]]]
"""The records of the table again, one by one: offset, raw change, schema version."""

FOR_EVER = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """How the records of a table hang together; both int64, by record."""

    before: I64
    ends: I64


def linked(records: TableRecords, walk: Walk) -> Links:
    """Link the records of one table.

    A copy that begins sweeps all rows away, for they are unknown until they come again.
    """
    if records.identity is Identity.KEY:
        return _by_key(records, through_copies=False)
    if records.identity is Identity.NOTHING:
        return as_inserts(records)
    return _by_row(records, walk)


def linked_through_copies(records: TableRecords) -> Links | None:
    """Links where a row that a copy brings again goes on where it was, found by its key.

    None where they are those of `linked`: nothing was copied, or there is no key.
    """
    copied = len(records.copies) > 0 or (records.ops == OP_NUMBER[Op.READ]).any()
    if records.identity is not Identity.KEY or not copied:
        return None
    return _by_key(records, through_copies=True)


def as_inserts(records: TableRecords) -> Links:
    """Links of rows that nothing tells apart: each that came stands until all are swept away."""
    none = np.full(len(records), -1, np.int64)
    ends = _swept(records, none, through_copies=False)
    never = records.updates | records.deletes
    ends[never] = records.offsets[never]
    return Links(before=none, ends=ends)


def _by_key(records: TableRecords, *, through_copies: bool) -> Links:
    count = len(records)
    puts, takes = _keys(records)
    if not through_copies:
        takes[records.ops == OP_NUMBER[Op.READ]] = -1
    putting = np.flatnonzero(~records.deletes & (puts >= 0))
    taking = np.flatnonzero(takes >= 0)
    # One number says key, record, and take before put; sorting it leaves nothing to look up.
    bits = (2 * count).bit_length()
    keys = np.concatenate(
        [(takes[taking] << bits) | (2 * taking), (puts[putting] << bits) | (2 * putting + 1)]
    )
    keys.sort()
    record = (keys & ((1 << bits) - 1)) >> 1
    is_put = (keys & 1).astype(bool)
    follows = is_put[:-1] & ((keys[1:] >> bits) == (keys[:-1] >> bits))
    first, second = record[:-1][follows], record[1:][follows]
    taker = ~is_put[1:][follows]
    ended_by = np.full(count, -1, np.int64)
    ended_by[first] = second
    ends = _swept(records, ended_by, through_copies=through_copies)
    ends[records.deletes] = records.offsets[records.deletes]
    before = np.full(count, -1, np.int64)
    before[second[taker]] = first[taker]
    at = np.flatnonzero(before >= 0)
    before[at[ends[before[at]] != records.offsets[at]]] = -1  # swept away in between
    return Links(before=before, ends=ends)


def _keys(records: TableRecords) -> tuple[Codes, Codes]:
    """For each record, codes of the key that it puts a row at, and of the one it takes it from."""
    count = len(records)
    new, old = coded([_filled_keys(records), records.old_keys])
    takes = new.copy()
    takes[records.old_at] = old
    takes[records.ops == OP_NUMBER[Op.INSERT]] = -1
    assert len(takes) == count
    return new, takes


def _filled_keys(records: TableRecords) -> tuple[Texts, ...]:
    """The keys of new rows; a part of one that was not sent as unchanged is in the old key."""
    return tuple(
        from_old(new, old, records.old_at, np.flatnonzero(new.lengths == IS_UNCHANGED))
        for new, old in zip(records.keys, records.old_keys, strict=True)
    )


def from_old(new: Texts, old: Texts, old_at: I64, places: I64) -> Texts:
    """`new` with its values at these places taken from the old rows, where those have them."""
    if not len(places) or not len(old_at):
        return new
    found = np.minimum(np.searchsorted(old_at, places), len(old_at) - 1)
    there = (old_at[found] == places) & (old.lengths[found] >= -1)
    if not there.any():
        return new
    source = np.arange(len(new))
    source[places[there]] = len(new) + found[there]
    return joined([new, old]).take(source)


def _swept(records: TableRecords, ended_by: I64, *, through_copies: bool) -> I64:
    """Offsets that end rows, given the records that do (-1: none): a sweep may come before."""
    offsets = records.offsets
    ends = np.where(ended_by < 0, FOR_EVER, offsets[ended_by]) if len(offsets) else ended_by
    sweeps = records.truncates
    if not through_copies:
        sweeps = np.sort(np.concatenate([sweeps, records.copies]))
    sweeps = np.append(sweeps, FOR_EVER)
    return np.minimum(ends, sweeps[np.searchsorted(sweeps, offsets)])


def _by_row(records: TableRecords, walk: Walk) -> Links:
    links = Links(
        before=np.full(len(records), -1, np.int64),
        ends=records.offsets.copy(),
    )
    linker = _RowLinker(links)
    place = 0
    for offset, raw, schema in walk():
        if raw.new is None and raw.old is None:
            linker.apply_rare(offset, raw)
        else:
            assert schema is not None and offset == records.offsets[place]
            linker.apply(place, offset, raw, schema)
            place += 1
    return links


class _RowLinker:
    """The rows of a table as `TableFold` has them, and the places of the records that made them."""

    def __init__(self, links: Links) -> None:
        self._before, self._ends = links.before, links.ends
        self._schema: Schema | None = None
        self._rows: dict[Any, list[tuple[int, Row]]] = {}

    def apply(self, place: int, offset: int, raw: RawChange, schema: Schema) -> None:
        if schema is not self._schema:
            self._switch(schema, offset)
        new, old = raw.new, raw.old
        if raw.op is Op.UPDATE and old is None and schema.key_indexes:
            old = new
        before = None if old is None else self._take(old, offset)
        if before is not None:
            self._before[place] = before[0]
        if new is None:
            return
        if UNCHANGED in new:
            new = _filled(new, None if before is None else before[1], raw.old)
        if raw.op is not Op.UPDATE or self._identity(new) is not None:
            self._put(place, new, offset)

    def apply_rare(self, offset: int, raw: RawChange) -> None:
        if raw.relation is not None and raw.op in RESETS:
            for found in self._rows.values():
                for place, _ in found:
                    self._ends[place] = offset
            self._rows = {}

    def _switch(self, schema: Schema, offset: int) -> None:
        before, self._schema = self._schema, schema
        if before is None:
            return
        rows = sorted(row for found in self._rows.values() for row in found)
        self._rows = {}
        for place, row in rows:
            self._put(place, moved_row(row, before, schema), offset)

    def _identity(self, row: Row) -> Any:
        """What tells the row apart; None where nothing does."""
        assert self._schema is not None
        if self._schema.key_indexes:
            return tuple(row[place] for place in self._schema.key_indexes)
        return row if self._schema.identity == "f" else None

    def _take(self, row: Row, offset: int) -> tuple[int, Row] | None:
        identity = self._identity(row)
        found = None if identity is None else self._rows.get(identity)
        if not found:
            return None
        taken = found.pop()
        self._ends[taken[0]] = offset
        return taken

    def _put(self, place: int, row: Row, offset: int) -> None:
        assert self._schema is not None
        found = self._rows.setdefault(self._identity(row), [])
        if self._schema.key_indexes and found:
            self._ends[found.pop()[0]] = offset
        self._ends[place] = FOR_EVER
        found.append((place, row))


def _filled(new: Row, before: Row | None, old: Row | None) -> Row:
    source = old if before is None else before
    if source is None:
        return new
    return tuple(
        source[place] if value is UNCHANGED and source[place] is not ABSENT else value
        for place, value in enumerate(new)
    )
