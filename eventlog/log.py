"""An open log: its streams, transactions, snapshots, consumers and sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from eventlog.changes.cut import At, cut_of, utc
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Compression, Engine, StreamKind
from eventlog.errors import UsageError
from eventlog.names import checked_name
from eventlog.stream import Stream
from eventlog.transaction import Transaction

if TYPE_CHECKING:
    from eventlog.changes.arrow import Unfit
    from eventlog.derived import Derived
    from eventlog.engine.upkeep.backup import BackedUp
    from eventlog.engine.upkeep.check import Violation
    from eventlog.snapshots.manifests.saved import Saved
    from eventlog.snapshots.snapshot import Snapshot
    from eventlog.snapshots.transform import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """A stream's range `[start, end)`, its readable records and their stored bytes."""

    name: str
    kind: StreamKind
    start: int
    end: int
    records: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerInfo:
    """Where a consumer stands; `lag` counts the offsets that it has yet to see.

    `filter` is the table that it follows, `*.*` all of them, empty before its first commit.
    """

    stream: str
    name: str
    offset: int
    epoch: int
    lag: int
    filter: str
    updated: datetime


def open_log(path: str | os.PathLike[str], *, create: bool = False) -> Log:
    """Open the log in a directory; with `create`, make one where there is none.

    Opening it again in one process shares it. Raises NotALog, LogExists, LogVersionError,
    LogUnreadable.
    """
    return Log(Engine.open(Path(path), create=create))


