"""Lock files: who lives. A lock is held by its process and gone with it, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from eventlog.errors import DiskFull, EnvironmentFault, LogUnreadable


class FileLock:
    """An exclusive advisory lock (flock) on a file in the log's `locks/`.

    The file names its holder's process id, for messages; the lock itself is the kernel's.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """Take the lock, or return None where a living process holds it.

        Raises DiskFull or LogUnreadable where the file cannot be made.
        """
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise _unusable(path, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _still_there(path, descriptor):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                    return cls(path, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                os.close(descriptor)
                raise _unusable(path, error) from error
            os.close(descriptor)

    @staticmethod
    def holder(path: Path) -> str:
        """The process id written by the last holder, or `unknown`."""
        try:
            return path.read_text() or "unknown"
        except OSError:
            return "unknown"

    def release(self, *, remove: bool = False) -> None:
        """Let go; with `remove` the file goes too, while the lock is still held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(descriptor)


def _unusable(path: Path, error: OSError) -> EnvironmentFault:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"the disk has no room for the lock file {path}",
            hint="free some space and try again; nothing is lost",
        )
    return LogUnreadable(
        f"cannot use the lock file {path}: {error.strerror}",
        hint="look at the permissions of the log directory and its files",
    )


def _still_there(path: Path, descriptor: int) -> bool:
    # Another process may have removed the file between our open and our lock.
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
