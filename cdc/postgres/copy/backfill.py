"""The copy of a table with a key beside the stream: chunk after chunk, each at its watermark (D12).

::

    wait for writers ──▶ copy_begin ──▶ ranges of pages ──▶ rows that lack values ──▶ copy_end
                             ▲               │                       by key
                             └── anew ◀──────┘ the files were rewritten, or the key changed

Each chunk: lock the files against being rewritten, take a snapshot, describe the table, read a
range, end the transaction; hand the chunk to the streaming thread; write the watermark. Pages are
counted after `copy_begin`: a row version that an earlier transaction wrote lies below the count,
and of later ones the stream tells, behind `copy_begin`. No transaction is longer than one chunk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import psycopg
from psycopg import sql

from cdc.errors import MissingTable, ServerError
from cdc.options import Event, Report
from cdc.postgres.attending.link import Link
from cdc.postgres.connection import Connection
from cdc.postgres.copy import chunks
from cdc.postgres.copy.chunks import CHUNK_BYTES, CopyCursor, Pace
from cdc.postgres.copy.copies import Chunk, Verdict
from cdc.postgres.copy.copying import CopyProgress
from cdc.postgres.copy.ranges import Leaf, Range
from cdc.postgres.copy.watermark import Watermarks
from cdc.postgres.copy.window import Key
from cdc.postgres.copy.writers import WritersOf
from cdc.postgres.faults import translated
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.visibility import Visibility
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.describing import Described, describe
from eventlog.changes.schema import Schema

WRITERS_LOOK_S = 0.2
WRITERS_TELL_S = 10.0
AGAIN_S = 0.05

LACKING_MAX = 5_000
"""So many rows may wait to be read again before it is done."""

_NO_OPERATOR = "42883"
_MOVED_ON = ("42P01", "42703")
"""A table or column has another name by now: the next look finds it."""

KEYS_AT_ONCE = 500
"""So many rows are read again by one statement."""

NO_LINES = Run(data=b"", ends=np.zeros(0, np.int64))

Statement: TypeAlias = Callable[[Described], sql.Composed]


class KeyChanged(Exception):
    """The table has no key any more: it cannot be copied in chunks."""


class _Anew(Exception):
    """The copy must begin anew."""


class _Renamed(Exception):
    """The table got another name between two statements, and its name may be another table's."""


class _TooBig(Exception):
    """A range has more text than a chunk may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What one short transaction saw of a table."""

    serial: int
    schema: Schema
    sees: Visibility
    lines: Run


