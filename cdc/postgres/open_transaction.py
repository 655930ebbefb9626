"""A source transaction between its Begin and its Commit: its changes, as batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cdc.postgres.builder import BatchBuilder
from cdc.postgres.protocol import messages as m
from cdc.postgres.protocol.frames import Run
from cdc.postgres.state import PGOUTPUT
from eventlog.engine import Batch
from eventlog.engine.batch import BATCH_BYTES


@dataclass(slots=True, kw_only=True)
class OpenTransaction:
    """What came of a transaction so far.

    `batches` are full ones, not yet staged; `builder` holds what came after. `skipped`: it was
    stored before. `watermarks` are those of our messages that stand in it.
    """

    begin: m.Begin
    skipped: bool
    builder: BatchBuilder
    batches: list[Batch] = field(default_factory=list)
    batches_bytes: int = 0
    count: int = 0
    staged: bool = False
    watermarks: list[bytes] = field(default_factory=list)

    def add(self, run: Run, versions: dict[int, int]) -> None:
        """Take records in, with the schema version of each relation in them."""
        at = 0
        while at < len(run):
            if not self.builder.agrees(versions):
                self.close_batch()
            fits = self.builder.room_for(run.ends, at)
            if fits > at:
                whole = at == 0 and fits == len(run)
                self.builder.add(run if whole else run.cut(at, fits), versions)
                self.count += fits - at
                at = fits
            # A large row by itself is stored as soon as it came, not when another one does.
            if at < len(run) or self.builder.size > BATCH_BYTES:
                self.close_batch()

    def close_batch(self) -> None:
        """Encode what the builder holds; the transaction goes on in a new one."""
        batch = self.builder.batch()
        self.batches.append(batch)
        self.batches_bytes += batch.body.size
        mark = replace(self.builder.marks[0], first=0)
        self.builder = BatchBuilder(codec=PGOUTPUT, back=self.count, marks=[mark])
