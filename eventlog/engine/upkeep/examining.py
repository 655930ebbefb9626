"""Examining a log that may be broken: pages first, and only sound ones are handed to LMDB.

::

    sectors     reading the whole file                an error: the walker tells what can be read,
    pages       `lmdb.verify`, which only reads       broken: and LMDB never sees the file
    rows        opening the log                       refused, or of an earlier version: the same
    the rest    the integrity check

Nothing of the log is changed. A sector that the disk cannot read would end whoever maps the file,
by a signal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eventlog.engine.directory import open_store, require_data
from eventlog.engine.engine import Engine, now_us
from eventlog.engine.locks import OpenLock
from eventlog.engine.store import structure_faults
from eventlog.engine.upgrade import is_current
from eventlog.engine.upkeep.check import Progress, check_store
from eventlog.engine.upkeep.findings import gather
from eventlog.engine.upkeep.pages import BadPage, open_data
from eventlog.engine.upkeep.salvage import Salvaged, sound_log
from eventlog.engine.upkeep.violation import Violation
from eventlog.engine.upkeep.walker import Walker
from eventlog.errors import DamagedLog, LogInUse, NotALog

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What can be made of a data file, and the file, open for reading its bodies.

    `rows_bytes` is what all but the bodies takes.
    """

    walker: Walker
    salvaged: Salvaged
    rows_bytes: int


def check_directory(directory: Path, *, progress: Progress | None = None) -> list[Violation]:
    """Every violation of a log, which is not changed: a backup stays one, as does an older log.

    Where nobody has it open, nobody can open it until its pages are looked at. Raises NotALog where
    nothing of a log is there, LogInUse for a log of an earlier version that is in use.
    """
    directory = directory.resolve()
    require_data(directory)
    in_use = None
    try:
        lock = OpenLock.alone(directory, doing="checking")
    except LogInUse as error:
        in_use = error
    else:
        try:
            found, openable = _first_look(directory, lock)
            if not openable:
                with salvaged(directory, progress=progress) as salvage:
                    return found + _told(salvage.salvaged)
        finally:
            lock.release()
    with Engine.open(directory, begin=False) as engine:
        if in_use is not None and not is_current(engine.store):
            raise in_use
        return check_store(engine.store, progress=progress)


def violations(
    directory: Path, lock: OpenLock, *, progress: Progress | None = None
) -> list[Violation]:
    """What is wrong with a log that is held alone; where it must not be opened, only why."""
    found, openable = _first_look(directory, lock)
    if found:
        return found
    if not openable:
        with salvaged(directory, progress=progress) as salvage:
            return _told(salvage.salvaged)
    store = open_store(directory, create=False, now_us=now_us(), alone=lock, begin=False)
    try:
        return check_store(store, progress=progress)
    finally:
        store.close()


@contextmanager
def salvaged(directory: Path, *, progress: Progress | None = None) -> Iterator[Salvage]:
    """Read a damaged data file as far as it can be read, and decide what a sound one would be."""
    with open_data(directory / "data.mdb") as file:
        walker = Walker.of_best_state(file)
        found = gather(walker, progress=progress)
        decided = sound_log(found, new_id=os.urandom(16), now_us=now_us())
        values = (pair for small in found.values.values() for pair in small.items())
        rows_bytes = sum(len(key) + len(value) for key, value in values)
        yield Salvage(walker=walker, salvaged=decided, rows_bytes=rows_bytes)


def _pages(directory: Path) -> list[Violation]:
    data = directory / "data.mdb"
    return [
        Violation(invariant="store", stream=None, where="data.mdb", what=what)
        for what in (*_unreadable(data), *structure_faults(data))
    ]


def _unreadable(data: Path) -> list[str]:
    with open_data(data) as file:
        for at in range(0, file.size, _CHUNK_BYTES):
            try:
                file.bytes_at(at, min(_CHUNK_BYTES, file.size - at))
            except BadPage as error:
                return [f"bytes {at} and on: {error}"]
    return []


def _first_look(directory: Path, lock: OpenLock) -> tuple[list[Violation], bool]:
    """What forbids opening a log, and whether its rows can be checked by opening it."""
    found = _pages(directory)
    if found:
        return found, False
    try:
        store = open_store(directory, create=False, now_us=now_us(), alone=lock, begin=False)
    except (DamagedLog, NotALog) as error:
        return [Violation(invariant="store", stream=None, where="opening", what=f"{error}")], False
    try:
        return [], is_current(store)
    finally:
        store.close()


def _told(found: Salvaged) -> list[Violation]:
    lost = [
        Violation(
            invariant="I1",
            stream=gone.stream,
            where=f"offsets [{gone.start}, {gone.stop})",
            what=f"they are lost: {gone.why}",
        )
        for gone in found.lost
    ]
    rest = [f"it is damaged or gone, and a repair rebuilds it: {what}" for what in found.rebuilt]
    rest += [f"it is damaged or gone, and a repair drops it: {what}" for what in found.dropped]
    return lost + [Violation(invariant="meta", stream=None, where="rows", what=w) for w in rest]
