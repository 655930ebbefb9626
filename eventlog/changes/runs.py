"""Runs: records of a stream that were read at once, to be cut into batches wherever one closes.

::

    entry    |  a a b a a a b t a   |      records of tables a and b, and a truncate of a
    run      [  a a   a a a   t a   ]      those that are selected, in the order of their offsets
    cut      [  a a   a ]                  any part of a run is one

Cutting a run is cheap: what was read is shared. Nothing of a run is decoded before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from eventlog.changes.change import RawChange
from eventlog.changes.decoding import Located
from eventlog.changes.reading import Piece
from eventlog.changes.schema import Schema
from eventlog.changes.split import Places, Split, SplitPayload

Item = TypeVar("Item", bound=tuple[Any, ...])


class Run(Protocol):
    """Records in the order of their offsets."""

    def __len__(self) -> int: ...

    def offset(self, place: int) -> int:
        """The offset of one record."""
        ...

    def cut(self, start: int, stop: int) -> Self:
        """The records at the places `[start, stop)`."""
        ...

    def versions(self) -> Sequence[tuple[int, Schema]]:
        """Each schema version whose records are here, after the place of its first one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRun(Generic[Item]):
    """Records at hand one by one, each beginning with its offset."""

    items: Sequence[Item]
    version: Callable[[Item], Schema | None]

    def __len__(self) -> int:
        return len(self.items)

    def offset(self, place: int) -> int:
        """The offset of one record."""
        found: int = self.items[place][0]
        return found

    def cut(self, start: int, stop: int) -> ItemRun[Item]:
        """The records at the places `[start, stop)`."""
        return ItemRun(items=self.items[start:stop], version=self.version)

    def versions(self) -> list[tuple[int, Schema]]:
        """Each schema version whose records are here, after the place of its first one."""
        found: dict[int, tuple[int, Schema]] = {}
        for place, item in enumerate(self.items):
            schema = self.version(item)
            if schema is not None and schema.id not in found:
                found[schema.id] = (place, schema)
        return list(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRun:
    """Changes of one piece, split. `slots` and `offsets` of the records ascend."""

    piece: Piece
    found: SplitPayload
    slots: Places
    offsets: Places

    @classmethod
    def of(cls, piece: Piece, found: SplitPayload) -> ChangeRun:
        """All selected records of a piece, whose `split` gave `found`."""
        if len(found.rows) == 1 and not found.rare:
            slots = found.rows[0].slots
        else:
            rare = np.array([raw.slot for raw in found.rare], np.int64)
            slots = np.sort(np.concatenate([rare, *(split.slots for split in found.rows)]))
        return cls(piece=piece, found=found, slots=slots, offsets=piece.offset_of_slot()[slots])

    def __len__(self) -> int:
        return len(self.slots)

    def offset(self, place: int) -> int:
        """The offset of one record."""
        return int(self.offsets[place])

    def offsets_of(self, slots: Places) -> Places:
        """The offsets of some of its records."""
        if len(slots) == len(self.slots):
            return self.offsets
        return self.offsets[np.searchsorted(self.slots, slots)]

    def cut(self, start: int, stop: int) -> ChangeRun:
        """The records at the places `[start, stop)`."""
        return ChangeRun(
            piece=self.piece,
            found=self.found,
            slots=self.slots[start:stop],
            offsets=self.offsets[start:stop],
        )

    def splits(self) -> Iterator[Split]:
        """The rows among the records, by relation; none is empty."""
        if len(self.slots):
            bounds = (self.slots[0], self.slots[-1] + 1)
            for split in self.found.rows:
                start, stop = np.searchsorted(split.slots, bounds).tolist()
                if start < stop:
                    yield split if stop - start == len(split) else split.cut(start, stop)

    def rare(self) -> list[RawChange]:
        """The truncates, messages and control records among the records."""
        if not len(self.slots):
            return []
        first, last = int(self.slots[0]), int(self.slots[-1])
        return [raw for raw in self.found.rare if first <= raw.slot <= last]

    def versions(self) -> list[tuple[int, Schema]]:
        """Each schema version whose records are here, after the place of its first one."""
        found: dict[int, tuple[int, Schema]] = {}
        firsts = [(int(split.slots[0]), split.schema) for split in self.splits()]
        for raw in self.rare():
            if raw.relation is not None:
                firsts.append((raw.slot, self.piece.schemas[raw.relation]))
        for slot, schema in sorted(firsts, key=lambda first: first[0]):
            if schema.id not in found:
                found[schema.id] = (int(np.searchsorted(self.slots, slot)), schema)
        return list(found.values())

    def located(self) -> Iterator[Located]:
        """The records one by one."""
        groups: list[Any] = [split.changes() for split in self.splits()]
        rare = self.rare()
        changes: Any
        if len(groups) == 1 and not rare:
            (changes,) = groups
        else:
            changes = sorted([*rare, *(raw for group in groups for raw in group)], key=_slot)
        piece = self.piece
        schemas = piece.schemas
        moments = piece.moments(self.slots)
        for offset, raw, moment in zip(self.offsets.tolist(), changes, moments, strict=True):
            schema = None if raw.relation is None else schemas[raw.relation]
            yield Located(offset, raw, schema, piece.codec, moment)


_slot = attrgetter("slot")
