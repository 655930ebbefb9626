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
run that nobody disturbed. Values that an update left unchanged are filled from the row's history;
for that the rows of the table are held in memory from the first such update on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import Conversion, Unfit, change_table
from eventlog.changes.change import ABSENT, UNCHANGED, Op, Text
from eventlog.changes.change_view import ChangeView
from eventlog.changes.decoding import Located
from eventlog.changes.event_view import EventView
from eventlog.changes.fold import Filler, latest_events
from eventlog.changes.plain import plain_rows
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.split import columns_of
from eventlog.changes.table_choice import selected_by_name
from eventlog.changes.table_name import TableName
from eventlog.errors import TransformRefused, UsageError
from eventlog.snapshots.transform.definition import OFFSET, Transform
from eventlog.snapshots.transform.registry import register, stored_once

if TYPE_CHECKING:
    import pyarrow as pa

    from eventlog.log import Log
    from eventlog.stream import Until

BATCH_ROWS = 5_000
"""Changes that are transformed and committed together, while there are as many."""

_RESETS = frozenset({Op.TRUNCATE, Op.COPY_BEGIN})
_Event = tuple[str, dict[str, Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """What a run did, and the source's offset that it came to."""

    rows: int
    tombstones: int
    offset: int


@dataclass(slots=True, kw_only=True)
class _Output:
    """The events of one batch, in order. A row's event is None until it is transformed."""

    events: list[tuple[str, Located | None]] = field(default_factory=list)

    def add(self, key: str, row: Located | None) -> None:
        self.events.append((key, row))


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
            events = worker.events(batch.start, batch.stop)
            if not self._bound:
                self._bind()
            with consumer.commit(batch) as tx:
                if events:
                    tx.append(self.output, [v for _, v in events], keys=[k for k, _ in events])
            gone = sum(value is None for _, value in events)
            rows, tombstones = rows + len(events) - gone, tombstones + gone
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
    """What one run holds in memory."""

    def __init__(self, derived: Derived) -> None:
        self._derived = derived
        self._engine = derived._log.engine
        self._filler: Filler | None = None
        self._probed = False
        end = self._engine.bounds(derived.source)[1]
        selection = selected_by_name(derived._history, derived.table, None, end)
        self._view = ChangeView(self._engine, derived._history, selection=selection)
        self._low = self._engine.bounds(derived.source)[0]

    def events(self, start: int, stop: int) -> list[_Event]:
        """The events that the changes of `[start, stop)` make, in order."""
        output = _Output()
        for item in self._filled(list(self._view.items(start, stop)), start):
            self._place(item, output)
        made = self._made([row for _, row in output.events if row is not None])
        return [(key, None if row is None else next(made)) for key, row in output.events]

    def _place(self, item: Located, output: _Output) -> None:
        """Say which events a change makes."""
        raw, schema = item.raw, item.schema
        if raw.op in _RESETS:
            for key in self._live(output):
                output.add(key, None)
        elif schema is not None and (raw.new is not None or raw.old is not None):
            _require_key(schema)
            new = None if raw.new is None else _key(item, schema, raw.new, raw.old)
            old = None if raw.old is None else _key(item, schema, raw.old, raw.new)
            if old is not None and old != new:
                output.add(old, None)
            if new is not None:
                output.add(new, item)

    def _filled(self, items: list[Located], start: int) -> Iterable[Located]:
        if self._filler is None:
            if not any(item.raw.new is not None and UNCHANGED in item.raw.new for item in items):
                return items
            self._filler = Filler()
            for item in self._view.items(self._low, start):
                self._filler.apply(item.offset, item.raw, item.schema)
        apply = self._filler.apply
        return [i._replace(raw=apply(i.offset, i.raw, i.schema)) for i in items]

    def _live(self, output: _Output) -> list[str]:
        """The keys that are there: of the output so far, and of this batch."""
        name = self._derived.output
        stored = EventView(self._engine, name).items(*self._engine.bounds(name))
        live = dict.fromkeys(e.key for e in latest_events(stored) if e.key is not None)
        for key, row in output.events:
            # In the order of their latest events, so that it does not depend on where batches end.
            live.pop(key, None)
            if row is not None:
                live[key] = None
        return list(live)

    def _made(self, rows: Sequence[Located]) -> Iterator[dict[str, Any]]:
        """Transform rows, those of one schema version at once."""
        for _, group in groupby(rows, key=lambda item: item.schema):
            given = self._arrow(list(group))
            if not self._probed and given.num_rows > 1:
                self._derived.transform.probe(given)
                self._probed = True
            yield from plain_rows(self._derived.transform.apply(given))

    def _arrow(self, rows: list[Located]) -> pa.Table:
        import pyarrow as pa

        schema, codec = rows[0].schema, rows[0].codec
        assert schema is not None
        offsets = [item.offset for item in rows]
        return change_table(
            codec,
            schema,
            columns_of([item.raw.new for item in rows], len(schema.columns)),
            offsets=offsets,
            conversion=self._derived._conversion,
            head=[(OFFSET, pa.array(offsets, pa.int64()))],
        )


def _key(
    item: Located, schema: Schema, row: tuple[Text, ...], other: tuple[Text, ...] | None
) -> str:
    """The text of a row's key; a value that the source left out is that of the other row."""
    if len(schema.key_indexes) == 1:
        own = row[schema.key_indexes[0]]
        if isinstance(own, bytes):
            return own.decode("utf-8", "replace")
    texts: dict[str, bytes] = {}
    for place in schema.key_indexes:
        text = row[place]
        if (text is UNCHANGED or text is ABSENT) and other is not None:
            text = other[place]
        texts[schema.names[place]] = text if isinstance(text, bytes) else b""
    if len(texts) == 1:
        return next(iter(texts.values())).decode("utf-8", "replace")
    loaders = dict(zip(schema.names, item.codec.loaders(schema, "json"), strict=True))
    values = {name: loaders[name](text) for name, text in texts.items()}
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _require_key(schema: Schema) -> None:
    if not schema.key_indexes or schema.inserts_only:
        raise UsageError(
            f"table {schema.table} has no key that its changes name, so its rows cannot be keys of "
            "a derived stream",
            hint="give it a primary key, with REPLICA IDENTITY DEFAULT or USING INDEX",
        )
