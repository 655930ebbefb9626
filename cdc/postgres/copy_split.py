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


class Amiss(Exception):
    """Some line is not what it should be; the row decoder will say which, and why."""


def split_lines(payload: Payload, slots: Sequence[int], schema: Schema) -> Split:
    """Find all values of copied rows. Raises Amiss. REQUIRES: `slots` ascend, and there is one."""
    text, ends = _lines(payload, slots)
    data = np.frombuffer(text, np.uint8)
    width = len(schema.columns)
    marks = _marks(data, ends, width)
    rows = _fields(marks, ends, width)
    if b"\\" in text:
        data = _undone(text, rows, marks)
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


def _marks(data: Bytes, ends: Places, width: int) -> Places:
    """The places of all TABs and LFs, `width` of each line; a line has its LF at its end alone."""
    is_mark = data == _LINE_FEED
    if np.count_nonzero(is_mark) != len(ends):
        raise Amiss
    is_mark |= data == _TAB
    marks = np.flatnonzero(is_mark)
    if width == 0:  # of such a row there is nothing but its LF
        if len(marks) != len(data):
            raise Amiss
        width = 1
    if len(marks) != len(ends) * width or (marks[width - 1 :: width] != ends - 1).any():
        raise Amiss
    return marks


def _fields(marks: Places, ends: Places, width: int) -> Rows:
    """Where the fields of all lines lie, escapes and all."""
    starts = np.empty((width, len(ends)), np.int64)
    lengths = np.empty((width, len(ends)), np.int64)
    for column in range(width):
        if column == 0:
            starts[0, 0] = 0
            starts[0, 1:] = ends[:-1]
        else:
            np.add(marks[column - 1 :: width], 1, out=starts[column])
        np.subtract(marks[column::width], starts[column], out=lengths[column])
    return Rows(starts=starts, lengths=lengths)


def _undone(text: bytes, rows: Rows, marks: Places) -> Bytes:
    """Mark what is NULL, and undo escapes: behind the buffer comes another, without backslashes."""
    data = np.frombuffer(text, np.uint8)
    is_backslash = data == _BACKSLASH
    for starts, lengths in zip(rows.starts, rows.lengths, strict=True):
        is_backslash[_mark_nulls(data, starts, lengths)] = False
    backslashes = np.flatnonzero(is_backslash)
    if not len(backslashes):
        return data
    leads = _leads(backslashes)
    meant = _MEANT[data[leads + 1]]
    if not meant.all():
        raise Amiss
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


def _mark_nulls(data: Bytes, starts: Places, lengths: Places) -> Places:
    """Mark the NULLs of one column; returns where they lay."""
    places = np.flatnonzero(lengths == 2)
    at = starts[places]
    is_null = (data[at] == _BACKSLASH) & (data[at + 1] == _N)
    places = places[is_null]
    lengths[places] = IS_NULL
    starts[places] = 0
    found: Places = at[is_null]
    return found


def _leads(backslashes: Places) -> Places:
    """Those that begin an escape: of a run of backslashes, every other one."""
    count = np.arange(len(backslashes))
    begins = np.ones(len(backslashes), np.bool_)
    begins[1:] = np.diff(backslashes) != 1
    run_begin = np.maximum.accumulate(np.where(begins, count, 0))
    found: Places = backslashes[(count - run_begin) % 2 == 0]
    return found
