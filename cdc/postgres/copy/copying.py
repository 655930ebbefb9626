"""The initial copy: the rows that are there, as raw COPY lines, under one snapshot (D2, D12).

::

    crew:    reads ranges, in parallel,    ──▶ ahead: the next few chunks, in order
             each connection under the              │
             snapshot that the slot exported        ▼
    caller:  copy_begin, chunk, chunk, ..., copy_end, one commit each, with the table's cursor

All tables under one snapshot, so that the copy ends exactly where the stream begins. A commit holds
a chunk and the cursor behind it: whenever the copy ends, the cursors tell which rows are in the
log. Chunks in memory number at most AHEAD for each connection, and one of every table to come. A
row that is larger than a chunk is read when it is its turn: one at a time, whatever their number. A
table is locked while it is copied, and no longer: an ALTER TABLE waits for its own table at most.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from cdc.postgres.connection import connect
from cdc.postgres.copy import chunks
from cdc.postgres.copy.chunks import CopyCursor, Pace
from cdc.postgres.copy.crew import Crew
from cdc.postgres.copy.placing import control_batch, row_batches
from cdc.postgres.copy.ranges import Leaf, Range
from cdc.postgres.copy.snapshot_reader import (
    Job,
    Opened,
    Snapshot,
    SnapshotReader,
    Waits,
    connections,
    server_time_us,
)
from cdc.postgres.copy.throttle import Throttle
from cdc.postgres.privacy.gate import Gate
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.lsn import Lsn
from eventlog.changes.change import Op
from eventlog.engine import Batch

Result = TypeVar("Result")

AHEAD = 2
"""Chunks for each connection that are read or wait for their commit."""

YIELD_S = 0.0002
"""A pause after each commit of the copy, so that small writers get their turn (D6)."""

STOP_LOOK_S = 0.05
"""How often the caller's wish to stop is looked at while a chunk is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyProgress:
    """How far the copy of a table is. Estimates are None before anything is known."""

    table: str
    rows: int
    bytes: int
    rows_estimate: int | None
    bytes_estimate: int | None
    done: bool = False


Store = Callable[[Job, list[Batch], CopyCursor], None]
"""Commits a chunk of a table with the cursor behind it. Called in order, on the caller's thread."""


