"""Lock files: who lives. A lock is held by its process and gone with it, however it dies.

::

    locks/stream-ID.lock    FileLock    alone     the single writer of a captured stream
    locks/owner-ID.lock     FileLock    alone     who stages batches
    locks/open.lock         OpenLock    shared    everyone that has the log open
                                        alone     who must have it for itself: compact, repair

All are flocks. The kernel would share them with a forked child and hold them for as long as that
lives, so a child closes its copies right after the fork: a lock stays its parent's alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from weakref import WeakSet

from eventlog.errors import DiskFull, EnvironmentFault, LogInUse, LogUnreadable

PROC_LOCKS = Path("/proc/locks")

_NAMED = 10
"""Process ids in a message."""


class _Held:
    """An open lock file, and the lock on it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        _HELD.add(self)

    @classmethod
    def _try(cls, path: Path, how: int) -> Self | None:
        """Take the lock, or return None where a living process is in the way.

        Raises DiskFull or LogUnreadable where the file cannot be made.
        """
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise _unusable(path, error) from error
            held = cls(path, descriptor)
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                if _still_there(path, descriptor):
                    _give_to_the_owner_of(path.parent, descriptor)
                    return held
            except BlockingIOError:
                held._forget()
                return None
            except OSError as error:
                held._forget()
                raise _unusable(path, error) from error
            held._forget()

    def _write(self, text: str) -> None:
        """Leave a word for others' messages; the lock itself is the kernel's.

        On a full disk there is none: what frees space must not fail for want of it.
        """
        assert self._descriptor is not None
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def flush_s(self) -> float:
        """How long the disk takes to flush a small write: the least of three, in seconds."""
        assert self._descriptor is not None
        found = []
        for _ in range(3):
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
            begun = time.perf_counter()
            os.fdatasync(self._descriptor)
            found.append(time.perf_counter() - begun)
        return min(found)

    def release(self, *, remove: bool = False) -> None:
        """Let go; with `remove` the file goes too, while the lock is still held."""
        if self._descriptor is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        # Not by the last close alone: a child that C code forked has a copy of the descriptor.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._forget()

    def _forget(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_HELD: WeakSet[_Held] = WeakSet()


def _let_go_in_child() -> None:
    for held in list(_HELD):
        held._forget()


os.register_at_fork(after_in_child=_let_go_in_child)


class FileLock(_Held):
    """An exclusive lock on a file in the log's `locks/`, which names its holder's process id."""

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Take the lock, or return None where a living process holds it.

        Raises DiskFull or LogUnreadable where the file cannot be made.
        """
        held = cls._try(path, fcntl.LOCK_EX)
        if held is not None:
            held._write(str(os.getpid()))
        return held

    @classmethod
    def is_held(cls, path: Path) -> bool:
        """Whether a living process holds the lock. Looking keeps a taker out, for a moment."""
        if not path.exists():
            return False
        seen = cls._try(path, fcntl.LOCK_SH)
        if seen is not None:
            seen.release()
        return seen is None

    @staticmethod
    def holder(path: Path) -> str:
        """The process id written by the last holder, or `unknown`."""
        return _read(path) or "unknown"


class OpenLock(_Held):
    """The lock of an open log: shared by all that use it, or held by one that needs it alone.

    It is refused at once, never waited for.
    """

    @classmethod
    def share(cls, directory: Path) -> Self:
        """Take it beside others. Raises LogInUse where a process has the log for itself."""
        path = _open_path(directory)
        held = cls._try(path, fcntl.LOCK_SH)
        if held is None:
            raise _at_work(directory, path)
        return held

    @classmethod
    def alone(cls, directory: Path, *, doing: str) -> Self:
        """Take it for this process alone; `doing` tells others what for, as in `compacting`.

        Raises LogInUse, naming the processes that have the log open.
        """
        path = _open_path(directory)
        held = cls._try(path, fcntl.LOCK_EX)
        if held is None:
            found = _holders_of(path)
            if not all(found.values()):
                raise _at_work(directory, path)
            raise LogInUse(
                f"{doing} {directory} needs it alone, and {_named(sorted(found))} it open",
                hint="stop what uses the log (captures, workers, notebooks), and try again",
            )
        held._write(f"{os.getpid()} {doing}")
        return held


def holders(proc_locks: str, *, inode: int, device: int) -> dict[int, bool]:
    """Who holds a flock on a file, out of the text of /proc/locks: pid → whether it is shared.

    Some file systems (btrfs, overlayfs) show another device there than stat does: where none
    agrees, the inode alone decides. Processes of other pid namespaces are not shown.
    """
    found: dict[int, bool] = {}
    agreed: dict[int, bool] = {}
    for line in proc_locks.splitlines():
        # 1: FLOCK  ADVISORY  READ 4711 08:01:13107 0 EOF; who waits has `->` after the number
        fields = line.split()
        if len(fields) < 8 or fields[1] != "FLOCK":
            continue
        major, minor, number = fields[5].split(":")
        pid = int(fields[4])
        if int(number) != inode or pid <= 0:
            continue
        found[pid] = fields[3] == "READ"
        if (int(major, 16), int(minor, 16)) == (os.major(device), os.minor(device)):
            agreed[pid] = found[pid]
    return agreed or found


def _open_path(directory: Path) -> Path:
    path = directory / "locks" / "open.lock"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error
    return path


def _holders_of(path: Path) -> dict[int, bool]:
    try:
        status = path.stat()
        return holders(PROC_LOCKS.read_text(), inode=status.st_ino, device=status.st_dev)
    except OSError:
        return {}


def _named(pids: Sequence[int]) -> str:
    """Whoever has it open, with a verb."""
    if not pids:
        return "another process has"
    shown = [f"{pid} (this one)" if pid == os.getpid() else str(pid) for pid in pids[:_NAMED]]
    if len(pids) > _NAMED:
        shown.append(f"{len(pids) - _NAMED} more")
    return f"process {shown[0]} has" if len(pids) == 1 else f"processes {', '.join(shown)} have"


def _at_work(directory: Path, path: Path) -> LogInUse:
    pid, _, doing = _read(path).partition(" ")
    return LogInUse(
        f"process {pid or 'unknown'} is {doing or 'at work on'} the log {directory}",
        hint="try again when it is done",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def hint_about(error: OSError) -> str:
    """What to do where a file of a log cannot be opened for writing, as all are."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "reading a log needs write access too: copy the directory, and read the copy"
    return "look at the permissions of the log directory and its files"


def _unusable(path: Path, error: OSError) -> EnvironmentFault:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"the disk has no room for the lock file {path}",
            hint="free some space and try again; nothing is lost",
        )
    return LogUnreadable(
        f"cannot use the lock file {path}: {error.strerror}", hint=hint_about(error)
    )


def _give_to_the_owner_of(folder: Path, descriptor: int) -> None:
    # A file that an administrator makes here must not keep the log's owner out.
    owner = os.stat(folder)
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid != owner.st_uid:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _still_there(path: Path, descriptor: int) -> bool:
    # Another process may have removed the file between our open and our lock.
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