class Backfill:
    """The copy of one table. `steps` does a part at each step, so that others get their turn."""

    def __init__(
        self,
        conn: Connection,
        link: Link,
        watermarks: Watermarks,
        table: Table,
        *,
        stored: Mapping[str, Any],
        slow_down: Callable[[int], None],
        progress: Callable[[CopyProgress], None],
        report: Report,
    ) -> None:
        """`stored`: the cursor to go on from, empty for a copy from the start.

        `slow_down` is told the bytes of each chunk, and waits as a rate limit wants it.
        """
        self.table = table
        self._conn = conn
        self._link = link
        self._copies = link.streamer.copies
        self._watermarks = watermarks
        self._cursor = CopyCursor.from_map(stored) if stored else None
        self._slow_down = slow_down
        self._progress = progress
        self._report = report
        self._pace = Pace()
        self._leaves: dict[int, Leaf] = {}
        self._bytes = 0
        self._ended = False
        self._as_text = False
        self._lacking_count = 0

    @property
    def rows(self) -> int:
        """How many rows were copied."""
        return 0 if self._cursor is None else self._cursor.rows

    def steps(self) -> Iterator[None]:
        """Do the copy. Raises KeyChanged and CaptureError; MissingTable for a dropped table."""
        try:
            self._track()
        except _Anew:
            # What was copied before a restart is of files or partitions that are gone.
            self._cursor = None
            self._track()
        yield from self._wait_for_writers()
        while True:
            try:
                if self._cursor is None:
                    self._begin()
                yield from self._ranges()
                yield from self._unfilled()
                if self._end():
                    return
            except _Anew:
                self._cursor = None
                text = f"{self.table.table} was rewritten or has another key: its copy begins anew"
                self._report(Event(kind="warning", text=text, table=str(self.table.table)))

    def _wait_for_writers(self) -> Iterator[None]:
        oids = [self.table.oid]
        writers = WritersOf.now(self._conn, oids)
        told = time.monotonic()
        while left := writers.left(self._conn, oids):
            if time.monotonic() - told > WRITERS_TELL_S:
                told = time.monotonic()
                text = f"the copy of {self.table.table} waits for {left[0]}, which writes to it"
                self._report(Event(kind="warning", text=text, table=str(self.table.table)))
            self._link.pause(WRITERS_LOOK_S)
            yield

    def _track(self) -> None:
        """From now on, have noted what the stream changes of the table."""
        schema = self._read(None).schema
        if not schema.key_indexes:
            raise KeyChanged
        if self._link.ask(lambda: self._copies.track(schema)):
            self._cursor = None

    def _begin(self) -> None:
        """Reset the table in the log, then count its pages."""
        self._track()
        begun = self._link.streamer.end()
        self._hand_over(None, begins=True)
        self._cursor = CopyCursor.at_start(chunks.leaves(self._conn, self.table), begun=begun)
        self._bytes = 0
        stored = self._cursor.to_map()
        if not self._link.ask(lambda: self._copies.start(self.table.oid, stored)):
            raise _Anew

    def _ranges(self) -> Iterator[None]:
        assert self._cursor is not None
        while not self._cursor.done:
            found = chunks.leaves(self._conn, self.table)
            if not self._cursor.continues(found):
                raise _Anew
            waiting = [self._cursor.range(found, pages=self._pace.pages)]
            while waiting:
                self._range(waiting)
                yield
            if self._lacking_count > LACKING_MAX:
                yield from self._unfilled()

    def _range(self, waiting: list[Range]) -> None:
        """Copy the first of the ranges, or put smaller ones in its place."""
        rng = waiting[0]
        try:
            size = self._hand_over(
                lambda seen: chunks.statement(
                    replace(rng, leaf=self._leaves[rng.leaf.oid]), seen.schema.names, seen.where
                ),
                bytes_max=None if rng.single else 2 * CHUNK_BYTES,
                copied=rng,
            )
        except _TooBig:
            waiting[:1] = rng.parts()
            return
        del waiting[0]
        self._pace.saw(rng.pages, size)
        self._bytes += size
        self._tell()
        self._slow_down(size)

    def _unfilled(self) -> Iterator[None]:
        """Read the rows again whose updates left out values that the log does not have."""
        while keys := self._link.ask(self._lacking):
            try:
                self._hand_over(self._by_key(keys), asked=frozenset(keys))
            except ServerError as error:
                if self._as_text or error.sqlstate != _NO_OPERATOR:
                    raise
                self._as_text = True
            yield

    def _by_key(self, keys: tuple[Key, ...]) -> Statement:
        return lambda seen: _by_key(self.table, seen, keys, as_text=self._as_text)

    def _lacking(self) -> tuple[Key, ...]:
        unfilled = self._copies.windows[self.table.oid].unfilled
        return tuple(key for key, _ in zip(unfilled, range(KEYS_AT_ONCE), strict=False))

    def _end(self) -> bool:
        """Close the copy; False where meanwhile another row lacks a value."""
        self._hand_over(None, ends=True)
        return self._ended

    # One chunk

    def _hand_over(
        self,
        copy: Statement | None,
        *,
        bytes_max: int | None = None,
        copied: Range | None = None,
        asked: frozenset[Key] = frozenset(),
        begins: bool = False,
        ends: bool = False,
    ) -> int:
        """Read rows and have them put into the stream; returns how many bytes they have.

        `copied` is the range that they are. Raises _TooBig above `bytes_max`, and _Anew.
        """
        while True:
            seen = self._read(copy, bytes_max)
            after = self._cursor
            if copied is not None:
                assert self._cursor is not None
                after = self._cursor.after(copied, rows=len(seen.lines))
            chunk = Chunk(
                token=self._watermarks.next(),
                relation=self.table.oid,
                schema=seen.schema,
                serial=seen.serial,
                lines=seen.lines,
                sees=seen.sees,
                cursor=None if copied is None or after is None else after.to_map(),
                asked=asked,
                begins=begins,
                ends=ends,
                rows=self.rows,
            )
            self._link.ask(partial(self._copies.expect, chunk))
            self._watermarks.write(self._conn, chunk.token)
            placed = self._link.wait(chunk.answer)
            if placed.verdict is Verdict.PLACED:
                self._cursor, self._ended = after, placed.ended
                self._lacking_count = placed.unfilled
                return len(seen.lines.data)
            if placed.verdict is Verdict.ANEW:
                raise _Anew
            if placed.verdict is Verdict.GONE:
                raise MissingTable(
                    f"{self.table.table} was removed while it was copied",
                    hint="add it again with `eventlog tables add`",
                )
            self._link.pause(AGAIN_S)

    def _read(self, copy: Statement | None, bytes_max: int | None = None) -> _Seen:
        """See the table in a short transaction of its own. Raises _TooBig, _Anew."""
        while True:
            try:
                return self._seen(copy, bytes_max)
            except _Renamed:
                pass
            except ServerError as error:
                if error.sqlstate not in _MOVED_ON:
                    raise
            self._link.pause(AGAIN_S)

    def _seen(self, copy: Statement | None, bytes_max: int | None) -> _Seen:
        oid, conn = self.table.oid, self._conn
        serial = self._copies.serial(oid)
        with _short_transaction(conn):
            leaves = chunks.leaves(conn, self.table)
            chunks.lock(conn, leaves)
            with translated("reading the server's snapshot"):
                row = conn.execute("select pg_current_snapshot()::text").fetchone()
            assert row is not None
            described = describe(conn, oid, self._link.streamer.state.publications)
            found = chunks.leaves(conn, self.table)
            if self._cursor is not None and not self._cursor.continues(found):
                raise _Anew
            if [leaf.identifier for leaf in leaves] != [leaf.identifier for leaf in found]:
                raise _Renamed  # What was locked may be others.
            self._leaves = {leaf.oid: leaf for leaf in found}
            lines = NO_LINES
            if copy is not None:
                fetched = chunks.fetch(conn, copy(described), bytes_max=bytes_max)
                if fetched is None:
                    raise _TooBig
                lines = fetched
            named = described.schema.namespace, described.schema.name
            if chunks.name_now(conn, oid) != named:
                raise _Renamed
        return _Seen(
            serial=serial,
            schema=described.schema,
            sees=Visibility.parse(row[0]),
            lines=lines,
        )

    def _tell(self) -> None:
        self._progress(
            CopyProgress(
                table=str(self.table.table),
                rows=self.rows,
                bytes=self._bytes,
                rows_estimate=self.table.rows_estimate,
                bytes_estimate=None,
            )
        )


