"""The engine: one open log directory. Opaque bytes under dense offsets; it knows no meaning.

Invariants (DESIGN.md): I1 dense offsets, I2 a consumer's offset is at most the end and only grows
within an epoch, I3 outputs and input offset in one commit, I4 source changes and position in one
commit. Each holds because every write is one `Plan`, applied in one LMDB transaction.

Thread safety: an Engine may be shared among threads. Processes share a log by opening it each.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Self

from eventlog.engine import commit, directory, ids, rows, scan, staging, times, watch, writer
from eventlog.engine.batch import Batch
from eventlog.engine.group import GroupCommitter
from eventlog.engine.index import IndexEntry
from eventlog.engine.plan import Committed, Plan
from eventlog.engine.rows import Compression, ConsumerRow, OwnerRow, StreamKind, StreamRow
from eventlog.engine.scan import Damaged, Stretch
from eventlog.engine.store import Store
from eventlog.engine.writer import Owner, Writer
from eventlog.errors import DamagedLog, EnvironmentFault, LogUnreadable, OffsetOutOfRange

_OPEN: dict[Path, _Shared] = {}
_OPEN_LOCK = threading.Lock()


@dataclass(slots=True)
class _Shared:
    """What the handles of one log share in a process. `file` tells its data file from others."""

    store: Store
    committer: GroupCommitter
    file: tuple[int, int]
    handles: int = 0


_ABANDONED: deque[tuple[Path, _Shared, watch.Watches]] = deque()
"""Handles that nobody has any more and that were not closed: a notebook cell that was run again.

