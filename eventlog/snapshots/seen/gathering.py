"""One pass over a stream: what is needed of the records of some tables, by column.

Columns are those of the version at the cut. A value under an older version stands in the column
that it became; what that version did not have takes the column's fast default, or NULL. Old rows
are kept for the records alone that have one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import ABSENT, Op, RawChange
from eventlog.changes.reading import Piece, pieces
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory, places
from eventlog.changes.split import IS_ABSENT, OP_NUMBER, Split, Texts, repeated, texts_of
from eventlog.engine import Engine
from eventlog.snapshots.seen.compacting import kept, one_behind_the_other

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

_NONE = texts_of([])
_DELETE = OP_NUMBER[Op.DELETE]
_UPDATE = OP_NUMBER[Op.UPDATE]


class Identity(enum.Enum):
    """What tells the rows of a table apart, over all versions that its records have.

    KEY: the same columns all along. NOTHING: none have an identity. ROWS: anything else, such as
    whole rows, or a key that became another.
    """

    KEY = "key"
    ROWS = "rows"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A relation, as of the cut, and the places of its columns that are needed."""

    schema: Schema
    columns: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRecords:
    """The records of rows of one relation, in the order of their offsets.

    `new` and `old` hold columns by their place in `schema`; the old ones are of the records at
    `old_at`. So are `keys` and `old_keys`, in the order of the key, where `identity` is KEY.
    `truncates` and `copies` are the offsets at which the table was emptied, and begun anew.

    Memory: 9 bytes a record, and for each column 16 bytes and its text.
    """

    schema: Schema
    identity: Identity
    offsets: I64
    ops: npt.NDArray[np.uint8]
    new: Mapping[int, Texts]
    old_at: I64
    old: Mapping[int, Texts]
    keys: tuple[Texts, ...]
    old_keys: tuple[Texts, ...]
    truncates: I64
    copies: I64

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def updates(self) -> npt.NDArray[np.bool_]:
        """Which are updates."""
        found: npt.NDArray[np.bool_] = self.ops == _UPDATE
        return found

    @property
    def deletes(self) -> npt.NDArray[np.bool_]:
        """Which are deletes: all others have a new row."""
        found: npt.NDArray[np.bool_] = self.ops == _DELETE
        return found


def gather(
    engine: Engine,
    history: SchemaHistory,
    start: int,
    stop: int,
    *,
    wanted: Mapping[int, Wanted],
    progress: Progress | None = None,
) -> dict[int, TableRecords]:
    """Read `[start, stop)` once, for the wanted relations. Raises DamagedLog."""
    found = {relation: _Gathering(wish) for relation, wish in wanted.items()}
    for piece in pieces(
        engine, history, start, stop, selection=lambda schema: schema.relation in found
    ):
        split = piece.split()
        offsets = piece.offset_of_slot()
        for rows in split.rows:
            found[rows.schema.relation].add(rows, offsets[rows.slots])
        for raw in split.rare:
            if raw.relation is not None:
                found[raw.relation].add_rare(raw, int(offsets[raw.slot]))
        _tell(progress, piece, start, stop)
    return {relation: gathering.records() for relation, gathering in found.items()}


def _tell(progress: Progress | None, piece: Piece, start: int, stop: int) -> None:
    if progress is not None:
        progress(min(piece.entry.stop, stop) - start, stop - start)


class _Gathering:
    """What came of one relation so far."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._places = sorted(wanted.columns)
        self._versions: list[Schema] = []
        self._count = 0
        self._offsets = [np.zeros(0, np.int64)]
        self._ops = [np.zeros(0, np.uint8)]
        self._old_at = [np.zeros(0, np.int64)]
        self._columns: list[list[Texts]] = []
        self._keys: list[list[Texts]] = []
        self._truncates: list[int] = []
        self._copies: list[int] = []

    def add(self, split: Split, offsets: I64) -> None:
        """Take in the rows of one payload."""
        version = split.schema
        if not self._versions or self._versions[-1] is not version:
            self._versions.append(version)
        self._offsets.append(offsets)
        self._ops.append(split.ops)
        has_old = _with_old(split)
        self._old_at.append(has_old + self._count)
        self._count += len(split)
        at = places(version, self._wanted.schema)
        found = [
            _default(self._wanted.schema, place, split, has_old)
            if at[place] is None
            else _sent(split, at[place], has_old)
            for place in self._places
        ]
        keys = [_sent(split, place, has_old) for place in version.key_indexes]
        texts = kept([text for pair in (*found, *keys) for text in pair])
        self._columns.append(texts[: 2 * len(found)])
        self._keys.append(texts[2 * len(found) :])

    def add_rare(self, raw: RawChange, offset: int) -> None:
        """Take in a record of the table that is of no row."""
        if raw.op is Op.TRUNCATE:
            self._truncates.append(offset)
        elif raw.op is Op.COPY_BEGIN:
            self._copies.append(offset)

    def records(self) -> TableRecords:
        """All of it. May be asked once."""
        identity = _identity(self._versions)
        width = 2 * len(self._places)
        parts = self._columns
        keys = 0
        if identity is Identity.KEY:
            keys = 2 * len(self._versions[0].key_indexes)
            pairs = zip(self._columns, self._keys, strict=True)
            parts = [[*columns, *key] for columns, key in pairs]
        texts = one_behind_the_other(parts, width + keys)
        self._columns, self._keys = [], []
        return TableRecords(
            schema=self._wanted.schema,
            identity=identity,
            offsets=np.concatenate(self._offsets),
            ops=np.concatenate(self._ops),
            new=dict(zip(self._places, texts[:width:2], strict=True)),
            old_at=np.concatenate(self._old_at),
            old=dict(zip(self._places, texts[1:width:2], strict=True)),
            keys=tuple(texts[width::2]),
            old_keys=tuple(texts[width + 1 :: 2]),
            truncates=np.array(self._truncates, np.int64),
            copies=np.array(self._copies, np.int64),
        )


def _with_old(split: Split) -> I64:
    """The places of the records that have an old row."""
    if split.old is None:
        return np.zeros(0, np.int64)
    return np.flatnonzero((split.old.lengths != IS_ABSENT).any(axis=0))


def _sent(split: Split, place: int | None, has_old: I64) -> tuple[Texts, Texts]:
    """A column of new rows, and of the old ones."""
    assert place is not None
    old = split.old_texts(place).take(has_old) if len(has_old) else _NONE
    return split.new_texts(place), old


def _default(target: Schema, place: int, split: Split, has_old: I64) -> tuple[Texts, Texts]:
    """A column that the records' own version does not have: what the source says rows then hold."""
    missing = target.columns[place].missing
    new = repeated(None if missing is None else missing.encode(), len(split))
    # Where only the key was sent, other columns of the old row are not known from it.
    old = new.take(has_old) if split.schema.identity == "f" else repeated(ABSENT, len(has_old))
    lengths = np.where(split.ops == _DELETE, IS_ABSENT, new.lengths)
    return Texts(data=new.data, starts=new.starts, lengths=lengths), old


def _identity(versions: list[Schema]) -> Identity:
    if not any(version.key_indexes or version.identity == "f" for version in versions):
        return Identity.NOTHING
    first = versions[0]
    if first.key_indexes and all(_same_key(first, version) for version in versions):
        return Identity.KEY
    return Identity.ROWS


def _same_key(one: Schema, other: Schema) -> bool:
    at = places(one, other)
    return tuple(at[place] for place in other.key_indexes) == one.key_indexes
