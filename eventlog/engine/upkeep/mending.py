"""One stream of a damaged log, mended: what is readable stays, and what is lost keeps its offsets.

::

    entries found    [0, 16) [16, 32)*        [48, 50)         * its body is damaged
    end of the row                                         60
    pieces           [0, 16) [16, 32) [32, 48) [48, 50) [50, 60)
                     kept    lost     lost     kept     lost

A lost piece is an entry whose slots are LOST, with records of no bytes. Where the entry itself was
readable, its transactions stay. Elsewhere they are made up so that nothing else changes: the time
is the running greatest one that the next entry knows of, and a transaction that the next entry goes
on with begins where that says. In a captured stream the first offset of each loss holds a control
record `data_loss` with `from` and `to`, so that no snapshot passes over the loss unnoticed.

Pure: nothing here reads or writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgpack
import numpy as np

from eventlog.engine import index
from eventlog.engine.batch import Batch
from eventlog.engine.index import BODY, LIVE, LOST, RAW, IndexEntry, Transactions
from eventlog.engine.payload import encode
from eventlog.engine.rows import TIME_MIN, StreamKind
from eventlog.engine.upkeep.check_stream import shape_faults
from eventlog.engine.upkeep.findings import BodyFacts

SLOTS_MAX = 65_536
"""Slots of an entry of lost records."""

CONTROL = 1
"""The codec of the log's own records (docs/format.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRange:
    """Offsets `[start, stop)` whose records are gone, and why."""

    stream: str
    start: int
    stop: int
    why: str

    def __str__(self) -> str:
        return f"stream {self.stream!r}: offsets [{self.start}, {self.stop}) are lost: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """An entry of the mended stream: with the body that it has, or without one where it is lost.

    `loss` is what the `data_loss` record in its first lost slot tells, where it has one.
    """

    entry: IndexEntry
    body: BodyFacts | None
    loss: tuple[int, int] | None = None


@dataclass(slots=True, kw_only=True)
class Mended:
    """The whole stream, and what became of it.

    `changed` counts entries that are kept otherwise than they stood: their running time, or what
    they say of a transaction that began before them, was wrong.
    """

    pieces: list[Piece] = field(default_factory=list)
    lost: list[LostRange] = field(default_factory=list)
    changed: int = 0
    time_running_max: int = TIME_MIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What is known of a stream beside its entries."""

    name: str
    kind: StreamKind
    start: int
    end: int
    time_running_max: int
    created_us: int


BodyOf = Callable[[IndexEntry], BodyFacts | str]
"""The readable body that an entry names, or why there is none."""


def mend(
    bounds: Bounds, entries: Mapping[int, IndexEntry], damaged: Iterable[int], body_of: BodyOf
) -> Mended:
    """Put a stream together from its readable entries, by first offset.

    `damaged` are the first offsets of those that cannot be read.
    """
    done = Mended()
    gaps_damaged = sorted(damaged)
    at, running = bounds.start, TIME_MIN
    usable = [entry for _, entry in sorted(entries.items()) if _well_formed(entry)]
    for place, entry in enumerate(usable):
        found = body_of(entry)
        if entry.first_offset < at:
            continue
        follower = usable[place + 1] if place + 1 < len(usable) else None
        if isinstance(found, str) and follower and follower.first_offset < entry.stop:
            continue
        if entry.first_offset > at:
            time_us = _time_before(entry, running)
            why = _gap_reason(gaps_damaged, at, entry.first_offset)
            _lose(done, bounds, _filled(at, entry.first_offset, entry, time_us), why)
            running = max(running, time_us)
        if not done.pieces and bounds.start:
            running = entry.time_running_max  # Of records that are not retained any more.
        running = max(running, entry.time_max)
        moved = entry.moved(entry.first_offset, running)
        if isinstance(found, str):
            _lose(done, bounds, [_emptied(moved)], found)
        else:
            done.changed += entry.time_running_max != running
            done.pieces.append(Piece(entry=moved, body=found))
        at = entry.stop
    if at < bounds.end:
        time_us = max(running, bounds.time_running_max)
        time_us = bounds.created_us if time_us == TIME_MIN else time_us
        why = _gap_reason(gaps_damaged, at, bounds.end)
        _lose(done, bounds, _filled(at, bounds.end, None, time_us), why)
        running = max(running, time_us)
    done.time_running_max = running if done.pieces else bounds.time_running_max
    _join_transactions(done)
    if bounds.kind == "captured":
        _tell_losses(done)
    return done


