"""Lives: which versions are of one row, and which rows the history of a key is about.

::

    offset   3          7              12            15         20         31
    key 5    insert ─── update ─┐                               insert ─── …      another life
    key 7                       └ 5→7 ─ update ───── delete
             ╰───────────── one life ──────────────────╯

A life begins with an insert, or with whatever is first heard of a row: its copy, an update. It goes
on through updates, repeated copies and key changes, and ends with a delete, with a truncate or a
copy that begins anew (a *reset*), or unheard where another row takes its key. **The history of a
key is every life that bore the key at any moment, from its first version to its last**, whatever
key it had then.

So all records under the key belong to it, and of other keys the *stretches* that its key changes
lead to: backwards to where the life began, and forwards to where it ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eventlog.changes.change import RESETS, Op
from eventlog.changes.decoding import Located
from eventlog.changes.fold import Row
from eventlog.changes.schema import Schema
from eventlog.history.entries import EDGE, LOSS, MOVE, RESET
from eventlog.history.keys import KeyTexts
from eventlog.history.picking import Picker
from eventlog.history.row_keys import RowKeys
from eventlog.history.view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The records under a key in `[start, stop)`."""

    key: KeyTexts
    start: int
    stop: int


class Trail:
    """The stretches that the history of a key in `[low, stop)` is made of."""

    def __init__(self, view: View, picker: Picker, keys: RowKeys, *, low: int, stop: int) -> None:
        self._view = view
        self._picker = picker
        self._keys = keys
        self._low = low
        self.stop = stop
        self.resets = view.rare(keys.relation, RESET)
        self.losses = view.rare(keys.relation, LOSS)

    def stretches(self, key: KeyTexts) -> list[Stretch]:
        """The key's own stretch, and those of other keys that its rows bore before or after."""
        found = [Stretch(key=key, start=self._low, stop=self.stop)]
        moves = self._view.places(self._keys.hashes(key), self._low, self.stop, flag=MOVE)
        for offset, before, after in self._edges(key, moves):
            if before is None or after is None:
                continue
            if after == key:
                found += self._back(before, offset, key)
            else:
                found += self._forth(after, offset, key)
        return found

    def offsets(self, stretches: Iterable[Stretch]) -> list[Iterator[int]]:
        """Where records of each stretch may be, ascending, read as they are iterated."""
        return [
            (offset for offset, _ in self._view.places(hashes, stretch.start, stretch.stop))
            for stretch in stretches
            if (hashes := self._keys.hashes(stretch.key))
        ]

    def _back(self, key: KeyTexts, offset: int, own: KeyTexts) -> Iterator[Stretch]:
        """The stretches of the row that bore `key` until it changed at `offset`."""
        while key != own:
            start, before = self._reset_below(offset), None
            places = list(self._view.places(self._keys.hashes(key), start, offset, flag=EDGE))
            for at, old, new in self._edges(key, reversed(places)):
                if new == key:
                    start, before = at, old
                else:
                    start = at + 1
                break
            yield Stretch(key=key, start=start, stop=offset + 1)
            if before is None:
                return
            key, offset = before, start

    def _forth(self, key: KeyTexts, offset: int, own: KeyTexts) -> Iterator[Stretch]:
        """The stretches of the row that took `key` at `offset`."""
        while key != own:
            stop, after = min(self._reset_above(offset) + 1, self.stop), None
            places = self._view.places(self._keys.hashes(key), offset + 1, stop, flag=EDGE)
            for at, old, new in self._edges(key, places):
                stop = at
                if old == key:
                    stop, after = at + 1, new
                break
            yield Stretch(key=key, start=offset, stop=stop)
            if after is None:
                return
            key, offset = after, stop - 1

    def _edges(
        self, key: KeyTexts, places: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, KeyTexts | None, KeyTexts | None]]:
        """Where rows begin or end to bear a key: (offset, key before, key after)."""
        for offset, _ in places:
            located = self._picker.one(offset)
            if located is not None:
                before, after = keys_of(located, self._keys)
                if before != after and key in (before, after):
                    yield offset, before, after

    def _reset_below(self, offset: int) -> int:
        """The first offset behind the last reset below `offset`."""
        place = int(np.searchsorted(self.resets, offset))
        return max(int(self.resets[place - 1]) + 1 if place else 0, self._low)

    def _reset_above(self, offset: int) -> int:
        place = int(np.searchsorted(self.resets, offset, side="right"))
        return int(self.resets[place]) if place < len(self.resets) else self.stop


def keys_of(located: Located, keys: RowKeys) -> tuple[KeyTexts | None, KeyTexts | None]:
    """The key before and after a record; of an insert only that after, of a delete before."""
    if located.schema is None:
        return None, None
    return keys.of(located.raw, located.schema)


@dataclass(slots=True, kw_only=True)
class Life:
    """A row while it lives: its number, and its last version with the offset of it."""

    number: int
    offset: int
    row: Row | None = None
    schema: Schema | None = None


class Lives:
    """Tells records apart by lives; takes those of the stretches and what ends them, in order.

    The first stretch is that of the key itself.
    """

    def __init__(self, keys: RowKeys, stretches: Sequence[Stretch]) -> None:
        self._keys = keys
        self._own = stretches[0].key
        self._others: dict[KeyTexts, list[Stretch]] = {}
        for stretch in stretches[1:]:
            self._others.setdefault(stretch.key, []).append(stretch)
        self._ends = sorted(((s.stop, s.key) for s in stretches[1:]), key=lambda end: end[0])
        self._ends.reverse()
        self._living: dict[KeyTexts, Life] = {}
        self._count = 0

    def of(self, located: Located) -> list[Life]:
        """The lives that a record is a version of: one, or for a reset and a loss all; or none."""
        offset, raw = located.offset, located.raw
        self._end_stretches(offset)
        if raw.op in RESETS or raw.op is Op.DATA_LOSS:
            found = sorted(self._living.values(), key=lambda life: life.number)
            if raw.op in RESETS:
                self._living.clear()
            return found
        before, after = keys_of(located, self._keys)
        if not self._is_ours(offset, before) and not self._is_ours(offset, after):
            return []
        life = None
        if raw.op is not Op.INSERT:
            at = after if before is None else before
            assert at is not None
            life = self._living.pop(at, None)
        if life is None:
            self._count += 1
            life = Life(number=self._count, offset=offset)
        life.offset = offset
        if after is not None:
            self._living[after] = life
        return [life]

    def _is_ours(self, offset: int, key: KeyTexts | None) -> bool:
        if key is None:
            return False
        return key == self._own or any(
            stretch.start <= offset < stretch.stop for stretch in self._others.get(key, ())
        )

    def _end_stretches(self, offset: int) -> None:
        """Let those go unheard whose key another row has taken by now."""
        while self._ends and self._ends[-1][0] <= offset:
            stop, key = self._ends.pop()
            life = self._living.get(key)
            if life is not None and key != self._own and life.offset < stop:
                del self._living[key]
