"""One stream of an open log: appending, reading, following."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from eventlog.changes.change_view import ChangeView
from eventlog.changes.cut import At, cut_of, microseconds, offset_of
from eventlog.changes.event_view import EventView
from eventlog.changes.quantities import byte_count, duration_us
from eventlog.changes.records import Damages, Records
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.table_choice import named_at, selected_by_name
from eventlog.codecs.events import CODEC, Encoders, key_text
from eventlog.engine import Append, Engine, Plan, StreamKind, batch_of_one, now_us
from eventlog.engine.rows import TIME_MIN
from eventlog.errors import OffsetOutOfRange, UsageError
from eventlog.following import MAX_ROWS, Following
from eventlog.outbox import Outbox, id_text, require_events, tombstone_without_key

if TYPE_CHECKING:
    from eventlog.checkpoints import Checkpointed, CheckpointInfo
    from eventlog.consumer import Consumer
    from eventlog.engine.upkeep.retain import Retained
    from eventlog.history.event_history import EventHistory
    from eventlog.history.key_index import KeyIndex
    from eventlog.history.row_history import RowHistory

Until = Literal["current"] | int | None


class Stream:
    """A stream by its name; `kind` is `events` or `captured`.

    Thread safety: may be shared among threads.
    """

    def __init__(self, engine: Engine, name: str, kind: StreamKind, schemas: SchemaHistory) -> None:
        self.name = name
        self.kind = kind
        self._engine = engine
        self._schemas = schemas
        self._encoders = Encoders()

    @property
    def start(self) -> int:
        """The first retained offset."""
        return self._engine.bounds(self.name)[0]

    @property
    def end(self) -> int:
        """The offset that the next record will get."""
        return self._engine.bounds(self.name)[1]

    def offset_at(self, time: At) -> int:
        """The first offset whose running greatest commit time has reached `time`; else the end.

        `time` is ISO 8601 text, a date or a datetime; without a zone it is UTC.
        """
        return self._engine.offset_at(self.name, microseconds(time))

    # Appending

    def append(
        self,
        value: Any,
        key: str | int | None = None,
        *,
        id: str | int | None = None,  # noqa: A002
    ) -> int:
        """Append one event, durably; returns its offset.

        `append(None, key=...)` is a tombstone. An integer key is stored as its decimal form. An
        `id` that one of the stream's last 1,000,000 events with ids bore stores nothing: the offset
        is that event's, whatever its value, even if retention dropped it since. So an append whose
        outcome is not known can be tried again. Raises TypeError for a value that an event cannot
        hold, naming the path to it.
        """
        require_events(self.name, self.kind)
        event_id = id_text(id)
        if event_id is not None:
            known = self._engine.offset_of_id(self.name, event_id)
            if known is not None:
                return known
        text = key_text(key)
        if value is None and text is None:
            raise tombstone_without_key()
        record = self._encoders.mine().one(text, value)
        batch = batch_of_one(CODEC.id, record, time_us=now_us())
        ids = () if event_id is None else (event_id,)
        append = Append(stream=self.name, batches=[batch], ids=ids)
        return self._engine.commit(Plan(appends=[append])).offsets[0][0]

    @overload
    def append_many(
        self, values: Iterable[Any], *, keys: Iterable[str | int | None] | None = None
    ) -> range: ...

    @overload
    def append_many(
        self,
        values: Iterable[Any],
        *,
        keys: Iterable[str | int | None] | None = None,
        ids: Iterable[str | int | None],
    ) -> list[int]: ...

    def append_many(
        self,
        values: Iterable[Any],
        *,
        keys: Iterable[str | int | None] | None = None,
        ids: Iterable[str | int | None] | None = None,
    ) -> Sequence[int]:
        """Append events, all or nothing whatever the size; returns their offsets, a range.

        `keys` has one key for each value. A generator that raises leaves nothing. More than 4 MiB
        goes through staging, in bounded memory. With `ids`, one or None for each value, the result
        is a list with the offset of each, those that were known by their id included (see
        `append`); such a call holds at most 16 MiB.
        """
        offsets, _ = self._append_many(values, keys=keys, ids=ids)
        return offsets if ids is None else list(offsets)

    def _append_many(
        self,
        values: Iterable[Any],
        *,
        keys: Iterable[str | int | None] | None,
        ids: Iterable[str | int | None] | None,
    ) -> tuple[Sequence[int], int]:
        """What `append_many` does, with how many events it stored: of those without known ids."""
        with Outbox(self._engine) as outbox:
            outbox.extend(self.name, values, keys, ids)
            committed = self._engine.commit(Plan(appends=outbox.appends()))
        return committed.offsets[0], committed.stored[0]

    # Reading

    def read(
        self,
        start: At | None = None,
        stop: At | None = None,
        *,
        table: str | None = None,
        columns: Sequence[str] | None = None,
        fill: bool = False,
        damaged: Literal["raise", "skip"] = "raise",
    ) -> Records[Any, Any]:
        """The records of `[start, stop)`, lazily; the end is fixed now, and stays.

        `table` selects one table, or several by a pattern such as `public.*`: the relations that
        bear the name at `stop`, followed across renames. Its control records and `data_loss`
        records come along. `columns` limits rows to these. `fill` takes UNCHANGED values from the
        row's own history, for which the stream is read from its start. A damaged batch raises
        DamagedLog, naming its offsets; `damaged="skip"` reads on past it, and the result's
        `damaged` lists what was passed over. Raises OffsetOutOfRange, OffsetsDropped, UnknownTable,
        UnknownColumn.
        """
        if damaged not in ("raise", "skip"):
            raise UsageError(f"no way {damaged!r} with damage", hint="there are `raise` and `skip`")
        if damaged == "skip" and fill:
            raise UsageError(
                "values cannot be filled from a history that may have holes",
                hint="leave out fill, or read undamaged ranges",
            )
        damages = Damages() if damaged == "skip" else None
        first, last = self._engine.checked_range(
            self.name,
            None if start is None else offset_of(self._engine, self.name, start),
            None if stop is None else offset_of(self._engine, self.name, stop),
        )
        if self.kind == "events":
            self._refuse_tables(table, columns, fill=fill)
            events = EventView(self._engine, self.name, damaged=damages)
            return Records(events, self.name, first, last, damages=damages)
        choice = named_at(self._schemas, table, columns, last)
        view = ChangeView(
            self._engine,
            self._schemas,
            selection=choice.selection,
            table=choice.table,
            columns=columns,
            fill=fill,
            damaged=damages,
        )
        return Records(view, self.name, first, last, damages=damages)

    def follow(
        self,
        start: At = "end",
        *,
        table: str | None = None,
        columns: Sequence[str] | None = None,
        max_rows: int = MAX_ROWS,
        until: Until = None,
        stop: Callable[[], bool] | None = None,
    ) -> Following:
        """Batches from `start` on (`begin`, `end`, an offset or a time), waiting for more.

        Also for `async for`. `until` ends it at an offset, or at the `current` end; `stop()` ends
        it when it returns true. `table` selects records by the name that their table bore when they
        were written, so that a batch does not depend on when it is read.
        """
        first = offset_of(self._engine, self.name, start)
        self._engine.checked_range(self.name, first, None)
        return Following(
            self._engine,
            self.followed_view(table, columns),
            self.name,
            start=first,
            until=self.end if until == "current" else until,
            max_rows=max_rows,
            stop=stop,
        )

    def followed_view(
        self, table: str | None, columns: Sequence[str] | None = None
    ) -> ChangeView | EventView:
        """How followed batches of this stream are selected and shown."""
        if self.kind == "events":
            self._refuse_tables(table, columns)
            return EventView(self._engine, self.name)
        selection = selected_by_name(self._schemas, table, columns, self.end)
        return ChangeView(self._engine, self._schemas, selection=selection, columns=columns)

    def history(
        self,
        table: str | None = None,
        key: Any = None,
        start: At | None = None,
        stop: At | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> RowHistory | EventHistory:
        """Every version of the rows that ever bore a key, lazily; UNCHANGED values are filled.

        The rows are followed across key changes, renames and schema changes (see
        `eventlog.history.lives`). `table` is the one that bears the name at `stop`; an event stream
        has none. `key` is a scalar for a key of one column, else a mapping. The first call brings
        the key index up to date, of which `progress` is told. Raises UnknownTable, UnknownColumn,
        UsageError (a table without a key), OffsetOutOfRange, OffsetsDropped.
        """
        from eventlog.history.opening import history_of

        return history_of(
            self._engine, self._schemas, table, key, start=start, stop=stop, progress=progress
        )

    def key_index(self) -> KeyIndex:
        """What `history` looks keys up in; its `update` and `drop` are all that one may need."""
        from eventlog.history.key_index import key_index

        return key_index(self._engine, self._schemas)

    # Retention

    def retain(
        self,
        *,
        below: At | None = None,
        older_than: str | timedelta | None = None,
        max_bytes: str | int | None = None,
        force: bool = False,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Retained:
        """Drop the oldest events: below an offset or time, or beyond an age or a size.

        `older_than` (a timedelta, or as in `"30d"`) counts back from the newest event, in event
        time; `max_bytes` (a number, or as in `"10GB"`) is what the stored batches may take. What
        one of them names goes, in whole batches, never more. What a consumer has not passed, or a
        pinned snapshot is made of, stays, unless `force`. Readers that are still there get
        OffsetsDropped. Raises UsageError for a captured stream, for the registry of transforms,
        and without any limit, OffsetOutOfRange for `below` outside `[0, end]`.
        """
        from eventlog.engine.upkeep.retain import below_for_bytes, retain
        from eventlog.snapshots.transform.registry import require_no_registry

        require_no_registry(self.name)
        limits = []
        if below is not None:
            limits.append(offset_of(self._engine, self.name, below))
            end = self.end
            if self.kind == "events" and not 0 <= limits[0] <= end:
                raise OffsetOutOfRange(
                    f"stream {self.name!r} cannot be cut at {limits[0]}, outside [0, {end}]",
                    hint="name one of its offsets or a time; `--below end` drops all",
                )
        if older_than is not None:
            newest = self._engine.stream(self.name).time_running_max
            age = duration_us(older_than)
            limits.append(self._engine.offset_at(self.name, max(newest - age, TIME_MIN)))
        if max_bytes is not None:
            kept = byte_count(max_bytes)
            limits.append(below_for_bytes(self._engine.store, self.name, kept))
        if not limits:
            raise UsageError(
                f"nothing says what stream {self.name!r} shall keep",
                hint="give one of below=, older_than= and max_bytes=",
            )
        return retain(
            self._engine.store,
            self.name,
            below=max(limits),
            force=force,
            dry_run=dry_run,
            progress=progress,
        )

    # Checkpoints

    def checkpoint(
        self,
        *,
        table: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Checkpointed:
        """Store the state of one table as of the end, or of all: snapshots start from there.

        Returns all checkpoints of the stream, and why tables have none at this cut. Raises
        UsageError for an event stream, UnknownTable, SnapshotRefused for the table that was named,
        EnvironmentFault where the log's directory cannot be written.
        """
        from eventlog.checkpoints import make

        self._require_tables()
        stop = cut_of(self._engine, self.name, "end").stop
        return make(self._engine, self._schemas, stop, table=table, progress=progress)

    def checkpoints(self) -> tuple[CheckpointInfo, ...]:
        """The checkpoints of the stream, by table and offset."""
        from eventlog.checkpoints import listed

        self._require_tables()
        return listed(self._engine, self._schemas)

    def drop_checkpoints(self, *, table: str | None = None) -> Checkpointed:
        """Remove the checkpoints of one table, or all; returns those that were there."""
        from eventlog.checkpoints import drop

        self._require_tables()
        return drop(self._engine, self._schemas, table=table)

    def _require_tables(self) -> None:
        self._engine.stream(self.name)  # A log that is closed, or was forked, says so first.
        if self.kind == "events":
            raise UsageError(
                f"stream {self.name!r} holds events, of which there are no checkpoints",
                hint="checkpoints are of tables; snapshots of events read the stream",
            )

    # Consuming

    def consumer(self, name: str, start: At = "begin") -> Consumer:
        """The named consumer, made at `start` where it is new.

        Raises OffsetOutOfRange where a new one would begin outside the stream.
        """
        from eventlog.consumer import Consumer

        return Consumer(self._engine, self, name, start=start)

    def _refuse_tables(
        self, table: str | None, columns: Sequence[str] | None, *, fill: bool = False
    ) -> None:
        if table is not None or columns is not None or fill:
            raise UsageError(
                f"stream {self.name!r} holds events, which have no tables or columns to fill",
                hint="leave out table=, columns= and fill=",
            )

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}, {self.kind}>"
