"""The log directory: what lies in it, and how it is made and recognised.

::

    data.mdb  lock.mdb     the LMDB environment
    locks/                 lock files: writers of streams, owners of staging
    blobs/                 files by their SHA-256
    derived/               may be deleted at any time

Everything is private to its owner.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from eventlog.engine import rows
from eventlog.engine.store import Store, holds_data
from eventlog.errors import LogExists, LogUnreadable, LogVersionError, NotALog

FORMAT_NUMBER = 1
KNOWN_FEATURES: frozenset[str] = frozenset()
"""Features of `must_know` that this version understands."""

_FOLDERS = ("locks", "blobs", "derived")
_FILES = ("data.mdb", "lock.mdb")


def open_store(directory: Path, *, create: bool, now_us: int) -> Store:
    """Open the log in `directory`; with `create`, make it where there is none.

    Raises NotALog, LogExists (the directory holds other things), LogVersionError, LogUnreadable.
    """
    data = directory / "data.mdb"
    exists = _is_there(data)
    if not exists and not create:
        raise NotALog(
            f"{directory} holds no event log",
            hint="name another directory with --log or $EVENTLOG_DIR, or make a log there: "
            "`eventlog capture` and `eventlog append --create` do",
        )
    if not exists:
        _make(directory)
    store = Store(directory, create=create)
    try:
        if create:
            _initialise(store, now_us)
        check_format(store, directory)
    except BaseException:
        store.close()
        raise
    for name in _FOLDERS:
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    return store


def check_format(store: Store, directory: Path) -> dict[str, Any]:
    """Return the stored format row, refusing what this version cannot read.

    Raises NotALog where no format row is there, LogVersionError for another number or an unknown
    feature that must be known.
    """
    with store.read() as txn:
        found = rows.read_map(store, txn, rows.FORMAT_KEY)
    if found is None:
        raise NotALog(
            f"{directory} holds an LMDB file that is no event log",
            hint="name the directory of a log, or create one elsewhere",
        )
    if found["number"] != FORMAT_NUMBER:
        raise LogVersionError(
            f"{directory} has format {found['number']}, this version reads {FORMAT_NUMBER}",
            hint="open it with the version of eventlog-cdc that wrote it",
        )
    unknown = sorted(set(found["must_know"]) - KNOWN_FEATURES)
    if unknown:
        raise LogVersionError(
            f"{directory} needs features that this version does not know: {', '.join(unknown)}",
            hint="open it with a newer version of eventlog-cdc",
        )
    return found


def _is_there(path: Path) -> bool:
    try:
        return holds_data(path)
    except OSError as error:
        raise LogUnreadable(
            f"cannot look into {path.parent}: {error.strerror}",
            hint="look at the permissions of the directory",
        ) from error


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A creation that was cut off leaves only these; it is finished, not refused.
        others = {path.name for path in directory.iterdir()} - {*_FOLDERS, *_FILES}
    except OSError as error:
        raise LogUnreadable(
            f"cannot make the log directory {directory}: {error.strerror}",
            hint="name a directory that you may write with --log or $EVENTLOG_DIR",
        ) from error
    if others:
        raise LogExists(
            f"{directory} is not empty and holds no event log (there is {min(others)!r})",
            hint="name a new or an empty directory",
        )
    os.chmod(directory, 0o700)


def _initialise(store: Store, now_us: int) -> None:
    with store.read() as txn:
        if txn.stat(db=store.meta)["entries"]:
            return
    with store.write() as txn:
        if txn.stat(db=store.meta)["entries"]:
            return
        features: dict[str, Any] = {"number": FORMAT_NUMBER, "must_know": [], "may_ignore": []}
        rows.write_map(store, txn, rows.FORMAT_KEY, features)
        identity = {"id": uuid.uuid4().bytes, "created_us": now_us, "generation": 1}
        rows.write_map(store, txn, rows.LOG_KEY, {**identity, "covers": {}})
