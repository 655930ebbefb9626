"""Taking back what nothing was ever stored in: a stream, and a log that was made for it.

::

    a stream          made last, without records, schema versions, consumers and staged batches,
                      and its writer's lock is free
    a log directory   without streams, pins, models and foreign files, derived ones too, and nobody
                      has it open

Whoever makes either and then fails leaves nothing behind. What holds data, or is used by another
process, stays: both are looked at under the locks that keep others out. A number is given again
only if nothing was ever stored under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from eventlog.engine import pins, rows
from eventlog.engine.directory import FILES, FOLDERS, lost_data, open_store
from eventlog.engine.engine import Engine, now_us
from eventlog.engine.locks import FileLock, OpenLock
from eventlog.engine.rows import StreamRow
from eventlog.engine.store import Store, Txn, holds_data
from eventlog.engine.writer import lock_path
from eventlog.errors import EventLogError


def withdraw_stream(engine: Engine, name: str, *, writer_epoch: int) -> bool:
    """Take back a captured stream that nothing was stored in; False where it stays.

    Its source's state goes too, so the caller says that it describes nothing. `writer_epoch` is
    that of the caller's writer, which is closed: no other may have come since.
    """
    with engine.store.read() as txn:
        row = rows.stream_row(engine.store, txn, name)
    if row is None:
        return False
    lock = FileLock.take(lock_path(engine.path, row))
    if lock is None:
        return False
    gone = False
    try:
        with engine.store.write() as txn:
            gone = _withdraw(engine.store, txn, name, writer_epoch)
    finally:
        lock.release(remove=gone)
    return gone


def remove_empty_log(directory: Path, *, beside: Sequence[Path] = ()) -> bool:
    """Remove a log without streams, with the files `beside` it; False where it stays.

    The directory itself stays, empty. REQUIRES: this process has the log closed.
    """
    try:
        # Before the lock, whose file must not come into a folder that is another's.
        if _holds_others(directory):
            return False
        lock = OpenLock.alone(directory, doing="removing")
    except (OSError, EventLogError):
        return False
    emptied = False
    try:
        if not _holds_nothing(directory, lock):
            return False
        for path in beside:
            path.unlink(missing_ok=True)
        _empty(directory, lock)
        emptied = True
    except OSError:
        return False
    finally:
        lock.release(remove=emptied)
    with suppress(OSError):  # Another process may begin a log here by now.
        lock.path.parent.rmdir()
    return True


def _withdraw(store: Store, txn: Txn, name: str, writer_epoch: int) -> bool:
    row = rows.stream_row(store, txn, name)
    if row is None or row.writer_epoch != writer_epoch or not _is_untouched(store, txn, row):
        return False
    counted = rows.counters(store, txn)
    if counted.get("stream") != row.id + 1:
        return False  # Numbers are dense: of two new streams the later one stays, and so this one.
    key = rows.STREAM_KEYS + name.encode()
    txn.delete(key, db=store.meta)
    txn.delete(rows.SOURCE_KEYS + name.encode(), db=store.meta)
    rows.write_map(store, txn, rows.COUNTERS_KEY, {**counted, "stream": row.id})
    store.decoded.pop(key, None)
    return True


def _is_untouched(store: Store, txn: Txn, row: StreamRow) -> bool:
    if row.kind != "captured" or row.end or row.schemas or row.consumers or row.ids:
        return False
    if any(row.name in pin.ranges for pin in pins.pin_rows(store, txn)):
        return False
    return all(owner.stream != row.id for owner in rows.owner_rows(store, txn))


def _holds_nothing(directory: Path, lock: OpenLock) -> bool:
    if _holds_others(directory):
        return False
    if not holds_data(directory / "data.mdb"):
        return True  # Its making was cut off.
    try:
        store = open_store(directory, create=False, now_us=now_us(), alone=lock, begin=False)
    except EventLogError:
        return False
    try:
        with store.read() as txn:
            made = rows.counters(store, txn).get("stream", 1) - 1
            return not (made or rows.stream_names(store, txn) or pins.pin_rows(store, txn))
    except EventLogError:
        return False
    finally:
        store.close()


def _holds_others(directory: Path) -> bool:
    """Whether there are files that no log without streams has, or that are left of another log."""
    if {path.name for path in directory.iterdir()} - {*FOLDERS, *FILES}:
        return True
    if any(any((directory / folder).glob("*")) for folder in FOLDERS if folder != "locks"):
        return True
    return lost_data(directory)


def _empty(directory: Path, lock: OpenLock) -> None:
    """Remove everything but the lock, and its folder; a log that is cut off here can be begun."""
    for path in (directory / "locks").iterdir():
        if path != lock.path:
            path.unlink()
    for folder in FOLDERS:
        if folder != lock.path.parent.name:
            with suppress(FileNotFoundError):
                (directory / folder).rmdir()  # They are empty, or somebody put something there.
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
