"""The directory that a demo leaves: a log with a marker, by which the next run knows it may go.

::

    absent or empty      ──▶  made
    holds DEMO           ──▶  the old log is removed, the marker last, and a new one is made
    DEMO is locked       ──▶  LogExists: another demo is running there
    anything else        ──▶  LogExists, and nothing is touched

Files that a demo did not make are never removed: one of them refuses the whole directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import eventlog
from eventlog.errors import LogExists, LogUnreadable

MARKER = "DEMO"

_WORDS = "This log was made by `eventlog demo`, which replaces it when it runs again.\n"
_MADE = ("data.mdb", "lock.mdb", "locks", "blobs", "derived")
_HINT = "choose another directory with --log"


@contextmanager
def demo_log(directory: Path) -> Iterator[eventlog.Log]:
    """Open a new log in `directory`, in the place of an old demo's, and lock it for this run.

    Raises LogExists where anything else is there, LogUnreadable.
    """
    try:
        _clear(directory)
    except OSError as error:
        raise LogUnreadable(
            f"cannot make a demo log in {directory}: {error.strerror}", hint=_HINT
        ) from error
    with eventlog.open(directory, create=True) as log:
        marker = directory / MARKER
        with open(os.open(marker, os.O_RDWR | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            _lock(file.fileno(), directory)
            file.write(_WORDS)
            file.flush()
            yield log


def _clear(directory: Path) -> None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    marker = directory / MARKER
    if not marker.is_file():
        raise LogExists(f"{directory} is there and holds no demo log", hint=_HINT)
    others = sorted({path.name for path in directory.iterdir()} - {*_MADE, MARKER})
    if others:
        raise LogExists(
            f"{directory} holds a demo log, and {others[0]!r} that no demo made",
            hint=f"move that elsewhere, or {_HINT}",
        )
    with marker.open("rb") as file:
        _lock(file.fileno(), directory)
        for name in _MADE:
            path = directory / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        marker.unlink()


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LogExists(f"another demo is running in {directory}", hint=_HINT) from error
