"""Derived streams: a transform applied to the rows of a table as they come.

::

    change of the source's row        events of the output stream
    copied, inserted, updated         key → {"_offset": o, column: value, ...}
    deleted                           key → tombstone
    key changed                       old key → tombstone, then new key → {...}
    truncate, a copy begins anew      a tombstone for every key that is there

`_offset` is the change's own, values are in the forms of `read --json`, a key is the source's text
of a one-column key, else a JSON object of its columns. The latest events below a cut are the
transform of the table's snapshot at that cut, row for row, as long as the table's columns stay the
same: a row keeps the columns that it had when it was written, while a snapshot shows all under
those at its cut.

Events and the offset in the source commit together (I3): killed wherever, the output is that of a
run that nobody disturbed, and where batches end leaves no trace in it. Values that an update left
unchanged are filled from the row's history; for that the rows of the table are held in memory from
the first such update on, and its keys from the first truncate or copy that begins anew.

A table whose changes name no key is refused: events without a key could not be taken back when its
rows are truncated or copied again, and then the output would not be what the snapshot is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import Conversion, Unfit
from eventlog.changes.change import RawChange
from eventlog.changes.change_view import ChangeView
from eventlog.changes.event_view import EventView
from eventlog.changes.fold import latest_events
from eventlog.changes.plain import plain_rows
from eventlog.changes.records import Batch
from eventlog.changes.runs import ChangeRun
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.split import Texts
from eventlog.changes.table_choice import selected_by_name
from eventlog.changes.table_name import TableName
from eventlog.errors import TransformRefused, UsageError
from eventlog.snapshots.transform.definition import Transform
from eventlog.snapshots.transform.filling import SplitFiller, lacks_values
from eventlog.snapshots.transform.registry import register, stored_once
from eventlog.snapshots.transform.row_events import RowEvents, RowPart, parts

if TYPE_CHECKING:
    from eventlog.log import Log
    from eventlog.stream import Until

BATCH_ROWS = 5_000
"""Changes that are transformed and committed together, while there are as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """What a run did, and the source's offset that it came to."""

    rows: int
    tombstones: int
    offset: int


class Derived:
    """One transform over one table of a captured stream, written to an event stream.

    The output belongs to it: one transform, version, table and output go together for good, and
    are stored in stream `transforms` with the first commit. Belongs to one thread; of several
    processes that run it, one goes on and the others get ConsumerFenced.
    """

    def __init__(
        self,
        log: Log,
        history: SchemaHistory,
        transform: Transform,
        *,
        table: str,
        output: str,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
    ) -> None:
        self.transform = transform
        self.source = history.stream
        self.table = str(TableName.parse(table))
        self.output = output
        self._log = log
        self._history = history
        self._conversion = Conversion(cast=cast or {}, unfit=unfit)
        self._require_source()
        self._bound = False
        self._bind(only_check=True)

    def run(
        self,
        *,
        until: Until = None,
        stop: Callable[[], bool] | None = None,
        max_rows: int = BATCH_ROWS,
        progress: Callable[[int, int], None] | None = None,
    ) -> Derivation:
        """Go on from where the last run ended: up to an offset, the `current` end, or for ever.

        `stop()` ends it, too. `progress` is told of the offsets done, and of all there are. Raises
        TransformRefused where the transform fails or is not row-wise, ValueDoesNotFit,
        UnknownTable, and ConsumerFenced where another process runs it.
        """
        stream = self._log.stream(self.source)
        consumer = stream.consumer(self.output)
        batches = consumer.follow(table=self.table, max_rows=max_rows, until=until, stop=stop)
        worker = _Worker(self)
        # What fails in its first rows takes neither its version nor its output's name.
        rows = tombstones = 0
        for batch in batches:
            keys, values = worker.events(batch)
            if not self._bound:
                self._bind()
            with consumer.commit(batch) as tx:
                if values:
                    tx.append(self.output, values, keys=keys)
            gone = values.count(None)
            rows, tombstones = rows + len(values) - gone, tombstones + gone
            if progress is not None:
                progress(consumer.offset, stream.end)
        return Derivation(rows=rows, tombstones=tombstones, offset=consumer.offset)

    def _require_source(self) -> None:
        if TableName.parse(self.table).is_pattern:
            raise UsageError(f"{self.table!r} is not one table", hint="name one table")
        stream = self._log.stream(self.source)
        if stream.kind != "captured":
            raise UsageError(
                f"stream {self.source!r} holds events, not tables",
                hint="derive from a captured stream",
            )
        name = TableName.parse(self.table)
        for schema in self._history.named(name, stream.end):
            _require_key(schema)

    def _bind(self, *, only_check: bool = False) -> None:
        """Register the transform, and tie the output to what it is made of.

        With `only_check` nothing is stored. Raises TransformRefused.
        """
        register(self._log.engine, self.transform, only_check=only_check)
        stream = self._log.stream(self.output, create=True)
        wanted = {
            "v": 1,
            "output": self.output,
            "transform": self.transform.identity,
            "digest": self.transform.digest,
            "source": self.source,
            "table": self.table,
            "cast": dict(self._conversion.cast),
            "unfit": self._conversion.unfit,
        }
        fresh = stream.end == 0
        stored = stored_once(
            self._log.engine, f"derived {self.output}", wanted, fresh=fresh and not only_check
        )
        if stored is None and fresh:
            return
        if stored is None:
            raise TransformRefused(
                f"stream {self.output!r} holds events that no transform made",
                hint="take the name of a new stream for the output",
            )
        differs = [name for name in wanted if stored.get(name) != wanted[name]]
        if differs:
            raise TransformRefused(
                f"stream {self.output!r} is derived by {stored['transform']} from "
                f"{stored['source']}.{stored['table']}, with another {differs[0]}",
                hint="one output has one origin: take another stream for this one",
            )
        self._bound = not only_check

    def __repr__(self) -> str:
        return f"<Derived {self.output!r} of {self.source}.{self.table} by {self.transform!r}>"


