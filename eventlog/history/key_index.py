"""The key index of a stream: which records are about a key, found without reading the log.

::

    [low ── runs on disk ── end)[end ── tail, in memory ── stop)
                                 above TAIL_RECORDS it is written as a run first

It is derived from the log alone, beside the capture and never by it: deleting its files, whole or
in part, at any time, costs the time to build them again. One process builds at a time; others wait
for as long as it gets on, and then read the rest themselves. Where nothing can be written, what is
missing is read from the log and kept in memory, 16 bytes a record.

Thread safety: a KeyIndex may be shared among threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from eventlog.changes.reading import pieces
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine
from eventlog.engine.locks import FileLock
from eventlog.errors import DamagedLog, EnvironmentFault
from eventlog.history.chain import LOCK, Chain
from eventlog.history.entries import FLAG_BITS, I64, Entries, entries_of, entries_of_events, joined
from eventlog.history.hashing import U64
from eventlog.history.run import SPAN_MAX, MemoryRun, Run, UnusableRun
from eventlog.history.view import Part, View

TAIL_RECORDS = 1 << 14
"""Offsets behind the last run that are kept in memory: a file for fewer is not worth its flush."""

TAIL_PARTS = 8
"""Readings of the tail that are kept apart before they are sorted into one."""

CHUNK = 1 << 20
"""Entries that are sorted together and written as a run: some 50 MB while that is done."""

PATIENCE_S = 10.0
"""How long another process that builds may do without getting on."""

UNWRITABLE = "the key index cannot be written, so the log was read instead: "

_LOOK_S = 0.05

Progress = Callable[[int, int], None]
"""Called with how many offsets are done, and how many there are in all."""


class KeyIndex:
    """The index of one stream. `unwritable` says why it cannot be written, where that is so."""

    def __init__(self, engine: Engine, history: SchemaHistory) -> None:
        self.unwritable = ""
        self._engine = engine
        self._history = history
        self._stream = history.stream
        self._kind = engine.stream(self._stream).kind
        self._chain = Chain(engine, self._stream)
        self._lock = threading.RLock()
        self._tail: list[MemoryRun] = []
        self._tail_start = self._tail_stop = 0
        self._was_mended = False

    def runs(self) -> list[Run]:
        """The runs that are in use, in the order of their offsets."""
        with self._lock:
            self._chain.refresh()
            return list(self._chain.runs)

    def view(self, stop: int, *, progress: Progress | None = None) -> View:
        """All entries below `stop`; first brings the index up to date, where much is missing.

        Raises DamagedLog where records that are not indexed yet cannot be read.
        """
        with self._lock:
            self._chain.refresh()
            self._extend(stop, TAIL_RECORDS, progress)
            self._read_tail(stop, progress)
            parts = [
                Part(start=run.start, stop=run.stop, source=_Mended(self, run))
                for run in self._chain.runs
            ]
            tail = [
                Part(start=self._tail_start, stop=self._tail_stop, source=source)
                for source in self._tail
            ]
            return View([*parts, *tail])

    def update(self, stop: int, *, progress: Progress | None = None) -> None:
        """Write the index up to `stop`. Raises EnvironmentFault where it cannot be written."""
        with self._lock:
            self._chain.refresh()
            self._extend(stop, 0, progress)
            if self._chain.end < stop:
                raise EnvironmentFault(
                    f"the key index of stream {self._stream!r} cannot be written: "
                    f"{self.unwritable or 'another process is at it, and does not get on'}",
                    hint=f"look at {self._chain.folder}, its permissions and the room on its disk",
                )

    def drop(self) -> int:
        """Remove the index's files; returns how many. They are built again when needed."""
        with self._lock:
            return self._chain.clear()

    def without(self, run: Run, *, below: int) -> View:
        """Drop a run that turned out to be damaged, and build what it held anew."""
        with self._lock:
            self._chain.forget(run)
            return self.view(below)

    def scanned(
        self, stop: int, keys: Mapping[int, Sequence[int]], *, progress: Progress | None
    ) -> MemoryRun:
        """Entries below `stop` of some schema versions, by columns other than their own key.

        `keys` has these columns by schema id. Reads all batches that hold such a version.
        """
        low, _ = self._engine.bounds(self._stream)
        found = []
        for piece in pieces(
            self._engine, self._history, low, stop, selection=lambda schema: schema.id in keys
        ):
            found.append(entries_of(piece, keys))
            if progress is not None:
                progress(piece.entry.stop - low, stop - low)
        return MemoryRun(joined(found))

    def _extend(self, stop: int, tail: int, progress: Progress | None) -> None:
        """Write runs until at most `tail` offsets below `stop` are left, or note why not."""
        self._mend()
        self.unwritable = ""
        seen, patient_until = -1, 0.0
        while stop - self._chain.end > tail:
            if self._chain.end > seen:
                seen, patient_until = self._chain.end, time.monotonic() + PATIENCE_S
            elif time.monotonic() > patient_until:
                return
            try:
                if not self._alone(lambda: self._build(stop, progress)):
                    time.sleep(_LOOK_S)
            except (EnvironmentFault, OSError) as error:
                self.unwritable = str(error)
                return
            self._chain.refresh()

    def _mend(self) -> None:
        """Once, finish what a writer was killed at; one that lives does so itself."""
        if not self._was_mended:
            self._was_mended = True
            if self._chain.is_unfinished:
                # What is left over is passed over where nothing may be written.
                with suppress(EnvironmentFault, OSError):
                    self._alone(lambda: None)

    def _alone(self, write: Callable[[], None]) -> bool:
        """Write, unless another process is at it; tells whether that was done."""
        self._chain.make_folder()
        lock = FileLock.take(self._chain.folder / LOCK)
        if lock is None:
            return False
        try:
            self._chain.mend()
            write()
        finally:
            lock.release()
        return True

    def _build(self, stop: int, progress: Progress | None) -> None:
        """Write what is missing between the end of the runs and `stop`, or a run beyond a gap."""
        first = begun = self._chain.end
        limit = self._chain.next_start(stop)
        gathered: list[Entries] = []
        count = 0
        for entries, after in self._walk(first, limit):
            gathered.append(entries)
            count += len(entries)
            if count >= CHUNK or after - begun >= SPAN_MAX >> 1:
                self._chain.append(begun, after, joined(gathered))
                gathered, count, begun = [], 0, after
            if progress is not None:
                progress(after - first, limit - first)
        if begun < limit:
            self._chain.append(begun, limit, joined(gathered))

    def _read_tail(self, stop: int, progress: Progress | None) -> None:
        """Have the entries from the end of the runs up to `stop` in memory."""
        end = self._chain.end
        if self._tail_start != end:
            self._tail, self._tail_start, self._tail_stop = [], end, end
        first = self._tail_stop
        if first >= stop:
            return
        found = []
        for entries, after in self._walk(first, stop):
            found.append(entries)
            if progress is not None:
                progress(after - first, stop - first)
        self._tail = [*self._tail, MemoryRun(joined(found))]
        if len(self._tail) > TAIL_PARTS:
            self._tail = [MemoryRun(joined(part.entries for part in self._tail))]
        self._tail_stop = stop

    def _walk(self, start: int, stop: int) -> Iterator[tuple[Entries, int]]:
        """The entries of `[start, stop)`, with how far they reach."""
        if self._kind == "captured":
            for piece in pieces(self._engine, self._history, start, stop):
                yield entries_of(piece), piece.offsets[-1] + 1
            return
        for stretch in self._engine.scan(self._stream, start, stop, lambda entry: True):
            try:
                yield entries_of_events(stretch), stretch.stop
            except DamagedLog as error:
                raise DamagedLog(
                    f"offsets [{stretch.start}, {stretch.stop}) of stream {self._stream!r} are "
                    f"damaged: {error}",
                    hint="records outside them can still be read; run `eventlog check`",
                ) from error


class _Mended:
    """A run that is built anew where it turns out to be damaged while it is read."""

    def __init__(self, index: KeyIndex, run: Run) -> None:
        self._index = index
        self._run = run

    @property
    def rare(self) -> I64:
        return self._run.rare

    def find(self, key_hash: int) -> Iterator[U64]:
        after = self._run.start
        try:
            for places in self._run.find(key_hash):
                yield places
                after = (int(places[-1]) >> FLAG_BITS) + 1
        except UnusableRun:
            fresh = self._index.without(self._run, below=self._run.stop)
            yield from fresh.arrays(key_hash, after, self._run.stop)


def key_index(engine: Engine, history: SchemaHistory) -> KeyIndex:
    """The index of a stream, the same for all that ask with the same open log."""
    found: KeyIndex | None = history.beside.get(KeyIndex)
    if found is None:
        found = history.beside.setdefault(KeyIndex, KeyIndex(engine, history))
    return found
