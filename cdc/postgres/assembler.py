"""From replication messages to batches: whole transactions, in commit order (I6).

Theory of operation. Rows are never looked at one by one: a block of frames is walked from one
message that is not a row to the next, and the rows between are moved as one run of bytes.

::

             Begin                rows, messages            Commit
    idle ──────────────▶ open ◀──────────────┐  ──────────────────▶ idle
     ▲  └─ keepalive,     │ └────────────────┘                 (complete: `done`, `ready`)
     └──── message        └─ too large: batches in `open.batches`, to be staged

A transaction that ends at or below the position where this connection began was stored before and
is dropped (D7). What is complete is taken with `take_complete`, together with the position that it
reaches: the end of its last transaction, or a later keepalive's (PROTOCOL, keepalive rule).
No IO and no clock; one thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cdc.postgres import messages as m
from cdc.postgres import wire
from cdc.postgres.builder import BatchBuilder, TransactionMark
from cdc.postgres.frames import U8, Frames, Run, without_heads
from cdc.postgres.lsn import Lsn
from cdc.postgres.schema_book import SchemaBook
from cdc.postgres.state import PGOUTPUT
from eventlog.engine import Batch

OWN_PREFIX = "eventlog"
"""Logical messages of this prefix are the capture's own and get no offset (D11)."""

XLOG_HEAD = 25
_BEGIN = struct.Struct(">cQqI")
_COMMIT = struct.Struct(">cBQQq")
_ROW_BYTES_MIN = 1 + 4 + 1 + 2
_IS_ROW = np.zeros(256, np.bool_)
_IS_ROW[[ord("I"), ord("U"), ord("D")]] = True
_FEW = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """What one commit shall publish. `staged_end`: the staged transaction comes first, with it."""

    batches: Sequence[Batch]
    staged_end: Lsn | None
    schemas: Sequence[tuple[int, Mapping[str, Any]]]
    position: Lsn


@dataclass(slots=True, kw_only=True)
class _Open:
    """The transaction between Begin and Commit."""

    begin: m.Begin
    skipped: bool
    builder: BatchBuilder
    batches: list[Batch] = field(default_factory=list)
    batches_bytes: int = 0
    count: int = 0
    staged: bool = False

    def close_batch(self) -> None:
        """Encode what the builder holds; the transaction goes on in a new one."""
        batch = self.builder.batch()
        self.batches.append(batch)
        self.batches_bytes += len(batch.body.data)
        mark = replace(self.builder.marks[0], first=0)
        self.builder = BatchBuilder(codec=PGOUTPUT, back=self.count, marks=[mark])


