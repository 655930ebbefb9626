"""Repair: a sound log made of what can still be read of a damaged one.

::

    data.mdb ──walker──▶ findings ──salvage──▶ what a sound log would be
                                                   │ written, flushed, checked as any log is
    derived/repairing/data.mdb  ◀──────────────────┘
    data.mdb.damaged-20260131-120000      a second name for the damaged file: it is kept
    data.mdb                              replaced in a single rename

The log is held alone. LMDB never opens a file whose pages are broken. Killed at any moment the log
is the damaged one or the repaired one; what is left in `derived` is removed by the next attempt.
All index entries are in memory at once: about 2 KB for each batch of up to 256 KiB.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from eventlog.engine import ids, rows
from eventlog.engine.directory import require_data, sync_directory
from eventlog.engine.failpoint import reach
from eventlog.engine.locks import OpenLock
from eventlog.engine.sealed import seal
from eventlog.engine.store import Store, structure_faults
from eventlog.engine.upkeep.check import check_store
from eventlog.engine.upkeep.examining import Salvage, salvaged, violations
from eventlog.engine.upkeep.findings import Progress
from eventlog.engine.upkeep.mending import LostRange, Piece, batch_of_lost
from eventlog.engine.upkeep.pages import BadPage
from eventlog.engine.upkeep.rewrite import Target
from eventlog.engine.upkeep.salvage_stream import SalvagedStream
from eventlog.engine.upkeep.walker import Walker
from eventlog.errors import DamagedLog, DiskFull, LogUnreadable

SPARE_BYTES = 4 << 20
"""Rows, free pages of the new file, and what else is written meanwhile."""

LOST_SLOT_BYTES = 8
"""The most that the place of a lost record takes: its boundary and its state, with some air."""

_PHASES = 3
_IDS_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair found and did, or would do; `sound`: nothing was wrong, nothing was changed.

    `damages` are what was wrong with the log, `lost` the offsets whose records are gone, `dropped`
    what else is gone, `rebuilt` what was derived from the rest. `kept` is the damaged file.
    """

    damages: tuple[str, ...] = ()
    lost: tuple[LostRange, ...] = ()
    dropped: tuple[str, ...] = ()
    rebuilt: tuple[str, ...] = ()
    kept: Path | None = None

    @property
    def sound(self) -> bool:
        return not self.damages


def repair(directory: Path, *, dry_run: bool = False, progress: Progress | None = None) -> Repaired:
    """Repair the log in `directory`; with `dry_run`, only tell what would be lost.

    `progress` is told of bytes read, written and checked, each counted once, and of all that will
    be. Raises LogInUse where any process has the log open, DiskFull where the disk has no room for
    the new file beside the old one, NotALog where nothing of a log is left, LogVersionError where a
    newer version wrote it, DamagedLog where what came out is not sound. The log is unchanged then.
    """
    directory = directory.resolve()
    require_data(directory)
    lock = OpenLock.alone(directory, doing="repairing")
    try:
        return _repair(directory, lock, _Phases(progress), dry_run=dry_run)
    except OSError as error:
        raise LogUnreadable(
            f"cannot repair {directory}: {error.strerror} ({error.filename})",
            hint="look at the permissions of the log directory and its files; it is unchanged",
        ) from error
    finally:
        lock.release()


