"""Retention: drop the oldest batches of an event stream, in small commits.

Whole batches go: the stream then begins where the first one that stays begins, at or below the
offset asked for. Nothing goes that a consumer has not passed, or that a pinned manifest is made of,
unless forced. Every commit drops at
most BATCHES and moves the stream's start, so that a crash leaves a stream that begins somewhere in
between. Freed pages are used again by what is appended next; `compact` gives them back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from eventlog.engine import commit, index, payload_store, pins, rows
from eventlog.engine.group import PAUSE_S
from eventlog.engine.index import IndexEntry
from eventlog.engine.rows import StreamRow
from eventlog.engine.scan import entries_from, entry_before
from eventlog.engine.store import Store, Txn
from eventlog.errors import DiskFull, UsageError

BATCHES = 64
"""Dropped by one commit: some milliseconds (LMDB.md)."""

Progress = Callable[[int, int], None]
"""Told of the offsets passed so far, and of all that will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """What a retention did: `[start, end)` is what is left.

    `offsets` and `bytes` (as stored) were dropped. `asked` is the offset below which all should go,
    `held_by` the consumers that kept it from being reached, `pinned_by` the ids of such pins.
    """

    start: int
    end: int
    asked: int
    offsets: int
    bytes: int
    held_by: tuple[str, ...] = ()
    pinned_by: tuple[str, ...] = ()


def retain(
    store: Store,
    stream: str,
    *,
    below: int,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Retained:
    """Drop what lies below an offset, as far as consumers have passed it and no pin needs it.

    With `dry_run` only tells. Raises UsageError for a captured stream.
    """
    with store.read() as txn:
        first = commit.require_stream(store, txn, stream)
        _require_events(first)
        limit, held = _limit(store, txn, first, below, force=force)
        dropped = list(entries_from(store, txn, first.id, first.start, limit)) if dry_run else []
    if dry_run:
        gone = [entry for entry in dropped if entry.stop <= limit]
        return Retained(
            start=gone[-1].stop if gone else first.start,
            end=first.end,
            asked=below,
            offsets=sum(entry.records for entry in gone),
            bytes=sum(entry.body_bytes for entry in gone),
            held_by=held.consumers,
            pinned_by=held.pins,
        )
    at, size, batches = first.start, 0, BATCHES
    while True:
        try:
            with store.write() as txn:
                row = commit.require_stream(store, txn, stream)
                limit, held = _limit(store, txn, row, below, force=force)
                start, gone_bytes = _drop(store, txn, row, limit, batches)
        except DiskFull:
            # Dropping takes pages itself, fewer for fewer batches.
            if batches == 1:
                raise
            batches = max(batches // 4, 1)
            continue
        size += gone_bytes
        if start == row.start:
            break
        at = start
        if progress is not None:
            progress(at - first.start, max(limit - first.start, 1))
        time.sleep(PAUSE_S)
    if size:
        _let_freed_pages_be_used(store, stream)
    return Retained(
        start=row.start,
        end=row.end,
        asked=below,
        offsets=at - first.start,
        bytes=size,
        held_by=held.consumers,
        pinned_by=held.pins,
    )


def below_for_bytes(store: Store, stream: str, bytes_max: int) -> int:
    """The offset from which on the stored bodies of a stream take at most that many bytes."""
    with store.read() as txn:
        row = commit.require_stream(store, txn, stream)
        at, size = row.end, 0
        while at > row.start:
            entry = entry_before(store, txn, row.id, at - 1)
            if entry is None or size + entry.body_bytes > bytes_max:
                break
            size += entry.body_bytes
            at = entry.first_offset
        return at


def _require_events(row: StreamRow) -> None:
    if row.kind != "events":
        raise UsageError(
            f"stream {row.name!r} is captured: its tables are rebuilt from all of its history",
            hint="retention is for event streams",
        )


class _Held(NamedTuple):
    """The names of consumers, and the ids of pins, that stand in the way of more."""

    consumers: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()


def _limit(store: Store, txn: Txn, row: StreamRow, below: int, *, force: bool) -> tuple[int, _Held]:
    """How far may be dropped, and what stands in the way of more."""
    limit = min(below, row.end)
    if force:
        return limit, _Held()
    consumers = [
        (name, consumer.offset)
        for name, consumer in rows.consumer_rows(store, txn, row)
        if consumer.offset < limit
    ]
    pinned = pins.holding(pins.pin_rows(store, txn), row, limit)
    held = _Held(tuple(name for name, _ in consumers), tuple(pin for pin, _ in pinned))
    return min([limit, *(offset for _, offset in (*consumers, *pinned))]), held


def _let_freed_pages_be_used(store: Store, stream: str) -> None:
    # Pages can be used from the second commit on after the one that freed them. On a full disk the
    # next append may be too large for what was free before, and nothing would ever come between.
    with suppress(DiskFull), store.write() as txn:
        rows.write_stream(store, txn, commit.require_stream(store, txn, stream))


def _drop(store: Store, txn: Txn, row: StreamRow, limit: int, batches: int) -> tuple[int, int]:
    """Drop at most `batches` entries that end by `limit`; returns the new start and the bytes."""
    gone: list[IndexEntry] = []
    for entry in entries_from(store, txn, row.id, row.start, limit):
        if entry.stop > limit or len(gone) == batches:
            break
        gone.append(entry)
    if not gone:
        return row.start, 0
    for entry in gone:
        txn.delete(index.key(row.id, entry.first_offset), db=store.index)
        payload_store.delete_body(store, txn, entry)
    start = gone[-1].stop
    # A run that lost entries is not merged any more.
    tail = row.tail if not row.tail or row.tail[0][1] >= start else ()
    dropped = gone[-1].time_running_max
    rows.write_stream(store, txn, replace(row, start=start, time_dropped_max=dropped, tail=tail))
    return start, sum(entry.body_bytes for entry in gone)
