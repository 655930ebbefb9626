"""How the key of a table's rows at a cut is found in records of its earlier schema versions.

====================================  =============================================================
the version                           its records
====================================  =============================================================
has the same columns in its key       are in the key index
has no key, or one that holds these   hold these columns in every row; found by reading them all
columns and more; or is under
REPLICA IDENTITY FULL
has another key                       do not tell which row they are of: the history begins behind
====================================  =============================================================

Columns are the same by attribute number, else by name, as in a fold.
"""

from __future__ import annotations

from collections.abc import Iterable

from eventlog.changes.change import ABSENT, UNCHANGED, RawChange, Text
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import places
from eventlog.history.hashing import key_hash
from eventlog.history.keys import KeyTexts


class RowKeys:
    """The keys of one relation's records by the columns of `target`'s key.

    `scanned` has, by schema id, where these columns are in versions that the index does not have
    them of; `strangers` are the versions with another key.
    """

    def __init__(self, target: Schema, versions: Iterable[Schema]) -> None:
        self.relation = target.relation
        self.scanned: dict[int, tuple[int, ...]] = {}
        self.strangers: list[Schema] = []
        self._places: dict[int, tuple[int, ...]] = {}
        self._orders = {tuple(range(len(target.row_key)))}
        for version in versions:
            self._add(target, version)

    def hashes(self, key: KeyTexts) -> set[int]:
        """What the key's records stand under in the index."""
        return {key_hash(self.relation, [key[place] for place in order]) for order in self._orders}

    def of(self, raw: RawChange, schema: Schema) -> tuple[KeyTexts | None, KeyTexts | None]:
        """The key before and the key after a record; None where it has none, or is a stranger's.

        An update that left the key as it was may have no key before.
        """
        at = self._places.get(schema.id)
        if at is None:
            return None, None
        old = None if raw.old is None else tuple(raw.old[place] for place in at)
        new = None if raw.new is None else tuple(raw.new[place] for place in at)
        if new is not None and old is not None:
            new = tuple(o if n is UNCHANGED else n for o, n in zip(old, new, strict=True))
        return _texts(old), _texts(new)

    def _add(self, target: Schema, version: Schema) -> None:
        mapped = places(version, target)
        at = tuple(mapped[place] for place in target.row_key)
        whole = tuple(place for place in at if place is not None)
        own = version.row_key
        is_full = version.identity == "f"
        if len(whole) < len(at) or (own and not is_full and not set(whole) <= set(own)):
            self.strangers.append(version)
            return
        self._places[version.id] = whole
        if set(whole) == set(own):
            self._orders.add(tuple(whole.index(place) for place in own))
        else:
            self.scanned[version.id] = whole


def _texts(key: tuple[Text, ...] | None) -> KeyTexts | None:
    if key is None or any(text is UNCHANGED or text is ABSENT for text in key):
        return None
    return tuple(text for text in key if text is None or isinstance(text, bytes))
