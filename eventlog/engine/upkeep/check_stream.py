"""The integrity check's walk over one stream: every entry, every payload (I1, I6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from eventlog.engine import index
from eventlog.engine.index import COMPACTED, DROPPED, IndexEntry
from eventlog.engine.payload_store import get_body, load
from eventlog.engine.scan import READ_BYTES, READ_ENTRIES
from eventlog.engine.store import Store
from eventlog.engine.upkeep.check_rows import References, StreamState
from eventlog.engine.upkeep.violation import Report
from eventlog.errors import EventLogError


def walk_stream(
    store: Store,
    state: StreamState,
    report: Report,
    references: References,
    step: Callable[[int], None],
) -> None:
    """Check a stream up to its end as it was at the survey; `step` is told of records done."""
    walk = _Walk(state, report)
    for item in _items(store, state):
        if isinstance(item, _Unreadable):
            walk.unreadable(item)
            continue
        entry, value, body = item
        references.add(entry)
        walk.entry(entry, value)
        check_payload(entry, body, report, stream=state.row.name)
        step(entry.records)


def check_payload(
    entry: IndexEntry, body: bytes, report: Report, *, stream: str | None, where: str = ""
) -> None:
    """Report a body that is missing, damaged, or not the one that its entry names."""
    where = where or _where(entry)
    try:
        found = load(body, entry, stream=stream or "?")
    except EventLogError as error:
        what = f"payload {entry.payload_id} is missing" if not body else f"{error}"
        report.add("payload", where, what, stream=stream)
        return
    if np.any(found.ends[1:] < found.ends[:-1]):
        what = f"record boundaries of payload {entry.payload_id} do not ascend"
        report.add("payload", where, what, stream=stream)


def shape_faults(entry: IndexEntry, value: bytes) -> Iterator[str]:
    """What contradicts itself inside one entry."""
    transactions = entry.transactions
    if not len(transactions):
        yield "it names no transaction"
        return
    first = transactions.first.astype(np.int64)
    if first[0] != 0 or np.any(np.diff(first) <= 0) or first[-1] >= entry.slots:
        yield f"its transactions do not ascend from 0 below {entry.slots} slots"
    dropped = 0
    if entry.states is not None:
        dropped = int((entry.states == DROPPED).sum())
        if np.any(entry.states > COMPACTED):
            yield f"state {int(entry.states.max())} is unknown"
    if entry.records != entry.slots - dropped:
        yield f"it counts {entry.records} records in {entry.slots} slots, {dropped} dropped"
    if index.stored_times(value) != (entry.time_min, entry.time_max):
        yield f"its times {index.stored_times(value)} are not the least and greatest"


class _Unreadable(NamedTuple):
    first_offset: int
    error: EventLogError


_Item = tuple[IndexEntry, bytes, bytes] | _Unreadable


def _items(store: Store, state: StreamState) -> Iterator[_Item]:
    # Entries with their stored form and their payloads' bodies, in short read transactions.
    resume = index.key(state.row.id, 0)
    stop = b"" if state.last_first is None else index.key(state.row.id, state.last_first)
    while resume <= stop:
        gathered: list[_Item] = []
        size = 0
        with store.read() as txn:
            cursor = txn.cursor(db=store.index)
            positioned = cursor.set_range(resume)
            while positioned and size < READ_BYTES and len(gathered) < READ_ENTRIES:
                key, value = cursor.item()
                if key > stop:
                    break
                resume = key + b"\0"
                _, first_offset = index.split_key(key)
                try:
                    entry = index.unpack(first_offset, value, under=key)
                except EventLogError as error:
                    gathered.append(_Unreadable(first_offset, error))
                else:
                    body = get_body(store, txn, entry.payload_id, size=entry.body_bytes)
                    gathered.append((entry, value, body))
                    size += len(body)
                positioned = cursor.next()
        if not gathered:
            return
        yield from gathered


class _Walk:
    """Holds each entry against those before it."""

    def __init__(self, state: StreamState, report: Report) -> None:
        self._state = state
        self._report = report
        self._next: int | None = state.row.start
        self._running = -(2**63)
        self._previous: IndexEntry | None = None
        self._reached = 0
        self._run = 0

    def unreadable(self, item: _Unreadable) -> None:
        """Go on past an entry that cannot be read: what depends on it is not known."""
        where = f"entry at {item.first_offset}"
        self._say("index", where, f"{item.error}")
        if self._next is not None and item.first_offset != self._next:
            self._say("I1", where, f"offset {self._next} was due")
        self._next = self._previous = None

    def entry(self, entry: IndexEntry, value: bytes) -> None:
        where = _where(entry)
        faults = list(shape_faults(entry, value))
        for what in faults:
            self._say("index", where, what)
        self._dense(entry, where)
        self._schemas(entry, where)
        if faults:
            self._previous = None
            return
        self._times(entry, where)
        self._whole_transactions(entry, where)
        self._previous = entry

    def _dense(self, entry: IndexEntry, where: str) -> None:
        if self._next is not None and entry.first_offset > self._next:
            what = f"offsets [{self._next}, {entry.first_offset}) are in no entry"
            self._say("I1", where, what)
            self._previous = None
        elif self._next is not None and entry.first_offset < self._next:
            self._say("I1", where, f"it begins below the offset {self._next} that was due")
        if not entry.records:
            self._say("I1", where, "it holds no offset")
        self._next = entry.stop

    def _schemas(self, entry: IndexEntry, where: str) -> None:
        relations = [relation for relation, _ in entry.relations]
        if len(set(relations)) != len(relations):
            self._say("schema", where, "it names a relation twice")
        for relation, schema_id in entry.relations:
            stored = self._state.schemas.get(schema_id)
            if stored is None:
                what = f"relation {relation} has schema version {schema_id}, which is not stored"
                self._say("schema", where, what)
            elif stored.get("relation", relation) != relation:
                what = f"schema version {schema_id} is one of relation {stored['relation']}"
                self._say("schema", where, f"{what}, not of {relation}")
            elif stored["offset"] > entry.first_offset:
                what = f"schema version {schema_id} is younger, of offset {stored['offset']}"
                self._say("schema", where, what)

    def _times(self, entry: IndexEntry, where: str) -> None:
        least = max(self._running, entry.time_max)
        # Before a retained stream, and past damage, greater times may have been.
        known = self._previous is not None or entry.first_offset == 0
        if entry.time_running_max < least or (known and entry.time_running_max != least):
            what = f"its running greatest time {entry.time_running_max} is not {least}"
            self._say("index", where, what)
        self._running = max(least, entry.time_running_max)

    def _whole_transactions(self, entry: IndexEntry, where: str) -> None:
        transactions = entry.transactions
        previous = self._previous
        if transactions.back and previous is not None:
            if _words(previous, -1) != _words(entry, 0) or transactions.back != self._run:
                what = f"it goes on with {_words(entry, 0)} after {transactions.back} records"
                before = f"before it are {self._run} of {_words(previous, -1)}"
                self._say("I6", where, f"{what}, but {before}")
        elif transactions.back and entry.first_offset == 0:
            self._say("I6", where, "it goes on with a transaction that began before the stream")
        self._run = _run(entry)
        if self._state.row.kind == "captured":
            positions = [word for word in transactions.position.tolist() if word]
            for word in positions:
                if word < self._reached:
                    self._say("I6", where, f"position {word} comes after {self._reached}")
                self._reached = max(self._reached, word)

    def _say(self, invariant: str, where: str, what: str) -> None:
        self._report.add(invariant, where, what, stream=self._state.row.name)


def _where(entry: IndexEntry) -> str:
    return f"offsets [{entry.first_offset}, {entry.stop})"


def _words(entry: IndexEntry, place: int) -> str:
    transactions = entry.transactions
    tx, position = int(transactions.tx[place]), int(transactions.position[place])
    return f"transaction {tx} at {position} of time {int(transactions.time[place])}"


def _run(entry: IndexEntry) -> int:
    # Records of the last transaction up to here.
    last = int(entry.transactions.first[-1])
    kept = entry.slots - last
    if entry.states is not None:
        kept -= int((entry.states[last:] == DROPPED).sum())
    return kept + (entry.transactions.back if len(entry.transactions) == 1 else 0)
