"""The integrity check's survey: all small rows, held against each other in one read transaction.

What it returns bounds the rest of the check: entries up to each stream's end as it was here, and
payloads below the counter as it was here. Whatever is written later lies above, so that a check of
a live log reports nothing that is not so.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from eventlog.engine import index, pins, rows
from eventlog.engine.directory import FORMAT_NUMBER
from eventlog.engine.index import IndexEntry
from eventlog.engine.payload import part_count
from eventlog.engine.payload_store import greatest_id
from eventlog.engine.rows import ConsumerRow, OwnerRow, StreamRow
from eventlog.engine.sealed import unseal
from eventlog.engine.store import Store, Txn
from eventlog.engine.upgrade import KNOWN
from eventlog.engine.upkeep.check_heads import check_heads
from eventlog.engine.upkeep.violation import Report
from eventlog.errors import EventLogError

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_PAIR = struct.Struct(">II")
_STAGED = struct.Struct(">QQ")
_NUMBER_MAX = 2**64 - 1


@dataclass(slots=True, kw_only=True)
class StreamState:
    """A stream as it was at the survey; `last` is its last entry, where that can be read."""

    row: StreamRow
    last: IndexEntry | None = None
    entries: bool = False
    consumers: int = 0
    schemas: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.row.end


@dataclass(slots=True)
class References:
    """Every payload that an entry names: its id, and the parts that it should have."""

    ids: array[int] = field(default_factory=lambda: array("Q"))
    parts: array[int] = field(default_factory=lambda: array("L"))

    def add(self, entry: IndexEntry) -> None:
        if entry.body is not None:
            return
        self.ids.append(entry.payload_id)
        self.parts.append(part_count(entry.body_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedKey:
    """A staged entry: its key, and the stream that it is meant for."""

    key: bytes
    where: str
    stream: str | None


@dataclass(slots=True, kw_only=True)
class Survey:
    """The bounds of a check."""

    streams: dict[int, StreamState] = field(default_factory=dict)
    staged: list[StagedKey] = field(default_factory=list)
    references: References = field(default_factory=References)
    payloads_below: int = _NUMBER_MAX


def survey(store: Store, report: Report) -> Survey:
    """Check the small rows, and return what bounds the rest."""
    found = Survey()
    with store.read() as txn:
        meta = dict(_sealed(store.meta, txn, "meta", report))
        _format(meta, report)
        counters = meta.get(rows.COUNTERS_KEY, {})
        if txn.get(rows.COUNTERS_KEY, db=store.meta) is None:
            report.add("counters", f"row {rows.COUNTERS_KEY!r}", "it is not there")
        _streams(store, txn, meta, counters, found, report)
        _schemas(store, txn, found, report)
        _consumers(store, txn, found, report)
        _sources(meta, found, report)
        ends = {state.row.name: state.end for state in found.streams.values()}
        for what in pins.damages(meta, ends):
            report.add("pins", "pins", what)
        owners = _owners(meta, counters, found, report)
        _staged(store, txn, owners, found, report)
        check_heads(store, txn, found, report)
        _payload_counter(store, txn, counters, found, report)
    return found


def _sealed(
    database: Any, txn: Txn, invariant: str, report: Report
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for key, value in txn.cursor(db=database):
        try:
            yield key, unseal(key, value)
        except EventLogError as error:
            report.add(
                "format" if key == rows.FORMAT_KEY else invariant, f"row {key!r}", f"{error}"
            )


def _format(meta: Mapping[bytes, Mapping[str, Any]], report: Report) -> None:
    found = meta.get(rows.FORMAT_KEY)
    where = f"row {rows.FORMAT_KEY!r}"
    if found is not None:
        if found.get("number") != FORMAT_NUMBER:
            report.add("format", where, f"number {found.get('number')} is not {FORMAT_NUMBER}")
        unknown = set(found.get("must_know", ())) - KNOWN
        if unknown:
            report.add("format", where, f"features {sorted(unknown)} are unknown here")
    identity = meta.get(rows.LOG_KEY)
    if identity is None or len(identity.get("id", b"")) != 16 or identity["generation"] < 1:
        report.add("meta", f"row {rows.LOG_KEY!r}", "the log has no identity")


def _streams(
    store: Store,
    txn: Txn,
    meta: Mapping[bytes, Mapping[str, Any]],
    counters: Mapping[str, int],
    found: Survey,
    report: Report,
) -> None:
    for key, stored in meta.items():
        if not key.startswith(rows.STREAM_KEYS):
            continue
        row: StreamRow = rows.load_row(StreamRow, stored)
        where = f"row {key!r}"
        if rows.STREAM_KEYS + row.name.encode() != key:
            report.add("meta", where, f"it names stream {row.name!r}")
        if row.id in found.streams:
            other = found.streams[row.id].row.name
            report.add("meta", where, f"number {row.id} is also that of stream {other!r}")
            continue
        if rows.COUNTERS_KEY in meta and row.id >= counters.get("stream", 1):
            report.add("counters", where, f"number {row.id} was never given out")
        found.streams[row.id] = StreamState(row=row)
    for stream_id in _stream_ids(store, txn):
        state = found.streams.get(stream_id)
        if state is None:
            report.add("index", f"stream number {stream_id}", "entries of a stream with no row")
        else:
            _find_end(store, txn, state)
    made = counters.get("stream", 1) - 1
    if rows.COUNTERS_KEY in meta and len(found.streams) < made:
        what = f"{made} streams were made, and the rows of {len(found.streams)} can be read"
        report.add("meta", "streams", what)


def _stream_ids(store: Store, txn: Txn) -> Iterator[int]:
    cursor = txn.cursor(db=store.index)
    positioned = cursor.first()
    while positioned:
        stream_id, _ = index.split_key(cursor.key())
        yield stream_id
        last = index.key(stream_id, _NUMBER_MAX)
        positioned = cursor.set_range(last)
        if positioned and cursor.key() == last:
            positioned = cursor.next()


def _find_end(store: Store, txn: Txn, state: StreamState) -> None:
    cursor = txn.cursor(db=store.index)
    last = index.key(state.row.id, _NUMBER_MAX)
    positioned = cursor.set_range(last)
    if not positioned or cursor.key() != last:
        cursor.prev() if positioned else cursor.last()
    key, value = cursor.item()
    state.entries = True
    _, first_offset = index.split_key(key)
    # Where it cannot be read the walk comes to it and reports it.
    with suppress(EventLogError):
        state.last = index.unpack(first_offset, value, under=key)


def _schemas(store: Store, txn: Txn, found: Survey, report: Report) -> None:
    for key, stored in _sealed(store.schema, txn, "schema", report):
        stream_id, schema_id = _PAIR.unpack(key)
        state = found.streams.get(stream_id)
        if state is None:
            report.add("schema", f"row {key!r}", f"no stream has number {stream_id}")
            continue
        where = f"schema version {schema_id}"
        name = state.row.name
        offset = stored["offset"]
        if state.schemas:
            last_id, last = next(reversed(state.schemas.items()))
            if schema_id != last_id + 1:
                report.add("schema", where, f"it follows version {last_id}", stream=name)
            if offset < last["offset"]:
                what = f"its offset {offset} is below {last['offset']} of version {last_id}"
                report.add("schema", where, what, stream=name)
        if not 0 <= offset <= state.end:
            report.add("schema", where, f"its offset {offset} passes {state.end}", stream=name)
        state.schemas[schema_id] = stored


def _consumers(store: Store, txn: Txn, found: Survey, report: Report) -> None:
    for key, stored in _sealed(store.consumer, txn, "consumer", report):
        (stream_id,) = _U32.unpack_from(key)
        state = found.streams.get(stream_id)
        where = f"consumer {key[4:].decode()!r}"
        if state is None:
            report.add("consumer", where, f"no stream has number {stream_id}")
            continue
        state.consumers += 1
        row: ConsumerRow = rows.load_row(ConsumerRow, stored)
        if not 0 <= row.offset <= state.end:
            what = f"its offset {row.offset} is outside [0, {state.end}]"
            report.add("I2", where, what, stream=state.row.name)
        if row.epoch < 1:
            report.add("I2", where, f"its epoch is {row.epoch}", stream=state.row.name)


def _sources(meta: Mapping[bytes, Mapping[str, Any]], found: Survey, report: Report) -> None:
    names = {state.row.name for state in found.streams.values()}
    for key in meta:
        if key.startswith(rows.SOURCE_KEYS) and key[len(rows.SOURCE_KEYS) :].decode() not in names:
            report.add("I4", f"row {key!r}", "the state of a source whose stream is not there")
    for state in found.streams.values():
        if state.row.sources and rows.SOURCE_KEYS + state.row.name.encode() not in meta:
            what = "its state was stored, and cannot be read any more"
            report.add("I4", "source", what, stream=state.row.name)
        if state.row.kind != "captured" or state.last is None or not state.row.sources:
            continue  # Without a state, which a repair may have dropped, nothing is claimed.
        stored = meta.get(rows.SOURCE_KEYS + state.row.name.encode(), {})
        position = stored.get("position", 0)
        covered = max(state.last.transactions.position.tolist(), default=0)
        if not isinstance(position, int) or position < covered:
            what = f"its stored position {position} does not cover the last change at {covered}"
            report.add("I4", "source", what, stream=state.row.name)


def _owners(
    meta: Mapping[bytes, Mapping[str, Any]],
    counters: Mapping[str, int],
    found: Survey,
    report: Report,
) -> dict[int, OwnerRow]:
    owners: dict[int, OwnerRow] = {}
    for key, stored in meta.items():
        if not key.startswith(rows.OWNER_KEYS):
            continue
        row: OwnerRow = rows.load_row(OwnerRow, stored)
        (number,) = _U64.unpack(key[len(rows.OWNER_KEYS) :])
        owners[number] = row
        where = f"owner {number}"
        if row.id != number:
            report.add("staging", where, f"its row names owner {row.id}")
        if row.stream not in found.streams:
            report.add("staging", where, f"no stream has number {row.stream}")
        if rows.COUNTERS_KEY in meta and number >= counters.get("owner", 1):
            report.add("counters", where, f"number {number} was never given out")
    return owners


def _staged(
    store: Store, txn: Txn, owners: Mapping[int, OwnerRow], found: Survey, report: Report
) -> None:
    counted = dict.fromkeys(owners, 0)
    for key, value in txn.cursor(db=store.staging):
        owner, sequence = _STAGED.unpack(key)
        counted[owner] = counted.get(owner, 0) + 1
        where = f"staged batch {sequence} of owner {owner}"
        row = owners.get(owner)
        state = None if row is None else found.streams.get(row.stream)
        if row is None:
            report.add("staging", where, "no such owner is there")
        stream = None if state is None else state.row.name
        try:
            found.references.add(index.unpack(0, value, under=key))
        except EventLogError as error:
            report.add("staging", where, f"{error}", stream=stream)
            continue
        found.staged.append(StagedKey(key=key, where=where, stream=stream))
    for owner, row in owners.items():
        if row.staged != counted[owner]:
            what = f"it staged {row.staged} batches, and {counted[owner]} are there"
            report.add("staging", f"owner {owner}", what)


def _payload_counter(
    store: Store, txn: Txn, counters: Mapping[str, int], found: Survey, report: Report
) -> None:
    greatest = greatest_id(store, txn)
    if counters:
        found.payloads_below = counters.get("payload", 1)
        if greatest >= found.payloads_below:
            what = f"number {greatest} was never given out, the next is {found.payloads_below}"
            report.add("counters", f"payload {greatest}", what)
