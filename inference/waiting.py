"""Instances whose truth has not come yet, by key."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from inference.expressions import Evaluated

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """Holds what waits for a label; follows rows that change their key, drops those that go."""

    def __init__(self) -> None:
        self._items: dict[Any, list[Item]] = {}

    def meet(self, seen: Evaluated) -> list[Item]:
        """Take in a row as seen; returns what its target labels, oldest first.

        The row itself is not among it: an instance is labelled by a later version only.
        """
        items = self._items
        if seen.gone:
            if seen.key is None:
                items.clear()
            else:
                items.pop(seen.key, None)
            return []
        if seen.before != seen.key and seen.before in items:
            items[seen.key] = items.pop(seen.before)
        return items.pop(seen.key, []) if seen.target is not None else []

    def add(self, seen: Evaluated, item: Item) -> None:
        """An instance begins to wait."""
        self._items.setdefault(seen.key, []).append(item)
