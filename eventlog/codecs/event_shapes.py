"""Values of one shape, walked across all rows at once: where each of their leaves lies (D3).

::

    value      82 a4 "user" 07 a3 "geo" 91 cb 40…            {"user": 7, "geo": [2.5]}
    tokens     ~~~~~~~~~~~~ ^^ ~~~~~~~~~~~ ^^^^^             literal, leaf, literal, leaf, …

A shape is what one value looks like: between its leaves lie bytes (heads of maps and arrays, names)
that another value of the same shape has, too, while each leaf may be of any kind and size. A
position only grows, so where it ends exactly at its value's end it never left the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eventlog.changes.decoding import json_text
from eventlog.changes.split import Bytes, Places

LEAVES_MAX = 64
"""Values with more of them are decoded one by one, as are those nested deeper than this."""
DEPTH_MAX = 16
TOKENS_MAX = 1_024
"""Heads, names and leaves; a large value is given up after so many."""
LITERALS_BYTES_MAX = 4_096
"""Names and heads: each eight bytes of them are held against all rows."""

NIL, FALSE, TRUE, INT, UINT, FLOAT, TEXT, TIME = range(1, 9)
"""Kinds of leaves; 0 is any other."""

KINDS = np.zeros(256, np.uint8)
SIZES = np.zeros(256, np.int64)
"""By the first byte of a leaf: its kind, and its size, to which that of a longer text is added."""

for _first, _size, _kind in [
    (0xC0, 1, NIL), (0xC2, 1, FALSE), (0xC3, 1, TRUE),
    *((first, 1, INT) for first in [*range(0x80), *range(0xE0, 0x100)]),
    (0xCC, 2, INT), (0xCD, 3, INT), (0xCE, 5, INT), (0xCF, 9, UINT),
    (0xD0, 2, INT), (0xD1, 3, INT), (0xD2, 5, INT), (0xD3, 9, INT), (0xCB, 9, FLOAT),
    *((0xA0 + size, 1 + size, TEXT) for size in range(32)),
    (0xD9, 2, TEXT), (0xDA, 3, TEXT), (0xDB, 5, TEXT),
    (0xD6, 6, TIME), (0xD7, 10, TIME),
]:  # fmt: skip
    KINDS[_first], SIZES[_first] = _kind, _size

_WORD = 8


class Literal(NamedTuple):
    """Bytes that stand before a leaf, or behind the last one, and what they are as JSON."""

    stored: bytes
    json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Literals, one more than there are leaves."""

    literals: tuple[Literal, ...]


class Walk(NamedTuple):
    """Of each leaf, where it begins in each row; and which rows have the shape."""

    leaves: list[Places]
    fits: npt.NDArray[np.bool_]


