"""Splitting lines of COPY by the tabs and line feeds of many at once (D3).

::

    1 TAB 12.50 TAB \\N LF 2 TAB ...    marks: the places of all TABs and LFs, as many in each line
      ^         ^      ^   ^            as there are columns; value k of a line ends at its mark k

Neither stands in a field but escaped, so the marks alone tell the fields, once each line is known
to have as many as its table has columns. Where there are escapes, a copy of the buffer without
their backslashes comes behind it, and the fields that have some point there. Where anything is
amiss, `Amiss` is raised, and the caller asks the row decoder, whose word counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np

from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.changes.split import IS_NULL, OP_NUMBER, Bytes, Places, Rows, Split
from eventlog.engine.payload import Payload

_TAB, _LINE_FEED, _BACKSLASH, _N = b"\t\n\\N"

MEANT = {
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
}
"""What a letter means behind a backslash; COPY writes no others."""

_MEANT = np.zeros(256, np.uint8)
for _letter, _meaning in MEANT.items():
    _MEANT[_letter[0]] = _meaning[0]


BLOCK_BYTES = 1 << 18
"""Lines whose marks are found together have about so many."""


class Amiss(Exception):
    """Some line is not what it should be; the row decoder will say which, and why."""


def split_lines(payload: Payload, slots: Sequence[int], schema: Schema) -> Split:
    """Find all values of copied rows. Raises Amiss. REQUIRES: `slots` ascend, and there is one."""
    text, ends = _lines(payload, slots)
    data = np.frombuffer(text, np.uint8)
    width = len(schema.columns)
    rows, are_escaped = _fields(data, ends, width)
    if are_escaped:
        data = _undone(data, rows)
    return Split(
        schema=schema,
        slots=_places(slots),
        ops=np.full(len(slots), OP_NUMBER[Op.READ], np.uint8),
        data=data,
        new=rows,
        old=None,
    )


def _lines(payload: Payload, slots: Sequence[int]) -> tuple[bytes, Places]:
    """The lines at `slots` end to end, and where each one ends."""
    if len(slots) == len(payload.ends):
        return payload.data, payload.ends.astype(np.int64)
    lines = payload.records(slots)
    return b"".join(lines), np.cumsum([len(line) for line in lines], dtype=np.int64)


def _places(slots: Sequence[int]) -> Places:
    first, stop = slots[0], slots[-1] + 1
    if stop - first == len(slots):
        return np.arange(first, stop)
    return np.asarray(slots)


def _fields(data: Bytes, ends: Places, width: int) -> tuple[Rows, bool]:
    """Where the fields of all lines lie, NULLs marked, and whether there are escapes among them.

    Block by block, so that what tells the marks from other bytes stays in the processor's cache.
    """
    if not len(data) or (data[ends - 1] != _LINE_FEED).any():
        raise Amiss
    starts = np.empty((width, len(ends)), np.int64)
    lengths = np.empty((width, len(ends)), np.int64)
    if not width:  # of such a row there is nothing but its LF
        if not np.array_equal(ends, np.arange(1, len(data) + 1)):
            raise Amiss
        return Rows(starts=starts, lengths=lengths), False
    lines = max(BLOCK_BYTES * len(ends) // len(data), 1)
    begin = backslashes = 0
    for at in range(0, len(ends), lines):
        here = ends[at : at + lines]
        block = data[begin : here[-1]]
        columns = starts[:, at : at + lines], lengths[:, at : at + lines]
        _between(_marks(block, len(here), width) + begin, begin, here, *columns)
        begin = int(here[-1])
        found = int(np.count_nonzero(block == _BACKSLASH))
        if found:
            backslashes += found - sum(map(_mark_nulls, repeat(data), *columns))
    return Rows(starts=starts, lengths=lengths), bool(backslashes)


def _between(marks: Places, begin: int, ends: Places, starts: Places, lengths: Places) -> None:
    """Write where the fields between marks lie; of each line the last mark is its end."""
    if (marks[:, -1] != ends - 1).any():
        raise Amiss
    starts[0, 0] = begin
    starts[0, 1:] = ends[:-1]
    np.add(marks[:, :-1].T, 1, out=starts[1:])
    np.subtract(marks.T, starts, out=lengths)


def _marks(data: Bytes, lines: int, width: int) -> Places:
    """The places of all TABs and LFs, of shape (lines, width); there is one LF for each line."""
    is_mark = data == _LINE_FEED
    if np.count_nonzero(is_mark) != lines:
        raise Amiss
    is_mark |= data == _TAB
    marks = np.flatnonzero(is_mark)
    if len(marks) != lines * width:
        raise Amiss
    return marks.reshape(lines, width)


def _mark_nulls(data: Bytes, starts: Places, lengths: Places) -> int:
    """Mark the NULLs of one column; returns how many there are."""
    is_null = data[starts] == _BACKSLASH
    if not is_null.any():
        return 0
    is_null &= lengths == 2
    places = np.flatnonzero(is_null)
    places = places[data[starts[places] + 1] == _N]
    lengths[places] = IS_NULL
    return len(places)


def _undone(data: Bytes, rows: Rows) -> Bytes:
    """Undo escapes: behind the buffer comes another, without backslashes."""
    is_backslash = data == _BACKSLASH
    is_backslash[rows.starts[rows.lengths == IS_NULL]] = False
    leads = _leads(np.flatnonzero(is_backslash))
    meant = _MEANT[data[leads + 1]]
    if not meant.all():
        raise Amiss
    marks = np.flatnonzero((data == _TAB) | (data == _LINE_FEED))
    plain = data.copy()
    plain[leads + 1] = meant
    is_kept = np.ones(len(data), np.bool_)
    is_kept[leads] = False
    fields, leads_before, leads_inside = np.unique(
        np.searchsorted(marks, leads), return_index=True, return_counts=True
    )
    lines, columns = np.divmod(fields, len(rows.starts))
    rows.starts[columns, lines] += len(data) - leads_before
    rows.lengths[columns, lines] -= leads_inside
    return np.concatenate([data, plain[is_kept]])


def _leads(backslashes: Places) -> Places:
    """Those that begin an escape: of a run of backslashes, every other one."""
    count = np.arange(len(backslashes))
    begins = np.ones(len(backslashes), np.bool_)
    begins[1:] = np.diff(backslashes) != 1
    run_begin = np.maximum.accumulate(np.where(begins, count, 0))
    found: Places = backslashes[(count - run_begin) % 2 == 0]
    return found
