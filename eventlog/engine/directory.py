"""The log directory: what lies in it, and how it is made and recognised.

::

    data.mdb  lock.mdb     the LMDB environment
    locks/                 lock files: who has the log open, writers of streams, owners of staging
    blobs/                 files by their SHA-256
    derived/               may be deleted at any time

Everything is private to its owner.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from eventlog.engine import generation, rows
from eventlog.engine.failpoint import reach
from eventlog.engine.locks import OpenLock
from eventlog.engine.mounts import warn_of_network
from eventlog.engine.store import Store, holds_data
from eventlog.engine.upgrade import FEATURES, KNOWN, upgrade
from eventlog.errors import LogExists, LogUnreadable, LogVersionError, NotALog

FORMAT_NUMBER = 1
FOLDERS = ("locks", "blobs", "derived")
FILES = ("data.mdb", "lock.mdb")
_DATA_GONE_HINT = "restore it from a backup, or remove the directory to begin a new log"


def open_store(
    directory: Path,
    *,
    create: bool,
    now_us: int,
    alone: OpenLock | None = None,
    begin: bool = True,
) -> Store:
    """Open the log in `directory`; with `create`, make it where there is none.

    It is shared with others, unless the caller has it `alone`, and keeps that lock. Without `begin`
    nothing is changed: a backup begins no generation, and a log of an earlier version stays one,
    which is to be asked by `is_current` and must not be used as a log then.
    Raises NotALog, LogExists (the directory holds other things), LogVersionError, LogUnreadable,
    LogInUse.
    """
    if not create:
        require_data(directory)
    elif not _is_there(directory / "data.mdb"):
        _make(directory)
        reach("directory.made")
    warn_of_network(directory)
    lock = OpenLock.share(directory) if alone is None else None
    try:
        store = Store(directory, create=create, lock=lock, complete=begin)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    try:
        if create:
            reach("directory.opened")
            _initialise(store, directory, now_us)
            reach("directory.written")
        check_format(store, directory)
        if begin:
            upgrade(store)
            generation.begin_if_backup(store)
    except BaseException:
        store.close()
        raise
    for name in FOLDERS if begin else ():
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    return store


def require_data(directory: Path) -> None:
    """Raise NotALog where no data file is there, LogUnreadable where one cannot look."""
    if _is_there(directory / "data.mdb"):
        return
    if lost_data(directory):
        raise NotALog(f"the data file of {directory} is gone", hint=_DATA_GONE_HINT)
    raise NotALog(
        f"{directory} holds no event log",
        hint="name another directory with --log or $EVENTLOG_DIR, or make a log there: "
        "`eventlog capture`, `eventlog append --create` and eventlog.open(..., create=True) do",
    )


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
    unknown = sorted(set(found["must_know"]) - KNOWN)
    if unknown:
        raise LogVersionError(
            f"{directory} needs features that this version does not know: {', '.join(unknown)}",
            hint="open it with a newer version of eventlog-cdc",
        )
    return found


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_there(path: Path) -> bool:
    try:
        return holds_data(path)
    except OSError as error:
        raise LogUnreadable(
            f"cannot look into {path.parent}: {error.strerror}",
            hint="look at the permissions of the directory",
        ) from error


def lost_data(directory: Path) -> bool:
    """Whether there was a log. Its folders are made last: a creation cut off has but one lock."""
    found = [*(directory / "locks").glob("*"), *directory.glob("blobs")]
    lost = any(path.name != "open.lock" for path in found)
    # Another process may have finished a creation, and begun to use the log, in between.
    return lost and not _is_there(directory / "data.mdb")


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A creation that was cut off leaves only these; it is finished, not refused.
        others = {path.name for path in directory.iterdir()} - {*FOLDERS, *FILES}
        lost = lost_data(directory)
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
    if lost:
        # A log in its place would begin at offset 0 once more.
        raise LogExists(f"the data file of {directory} is gone", hint=_DATA_GONE_HINT)
    os.chmod(directory, 0o700)


def _initialise(store: Store, directory: Path, now_us: int) -> None:
    with store.read() as txn:
        if txn.stat(db=store.meta)["entries"]:
            return
    # A commit flushes the data file; a file whose name is lost with the power is lost, too.
    for path in (directory, directory.parent):
        sync_directory(path)
    with store.write() as txn:
        if txn.stat(db=store.meta)["entries"]:
            return
        features = {"number": FORMAT_NUMBER, "must_know": list(FEATURES), "may_ignore": []}
        rows.write_map(store, txn, rows.FORMAT_KEY, features)
        rows.write_map(store, txn, rows.COUNTERS_KEY, {})
        identity = {"id": uuid.uuid4().bytes, "created_us": now_us, "generation": 1}
        rows.write_map(store, txn, rows.LOG_KEY, {**identity, "covers": {}})
