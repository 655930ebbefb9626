"""Who writes: owners of staging, and the single writer of a captured stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Self

from eventlog.engine import commit, rows, staging
from eventlog.engine.batch import Batch
from eventlog.engine.failpoint import reach
from eventlog.engine.index import UNFINISHED, IndexEntry
from eventlog.engine.locks import FileLock
from eventlog.engine.payload import PART_BYTES, part_count
from eventlog.engine.payload_store import put_parts
from eventlog.engine.plan import Append
from eventlog.engine.rows import Compression, OwnerKind, OwnerRow, StreamRow
from eventlog.engine.store import Store, Txn
from eventlog.errors import WriterActive

COMMIT_BYTES = 1 << 20
COMMIT_BYTES_MAX = 16 << 20
COMMIT_FLUSHES = 5
"""What one commit of a bulk writer may take: more would keep small ones of others waiting."""

YIELD_S = 0.0002
"""A pause after each of the commits that a large body takes, so that others get their turn."""

NEW_LOCK_WAIT_S = 1.0
LOOK_WAIT_S = 0.5
"""Who merely looks whether a stream has a writer is in the way of one for microseconds, or for as
long as a busy machine lets it wait for its turn meanwhile."""


class Owner:
    """Stages batches under an id of its own, and lives as long as its lock file is held.

    `commit_bytes` is how much to stage at once.
    """

    def __init__(
        self, store: Store, row: OwnerRow, lock: FileLock, compression: Compression
    ) -> None:
        self.commit_bytes = COMMIT_BYTES
        self.id = row.id
        self._compression = compression
        self._store = store
        self._lock = lock
        self._sequence = 0
        self._flush_s: float | None = None

    @classmethod
    def register(cls, store: Store, directory: Path, *, kind: OwnerKind, stream: StreamRow) -> Self:
        """Make a new owner. Its lock is taken before its row can be seen."""
        lock: FileLock | None = None
        try:
            with store.write() as txn:
                owner_id = rows.take_number(store, txn, "owner")
                lock = _take_new(staging.lock_path(directory, owner_id))
                if lock is None:
                    raise WriterActive(
                        f"the lock of owner {owner_id} is held by another process",
                        hint="run `eventlog check`; the counters of this log are damaged",
                    )
                reach("owner.locked")
                row = OwnerRow(id=owner_id, kind=kind, stream=stream.id)
                rows.write_owner(store, txn, row)
        except BaseException:
            # The commit failed: the number will be given again, its lock must be free.
            if lock is not None:
                lock.release(remove=True)
            raise
        return cls(store, row, lock, stream.compression)

    def stage(self, batches: Sequence[Batch]) -> None:
        """Store batches durably, after those staged before.

        In one commit, but for a body that is too large for one: it takes several.
        """
        for is_large, group in groupby(batches, key=_is_large):
            if is_large:
                for batch in group:
                    self._stage_large(self._packed(batch))
            else:
                self._stage([self._packed(batch) for batch in group])

    def _packed(self, batch: Batch) -> Batch:
        return batch.compressed() if self._compression == "zstd" else batch

    def _stage(self, batches: Sequence[Batch]) -> None:
        store = self._store
        begun = time.perf_counter()
        with store.write() as txn:
            self._put(txn, commit.place(store, txn, batches))
        self._sequence += len(batches)
        self._learn(sum(b.body.size for b in batches), time.perf_counter() - begun)

    def _put(self, txn: Txn, entries: Sequence[IndexEntry]) -> None:
        row = rows.owner_row(self._store, txn, self.id)
        if row is None:
            raise rows.vanished(f"the row of owner {self.id}, which is alive, is gone")
        staging.put(self._store, txn, self.id, entries, sequence=self._sequence)
        rows.write_owner(self._store, txn, replace(row, staged=row.staged + len(entries)))

    def _stage_large(self, batch: Batch) -> None:
        """Store one batch in commits of some parts each.

        The first one has the entry: so whatever was stored is dropped with it if this one dies.
        """
        store, parts = self._store, batch.body.parts()
        stored = 0
        with store.write() as txn:
            payload_id = rows.take_number(store, txn, "payload")
            entry = batch.entry(payload_id)
            more = {**entry.more, UNFINISHED: True}
            self._put(txn, [replace(entry, more=more)])
        while stored < part_count(batch.body.size):
            begun = time.perf_counter()
            some = list(islice(parts, max(self.commit_bytes // PART_BYTES, 1)))
            with store.write() as txn:
                put_parts(store, txn, payload_id, some, first=stored, at_end=False)
            stored += len(some)
            self._learn(sum(map(len, some)), time.perf_counter() - begun)
            time.sleep(YIELD_S)
        with store.write() as txn:
            staging.put(store, txn, self.id, [entry], sequence=self._sequence)
        self._sequence += 1

    def _learn(self, size: int, took_s: float) -> None:
        # A commit of three flushes' worth of bytes reaches 0.6 of a disk's rate (LMDB.md), and
        # takes five flushes: two of its own, and three of writing. Towards that it is sized.
        if size < COMMIT_BYTES // 2:
            return
        if self._flush_s is None:
            self._flush_s = self._lock.flush_s()
        wanted = int(size * COMMIT_FLUSHES * self._flush_s / took_s)
        self.commit_bytes = min(max(wanted, COMMIT_BYTES), COMMIT_BYTES_MAX)

    def discard(self) -> None:
        """Drop what is staged and not published."""
        store = self._store
        with store.write() as txn:
            row = rows.owner_row(store, txn, self.id)
            if staging.drop(store, txn, self.id) and row is not None:
                rows.write_owner(store, txn, replace(row, staged=0))

    def close(self) -> None:
        """Drop what is left, and the owner with it."""
        try:
            with self._store.write() as txn:
                staging.drop(self._store, txn, self.id)
                rows.delete_owner(self._store, txn, self.id)
        except BaseException:
            # Whoever opens the log next drops what a dead owner left.
            self._lock.release()
            raise
        self._lock.release(remove=True)


class Writer:
    """The single writer of a captured stream: a lock file, and an epoch checked by each commit."""

    def __init__(self, stream: StreamRow, owner: Owner, lock: FileLock) -> None:
        self.stream = stream
        self.owner = owner
        self.epoch = stream.writer_epoch
        self._lock = lock

    @classmethod
    def take(cls, store: Store, directory: Path, stream: StreamRow) -> Self:
        """Raises WriterActive where a living process is the writer."""
        path = lock_path(directory, stream)
        lock = _take(path, wait_s=LOOK_WAIT_S)
        if lock is None:
            raise WriterActive(
                f"stream {stream.name!r} is being written by process {FileLock.holder(path)}",
                hint="stop that capture first; one process captures a source",
            )
        reach("writer.locked")
        try:
            with store.write() as txn:
                current = commit.require_stream(store, txn, stream.name)
                taken = replace(current, writer_epoch=current.writer_epoch + 1)
                rows.write_stream(store, txn, taken)
                for row in rows.owner_rows(store, txn):
                    if row.kind == "capture" and row.stream == stream.id:
                        staging.drop(store, txn, row.id)
                        rows.delete_owner(store, txn, row.id)
                        staging.lock_path(directory, row.id).unlink(missing_ok=True)
            reach("writer.raised")
            owner = Owner.register(store, directory, kind="capture", stream=taken)
        except BaseException:
            lock.release()
            raise
        return cls(taken, owner, lock)

    def relieved(self, append: Append) -> Append:
        """Stage what is too large for one commit; returns an append that publishes it.

        The write lock would be held all the time that such a commit takes (D6).
        """
        batches = append.batches
        large = [place for place, batch in enumerate(batches) if _is_large(batch)]
        if not large:
            return append
        staged = large[-1] + 1
        self.owner.stage(batches[:staged])
        return replace(append, batches=batches[staged:], staged=self.owner.id)

    def close(self) -> None:
        """Drop what is staged and let the stream go."""
        try:
            self.owner.close()
        finally:
            self._lock.release()


def living_writer(directory: Path, stream: StreamRow) -> str | None:
    """The process id of the living writer of a captured stream; None where it has none."""
    path = lock_path(directory, stream)
    return FileLock.holder(path) if FileLock.is_held(path) else None


def _is_large(batch: Batch) -> bool:
    return batch.body.size > COMMIT_BYTES_MAX


def lock_path(directory: Path, stream: StreamRow) -> Path:
    """The lock file of a captured stream's writer."""
    return directory / "locks" / f"stream-{stream.id}.lock"


def _take_new(path: Path) -> FileLock | None:
    # The number is new. Yet whoever opens the log just now may have found the file before it was
    # locked, and hold it for a moment to see whether its owner died.
    return _take(path, wait_s=NEW_LOCK_WAIT_S)


def _take(path: Path, *, wait_s: float) -> FileLock | None:
    deadline = time.monotonic() + wait_s
    while (lock := FileLock.take(path)) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return lock
