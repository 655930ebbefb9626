"""Staging: batches that are stored durably but are in no stream yet (D6).

Key (owner u64, sequence u64), big-endian, value: the packed index entry to come. Publishing moves
the entries into a stream; the payloads stay where they are. Each owner has a row and a lock file:
whoever can take the lock of an owner knows that it is dead.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from eventlog.engine import index, rows
from eventlog.engine.index import IndexEntry
from eventlog.engine.locks import FileLock
from eventlog.engine.payload_store import delete_body
from eventlog.engine.store import Store, Txn

_KEY = struct.Struct(">QQ")
_LOCK_NAME = re.compile(r"owner-([0-9]+)\.lock")


def put(
    store: Store, txn: Txn, owner: int, entries: Sequence[IndexEntry], *, sequence: int
) -> None:
    """Stage entries under `owner`, numbered from `sequence` on."""
    for number, entry in enumerate(entries, sequence):
        key = _KEY.pack(owner, number)
        txn.put(key, index.pack(entry, under=key), db=store.staging)


def entries(store: Store, txn: Txn, owner: int) -> Iterator[tuple[bytes, IndexEntry]]:
    """The staged entries of an owner with their keys, in order."""
    cursor = txn.cursor(db=store.staging)
    positioned = cursor.set_range(_KEY.pack(owner, 0))
    while positioned:
        key, value = cursor.item()
        found, _ = _KEY.unpack(key)
        if found != owner:
            break
        yield key, index.unpack(0, value, under=key)
        positioned = cursor.next()


def publish(store: Store, txn: Txn, owner: int) -> list[IndexEntry]:
    """Remove and return all that an owner staged; an appender is done then, and goes too.

    Raises DamagedLog where there is less than it staged.
    """
    row = rows.owner_row(store, txn, owner)
    found = _take(store, txn, owner)
    if row is None or row.staged != len(found):
        staged = "nothing" if row is None else f"{row.staged} batches"
        raise rows.vanished(f"owner {owner} staged {staged}, and {len(found)} batches are there")
    if any(index.UNFINISHED in entry.more for entry in found):
        raise rows.vanished(f"owner {owner} staged a batch of which parts are missing")
    if row.kind == "append":
        rows.delete_owner(store, txn, owner)
    else:
        rows.write_owner(store, txn, replace(row, staged=0))
    return found


def drop(store: Store, txn: Txn, owner: int) -> int:
    """Delete what an owner staged, payloads included; returns the number of batches."""
    found = _take(store, txn, owner)
    for entry in found:
        delete_body(store, txn, entry)
    return len(found)


def _take(store: Store, txn: Txn, owner: int) -> list[IndexEntry]:
    found = list(entries(store, txn, owner))
    for key, _ in found:
        txn.delete(key, db=store.staging)
    return [entry for _, entry in found]


def lock_path(directory: Path, owner: int) -> Path:
    return directory / "locks" / f"owner-{owner}.lock"


def drop_dead_appenders(store: Store, directory: Path) -> int:
    """Drop what appenders staged that have died since; returns how many there were.

    Lock files of owners that died before their row was stored, or after it was deleted, go too.
    """
    with store.read() as txn:
        kinds = {row.id: row.kind for row in rows.owner_rows(store, txn)}
    files = (directory / "locks").glob("owner-*.lock")
    named = {int(found[1]) for path in files if (found := _LOCK_NAME.fullmatch(path.name))}
    appenders = {owner for owner, kind in kinds.items() if kind == "append"}
    dropped = 0
    for owner in sorted(appenders | named - kinds.keys()):
        lock = FileLock.take(lock_path(directory, owner))
        if lock is None:
            continue
        try:
            dropped += _drop_owner(store, owner)
        finally:
            lock.release(remove=True)
    return dropped


def _drop_owner(store: Store, owner: int) -> bool:
    # Its lock is held here: no one else changes the row.
    with store.read() as txn:
        row = rows.owner_row(store, txn, owner)
    if row is None or row.kind != "append":
        return False
    with store.write() as txn:
        drop(store, txn, owner)
        rows.delete_owner(store, txn, owner)
    return True
