"""The run files of one stream: which of them follow each other, and which are of no use any more.

::

    derived/keys/STREAM/START-STOP.run    in hexadecimal; the chain begins at or below the stream's
                                          first offset, and each run where the one before it ends
                        building.lock     who writes

A run that lies within a longer one is what a merge has taken in: whoever comes upon it removes it,
as a merge that was killed before it could. One that is damaged, of another log, or of a history
that a repair replaced, is removed, too.

REQUIRES: one caller at a time; only who holds the lock writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
import xxhash

from eventlog.engine import Engine
from eventlog.errors import DamagedLog
from eventlog.history.entries import I64, Entries
from eventlog.history.hashing import U64
from eventlog.history.merging import due, merged
from eventlog.history.run import (
    SUFFIX,
    TEMPORARY,
    Belongs,
    Head,
    Run,
    UnusableRun,
    give_to_owner,
    write_run,
)

LOCK = "building.lock"


class Chain:
    """The runs in use, in the order of their offsets."""

    def __init__(self, engine: Engine, stream: str) -> None:
        row, identity = engine.stream(stream), engine.identity()
        self.folder = engine.path / "derived" / "keys" / stream
        self.runs: list[Run] = []
        self._has_rests = False
        self._engine = engine
        self._stream = stream
        self._open: dict[str, Run] = {}
        self._belongs = Belongs(
            log_id=identity["id"], generation=identity["generation"], stream_id=row.id
        )

    @property
    def end(self) -> int:
        """Where the runs end, and the rest of the stream begins."""
        return self.runs[-1].stop if self.runs else self._engine.bounds(self._stream)[0]

    def next_start(self, stop: int) -> int:
        """Where a run beyond a gap begins; `stop` where there is none."""
        end = self.end
        return min((run.start for run in self._open.values() if run.start > end), default=stop)

    @property
    def is_unfinished(self) -> bool:
        """Whether a writer is at work or was killed at it: something is to be mended, then."""
        return self._has_rests or due(self.runs) > 0

    def refresh(self) -> None:
        """See what other processes wrote or removed."""
        try:
            found = os.listdir(self.folder)
        except OSError:
            found = []
        names = {name for name in found if name.endswith(SUFFIX)}
        self._has_rests = any(name.endswith(TEMPORARY) for name in found)
        # Asked for after: what another process wrote by then is of records that are there.
        low, end = self._engine.bounds(self._stream)
        if names != self._open.keys():
            self._open = {name: run for name, run in self._open.items() if name in names}
            for name in sorted(names - self._open.keys()):
                self._look_at(name, low, end)
        for run in [run for run in self._open.values() if run.stop <= low]:
            self._remove(run)
        self._drop_taken_in()
        self.runs = self._chained(low)

    def forget(self, run: Run) -> None:
        """Do without a run, for good."""
        self._remove(run)
        self.refresh()

    def clear(self) -> int:
        """Remove all runs; returns how many."""
        found = list(self.folder.glob("*" + SUFFIX))
        for path in found:
            path.unlink(missing_ok=True)
        self.refresh()
        return len(found)

    def make_folder(self) -> None:
        """Make the folder, private, and its owner that of the log."""
        derived = self.folder.parents[1]
        for path in (derived, derived / "keys", self.folder):
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
                give_to_owner(path.parent, path)

    def mend(self) -> None:
        """Remove what a writer that died left, and do what it had begun."""
        for path in self.folder.glob("*" + TEMPORARY):
            path.unlink(missing_ok=True)
        self.refresh()
        self._merge_due()

    def append(self, start: int, stop: int, entries: Entries) -> None:
        """Write a run over `[start, stop)`, and merge what is to be merged."""
        parts = [(entries.hashes, entries.places)]
        self._write(start, stop, len(entries), parts, entries.rare)
        self._merge_due()

    def _merge_due(self) -> None:
        while count := due(self.runs):
            before = len(self.runs)
            self._merge(self.runs[-count:])
            if len(self.runs) >= before:
                return

    def _merge(self, runs: Sequence[Run]) -> None:
        rare = np.concatenate([run.rare for run in runs])
        count = sum(run.count for run in runs)
        try:
            self._write(runs[0].start, runs[-1].stop, count, merged(runs), rare)
        except UnusableRun as error:
            self.forget(error.run)

    def _write(
        self, start: int, stop: int, count: int, parts: Iterable[tuple[U64, U64]], rare: I64
    ) -> None:
        head = Head(
            belongs=self._belongs, start=start, stop=stop, count=count, mark=self._mark(stop)
        )
        write_run(self.folder, head, parts, rare)
        self.refresh()

    def _look_at(self, name: str, low: int, end: int) -> None:
        path = self.folder / name
        try:
            run = Run(path, self._belongs)
            if run.stop > end or (run.stop > low and not self._bears_mark(run)):
                raise UnusableRun(f"{path} is of another log", run)
        except UnusableRun:
            with suppress(OSError):
                path.unlink()
        except (OSError, ValueError):
            return  # Another process removed it, or it is not ours to read.
        else:
            self._open[name] = run

    def _chained(self, low: int) -> list[Run]:
        longest: dict[int, Run] = {}
        for run in self._open.values():
            if run.start not in longest or longest[run.start].stop < run.stop:
                longest[run.start] = run
        at = min(longest, default=low)
        chain: list[Run] = []
        while at in longest and (chain or at <= low):
            chain.append(longest[at])
            at = chain[-1].stop
        return chain

    def _drop_taken_in(self) -> None:
        """Remove runs within longer ones; where that is not allowed, they are passed over."""
        reached = -1
        for run in sorted(self._open.values(), key=lambda run: (run.start, -run.stop)):
            if run.stop > reached:
                reached = run.stop
                continue
            with suppress(OSError):
                run.path.unlink(missing_ok=True)
                del self._open[run.path.name]

    def _remove(self, run: Run) -> None:
        self._open.pop(run.path.name, None)
        with suppress(OSError):
            run.path.unlink()

    def _bears_mark(self, run: Run) -> bool:
        """Whether the run ends where the log has what it says; where that is damaged, it may."""
        try:
            return self._mark(run.stop) == run.mark
        except DamagedLog:
            return True

    def _mark(self, stop: int) -> int:
        """What the last record below `stop` looks like; 0 where it cannot be read any more."""
        for stretch in self._engine.scan(self._stream, stop - 1, stop, lambda entry: True):
            slots, _ = stretch.readable_slots()
            if slots and stretch.payload is not None:
                place = int(stretch.entry.slot_transactions()[slots[0]])
                time_us = int(stretch.entry.transactions.time[place])
                (record,) = stretch.payload.records(slots)
                return xxhash.xxh3_64_intdigest(record, seed=time_us % 2**64)
        return 0
