"""Where the messages begin in a block of a plain connection's bytes.

::

    d | length u32 | content ...   d | length u32 | content ...   N | length u32 | ...
    ^ a place        length bytes  ^ place + 1 + length           ^ another kind: the chain ends

A message's place follows from the length of the one before, so in principle they are walked one by
one. Cheaper: guess all places at once, by the bytes that a message of moderate size begins with (a
`d`, a zero, and the first byte of its content), and compare each with where the one before it ends.
Guesses may be wrong in any way: a place counts only where the chain from the block's first byte
leads to it, and from where it leads elsewhere on it is walked. Pure functions.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cdc.postgres.protocol.frames import I64, U8

HEAD_BYTES = 5
LENGTH_BYTES = 4
COPY_DATA = ord("d")

DENSE_BYTES = 400
"""Below this mean size of a message guessing costs less than walking, which takes 0.2 µs each."""

_LENGTH = struct.Struct(">I")

Found: TypeAlias = tuple[I64, I64]
"""Where each message begins and ends, its head included."""

Scratch: TypeAlias = npt.NDArray[np.bool_]
"""Two rows as long as a block: memory that is new at each call would cost as much as its use."""


def copy_data(
    block: memoryview, at: int, stop: int, *, mark: int | None, scratch: Scratch | None
) -> Found:
    """The whole CopyData messages in `[at, stop)`, up to one that is cut or of another kind.

    `mark` is the first byte of most contents, where that is known; without `scratch` it is not
    guessed. Neither changes what is found.
    """
    if scratch is None:
        return walked(block, at, stop)
    starts, ends = _guessed(np.frombuffer(block, np.uint8, stop - at, at), mark, scratch)
    if at:
        starts += at
        ends += at
    reached = int(ends[-1]) if len(ends) else at
    if stop - reached < HEAD_BYTES or block[reached] != COPY_DATA:
        return starts, ends
    more_starts, more_ends = walked(block, reached, stop)
    if not len(more_ends):
        return starts, ends
    return np.concatenate([starts, more_starts]), np.concatenate([ends, more_ends])


def walked(block: memoryview, at: int, stop: int) -> Found:
    """What `copy_data` finds, by walking from each message to the next."""
    ends = []
    length_at = _LENGTH.unpack_from
    first = at
    while stop - at >= HEAD_BYTES and block[at] == COPY_DATA:
        (length,) = length_at(block, at + 1)
        at += 1 + length
        if length < LENGTH_BYTES or at > stop:
            break
        ends.append(at)
    found = np.array(ends, np.int64)
    starts = np.empty_like(found)
    starts[:1] = first
    starts[1:] = found[:-1]
    return starts, found


def _guessed(block: U8, mark: int | None, scratch: Scratch) -> Found:
    """The messages from the block's first byte on, as far as all places were guessed."""
    size = len(block) - HEAD_BYTES
    nothing = np.zeros(0, np.int64)
    if size <= 0:
        return nothing, nothing
    alike, other = scratch[0, :size], scratch[1, :size]
    np.equal(block[:size], COPY_DATA, out=alike)
    if mark is None:
        np.equal(block[1 : size + 1], 0, out=other)
    else:
        np.equal(block[HEAD_BYTES:], mark, out=other)
    np.logical_and(alike, other, out=alike)
    places = np.flatnonzero(alike)
    if mark is not None:
        places = places[block[places + 1] == 0]
    if not len(places) or places[0]:
        return nothing, nothing
    lengths = np.left_shift(block[places + 2], 16, dtype=np.int64)
    lengths |= np.left_shift(block[places + 3], 8, dtype=np.int64)
    lengths |= block[places + 4]
    ends = places + lengths + 1
    ends[lengths < LENGTH_BYTES] = -1
    broken = places[1:] != ends[:-1]
    count = int(np.argmax(broken)) + 1 if broken.any() else len(places)
    if ends[count - 1] < 0 or ends[count - 1] > len(block):
        count -= 1
    return places[:count], ends[:count]
