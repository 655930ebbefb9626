"""The rows of a snapshot's table as they are stored, and as typed pieces, in bounded memory.

Of a table the columns are its own, or those chosen of it; of an event stream its time, key and
value. Both come in the order of their offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.changes.arrow import TYPE_NAME, Unfit, chosen_columns
from eventlog.snapshots.manifests.described_types import MSGPACK, Described, describe
from eventlog.snapshots.manifests.digest import Digest, TableDigest
from eventlog.snapshots.manifests.event_texts import COLUMNS
from eventlog.snapshots.manifests.manifest import SavedColumn, SavedRows
from eventlog.snapshots.table import EventTable, Table

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536

Pieces = Iterator[tuple[npt.NDArray[np.int64], list[Any]]]
"""Offsets, and an Arrow array of texts for each column; null is NULL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnType:
    """A column's name, its type as the source calls it, and that type as it enters the digest."""

    name: str
    type: str
    stored: str


class StoredRows:
    """The stored rows of one table; `table` is the snapshot's own, `chosen` the columns or None."""

    def __init__(self, table: Table | EventTable, chosen: Sequence[str] | None = None) -> None:
        self.table = table
        self.chosen = None if chosen is None else list(chosen)
        self._places: list[int] = []
        if isinstance(table, Table):
            found = chosen_columns(table.version, self.chosen)
            self._places = [place for place, _ in found]
            names = {f.name: (f.metadata or {}).get(TYPE_NAME, b"") for f in table.schema}
            self.columns = [
                ColumnType(
                    name=column.name,
                    type=names[column.name].decode(),
                    # Numbers of the source, as no version of a decoder has a say in them.
                    stored=f"{column.type}/{column.typmod}",
                )
                for _, column in found
            ]
        else:
            self.columns = [ColumnType(name=name, type=kind, stored=kind) for name, kind in COLUMNS]

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return self.table.num_rows

    @property
    def key(self) -> list[int]:
        """The places of the key among the columns; empty where there is no key, or not all of it.

        Events have one that may be null.
        """
        if isinstance(self.table, EventTable):
            return [1]
        key = self.table.version.key_indexes
        return [self._places.index(i) for i in key] if set(key) <= set(self._places) else []

    def described(self, decoder: int) -> Described:
        """How that decoder makes typed rows of these texts."""
        if isinstance(self.table, EventTable):
            return Described(codec=MSGPACK, decoder=decoder, types=())
        version = self.table.version
        wanted = [version.columns[place].type for place in self._places]
        return describe(self.table.codec.id, decoder, version, wanted)

    def offsets(self) -> npt.NDArray[np.int64]:
        """The offsets of all rows, ascending, without reading a text."""
        columns = ["key"] if isinstance(self.table, EventTable) else []
        column = self.table.to_arrow(columns, offsets=True).column("_offset")
        found: npt.NDArray[np.int64] = column.to_numpy().astype(np.int64)
        return found

    def texts(self) -> Pieces:
        """The rows by pieces. Raises DamagedLog, OffsetsDropped."""
        if isinstance(self.table, EventTable):
            return self.table.texts(max_rows=BATCH_ROWS)
        return (
            (offsets, [columns[place] for place in self._places])
            for offsets, columns in self.table.texts()
        )

    def typed(
        self, *, cast: Mapping[str, str] | None = None, unfit: Unfit = "raise", offsets: bool = True
    ) -> Iterator[pa.Table]:
        """The rows as Arrow, by pieces of BATCH_ROWS at most, `_offset` first; at least one.

        Raises ValueDoesNotFit, UsageError.
        """
        import pyarrow as pa

        options: dict[str, Any] = {"cast": cast, "unfit": unfit, "offsets": offsets}
        batches = getattr(self.table, "to_batches", None)
        if batches is None:
            yield self.table.to_arrow(self.chosen, **options)
            return
        none = True
        for batch in batches(self.chosen, max_rows=BATCH_ROWS, **options):
            none = False
            yield pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        if none:
            yield self.table.to_arrow(self.chosen, **options)

    def saved(self) -> SavedRows:
        """What a manifest says of the rows: reads them all."""
        digest = TableDigest([(column.name, column.stored) for column in self.columns])
        for offsets, columns in self.texts():
            digest.add(offsets, columns)
        return saved_rows(self.columns, digest.done())


def saved_rows(columns: Sequence[ColumnType], digest: Digest) -> SavedRows:
    """What a manifest says of rows of these columns."""
    return SavedRows(
        columns=tuple(
            SavedColumn(name=column.name, type=column.type, stored=column.stored, digest=text)
            for column, text in zip(columns, digest.columns, strict=True)
        ),
        rows=digest.rows,
        bytes=digest.bytes,
        offsets=digest.offsets,
        digest=digest.table,
    )
