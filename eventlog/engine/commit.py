"""Apply a plan inside one write transaction: checks first, then puts (I1 to I4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from eventlog.engine import index, rows, staging
from eventlog.engine.batch import Batch
from eventlog.engine.index import IndexEntry
from eventlog.engine.payload_store import delete_body, put_bodies
from eventlog.engine.plan import Advance, Append, Committed, Plan, SourceUpdate
from eventlog.engine.rows import ConsumerRow, StreamKind, StreamRow
from eventlog.engine.scan import last_entry
from eventlog.engine.store import Store, Txn
from eventlog.errors import (
    ConsumerFenced,
    DamagedLog,
    OffsetOutOfRange,
    StreamExists,
    UnknownStream,
    WriterActive,
)


def apply(store: Store, txn: Txn, plan: Plan, now_us: int) -> Committed:
    """Do all that the plan says, or raise with nothing done."""
    for name, kind in plan.create.items():
        create_stream(store, txn, name, kind, now_us)
    for source in plan.sources:
        _store_source(store, txn, source)
    offsets = tuple(_append(store, txn, append) for append in plan.appends)
    for advance in plan.advances:
        _advance(store, txn, advance, now_us)
    return Committed(offsets=offsets)


def create_stream(store: Store, txn: Txn, name: str, kind: StreamKind, now_us: int) -> StreamRow:
    """Return the stream of that name, made now if need be.

    Raises StreamExists where there is one of another kind.
    """
    row = rows.stream_row(store, txn, name)
    if row is None:
        stream_id = rows.take_number(store, txn, "stream")
        row = StreamRow(id=stream_id, name=name, kind=kind, created_us=now_us)
        rows.write_stream(store, txn, row)
    elif row.kind != kind:
        raise StreamExists(
            f"stream {name!r} is there already, of kind {row.kind!r}, not {kind!r}",
            hint="choose another name",
        )
    return row


def require_stream(store: Store, txn: Txn, name: str) -> StreamRow:
    """Return the stream's row; raises UnknownStream, naming the streams there are."""
    row = rows.stream_row(store, txn, name)
    if row is None:
        names = ", ".join(row.name for row in rows.stream_rows(store, txn)) or "none"
        raise UnknownStream(
            f"no stream {name!r} in this log", hint=f"`eventlog streams` lists them: {names}"
        )
    return row


def stream_end(store: Store, txn: Txn, row: StreamRow) -> int:
    """The offset that the next record will get."""
    last = last_entry(store, txn, row.id)
    return row.start if last is None else last.stop


def _append(store: Store, txn: Txn, append: Append) -> range:
    stream = require_stream(store, txn, append.stream)
    last = last_entry(store, txn, stream.id)
    start = stream.start if last is None else last.stop
    time_max = last.time_running_max if last is not None else -(2**63)
    placed = start
    for entry in _entries(store, txn, append):
        if not entry.records:
            # All its records were dropped: it has no offset, and so no place in the stream.
            delete_body(store, txn, entry.payload_id, size=entry.body_bytes)
            continue
        time_max = max(time_max, entry.time_max)
        key = index.key(stream.id, placed)
        value = index.pack(entry.moved(placed, time_max), under=key)
        if not txn.put(key, value, db=store.index, overwrite=False):
            raise DamagedLog(
                f"stream {stream.name!r} has an entry at its end {placed} already",
                hint="run `eventlog check`",
            )
        placed += entry.records
    return range(start, placed)


def _entries(store: Store, txn: Txn, append: Append) -> Iterable[IndexEntry]:
    if append.staged is not None:
        for entry in staging.take(store, txn, append.staged):
            position = append.staged_position
            yield entry if position is None else entry.with_position(position)
    if append.batches:
        yield from place(store, txn, append.batches)


def place(store: Store, txn: Txn, batches: Iterable[Batch]) -> list[IndexEntry]:
    """Store the bodies of batches; returns their entries, not yet in any stream."""
    batches = list(batches)
    first_id = rows.take_number(store, txn, "payload", count=len(batches))
    put_bodies(store, txn, first_id, [batch.body for batch in batches])
    return [batch.entry(first_id + i) for i, batch in enumerate(batches)]


def _store_source(store: Store, txn: Txn, source: SourceUpdate) -> None:
    stream = require_stream(store, txn, source.stream)
    if stream.writer_epoch != source.writer_epoch:
        raise WriterActive(
            f"another process has taken over the capture of stream {source.stream!r}",
            hint="let one process capture a source; this one stops",
        )
    if source.schemas:
        end = stream_end(store, txn, stream)
        for schema_id, stored in source.schemas:
            rows.write_schema(store, txn, stream.id, schema_id, {**stored, "offset": end})
    if source.state is not None:
        rows.write_source(store, txn, source.stream, source.state)


def _advance(store: Store, txn: Txn, advance: Advance, now_us: int) -> None:
    stream = require_stream(store, txn, advance.stream)
    row = rows.consumer_row(store, txn, stream.id, advance.consumer)
    found = None if row is None else (row.offset, row.epoch)
    if row is None or found != (advance.expected_offset, advance.expected_epoch):
        raise ConsumerFenced(
            f"consumer {advance.consumer!r} of stream {advance.stream!r} stands at (offset, epoch) "
            f"{found}, not at {(advance.expected_offset, advance.expected_epoch)}",
            hint="another process uses this consumer, or rewound it; read it again and go on there",
        )
    end = stream_end(store, txn, stream)
    lowest = stream.start if advance.rewind else row.offset
    if not lowest <= advance.offset <= end:
        raise OffsetOutOfRange(
            f"consumer {advance.consumer!r} cannot move to {advance.offset}, "
            f"outside [{lowest}, {end}]",
            hint="a consumer moves forward, up to the stream's end; rewind it to go back",
        )
    moved = replace(
        row,
        offset=advance.offset,
        epoch=row.epoch + advance.rewind,
        filter=advance.filter,
        updated_us=now_us,
    )
    rows.write_consumer(store, txn, stream.id, advance.consumer, moved)


def create_consumer(
    store: Store, txn: Txn, stream: StreamRow, name: str, offset: int, now_us: int
) -> ConsumerRow:
    """Return the consumer's row, made at `offset` where there is none."""
    row = rows.consumer_row(store, txn, stream.id, name)
    if row is None:
        end = stream_end(store, txn, stream)
        if not stream.start <= offset <= end:
            raise OffsetOutOfRange(
                f"consumer {name!r} cannot start at {offset}, outside [{stream.start}, {end}]",
                hint="start it at an offset of the stream, or at its end",
            )
        row = ConsumerRow(offset=offset, epoch=1, filter="", updated_us=now_us)
        rows.write_consumer(store, txn, stream.id, name, row)
    return row
