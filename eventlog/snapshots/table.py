"""The rows of a table, or the latest events of a stream, as of a cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import Conversion, Unfit, change_table, frame
from eventlog.changes.event_view import StoredEvent, event_table
from eventlog.changes.fold import Placed
from eventlog.changes.schema import Schema
from eventlog.errors import UnknownColumn, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


class _Rows(ABC):
    """What can be shown as Arrow, and so as pandas."""

    @abstractmethod
    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
    ) -> pa.Table:
        """The rows as an Arrow table."""

    def to_pandas(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
    ) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow(columns, cast=cast, unfit=unfit, offsets=offsets))


class Table(_Rows):
    """The rows of one table as of a cut, in the order of the offsets of their latest versions.

    `version` is the schema version at the cut. Thread safety: may be shared among threads.
    """

    def __init__(self, codec: Any, version: Schema, rows: Sequence[Placed]) -> None:
        self.version = version
        self._codec = codec
        self._rows = rows

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return len(self._rows)

    @property
    def name(self) -> str:
        """`schema.table`, as it is called at the cut."""
        return self.version.table

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of `to_arrow()`."""
        empty = Table(self._codec, self.version, ())
        return empty.to_arrow().schema

    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
    ) -> pa.Table:
        """The rows as an Arrow table; with `offsets`, column `_offset` comes first.

        `cast` maps columns to `text`, `float64` or `decimal(p,s)`. `unfit="null"` makes what does
        not fit its type null and counts it in the field's metadata (`unfit`). Raises
        ValueDoesNotFit, UnknownColumn, UsageError.
        """
        import pyarrow as pa

        at = [offset for offset, _ in self._rows]
        return change_table(
            self._codec,
            self.version,
            [row for _, row in self._rows],
            offsets=at,
            conversion=Conversion(columns=columns, cast=cast or {}, unfit=unfit),
            head=[("_offset", pa.array(at, pa.int64()))] if offsets else (),
        )

    def texts(
        self, *, max_rows: int = 65_536
    ) -> Iterator[tuple[npt.NDArray[np.int64], list[pa.Array]]]:
        """The rows as stored: offsets, and for each column its texts as Arrow binary, by pieces.

        NULL is null.
        """
        import numpy as np
        import pyarrow as pa

        for start in range(0, len(self._rows), max_rows):
            part = self._rows[start : start + max_rows]
            columns = [
                pa.array([row[place] for _, row in part], pa.binary())
                for place in range(len(self.version.columns))
            ]
            yield np.array([offset for offset, _ in part], np.int64), columns

    def __repr__(self) -> str:
        return f"<Table {self.name}, {self.num_rows} rows>"


class EventTable(_Rows):
    """The latest event of each key as of a cut; keys whose latest event is a tombstone are gone."""

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
        return f"<EventTable, {self.num_rows} events>"
