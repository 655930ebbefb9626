"""Pieces: what one index entry of a captured stream holds of a range, and how it is split.

A selection of tables is a predicate on schema versions. Entries that hold none of them are passed
over unread; control records that concern every table (`data_loss`) are always read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import Op, RawChange
from eventlog.changes.codec import codec
from eventlog.changes.schema import Schema
from eventlog.changes.split import SplitPayload
from eventlog.engine import Engine, IndexEntry
from eventlog.engine.payload import Payload
from eventlog.engine.scan import Damaged
from eventlog.errors import DamagedLog

if TYPE_CHECKING:
    from eventlog.changes.schemas import SchemaHistory

Selection: TypeAlias = Callable[[Schema], bool]


class Moment(NamedTuple):
    """A record's transaction as the index has it: two words that its codec writes, and the time.

    `origin` names the server that it was replicated to the source from; empty where it began there.
    """

    tx: int
    position: int
    time_us: int
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The readable records of one entry, undecoded. `relations` None: all are selected."""

    stream: str
    entry: IndexEntry
    payload: Payload
    codec: Any
    schemas: dict[int, Schema]
    relations: frozenset[int] | None
    slots: Sequence[int]
    offsets: Sequence[int]

    def changes(self) -> Iterator[tuple[int, RawChange]]:
        """The selected records with their offsets. Raises DamagedLog, naming the place."""
        relations = self.relations
        records = self.payload.records(self.slots)
        raws = self.codec.decode(records, self.slots, self.schemas)
        with self._placed():
            if relations is None:
                yield from zip(self.offsets, raws, strict=True)
                return
            for offset, raw in zip(self.offsets, raws, strict=True):
                if _is_selected(raw, relations):
                    yield offset, raw

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Say of damage where it lies."""
        try:
            yield
        except DamagedLog as error:
            raise DamagedLog(
                f"payload {self.entry.payload_id} of stream {self.stream!r}, offsets "
                f"[{self.entry.first_offset}, {self.entry.stop}), is damaged: {error}",
                hint="records outside it can still be read; run `eventlog check`",
            ) from error

    def split(self) -> SplitPayload:
        """The selected records, split; `offset_of_slot` gives their offsets. Raises DamagedLog."""
        with self._placed():
            found: SplitPayload = self.codec.split(self.payload, self.slots, self.schemas)
        return self.selected(found)

    def selected(self, found: SplitPayload) -> SplitPayload:
        """What is selected of all that its payload holds."""
        relations = self.relations
        if relations is None:
            return found
        return SplitPayload(
            rows=[split for split in found.rows if split.schema.relation in relations],
            rare=[raw for raw in found.rare if _is_selected(raw, relations)],
        )

    def offset_of_slot(self) -> npt.NDArray[np.int64]:
        """By slot of the payload, the offset; -1 where the slot has none that is read here."""
        found = np.full(len(self.payload.ends), -1, np.int64)
        slots, offsets = self.slots, self.offsets
        count = len(slots)
        if count and slots[-1] - slots[0] == offsets[-1] - offsets[0] == count - 1:
            found[slots[0] : slots[-1] + 1] = np.arange(offsets[0], offsets[-1] + 1)
        else:
            found[slots] = offsets
        return found

    def times(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The times of these slots of the payload, in µs since 1970 UTC."""
        return self.entry.transactions.time[self._transactions(slots)]

    def moments(self, slots: npt.NDArray[np.int64] | None = None) -> list[Moment]:
        """The moments of these slots of the payload, which ascend; of all slots for None."""
        if slots is None:
            slots = np.arange(len(self.payload.ends))
        if not len(slots):
            return []
        found = self._transactions(slots)
        low, stop = int(found[0]), int(found[-1]) + 1
        of = self.entry.transactions
        columns = (of.tx[low:stop], of.position[low:stop], of.time[low:stop])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        moments = [Moment(*row) for row in rows]
        for place, origin in self.entry.more.get("origins", ()):
            if low <= place < stop:
                moments[place - low] = moments[place - low]._replace(origin=origin)
        return [moments[place] for place in (found - low).tolist()]

    def _transactions(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The places of their transactions in the entry's."""
        found: npt.NDArray[np.int64] = np.searchsorted(
            self.entry.transactions.first, slots, side="right"
        )
        return found - 1


def _is_selected(raw: RawChange, relations: frozenset[int]) -> bool:
    return raw.relation in relations or (raw.relation is None and raw.op is Op.DATA_LOSS)


def pieces(
    engine: Engine,
    history: SchemaHistory,
    start: int,
    stop: int,
    *,
    selection: Selection | None = None,
    damaged: Damaged | None = None,
    holds: Callable[[int, int], bool] | None = None,
) -> Iterator[Piece]:
    """Walk `[start, stop)` of a captured stream, in order.

    Entries without an offset that `holds` are passed over unread: it is asked for `[start, stop)`.
    Raises DamagedLog, unless `damaged` is told instead, or CodecNotInstalled when it comes to such
    a payload.
    """
    chosen: dict[int, bool] = {}

    def is_chosen(schema_id: int) -> bool:
        found = chosen.get(schema_id)
        if found is None:
            assert selection is not None
            found = chosen[schema_id] = selection(history.version(schema_id))
        return found

    def wanted(entry: IndexEntry) -> bool:
        if holds is not None and not holds(entry.first_offset, entry.stop):
            return False
        if selection is None or not entry.relations:
            return True
        return any(is_chosen(schema_id) for _, schema_id in entry.relations)

    for stretch in engine.scan(history.stream, start, stop, wanted, damaged=damaged):
        if stretch.payload is None:
            continue
        entry = stretch.entry
        relations = None
        if selection is not None:
            relations = frozenset(r for r, schema_id in entry.relations if is_chosen(schema_id))
        slots, offsets = stretch.readable_slots()
        if slots:
            yield Piece(
                stream=history.stream,
                entry=entry,
                payload=stretch.payload,
                codec=codec(stretch.payload.codec),
                schemas={r: history.version(schema_id) for r, schema_id in entry.relations},
                relations=relations,
                slots=slots,
                offsets=offsets,
            )


def uses(engine: Engine, history: SchemaHistory, schema: Schema, stop: int) -> bool:
    """Whether a record below `stop` has that schema version.

    Its entries tell; only one that `stop` lies in is decoded. What is damaged has none.
    """
    pair = (schema.relation, schema.id)
    low, _ = engine.bounds(history.stream)
    for stretch in engine.scan(
        history.stream,
        max(low, schema.offset),
        stop,
        lambda entry: pair in entry.relations and entry.stop > stop,
        damaged=lambda start, stop, error: None,
    ):
        if pair not in stretch.entry.relations:
            continue
        if stretch.payload is None:
            return True
        slots, _ = stretch.readable_slots()
        schemas = {r: history.version(schema_id) for r, schema_id in stretch.entry.relations}
        records = stretch.payload.records(slots)
        decoded = codec(stretch.payload.codec).decode(records, slots, schemas)
        if any(raw.relation == schema.relation for raw in decoded):
            return True
    return False
