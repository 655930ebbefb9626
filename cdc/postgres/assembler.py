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

Where tables are copied beside the stream, `copies` sees their changes, and what a high watermark
places comes right behind it. `hold` keeps back what begins at a position, for a copy that belongs
exactly there. No IO and no clock; one thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cdc.postgres.builder import BatchBuilder, TransactionMark
from cdc.postgres.copy.copies import TOKEN, Copies
from cdc.postgres.gathered import Flush, Gathered
from cdc.postgres.open_transaction import OpenTransaction
from cdc.postgres.privacy.gate import Gate
from cdc.postgres.protocol import messages as m
from cdc.postgres.protocol import wire
from cdc.postgres.protocol.frames import U8, Bytes, Frames, Run, without_heads, words_at
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.schema.schema_book import SchemaBook
from cdc.postgres.state import PGOUTPUT
from eventlog.changes.schema import Schema
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


class Assembler:
    """Turns the frames of one replication connection into batches."""

    def __init__(
        self,
        book: SchemaBook,
        position: Lsn,
        *,
        copies: Copies | None = None,
        gate: Gate | None = None,
    ) -> None:
        """`position`: what is stored already; transactions that end there or below are dropped."""
        self._book = book
        self._copies = Copies(book, {}) if copies is None else copies
        self._gate = gate
        self._barrier: Lsn | None = None
        self._held: Frames | None = None
        self._stored = position
        self._reached = position
        self._open: OpenTransaction | None = None
        self._complete = Gathered()
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
            # Servers tell of an abort where changes were spilled, though none were streamed.
            ord("A"): self._nothing,
        }
        self.reply_requested = False
        self.server_end = position
        self.rows = self.whole = 0
        self.described = 0
        self.doubts: list[tuple[int, str]] = []

    @property
    def reached(self) -> Lsn:
        """The position that everything complete reaches."""
        return self._reached

    @property
    def complete_bytes(self) -> int:
        """Bytes of whole transactions not taken yet."""
        return self._complete.bytes

    @property
    def open_bytes(self) -> int:
        """Bytes of full batches of the transaction that is still open."""
        return self._open.batches_bytes if self._open else 0

    @property
    def has_complete(self) -> bool:
        """Whether a whole transaction waits to be taken."""
        return bool(self._complete)

    def take_complete(self) -> Flush:
        """Take all whole transactions, and the position they reach."""
        batches, staged_end = self._complete.take()
        # The commit that stores a version in doubt also stores that its table is copied again.
        for relation, reason in self._book.take_doubts():
            if self._copies.again(relation):
                self.doubts.append((relation, reason))
        return Flush(
            batches=batches,
            staged_end=staged_end,
            schemas=self._book.take_pending(),
            position=self._reached,
            cursors=self._copies.take_cursors(),
        )

    def take_open(self) -> list[Batch]:
        """Take the open transaction's full batches, to be staged.

        REQUIRES: what is complete was taken before; a transaction is open.
        """
        assert self._open is not None
        assert not self.has_complete
        batches, self._open.batches, self._open.batches_bytes = self._open.batches, [], 0
        self._open.staged = True
        return batches

    @property
    def stopped(self) -> bool:
        """Whether everything before the hold's position is complete, and nothing behind came in."""
        if self._barrier is None or self._open is not None:
            return False
        return self._barrier == 0 or self._held is not None

    def hold(self, at: Lsn) -> None:
        """Keep back every transaction whose commit record starts at `at` or later; 0: every one.

        REQUIRES: `feed` is not called while this is `stopped`.
        """
        self._hold_at(at)

    def insert(self, batches: Sequence[Batch]) -> None:
        """Put batches behind all that is complete. REQUIRES: stopped."""
        assert self.stopped
        for batch in batches:
            self._complete.keep(batch)

    def release(self) -> None:
        """Go on with what was kept back."""
        self._hold_at(None)

    def _hold_at(self, barrier: Lsn | None) -> None:
        self._barrier = barrier
        if self._held is not None:
            held, self._held = self._held, None
            self.feed(held)

    def feed(self, frames: Frames) -> None:
        """Take in what came. Raises WireError for what is no replication stream."""
        assert self._held is None
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
        relations = words_at(data, starts[is_row] + XLOG_HEAD + 1)
        before = np.cumsum(is_row)

        at = 0
        for special in np.flatnonzero(~is_row).tolist():
            if special > at:
                low = int(before[at - 1]) if at else 0
                self._rows(run, relations, low, int(before[special - 1]))
            if self._barrier is not None and self._is_beyond(frames, special):
                self._held = frames.cut(special)
                return
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

    def _is_beyond(self, frames: Frames, i: int) -> bool:
        """Whether a frame is the first of what a hold keeps back."""
        start = int(frames.starts[i]) + XLOG_HEAD
        tag = frames.data[start : start + 1]
        if tag not in (b"B", b"M") or frames.data[start - XLOG_HEAD] != ord("w"):
            return False
        assert self._barrier is not None
        if tag == b"M":
            message = wire.parse(frames.content(i, XLOG_HEAD))
            assert isinstance(message, m.LogicalMessage)
            # One outside of transactions comes where it stands in the source's log.
            return not message.transactional and message.lsn >= self._barrier
        _, final, _, _ = _BEGIN.unpack(_payload(frames, i, _BEGIN.size))
        return bool(final >= self._barrier)

    def _begin(self, frames: Frames, i: int) -> None:
        payload = _payload(frames, i, _BEGIN.size)
        _, final, time, xid = _BEGIN.unpack(payload)
        if self._open is not None:
            raise wire.WireError("a transaction begins inside another")
        begin = m.Begin(Lsn(final), wire.unix_us(time), xid)
        mark = TransactionMark(first=0, time_us=begin.commit_time_us, tx=xid, position=0)
        self._open = OpenTransaction(
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
        self.whole += opened.count
        if opened.count:
            self._finish(opened, end)
        for token in opened.watermarks:
            self._place(token, Lsn(end), opened.begin)

    def _place(self, token: bytes, end: Lsn, begin: m.Begin) -> None:
        batches = self._copies.place(
            token,
            position=end,
            time_us=begin.commit_time_us,
            described=lambda relation: self._describe(relation, begin),
        )
        for batch in batches:
            self._complete.keep(batch)

    def _finish(self, opened: OpenTransaction, end: int) -> None:
        builder = opened.builder
        for mark in builder.marks:
            mark.position = end
        if opened.staged:
            assert not self.has_complete
            self._complete.staged_end = Lsn(end)
        for batch in opened.batches:
            batch.transactions.position[:] = end
            self._complete.keep(batch)
        if builder.count:
            self._complete.add(builder)

    def _rows(self, run: Run, relations: npt.NDArray[np.uint32], low: int, high: int) -> None:
        opened = self._transaction()
        if opened.skipped:
            return
        self.rows += high - low
        found = relations[low:high]
        distinct = set(found.tolist()) if high - low <= _FEW else np.unique(found).tolist()
        versions = {relation: self._version(relation) for relation in distinct}
        part = run.cut(low, high)
        if not self._copies.windows.keys().isdisjoint(versions):
            for relation in self._copies.windows.keys() & versions:
                schema, xid = self._current(relation), opened.begin.xid
                self._copies.see(part, found, relation, schema, xid=xid)
        if self._gate is not None and not self._gate.relations.isdisjoint(versions):
            schemas = {relation: self._current(relation) for relation in versions}
            part = self._gate.records(part, found, schemas)
        opened.add(part, versions)

    def _current(self, relation: int) -> Schema:
        schema = self._book.schema(relation)
        assert schema is not None
        return schema

    def _relation(self, frames: Frames, i: int) -> None:
        message = wire.parse(_payload(frames, i))
        assert isinstance(message, m.Relation)
        # Looked up with its first change: what comes in a dropped transaction may be older than
        # what the book knows already.
        self._announced[message.relation] = message
        self._copies.announced(message.relation)

    def _truncate(self, frames: Frames, i: int) -> None:
        opened = self._transaction()
        for record in wire.split_truncate(_payload(frames, i)):
            relation = int.from_bytes(record[6:10], "big")
            if opened.skipped:
                continue
            run, version = _single(record), self._version(relation)
            if relation in self._copies.windows:
                named = np.array([relation], np.uint32)
                schema, xid = self._current(relation), opened.begin.xid
                self._copies.see(run, named, relation, schema, xid=xid)
            opened.add(run, {relation: version})

    def _message(self, frames: Frames, i: int) -> None:
        payload = frames.content(i, XLOG_HEAD)
        message = wire.parse(payload)
        assert isinstance(message, m.LogicalMessage)
        own = message.prefix == OWN_PREFIX
        if message.transactional:
            opened = self._transaction()
            if opened.skipped:
                return
            if not own:
                opened.add(_single(payload), {})
            elif TOKEN.fullmatch(message.content):
                opened.watermarks.append(bytes(message.content))
            return
        # Its lsn is where its WAL record starts: the first byte behind it is past every earlier
        # record, and no later one starts below.
        if message.lsn < self._stored:
            return
        self._reached = max(self._reached, Lsn(message.lsn + 1))
        if own:
            return
        head = wire.parse_frame(frames[i][:XLOG_HEAD])
        mark = TransactionMark(first=0, time_us=head.sent_us, tx=0, position=message.lsn)
        builder = BatchBuilder(codec=PGOUTPUT, marks=[mark])
        builder.add(_single(payload), {})
        self._complete.add(builder)

    def _origin(self, frames: Frames, i: int) -> None:
        message = wire.parse(_payload(frames, i))
        assert isinstance(message, m.Origin)
        for mark in self._transaction().builder.marks:
            mark.origin = message.name

    def _nothing(self, frames: Frames, i: int) -> None:
        wire.parse(_payload(frames, i))

    def _version(self, relation: int) -> int:
        self._describe(relation, self._transaction().begin)
        version = self._versions.get(relation)
        if version is None:
            raise wire.WireError(f"a change of relation {relation} came before its description")
        return version

    def _describe(self, relation: int, begin: m.Begin) -> None:
        """Bring the book up to date with what the stream said of a table."""
        announced = self._announced.pop(relation, None)
        if announced is not None:
            self.described += 1
            self._versions[relation] = self._book.version_of(
                announced, xid=begin.xid, position=begin.final_lsn
            )

    def _transaction(self) -> OpenTransaction:
        if self._open is None:
            raise wire.WireError("a message that belongs into a transaction came outside of one")
        return self._open


def _payload(frames: Frames, i: int, size: int | None = None) -> bytes:
    payload = bytes(frames.content(i, XLOG_HEAD))
    if size is not None and len(payload) != size:
        raise wire.WireError(f"message {chr(payload[0])!r} has {len(payload)} bytes, not {size}")
    return payload


def _single(record: Bytes) -> Run:
    return Run(data=record, ends=np.array([len(record)]))
