"""Snapshots: the state of streams as of a cut (D12 to D15, I7).

Rows come in the order of the offset of their latest version, which is also their id. What a
snapshot holds depends on nothing but the log's content below its cut; whether it is refused, also
on what was noticed later about changes that the stream did not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from eventlog.changes.change import Op
from eventlog.changes.change_view import ChangeView, source_codec
from eventlog.changes.cut import Cut
from eventlog.changes.event_view import EventView
from eventlog.changes.fold import Placed, TableFold, latest_events
from eventlog.changes.reading import pieces
from eventlog.changes.records import Records
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.table_name import TableName
from eventlog.engine import Engine, StreamKind
from eventlog.errors import SnapshotRefused, UnknownTable, UsageError
from eventlog.snapshots.table import EventTable, Table

Progress = Callable[[int, int], None]
"""Called with how many offsets are done, and how many there are in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stream of a snapshot. With `start`, older rows are left out."""

    kind: StreamKind
    start: int | None
    cut: Cut
    history: SchemaHistory

    @property
    def stream(self) -> str:
        return self.cut.stream


class Snapshot:
    """The state of one or several streams, each at its own cut.

    Thread safety: may be shared among threads.
    """

    def __init__(self, engine: Engine, parts: Sequence[Part]) -> None:
        self._engine = engine
        self._parts = {part.stream: part for part in parts}

    @property
    def stops(self) -> dict[str, int]:
        """The offset that each stream was cut at."""
        return {name: part.cut.stop for name, part in self._parts.items()}

    @property
    def stop(self) -> int:
        """The offset of the only stream's cut. Raises UsageError where there are several."""
        return self._only().cut.stop

    @property
    def time(self) -> datetime | None:
        """The commit time of the last record below the only stream's cut, in UTC."""
        return self._only().cut.time

    def table(
        self,
        name: str | None = None,
        *,
        as_inserts: bool = False,
        as_is: bool = False,
        progress: Progress | None = None,
    ) -> Table | EventTable:
        """The rows of a table, or the latest event of each key of an event stream.

        `name` is `[stream.]schema.table`, or an event stream's name, which may be left out where it
        is the only one. `as_inserts` takes every row that was ever inserted: what can be said of a
        table whose updates and deletes the source does not send. `as_is` takes what the log holds
        where that is known not to be the table's state: between a change that the stream could not
        show, or a loss, and the end of the copy that mends it; inside a copy, what it has brought.
        Raises UnknownTable, and SnapshotRefused where the table has no state at the cut.
        """
        part, parsed = self._part(name)
        if parsed is None:
            return _event_table(self._engine, part)
        schema = _one(part.history, parsed, part.cut.stop)
        rows = _fold(
            self._engine, part, schema, as_inserts=as_inserts, as_is=as_is, progress=progress
        )
        codec = source_codec(self._engine, part.history)
        return Table(codec, schema, [row for row in rows if row[0] >= (part.start or 0)])

    def changes(
        self, name: str | None = None, *, columns: Sequence[str] | None = None, fill: bool = False
    ) -> Records[Any, Any]:
        """The records behind `table(name)`, from the part's start up to its cut."""
        part, parsed = self._part(name)
        low, _ = self._engine.bounds(part.stream)
        start = low if part.start is None else part.start
        if parsed is None:
            view: Any = EventView(self._engine, part.stream)
        else:
            schema = _one(part.history, parsed, part.cut.stop)
            view = ChangeView(
                self._engine,
                part.history,
                selection=lambda other: other.relation == schema.relation,
                table=schema,
                columns=columns,
                fill=fill,
            )
        return Records(view, part.stream, start, part.cut.stop)

    def _only(self) -> Part:
        if len(self._parts) != 1:
            raise UsageError(
                f"this snapshot has {len(self._parts)} streams", hint="`.stops` has all of them"
            )
        return next(iter(self._parts.values()))

    def _part(self, name: str | None) -> tuple[Part, TableName | None]:
        """The stream that has the table; no table name for an event stream."""
        if name is None or (name in self._parts and self._parts[name].kind == "events"):
            part = self._only() if name is None else self._parts[name]
            if part.kind != "events":
                raise UsageError(
                    f"stream {part.stream!r} has tables", hint="name one: table('public.orders')"
                )
            return part, None
        parsed = TableName.parse(name)
        if parsed.is_pattern:
            raise UsageError(f"{name!r} is not one table", hint="name one table")
        captured = [part for part in self._parts.values() if part.kind == "captured"]
        if parsed.stream is not None:
            captured = [part for part in captured if part.stream == parsed.stream]
        if len(captured) != 1:
            raise UnknownTable(
                f"{name!r} names a table in {len(captured)} of the streams of this snapshot",
                hint=f"its streams are {', '.join(self._parts)}; write stream.schema.table",
            )
        return captured[0], parsed

    def __repr__(self) -> str:
        return f"<Snapshot {self.stops}>"


