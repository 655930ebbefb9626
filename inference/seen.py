"""Rows as they were seen: each change beside what its row was before (D17).

The latest row of each key is held in memory; a restart rebuilds it by folding the stream again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from eventlog.changes.change import RESETS, UNCHANGED, Change, Op

Row = dict[str, Any]


class Seen(NamedTuple):
    """A row as it stood at `offset`; `old` is what it was before, None for a new one.

    `row` is None where the row went; a truncate has no key either. `before` is the key that the row
    had, where the change gave it another.
    """

    offset: int
    op: str
    key: Any
    before: Any
    row: Row | None
    old: Row | None


class RowsAsSeen:
    """Folds the changes of one table, in order."""

    def __init__(self) -> None:
        self._latest: dict[Any, Row] = {}

    def fold(self, changes: Iterable[Change]) -> list[Seen]:
        """Take in changes; returns what was seen with each that has a key."""
        seen = []
        for change in changes:
            if change.op in RESETS:
                self._latest.clear()
                if change.op is Op.TRUNCATE:
                    seen.append(Seen(change.offset, change.op, None, None, None, None))
            elif change.key is not None:
                seen.append(self._one(change))
        return seen

    def _one(self, change: Change) -> Seen:
        latest = self._latest
        key = _hashable(change.key)
        before = key
        if change.op is Op.UPDATE and change.old is not None:
            names = change.key.keys() if isinstance(change.key, dict) else None
            before = _hashable(_key_of(change.old, names) if names else _only(change.old, key))
        old = latest.pop(before, None)
        row = change.row
        if row is None:
            return Seen(change.offset, change.op, key, before, None, old)
        if UNCHANGED in row.values():
            kept = old or {}
            row = {n: kept.get(n) if v is UNCHANGED else v for n, v in row.items()}
        latest[key] = row
        return Seen(change.offset, change.op, key, before, row, old)


def _hashable(key: Any) -> Any:
    return tuple(sorted(key.items())) if isinstance(key, dict) else key


def _key_of(old: Row, names: Iterable[str]) -> Row:
    return {name: old[name] for name in names if name in old}


def _only(old: Row, key: Any) -> Any:
    # The old key of a one-column key is the one value sent; a whole old row has the key unchanged.
    return next(iter(old.values())) if len(old) == 1 else key
