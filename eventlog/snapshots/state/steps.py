"""Steps: the records of one relation in order, whole columns of them at a time.

A payload is split once; truncates and control records cut it, because what lies before one must be
applied before it. The newest payloads are kept as they were split, while they fit a budget: who
walks the log a second time finds them here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import RawChange
from eventlog.changes.reading import Piece, pieces
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.split import Bytes, Places, Rows, Split
from eventlog.engine import Engine

_PART_BYTES = 1024
"""What a part takes that holds nothing."""

Holds: TypeAlias = Callable[[int, int], bool]
"""Whether offsets of `[start, stop)` are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Inserts, updates, deletes and copied rows under one schema version, in offset order.

    As `eventlog.changes.split.Split`, with offsets in place of slots.
    """

    schema: Schema
    offsets: Places
    ops: Bytes
    data: Bytes
    new: Rows
    old: Rows | None

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, which: npt.NDArray[np.bool_]) -> Chunk:
        """The records where the mask is true."""
        old = self.old
        return Chunk(
            schema=self.schema,
            offsets=self.offsets[which],
            ops=self.ops[which],
            data=self.data,
            new=Rows(starts=self.new.starts[:, which], lengths=self.new.lengths[:, which]),
            old=None
            if old is None
            else Rows(starts=old.starts[:, which], lengths=old.lengths[:, which]),
        )

    def slice(self, start: int, stop: int) -> Chunk:
        """The records at the places `[start, stop)`."""
        old = self.old
        return Chunk(
            schema=self.schema,
            offsets=self.offsets[start:stop],
            ops=self.ops[start:stop],
            data=self.data,
            new=_slice(self.new, start, stop),
            old=None if old is None else _slice(old, start, stop),
        )

    @property
    def nbytes(self) -> int:
        """The memory that it holds beside the texts themselves."""
        sides = (self.new,) if self.old is None else (self.new, self.old)
        places = sum(side.starts.nbytes + side.lengths.nbytes for side in sides)
        return self.offsets.nbytes + self.ops.nbytes + places


class Rare(NamedTuple):
    """A truncate or a control record; no schema for what concerns every table."""

    offset: int
    raw: RawChange
    schema: Schema | None


Step: TypeAlias = Chunk | Rare


class Part(NamedTuple):
    """The steps of what one entry of the index holds; `records` were read to find them."""

    start: int
    stop: int
    records: int
    steps: list[Step]


Read: TypeAlias = Callable[[int, int, Holds | None], Iterator[Part]]
"""Reads the parts of `[start, stop)`; with a `Holds`, only of entries that have wanted offsets."""


class Steps:
    """Walks what `read` brings: the records of one relation, or of an event stream.

    Not thread safe while `keep` is on; afterwards it may be walked by several threads.
    """

    def __init__(self, read: Read, *, keep_bytes: int) -> None:
        self._read_parts = read
        self._kept: deque[Part] = deque()
        self._kept_bytes = 0
        self._kept_from: int | None = None
        self._keep_bytes = keep_bytes

    def walk(
        self, start: int, stop: int, *, keep: bool = False, holds: Holds | None = None
    ) -> Iterator[Part]:
        """The parts of `[start, stop)`; with `holds`, only entries that have wanted offsets.

        With `keep` the newest parts stay in memory. REQUIRES: a walk that keeps goes on where the
        one before it ended, or where it began.
        """
        kept = list(self._kept)
        between = start
        if self._kept_from is not None:
            between = min(max(start, self._kept_from), stop)
            yield from self._read(start, between, holds)
        behind = between
        for part in kept:
            if part.stop > between and part.start < stop and (holds is None or holds(*part[:2])):
                yield _within(part, between, stop)
            behind = max(behind, part.stop)
        for part in self._read(behind, stop, holds):
            if keep:
                self._remember(part)
            yield part

    def forget(self) -> None:
        """Let go of all that was kept."""
        self._kept.clear()
        self._kept_bytes, self._kept_from = 0, None

    def _read(self, start: int, stop: int, holds: Holds | None) -> Iterator[Part]:
        if start < stop:
            yield from self._read_parts(start, stop, holds)

    def _remember(self, part: Part) -> None:
        if self._keep_bytes <= 0:
            return
        if self._kept_from is None:
            self._kept_from = part.start
        self._kept.append(part)
        self._kept_bytes += _nbytes(part)
        while self._kept_bytes > self._keep_bytes:
            gone = self._kept.popleft()
            self._kept_bytes -= _nbytes(gone)
            self._kept_from = gone.stop


def relation_parts(engine: Engine, history: SchemaHistory, relation: int) -> Read:
    """Reads the records of one relation of a captured stream."""

    def read(start: int, stop: int, holds: Holds | None) -> Iterator[Part]:
        found = pieces(
            engine,
            history,
            start,
            stop,
            selection=lambda schema: schema.relation == relation,
            holds=holds,
        )
        for piece in found:
            yield _part(piece, piece.offsets[0], min(piece.entry.stop, stop))

    return read


def _part(piece: Piece, start: int, stop: int) -> Part:
    split = piece.split()
    offset_of = piece.offset_of_slot()
    rare = [
        Rare(
            int(offset_of[raw.slot]),
            raw,
            None if raw.relation is None else piece.schemas[raw.relation],
        )
        for raw in split.rare
    ]
    chunks = [_chunk(found, offset_of[found.slots]) for found in split.rows if len(found)]
    return Part(start, stop, len(piece.slots), _in_order(chunks, rare))


def _chunk(found: Split, offsets: Places) -> Chunk:
    return Chunk(
        schema=found.schema,
        offsets=offsets,
        ops=found.ops,
        data=found.data,
        new=found.new,
        old=found.old,
    )


def _in_order(chunks: list[Chunk], rare: list[Rare]) -> list[Step]:
    """Cut the chunks where rare records lie."""
    steps: list[Step] = []
    for one in chunks:
        at = 0
        for found in rare:
            place = int(np.searchsorted(one.offsets, found.offset))
            if place > at:
                steps.append(one.slice(at, place))
                at = place
        if at < len(one):
            steps.append(one.slice(at, len(one)) if at else one)
    return sorted([*steps, *rare], key=_first)


def _first(step: Step) -> int:
    return step.offset if isinstance(step, Rare) else int(step.offsets[0])


def _within(part: Part, start: int, stop: int) -> Part:
    """What of a part lies in `[start, stop)`."""
    if part.start >= start and part.stop <= stop:
        return part
    steps: list[Step] = []
    for step in part.steps:
        if isinstance(step, Rare):
            if start <= step.offset < stop:
                steps.append(step)
            continue
        low, high = np.searchsorted(step.offsets, [start, stop]).tolist()
        if low < high:
            steps.append(step.slice(low, high))
    return Part(max(part.start, start), min(part.stop, stop), part.records, steps)


def _slice(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(starts=rows.starts[:, start:stop], lengths=rows.lengths[:, start:stop])


def _nbytes(part: Part) -> int:
    chunks = [step for step in part.steps if isinstance(step, Chunk)]
    data = {id(chunk.data): chunk.data.nbytes for chunk in chunks}
    return sum(data.values()) + sum(chunk.nbytes for chunk in chunks) + _PART_BYTES
