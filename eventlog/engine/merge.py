"""Tail merging: many tiny commits do not leave many tiny batches (D5).

::

    level of an entry by its raw bytes     0: <= 1 KiB   1: <= 16 KiB   2: <= 128 KiB   full: above
    tail of a stream, its runs             2 2 0 2 | 1 1 1 0 1 1 | 0 0 0        levels fall
    a run has 16 of its level              its entries become one, which joins the run before it

An entry of a higher level takes the lower runs before it into its own. What is full, or makes a run
overflow a full batch, has all runs merged and begins anew. So each record is rewritten a few times
at most, and few entries stand at a stream's end, whatever the size of commits.

Offsets, transactions and times stay; the merged entry has a new payload. Entries that are not alike
(in codec, schema versions, or that say more than this version knows) are left as they are, as is
all that is damaged: no append fails for a damaged batch before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eventlog.engine import index, payload_store, rows
from eventlog.engine.batch import BATCH_BYTES, Batch
from eventlog.engine.index import IndexEntry, Transactions
from eventlog.engine.payload import Payload, encode
from eventlog.engine.rows import StreamRow
from eventlog.engine.store import Store, Txn
from eventlog.errors import EventLogError

FAN_IN = 16
COUNT_MAX = 64
"""Entries of a run: a commit that merges should not keep others waiting."""

_LEVELS = (1 << 10, 16 << 10, 128 << 10)
_FULL = len(_LEVELS)

Loaded = tuple[IndexEntry, Payload]


@dataclass(slots=True)
class Run:
    """`count` entries that follow each other, `own` of them of its level and no other of a higher.

    `bytes` counts their payloads uncompressed.
    """

    level: int
    first_offset: int
    count: int
    own: int
    bytes: int


class Tail:
    """The runs at a stream's end, within one write transaction."""

    def __init__(self, store: Store, txn: Txn, stream: StreamRow) -> None:
        self._store = store
        self._txn = txn
        self._stream = stream
        self._runs = [Run(*numbers) for numbers in stream.tail]

    def stored(self) -> list[list[int]]:
        """What the stream's row keeps."""
        return [[r.level, r.first_offset, r.count, r.own, r.bytes] for r in self._runs]

    def add(self, first_offset: int, raw_bytes: int) -> None:
        """Count in the entry that was just put at the stream's end, merging what is due."""
        level = level_of(raw_bytes)
        if level == _FULL:
            self._close_all()
            return
        runs = self._runs
        new = Run(level, first_offset, 1, 1, raw_bytes)
        while runs and runs[-1].level <= level:
            if runs[-1].bytes + new.bytes > BATCH_BYTES:
                self._close_all()
                break
            before = runs.pop()
            new.first_offset = before.first_offset
            new.count += before.count
            new.bytes += before.bytes
            if before.level == level:
                new.own += before.own
        if new.own < FAN_IN and new.count < COUNT_MAX:
            runs.append(new)
            return
        merged = self._merge(new)
        if merged is None:
            runs.clear()
        else:
            self.add(merged.first_offset, merged.raw_bytes)

    def _close_all(self) -> None:
        for run in self._runs:
            self._merge(run)
        self._runs.clear()

    def _merge(self, run: Run) -> IndexEntry | None:
        """Merge a run's entries as far as they are alike; returns the one that they became."""
        if run.count == 1:
            return None
        try:
            loaded = self._load(run)
        except EventLogError:
            return None
        groups = list(_alike(loaded))
        merged = [self._replace(group) for group in groups if len(group) > 1]
        return merged[0] if len(groups) == 1 else None

    def _load(self, run: Run) -> list[Loaded]:
        store, txn = self._store, self._txn
        found: list[Loaded] = []
        at = run.first_offset
        for _ in range(run.count):
            key = index.key(self._stream.id, at)
            entry = index.unpack(at, txn.get(key, db=store.index) or b"", under=key)
            body = payload_store.get_body(store, txn, entry)
            found.append((entry, payload_store.load(body, entry, stream=self._stream.name)))
            at = entry.stop
        return found

    def _replace(self, group: Sequence[Loaded]) -> IndexEntry:
        store, txn, stream = self._store, self._txn, self._stream
        batch = merged_batch(group)
        if stream.compression == "zstd":
            batch = batch.compressed()
        first, last = group[0][0], group[-1][0]
        for old, _ in group:
            txn.delete(index.key(stream.id, old.first_offset), db=store.index)
            payload_store.delete_body(store, txn, old)
        payload_id = 0 if batch.fits_entry else rows.take_number(store, txn, "payload")
        if payload_id:
            payload_store.put_bodies(store, txn, payload_id, [batch.body])
        entry = batch.entry(payload_id).moved(first.first_offset, last.time_running_max)
        key = index.key(stream.id, entry.first_offset)
        txn.put(key, index.pack(entry, under=key), db=store.index)
        return entry


