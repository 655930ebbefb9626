"""How rows of earlier schema versions move to the columns of a later one.

A fold moves every row at each change of the schema. Here the changes are noted as they come, and
put together once: for a row written in one segment, each column of the target is one of the row's
own values, or the fast default of the version in which it was missing first.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TypeAlias

from eventlog.changes.schema import Schema
from eventlog.changes.schemas import places

Move: TypeAlias = int | bytes | None
"""Where a column comes from: a place in the row, or a default (None: NULL)."""


@dataclass(slots=True)
class Segments:
    """The schema versions of a fold in order, each from the offset where it took over."""

    starts: list[int] = field(default_factory=list)
    schemas: list[Schema] = field(default_factory=list)

    @property
    def last(self) -> Schema | None:
        """The version that is in force."""
        return self.schemas[-1] if self.schemas else None

    def add(self, offset: int, schema: Schema) -> None:
        """Note that a version takes over."""
        self.starts.append(offset)
        self.schemas.append(schema)

    def copy(self) -> Segments:
        """The same, to go on from."""
        return Segments(list(self.starts), list(self.schemas))


class Moves:
    """Moves rows of all segments to the columns of the last one."""

    def __init__(self, segments: Segments) -> None:
        self._starts = segments.starts
        moves: list[tuple[Move, ...]] = []
        later: Schema | None = None
        for schema in reversed(segments.schemas):
            if later is None:
                moves.append(tuple(range(len(schema.columns))))
            else:
                moves.append(_composed(schema, later, moves[-1]))
            later = schema
        self._moves = moves[::-1]

    def of(self, offset: int) -> tuple[Move, ...]:
        """Where each column of the target comes from, for a row written at that offset."""
        return self._moves[max(bisect_right(self._starts, offset) - 1, 0)]


def _composed(source: Schema, target: Schema, then: tuple[Move, ...]) -> tuple[Move, ...]:
    step = places(source, target)
    found: list[Move] = []
    for move in then:
        if isinstance(move, int):
            place = step[move]
            missing = target.columns[move].missing
            found.append(
                place if place is not None else None if missing is None else missing.encode()
            )
        else:
            found.append(move)
    return tuple(found)