class Log:
    """An open log directory. A context manager.

    `engine` is what lies below, for packages that bring sources. Thread safety: may be shared among
    threads.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._schemas: dict[str, SchemaHistory] = {}

    @property
    def path(self) -> Path:
        """The log's directory."""
        return self.engine.path

    def close(self) -> None:
        """Close this handle; every later use of it, or of its streams, raises ClosedLog."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Log {str(self.path)!r}>"

    def stream(
        self, name: str, *, create: bool = False, compression: Compression | None = None
    ) -> Stream:
        """The stream of that name; with `create`, an event stream is made where there is none.

        `compression` is for one that is made: `none` or `zstd`; captured streams have zstd, events
        none unless asked for. Raises UnknownStream, StreamExists (of another kind or compression),
        UsageError for what is no name.
        """
        checked_name(name, kind="stream")
        if compression not in (None, "none", "zstd"):
            raise UsageError(f"no compression {compression!r}", hint="there are `none` and `zstd`")
        if create:
            row = self.engine.create_stream(name, "events", compression=compression)
        else:
            row = self.engine.stream(name)
        return Stream(self.engine, name, row.kind, self._history(name))

    def streams(self) -> list[StreamInfo]:
        """All streams by name, with what they hold. Walks the index of each."""
        return [self.stream_info(row.name) for row in self.engine.streams()]

    def stream_info(self, name: str) -> StreamInfo:
        """What one stream holds. Walks its index. Raises UnknownStream, DamagedLog."""
        row = self.engine.stream(name)
        records = size = 0
        for stretch in self.engine.scan(name, row.start, row.end, lambda entry: False):
            slots, _ = stretch.readable_slots()
            records += len(slots)
            size += stretch.entry.body_bytes
        return StreamInfo(
            name=name, kind=row.kind, start=row.start, end=row.end, records=records, bytes=size
        )

    def transaction(self) -> Transaction:
        """Appends to several streams, all or nothing: `with log.transaction() as tx`."""
        return Transaction(self.engine)

    def consumers(self) -> list[ConsumerInfo]:
        """All consumers, by stream and name."""
        found = []
        for stream, name, row in self.engine.consumers():
            _, end = self.engine.bounds(stream)
            found.append(
                ConsumerInfo(
                    stream=stream,
                    name=name,
                    offset=row.offset,
                    epoch=row.epoch,
                    lag=end - row.offset,
                    filter=row.filter,
                    updated=utc(row.updated_us),
                )
            )
        return sorted(found, key=lambda info: (info.stream, info.name))

    def source(self, name: str) -> dict[str, Any] | None:
        """What the source that feeds a stream has stored about itself; None where it has not."""
        return self.engine.source_state(name)

    def snapshot(
        self,
        streams: str | Iterable[str] | Mapping[str, At | tuple[At, At]],
        *,
        at: At = "end",
        strict: bool = False,
    ) -> Snapshot:
        """The state as of a cut: an offset, a time, or `end`.

        `streams` is a name, several names, or a mapping from names to their own cuts; a cut
        `(start, stop)` keeps the rows whose latest version lies in that range. Raises
        UnknownStream, OffsetOutOfRange, OffsetsDropped, UsageError, and with `strict`
        CutInsideTransaction.
        """
        from eventlog.snapshots.snapshot import Part, Snapshot

        if isinstance(streams, str):
            cuts: dict[str, Any] = {streams: at}
        elif isinstance(streams, Mapping):
            if at != "end":
                raise UsageError(
                    "each stream has its own cut, so at= has no say",
                    hint="leave out at=, or name the streams alone: snapshot(['shop'], at=...)",
                )
            cuts = dict(streams)
        else:
            cuts = dict.fromkeys(streams, at)
        if not cuts:
            raise UsageError("no stream is named", hint="name one: snapshot('shop')")
        parts = []
        for name, wanted in cuts.items():
            start, stop = wanted if isinstance(wanted, tuple) else (None, wanted)
            kind = self.engine.stream(checked_name(name, kind="stream")).kind
            cut = cut_of(self.engine, name, stop, strict=strict)
            first = None if start is None else cut_of(self.engine, name, start, strict=strict).stop
            if first is not None:
                self.engine.checked_range(name, first, cut.stop)
            parts.append(Part(kind=kind, start=first, cut=cut, history=self._history(name)))
        return Snapshot(self.engine, parts)

    def load_snapshot(self, path: str | os.PathLike[str]) -> Saved:
        """The snapshot of a manifest that `Snapshot.save` wrote, to be read again and verified.

        Raises BadManifest; whether this log has what it names, `verify()` tells.
        """
        from eventlog.snapshots.manifests.saved import Saved

        self.engine.identity()  # A log that is closed, or was forked, says so first.
        return Saved.load(self.engine, self.snapshot, path)

    def derive(
        self,
        transform: Transform,
        *,
        source: str,
        table: str,
        output: str,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
    ) -> Derived:
        """A stream of what the transform makes of each row of a table: `.run()` keeps it going.

        The first commit registers the transform in stream `transforms`; `cast` and `unfit` are
        those of `Table.to_arrow`. Raises TransformRefused where its source changed under its
        version, or the output has another origin; UnknownTable; UsageError for a table without a
        key.
        """
        from eventlog.derived import Derived

        self.stream(source)
        history = self._history(source)
        return Derived(self, history, transform, table=table, output=output, cast=cast, unfit=unfit)

    def check(self, *, progress: Callable[[int, int], None] | None = None) -> list[Violation]:
        """Walk the whole log; returns every violated invariant, none for a sound log."""
        from eventlog.engine.upkeep.check import check

        return check(self.engine, progress=progress)

    def backup(
        self,
        directory: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> BackedUp:
        """Copy the log as it is now into a directory, new or empty, while others go on writing.

        The copy is a log: opening it raises its generation. `progress` is told of the records
        copied so far, and of all. Raises LogExists, DamagedLog where a stored batch is not what was
        written, DiskFull.
        """
        from eventlog.engine.upkeep.backup import backup

        return backup(self.engine, Path(directory), progress=progress)

    @property
    def generation(self) -> int:
        """1, and one more each time that a backup of the log was opened as the log."""
        generation: int = self.engine.identity()["generation"]
        return generation

    def _history(self, name: str) -> SchemaHistory:
        return self._schemas.setdefault(name, SchemaHistory(self.engine, name))
