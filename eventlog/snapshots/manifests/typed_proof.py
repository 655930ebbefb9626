"""The proof of a bundle's typed rows: stored texts, which the manifest proves, decoded once more.

A typed column is of its declared type, or of one that a cast makes; its values are what this
library's decoder makes of the texts, and null where a text does not fit the type. Compared are
bytes (`typed_values`), so that a NaN equals itself and 0 is not -0. Rows come in pieces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.changes.arrow import times_array
from eventlog.changes.codec import codec
from eventlog.changes.decoding import json_text
from eventlog.changes.schema import Column, Schema
from eventlog.changes.split import IS_NULL, Texts
from eventlog.errors import BadManifest, DamagedLog
from eventlog.snapshots.manifests.described_types import MSGPACK, Described
from eventlog.snapshots.manifests.digest import lengths_and_bytes
from eventlog.snapshots.manifests.manifest import SavedColumn, SavedTable
from eventlog.snapshots.manifests.strict_json import NotStrict
from eventlog.snapshots.manifests.transformed import DECODER
from eventlog.snapshots.manifests.typed_values import encoded

if TYPE_CHECKING:
    import pyarrow as pa

_TYPE = re.compile(r"([0-9]{1,10})/(-?[0-9]{1,10})")
"""A column's type as it enters the digest: its number, and its modifier."""

_NO_TYPE = (ValueError, RecursionError)
"""What a type raises that no database has: numeric(0,0), an array of itself."""


class TypedProof:
    """Compares the typed rows of one table with its texts, piece by piece, in order.

    `unknown` names columns whose types nothing describes, which are not compared. Belongs to one
    thread. Raises CodecNotInstalled, NotStrict for a codec that knows no types.
    """

    def __init__(self, table: SavedTable, how: Described, schema: pa.Schema) -> None:
        self._table = table
        self._how = how
        self._events = table.table is None
        self._found: dict[int, int] = {}
        self._unfit: Counter[int] = Counter()
        self.unknown: list[str] = []
        self.wrong: list[str] = []
        columns = table.stored.columns
        if schema.names != ["_offset", *(column.name for column in columns)]:
            self.wrong.append(f"it has the columns {', '.join(schema.names)}")
            self._places: list[int] = []
            return
        self._targets = schema.types[1:]
        self._places = list(range(len(columns)))
        if self._events:
            self._places = [i for i, kind in enumerate(_event_types()) if self._is_typed(i, kind)]
            return
        self._codec = codec(how.codec)
        if not hasattr(self._codec, "type_name"):
            raise NotStrict(f"codec {how.codec} knows no types of columns")
        self._versions = [_version(self._codec, column, how) for column in columns]
        self._places = [i for i in self._places if self._is_known(i)]

    def _is_known(self, place: int) -> bool:
        version = self._versions[place]
        if version is not None:
            with suppress(*_NO_TYPE):
                declared = self._codec.arrow_type(version, version.columns[0])
                return self._is_typed(place, declared)
        self.unknown.append(self._table.stored.columns[place].name)
        return False

    def _is_typed(self, place: int, declared: pa.DataType) -> bool:
        """Whether a column has a type that it can have."""
        from pyarrow import types

        found = self._targets[place]
        cast = types.is_string(found) or types.is_float64(found) or types.is_decimal(found)
        if found == declared or (cast and not self._events):
            return True
        column = self._table.stored.columns[place]
        self.wrong.append(f"column {column.name} is {found}, and {column.type} becomes {declared}")
        return False

    def add(self, offsets: npt.NDArray[np.int64], typed: pa.Table, texts: pa.Table) -> None:
        """Take in rows: `typed` begins with `_offset`, and `texts` with it, too.

        Raises BadManifest for texts that a manifest proves, and that no log can hold. REQUIRES: as
        many rows in all three, and as many columns of texts as were saved.
        """
        try:
            self._compare(offsets, typed, texts)
        except (DamagedLog, IndexError, ValueError) as error:
            raise BadManifest(f"its stored texts cannot be decoded: {error}") from error

    def _compare(self, offsets: npt.NDArray[np.int64], typed: pa.Table, texts: pa.Table) -> None:
        found = _events(texts) if self._events else None
        for place in list(self._places):
            if found is None:
                expected = self._decoded(place, texts.column(place + 1))
            else:
                expected = found[place]
            row = _first_difference(expected, _whole(typed.column(place + 1)))
            if row is not None:
                self._found[place] = int(offsets[row])
                self._places.remove(place)

    def _decoded(self, place: int, column: Any) -> pa.Array:
        version = self._versions[place]
        assert version is not None
        target = self._targets[place]
        texts = _texts(_whole(column))
        array, unfit = self._codec.arrow_array(version, version.columns[0], texts, target)
        self._unfit[place] += len(unfit)
        return _whole(array)

    def differences(self) -> list[str]:
        """What is wrong, in sentences about the file; empty where nothing is."""
        told = list(self.wrong)
        if self._found:
            names = (
                f"{self._name(place)} (first at offset {offset})"
                for place, offset in sorted(self._found.items())
            )
            told.append(
                f"its values are not those of the stored texts in column {', '.join(names)}"
            )
        return told

    @property
    def other_decoder(self) -> str:
        """Why a difference proves nothing; empty where it does."""
        if self._how.decoder == DECODER:
            return ""
        return f"it was typed by decoder {self._how.decoder}, this one is {DECODER}"

    def dropped(self) -> list[tuple[str, int, Any]]:
        """Columns with nulls in place of what did not fit: the name, how many, and the type."""
        return [
            (self._name(place), count, self._targets[place])
            for place, count in sorted(self._unfit.items())
            if count and place not in self._found
        ]

    def _name(self, place: int) -> str:
        return self._table.stored.columns[place].name


