"""Waking: how a process that waits learns of a commit, its own or another process's.

::

    a commit    data pages, flush ──▶ meta page, flush ──▶ its number is published
    events      ▲  ▲                  ▲                    (some µs later)
                early: nothing new    the commit's own

inotify on the data file tells of every write; nobody has to tell, so a writer pays nothing. What an
event means is learned by a look at the number of the last commit. After an event that brought
nothing new the looks come at growing distances, since no other event may follow. LONGEST_S bounds
what a lost event could cost.

Where there is no inotify (another system than Linux), or no more of it (the limits on its instances
and watches, or on open files), a wait polls instead: a look every POLL_S, one or two percent of a
core. Each wait tries anew.

Thread safety: `Watches` may be shared among threads; a `Watch` belongs to one waiter.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

LONGEST_S = 0.1
"""Between two looks where no event comes."""

FIRST_S = 0.00005
"""From an event that brought nothing new to the next look; it doubles from look to look."""

POLL_S = 0.002
"""Between two looks without inotify."""

IDLE_MAX = 4
"""Watches kept for the next wait: an instance is one of 128 per user, and slow to close."""

_MODIFY = 2
_EVENTS_BYTES = 4096
_LIBC = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Tells when the file may have been written to. Without a descriptor it only lets time pass."""

    def __init__(self, descriptor: int | None = None, mark: int = 0) -> None:
        self._descriptor = descriptor
        self._mark = mark

    @classmethod
    def open(cls, path: Path) -> Watch:
        """Watch a file by inotify; where that cannot be had, the watch is one that polls."""
        try:
            descriptor = _called("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return cls()
        try:
            mark = _called("inotify_add_watch", descriptor, os.fsencode(path), _MODIFY)
        except OSError:
            os.close(descriptor)
            return cls()
        return cls(descriptor, mark)

    @property
    def longest_s(self) -> float:
        """How far apart two looks may lie."""
        return POLL_S if self._descriptor is None else LONGEST_S

    def fileno(self) -> int | None:
        """The descriptor that becomes readable at an event; None where there are no events."""
        return self._descriptor

    def wait(self, timeout_s: float) -> bool:
        """Wait for an event, at most `timeout_s` or `longest_s`; returns whether one came."""
        timeout_s = min(timeout_s, self.longest_s)
        if self._descriptor is None:
            time.sleep(timeout_s)
            return False
        if not _readable(self._descriptor, timeout_s):
            return False
        self.drain()
        return True

    def drain(self) -> None:
        """Forget the events that came."""
        # The kernel joins an event to an equal one before it, so they are few.
        if self._descriptor is not None:
            with suppress(BlockingIOError):
                os.read(self._descriptor, _EVENTS_BYTES)

    def end(self) -> None:
        """Wake whoever waits, from another thread: that the file is watched no more is an event."""
        if self._descriptor is not None:
            with suppress(OSError):
                _called("inotify_rm_watch", self._descriptor, self._mark)

    def close(self) -> None:
        """Give the descriptor back."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Watches:
    """The watches on one file, lent to whoever waits and kept for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()
        self._lock = Lock()
        self._closed = False
        self._idle: list[Watch] = []
        self._lent: set[Watch] = set()

    @contextmanager
    def lent(self) -> Iterator[Watch]:
        """A watch for one wait. It tells of every write from now on: look once before waiting."""
        watch = self._take()
        try:
            watch.drain()
            yield watch
        finally:
            self._take_back(watch)

    def close(self) -> None:
        """Close what is idle, and wake those who wait: their next look finds the log closed."""
        if os.getpid() != self._pid:
            # In a fork another thread's lock may be held for ever, and the marks are the parent's.
            for watch in (*self._idle, *self._lent):
                watch.close()
            return
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for watch in self._lent:
                watch.end()
        for watch in idle:
            watch.close()

    def _take(self) -> Watch:
        if os.getpid() != self._pid:
            return Watch()
        with self._lock:
            if self._closed:
                return Watch()
            watch = self._idle.pop() if self._idle else Watch.open(self._path)
            self._lent.add(watch)
            return watch

    def _take_back(self, watch: Watch) -> None:
        if os.getpid() == self._pid:
            with self._lock:
                self._lent.discard(watch)
                if not self._closed and len(self._idle) < IDLE_MAX and watch.fileno() is not None:
                    self._idle.append(watch)
                    return
        watch.close()


def wait(look: Callable[[], int], watches: Watches, seen: int, *, timeout_s: float) -> int:
    """Block until `look` returns another number than `seen`, or in time; returns the last one."""
    newest = look()
    if newest != seen or timeout_s <= 0:
        return newest
    looking = looks(look, seen, timeout_s=timeout_s)
    with watches.lent() as watch:
        try:
            pause_s = next(looking)
            while True:
                pause_s = looking.send(watch.wait(pause_s))
        except StopIteration as end:
            return int(end.value)


def looks(look: Callable[[], int], seen: int, *, timeout_s: float) -> Generator[float, bool, int]:
    """The looks of one wait: yields how long to wait for an event, is sent whether one came.

    Returns the last number: another one than `seen`, except where `timeout_s` is over.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = LONGEST_S
    while True:
        newest = look()
        remaining_s = deadline - time.monotonic()
        if newest != seen or remaining_s <= 0:
            return newest
        woken = yield min(pause_s, remaining_s)
        pause_s = FIRST_S if woken else min(2 * pause_s, LONGEST_S)


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class _TimeSpec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def _readable(descriptor: int, timeout_s: float) -> bool:
    """Whether a descriptor becomes readable in time; a signal may end the wait early."""
    # Python's poll() counts milliseconds, and most events are some µs ahead of what they tell.
    waited = ctypes.byref(_PollFd(descriptor, select.POLLIN, 0))
    seconds = int(timeout_s)
    timeout = ctypes.byref(_TimeSpec(seconds, int((timeout_s - seconds) * 1e9)))
    with suppress(InterruptedError):
        return bool(_called("ppoll", waited, ctypes.c_ulong(1), timeout, None))
    return False


def _called(name: str, *arguments: Any) -> int:
    """Call a function of libc. Raises OSError where it fails, or is not there."""
    try:
        function = getattr(_LIBC, name)
    except AttributeError as error:
        raise OSError(f"this system has no {name}") from error
    result = int(function(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
