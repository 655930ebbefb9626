"""The integrity check's walk over one stream: every entry, every payload (I1, I6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from eventlog.engine import commit, index
from eventlog.engine.index import DROPPED, LOST, IndexEntry
from eventlog.engine.payload_store import get_body, load
from eventlog.engine.scan import READ_BYTES, READ_ENTRIES
from eventlog.engine.store import Store, Txn
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
        if item.resumes is not None:
            walk.resume(item.resumes)
        entry = item.entry
        references.add(entry)
        walk.entry(entry, item.value)
        check_payload(entry, item.body, report, stream=state.row.name)
        step(entry.records)
    walk.end(_start(store, state))


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
        if np.any(entry.states > LOST):
            yield f"state {int(entry.states.max())} is unknown"
    if entry.records != entry.slots - dropped:
        yield f"it counts {entry.records} records in {entry.slots} slots, {dropped} dropped"
    if index.stored_times(value) != (entry.time_min, entry.time_max):
        yield f"its times {index.stored_times(value)} are not the least and greatest"


class _Unreadable(NamedTuple):
    first_offset: int
    error: EventLogError


class _Found(NamedTuple):
    """An entry in its stored form, with its payload's body.

    `resumes` is where the stream goes on for a walk whose place was merged or dropped meanwhile.
    """

    entry: IndexEntry
    value: bytes
    body: bytes
    resumes: int | None


def _items(store: Store, state: StreamState) -> Iterator[_Found | _Unreadable]:
    # In short read transactions. Between two of them entries may be merged, and dropped from below.
    at, begun = 0, False
    while at < state.end:
        gathered: list[_Found | _Unreadable] = []
        size = 0
        with store.read() as txn:
            start = _start(store, state, txn)
            dropped = start > max(at, state.row.start)
            at = start if dropped else at
            cursor = txn.cursor(db=store.index)
            positioned, first = _place(cursor, state.row.id, at)
            resumes = first if dropped or (begun and first < at) else None
            while positioned and size < READ_BYTES and len(gathered) < READ_ENTRIES:
                key, value = cursor.item()
                stream_id, first_offset = index.split_key(key)
                if stream_id != state.row.id or first_offset >= state.end:
                    break
                try:
                    entry = index.unpack(first_offset, value, under=key)
                except EventLogError as error:
                    gathered.append(_Unreadable(first_offset, error))
                    at = first_offset + 1
                else:
                    body = get_body(store, txn, entry)
                    gathered.append(_Found(entry, value, body, resumes))
                    size += len(body)
                    at = max(entry.stop, first_offset + 1)
                resumes = None
                positioned = cursor.next()
        if not gathered:
            return
        begun = True
        yield from gathered


def _start(store: Store, state: StreamState, txn: Txn = None) -> int:
    """Where the stream begins now; as at the survey where its row cannot be read."""
    if txn is None:
        with store.read() as txn:
            return _start(store, state, txn)
    with suppress(EventLogError):
        return commit.require_stream(store, txn, state.row.name).start
    return state.row.start


def _place(cursor: Any, stream_id: int, at: int) -> tuple[bool, int]:
    """Put a cursor on the entry that holds `at`, else on the next one; returns its first offset.

    An entry that holds `at` without beginning there was merged from several, or overlaps another:
    as the walk has been here before, it is taken for merged.
    """
    target = index.key(stream_id, at)
    positioned = cursor.set_range(target)
    if positioned and cursor.key() == target:
        return True, at
    if cursor.prev() if positioned else cursor.last():
        key, value = cursor.item()
        found, first_offset = index.split_key(key)
        if found == stream_id:
            with suppress(EventLogError):
                if index.unpack(first_offset, value, under=key).stop > at:
                    return True, first_offset
    positioned = cursor.set_range(target)
    found, first_offset = index.split_key(cursor.key()) if positioned else (0, 0)
    return positioned, first_offset if found == stream_id else at


class _Walk:
    """Holds each entry against those before it."""

    def __init__(self, state: StreamState, report: Report) -> None:
        self._state = state
        self._report = report
        self._next: int | None = state.row.start if state.entries else None
        self._running = -(2**63)
        self._previous: IndexEntry | None = None
        self._reached = 0
        self._run = 0

    def resume(self, first_offset: int) -> None:
        """Go on at an entry that is not where the walk was: merged since, or the first retained."""
        self._next, self._previous, self._reached = first_offset, None, 0

    def end(self, start: int) -> None:
        """Nothing is left: the end must be reached, where the last entry could be read.

        What lies below `start` was dropped by retention, and is due no more.
        """
        due = None if self._next is None else max(self._next, start)
        if due is not None and due < self._state.end:
            self._say("I1", "end", f"offsets [{due}, {self._state.end}) are in no entry")

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
            elif stored["offset"] >= entry.stop:
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
        self._run = entry.last_run
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