def level_of(raw_bytes: int) -> int:
    """The level of an entry whose payload has that many bytes uncompressed."""
    return next((level for level, most in enumerate(_LEVELS) if raw_bytes <= most), _FULL)


def _alike(loaded: Sequence[Loaded]) -> Iterator[list[Loaded]]:
    """Cut into groups of neighbours that can share a batch."""
    group: list[Loaded] = []
    relations: dict[int, int] = {}
    for entry, payload in loaded:
        fits = bool(group) and (
            _merges(entry)
            and _merges(group[-1][0])
            and payload.codec == group[-1][1].codec
            and entry.erasure_epoch == group[-1][0].erasure_epoch
            and all(relations.get(r, schema) == schema for r, schema in entry.relations)
            # A batch of copied rows, of no transaction, tells the relation of its rows by its own.
            and (entry.relations == group[-1][0].relations or bool(entry.transactions.tx.all()))
        )
        if group and not fits:
            yield group
            group, relations = [], {}
        group.append((entry, payload))
        relations |= dict(entry.relations)
    yield group


def _merges(entry: IndexEntry) -> bool:
    # What later versions say of an entry may not hold of a part of another.
    return not entry.more.keys() - {index.RAW, index.BODY}


def merged_batch(group: Sequence[Loaded]) -> Batch:
    """One batch of the records, transactions, relations and states of several, in order.

    REQUIRES: they are alike, and follow each other.
    """
    slots = np.cumsum([0] + [entry.slots for entry, _ in group[:-1]])
    sizes = np.cumsum([0] + [len(payload.data) for _, payload in group[:-1]])
    ends = np.concatenate([p.ends + size for (_, p), size in zip(group, sizes, strict=True)])
    data = b"".join(payload.data for _, payload in group)
    words: list[tuple[Any, ...]] = []
    for place, ((entry, _), base) in enumerate(zip(group, slots, strict=True)):
        mine = entry.transactions
        # A transaction that goes on from the entry before has its place there already.
        skip = 1 if place and mine.back else 0
        arrays = (mine.first + base, mine.time, mine.tx, mine.position)
        words.append(tuple(array[skip:] for array in arrays))
    first, time, tx, position = (np.concatenate(column) for column in zip(*words, strict=True))
    states = None
    if any(entry.states is not None for entry, _ in group):
        live = [np.zeros(e.slots, np.uint8) if e.states is None else e.states for e, _ in group]
        states = np.concatenate(live)
    relations: dict[int, int] = {}
    for entry, _ in group:
        relations |= dict(entry.relations)
    return Batch(
        body=encode(group[0][1].codec, ends.astype(np.uint32), data),
        transactions=Transactions(
            first=first.astype(np.uint32),
            time=time.astype(np.int64),
            tx=tx.astype(np.uint64),
            position=position.astype(np.uint64),
            back=group[0][0].transactions.back,
        ),
        relations=tuple(sorted(relations.items())),
        states=states,
        erasure_epoch=group[0][0].erasure_epoch,
    )