class Taking:
    """Takes rows out of pieces, whatever their size. Belongs to one thread."""

    def __init__(self, pieces: Iterator[pa.Table]) -> None:
        self._pieces = pieces
        self._left: pa.Table | None = None

    def take(self, rows: int) -> pa.Table:
        """The next rows; fewer where there are no more. REQUIRES: there is a piece."""
        import pyarrow as pa

        parts: list[Any] = []
        while rows > 0 or not parts:
            piece = next(self._pieces, None) if self._left is None else self._left
            self._left = None
            if piece is None:
                break
            parts.append(piece.slice(0, rows))
            if piece.num_rows > rows:
                self._left = piece.slice(rows)
            rows -= parts[-1].num_rows
        return pa.concat_tables(parts)


def _version(of: Any, column: SavedColumn, how: Described) -> Schema | None:
    """A schema of that column alone, under which its texts are decoded; None for unknown types.

    What is described counts only where the type's number says nothing by itself.
    """
    stored = _TYPE.fullmatch(column.stored)
    if stored is None:
        return None
    alone = Column(name=column.name, type=int(stored[1]), typmod=int(stored[2]), key=False)
    for types in ({}, how.source_types):
        version = Schema(
            id=0,
            offset=0,
            relation=0,
            namespace="",
            name="",
            identity="n",
            columns=(alone,),
            types=types,
        )
        with suppress(*_NO_TYPE):
            if of.type_name(version, alone) == column.type:
                return version
    return None


def _texts(array: pa.Array) -> Texts:
    lengths, data = lengths_and_bytes(array)
    wide = lengths.astype(np.int64)
    ends = np.cumsum(np.maximum(wide, 0))
    assert IS_NULL == -1, "as the digest has it"
    return Texts(
        data=np.frombuffer(data, np.uint8), starts=ends - np.maximum(wide, 0), lengths=wide
    )


def _event_types() -> list[pa.DataType]:
    import pyarrow as pa

    return [pa.timestamp("us", "UTC"), pa.string(), pa.string()]


def _events(texts: pa.Table) -> list[pa.Array]:
    """Time, key and value of the events that these texts are: see `event_texts`."""
    import pyarrow as pa

    decode = codec(MSGPACK).decode
    times, keys, values = (_whole(column) for column in texts.columns[1:])
    if times.null_count or values.null_count:
        raise ValueError("an event has a time and a value")
    found = (decode(b"\x92\xc0" + value)[1] for value in values.to_pylist())
    json = [None if value is None else json_text(value) for value in found]
    return [
        times_array([int.from_bytes(t, "little", signed=True) for t in times.to_pylist()]),
        keys.cast(pa.large_string()).cast(pa.string()),
        pa.array(json, pa.string()),
    ]


def _first_difference(one: pa.Array, other: pa.Array) -> int | None:
    """The first place where two arrays of one type differ, null from value, too."""
    lengths_a, bytes_a = lengths_and_bytes(encoded(one))
    lengths_b, bytes_b = lengths_and_bytes(encoded(other))
    same = np.array_equal(lengths_a, lengths_b)
    if same and bytes_a == bytes_b:
        return None
    rows = min(len(lengths_a), len(lengths_b))
    different = np.flatnonzero(lengths_a[:rows] != lengths_b[:rows])
    row = int(different[0]) if len(different) else rows
    # Up to that row both have their texts at the same places.
    ends = np.cumsum(np.maximum(lengths_a[:row].astype(np.int64), 0))
    size = int(ends[-1]) if row else 0
    a, b = np.frombuffer(bytes_a, np.uint8, size), np.frombuffer(bytes_b, np.uint8, size)
    byte = np.flatnonzero(a != b)
    return int(np.searchsorted(ends, byte[0], side="right")) if len(byte) else row


def _whole(column: Any) -> pa.Array:
    """A column of a piece as one array."""
    import pyarrow as pa

    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