class _Phases:
    """Shows several passes over a log as one."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __getitem__(self, phase: int) -> Progress:
        def told(done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(phase * total + done, _PHASES * total)

        return told


def _repair(directory: Path, lock: OpenLock, phases: _Phases, *, dry_run: bool) -> Repaired:
    scratch = directory / "derived" / "repairing"
    shutil.rmtree(scratch, ignore_errors=True)
    damages = tuple(str(found) for found in violations(directory, lock, progress=phases[0]))
    if not damages:
        return Repaired()
    with salvaged(directory, progress=phases[0]) as found:
        told = Repaired(
            damages=damages,
            lost=tuple(found.salvaged.lost),
            dropped=tuple(found.salvaged.dropped),
            rebuilt=tuple(found.salvaged.rebuilt),
        )
        if dry_run:
            return told
        _require_room(directory, found)
        scratch.parent.mkdir(mode=0o700, exist_ok=True)
        scratch.mkdir(mode=0o700)
        try:
            _write(found, scratch, phases[1])
            reach("repair.written")
            _verify(scratch, phases[2])
            reach("repair.checked")
            # What was derived from the damaged log may hold what the repaired one has lost.
            for derived in scratch.parent.iterdir():
                if derived != scratch and derived.is_dir():
                    shutil.rmtree(derived)
            kept = _replace(directory, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return replace(told, kept=kept)


def _require_room(directory: Path, found: Salvage) -> None:
    pieces = [piece for stream in found.salvaged.streams for piece in stream.pieces]
    needed = SPARE_BYTES + 2 * found.rows_bytes
    for piece in pieces:
        size = piece.entry.slots * LOST_SLOT_BYTES if piece.body is None else piece.body.size
        needed += size + size // 8
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise DiskFull(
            f"repairing {directory} needs {needed:,} bytes for the new file beside the damaged "
            f"one, and the disk has {free:,}",
            hint="free some space and try again; the log is unchanged",
        )


def _write(found: Salvage, scratch: Path, progress: Progress) -> None:
    streams = found.salvaged.streams
    total = sum(piece.entry.records for stream in streams for piece in stream.pieces)
    done = 0
    store = Store(scratch, create=True)
    try:
        target = Target(store)
        for stream in streams:
            for piece in stream.pieces:
                _add(target, found.walker, stream.row.id, piece)
                done += piece.entry.records
                progress(done, total)
            _write_rows(store, stream)
        meta = {key: seal(key, stored) for key, stored in _meta(found, target).items()}
        target.finish(meta)
    finally:
        store.close()


def _add(target: Target, walker: Walker, stream_id: int, piece: Piece) -> None:
    if piece.body is None:
        batch = batch_of_lost(piece)
        number = 0 if batch.fits_entry else target.next_id
        entry = batch.entry(number).moved(piece.entry.first_offset, piece.entry.time_running_max)
        target.add(stream_id, entry, list(batch.body.parts()))
        return
    try:
        parts = [walker.value(part) for part in piece.body.parts]
    except BadPage as error:
        raise DamagedLog(
            f"a payload could be read once, and not again: {error}",
            hint="the disk is failing: copy the directory to another one, and repair it there",
        ) from error
    target.add(stream_id, piece.entry, parts)


def _write_rows(store: Store, stream: SalvagedStream) -> None:
    number = stream.row.id
    with store.write() as txn:
        for schema_id, stored in enumerate(stream.schemas):
            rows.write_schema(store, txn, number, schema_id, stored)
        for name, row in stream.consumers.items():
            rows.write_consumer(store, txn, number, name, row)
    known = enumerate(stream.ids)
    while chunk := list(islice(known, _IDS_AT_ONCE)):
        with store.write() as txn:
            ids.put_all(store, txn, number, chunk)


def _meta(found: Salvage, target: Target) -> dict[bytes, dict[str, object]]:
    meta: dict[bytes, dict[str, object]] = dict(found.salvaged.meta)
    meta[rows.COUNTERS_KEY] = {**meta[rows.COUNTERS_KEY], "payload": target.next_id}
    for stream in found.salvaged.streams:
        name = stream.row.name.encode()
        meta[rows.STREAM_KEYS + name] = rows.stored_map(stream.row)
        if stream.source is not None:
            meta[rows.SOURCE_KEYS + name] = dict(stream.source)
    return meta


def _verify(scratch: Path, progress: Progress) -> None:
    store = Store(scratch, create=False)
    try:
        wrong = [str(found) for found in check_store(store, progress=progress)]
    finally:
        store.close()
    wrong += structure_faults(scratch / "data.mdb")
    if wrong:
        raise DamagedLog(
            f"a repair would leave a log that is not sound, and leaves this one: {wrong[0]}",
            hint="restore the directory from a copy; `eventlog check` names all that is wrong",
        )


def _replace(directory: Path, scratch: Path) -> Path:
    """Put the repaired file in the place of the damaged one, and return where that is kept."""
    data = directory / "data.mdb"
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    kept = directory / f"data.mdb.damaged-{stamp}"
    number = 1
    while kept.exists():
        number += 1
        kept = directory / f"data.mdb.damaged-{stamp}-{number}"
    os.link(data, kept)
    sync_directory(directory)
    reach("repair.kept")
    (scratch / "data.mdb").rename(data)
    reach("repair.renamed")
    # It belongs to the damaged file. Nobody has it open; whoever opens the log makes a new one.
    (directory / "lock.mdb").unlink(missing_ok=True)
    sync_directory(directory)
    return kept