class Text:
    """Bytes with room behind them, so that heads can be fetched at any place of theirs."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.end = len(data)
        self.padded = np.concatenate([data, np.zeros(2 * _WORD, np.uint8)])
        count = self.end + _WORD
        self.words = np.ndarray(count, "<u8", self.padded, strides=(1,))
        self.numbers = np.ndarray(count, ">u8", self.padded, strides=(1,))


class _OtherShape(Exception):
    """The value is better decoded by itself."""


def shape_of(stored: bytes) -> Shape | None:
    """The shape of a value; None where it has none that is worth it, or is damaged."""
    found: list[Literal] = []
    bytes_ = bytearray()
    texts: list[str] = []
    at = 0
    try:
        for number, token in enumerate(_tokens(_Reader(stored), 0)):
            if number >= TOKENS_MAX:
                return None
            if token.is_leaf:
                found.append(Literal(bytes(bytes_), "".join(texts)))
                bytes_, texts = bytearray(), []
            else:
                bytes_ += stored[token.start : token.stop]
                texts.append(token.json)
            at = max(at, token.stop)
    except (_OtherShape, UnicodeDecodeError):
        return None
    if at != len(stored) or not found or len(found) > LEAVES_MAX:
        return None
    found.append(Literal(bytes(bytes_), "".join(texts)))
    if sum(len(literal.stored) for literal in found) > LITERALS_BYTES_MAX:
        return None
    return Shape(literals=tuple(found))


def walked(text: Text, starts: Places, stops: Places, shape: Shape) -> Walk:
    """Walk all rows along the shape."""
    at = starts
    fits = np.ones(len(starts), np.bool_)
    leaves = []
    for literal in shape.literals[:-1]:
        at = _past(text, at, literal.stored, fits)
        leaves.append(at)
        at = at + _leaf_sizes(text, at, fits)
    at = _past(text, at, shape.literals[-1].stored, fits)
    return Walk(leaves, fits & (at == stops))


def _past(text: Text, at: Places, stored: bytes, fits: npt.NDArray[np.bool_]) -> Places:
    """Hold the rows against a literal; where it ends."""
    for begin in range(0, len(stored), _WORD):
        part = stored[begin : begin + _WORD]
        wanted = np.uint64(int.from_bytes(part, "little"))
        mask = np.uint64((1 << 8 * len(part)) - 1)
        fits &= (text.words[np.minimum(at, text.end)] & mask) == wanted
        at = at + len(part)
    return at


def _leaf_sizes(text: Text, at: Places, fits: npt.NDArray[np.bool_]) -> Places:
    """The sizes of leaves; rows with one of no known kind fit no more."""
    at = np.minimum(at, text.end)
    first = text.padded[at]
    sizes: Places = SIZES[first]
    fits &= sizes > 0
    for head, width in ((0xD9, 1), (0xDA, 2), (0xDB, 4)):
        rows = np.flatnonzero(first == head)
        if len(rows):
            shift = np.uint64(64 - 8 * width)
            sizes[rows] += (text.numbers[at[rows] + 1] >> shift).astype(np.int64)
    rows = np.flatnonzero(KINDS[first] == TIME)
    if len(rows):
        fits[rows] &= _are_times(text, at[rows], first[rows])
    return sizes


def _are_times(text: Text, at: Places, first: Bytes) -> npt.NDArray[np.bool_]:
    """Which extensions of four and eight bytes are timestamps."""
    nanoseconds = text.numbers[at + 2] >> np.uint64(34)
    is_short = first == 0xD6
    are: npt.NDArray[np.bool_] = text.padded[at + 1] == 0xFF
    are &= is_short | (nanoseconds < 10**9)
    return are


class _Token(NamedTuple):
    """A leaf, or bytes `[start, stop)` that are `json`."""

    start: int
    stop: int
    is_leaf: bool
    json: str = ""


class _Reader:
    """Reads heads of a stored value in order; never past its end."""

    def __init__(self, stored: bytes) -> None:
        self.stored = stored
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        found = self.stored[self.at : self.at + size]
        if len(found) < size:
            raise _OtherShape
        self.at += size
        return found

    def number(self, width: int) -> int:
        """The next big-endian number."""
        return int.from_bytes(self.take(width), "big")

    def text_bytes(self, head: int) -> int:
        """The length of a text, its head being read."""
        if 0xA0 <= head < 0xC0:
            return head - 0xA0
        if head not in (0xD9, 0xDA, 0xDB):
            raise _OtherShape
        return self.number(1 << head - 0xD9)


def _tokens(reader: _Reader, depth: int) -> Iterator[_Token]:
    """The tokens of the next value."""
    start = reader.at
    (head,) = reader.take(1)
    if 0x80 <= head < 0x90:
        yield from _map(reader, start, head - 0x80, depth)
    elif 0x90 <= head < 0xA0:
        yield from _array(reader, start, head - 0x90, depth)
    elif head == 0xDC:
        yield from _array(reader, start, reader.number(2), depth)
    elif head == 0xDE:
        yield from _map(reader, start, reader.number(2), depth)
    elif KINDS[head] == TEXT:
        reader.take(reader.text_bytes(head))
        yield _Token(start, reader.at, is_leaf=True)
    elif KINDS[head]:
        reader.take(int(SIZES[head]) - 1)
        yield _Token(start, reader.at, is_leaf=True)
    else:
        raise _OtherShape


def _map(reader: _Reader, start: int, count: int, depth: int) -> Iterator[_Token]:
    _require_shallow(count, depth)
    yield _Token(start, reader.at, is_leaf=False, json="{")
    names = set()
    for place in range(count):
        begin = reader.at
        (head,) = reader.take(1)
        name = reader.take(reader.text_bytes(head)).decode()
        names.add(name)
        between = ", " if place else ""
        yield _Token(begin, reader.at, is_leaf=False, json=f"{between}{json_text(name)}: ")
        yield from _tokens(reader, depth + 1)
    if len(names) != count:
        raise _OtherShape  # The last of equal names counts.
    yield _Token(reader.at, reader.at, is_leaf=False, json="}")


def _array(reader: _Reader, start: int, count: int, depth: int) -> Iterator[_Token]:
    _require_shallow(count, depth)
    yield _Token(start, reader.at, is_leaf=False, json="[")
    for place in range(count):
        if place:
            yield _Token(reader.at, reader.at, is_leaf=False, json=", ")
        yield from _tokens(reader, depth + 1)
    yield _Token(reader.at, reader.at, is_leaf=False, json="]")


def _require_shallow(count: int, depth: int) -> None:
    if count > LEAVES_MAX or depth >= DEPTH_MAX:
        raise _OtherShape
