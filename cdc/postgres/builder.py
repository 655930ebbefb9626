"""Gathers runs of records into one batch, with the transactions and relations in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cdc.postgres.protocol.frames import I64, Run
from eventlog.engine import Batch, Transactions
from eventlog.engine.batch import BATCH_BYTES
from eventlog.engine.payload import encode

BOUNDARY_BYTES = 4
"""What each record costs in a body beside its own bytes."""


@dataclass(slots=True, kw_only=True)
class TransactionMark:
    """Where a transaction begins in the builder. `position` 0: its end is not known yet.

    `origin` names the server that it was replicated from, if any.
    """

    first: int
    time_us: int
    tx: int
    position: int
    origin: str = ""


@dataclass(slots=True)
class BatchBuilder:
    """Records that will be one batch.

    Holds whole transactions, or a part of a single one whose records before it number `back`.
    Never more than BATCH_BYTES, but for a single record that is larger by itself.
    """

    codec: int
    back: int = 0
    size: int = 0
    count: int = 0
    runs: list[Run] = field(default_factory=list)
    marks: list[TransactionMark] = field(default_factory=list)
    relations: dict[int, int] = field(default_factory=dict)

    def room_for(self, ends: I64, low: int) -> int:
        """Up to which record a run's records, from `low` on, fit in here: low if none does."""
        base = int(ends[low - 1]) if low else 0
        free = BATCH_BYTES - self.size
        # Small transactions: they all fit, and the arrays below would be a fifth of their cost.
        if int(ends[-1]) - base + BOUNDARY_BYTES * (len(ends) - low) <= free:
            return len(ends)
        costs_until = ends[low:] - base + BOUNDARY_BYTES * np.arange(1, len(ends) - low + 1)
        fitting = int(np.searchsorted(costs_until, free, side="right"))
        if fitting == 0 and self.count == 0:
            return low + 1
        return low + fitting

    def agrees(self, relations: dict[int, int]) -> bool:
        """Whether these (relation, schema) pairs can share a batch with what is in here."""
        mine = self.relations
        return all(mine.get(relation, schema) == schema for relation, schema in relations.items())

    def add(self, run: Run, relations: dict[int, int]) -> None:
        """Append a run to the last transaction."""
        self.runs.append(run)
        self.count += len(run)
        self.size += len(run.data) + BOUNDARY_BYTES * len(run)
        self.relations |= relations

    def absorb(self, other: BatchBuilder) -> bool:
        """Take another builder's whole transactions to the end; False where they do not fit."""
        if self.size + other.size > BATCH_BYTES or not self.agrees(other.relations):
            return False
        for mark in other.marks:
            mark.first += self.count
        self.marks += other.marks
        self.runs += other.runs
        self.count += other.count
        self.size += other.size
        self.relations |= other.relations
        return True

    def batch(self) -> Batch:
        """Encode what is in here."""
        if len(self.runs) == 1:
            data, ends = self.runs[0].data, self.runs[0].ends
        else:
            data = b"".join(run.data for run in self.runs)
            bases = np.cumsum([0] + [len(run.data) for run in self.runs[:-1]])
            shifted = (run.ends + base for run, base in zip(self.runs, bases, strict=True))
            ends = np.concatenate(list(shifted))
        marks = self.marks
        origins = [[place, mark.origin] for place, mark in enumerate(marks) if mark.origin]
        transactions = Transactions(
            first=np.array([mark.first for mark in marks], np.uint32),
            time=np.array([mark.time_us for mark in marks], np.int64),
            tx=np.array([mark.tx for mark in marks], np.uint64),
            position=np.array([mark.position for mark in marks], np.uint64),
            back=self.back,
        )
        return Batch(
            body=encode(self.codec, ends.astype(np.uint32), data),
            transactions=transactions,
            relations=tuple(sorted(self.relations.items())),
            more={"origins": origins} if origins else {},
        )