def batch_of_lost(piece: Piece) -> Batch:
    """The batch of a lost piece: records of no bytes, but for what tells of the loss."""
    entry = piece.entry
    assert entry.states is not None
    ends = np.zeros(entry.slots, np.uint32)
    record = b""
    states = entry.states
    if piece.loss is not None:
        slot = int(np.flatnonzero(states == LOST)[0])
        start, stop = piece.loss
        told = {"op": "data_loss", "relation": None, "from": start, "to": stop, "lost_in": "log"}
        record = msgpack.packb(told)
        ends[slot:] = len(record)
        states = states.copy()
        states[slot] = LIVE
    batch = Batch(
        body=encode(CONTROL, ends, record),
        transactions=entry.transactions,
        states=states,
        erasure_epoch=entry.erasure_epoch,
        more=entry.more,
    )
    return batch.compressed()


def _well_formed(entry: IndexEntry) -> bool:
    if not entry.records or not len(entry.transactions):
        return False
    key = index.key(0, entry.first_offset)
    return not any(shape_faults(entry, index.pack(entry, under=key)))


def _gap_reason(damaged: list[int], start: int, stop: int) -> str:
    inside = any(start <= offset < stop for offset in damaged)
    return "their index entry is damaged" if inside else "no index entry is left that covers them"


def _lose(done: Mended, bounds: Bounds, entries: list[IndexEntry], why: str) -> None:
    for entry in entries:
        done.pieces.append(Piece(entry=entry, body=None))
        assert entry.states is not None
        offsets = entry.slot_offsets()[entry.states == LOST]
        if not len(offsets):
            continue
        start, stop = int(offsets[0]), int(offsets[-1]) + 1
        before = done.lost[-1] if done.lost else None
        if before is not None and before.stop == start and before.why == why:
            done.lost[-1] = replace(before, stop=stop)
        else:
            done.lost.append(LostRange(stream=bounds.name, start=start, stop=stop, why=why))


def _emptied(entry: IndexEntry) -> IndexEntry:
    """The entry without its records; its transactions and what was erased before stay."""
    live = np.zeros(entry.slots, np.uint8) if entry.states is None else entry.states
    more = {name: value for name, value in entry.more.items() if name not in (RAW, BODY)}
    states = np.where(live == LIVE, np.uint8(LOST), live)
    return replace(entry, states=states, relations=(), more=more)


def _time_before(following: IndexEntry, running: int) -> int:
    """A time for what is lost before an entry that leaves the running times behind it as they are.

    Where the entry does not bear its running time itself, that was reached before it.
    """
    if following.time_running_max > following.time_max:
        return max(running, following.time_running_max)
    return following.time_min if running == TIME_MIN else running


def _filled(start: int, stop: int, following: IndexEntry | None, time_us: int) -> list[IndexEntry]:
    """Entries for `[start, stop)`, of which nothing is known but what follows."""
    begun = stop if following is None else stop - following.transactions.back
    found = []
    for first in range(start, stop, SLOTS_MAX):
        slots = min(SLOTS_MAX, stop - first)
        before = min(max(begun - first, 0), slots)
        rows = [(0, time_us, 0, 0)] if before else []
        if before < slots:
            assert following is not None
            words = following.transactions
            rows.append((before, int(words.time[0]), int(words.tx[0]), int(words.position[0])))
        places, times, numbers, positions = zip(*rows, strict=True)
        transactions = Transactions(
            first=np.array(places, np.uint32),
            time=np.array(times, np.int64),
            tx=np.array(numbers, np.uint64),
            position=np.array(positions, np.uint64),
            back=0 if before else first - begun,
        )
        entry = IndexEntry(
            first_offset=first,
            payload_id=0,
            payload_checksum=0,
            body_bytes=0,
            slots=slots,
            records=slots,
            time_running_max=time_us,
            relations=(),
            transactions=transactions,
            states=np.full(slots, LOST, np.uint8),
        )
        found.append(entry.moved(first, max(time_us, entry.time_max)))
    return found


def _join_transactions(done: Mended) -> None:
    """Have no entry go on with a transaction that the one before it does not hold."""
    run, words = 0, None
    for place, piece in enumerate(done.pieces):
        entry = piece.entry
        back = entry.transactions.back
        if (
            back
            and (place or not entry.first_offset)
            and (words != _words(entry, 0) or run != back)
        ):
            back = run if words == _words(entry, 0) else 0
            entry = replace(entry, transactions=replace(entry.transactions, back=back))
            done.pieces[place] = replace(piece, entry=entry)
            done.changed += 1
        run, words = entry.last_run, _words(entry, -1)


def _words(entry: IndexEntry, place: int) -> tuple[int, int, int]:
    words = entry.transactions
    return int(words.tx[place]), int(words.position[place]), int(words.time[place])


def _tell_losses(done: Mended) -> None:
    """Have the first lost slot of neighbouring lost pieces tell of them all."""
    first: int | None = None
    start = 0
    for place, piece in enumerate(done.pieces):
        states = piece.entry.states
        if piece.body is not None or states is None or not np.any(states == LOST):
            first = None
            continue
        if first is None:
            first = place
            start = int(piece.entry.slot_offsets()[states == LOST][0])
        told = (start, piece.entry.stop)
        done.pieces[first] = replace(done.pieces[first], loss=told)