def _event_table(engine: Engine, part: Part) -> EventTable:
    low, _ = engine.bounds(part.stream)
    events = latest_events(EventView(engine, part.stream).items(low, part.cut.stop))
    return EventTable([event for event in events if event.offset >= (part.start or 0)])


def _one(history: SchemaHistory, name: TableName, stop: int) -> Schema:
    (schema,) = history.named(name, stop)
    return schema


def _fold(
    engine: Engine,
    part: Part,
    schema: Schema,
    *,
    as_inserts: bool,
    as_is: bool,
    progress: Progress | None,
) -> list[Placed]:
    """Fold one relation up to the part's cut. Raises SnapshotRefused."""
    if schema.inserts_only and not as_inserts:
        raise SnapshotRefused(
            f"table {schema.table} has no replica identity, so its updates and deletes are not "
            "captured, and its state is not known",
            hint="take as_inserts=True for every row inserted, or give the table a primary key "
            "and copy it again",
        )
    fold = TableFold(as_inserts=as_inserts)
    low, end = engine.bounds(part.stream)
    stop = part.cut.stop
    for piece in pieces(
        engine, part.history, low, stop, selection=lambda s: s.relation == schema.relation
    ):
        schemas = piece.schemas
        for offset, raw in piece.changes():
            fold.apply(offset, raw, None if raw.relation is None else schemas[raw.relation])
        if progress is not None:
            progress(min(piece.entry.stop, stop) - low, stop - low)
    if not fold.seen or (fold.copying is not None and not as_is):
        _refuse_incomplete(engine, part, schema, copying=fold.copying, end=end)
    if not as_is:
        _refuse_unseen(engine, part, schema, fold.copied_from, end)
    if fold.lost is not None and not as_is:
        raise SnapshotRefused(
            f"changes of table {schema.table} below offset {stop} were lost {_span(fold.lost)}",
            hint="cut behind the next complete copy of the table, or copy it again",
        )
    fold.switch(schema)
    return fold.rows()


def _refuse_incomplete(
    engine: Engine, part: Part, schema: Schema, *, copying: int | None, end: int
) -> None:
    """Refuse a cut inside an open copy, or before the table's first one begins."""
    if copying is None:
        first = next(_later(engine, part, schema, end), None)
        if first is None or first[1] is not Op.COPY_BEGIN:
            return
    exact = _first_exact(engine, part, schema, end, begun=copying)
    raise SnapshotRefused(
        f"the copy of table {schema.table} is not complete at offset {part.cut.stop}",
        hint="the copy has not ended yet"
        if exact is None
        else f"its state is whole from {exact} on",
    )


def _refuse_unseen(
    engine: Engine, part: Part, schema: Schema, copied_from: int | None, end: int
) -> None:
    """Refuse a cut at which rows may differ from the source's without a record that says so."""
    stop = part.cut.stop
    found = part.history.unseen(schema.relation, stop, copied_from=copied_from)
    if found is None:
        return
    exact = _first_exact(engine, part, schema, end, begun=None)
    cut = f"cut at {found.unseen_since} or before, or behind its next copy"
    when = cut if exact is None else f"it is exact from {exact} on"
    since = found.unseen_since
    assert since is not None
    if since < 0:
        when = "its copy has not ended yet" if exact is None else when
        raise SnapshotRefused(
            f"table {schema.table} has no state at offset {stop}: {found.unseen_reason}",
            hint=f"{when}; as_is=True (--as-is) takes what the log holds",
        )
    raise SnapshotRefused(
        f"rows of table {schema.table} changed at the source without a record that shows it, "
        f"between offset {since} and {stop}: {found.unseen_reason}",
        hint=f"{when}; as_is=True (--as-is) takes what the log holds",
    )


def _first_exact(
    engine: Engine, part: Part, schema: Schema, end: int, *, begun: int | None
) -> int | None:
    """The first offset behind the cut at which the table's state is known again.

    `begun` is where a copy began that is open at the cut.
    """
    for offset, op in _later(engine, part, schema, end):
        if op is Op.COPY_BEGIN:
            begun = offset
        elif op is Op.COPY_END and begun is not None:
            if part.history.unseen(schema.relation, offset + 1, copied_from=begun) is None:
                return offset + 1
            begun = None
    return None


def _later(engine: Engine, part: Part, schema: Schema, end: int) -> Iterator[tuple[int, Op]]:
    """The table's records behind the cut."""
    found = pieces(
        engine,
        part.history,
        part.cut.stop,
        end,
        selection=lambda other: other.relation == schema.relation,
    )
    for piece in found:
        for offset, raw in piece.changes():
            if raw.relation is not None:
                yield offset, raw.op


def _span(lost: Mapping[str, Any]) -> str:
    start, stop = lost.get("from"), lost.get("to")
    if lost.get("lost_in") == "log":
        return f"by damage to the log, at offsets [{start}, {stop})"
    span = "" if start is None or stop is None else f", from {start} to {stop}"
    return f"at the source{span}"
