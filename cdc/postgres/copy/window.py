"""What the stream changed of one table while the table is copied beside it (D12, I8).

::

    stream   ── update 7 (tx 91) ── delete 3 (tx 90) ── high watermark ──▶ the chunk's rows
    chunk       read under a snapshot that sees 90 and not 91:  1, 2, 7, 8

Row 7 of the chunk is older than what the stream has told already, and is left out; row 3 is not in
it. A change whose transaction the snapshot sees is contained in the chunk's row, which is newer or
the same. So offset order is version order for every key. What a snapshot sees, every later one
sees: the changes behind it are forgotten.

An update that leaves a large value UNCHANGED relies on the row before, which the log may not have
yet. The keys of such updates are kept as `unfilled`, until a chunk brings the whole row.

Changes from before `copy_begin` are not in the log any more: a chunk must see all of them.

All is bounded by KEYS_MAX. Beyond so many keys, a chunk that does not see the crowd's transactions
is read again; beyond so many of those, one that does not see all that are older than the newest. A
copy with too many unfilled rows begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable

from cdc.postgres.protocol.visibility import Visibility, is_newer
from eventlog.changes.change import RESETS, UNCHANGED, Op, RawChange, Text

KEYS_MAX = 200_000
"""Some 30 MB of small keys."""

Key = tuple[Text, ...]
"""The texts of a row's key columns, as the source sends them."""


class Window:
    """The changed keys of one relation, by the transactions that changed them."""

    def __init__(self, key_places: tuple[int, ...]) -> None:
        """`key_places`: where a row has its key's columns."""
        self.key_places = key_places
        self.unfilled: set[Key] = set()
        self.overflowed = False
        # All ranges are placed: the log has every row whole, but for the unfilled ones.
        self.whole = False
        self._changed: dict[Key, list[int]] = {}
        self._emptied: list[int] = []
        self._crowd: set[int] = set()
        self._crowd_until: int | None = None

    def see(self, changes: Iterable[RawChange], xid: int) -> None:
        """Note changes of one transaction, in order."""
        for change in changes:
            self.fill(change)
            if change.op is Op.TRUNCATE:
                self._emptied.append(xid)
                continue
            for key in self._keys(change):
                xids = self._changed.setdefault(key, [])
                if not xids or xids[-1] != xid:
                    xids.append(xid)
        if len(self._changed) > KEYS_MAX:
            self._crowd.update(xid for xids in self._changed.values() for xid in xids)
            self._changed = {}
        if len(self._crowd) > KEYS_MAX:
            newest = self._crowd_until
            for each in self._crowd:
                if newest is None or is_newer(each, newest):
                    newest = each
            self._crowd, self._crowd_until = set(), newest

    def begin(self) -> None:
        """Note that the log forgets the table: it holds none of the changes so far any more.

        A transaction whose changes came already may still be invisible, as commit records come
        before visibility: a snapshot without it lacks what the log lacks, too, and is taken again.
        """
        self._crowd.update(xid for xids in self._changed.values() for xid in xids)
        self._crowd.update(self._emptied)
        self._changed, self._emptied = {}, []
        self.unfilled.clear()
        self.overflowed = self.whole = False

    def fill(self, change: RawChange) -> None:
        """Note which keys lack a value after a change, and which do not any more."""
        if change.op in RESETS:
            self.unfilled.clear()
            self.overflowed = False
            return
        keys = self._keys(change)
        # The row before the change: where the log has all of it, a fold fills the one after it.
        known = self.whole and self.unfilled.isdisjoint(keys[:1])
        self.unfilled.difference_update(keys)
        if change.new is not None and UNCHANGED in change.new and not known:
            if len(self.unfilled) < KEYS_MAX:
                self.unfilled.add(keys[-1])
            else:
                self.overflowed = True

    def _keys(self, change: RawChange) -> list[Key]:
        """The old row's key and the new one's, those that there are."""
        keys = [] if change.old is None else [self.key_of(change.old)]
        if change.new is not None:
            key = self.key_of(change.new)
            if keys and UNCHANGED in key:
                # A large key that stayed is sent with the old row alone.
                pairs = zip(key, keys[0], strict=True)
                key = tuple([old if new is UNCHANGED else new for new, old in pairs])
            keys.append(key)
        return keys

    def key_of(self, row: tuple[Text, ...]) -> Key:
        return tuple([row[place] for place in self.key_places])

    def too_crowded(self, snapshot: Visibility) -> bool:
        """Whether it cannot be told which rows of that snapshot the stream has overtaken."""
        until = self._crowd_until
        if until is not None and not snapshot.sees_all_until(until):
            return True
        return any(not snapshot.sees(xid) for xid in self._crowd)

    def outdated(self, snapshot: Visibility) -> set[Key] | None:
        """The keys whose rows of that snapshot the stream has overtaken; None: all rows."""
        if any(not snapshot.sees(xid) for xid in self._emptied):
            return None
        return {
            key
            for key, xids in self._changed.items()
            if any(not snapshot.sees(xid) for xid in xids)
        }

    def forget(self, snapshot: Visibility) -> None:
        """Forget what that snapshot, and so every later one, sees."""
        self._emptied = [xid for xid in self._emptied if not snapshot.sees(xid)]
        self._crowd = {xid for xid in self._crowd if not snapshot.sees(xid)}
        if self._crowd_until is not None and snapshot.sees_all_until(self._crowd_until):
            self._crowd_until = None
        kept = {}
        for key, xids in self._changed.items():
            unseen = [xid for xid in xids if not snapshot.sees(xid)]
            if unseen:
                kept[key] = unseen
        self._changed = kept
