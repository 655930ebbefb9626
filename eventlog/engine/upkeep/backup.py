"""Backup: a copy of a live log as it was at one moment, while others go on writing (D8).

::

    DIR's parent/.DIR.partial/    locked while it is made; what a killed backup left is replaced
        data.mdb                  a rewrite, marked as a backup in the row of the log
        blobs/                    each file held against its name
    DIR/                          the same, renamed when all of it is on the disk

So whatever stands under DIR is a whole backup. It is a log: whoever opens it begins a generation.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eventlog.engine.directory import sync_directory
from eventlog.engine.engine import now_us
from eventlog.engine.failpoint import reach
from eventlog.engine.generation import backup_mark
from eventlog.engine.store import Store
from eventlog.engine.upkeep.rewrite import Progress, rewrite
from eventlog.errors import DamagedLog, DiskFull, EnvironmentFault, LogExists, LogUnreadable

if TYPE_CHECKING:
    from eventlog.engine.engine import Engine

_BLOB = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20
_MADE = frozenset({"data.mdb", "lock.mdb", "locks", "blobs", "derived"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """What a backup holds: the records of all streams, and the bytes of its files."""

    records: int
    bytes: int


def backup(engine: Engine, directory: Path, *, progress: Progress | None = None) -> BackedUp:
    """Copy the log into `directory`, which must not exist or be empty. Writers go on.

    `progress` is told of the records copied so far, and of all. Raises LogExists where something is
    in the way, DamagedLog where a stored batch is not what was written, DiskFull, LogUnreadable.
    """
    directory = directory.absolute()
    store = engine.store
    new = [directory, *(path for path in directory.parents if not path.exists())]
    try:
        _require_room_for(directory, engine.path)
        with _partial(directory) as partial:
            taken_us = now_us()
            target = Store(partial, create=True)
            try:
                records = rewrite(
                    store,
                    target,
                    identity=lambda row: backup_mark(row, taken_us=taken_us),
                    progress=progress,
                )
            finally:
                target.close()
            (partial / "lock.mdb").unlink()
            # A blob is stored before the row that names it: all that the rows name are there.
            _copy_blobs(engine.path / "blobs", partial / "blobs")
            sync_directory(partial)
            files = (path for path in partial.rglob("*") if path.is_file())
            size = sum(path.stat().st_size for path in files)
            reach("backup.written")
            partial.rename(directory)
            for path in new:
                sync_directory(path.parent)
    except OSError as error:
        raise _failed(directory, error) from error
    return BackedUp(records=records, bytes=size)


def _require_room_for(directory: Path, log: Path) -> None:
    if directory.resolve().is_relative_to(log):
        raise LogExists(
            f"{directory} lies in the log itself", hint="name a directory outside of the log"
        )
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise LogExists(f"{directory} is no directory", hint="name a new one")
    if directory.is_mount():
        raise LogExists(
            f"{directory} is where a disk is mounted, and cannot be replaced",
            hint="name a new directory inside of it",
        )
    if directory.exists() and any(directory.iterdir()):
        raise LogExists(
            f"{directory} is not empty", hint="a backup is whole: name a new or an empty directory"
        )


@contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    """The directory beside the one to come, emptied, locked, and removed on a failure."""
    path = directory.parent / f".{directory.name}.partial"
    directory.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LogExists(
                f"another process is making the backup {directory}",
                hint="wait for it, or name another directory",
            ) from error
        others = sorted(set(os.listdir(path)) - _MADE)
        if others:
            raise LogExists(
                f"{path} holds {others[0]!r}, which no backup made",
                hint="move that elsewhere, or name another directory",
            )
        _empty(path)
        try:
            yield path
        except BaseException:
            with suppress(OSError):
                _empty(path)
                path.rmdir()
            raise
    finally:
        os.close(descriptor)


def _empty(path: Path) -> None:
    for inner in path.iterdir():
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner)
        else:
            inner.unlink()


def _copy_blobs(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for path in sorted(source.iterdir()):
        if not _BLOB.fullmatch(path.name):
            continue  # One that is being written.
        digest = hashlib.sha256()
        with (
            path.open("rb") as blob,
            open(os.open(target / path.name, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as copy,
        ):
            while chunk := blob.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        if digest.hexdigest() != path.name:
            raise DamagedLog(
                f"the file {path} is damaged: its content has another checksum than its name",
                hint="restore it from a copy, or remove it and what refers to it",
            )
    sync_directory(target)


def _failed(directory: Path, error: OSError) -> EnvironmentFault:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"the disk has no room for the backup {directory}",
            hint="free some space, or name a directory on another disk",
        )
    return LogUnreadable(
        f"cannot make the backup {directory}: {error.strerror} ({error.filename})",
        hint="name a directory that you may write",
    )
