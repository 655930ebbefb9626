"""How the records of a captured stream are selected and shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import Conversion, change_table, times_array
from eventlog.changes.change import Change, Op, Text
from eventlog.changes.codec import codec
from eventlog.changes.decoding import Decoder, Located
from eventlog.changes.fold import Filler, moved_row
from eventlog.changes.reading import Selection, pieces
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine
from eventlog.engine.scan import Damaged
from eventlog.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

CONTROL = 1


class ChangeView:
    """The changes of some tables of a captured stream, or of all.

    `selection` None selects everything. `table` is the schema version at the cut, where one table
    was named. With `fill`, UNCHANGED values are taken from the row's history, which is read from
    the stream's start. `damaged` is told of what is passed over as damaged.
    """

    def __init__(
        self,
        engine: Engine,
        history: SchemaHistory,
        *,
        selection: Selection | None = None,
        table: Schema | None = None,
        columns: Sequence[str] | None = None,
        fill: bool = False,
        damaged: Damaged | None = None,
    ) -> None:
        self._damaged = damaged
        self._engine = engine
        self._history = history
        self._selection = selection
        self._table = table
        self._columns = None if columns is None else list(columns)
        self._fill = fill
        self._decoder = Decoder(columns=columns)

    def items(self, start: int, stop: int) -> Iterator[Located]:
        """Walk the selected changes."""
        if not self._fill:
            return self._located(start, stop)
        low, _ = self._engine.bounds(self._history.stream)
        return self._filled(low, start, stop)

    def version(self, item: Located) -> Schema | None:
        return item.schema

    def record(self, item: Located) -> Change:
        return self._decoder.change(item)

    def json(self, item: Located) -> dict[str, Any]:
        return self._decoder.json(item)

    def arrow(
        self, items: list[Located], stop: int, conversion: Conversion, *, own: bool
    ) -> pa.Table:
        import pyarrow as pa

        target = self._target(items, stop, own=own)
        columns = self._columns
        if columns is not None and own:
            columns = [name for name in columns if name in target.names]
        head = [
            ("_offset", pa.array([item.offset for item in items], pa.int64())),
            ("_op", pa.array([str(item.raw.op) for item in items], pa.string())),
            ("_time", times_array([item.moment.time_us for item in items])),
        ]
        return change_table(
            self._codec(items),
            target,
            [_row(item, target) for item in items],
            offsets=[item.offset for item in items],
            conversion=replace(conversion, columns=columns),
            head=head,
        )

    def _located(self, start: int, stop: int) -> Iterator[Located]:
        found = pieces(
            self._engine,
            self._history,
            start,
            stop,
            selection=self._selection,
            damaged=self._damaged,
        )
        for piece in found:
            moments, schemas, reader = piece.moments(), piece.schemas, piece.codec
            for offset, raw in piece.changes():
                schema = None if raw.relation is None else schemas[raw.relation]
                yield Located(offset, raw, schema, reader, moments[raw.slot])

    def _filled(self, low: int, start: int, stop: int) -> Iterator[Located]:
        filler = Filler()
        for item in self._located(low, stop):
            raw = filler.apply(item.offset, item.raw, item.schema)
            if item.offset >= start:
                yield item if raw is item.raw else item._replace(raw=raw)

    def _target(self, items: list[Located], stop: int, *, own: bool) -> Schema:
        """The schema version that the Arrow columns follow."""
        found = {item.schema.relation: item.schema for item in items if item.schema is not None}
        if own and len(found) == 1:
            return next(iter(found.values()))
        if self._table is not None:
            return self._table
        select = self._selection or (lambda schema: True)
        known = [schema for schema in self._history.in_force(stop).values() if select(schema)]
        tables = [schema for schema in known if schema.relation in found] or known
        if len(tables) == 1:
            return tables[0]
        names = ", ".join(sorted({schema.table for schema in tables})) or "none"
        raise UsageError(
            f"records of several tables cannot be one Arrow table (here: {names})",
            hint="name one with table=",
        )

    def _codec(self, items: list[Located]) -> Any:
        for item in items:
            if item.codec.id != CONTROL:
                return item.codec
        return source_codec(self._engine, self._history)


def source_codec(engine: Engine, history: SchemaHistory) -> Any:
    """The codec that gives a captured stream's columns their types.

    It is the one named `codec` in the source's state, else that of the first record that is not
    the log's own. Raises UsageError where neither is there yet.
    """
    state = engine.source_state(history.stream) or {}
    if isinstance(state.get("codec"), int):
        return codec(state["codec"])
    low, end = engine.bounds(history.stream)
    for piece in pieces(engine, history, low, end):
        if piece.codec.id != CONTROL:
            return piece.codec
    raise UsageError(
        f"stream {history.stream!r} holds no row yet, so the types of its tables are not known",
        hint="capture some changes first",
    )


def _row(item: Located, target: Schema) -> tuple[Text, ...] | None:
    raw = item.raw
    row = raw.old if raw.op is Op.DELETE else raw.new
    if row is None or item.schema is None or item.schema is target:
        return row
    return moved_row(row, item.schema, target)
