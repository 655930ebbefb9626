"""The initial copy: the rows that are there, as raw COPY lines, under one snapshot (D2, D12).

For each table a `copy_begin` record, the rows, and a `copy_end`; all tables under the snapshot that
the slot exported, so that the copy ends exactly where the stream begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from psycopg import pq, sql

from cdc.postgres.builder import BatchBuilder, TransactionMark
from cdc.postgres.catalog import Table
from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated
from cdc.postgres.frames import Run
from cdc.postgres.libpq import CopyReader
from cdc.postgres.lsn import Lsn
from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.codecs.control import control_record
from eventlog.engine import Batch, Transactions, batch_of

CONTROL, COPY = 1, 4
"""The codecs' numbers."""

COMMIT_BYTES = 8 << 20
YIELD_S = 0.0002
"""A pause after each commit of the copy, so that small writers get their turn (D6)."""

_SILENCE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyProgress:
    """How far the copy of a table is."""

    table: str
    rows: int
    bytes: int
    rows_estimate: int | None
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of the database that is copied: its exported name, position and time."""

    name: str
    position: Lsn
    time_us: int


def begin(conn: Connection, name: str, position: Lsn) -> Snapshot:
    """Let an ordinary connection see what the exported snapshot sees."""
    with translated("using the slot's snapshot"):
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(name)))
        row = conn.execute("select (extract(epoch from clock_timestamp()) * 1e6)::int8").fetchone()
    assert row is not None
    return Snapshot(name=name, position=position, time_us=int(row[0]))


def copy_table(
    conn: Connection,
    table: Table,
    schema: Schema,
    snapshot: Snapshot,
    *,
    where: str | None,
    store: Callable[[list[Batch]], None],
    progress: Callable[[CopyProgress], None],
    stopped: Callable[[], bool],
) -> bool:
    """Copy one table; `store` gets its batches, at most COMMIT_BYTES at a time.

    Returns False where `stopped` told to stop before the end.
    """
    fields = {
        "schema": schema.namespace,
        "table": schema.name,
        "position": str(snapshot.position),
    }
    pending = [_control(Op.COPY_BEGIN, schema, fields, snapshot)]
    size = rows = total = 0
    told = time.monotonic()
    with translated(f"copying {table.table}"):
        for batch in _row_batches(conn, table, schema, snapshot, where):
            if stopped():
                return False
            pending.append(batch)
            rows += batch.body.count
            size += len(batch.body.data)
            total += len(batch.body.data)
            if size >= COMMIT_BYTES:
                store(pending)
                pending, size = [], 0
                time.sleep(YIELD_S)
            if time.monotonic() - told > 0.1:
                told = time.monotonic()
                progress(_progress(table, rows, total))
    pending.append(_control(Op.COPY_END, schema, {**fields, "rows": rows}, snapshot))
    store(pending)
    progress(replace(_progress(table, rows, total), done=True))
    return True


def _progress(table: Table, rows: int, size: int) -> CopyProgress:
    return CopyProgress(
        table=str(table.table), rows=rows, bytes=size, rows_estimate=table.rows_estimate
    )


def _row_batches(
    conn: Connection, table: Table, schema: Schema, snapshot: Snapshot, where: str | None
) -> Iterator[Batch]:
    conn.pgconn.send_query(_statement(table, schema, where).as_bytes(conn))
    result = conn.pgconn.get_result()
    reader = CopyReader(conn)
    if result is None or result.status != pq.ExecStatus.COPY_OUT:
        reader.finish(f"copying {table.table}")
        return
    versions = {schema.relation: schema.id}
    builder = _builder(snapshot)
    while not reader.ended:
        frames = reader.read(timeout_s=_SILENCE_S, gather_s=0.002)
        if frames is None:
            continue
        run = Run(data=frames.data, ends=np.asarray(frames.ends))
        at = 0
        while at < len(run):
            fits = builder.room_for(run.ends, at)
            if fits > at:
                builder.add(run.cut(at, fits), versions)
                at = fits
            if at < len(run):
                yield builder.batch()
                builder = _builder(snapshot)
    reader.finish(f"copying {table.table}")
    if builder.count:
        yield builder.batch()


def _statement(table: Table, schema: Schema, where: str | None) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in schema.names)
    if table.kind == "r" and where is None:
        return sql.SQL("COPY {} ({}) TO STDOUT").format(table.identifier, columns)
    condition = sql.SQL("" if where is None else f" WHERE {where}")
    only = sql.SQL("" if table.kind == "p" else "ONLY ")
    return sql.SQL("COPY (SELECT {} FROM {}{}{}) TO STDOUT").format(
        columns, only, table.identifier, condition
    )


def _builder(snapshot: Snapshot) -> BatchBuilder:
    mark = TransactionMark(first=0, time_us=snapshot.time_us, tx=0, position=snapshot.position)
    return BatchBuilder(codec=COPY, marks=[mark])


def _control(op: Op, schema: Schema, fields: Mapping[str, Any], snapshot: Snapshot) -> Batch:
    record = control_record(op, relation=schema.relation, **fields)
    transactions = Transactions.one(time_us=snapshot.time_us, position=snapshot.position)
    relations = ((schema.relation, schema.id),)
    return batch_of(CONTROL, [record], transactions, relations=relations)
