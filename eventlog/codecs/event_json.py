"""Stored values of events as JSON text: those of one shape by whole columns, others one by one.

::

    {"user": 7, "page": "/a"}       literal  ints    literal     texts   literal
    {"user": 8, "page": "/b"}       {"user": 7       , "page": " /a      "}       joined by Arrow
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eventlog.changes.arrow_texts import binary_array
from eventlog.changes.decoding import json_texts
from eventlog.changes.split import Bytes, Places, Texts
from eventlog.codecs.event_shapes import (
    FALSE,
    FLOAT,
    INT,
    KINDS,
    NIL,
    SIZES,
    TEXT,
    TIME,
    TRUE,
    UINT,
    Shape,
    Text,
    shape_of,
    walked,
)
from eventlog.codecs.events import unpacked
from eventlog.errors import DamagedLog

SHAPES_MAX = 4
"""Shapes looked for in the values of one call: those of one application have few.

Each is that of a value farther back, so that one odd value does not keep the others from theirs.
"""

ROWS_MIN = 32
"""Fewer values are decoded one by one."""

BYTES_MAX = 1 << 28
"""Nor are more bytes looked at for shapes: an array holds 2 GiB of JSON."""

_NIL = 0xC0
_WORDS = {NIL: "null", FALSE: "false", TRUE: "true"}
_ESCAPED = np.zeros(256, np.bool_)
_ESCAPED[:0x20] = _ESCAPED[ord('"')] = _ESCAPED[ord("\\")] = True


def json_array(values: Texts) -> pa.Array:
    """What each value decodes to, as `json_text` has it; null for nil. Raises DamagedLog."""
    is_nil = (values.lengths == 1) & (values.data[values.starts] == _NIL)
    nil, rest = np.flatnonzero(is_nil), np.flatnonzero(~is_nil)
    parts: list[tuple[Places, pa.Array]] = []
    if len(nil):
        parts.append((nil, pa.nulls(len(nil), pa.string())))
    if len(rest) >= ROWS_MIN and len(values.data) <= BYTES_MAX:
        text = Text(values.data)
        for attempt in range(SHAPES_MAX):
            rest = _take_shape(values, text, rest, parts, like=len(rest) * attempt // SHAPES_MAX)
            if len(rest) < ROWS_MIN:
                break
    if len(rest):
        parts.append((rest, _one_by_one(values.take(rest))))
    return _in_order(parts)


def _take_shape(
    values: Texts, text: Text, rest: Places, parts: list[tuple[Places, pa.Array]], *, like: int
) -> Places:
    """Convert the values of the shape that the one at place `like` has; the others remain."""
    starts = values.starts[rest]
    stops = starts + values.lengths[rest]
    shape = shape_of(values.data[starts[like] : stops[like]].tobytes())
    if shape is None:
        return rest
    found = walked(text, starts, stops, shape)
    rows = np.flatnonzero(found.fits)
    if len(rows) < ROWS_MIN:
        return rest
    parts.append((rest[rows], _joined(text, shape, [leaf[rows] for leaf in found.leaves])))
    return rest[~found.fits]


def _joined(text: Text, shape: Shape, leaves: Sequence[Places]) -> pa.Array:
    pieces: list[Any] = []
    for literal, places in zip(shape.literals, leaves, strict=False):
        pieces += [literal.json, _leaf(text, places)]
    return pc.binary_join_element_wise(*pieces, shape.literals[-1].json, "")


def _leaf(text: Text, at: Places) -> pa.Array:
    """Leaves as JSON text."""
    first = text.padded[at]
    kinds = KINDS[first]
    present = np.flatnonzero(np.bincount(kinds, minlength=9)).tolist()
    if len(present) == 1:
        return _of_kind(present[0], text, at, first)
    parts = []
    for kind in present:
        rows = np.flatnonzero(kinds == kind)
        parts.append((rows, _of_kind(kind, text, at[rows], first[rows])))
    return _in_order(parts)


def _of_kind(kind: int, text: Text, at: Places, first: Bytes) -> pa.Array:
    if kind == INT:
        return pa.array(_integers(text, at, first), pa.int64()).cast(pa.string())
    if kind == UINT:
        return pa.array(text.numbers[at + 1].astype(np.uint64), pa.uint64()).cast(pa.string())
    if kind == FLOAT:
        floats = text.numbers[at + 1].astype(np.uint64).view(np.float64)
        return _floats(floats)
    if kind == TEXT:
        return _texts(text, at, first)
    if kind == TIME:
        return _times(text, at, first)
    return pa.repeat(pa.scalar(_WORDS[kind]), len(at))


def _integers(text: Text, at: Places, first: Bytes) -> Places:
    """The integers at these places, whatever their widths; none is above 2**63."""
    found = first.view(np.int8).astype(np.int64)
    wide = (first >= 0xCC) & (first <= 0xD3)
    if wide.any():
        rows = np.flatnonzero(wide)
        head = first[rows]
        shifts = 64 - 8 * (SIZES[head] - 1)
        numbers = text.numbers[at[rows] + 1].astype(np.uint64)
        signed = numbers.view(np.int64) >> shifts
        unsigned = (numbers >> shifts.astype(np.uint64)).view(np.int64)
        found[rows] = np.where(head >= 0xD0, signed, unsigned)
    return found


def _floats(floats: np.ndarray) -> pa.Array:
    if np.isfinite(floats).all():
        return pa.array(list(map(float.__repr__, floats.tolist())), pa.string())
    return pa.array(json_texts(floats.tolist()), pa.string())


def _texts(text: Text, at: Places, first: Bytes) -> pa.Array:
    """Texts in quotes, escaped where one has to be."""
    heads = np.ones(len(at), np.int64)
    sizes = SIZES[first] - 1
    for head, width in ((0xD9, 1), (0xDA, 2), (0xDB, 4)):
        rows = np.flatnonzero(first == head)
        if len(rows):
            numbers = text.numbers[at[rows] + 1] >> np.uint64(64 - 8 * width)
            heads[rows], sizes[rows] = 1 + width, numbers.astype(np.int64)
    stored = binary_array(Texts(data=text.data, starts=at + heads, lengths=sizes))
    try:
        found = stored.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise DamagedLog("a text is not UTF-8") from error
    data = found.buffers()[2]
    if data is not None and _ESCAPED[np.frombuffer(data, np.uint8)].any():
        return pa.array(json_texts(found.to_pylist()), pa.string())
    return pc.binary_join_element_wise('"', found, '"', "")


def _times(text: Text, at: Places, first: Bytes) -> pa.Array:
    """Timestamps as `isoformat` writes them: without a fraction where it is none."""
    words = text.numbers[at + 2].astype(np.uint64)
    is_short = first == 0xD6
    seconds = np.where(is_short, words >> np.uint64(32), words & np.uint64((1 << 34) - 1))
    micro = np.where(is_short, 0, (words >> np.uint64(34)) // np.uint64(1000)).astype(np.int64)
    whole = pa.array(seconds.astype(np.int64), pa.timestamp("s")).cast(pa.string())
    digits = pa.array(micro + 10**6, pa.int64()).cast(pa.string())
    fraction = pc.binary_join_element_wise(".", pc.utf8_slice_codeunits(digits, 1), "")
    shown = pc.if_else(pa.array(micro == 0), "", fraction)
    moment = pc.utf8_replace_slice(whole, 10, 11, "T")
    return pc.binary_join_element_wise('"', moment, shown, '+00:00"', "")


def _one_by_one(values: Texts) -> pa.Array:
    stored = b"".join(text for text in values.to_list() if isinstance(text, bytes))
    found = unpacked(stored, np.cumsum(values.lengths))
    if found is None:
        raise DamagedLog("a value is damaged")
    return pa.array(json_texts(found), pa.string())


def _in_order(parts: Sequence[tuple[Places, pa.Array]]) -> pa.Array:
    """Arrays of some rows each as one array of all."""
    if not parts:
        return pa.array([], pa.string())
    if len(parts) == 1:
        return parts[0][1]
    order = np.concatenate([rows for rows, _ in parts])
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    return pa.concat_arrays([array for _, array in parts]).take(pa.array(inverse))