def copy_tables(
    dsn: str,
    snapshot: Snapshot,
    jobs: Sequence[Job],
    *,
    begun: int,
    store: Store,
    workers: int = 2,
    throttle: Throttle | None = None,
    gate: Gate | None = None,
    progress: Callable[[CopyProgress], None] = lambda _: None,
    rewritten: Callable[[Job], None] = lambda _: None,
    waits: Waits = lambda _job, _error: None,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Copy tables in the order given; False where `stopped` told to stop before the end.

    `begun` is the stream's end, a log offset. `rewritten` is told of a table whose files or columns
    are not those that the snapshot knows: what ALTER TABLE rewrote after the snapshot, the snapshot
    does not show. It is not copied. `waits` is told, on another thread, again and again, of a table
    that somebody else has locked; what it raises ends the copy. Raises CaptureError.
    """
    with ExitStack() as stack:
        present = stack.enter_context(closing(connect(dsn)))
        conns = connections(dsn, workers, stack)
        time_us = server_time_us(conns[0])
        crew = stack.enter_context(Crew(conns))
        copy = _Copy(
            reader=SnapshotReader(crew, snapshot, throttle or Throttle(None), present, waits),
            position=snapshot.position,
            time_us=time_us,
            ahead=AHEAD * len(conns),
            begun=begun,
            store=store,
            gate=gate,
            progress=progress,
            stopped=stopped,
        )
        openings: deque[Future[Opened]] = deque()
        coming = iter(jobs)
        try:
            for job in jobs:
                for other in islice(coming, len(conns) + 1 - len(openings)):
                    openings.append(copy.reader.open(other, ahead=True))
                opened = copy.found(openings.popleft())
                if opened.locked:
                    opened = copy.found(copy.reader.open(job, ahead=False))
                if opened.rewritten or not copy.table(job, opened):
                    rewritten(job)
        except _Stopped:
            return False
    return True


class _Stopped(Exception):
    """The caller wishes to stop."""


@dataclass(slots=True)
class _Part:
    """A range on its way, in the order of the table; `lines` None: not asked for yet."""

    rng: Range
    lines: Future[Run | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """Commits tables, chunk by chunk, as the crew brings them."""

    reader: SnapshotReader
    position: Lsn
    time_us: int
    ahead: int
    begun: int
    store: Store
    gate: Gate | None
    progress: Callable[[CopyProgress], None]
    stopped: Callable[[], bool]

    def found(self, future: Future[Result]) -> Result:
        """What the crew found. Raises what it raised, and _Stopped as soon as that is wished."""
        while not self.stopped():
            if wait([future], timeout=STOP_LOOK_S).done:
                return future.result()
        raise _Stopped

    def table(self, job: Job, opened: Opened) -> bool:
        """Commit one table whole; False where it was altered meanwhile, and nothing is committed.

        What has more than one range is held while it is read.
        """
        start = CopyCursor.at_start(opened.leaves, begun=self.begun)
        first = opened.first
        if first is None or (opened.lines is not None and start.after(first, rows=0).done):
            self._commit(job, opened)
            return True
        if not self.found(self.reader.hold(job, opened)):
            return False
        self._commit(job, opened)
        self.found(self.reader.release())
        return True

    def _commit(self, job: Job, opened: Opened) -> None:
        leaves = opened.leaves
        cursor = CopyCursor.at_start(leaves, begun=self.begun)
        batches = [self._control(job, Op.COPY_BEGIN)]
        size = 0
        for rng, lines in self._chunks(job, opened):
            cursor = cursor.after(rng, rows=len(lines))
            size += len(lines.data)
            if self.gate is not None:
                lines = self.gate.lines(lines, job.schema)
            batches += row_batches(lines, job.schema, position=self.position, time_us=self.time_us)
            if not cursor.done:
                self.store(job, batches, cursor)
                self.progress(_progress(job, leaves, cursor, size))
                batches = []
                time.sleep(YIELD_S)
            del lines  # It may be a row of a gigabyte, and another one follow.
        batches.append(self._control(job, Op.COPY_END, rows=cursor.rows))
        self.store(job, batches, cursor)
        self.progress(_progress(job, leaves, cursor, size))

    def _chunks(self, job: Job, opened: Opened) -> Iterator[tuple[Range, Run]]:
        """The table's ranges with their lines, in order; the crew reads some ahead."""
        leaves, pace = opened.leaves, Pace()
        # Up to where ranges were asked for.
        asked = CopyCursor.at_start(leaves, begun=self.begun)
        parts: deque[_Part] = deque()
        if opened.first is not None:
            parts.append(_Part(opened.first, _known(opened.lines)))
            asked = asked.after(opened.first, rows=0)
            pace.saw(opened.first.pages, _size(opened.lines))
        while parts or not asked.done:
            while len(parts) < self.ahead and not asked.done:
                rng = asked.range(leaves, pages=pace.pages)
                parts.append(_Part(rng))
                asked = asked.after(rng, rows=0)
            for part in islice(parts, self.ahead):
                if part.lines is None:
                    its_turn = part is parts[0] and part.rng.single
                    part.lines = self.reader.read(job, part.rng, any_size=its_turn)
            head = parts.popleft()
            assert head.lines is not None
            rng, lines = head.rng, self.found(head.lines)
            if rng.whole:
                pace.saw(rng.pages, _size(lines))
            if lines is None and rng.single:
                lines = self.found(self.reader.read(job, rng, any_size=True))
            if lines is None:
                parts.extendleft(_Part(part) for part in reversed(rng.parts()))
                continue
            # Not kept here meanwhile: what is made of a row of a gigabyte may replace it.
            found = [lines]
            del head, lines
            yield rng, found.pop()

    def _control(self, job: Job, op: Op, **fields: Any) -> Batch:
        return control_batch(op, job.schema, position=self.position, time_us=self.time_us, **fields)


def _size(lines: Run | None) -> int:
    """The bytes of a range's text; of one that was too large, what it had at least."""
    return chunks.BYTES_MAX if lines is None else len(lines.data)


def _known(lines: Run | None) -> Future[Run | None]:
    future: Future[Run | None] = Future()
    future.set_result(lines)
    return future


def _progress(job: Job, leaves: Sequence[Leaf], cursor: CopyCursor, size: int) -> CopyProgress:
    """The figures of a copy; what is to come is estimated by the pages that are left."""
    total = sum(leaf.pages for leaf in leaves)
    done = sum(leaf.pages for leaf in leaves[: cursor.leaf]) + cursor.page
    rows = cursor.rows
    share = 1.0 if cursor.done else min(done / max(total, 1), 1.0)
    return CopyProgress(
        table=str(job.table.table),
        rows=rows,
        bytes=size,
        rows_estimate=round(rows / share) if share else job.table.rows_estimate,
        bytes_estimate=round(size / share) if share else None,
        done=cursor.done,
    )