class _Worker:
    """What one run holds in memory: rows, from the first value left out on; keys, from a reset."""

    def __init__(self, derived: Derived) -> None:
        self._derived = derived
        self._engine = derived._log.engine
        self._filler: SplitFiller | None = None
        self._live: dict[str, None] | None = None
        self._probed = False

    def events(self, batch: Batch[Any, Any]) -> tuple[list[str], list[dict[str, Any] | None]]:
        """The keys and the values of the events that a batch of changes makes, in order."""
        found = [part for run in batch.runs for part in parts(run)]
        if self._filler is None and any(_lacks(part) for part in found):
            self._filler = self._filled(batch.start)
        events, counted = RowEvents(), 0
        for part in found:
            if isinstance(part, RowPart):
                _require_key(part.split.schema)
                events.add(part, self._columns(part))
                continue
            if self._filler is not None:
                self._filler.reset(part)
            events.add_tombstones(self._gone(events, counted))
            counted = len(events.keys)
        if self._live is not None:
            self._count(self._live, events, counted)
        made = self._made(events)
        return events.keys, [next(made) if has_row else None for has_row in events.has_row]

    def _columns(self, part: RowPart) -> list[Texts]:
        if self._filler is not None:
            return self._filler.fill(part.split, part.offsets)
        return [part.split.new_texts(place) for place in range(len(part.split.schema.columns))]

    def _filled(self, stop: int) -> SplitFiller:
        """The rows as all changes below an offset left them."""
        history, filler = self._derived._history, SplitFiller()
        low, end = self._engine.bounds(self._derived.source)
        selection = selected_by_name(history, self._derived.table, None, end)
        for run in ChangeView(self._engine, history, selection=selection).runs(low, stop):
            assert isinstance(run, ChangeRun)
            for part in parts(run):
                if isinstance(part, RowPart):
                    filler.fill(part.split, part.offsets)
                else:
                    filler.reset(part)
        return filler

    def _gone(self, events: RowEvents, counted: int) -> list[str]:
        """The keys that are there: of the output so far, and of the events from `counted` on.

        In the order of their latest events, so that it does not depend on where batches end.
        """
        if self._live is None:
            name = self._derived.output
            stored = EventView(self._engine, name).items(*self._engine.bounds(name))
            keys = (event.key for event in latest_events(stored))
            self._live = dict.fromkeys(key for key in keys if key is not None)
        self._count(self._live, events, counted)
        gone, self._live = list(self._live), {}
        return gone

    @staticmethod
    def _count(live: dict[str, None], events: RowEvents, start: int) -> None:
        """Take the events from `start` on into the keys that are there."""
        for key, has_row in zip(events.keys[start:], events.has_row[start:], strict=True):
            live.pop(key, None)
            if has_row:
                live[key] = None

    def _made(self, events: RowEvents) -> Iterator[dict[str, Any]]:
        """The rows, transformed; those of one schema version at once."""
        transform = self._derived.transform
        for given in events.tables(self._derived._conversion):
            if not self._probed and given.num_rows > 1:
                transform.probe(given)
                self._probed = True
            yield from plain_rows(transform.apply(given))


def _lacks(part: RowPart | RawChange) -> bool:
    return isinstance(part, RowPart) and lacks_values(part.split)


def _require_key(schema: Schema) -> None:
    if not schema.key_indexes or schema.inserts_only:
        raise UsageError(
            f"table {schema.table} has no key that its changes name, so events of its rows could "
            "not be taken back by a delete, a truncate or another copy",
            hint="give it a primary key, with REPLICA IDENTITY DEFAULT or USING INDEX; a consumer "
            "of the stream gets its changes as they are",
        )
