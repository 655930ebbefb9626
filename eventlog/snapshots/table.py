"""The rows of a table as of a cut, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.changes.arrow import (
    Conversion,
    Unfit,
    change_table,
    chosen_columns,
    require_columns,
    stacked,
)
from eventlog.changes.quantities import counted
from eventlog.changes.schema import Schema
from eventlog.changes.split import IS_UNCHANGED, Texts
from eventlog.errors import UsageError, ValueDoesNotFit
from eventlog.snapshots.event_table import EventTable
from eventlog.snapshots.shown_rows import MAX_ROWS, ShownRows
from eventlog.snapshots.state.state_rows import StateRows
from eventlog.snapshots.state.table_state import TableState

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["EventTable", "Table"]


class Table(ShownRows):
    """The rows of one table as of a cut, in the order of the offsets of their latest versions.

    `version` is the schema version at the cut. Which rows there are is known; their values are read
    from the log each time that they are asked for, unless the table is small. It stays what it is
    though the log grows; where the log was closed, reading raises ClosedLog.

    Thread safety: may be shared among threads.
    """

    def __init__(self, codec: Any, state: TableState) -> None:
        self.version: Schema = state.version
        self._codec = codec
        self._state = state

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return self._state.num_rows

    @property
    def name(self) -> str:
        """`schema.table`, as it is called at the cut."""
        return self.version.table

    @property
    def codec(self) -> Any:
        """The codec that gives its columns their types."""
        return self._codec

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of `to_arrow()`."""
        return self._converted(None, Conversion(), offsets=False).schema

    def to_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        offsets: bool = False,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[pa.Table]:
        """The rows as Arrow tables of at most `max_rows` each, in order and in bounded memory.

        At least one comes, be it empty. For the options see `to_arrow`; what did not fit is counted
        in each piece. Raises UnknownColumn and UsageError at once, ValueDoesNotFit on the way.
        """
        if max_rows < 1:
            raise UsageError(f"max_rows={max_rows} is no number of rows", hint="it is at least 1")
        conversion = Conversion(columns=columns, cast=cast or {}, unfit=unfit)
        empty = self._converted(None, conversion, offsets=offsets)
        return self._batches(empty, conversion, offsets=offsets, max_rows=max_rows)

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
        return stacked(list(self.to_batches(columns, cast=cast, unfit=unfit, offsets=offsets)))

    def texts(
        self, *, max_rows: int = MAX_ROWS
    ) -> Iterator[tuple[npt.NDArray[np.int64], list[pa.Array]]]:
        """The rows as stored: offsets, and for each column its texts as Arrow binary, by pieces.

        NULL is null. A piece has at most `max_rows`, fewer where values are long. Raises
        ValueDoesNotFit where the log never saw a value.
        """
        from eventlog.changes.arrow_texts import binary_array

        for rows in self._state.rows(range(len(self.version.columns)), max_rows=max_rows):
            for column, lengths in zip(self.version.columns, rows.lengths, strict=True):
                unknown = lengths == IS_UNCHANGED
                if unknown.any():
                    offset = int(rows.offsets[unknown.argmax()])
                    raise ValueDoesNotFit(
                        f"column {column.name!r} of {self.name} at offset {offset} was left "
                        "unchanged by its update, and the log never saw its value",
                        hint="cut behind a complete copy of the table",
                    )
            yield (
                rows.offsets,
                [binary_array(rows.texts(place)) for place in range(len(rows.starts))],
            )

    def _batches(
        self, empty: pa.Table, conversion: Conversion, *, offsets: bool, max_rows: int
    ) -> Iterator[pa.Table]:
        came = False
        chosen = [place for place, _ in chosen_columns(self.version, conversion.columns)]
        typed = self._typed(empty, chosen, conversion, offsets=offsets)
        if typed is not None:
            for found in typed:
                for start in range(0, found.num_rows, max_rows):
                    came = True
                    yield found.slice(start, max_rows)
        places = list(dict.fromkeys(chosen))
        for rows in self._state.rows(places, max_rows=max_rows, behind_base=typed is not None):
            came = True
            yield self._converted(rows, conversion, offsets=offsets)
        if not came:
            yield empty

    def _typed(
        self, empty: pa.Table, chosen: list[int], conversion: Conversion, *, offsets: bool
    ) -> Iterator[pa.Table] | None:
        """The rows that a checkpoint has as Arrow already; None where it has not."""
        import pyarrow as pa

        names = [self.version.columns[place].name for place in chosen]
        if self._state.base is None or not chosen or set(conversion.cast) & set(names):
            return None
        # By place: a column may be asked for twice, or be called `_offset`.
        kinds = dict(zip(chosen, empty.schema.types[int(offsets) :], strict=True))
        found = self._state.typed_rows(kinds)
        if found is None:
            return None
        at = [list(kinds).index(place) for place in chosen]
        return (
            pa.Table.from_arrays(
                [*([pa.array(ids, pa.int64())] if offsets else []), *(arrays[i] for i in at)],
                schema=empty.schema,
            )
            for ids, arrays in found
        )

    def _converted(
        self, rows: StateRows | None, conversion: Conversion, *, offsets: bool
    ) -> pa.Table:
        """Rows as Arrow; without any, an empty table."""
        import pyarrow as pa

        require_columns(self.version, conversion.columns or ())
        texts: list[Texts | None] = [_EMPTY] * len(self.version.columns)
        at = np.zeros(0, np.int64)
        if rows is not None:
            at = rows.offsets
            places = [place for place, _ in chosen_columns(self.version, conversion.columns)]
            for row, place in enumerate(dict.fromkeys(places)):
                texts[place] = rows.texts(row)
        return change_table(
            self._codec,
            self.version,
            texts,
            offsets=at,
            conversion=conversion,
            head=[("_offset", pa.array(at, pa.int64()))] if offsets else (),
        )

    def __repr__(self) -> str:
        return f"<Table {self.name}, {counted(self.num_rows, 'row')}>"


_EMPTY = Texts(
    data=np.zeros(0, np.uint8), starts=np.zeros(0, np.int64), lengths=np.zeros(0, np.int64)
)
