"""The copies that run beside the stream, as the streaming thread sees them (D12).

::

    attendant            expect(chunk) ──▶ high watermark, a message of ours in the source's log
                                                       │
    streaming thread     see(…) ──▶ windows      place(token) when the stream reaches it:
                                                       the chunk's rows but for those that the
                                                       window knows newer, and the new cursor

A copy's cursor is stored by the commit that holds the chunk, so a chunk is in the log or is read
again, and never twice. One thread, the streaming one, but for `serial`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from cdc.postgres.copy.placing import control_batch, row_batches
from cdc.postgres.copy.window import Key, Window
from cdc.postgres.copy_codec import CODEC as COPY_CODEC
from cdc.postgres.pgoutput import CODEC as PGOUTPUT_CODEC
from cdc.postgres.privacy.gate import Gate
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.visibility import Visibility
from cdc.postgres.schema.schema_book import SchemaBook
from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.engine import Batch

TOKEN = re.compile(rb"copy [0-9a-f]+ [0-9]+")
"""The content of a high watermark: of which run of the capture, and which chunk."""


AGAIN: Mapping[str, Any] = {"again": True}
"""The cursor of a table that is to be copied again; an empty one: for the first time."""


BEGUN: Mapping[str, Any] = {"again": True, "begun": True}
"""The cursor of a copy whose table is reset in the log, before its pages are counted."""


def is_begun(cursor: Mapping[str, Any]) -> bool:
    """Whether a stored cursor tells from where a copy goes on."""
    return "leaves" in cursor


def is_whole(cursor: Mapping[str, Any]) -> bool:
    """Whether all ranges of a copy are placed, and only rows may be left that lack values."""
    return is_begun(cursor) and cursor["leaf"] >= len(cursor["leaves"])


class Verdict(Enum):
    """What became of a chunk."""

    PLACED = "its rows are in the log"
    AGAIN = "read it again: the stream told of a newer schema or of too many changes since"
    ANEW = "the copy must begin anew: the table's key changed, or too many rows lack values"
    GONE = "the table is not copied any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The answer to a chunk, and how many rows lack values now."""

    verdict: Verdict
    unfilled: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of a table as one snapshot sees them, on their way into the stream.

    `cursor` is how far the copy is with them, in its stored form; None leaves it. `serial` is what
    `Copies.serial` gave before the snapshot was taken. `asked` are the keys that were read again,
    where the rows were chosen by key. `begins` resets the table, `ends` closes the
    copy if no row lacks a value; then `rows` are all rows of the copy.
    """

    token: bytes
    relation: int
    schema: Schema
    serial: int
    lines: Run
    sees: Visibility
    cursor: Mapping[str, Any] | None = None
    asked: frozenset[Key] = frozenset()
    begins: bool = False
    ends: bool = False
    rows: int = 0
    answer: Future[Placed] = field(default_factory=Future)


class Copies:
    """The tables that are being copied: their windows, cursors, and the chunks under way."""

    def __init__(
        self,
        book: SchemaBook,
        cursors: Mapping[int, Mapping[str, Any]],
        *,
        gate: Gate | None = None,
        keeps: bool = True,
    ) -> None:
        """`cursors`: the stored form of each unfinished copy's cursor, by relation.

        `keeps`: tables that were there were copied, so that they have a state to be kept right.
        """
        self._keeps = keeps
        self.cursors = dict(cursors)
        self.windows: dict[int, Window] = {}
        self._book = book
        self._gate = gate
        self._expected: dict[bytes, Chunk] = {}
        self._serials: dict[int, int] = {}
        self._changed = False

    def track(self, schema: Schema) -> bool:
        """From now on note what the stream changes of a table; False where that was done before."""
        window = self.windows.get(schema.relation)
        if window is not None and window.key_places == schema.key_indexes:
            return False
        self.windows[schema.relation] = Window(schema.key_indexes)
        return True

    def drop(self, relation: int) -> None:
        """Give up the copy of a table."""
        self.windows.pop(relation, None)
        if self.cursors.pop(relation, None) is not None:
            self._changed = True

    def put(self, relation: int, cursor: Mapping[str, Any]) -> None:
        """Note how far a copy is, or that one is due (`{}`, AGAIN)."""
        if not cursor:
            self._book.await_copy(relation)
        self.cursors[relation] = cursor
        self._changed = True

    def start(self, relation: int, cursor: Mapping[str, Any]) -> bool:
        """Note the first cursor of a copy; False where since then another copy became due."""
        if self.cursors.get(relation) != BEGUN:
            return False
        self.put(relation, cursor)
        return True

    def again(self, relation: int) -> bool:
        """Have a table copied again; False where copies are not kept, and none is due."""
        if not self._keeps:
            return False
        if self.cursors.get(relation) != {}:
            self.put(relation, AGAIN)
        return True

    def take_cursors(self) -> Mapping[int, Mapping[str, Any]] | None:
        """The cursors, if they changed since this was last asked."""
        if not self._changed:
            return None
        self._changed = False
        return dict(self.cursors)

    def announced(self, relation: int) -> None:
        """The stream describes a table anew."""
        self._serials[relation] = self._serials.get(relation, 0) + 1

    def serial(self, relation: int) -> int:
        """How often the stream described a table so far. Any thread may ask."""
        return self._serials.get(relation, 0)

    def see(
        self,
        run: Run,
        relations: npt.NDArray[np.uint32],
        relation: int,
        schema: Schema,
        *,
        xid: int,
    ) -> None:
        """Note the changes of one tracked table in a run; `relations` has each record's table."""
        window = self.windows[relation]
        if window.key_places != schema.key_indexes:
            return  # the next chunk finds that the key is another one
        slots = np.flatnonzero(relations == relation).tolist()
        ends = run.ends
        records = [bytes(run.data[int(ends[i - 1]) if i else 0 : int(ends[i])]) for i in slots]
        window.see(PGOUTPUT_CODEC.decode(records, slots, {relation: schema}), xid)

    def close(self) -> None:
        """Tell those who wait for a chunk's place that the stream ended."""
        while self._expected:
            self._expected.popitem()[1].answer.cancel()

    def expect(self, chunk: Chunk) -> None:
        """Take a chunk, whose high watermark is written to the source's log afterwards."""
        self._expected[chunk.token] = chunk

    def place(
        self,
        token: bytes,
        *,
        position: Lsn,
        time_us: int,
        described: Callable[[int], object],
    ) -> list[Batch]:
        """What the high watermark `token` puts into the stream.

        `described` brings the book up to date with what the stream told of a table.
        """
        chunk = self._expected.pop(token, None)
        if chunk is None:
            return []
        described(chunk.relation)
        verdict, schema = self._judge(chunk)
        if schema is None:
            chunk.answer.set_result(Placed(verdict=verdict))
            return []
        window = self.windows[chunk.relation]
        batches = []
        if chunk.begins:
            self._book.copy_begins(chunk.relation)
            self.put(chunk.relation, BEGUN)
            batches.append(control_batch(Op.COPY_BEGIN, schema, position=position, time_us=time_us))
            window.begin()
        lines = self._current(chunk, window, schema)
        window.forget(chunk.sees)
        lines = self.passed(lines, schema)
        batches += row_batches(lines, schema, position=position, time_us=time_us)
        ended = chunk.ends and not window.unfilled
        if ended:
            batches.append(
                control_batch(
                    Op.COPY_END, schema, position=position, time_us=time_us, rows=chunk.rows
                )
            )
            self.drop(chunk.relation)
        elif chunk.cursor is not None:
            self.put(chunk.relation, chunk.cursor)
            window.whole = is_whole(chunk.cursor)
        chunk.answer.set_result(
            Placed(verdict=Verdict.PLACED, unfilled=len(window.unfilled), ended=ended)
        )
        return batches

    def passed(self, lines: Run, schema: Schema) -> Run:
        """Lines of COPY as they may be stored."""
        if self._gate is None or schema.relation not in self._gate.relations:
            return lines
        return self._gate.lines(lines, schema)

    def _judge(self, chunk: Chunk) -> tuple[Verdict, Schema | None]:
        """Whether a chunk can be placed, and under which schema version."""
        window = self.windows.get(chunk.relation)
        if window is None:
            return Verdict.GONE, None
        if self.cursors.get(chunk.relation) == AGAIN and not chunk.begins:
            return Verdict.ANEW, None
        known = self._book.schema(chunk.relation)
        told_since = self.serial(chunk.relation) != chunk.serial
        if told_since and (known is None or not _alike(known, chunk.schema)):
            return Verdict.AGAIN, None
        if window.too_crowded(chunk.sees):
            return Verdict.AGAIN, None
        if window.key_places != chunk.schema.key_indexes:
            return Verdict.ANEW, None
        if window.overflowed and not chunk.begins:
            return Verdict.ANEW, None
        self._book.adopt(chunk.schema)
        schema = self._book.schema(chunk.relation)
        assert schema is not None
        return Verdict.PLACED, schema

    def _current(self, chunk: Chunk, window: Window, schema: Schema) -> Run:
        """The chunk's lines without those that the stream has overtaken."""
        outdated = window.outdated(chunk.sees)
        if outdated is None:
            return Run(data=b"", ends=np.zeros(0, np.int64))
        if not outdated and not window.unfilled:
            return chunk.lines
        lines = chunk.lines
        records = [bytes(lines.data[low:high]) for low, high in _bounds(lines)]
        slots = range(len(records))
        keys = [
            window.key_of(raw.new)
            for raw in COPY_CODEC.decode(records, slots, {schema.relation: schema})
            if raw.new is not None
        ]
        kept = [i for i, key in enumerate(keys) if key not in outdated]
        window.unfilled.difference_update([keys[i] for i in kept])
        # A key that was asked for and is not there has no row to fill any more.
        window.unfilled -= chunk.asked - outdated
        if len(kept) == len(records):
            return lines
        chosen = [records[i] for i in kept]
        ends = np.cumsum(np.fromiter(map(len, chosen), np.int64, len(chosen)))
        return Run(data=b"".join(chosen), ends=ends)


def _alike(known: Schema, described: Schema) -> bool:
    """Whether both are the same version but for what the gate rewrote."""
    one, other = (
        [(c.name, c.attribute, c.key) for c in schema.columns] for schema in (known, described)
    )
    return one == other and (known.namespace, known.name, known.identity) == (
        described.namespace,
        described.name,
        described.identity,
    )


def _bounds(run: Run) -> Iterable[tuple[int, int]]:
    ends = run.ends.tolist()
    return zip([0, *ends][:-1], ends, strict=True)
