"""Generations: how a backup that was opened is told from the log that it was taken of (D8).

::

    log ──backup──▶ copy, marked      ──opened──▶ log of generation + 1
                    `backup` in the               mark gone; `covers` holds, under the new
                    row of the log                generation, the first offset of each stream
                                                  that it covers: its end at that moment

Event streams go on from there. A captured stream's row says that it was `restored`, until a capture
has made sure that nothing was captured since, elsewhere, by the original. A plain copy of the files
carries no mark, and cannot be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eventlog.engine import rows
from eventlog.engine.commit import require_stream
from eventlog.engine.store import Store, Txn

if TYPE_CHECKING:
    from eventlog.engine.engine import Engine

_MARK = "backup"
_RESTORED = "restored"


def backup_mark(identity: Mapping[str, Any], *, taken_us: int) -> dict[str, Any]:
    """The row of a log as its backup has it."""
    mark = {"of_generation": identity["generation"], "taken_us": taken_us}
    return {**identity, _MARK: mark}


def begin_if_backup(store: Store) -> None:
    """Begin the next generation where the log is a backup that is opened for the first time."""
    if _MARK not in _identity(store):
        return
    with store.write() as txn:
        identity = rows.read_map(store, txn, rows.LOG_KEY) or {}
        if _MARK in identity:  # Else another process was faster.
            _begin(store, txn, identity)


def restored(engine: Engine, stream: str) -> int | None:
    """The generation that began when a stream came out of a backup, where that is unsettled."""
    found: int | None = engine.stream(stream).more.get(_RESTORED)
    return found


def settle(engine: Engine, stream: str) -> bool:
    """Note that a stream goes on where its backup ended; tells whether it came out of one.

    REQUIRES: the caller is the stream's writer.
    """
    if restored(engine, stream) is None:
        return False
    with engine.store.write() as txn:
        row = require_stream(engine.store, txn, stream)
        more = {name: value for name, value in row.more.items() if name != _RESTORED}
        rows.write_stream(engine.store, txn, replace(row, more=more))
    return True


def _identity(store: Store) -> dict[str, Any]:
    with store.read() as txn:
        return rows.read_map(store, txn, rows.LOG_KEY) or {}


def _begin(store: Store, txn: Txn, identity: dict[str, Any]) -> None:
    del identity[_MARK]
    generation = identity["generation"] + 1
    ends = {}
    for row in rows.stream_rows(store, txn):
        ends[row.name] = row.end
        if row.kind == "captured":
            marked = replace(row, more={**row.more, _RESTORED: generation})
            rows.write_stream(store, txn, marked)
    covers = {**identity["covers"], str(generation): ends}
    rows.write_map(
        store, txn, rows.LOG_KEY, {**identity, "generation": generation, "covers": covers}
    )
