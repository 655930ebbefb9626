"""Copied rows and control records as batches: what a copy puts into the stream (D2, D12)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cdc.postgres.builder import BatchBuilder, TransactionMark
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.lsn import Lsn
from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.codecs.control import control_record
from eventlog.engine import Batch, Transactions, batch_of

CONTROL, COPY = 1, 4
"""The codecs' numbers."""


def row_batches(lines: Run, schema: Schema, *, position: Lsn, time_us: int) -> Iterator[Batch]:
    """Lines of COPY as batches of `read` records, which belong to no source transaction."""
    versions = {schema.relation: schema.id}
    at = 0
    while at < len(lines):
        mark = TransactionMark(first=0, time_us=time_us, tx=0, position=position)
        builder = BatchBuilder(codec=COPY, marks=[mark])
        fits = builder.room_for(lines.ends, at)
        builder.add(lines.cut(at, fits), versions)
        yield builder.batch()
        at = fits


def control_batch(op: Op, schema: Schema, *, position: Lsn, time_us: int, **fields: Any) -> Batch:
    """A control record of the schema's table: `copy_begin`, `copy_end`."""
    record = control_record(
        op,
        relation=schema.relation,
        schema=schema.namespace,
        table=schema.name,
        position=str(position),
        **fields,
    )
    transactions = Transactions.one(time_us=time_us, position=position)
    return batch_of(CONTROL, [record], transactions, relations=((schema.relation, schema.id),))