They are let go at the next opening or closing; not by the collector itself, which may come amid
either.
"""


def _renew_lock() -> None:
    # In a forked child another thread's hold on it would last for ever.
    global _OPEN_LOCK
    _OPEN_LOCK = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def now_us() -> int:
    """The wall clock in µs since 1970 UTC."""
    return time.time_ns() // 1000


def _file(path: Path) -> tuple[int, int]:
    """Which file the data file is; (0, 0) where there is none."""
    try:
        found = os.stat(path / "data.mdb")
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _let_go(path: Path, shared: _Shared, watches: watch.Watches) -> None:
    """Give back one handle; the environment closes with the last. REQUIRES: _OPEN_LOCK."""
    watches.close()
    shared.handles -= 1
    if not shared.handles:
        if _OPEN.get(path) is shared:
            del _OPEN[path]
        shared.store.close()


def _let_go_abandoned() -> None:
    while _ABANDONED:
        path, shared, watches = _ABANDONED.popleft()
        if not shared.store.forked:  # Else it is the parent's, and refused here.
            _let_go(path, shared, watches)


class Engine:
    """An open log. A context manager; opening a log twice in a process shares the environment."""

    def __init__(self, path: Path, shared: _Shared) -> None:
        self.path = path
        self._shared = shared
        self._store = shared.store
        self._committer = shared.committer
        self._compressions: dict[str, Compression] = {}
        self._closed = False
        self.watches = watch.Watches(path / "data.mdb")
        abandoned = path, shared, self.watches
        self._unless_closed = weakref.finalize(self, _ABANDONED.append, abandoned)
        self._unless_closed.atexit = False

    @classmethod
    def open(cls, path: Path, *, create: bool = False, begin: bool = True) -> Self:
        """Open the log in the directory `path`; with `create`, make it where there is none.

        Without `begin` nothing is changed by that (see `eventlog.engine.directory.open_store`).
        Raises NotALog, LogExists, LogVersionError, LogUnreadable; ForkedLog in a child of a process
        that has it open (LMDB forbids that).
        """
        path = path.resolve()
        with _OPEN_LOCK:
            _let_go_abandoned()
            shared = _OPEN.get(path)
            if shared is not None and shared.store.forked:
                raise shared.store.forked_error()
            if shared is not None and shared.file != _file(path):
                raise LogUnreadable(
                    f"the log {path} was removed or replaced while this process has it open",
                    hint="close it everywhere in this process, or start the process again",
                )
            if shared is None:
                store = directory.open_store(path, create=create, now_us=now_us(), begin=begin)
                # What cannot be dropped now harms no reader; whoever opens the log next tries.
                with suppress(DamagedLog, EnvironmentFault):
                    if begin:
                        staging.drop_dead_appenders(store, path)
                committer = GroupCommitter(store, now_us)
                shared = _OPEN[path] = _Shared(store, committer, _file(path))
            shared.handles += 1
        return cls(path, shared)

    def close(self) -> None:
        """Close this handle; the environment closes with the last one."""
        with _OPEN_LOCK:
            _let_go_abandoned()
            if self._closed:
                return
            self._closed = True
            if self._unless_closed.detach() is not None:
                _let_go(self.path, self._shared, self.watches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        # For streams, consumers and records, too: they all hold an engine.
        raise TypeError("a log cannot be sent to another process: send its path, and open it there")

    @property
    def store(self) -> Store:
        """The environment, for the modules of the engine."""
        self._require_open()
        return self._store

    def _require_open(self) -> None:
        if self._closed:
            raise self._store.closed_error()
        if self._store.forked:
            raise self._store.forked_error()

    # Streams

    def streams(self) -> list[StreamRow]:
        """All streams, by name."""
        with self.store.read() as txn:
            return rows.stream_rows(self.store, txn)

    def stream_names(self) -> list[str]:
        """The names of all streams, as far as their keys tell: of damaged rows, too."""
        with self.store.read() as txn:
            return rows.stream_names(self.store, txn)

    def stream(self, name: str) -> StreamRow:
        """The stream's row. Raises UnknownStream."""
        with self.store.read() as txn:
            return commit.require_stream(self.store, txn, name)

    def create_stream(
        self, name: str, kind: StreamKind, *, compression: Compression | None = None
    ) -> StreamRow:
        """The stream of that name, made if need be.

        Raises StreamExists for another kind, or another compression than asked for.
        """
        with self.store.read() as txn:
            row = rows.stream_row(self.store, txn, name)
        if row is not None:
            commit.expect_like(row, kind, compression)
            return row
        with self.store.write() as txn:
            return commit.create_stream(
                self.store, txn, name, kind, now_us(), compression=compression
            )

    def bounds(self, name: str) -> tuple[int, int]:
        """The stream's first retained offset and its end."""
        with self.store.read() as txn:
            row = commit.require_stream(self.store, txn, name)
            return row.start, row.end

    def checked_range(self, name: str, start: int | None, stop: int | None) -> tuple[int, int]:
        """Fill in the bounds of a range; raises OffsetOutOfRange or OffsetsDropped."""
        low, end = self.bounds(name)
        start = low if start is None else start
        stop = end if stop is None else stop
        if 0 <= start < low:
            raise scan.dropped(name, start, low)
        if not low <= start <= end or not low <= stop <= end or start > stop:
            raise OffsetOutOfRange(
                f"[{start}, {stop}) is not a range of stream {name!r}",
                hint=f"its valid range is [{low}, {end}], from `begin` to `end`",
            )
        return start, stop

    # Reading

    def scan(
        self,
        name: str,
        start: int,
        stop: int,
        wanted: Callable[[IndexEntry], bool],
        *,
        damaged: Damaged | None = None,
    ) -> Iterator[Stretch]:
        """Walk `[start, stop)` in order; see `eventlog.engine.scan`."""
        return scan.scan(self.store, self.stream(name), start, stop, wanted, damaged=damaged)

    def entry_holding(self, name: str, offset: int) -> IndexEntry | None:
        """The entry whose stretch holds `offset`, None at the end.

        Raises DamagedLog where the stream should have one.
        """
        with self.store.read() as txn:
            row = commit.require_stream(self.store, txn, name)
            if not row.start <= offset < row.end:
                return None
            return scan.entry_at(self.store, txn, row, offset)

    def transaction_start(self, name: str, offset: int) -> int:
        """Where the source transaction that holds both `offset - 1` and `offset` begins.

        Returns `offset` itself where it is between transactions.
        """
        entry = self.entry_holding(name, offset)
        return offset if entry is None else times.transaction_start(entry, offset)

    def transaction_time(self, name: str, offset: int) -> int:
        """The commit time of the record at `offset`, in µs since 1970 UTC.

        REQUIRES: the offset is in the stream.
        """
        entry = self.entry_holding(name, offset)
        if entry is None:
            raise OffsetOutOfRange(f"no record at offset {offset} of stream {name!r}")
        return times.record_time(entry, offset)

    def offset_at(self, name: str, time_us: int) -> int:
        """The first offset whose running greatest commit time is >= `time_us`; else the end."""
        with self.store.read() as txn:
            row = commit.require_stream(self.store, txn, name)
            return times.offset_at(self.store, txn, row, time_us)

    def wait(self, seen: int, *, timeout_s: float) -> int:
        """Wait until the log has a commit after number `seen`; returns the newest number.

        Raises ClosedLog, too where another thread closes the log meanwhile.
        """
        return watch.wait(
            lambda: self.store.last_transaction(), self.watches, seen, timeout_s=timeout_s
        )

    # Writing

    def commit(self, plan: Plan) -> Committed:
        """Apply a plan, durably and whole, or raise with nothing done.

        Plans of several threads share a commit; bodies are compressed here, before the lock.
        """
        self._require_open()
        for place, append in enumerate(plan.appends):
            if append.batches and self._compression(append.stream, plan) == "zstd":
                batches = [batch.compressed() for batch in append.batches]
                plan.appends[place] = replace(append, batches=batches)
        return self._committer.commit(plan)

    def _compression(self, name: str, plan: Plan) -> Compression:
        found = self._compressions.get(name)
        if found is None:
            if name in plan.create:
                return commit.DEFAULT_COMPRESSION[plan.create[name]]
            found = self.stream(name).compression
            self._compressions[name] = found
        return found

    def offset_of_id(self, name: str, event_id: str) -> int | None:
        """Where the record with that id is; None for an id that the stream does not know."""
        with self.store.read() as txn:
            row = commit.require_stream(self.store, txn, name)
            return ids.offset_of(self.store, txn, row, ids.digest_of(event_id))

    def writer(self, name: str) -> Writer:
        """Become the single writer of a captured stream.

        Drops what an earlier writer staged. Raises WriterActive where a living process is it.
        """
        return Writer.take(self.store, self.path, self.stream(name))

    def living_writer(self, name: str) -> str | None:
        """The process id of the living writer of a captured stream; None where it has none."""
        return writer.living_writer(self.path, self.stream(name))

    def appender(self, name: str) -> Owner:
        """A staging owner for one large append."""
        return Owner.register(self.store, self.path, kind="append", stream=self.stream(name))

    def stage(self, owner: Owner, batches: Sequence[Batch]) -> None:
        """Store batches under an owner, durably, in no stream yet."""
        owner.stage(batches)

    # Consumers

    def consumer(self, name: str, consumer: str, *, start: int) -> ConsumerRow:
        """The consumer's row; a new one is made at offset `start`.

        Raises OffsetOutOfRange where `start` lies outside the stream.
        """
        with self.store.read() as txn:
            stream = commit.require_stream(self.store, txn, name)
            row = rows.consumer_row(self.store, txn, stream, consumer)
        if row is not None:
            return row
        with self.store.write() as txn:
            return commit.create_consumer(self.store, txn, name, consumer, start, now_us())

    def consumers(self) -> list[tuple[str, str, ConsumerRow]]:
        """All consumers as (stream, name, row)."""
        with self.store.read() as txn:
            return [
                (stream.name, name, row)
                for stream in rows.stream_rows(self.store, txn)
                for name, row in rows.consumer_rows(self.store, txn, stream)
            ]

    # Sources and schemas

    def source_state(self, name: str) -> dict[str, Any] | None:
        """The stored state of the source that feeds a stream."""
        with self.store.read() as txn:
            stream = rows.stream_row(self.store, txn, name)
            return None if stream is None else rows.source_state(self.store, txn, stream)

    def schemas(self, name: str, *, first: int = 0) -> list[tuple[int, Mapping[str, Any]]]:
        """The schema versions of a stream, in order, from number `first` on."""
        with self.store.read() as txn:
            stream = commit.require_stream(self.store, txn, name)
            return list(rows.schema_maps(self.store, txn, stream, first=first))

    def owners(self) -> list[OwnerRow]:
        """Who has staged batches at the moment."""
        with self.store.read() as txn:
            return rows.owner_rows(self.store, txn)

    def identity(self) -> dict[str, Any]:
        """The log's id (16 bytes), its creation time and its generation."""
        with self.store.read() as txn:
            found = rows.read_map(self.store, txn, rows.LOG_KEY)
        if found is None:
            raise rows.vanished("the row with the log's identity is gone")
        return found
