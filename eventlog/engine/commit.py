"""Apply a plan inside one write transaction: checks first, then puts (I1 to I4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace

from eventlog.engine import ids, index, rows, staging
from eventlog.engine.batch import Batch
from eventlog.engine.failpoint import reach
from eventlog.engine.index import IndexEntry
from eventlog.engine.merge import Tail
from eventlog.engine.payload_store import delete_body, put_bodies
from eventlog.engine.plan import Advance, Append, Committed, Plan, SourceUpdate
from eventlog.engine.rows import Compression, ConsumerRow, StreamKind, StreamRow
from eventlog.engine.sealed import REPAIR_HINT
from eventlog.engine.store import Store, Txn
from eventlog.errors import (
    ConsumerFenced,
    DamagedLog,
    OffsetOutOfRange,
    StreamExists,
    UnknownStream,
    UsageError,
    WriterActive,
)

DEFAULT_COMPRESSION: Mapping[StreamKind, Compression] = {"events": "none", "captured": "zstd"}
"""Where the maker of a stream says nothing. Changes are text, and take a quarter of the room."""


def apply(store: Store, txn: Txn, plan: Plan, now_us: int, *, merge: bool = True) -> Committed:
    """Do all that the plan says, or raise with nothing done.

    Without `merge` no small batches are merged, which needs less room.
    """
    for name, make in plan.create.items():
        create_stream(store, txn, name, make, now_us)
    for source in plan.sources:
        _store_source(store, txn, source)
    fenced = {source.stream for source in plan.sources}
    appended = [_append(store, txn, append, fenced, merge=merge) for append in plan.appends]
    reach("apply.appended")
    for advance in plan.advances:
        _advance(store, txn, advance, now_us)
    return Committed(
        offsets=tuple(offsets for offsets, _ in appended),
        stored=tuple(stored for _, stored in appended),
    )


def create_stream(
    store: Store,
    txn: Txn,
    name: str,
    kind: StreamKind,
    now_us: int,
    *,
    compression: Compression | None = None,
) -> StreamRow:
    """Return the stream of that name, made now if need be.

    Raises StreamExists where there is one of another kind, or of another compression than asked.
    """
    row = rows.stream_row(store, txn, name)
    if row is None:
        row = StreamRow(
            id=rows.take_number(store, txn, "stream"),
            name=name,
            kind=kind,
            created_us=now_us,
            compression=compression or DEFAULT_COMPRESSION[kind],
        )
        rows.write_stream(store, txn, row)
    else:
        expect_like(row, kind, compression)
    return row


def expect_like(row: StreamRow, kind: StreamKind, compression: Compression | None) -> None:
    """Raise StreamExists where a stream is not of that kind and, if given, compression."""
    if row.kind != kind:
        raise StreamExists(
            f"stream {row.name!r} is there already, of kind {row.kind!r}, not {kind!r}",
            hint="choose another name",
        )
    if compression not in (None, row.compression):
        raise StreamExists(
            f"stream {row.name!r} is there already, with compression {row.compression!r}",
            hint="leave out compression=, or choose another name",
        )


def require_stream(store: Store, txn: Txn, name: str) -> StreamRow:
    """Return the stream's row; raises UnknownStream, naming the streams there are."""
    row = rows.stream_row(store, txn, name)
    if row is None:
        names = ", ".join(row.name for row in rows.stream_rows(store, txn)) or "none"
        raise UnknownStream(
            f"no stream {name!r} in this log", hint=f"`eventlog streams` lists them: {names}"
        )
    return row


def _append(
    store: Store, txn: Txn, append: Append, fenced: Set[str], *, merge: bool
) -> tuple[Sequence[int], int]:
    """Publish an append; returns the offset of each record, and how many of them are new."""
    stream = require_stream(store, txn, append.stream)
    if stream.kind == "captured" and stream.name not in fenced:
        raise UsageError(
            f"stream {stream.name!r} is captured, and only its writer appends to it",
            hint="append to an event stream, or bring the writer's epoch along",
        )
    batches, known = append.batches, None
    if append.ids:
        batches, known = ids.leave_out_known(store, txn, stream, append)
        if not batches:
            return known.offsets(range(stream.end, stream.end)), 0
    tail = Tail(store, txn, stream) if merge else None
    time_max, placed = stream.time_running_max, stream.end
    for entry in _entries(store, txn, append, batches):
        if not entry.records:
            # All its records were dropped: it has no offset, and so no place in the stream.
            delete_body(store, txn, entry)
            continue
        time_max = max(time_max, entry.time_max)
        key = index.key(stream.id, placed)
        value = index.pack(entry.moved(placed, time_max), under=key)
        if not txn.put(key, value, db=store.index, overwrite=False):
            raise DamagedLog(
                f"stream {stream.name!r} has an entry at its end {placed} already",
                hint=REPAIR_HINT,
            )
        if tail is not None:
            tail.add(placed, entry.raw_bytes)
        placed += entry.records
    added = range(stream.end, placed)
    rows.write_head(
        store,
        txn,
        stream,
        end=placed,
        time_running_max=time_max,
        tail=[] if tail is None else tail.stored(),
        ids=stream.ids if known is None else known.store(store, txn, added),
    )
    return added if known is None else known.offsets(added), len(added)