class Assembler:
    """Turns the frames of one replication connection into batches."""

    def __init__(self, book: SchemaBook, position: Lsn) -> None:
        """`position`: what is stored already; transactions that end there or below are dropped."""
        self._book = book
        self._stored = position
        self._reached = position
        self._open: _Open | None = None
        self._done: BatchBuilder | None = None
        self._ready: list[Batch] = []
        self._ready_bytes = 0
        self._staged_end: Lsn | None = None
        self._announced: dict[int, m.Relation] = {}
        self._versions: dict[int, int] = {}
        self._handlers: dict[int, Callable[[Frames, int], None]] = {
            ord("B"): self._begin,
            ord("C"): self._commit,
            ord("R"): self._relation,
            ord("M"): self._message,
            ord("T"): self._truncate,
            ord("O"): self._origin,
            ord("Y"): self._nothing,
        }
        self.reply_requested = False
        self.server_end = position
        self.rows = 0

    @property
    def reached(self) -> Lsn:
        """The position that everything complete reaches."""
        return self._reached

    @property
    def complete_bytes(self) -> int:
        """Bytes of whole transactions not taken yet."""
        return self._ready_bytes + (self._done.size if self._done else 0)

    @property
    def open_bytes(self) -> int:
        """Bytes of full batches of the transaction that is still open."""
        return self._open.batches_bytes if self._open else 0

    @property
    def has_complete(self) -> bool:
        """Whether a whole transaction waits to be taken."""
        return self._done is not None or bool(self._ready) or self._staged_end is not None

    def take_complete(self) -> Flush:
        """Take all whole transactions, and the position they reach."""
        self._close_done()
        flush = Flush(
            batches=self._ready,
            staged_end=self._staged_end,
            schemas=self._book.take_pending(),
            position=self._reached,
        )
        self._ready, self._ready_bytes, self._staged_end = [], 0, None
        return flush

    def take_open(self) -> list[Batch]:
        """Take the open transaction's full batches, to be staged.

        REQUIRES: what is complete was taken before; a transaction is open.
        """
        assert self._open is not None
        assert not self.has_complete
        batches, self._open.batches, self._open.batches_bytes = self._open.batches, [], 0
        self._open.staged = True
        return batches

    def feed(self, frames: Frames) -> None:
        """Take in what came. Raises WireError for what is no replication stream."""
        if not len(frames):
            return
        data: U8 = np.frombuffer(frames.data, np.uint8)
        starts, ends = frames.starts, frames.ends
        if (starts == ends).any():
            raise wire.WireError("a frame of the replication stream is empty")
        tag_at = np.minimum(starts + XLOG_HEAD, len(data) - 1)
        long_enough = ends - starts >= XLOG_HEAD + _ROW_BYTES_MIN
        is_row = (data[starts] == ord("w")) & _IS_ROW[data[tag_at]] & long_enough
        run = without_heads(frames, is_row, XLOG_HEAD)
        relations = _relations(data, starts[is_row] + XLOG_HEAD + 1)
        before = np.cumsum(is_row)

        at = 0
        for special in np.flatnonzero(~is_row).tolist():
            if special > at:
                low = int(before[at - 1]) if at else 0
                self._rows(run, relations, low, int(before[special - 1]))
            self._special(frames, special)
            at = special + 1
        if at < len(frames):
            self._rows(run, relations, int(before[at - 1]) if at else 0, len(run))

    def _special(self, frames: Frames, i: int) -> None:
        start = int(frames.starts[i])
        kind = frames.data[start]
        if kind == ord("w") and frames.ends[i] > start + XLOG_HEAD:
            tag = frames.data[start + XLOG_HEAD]
            handler = self._handlers.get(tag)
            if handler is None:
                raise wire.WireError(f"message {chr(tag)!r} does not belong to protocol 1 here")
            handler(frames, i)
            return
        frame = wire.parse_frame(frames[i])
        if isinstance(frame, wire.XLogData):
            raise wire.WireError("a message of the replication stream is empty")
        self.reply_requested |= frame.reply
        self.server_end = max(self.server_end, frame.end)
        if self._open is None:
            self._reached = max(self._reached, frame.end)

    def _begin(self, frames: Frames, i: int) -> None:
        payload = _payload(frames, i, _BEGIN.size)
        _, final, time, xid = _BEGIN.unpack(payload)
        if self._open is not None:
            raise wire.WireError("a transaction begins inside another")
        begin = m.Begin(Lsn(final), time + wire.EPOCH_US, xid)
        mark = TransactionMark(first=0, time_us=begin.commit_time_us, tx=xid, position=0)
        self._open = _Open(
            begin=begin,
            skipped=final < self._stored,
            builder=BatchBuilder(codec=PGOUTPUT, marks=[mark]),
        )

    def _commit(self, frames: Frames, i: int) -> None:
        payload = _payload(frames, i, _COMMIT.size)
        _, _, _, end, _ = _COMMIT.unpack(payload)
        opened, self._open = self._transaction(), None
        if opened.skipped != (end <= self._stored):
            raise wire.WireError(
                f"the transaction that ends at {Lsn(end)} lies across the position {self._stored}"
            )
        self.server_end = max(self.server_end, Lsn(end))
        if opened.skipped:
            return
        if end <= self._reached:
            raise wire.WireError(f"a transaction ends at {Lsn(end)}, behind {self._reached}")
        self._reached = Lsn(end)
        if opened.count:
            self._complete(opened, end)

    def _complete(self, opened: _Open, end: int) -> None:
        builder = opened.builder
        for mark in builder.marks:
            mark.position = end
        if opened.staged:
            assert not self.has_complete
            self._staged_end = Lsn(end)
        if opened.batches or opened.staged:
            self._close_done()
            for batch in opened.batches:
                batch.transactions.position[:] = end
                self._keep(batch)
            self._done = builder if builder.count else None
        elif self._done is None or not self._done.absorb(builder):
            self._close_done()
            self._done = builder

    def _rows(self, run: Run, relations: npt.NDArray[np.uint32], low: int, high: int) -> None:
        opened = self._transaction()
        if opened.skipped:
            return
        self.rows += high - low
        found = relations[low:high]
        distinct = set(found.tolist()) if high - low <= _FEW else np.unique(found).tolist()
        versions = {relation: self._version(relation) for relation in distinct}
        self._add(opened, run.cut(low, high), versions)

    def _add(self, opened: _Open, run: Run, versions: dict[int, int]) -> None:
        at = 0
        while at < len(run):
            if not opened.builder.agrees(versions):
                opened.close_batch()
            fits = opened.builder.room_for(run.ends, at)
            if fits > at:
                whole = at == 0 and fits == len(run)
                opened.builder.add(run if whole else run.cut(at, fits), versions)
                opened.count += fits - at
                at = fits
            if at < len(run):
                opened.close_batch()

    def _relation(self, frames: Frames, i: int) -> None:
        message = wire.parse(_payload(frames, i))
        assert isinstance(message, m.Relation)
        # Looked up with its first change: what comes in a dropped transaction may be older than
        # what the book knows already.
        self._announced[message.relation] = message

    def _truncate(self, frames: Frames, i: int) -> None:
        opened = self._transaction()
        for record in wire.split_truncate(_payload(frames, i)):
            relation = int.from_bytes(record[6:10], "big")
            if not opened.skipped:
                self._add(opened, _single(record), {relation: self._version(relation)})

    def _message(self, frames: Frames, i: int) -> None:
        payload = _payload(frames, i)
        message = wire.parse(payload)
        assert isinstance(message, m.LogicalMessage)
        own = message.prefix == OWN_PREFIX
        if message.transactional:
            opened = self._transaction()
            if not own and not opened.skipped:
                self._add(opened, _single(payload), {})
            return
        # Its lsn is where its WAL record starts: the first byte behind it is past every earlier
        # record, and no later one starts below.
        if message.lsn < self._stored:
            return
        self._reached = max(self._reached, Lsn(message.lsn + 1))
        if own:
            return
        head = wire.parse_frame(frames[i])
        mark = TransactionMark(first=0, time_us=head.sent_us, tx=0, position=message.lsn)
        builder = BatchBuilder(codec=PGOUTPUT, marks=[mark])
        builder.add(_single(payload), {})
        if self._done is None or not self._done.absorb(builder):
            self._close_done()
            self._done = builder

    def _origin(self, frames: Frames, i: int) -> None:
        message = wire.parse(_payload(frames, i))
        assert isinstance(message, m.Origin)
        for mark in self._transaction().builder.marks:
            mark.origin = message.name

    def _nothing(self, frames: Frames, i: int) -> None:
        wire.parse(_payload(frames, i))

    def _version(self, relation: int) -> int:
        announced = self._announced.pop(relation, None)
        if announced is not None:
            self._versions[relation] = self._book.version_of(announced)
        version = self._versions.get(relation)
        if version is None:
            raise wire.WireError(f"a change of relation {relation} came before its description")
        return version

    def _transaction(self) -> _Open:
        if self._open is None:
            raise wire.WireError("a message that belongs into a transaction came outside of one")
        return self._open

    def _close_done(self) -> None:
        if self._done is not None:
            self._keep(self._done.batch())
            self._done = None

    def _keep(self, batch: Batch) -> None:
        self._ready.append(batch)
        self._ready_bytes += len(batch.body.data)


def _payload(frames: Frames, i: int, size: int | None = None) -> bytes:
    payload = frames.data[int(frames.starts[i]) + XLOG_HEAD : int(frames.ends[i])]
    if size is not None and len(payload) != size:
        raise wire.WireError(f"message {chr(payload[0])!r} has {len(payload)} bytes, not {size}")
    return payload


def _single(record: bytes) -> Run:
    return Run(data=record, ends=np.array([len(record)]))


def _relations(data: U8, at: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    value = np.zeros(len(at), np.uint32)
    for i in range(4):
        value = (value << np.uint32(8)) | data[at + i]
    return value
