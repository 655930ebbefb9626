"""Failpoints: named places where a test has the process die, as a crash would there.

::

    EVENTLOG_FAILPOINT=commit.before       die where this place is reached for the first time
    EVENTLOG_FAILPOINT=commit.before:3     die there at the third time

    directory.made       the directory of a new log is there, its data file is not
    directory.opened     the databases of a new log are there, its format row is not
    directory.written    the format row of a new log is durable, not all its folders are made
    commit.before        all is put, and LMDB has not begun to commit it
    commit.after         the commit is durable, and whoever asked for it does not know
    apply.appended       records are appended, and consumers not yet advanced
    outbox.staged        events are staged, and not yet published
    outbox.published     they are published, and the owner of the staging is not yet closed
    owner.locked         the lock file of a new owner is held, its row is not stored
    writer.locked        the lock file of a stream's writer is held, its epoch has not risen
    writer.raised        the epoch has risen, and the writer has no owner for its staging
    backup.written       a backup is whole and durable, and not yet under its name
    compact.written      the new data file is written, and not yet checked
    compact.checked      it is checked, and not yet in the place of the old one
    compact.renamed      it is there, and the rename is not yet durable
    repair.written       the repaired data file is written, and not yet checked
    repair.checked       it is checked, and the damaged one has no second name yet
    repair.kept          the damaged one has its second name, and still its first
    repair.renamed       the repaired one is in its place, and the rename is not yet durable

Dying is `os._exit`: nothing is closed, flushed or released, and what was written to files stays.
Any other name in the variable is an error at import.
"""

from __future__ import annotations

import os

from eventlog.errors import UsageError

VARIABLE = "EVENTLOG_FAILPOINT"
EXIT_CODE = 91
NAMES = (
    "directory.made",
    "directory.opened",
    "directory.written",
    "commit.before",
    "commit.after",
    "apply.appended",
    "outbox.staged",
    "outbox.published",
    "owner.locked",
    "writer.locked",
    "writer.raised",
    "backup.written",
    "compact.written",
    "compact.checked",
    "compact.renamed",
    "repair.written",
    "repair.checked",
    "repair.kept",
    "repair.renamed",
)


def _chosen(value: str | None) -> tuple[str, int]:
    # The name and how often it must be reached; "" where none was asked for.
    if not value:
        return "", 0
    name, colon, times = value.partition(":")
    if name not in NAMES:
        raise UsageError(
            f"${VARIABLE} names {name!r}, which is no failpoint",
            hint=f"they are {', '.join(NAMES)}",
        )
    if colon and not (times.isascii() and times.isdigit() and int(times)):
        raise UsageError(
            f"${VARIABLE} has {times!r} after the colon, which is no number of times",
            hint=f"write {name}:3 for the third time",
        )
    return name, int(times or 1)


_armed, _left = _chosen(os.environ.get(VARIABLE))


def reach(name: str) -> None:
    """Die here if this failpoint was asked for, and it was reached often enough."""
    if _armed:
        _count(name)


def _count(name: str) -> None:
    global _left
    if name == _armed:
        _left -= 1
        if not _left:
            os._exit(EXIT_CODE)