@contextlib.contextmanager
def _short_transaction(conn: Connection) -> Iterator[None]:
    """One snapshot, taken by the first statement that is no LOCK; nothing is kept of it."""
    with translated("beginning a chunk of a copy"):
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        if not conn.closed:
            with contextlib.suppress(psycopg.Error):
                conn.execute("ROLLBACK")


def _by_key(table: Table, seen: Described, keys: tuple[Key, ...], *, as_text: bool) -> sql.Composed:
    """The COPY of the rows with these keys.

    `as_text` finds the key of an extension's type, whose operators the search path leaves out.
    """
    schema = seen.schema
    form = sql.SQL("format('%s', {})" if as_text else "{}")
    names = [form.format(sql.Identifier(schema.names[place])) for place in schema.key_indexes]
    columns = sql.SQL(", ").join(map(sql.Identifier, schema.names))
    only = sql.SQL("" if table.kind == "p" else "ONLY ")
    wanted = sql.SQL(", ").join(
        sql.SQL("({})").format(sql.SQL(", ").join(map(_literal, key))) for key in keys
    )
    condition = sql.SQL("({}) IN ({})").format(sql.SQL(", ").join(names), wanted)
    if seen.where is not None:
        condition += sql.Composed([sql.SQL(f" AND ({seen.where})")])
    return sql.SQL("COPY (SELECT {} FROM {}{} WHERE {}) TO STDOUT").format(
        columns, only, sql.Identifier(schema.namespace, schema.name), condition
    )


def _literal(text: object) -> sql.Composable:
    assert isinstance(text, bytes)
    try:
        return sql.Literal(text.decode())
    except UnicodeDecodeError:
        # Of a database without an encoding: the server takes any bytes there.
        return sql.Composed([sql.SQL("E'" + "".join(f"\\x{byte:02x}" for byte in text) + "'")])
