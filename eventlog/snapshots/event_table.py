"""The latest events of a stream as of a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from eventlog.changes.arrow import Unfit
from eventlog.changes.event_view import StoredEvent, event_table
from eventlog.errors import UnknownColumn, UsageError
from eventlog.snapshots.shown_rows import MAX_ROWS, ShownRows

if TYPE_CHECKING:
    import pyarrow as pa


class EventTable(ShownRows):
    """The latest event of each key as of a cut; keys whose latest event is a tombstone are gone.

    All of them are in memory. Thread safety: may be shared among threads.
    """

    def __init__(self, events: list[StoredEvent]) -> None:
        self._events = events

    @property
    def num_rows(self) -> int:
        """The number of events."""
        return len(self._events)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of `to_arrow()`."""
        return EventTable([]).to_arrow().schema

    def to_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[pa.Table]:
        """The events by pieces of at most `max_rows`; at least one, be it empty."""
        if max_rows < 1:
            raise UsageError(f"max_rows={max_rows} is no number of rows", hint="it is at least 1")
        EventTable([]).to_arrow(columns, cast=cast, unfit=unfit)
        return (
            EventTable(self._events[start : start + max_rows]).to_arrow(columns, offsets=offsets)
            for start in range(0, max(len(self._events), 1), max_rows)
        )

    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
    ) -> pa.Table:
        """Columns `_time`, `key`, and `value` as JSON text; with `offsets`, `_offset` comes first.

        Every value fits. Raises UsageError for a cast, as events have no declared types, and
        UnknownColumn.
        """
        if cast:
            raise UsageError("events have no types to cast from", hint="leave out cast=")
        table = event_table(self._events)
        names = list(columns or table.column_names[1:])
        for name in names:
            if name not in table.column_names:
                raise UnknownColumn(
                    f"events have no column {name!r}",
                    hint=f"they have {', '.join(table.column_names)}",
                )
        return table.select(["_offset", *names] if offsets else names)

    def __repr__(self) -> str:
        unit = "event" if self.num_rows == 1 else "events"
        return f"<EventTable, {self.num_rows:,} {unit}>"
