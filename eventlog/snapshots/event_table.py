"""The latest events of a stream as of a cut, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eventlog.changes.arrow import Unfit, require_names
from eventlog.errors import UnknownColumn, UsageError
from eventlog.snapshots.shown_rows import MAX_ROWS, ShownRows
from eventlog.snapshots.state.event_steps import KEY, TIME, VALUE
from eventlog.snapshots.state.table_state import TableState

if TYPE_CHECKING:
    import pyarrow as pa

_PLACES = {"_time": TIME, "key": KEY, "value": VALUE}


class EventTable(ShownRows):
    """The latest event of each key as of a cut; keys whose latest event is a tombstone are gone.

    Events without a key are all there. Which events there are is known; they are read from the log
    each time that they are asked for, unless they are few. It stays what it is though the log
    grows; where the log was closed, reading raises ClosedLog.

    Thread safety: may be shared among threads.
    """

    def __init__(self, state: TableState, stream: str) -> None:
        self._state = state
        self._stream = stream

    @property
    def num_rows(self) -> int:
        """The number of events."""
        return self._state.num_rows

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of `to_arrow()`."""
        from eventlog.snapshots.event_columns import schema_of

        return schema_of(_PLACES)

    def to_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[pa.Table]:
        """The events by pieces of at most `max_rows`, fewer where values are long; at least one.

        In bounded memory; for the columns see `to_arrow`.
        """
        if max_rows < 1:
            raise UsageError(f"max_rows={max_rows} is no number of rows", hint="it is at least 1")
        if cast:
            raise UsageError("events have no types to cast from", hint="leave out cast=")
        names = _chosen(columns)
        return self._batches(["_offset", *names] if offsets else names, max_rows)

    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
    ) -> pa.Table:
        """Columns `_time`, `key`, and `value` as JSON text; with `offsets`, `_offset` comes first.

        Every value fits. Raises UsageError for a cast, as events have no declared types,
        UnknownColumn, and DamagedLog.
        """
        import pyarrow as pa

        return pa.concat_tables(self.to_batches(columns, cast=cast, offsets=offsets))

    def texts(
        self, *, max_rows: int = MAX_ROWS
    ) -> Iterator[tuple[npt.NDArray[np.int64], list[pa.Array]]]:
        """The events as stored: offsets, and time, key and value as Arrow binary, by pieces.

        `eventlog.snapshots.state.event_steps` says what the texts are. A piece has at most
        `max_rows`, fewer where values are long.
        """
        from eventlog.changes.arrow_texts import binary_array

        for rows in self._state.rows(range(3), max_rows=max_rows):
            yield rows.offsets, [binary_array(rows.texts(place)) for place in range(3)]

    def _batches(self, names: Sequence[str], max_rows: int) -> Iterator[pa.Table]:
        from eventlog.snapshots.event_columns import columns_of, schema_of

        places = sorted({_PLACES[name] for name in names if name in _PLACES})
        came = False
        for rows in self._state.rows(places, max_rows=max_rows):
            came = True
            yield columns_of(rows, places, names, stream=self._stream)
        if not came:
            yield schema_of(names).empty_table()

    def __repr__(self) -> str:
        unit = "event" if self.num_rows == 1 else "events"
        return f"<EventTable, {self.num_rows:,} {unit}>"


def _chosen(columns: Sequence[str] | None) -> list[str]:
    """The columns asked for; all but the offset where none are."""
    require_names(columns or ())
    known = ["_offset", *_PLACES]
    names = list(columns or _PLACES)
    for name in names:
        if name not in known:
            raise UnknownColumn(
                f"events have no column {name!r}", hint=f"they have {', '.join(known)}"
            )
    return names
