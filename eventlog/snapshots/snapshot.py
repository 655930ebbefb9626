"""Snapshots: the state of streams as of a cut (D12 to D15, I7).

Rows come in the order of the offset of their latest version, which is also their id. What a
snapshot holds depends on nothing but the log's content below its cut; whether it is refused, also
on what was noticed later about changes that the stream did not show.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from eventlog.changes.change_view import ChangeView, source_codec
from eventlog.changes.cut import Cut
from eventlog.changes.event_view import EventView
from eventlog.changes.records import Records
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.table_name import TableName
from eventlog.engine import Engine, StreamKind
from eventlog.errors import UnknownTable, UsageError
from eventlog.snapshots.state.event_steps import event_state
from eventlog.snapshots.state.finding import Cutting, found_state
from eventlog.snapshots.state.live_pass import Progress
from eventlog.snapshots.table import EventTable, Table

if TYPE_CHECKING:
    from eventlog.changes.arrow import Unfit
    from eventlog.snapshots.manifests.manifest import Manifest
    from eventlog.snapshots.manifests.transformed import Transform
    from eventlog.snapshots.seen.asking import Seen
    from eventlog.snapshots.seen.definitions import Condition, Count, Later, Lookup
    from eventlog.snapshots.sql.result import Result


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
    def parts(self) -> Mapping[str, Part]:
        """Each stream with its kind, its cut and its schemas."""
        return self._parts

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
        from_log: bool = False,
        progress: Progress | None = None,
    ) -> Table | EventTable:
        """The rows of a table, or the latest event of each key of an event stream.

        `name` is `[stream.]schema.table`, or an event stream's name, which may be left out where it
        is the only one. `as_inserts` takes every row that was ever inserted: what can be said of a
        table whose updates and deletes the source does not send. `as_is` takes what the log holds
        where that is known not to be the table's state: between a change that the stream could not
        show, or a loss, and the end of the copy that mends it; inside a copy, what it has brought.
        `from_log` begins with no checkpoint: slower, and a proof of what the log itself holds.
        Raises UnknownTable, and SnapshotRefused where the table has no state at the cut.
        """
        part, parsed = self._part(name)
        if parsed is None:
            return _event_table(self._engine, part, progress)
        schema = _one(part.history, parsed, part.cut.stop)
        cut = Cutting(engine=self._engine, history=part.history, stop=part.cut.stop, table=schema)
        state = found_state(
            cut,
            start=part.start,
            as_inserts=as_inserts,
            as_is=as_is,
            progress=progress,
            from_log=from_log,
        )
        return Table(source_codec(self._engine, part.history), state)

    def sql(
        self,
        query: str,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        as_is: bool = False,
        as_inserts: bool = False,
        threads: int = 1,
        memory_limit: str | int = "1GiB",
        progress: Progress | None = None,
        **others: Snapshot,
    ) -> Result:
        """Answer one SELECT over the tables of these streams, and of `others` by their aliases.

        ::

            before = log.snapshot("shop", at="2026-01-31")
            now.sql("select ... from shop.public.orders join before.public.orders ...",
                    before=before)

        Names are `stream.schema.table` (see `eventlog.snapshots.sql.naming`). `cast`, by the names
        of columns, and `unfit` are those of `Table.to_arrow`, `as_is` that of `table`,
        `as_inserts` too, for tables of which only inserts are known. More `threads` are faster,
        and may order rows, and round sums of floats, otherwise each time. Rows that outgrow
        `memory_limit` are on disk, in a directory of the query's own; a query that needs more at
        once fails. Raises UsageError for a wrong query, UnknownTable, SnapshotRefused,
        EnvironmentFault.
        """
        from eventlog.snapshots.sql.loading import Terms
        from eventlog.snapshots.sql.query import as_snapshots, run

        terms = Terms(
            cast=cast or {}, unfit=unfit, as_is=as_is, as_inserts=as_inserts, progress=progress
        )
        return run(
            self,
            query,
            as_snapshots(others),
            terms=terms,
            threads=threads,
            memory_limit=memory_limit,
        )

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

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        tables: Iterable[str] | None = None,
        transform: Transform | None = None,
        pin: bool = False,
        as_inserts: bool = False,
        as_is: bool = False,
        columns: Mapping[str, Sequence[str]] | None = None,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        progress: Progress | None = None,
    ) -> Manifest:
        """Read tables, all unless named, and write down what proves them: a manifest.

        `tables` may be patterns such as `public.*`; an event stream goes by its name. `columns`
        takes only some columns of a table. `transform` is one of a single table; what it makes is
        digested, too. What it is given can be typed by `cast` and `unfit`, as by `Table.to_arrow`;
        the manifest says so. With `pin` the log keeps what the manifest needs. Raises UnknownTable,
        SnapshotRefused, UsageError, ValueDoesNotFit where a transform is given what does not fit,
        EnvironmentFault where the file cannot be written.
        """
        from eventlog.changes.arrow import Conversion
        from eventlog.snapshots.manifests.saving import Choice, save

        choice = Choice(
            tables=tables,
            columns=columns or {},
            as_inserts=as_inserts,
            as_is=as_is,
            conversion=Conversion(cast=cast or {}, unfit=unfit),
        )
        return save(self, self._engine, path, choice, transform, pin=pin, progress=progress)

    def seen(
        self,
        table: str,
        *,
        on: str | Iterable[str] = ("insert",),
        columns: Sequence[str] | None = None,
        old: Sequence[str] = (),
        where: Condition | None = None,
        lookups: Lookup | Sequence[Lookup] = (),
        counts: Count | Sequence[Count] = (),
        label: Later | Sequence[Later] = (),
        progress: Progress | None = None,
    ) -> Seen:
        """Changes of a table as instances: rows as they were seen, with what was known then (D17).

        Instances are the changes named by `on`, from the part's start to its cut, for which `where`
        holds: an expression, or a function of an Arrow table. `eventlog.snapshots.seen.asking` says
        exactly what belongs to each. Nothing is read yet. Raises UnknownTable, UnknownColumn,
        SnapshotRefused, UsageError.
        """
        from eventlog.snapshots.seen.asking import ask

        part, name = self._part(table)
        return ask(
            self._engine, part.history, name, start=part.start, stop=part.cut.stop, on=on,
            columns=columns, old=old, where=where, lookups=lookups, counts=counts, label=label,
            progress=progress,
        )  # fmt: skip

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


def _event_table(engine: Engine, part: Part, progress: Progress | None) -> EventTable:
    state = event_state(engine, part.stream, stop=part.cut.stop, progress=progress)
    return EventTable(state if part.start is None else state.from_start(part.start), part.stream)


def _one(history: SchemaHistory, name: TableName, stop: int) -> Schema:
    (schema,) = history.named(name, stop)
    return schema
