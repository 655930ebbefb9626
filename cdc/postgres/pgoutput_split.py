"""Splitting captured changes across rows instead of along them (D3).

::

    at    5      15      25         one read position for each row of a relation
          N t…   N t…    N n…
          └──────┴───────┴───▶      kinds and lengths of a column are read at all positions at once,
                                    then all positions move behind it

Nothing is checked on the way but kinds: a position only grows, so that where it ends exactly at its
record's end, it never left the record; and numpy refuses to read outside of the buffer. Where
anything is amiss, `Amiss` is raised, and the caller asks the row decoder, whose word counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.changes.split import (
    IS_ABSENT,
    IS_NULL,
    IS_UNCHANGED,
    OP_NUMBER,
    Bytes,
    Places,
    Rows,
    Split,
)
from eventlog.engine.payload import Payload

_INSERT, _UPDATE, _DELETE = b"IUD"
_NEW, _KEY, _OLD = b"NKO"
_TEXT, _NULL, _UNCHANGED = b"tnu"
_HEAD_BYTES = 5
"""Tag and relation."""

_OP_OF_TAG = np.full(256, 255, np.uint8)
_OP_OF_TAG[_INSERT] = OP_NUMBER[Op.INSERT]
_OP_OF_TAG[_UPDATE] = OP_NUMBER[Op.UPDATE]
_OP_OF_TAG[_DELETE] = OP_NUMBER[Op.DELETE]

Mask = npt.NDArray[np.bool_]


class Amiss(Exception):
    """Some record is not what it should be; the row decoder will say which, and why."""


class Found(NamedTuple):
    """Changes of one payload: slots ascending, and where in `data` each record lies."""

    data: Bytes
    slots: Places
    starts: Places
    ends: Places

    @property
    def size(self) -> int:
        """Bytes of the records."""
        return int((self.ends - self.starts).sum())

    def take(self, places: Mask) -> Found:
        """Some of them."""
        return Found(self.data, self.slots[places], self.starts[places], self.ends[places])


def found_at(payload: Payload, slots: Sequence[int]) -> Found:
    """Where the records at `slots` lie. REQUIRES: they ascend, and there is one."""
    data = np.frombuffer(payload.data, np.uint8)
    first, stop = slots[0], slots[-1] + 1
    ends = payload.ends[first:stop].astype(np.int64)
    starts = np.empty_like(ends)
    starts[0] = payload.ends[first - 1] if first else 0
    starts[1:] = ends[:-1]
    found = Found(data, np.arange(first, stop), starts, ends)
    if stop - first == len(slots):
        return found
    places = np.asarray(slots) - first
    return Found(data, found.slots[places], starts[places], ends[places])


def by_relation(
    found: Found, schemas: Mapping[int, Schema]
) -> Iterator[tuple[Schema | None, Found]]:
    """The changes of each relation, and under None the records of other kinds. Raises Amiss."""
    try:
        tags = found.data[found.starts]
        is_row = _OP_OF_TAG[tags] != 255
        if not is_row.all():
            yield None, found.take(~is_row)
            found = found.take(is_row)
        if not len(found.slots):
            return
        relations = _u32(found.data[1:], found.starts)
    except IndexError as error:
        raise Amiss from error
    first = int(relations[0])
    if (relations == first).all():
        groups = [(first, found)]
    else:
        groups = [(relation, found.take(relations == relation)) for relation in schemas]
        if sum(len(group.slots) for _, group in groups) != len(found.slots):
            raise Amiss
    for relation, group in groups:
        if relation not in schemas:
            raise Amiss
        if len(group.slots):
            yield schemas[relation], group


def split_rows(found: Found, schema: Schema) -> Split:
    """Find all values of the inserts, updates and deletes of one relation. Raises Amiss."""
    try:
        return _split_rows(found, schema)
    except IndexError as error:
        raise Amiss from error


def _split_rows(found: Found, schema: Schema) -> Split:
    data, slots, starts, ends = found
    tags = data[starts]
    at = starts + _HEAD_BYTES
    kinds = data[at]
    has_new = tags != _DELETE
    has_old = kinds != _NEW
    old = None
    if has_old.any():
        if not (((kinds == _KEY) | (kinds == _OLD)) == has_old).all():
            raise Amiss
        if (tags == _INSERT)[has_old].any():
            raise Amiss
        old, behind = _walk(data, at[has_old], len(schema.columns))
        _leave_keys(old, schema, kinds[has_old] == _KEY)
        old = _spread(old, has_old)
        at[has_old] = behind
    if not has_new.all():
        deleted = ~has_new
        if not has_old[deleted].all() or (at[deleted] != ends[deleted]).any():
            raise Amiss
        at = at[has_new]
        ends = ends[has_new]
    if (data[at] != _NEW).any():
        raise Amiss
    new, at = _walk(data, at, len(schema.columns))
    if (at != ends).any():
        raise Amiss
    return Split(
        schema=schema,
        slots=slots,
        ops=_OP_OF_TAG[tags],
        data=data,
        new=_spread(new, has_new),
        old=old,
    )


def _walk(data: Bytes, at: Places, width: int) -> tuple[Rows, Places]:
    """Read rows from their kind bytes on; also gives where each ends, which may be anywhere.

    Raises IndexError where that is outside of the buffer, Amiss for what is no value.
    """
    counts = data[1:][at].astype(np.uint16) << 8 | data[2:][at]
    if (counts != width).any():
        raise Amiss
    starts = np.empty((width, len(at)), np.int64)
    lengths = np.empty((width, len(at)), np.int64)
    at = at + 3
    for start, length in zip(starts, lengths, strict=True):
        kinds = data[at]
        is_text = kinds == _TEXT
        if is_text.all():
            np.add(at, 5, out=start)
            _lengths(data, at, out=length)
            np.add(start, length, out=at)
        else:
            _mixed(data, at, kinds, is_text, start, length)
    return Rows(starts=starts, lengths=lengths), at


def _lengths(data: Bytes, at: Places, out: Places) -> None:
    """Lengths of the texts whose kind bytes are at `at`: four bytes, the upper mostly zero."""
    upper, lower = data[1:][at] | data[2:][at], data[3:][at]
    if (upper | lower).any():
        if upper.any():
            out[:] = _u32(data[1:], at)
        else:
            out[:] = lower
            out <<= 8
            out |= data[4:][at]
    else:
        out[:] = data[4:][at]


def _mixed(
    data: Bytes, at: Places, kinds: Bytes, is_text: Mask, start: Places, length: Places
) -> None:
    """One column in which some are no texts; moves `at` behind it."""
    texts = np.flatnonzero(is_text)
    length.fill(IS_NULL)
    others = len(kinds) - len(texts) - np.count_nonzero(kinds == _NULL)
    if others:
        unchanged = np.flatnonzero(kinds == _UNCHANGED)
        if len(unchanged) != others:
            raise Amiss
        length[unchanged] = IS_UNCHANGED
    places = at[texts]
    found = np.empty(len(places), np.int64)
    _lengths(data, places, out=found)
    length[texts] = found
    places += 5
    start.fill(0)
    start[texts] = places
    places += found
    at += 1
    at[texts] = places


def _u32(data: Bytes, at: Places) -> Places:
    """Big-endian numbers at any places."""
    found = np.empty((len(at), 4), np.uint8)
    for byte in range(4):
        found[:, byte] = data[byte:][at]
    return found.reshape(-1).view(">u4").astype(np.int64)


def _leave_keys(old: Rows, schema: Schema, is_key: Mask) -> None:
    """Of old rows that are only a key, its columns alone were sent."""
    if is_key.any():
        for column, length in zip(schema.columns, old.lengths, strict=True):
            if not column.key:
                length[is_key] = IS_ABSENT


def _spread(rows: Rows, mask: Mask) -> Rows:
    """Rows of those records where the mask is true; the others have none."""
    if rows.starts.shape[1] == len(mask):
        return rows
    places = np.flatnonzero(mask)
    starts = np.zeros((len(rows.starts), len(mask)), np.int64)
    lengths = np.full(starts.shape, IS_ABSENT, np.int64)
    for column in range(len(starts)):
        starts[column, places] = rows.starts[column]
        lengths[column, places] = rows.lengths[column]
    return Rows(starts=starts, lengths=lengths)
