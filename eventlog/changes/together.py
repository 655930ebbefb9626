"""Splitting payloads together: as many as are alike are joined, split at once, and cut again.

::

    payloads     [ a a a ] [ a b ] [ b a ]        of one codec, under the same schema versions
    joined       [ a a a     a b     b a ]        one buffer, places one behind the other
    split        a: . . .    .         .    b: . .
    cut          [ . . . ] [ . . ] [ . . ]        slices of the same arrays, slots of each payload

Arrays cost the same few microseconds a call whatever their length; and columns that were split
together lie one behind the other already when they are to be converted together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from eventlog.changes.change import Op
from eventlog.changes.reading import Piece
from eventlog.changes.schema import Schema
from eventlog.changes.split import IS_ABSENT, OP_NUMBER, Split, SplitPayload
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog

TOGETHER_BYTES = 1 << 20
"""Payloads that are split together have so many: more would not stay in a processor's cache."""

_DELETE = OP_NUMBER[Op.DELETE]

SplitPiece: TypeAlias = tuple[Piece, SplitPayload]


def split_pieces(pieces: Iterable[Piece]) -> Iterator[SplitPiece]:
    """Every piece with what its `split` gives, in order.

    Reads ahead: nothing at first, then twice as many bytes each time, up to TOGETHER_BYTES. What
    comes before damage is given out before that raises DamagedLog.
    """
    held: list[Piece] = []
    size = bytes_max = 0
    found = iter(pieces)
    while True:
        try:
            piece = next(found, None)
        except Exception:
            yield from _split_held(held)
            raise
        if piece is None:
            yield from _split_held(held)
            return
        is_large = len(piece.payload.data) >= TOGETHER_BYTES
        if held and (is_large or not _are_alike(held[0], piece)):
            yield from _split_held(held)
            held, size = [], 0
        held.append(piece)
        size += len(piece.payload.data)
        if size >= bytes_max:
            yield from _split_held(held)
            bytes_max = min(2 * size, TOGETHER_BYTES)
            held, size = [], 0


def _are_alike(one: Piece, other: Piece) -> bool:
    return one.codec is other.codec and one.schemas == other.schemas


def _split_held(held: Sequence[Piece]) -> Iterator[SplitPiece]:
    if len(held) > 1:
        first = held[0]
        payloads, slots = [piece.payload for piece in held], [piece.slots for piece in held]
        try:
            found = split_payloads(first.codec, payloads, slots, first.schemas)
        except DamagedLog:
            pass  # Each by itself says where it lies, after those before it.
        else:
            for piece, split in zip(held, found, strict=True):
                yield piece, piece.selected(split)
            return
    for piece in held:
        yield piece, piece.split()


def split_payloads(
    codec: Any,
    payloads: Sequence[Payload],
    slots: Sequence[Sequence[int]],
    schemas: dict[int, Schema],
) -> list[SplitPayload]:
    """What `codec.split` gives of each payload with its slots. Raises DamagedLog.

    REQUIRES: together the payloads have less than 4 GiB, and the same schemas.
    """
    bounds = np.cumsum([0, *(len(payload.ends) for payload in payloads)]).tolist()
    ends = np.concatenate([payload.ends for payload in payloads])
    size = 0
    for payload, begin, stop in zip(payloads, bounds[:-1], bounds[1:], strict=True):
        ends[begin:stop] += size
        size += len(payload.data)
    data = b"".join([payload.data for payload in payloads])
    whole = Payload(codec=payloads[0].codec, ends=ends, data=data)
    found = codec.split(whole, _all_slots(slots, bounds), schemas)
    return list(_cut(found, bounds))


def _all_slots(slots: Sequence[Sequence[int]], bounds: Sequence[int]) -> Sequence[int]:
    """The slots of each payload as those of the joined one."""
    chosen = sum(map(len, slots))
    if chosen == bounds[-1]:
        return range(chosen)
    places = [np.asarray(part, np.int64) + b for part, b in zip(slots, bounds, strict=False)]
    found: list[int] = np.concatenate(places).tolist()
    return found


def _cut(found: SplitPayload, bounds: Sequence[int]) -> Iterator[SplitPayload]:
    """What lies between each two bounds, with slots counted from there."""
    places = [np.searchsorted(split.slots, bounds).tolist() for split in found.rows]
    for number, (begin, stop) in enumerate(pairwise(bounds)):
        rows = []
        for split, at in zip(found.rows, places, strict=True):
            if at[number] < at[number + 1]:
                part = split.cut(at[number], at[number + 1], first_slot=begin)
                rows.append(part if part.old is None else _with_its_old_rows(part))
        rare = [
            raw._replace(slot=raw.slot - begin) for raw in found.rare if begin <= raw.slot < stop
        ]
        yield SplitPayload(rows=rows, rare=rare)


def _with_its_old_rows(split: Split) -> Split:
    """The same, without old rows where none was sent."""
    assert split.old is not None
    if (split.ops == _DELETE).any() or (split.old.lengths != IS_ABSENT).any():
        return split
    return replace(split, old=None)
