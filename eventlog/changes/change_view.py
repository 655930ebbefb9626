"""How the records of a captured stream are selected and shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import Conversion, stacked
from eventlog.changes.change import Change
from eventlog.changes.codec import codec
from eventlog.changes.decoding import Decoder, Located
from eventlog.changes.fold import Filler
from eventlog.changes.reading import Selection, pieces
from eventlog.changes.runs import ChangeRun, ItemRun
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.shown import CONTROL, ArrowTables, groups
from eventlog.changes.together import split_pieces
from eventlog.engine import Engine
from eventlog.engine.scan import Damaged
from eventlog.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa


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

    def runs(self, start: int, stop: int) -> Iterator[ChangeRun | ItemRun[Located]]:
        """Walk the selected changes."""
        if not self._fill:
            return self._read(start, stop)
        low, _ = self._engine.bounds(self._history.stream)
        return self._filled(low, start, stop)

    def items(self, start: int, stop: int) -> Iterator[Located]:
        """Walk the selected changes one by one."""
        return _items(self.runs(start, stop))

    def records(self, runs: Iterable[ChangeRun | ItemRun[Located]]) -> Iterator[Change]:
        """The changes with Python values."""
        return map(self._decoder.change, _items(runs))

    def json(self, runs: Iterable[ChangeRun | ItemRun[Located]]) -> Iterator[dict[str, Any]]:
        """The changes as lines of `read --json` have them."""
        return map(self._decoder.json, _items(runs))

    def arrow(
        self,
        runs: Iterable[ChangeRun | ItemRun[Located]],
        stop: int,
        conversion: Conversion,
        *,
        own: bool,
    ) -> pa.Table:
        """The changes as an Arrow table; of filled ones, row by row."""
        if own or self._table is None:
            runs = list(runs)
            target = self._target(runs, stop, own=own)
        else:
            target = self._table
        columns = self._columns
        if columns is not None and own:
            columns = [name for name in columns if name in target.names]
        tables = ArrowTables(
            target, replace(conversion, columns=columns), codec_of=self._source_codec
        )
        return stacked([tables.of(group) for group in groups(runs)] or [tables.of([])])

    def _read(self, start: int, stop: int) -> Iterator[ChangeRun]:
        found = pieces(
            self._engine,
            self._history,
            start,
            stop,
            selection=self._selection,
            damaged=self._damaged,
        )
        for piece, split in split_pieces(found):
            run = ChangeRun.of(piece, split)
            if len(run):
                yield run

    def _filled(self, low: int, start: int, stop: int) -> Iterator[ItemRun[Located]]:
        filler = Filler()
        for run in self._read(low, stop):
            filled = []
            for item in run.located():
                raw = filler.apply(item.offset, item.raw, item.schema)
                if item.offset >= start:
                    filled.append(item if raw is item.raw else item._replace(raw=raw))
            if filled:
                yield ItemRun(items=filled, version=_version)

    def _target(
        self, runs: Sequence[ChangeRun | ItemRun[Located]], stop: int, *, own: bool
    ) -> Schema:
        """The schema version that the Arrow columns follow."""
        found = {s.relation: s for run in runs for _, s in run.versions()}
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

    def _source_codec(self) -> Any:
        return source_codec(self._engine, self._history)


def _items(runs: Iterable[ChangeRun | ItemRun[Located]]) -> Iterator[Located]:
    for run in runs:
        yield from run.located() if isinstance(run, ChangeRun) else run.items


def _version(item: Located) -> Schema | None:
    return item.schema


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
