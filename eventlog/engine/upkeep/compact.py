"""Compacting: a log rewritten without its free pages, which gives their space back to the disk.

::

    derived/compacting/     a log of its own: the rewrite, flushed, and checked as any log is
    data.mdb                replaced by that one's in a single rename

For this the log is held alone: others that had it open would go on in the old file. Killed at any
moment the log is the old one or the new one, whole; what is left in `derived` goes at the next
attempt. Offsets, identity and generation stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eventlog.engine.directory import open_store, require_data, sync_directory
from eventlog.engine.engine import now_us
from eventlog.engine.failpoint import reach
from eventlog.engine.locks import OpenLock
from eventlog.engine.store import Store
from eventlog.engine.upkeep.check import check_store
from eventlog.engine.upkeep.rewrite import rewrite
from eventlog.errors import DamagedLog, DiskFull, LogUnreadable

SPARE_BYTES = 4 << 20
"""Free pages of the new file itself, and what else is written meanwhile."""

Progress = Callable[[int, int], None]
"""Told of the records rewritten and checked so far, each counted twice, and of all that will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """The bytes that the log's data file took before, and takes now."""

    bytes_before: int
    bytes_after: int


def compact(directory: Path, *, progress: Progress | None = None) -> Compacted:
    """Rewrite the log in `directory` in as little space as it needs.

    Raises LogInUse where any process has it open, DiskFull where the disk has no room for the new
    file beside the old one, DamagedLog where the log is not sound; it is as it was then. And what
    opening a log raises.
    """
    directory = directory.resolve()
    require_data(directory)
    lock = OpenLock.alone(directory, doing="compacting")
    try:
        return _compact(directory, lock, progress or (lambda done, total: None))
    except OSError as error:
        raise LogUnreadable(
            f"cannot compact {directory}: {error.strerror} ({error.filename})",
            hint="look at the permissions of the log directory and its files; the log is whole",
        ) from error
    finally:
        lock.release()


def _compact(directory: Path, lock: OpenLock, progress: Progress) -> Compacted:
    data, scratch = directory / "data.mdb", directory / "derived" / "compacting"
    store = open_store(directory, create=False, now_us=now_us(), alone=lock)
    try:
        before = data.stat().st_size
        if scratch.exists():
            shutil.rmtree(scratch)
        _require_room(directory, store.live_bytes())
        scratch.mkdir(mode=0o700)
        target = Store(scratch, create=True)
        try:
            rewrite(store, target, progress=lambda done, total: progress(done, 2 * total))
        finally:
            target.close()
        reach("compact.written")
        _verify(scratch, lambda done, total: progress(total + done, 2 * total))
        reach("compact.checked")
        store.close()
        _give_to_the_owner_of(data, scratch / "data.mdb")
        # lock.mdb stays: nobody has it open, so whoever opens the log next begins it anew.
        (scratch / "data.mdb").rename(data)
        reach("compact.renamed")
        sync_directory(directory)
    finally:
        store.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return Compacted(bytes_before=before, bytes_after=data.stat().st_size)


def _give_to_the_owner_of(old: Path, new: Path) -> None:
    # An administrator's: whoever the log belongs to must be able to open it afterwards.
    owner = old.stat()
    if new.stat().st_uid != owner.st_uid:
        os.chown(new, owner.st_uid, owner.st_gid)


def _require_room(directory: Path, needed: int) -> None:
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < needed + SPARE_BYTES:
        raise DiskFull(
            f"compacting {directory} needs {needed + SPARE_BYTES:,} bytes for the new file beside "
            f"the old one, and the disk has {free:,}",
            hint="free some space and try again; the log is unchanged",
        )


def _verify(scratch: Path, progress: Progress) -> None:
    store = Store(scratch, create=False)
    try:
        violations = check_store(store, progress=progress)
    finally:
        store.close()
    if violations:
        raise DamagedLog(
            f"the log is not sound, and stays as it is: {violations[0]}",
            hint="`eventlog check` names all that is wrong, `eventlog repair` mends it",
        )