def _entries(
    store: Store, txn: Txn, append: Append, batches: Sequence[Batch]
) -> Iterable[IndexEntry]:
    if append.staged is not None:
        for entry in staging.publish(store, txn, append.staged):
            position = append.staged_position
            yield entry if position is None else entry.with_position(position)
    if batches:
        yield from place(store, txn, batches, inline=True)


def place(
    store: Store, txn: Txn, batches: Iterable[Batch], *, inline: bool = False
) -> list[IndexEntry]:
    """Store the bodies of batches; returns their entries, not yet in any stream.

    With `inline` small bodies go into the entries.
    """
    batches = list(batches)
    apart = [batch.body for batch in batches if not (inline and batch.fits_entry)]
    next_id = 0
    if apart:
        next_id = rows.take_number(store, txn, "payload", count=len(apart))
        put_bodies(store, txn, next_id, apart)
    found = []
    for batch in batches:
        if inline and batch.fits_entry:
            found.append(batch.entry(0))
        else:
            found.append(batch.entry(next_id))
            next_id += 1
    return found


def _store_source(store: Store, txn: Txn, source: SourceUpdate) -> None:
    stream = require_stream(store, txn, source.stream)
    if stream.writer_epoch != source.writer_epoch:
        raise WriterActive(
            f"another process has taken over the capture of stream {source.stream!r}",
            hint="let one process capture a source; this one stops",
        )
    counted = stream
    for schema_id, stored in source.schemas:
        rows.write_schema(store, txn, stream.id, schema_id, {**stored, "offset": stream.end})
        counted = replace(counted, schemas=max(counted.schemas, schema_id + 1))
    if source.state is not None:
        rows.write_source(store, txn, source.stream, source.state)
        counted = replace(counted, sources=1)
    if counted != stream:
        rows.write_stream(store, txn, counted)


def _advance(store: Store, txn: Txn, advance: Advance, now_us: int) -> None:
    stream = require_stream(store, txn, advance.stream)
    row = rows.consumer_row(store, txn, stream, advance.consumer)
    found = None if row is None else (row.offset, row.epoch)
    if row is None or found != (advance.expected_offset, advance.expected_epoch):
        raise ConsumerFenced(
            f"consumer {advance.consumer!r} of stream {advance.stream!r} stands at (offset, epoch) "
            f"{found}, not at {(advance.expected_offset, advance.expected_epoch)}",
            hint="another process uses this consumer, or rewound it; read it again and go on there",
        )
    end = stream.end
    lowest = stream.start if advance.rewind else row.offset
    if not lowest <= advance.offset <= end:
        raise OffsetOutOfRange(
            f"consumer {advance.consumer!r} cannot move to {advance.offset}, "
            f"outside [{lowest}, {end}]",
            hint="a consumer moves forward, up to the stream's end; rewind it to go back, "
            "as far as `begin`",
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
    store: Store, txn: Txn, stream_name: str, name: str, offset: int, now_us: int
) -> ConsumerRow:
    """Return the consumer's row, made at `offset` where there is none."""
    stream = require_stream(store, txn, stream_name)
    row = rows.consumer_row(store, txn, stream, name)
    if row is None:
        end = stream.end
        if not stream.start <= offset <= end:
            raise OffsetOutOfRange(
                f"consumer {name!r} cannot start at {offset}, outside [{stream.start}, {end}]",
                hint="start it at an offset of the stream, at its `begin` or at its `end`",
            )
        row = ConsumerRow(offset=offset, epoch=1, filter="", updated_us=now_us)
        rows.write_consumer(store, txn, stream.id, name, row)
        rows.write_stream(store, txn, replace(stream, consumers=stream.consumers + 1))
    return row
