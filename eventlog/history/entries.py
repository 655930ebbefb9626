"""What a piece of a stream adds to the key index: which key each of its records is about.

::

    hash of the key u64        place = offset << 2 | flags

    flags   EDGE   the record begins or ends a row under this key: an insert, a delete, a key change
            MOVE   the record is a key change: it stands under the old key and under the new one

What concerns all rows of a relation stands apart, by relation: a truncate or the begin of a copy (a
RESET, behind which no earlier row counts) and a loss. Rows under a schema version that names no
columns for them (`Schema.row_key`) are not indexed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import Op
from eventlog.changes.reading import Piece
from eventlog.changes.split import IS_ABSENT, IS_UNCHANGED, OP_NUMBER, Split, SplitPayload, Texts
from eventlog.engine.payload import Payload
from eventlog.engine.scan import Stretch
from eventlog.errors import DamagedLog
from eventlog.history import hashing
from eventlog.history.hashing import EVENTS, U64, key_hashes, order_of

EDGE, MOVE = 1, 2
RESET, LOSS = 1, 2
FLAG_BITS = 2
ALL_TABLES = -1

I64 = npt.NDArray[np.int64]
_EDGES = np.zeros(len(OP_NUMBER), np.uint64)
_EDGES[[OP_NUMBER[Op.INSERT], OP_NUMBER[Op.DELETE]]] = EDGE
_RARE = {Op.TRUNCATE: RESET, Op.COPY_BEGIN: RESET, Op.DATA_LOSS: LOSS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Entries in the order of their places, or `joined`: in that of their hashes.

    `rare` has rows of (relation or ALL_TABLES, place), by offset.
    """

    hashes: U64
    places: U64
    rare: I64

    def __len__(self) -> int:
        return len(self.hashes)


def entries_of(piece: Piece, keys: Mapping[int, Sequence[int]] | None = None) -> Entries:
    """The entries of a captured piece.

    `keys` names, by schema id, the columns that tell rows apart where these are not the version's
    own key; records of versions that it does not have are left out.
    """
    split = piece.split()
    offsets = piece.offset_of_slot()
    parts = []
    for rows in split.rows:
        columns = rows.schema.row_key if keys is None else keys.get(rows.schema.id, ())
        if columns:
            parts.append(_of_rows(rows, offsets[rows.slots], columns))
    hashes, places = _joined(part[0] for part in parts), _joined(part[1] for part in parts)
    if len(parts) > 1:
        order = np.argsort(places, kind="stable")
        hashes, places = hashes[order], places[order]
    return Entries(hashes=hashes, places=places, rare=_rare(split, offsets))


def joined(parts: Iterable[Entries]) -> Entries:
    """Several entries that follow each other as one, sorted by hash and place."""
    found = list(parts)
    hashes = _joined([part.hashes for part in found])
    places = _joined([part.places for part in found])
    order = order_of(hashes)
    rare = np.concatenate([part.rare for part in found]) if found else np.zeros((0, 2), np.int64)
    return Entries(hashes=hashes[order], places=places[order], rare=rare)


def _of_rows(rows: Split, offsets: I64, columns: Sequence[int]) -> tuple[U64, U64]:
    relation = rows.schema.relation
    new = [rows.new_texts(column) for column in columns]
    deleted = rows.ops == OP_NUMBER[Op.DELETE]
    flags = _EDGES[rows.ops]
    places = offsets.view(np.uint64) << np.uint64(FLAG_BITS)
    if rows.old is None:
        return key_hashes(relation, new) & np.uint64(hashing.KEPT), places | flags
    old = [rows.old_texts(column) for column in columns]
    now = [_either(n, o, deleted) for n, o in zip(new, old, strict=True)]
    hashes = key_hashes(relation, now)
    both = np.flatnonzero(~deleted & (old[0].lengths != IS_ABSENT))
    before = key_hashes(relation, [texts.take(both) for texts in old])
    moved = before != hashes[both]
    flags[both[moved]] = EDGE | MOVE
    left = places[both[moved]] | np.uint64(EDGE | MOVE)
    hashes, places = np.concatenate([hashes, before[moved]]), np.concatenate([places | flags, left])
    order = np.argsort(places, kind="stable")
    return hashes[order] & np.uint64(hashing.KEPT), places[order]


def _either(new: Texts, old: Texts, deleted: npt.NDArray[np.bool_]) -> Texts:
    """The texts that the rows have now; the last ones where they are deleted."""
    from_old = deleted | (new.lengths == IS_UNCHANGED)
    return Texts(
        data=new.data,
        starts=np.where(from_old, old.starts, new.starts),
        lengths=np.where(from_old, old.lengths, new.lengths),
    )


def _rare(split: SplitPayload, offsets: I64) -> I64:
    found = [
        (
            ALL_TABLES if raw.relation is None else raw.relation,
            int(offsets[raw.slot]) << FLAG_BITS | _RARE[raw.op],
        )
        for raw in split.rare
        if raw.op in _RARE
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def entries_of_events(stretch: Stretch) -> Entries:
    """The entries of a stretch of an event stream; events without a key have none."""
    payload = stretch.payload
    assert payload is not None
    found, offsets = stretch.readable_slots()
    slots, places = np.array(found, np.int64), np.array(offsets, np.uint64)
    keys = _event_keys(payload, slots)
    keyed = np.flatnonzero(keys.lengths >= 0)
    hashes = key_hashes(EVENTS, [keys.take(keyed)]) & np.uint64(hashing.KEPT)
    places = places[keyed] << np.uint64(FLAG_BITS)
    return Entries(hashes=hashes, places=places, rare=np.zeros((0, 2), np.int64))


def _event_keys(payload: Payload, slots: I64) -> Texts:
    """Where the keys lie: the first element of a msgpack array of two, nil or a str.

    Raises DamagedLog for a record that does not begin like an event.
    """
    data = np.frombuffer(payload.data, np.uint8)
    ends = payload.ends.astype(np.int64)
    begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[slots]

    def byte(rows: I64, place: int) -> I64:
        found: I64 = data[np.minimum(begins[rows] + place, len(data) - 1)].astype(np.int64)
        return found

    every = np.arange(len(slots))
    kind = byte(every, 1)
    width = np.select([kind == 0xD9, kind == 0xDA, kind == 0xDB], [1, 2, 4], 0)
    lengths = np.where((kind >= 0xA0) & (kind <= 0xBF), kind & 0x1F, np.int64(-1))
    for size in (1, 2, 4):
        rows = np.flatnonzero(width == size)
        value = np.zeros(len(rows), np.int64)
        for place in range(size):
            value = value << 8 | byte(rows, 2 + place)
        lengths[rows] = value
    starts = begins + 2 + width
    strange = (byte(every, 0) != 0x92) | ((lengths < 0) & (kind != 0xC0))
    if np.any(strange | (starts + lengths > ends[slots])):
        raise DamagedLog("a record is no event, or is cut")
    return Texts(data=data, starts=starts, lengths=lengths)


def _joined(arrays: Iterable[U64]) -> U64:
    found = list(arrays)
    return np.concatenate(found) if found else np.zeros(0, np.uint64)
