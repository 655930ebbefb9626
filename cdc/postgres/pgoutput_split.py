"""Splitting captured changes across rows instead of along them (D3).

::

    at    5      15      25         one read position for each row of a relation
          N t…   N t…    N n…
          └──────┴───────┴───▶      kinds and lengths of a column are read at all positions at once,
                                    then all positions move behind it

A value's kind and length, and what follows, are one word of eight bytes, fetched from a view of
overlapping words. Nothing is checked on the way but kinds: a position only grows, so that where it
ends exactly at its record's end, it never left the record; and behind the buffer there are zeros,
which are no kind. Where anything is amiss, `Amiss` is raised, and the caller asks the row decoder,
whose word counts.
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
_TEXT, _NULL, _UNCHANGED = map(np.uint64, b"tnu")
_HEAD_BYTES, _ROW_HEAD_BYTES = 5, 8
"""Tag and relation; and with the kind and the count of a row behind them."""

_WORD = 8
_BYTE, _KIND_AND_UPPER = np.uint64(0xFF), np.uint64(0xFFFFFFFF)
"""The kind of a value in its word; the kind and the upper bytes of its length."""

ROWS_MAX = 8_192
"""Rows whose columns are walked over together."""

_OP_OF_TAG = np.full(256, 255, np.uint8)
_OP_OF_TAG[_INSERT] = OP_NUMBER[Op.INSERT]
_OP_OF_TAG[_UPDATE] = OP_NUMBER[Op.UPDATE]
_OP_OF_TAG[_DELETE] = OP_NUMBER[Op.DELETE]

Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]


class Amiss(Exception):
    """Some record is not what it should be; the row decoder will say which, and why."""


class Found(NamedTuple):
    """Changes of one payload: slots ascending, and where in `data` each record lies.

    `heads` are their first eight bytes as words: an insert's up to its row's first value.
    """

    data: Bytes
    slots: Places
    starts: Places
    ends: Places
    heads: Words

    @property
    def size(self) -> int:
        """Bytes of the records."""
        return int((self.ends - self.starts).sum())

    def take(self, places: Mask) -> Found:
        """Some of them."""
        return Found(
            self.data,
            self.slots[places],
            self.starts[places],
            self.ends[places],
            self.heads[places],
        )


def found_at(payload: Payload, slots: Sequence[int]) -> Found:
    """Where the records at `slots` lie. Raises Amiss. REQUIRES: they ascend, and there is one."""
    data = np.frombuffer(payload.data, np.uint8)
    first, stop = slots[0], slots[-1] + 1
    ends = payload.ends[first:stop].astype(np.int64)
    starts = np.empty_like(ends)
    starts[0] = payload.ends[first - 1] if first else 0
    starts[1:] = ends[:-1]
    chosen = np.arange(first, stop)
    if stop - first != len(slots):
        chosen = np.asarray(slots)
        starts, ends = starts[chosen - first], ends[chosen - first]
    return Found(data, chosen, starts, ends, _words_at(_overlapping(data), starts))


def by_relation(
    found: Found, schemas: Mapping[int, Schema]
) -> Iterator[tuple[Schema | None, Found]]:
    """The changes of each relation, and under None the records of other kinds. Raises Amiss."""
    head = found.heads[0]
    if (found.heads == head).all():
        (tag, relation), alike = _tags_and_relations(found.heads[:1]), True
    else:
        (tag, relation), alike = _tags_and_relations(found.heads), False
    is_row = _OP_OF_TAG[tag] != 255
    if not is_row.all():
        rare = np.broadcast_to(~is_row, len(found.slots))
        yield None, found.take(rare)
        found, relation = found.take(~rare), relation[is_row]
    if not len(found.slots):
        return
    first = int(relation[0])
    if alike or (relation == first).all():
        groups = [(first, found)]
    else:
        groups = [(number, found.take(relation == number)) for number in schemas]
        if sum(len(group.slots) for _, group in groups) != len(found.slots):
            raise Amiss
    for number, group in groups:
        if number not in schemas:
            raise Amiss
        if len(group.slots):
            yield schemas[number], group


def _tags_and_relations(heads: Words) -> tuple[Bytes, Places]:
    relations = (heads >> np.uint64(8)).astype(np.uint32).byteswap()
    return heads.astype(np.uint8), relations.astype(np.int64)


def split_rows(found: Found, schema: Schema) -> Split:
    """Find all values of the inserts, updates and deletes of one relation. Raises Amiss."""
    slots, starts, ends, heads = found.slots, found.starts, found.ends, found.heads
    if (heads == heads[0]).all() and _begins_new(int(heads[0]), len(schema.columns)):
        new, at = _values(found.data, starts + _ROW_HEAD_BYTES, len(schema.columns))
        if (at != ends).any():
            raise Amiss
        ops = np.full(len(slots), _OP_OF_TAG[int(heads[0]) & 0xFF])
        return Split(schema=schema, slots=slots, ops=ops, data=found.data, new=new, old=None)
    try:
        return _split_rows(found, schema)
    except IndexError as error:
        raise Amiss from error


def _begins_new(head: int, width: int) -> bool:
    """Whether a record that begins so has a new row of that width, and no old one."""
    tag, *_, kind, high, low = head.to_bytes(_WORD, "little")
    return tag in (_INSERT, _UPDATE) and kind == _NEW and high << 8 | low == width


def _split_rows(found: Found, schema: Schema) -> Split:
    data, slots, starts, ends, heads = found
    tags = heads.astype(np.uint8)
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
    return _values(data, at + 3, width)


def _values(data: Bytes, at: Places, width: int) -> tuple[Rows, Places]:
    """Read as many values from each place on, and tell where they end. Changes `at`.

    Block by block, so that what is read stays in the processor's cache for the next column.
    """
    starts = np.empty((width, len(at)), np.int64)
    lengths = np.empty((width, len(at)), np.int64)
    words = _overlapping(data)
    blocks = -(-len(at) // ROWS_MAX)
    rows = -(-len(at) // max(blocks, 1))
    for begin in range(0, len(at), max(rows, 1)):
        block = slice(begin, begin + rows)
        for start, length in zip(starts[:, block], lengths[:, block], strict=True):
            _column(words, at[block], start, length)
    return Rows(starts=starts, lengths=lengths), at


def _column(words: Words, at: Places, start: Places, length: Places) -> None:
    """Read one value at each place, and move `at` behind it."""
    heads = _words_at(words, at)
    size = length.view(np.uint64)
    np.bitwise_and(heads, _KIND_AND_UPPER, out=size)
    if not (size == _TEXT).all():
        _mixed(heads, at, start, length)
        return
    # All are texts of less than 256 bytes: of their lengths only the last byte is not zero.
    np.right_shift(heads, np.uint64(32), out=size)
    size &= _BYTE
    np.add(at, 5, out=start)
    np.add(start, length, out=at)


def _mixed(heads: Words, at: Places, start: Places, length: Places) -> None:
    """The same where some are no texts, or long ones. Changes `heads`."""
    kinds = heads & _BYTE
    is_text = kinds == _TEXT
    unchanged = kinds == _UNCHANGED
    if not (is_text | unchanged | (kinds == _NULL)).all():
        raise Amiss
    heads >>= np.uint64(8)
    sizes = heads.astype(np.uint32).byteswap()
    texts = is_text.astype(np.int64)
    np.multiply(sizes, texts, out=length)
    at += 1
    np.multiply(texts, 4, out=start)
    start += at
    np.add(start, length, out=at)
    texts -= 1  # 0 for a text, and else what IS_NULL is
    length += texts
    if unchanged.any():
        length[unchanged] = IS_UNCHANGED


def _overlapping(data: Bytes) -> Words:
    """The word that begins at each byte of a buffer. Raises Amiss for one without any."""
    if len(data) < _WORD:
        raise Amiss
    return np.ndarray((len(data) - _WORD + 1,), "<u8", data, strides=(1,))


def _words_at(words: Words, at: Places) -> Words:
    """The eight bytes at any places; those behind the buffer's end are zero."""
    try:
        return words[at]
    except IndexError:
        pass  # The last records' values, or damage.
    last = len(words) - 1
    held = np.minimum(at, last)
    found = words[held]
    # A shift of 64 bits and more leaves nothing.
    found >>= ((at - held) << 3).view(np.uint64)
    return found


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
