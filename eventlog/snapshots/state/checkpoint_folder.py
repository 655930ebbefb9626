"""The checkpoints of a log: where they lie, which one a fold begins with, and which ones are kept.

::

    derived/checkpoints/<stream>/<relation>-<offset>.evlk

Whatever is not a whole checkpoint of this log, in its generation, is passed over and removed.
Deleting any of it at any time costs nothing but time. Of each table the newest `KEPT` are kept,
spread over its history: the one whose neighbours are nearest goes first, never the newest.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine
from eventlog.errors import DamagedLog
from eventlog.snapshots.state.checkpoint import BadCheckpoint, Checkpoint, Origin, opened
from eventlog.snapshots.state.table_state import TableState

KEPT = 3
"""Checkpoints of one table: for a cut now, one of some time ago, and one of long ago."""

ABANDONED_S = 24 * 3600
"""A temporary file this old has no writer any more."""

ERASURE_EPOCH = 0
_NAME = re.compile(r"(\d+)-(\d+)\.evlk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A checkpoint's file."""

    relation: int
    offset: int
    path: Path
    bytes: int


class CheckpointFolder:
    """The checkpoints of one stream."""

    def __init__(self, engine: Engine, history: SchemaHistory) -> None:
        self._engine = engine
        self._history = history
        self._path = engine.path / "derived" / "checkpoints" / history.stream

    def stored(self, relation: int | None = None) -> list[Stored]:
        """The files that are there, of one relation or of all, by relation and offset."""
        found = []
        with suppress(OSError):
            for path in self._path.iterdir():
                name = _NAME.fullmatch(path.name)
                if name is None or relation not in (None, int(name[1])):
                    continue
                with suppress(OSError):
                    found.append(
                        Stored(
                            relation=int(name[1]),
                            offset=int(name[2]),
                            path=path,
                            bytes=path.stat().st_size,
                        )
                    )
        return sorted(found, key=lambda each: (each.relation, each.offset))

    def nearest(self, relation: int, stop: int) -> Checkpoint | None:
        """The one with the greatest offset at or below `stop` that is sound and of this log."""
        for each in reversed(self.stored(relation)):
            if each.offset > stop:
                continue
            try:
                return self._open(each)
            except BadCheckpoint:
                with suppress(OSError):
                    each.path.unlink()
            except OSError:
                continue
        return None

    def write(self, state: TableState, codec: Any, *, stop: int) -> bool:
        """Store the state as of `stop`, and drop what is too much.

        False where it cannot be kept: a value of it is not known, the version at the cut is not the
        one of its last record, or nothing lies below the cut. Raises OSError.
        """
        from eventlog.snapshots.state.checkpoint_writing import write

        if not state.is_plain:
            return False
        origin = self._origin(state.version.relation, stop)
        if origin is None:
            return False
        for folder in (self._path.parent.parent, self._path.parent, self._path):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._drop_abandoned()
        path = self._path / f"{origin.relation}-{origin.offset}.evlk"
        if not write(state, codec, origin, path):
            return False
        self._thin_out(origin.relation)
        return True

    def drop(self, relation: int | None = None) -> list[Stored]:
        """Remove all of one relation, or of the stream; returns what was there. Raises OSError."""
        found = self.stored(relation)
        for each in found:
            each.path.unlink(missing_ok=True)
        return found

    def _open(self, found: Stored) -> Checkpoint:
        head, ipc = opened(found.path)
        if head.origin != self._origin(found.relation, found.offset):
            raise BadCheckpoint("it is of another log, or of what this one was")
        try:
            schema: Schema = self._history.version(head.schema_id)
        except DamagedLog as error:
            raise BadCheckpoint("its schema version is not in the log") from error
        return Checkpoint(head, schema, ipc)

    def _origin(self, relation: int, offset: int) -> Origin | None:
        """What a checkpoint at that cut has to say; None where nothing lies below it."""
        identity = self._engine.identity()
        try:
            entry = self._engine.entry_holding(self._history.stream, offset - 1)
        except DamagedLog:
            return None
        if entry is None:
            return None
        # Batches are merged and compacted; the last record's transaction stays what it is.
        slot = int(np.searchsorted(entry.slot_offsets(), offset - 1, side="right")) - 1
        place = int(entry.slot_transactions()[slot])
        words = entry.transactions
        at = (int(words.time[place]), int(words.tx[place]), int(words.position[place]))
        return Origin(
            log_id=identity["id"],
            generation=identity["generation"],
            stream=self._history.stream,
            relation=relation,
            offset=offset,
            erasure_epoch=ERASURE_EPOCH,
            at=at,
        )

    def _thin_out(self, relation: int) -> None:
        found = self.stored(relation)
        while len(found) > KEPT:
            offsets = [0, *(each.offset for each in found)]
            gaps = [offsets[at + 1] - offsets[at - 1] for at in range(1, len(found))]
            gone = found.pop(gaps.index(min(gaps)))
            with suppress(OSError):
                gone.path.unlink()

    def _drop_abandoned(self) -> None:
        from eventlog.snapshots.state.checkpoint_writing import TEMPORARY

        with suppress(OSError):
            for path in self._path.glob(f"{TEMPORARY}*"):
                with suppress(OSError):
                    if path.stat().st_mtime < time.time() - ABANDONED_S:
                        path.unlink()
