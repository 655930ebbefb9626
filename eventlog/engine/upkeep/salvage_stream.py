"""One stream of a damaged log, salvaged: its row, what belongs to it, and its entries."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eventlog.engine.index import IndexEntry
from eventlog.engine.rows import TIME_MIN, ConsumerRow, StreamRow
from eventlog.engine.upkeep.findings import BodyFacts
from eventlog.engine.upkeep.mending import BodyOf, Bounds, LostRange, Piece, mend

_EVENTS_CODEC = 2
_HEAD = ("start", "end", "time_running_max", "consumers", "schemas", "sources")

Ids = dict[int, tuple[bytes, int]]
"""By sequence number: an id's digest, and the offset of its record."""


@dataclass(slots=True, kw_only=True)
class StreamParts:
    """What was found of one stream; `counted` tells that its row states its end and its counts.

    `made_anew`: its row is gone; `kind_known`: an older one told its name and kind.
    """

    row: StreamRow
    counted: bool = False
    made_anew: bool = False
    kind_known: bool = False
    entries: dict[int, IndexEntry] = field(default_factory=dict)
    damaged_entries: list[int] = field(default_factory=list)
    schemas: dict[int, dict[str, Any]] = field(default_factory=dict)
    damaged_schemas: set[int] = field(default_factory=set)
    consumers: dict[str, ConsumerRow] = field(default_factory=dict)
    damaged_consumers: list[str] = field(default_factory=list)
    source: Mapping[str, Any] | None = None
    damaged_source: bool = False
    ids: Ids = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class SalvagedStream:
    """A sound stream, and what of it is gone or was rebuilt."""

    row: StreamRow
    pieces: list[Piece]
    schemas: list[dict[str, Any]]
    consumers: dict[str, ConsumerRow]
    source: Mapping[str, Any] | None
    ids: list[tuple[bytes, int]]
    lost: list[LostRange]
    dropped: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)


def salvage_stream(parts: StreamParts, body_of: BodyOf) -> SalvagedStream:
    """Make one stream sound again."""
    row = parts.row if parts.counted else _with_bounds(parts, body_of)
    numbers, lost_schemas = _schema_numbers(parts, row)

    def checked_body(entry: IndexEntry) -> BodyFacts | str:
        why = _schema_fault(entry, parts.schemas, numbers)
        return body_of(entry) if why is None else why

    bounds = Bounds(
        name=row.name,
        kind=row.kind,
        start=row.start,
        end=row.end,
        time_running_max=row.time_running_max,
        created_us=row.created_us,
    )
    mended = mend(bounds, parts.entries, parts.damaged_entries, checked_body)
    pieces = [_renumbered(piece, numbers) for piece in mended.pieces]
    end = pieces[-1].entry.stop if pieces else row.start
    schemas = _schemas(parts.schemas, numbers, pieces, end)
    consumers = {name: _within(found, end) for name, found in parts.consumers.items()}
    source = _covering(parts.source, pieces)
    known = _ids(parts.ids, mended.lost, end)
    done = SalvagedStream(
        row=replace(
            row,
            ids=len(known),
            end=end,
            time_running_max=mended.time_running_max if end else TIME_MIN,
            tail=(),
            consumers=len(consumers),
            schemas=len(schemas),
            sources=0 if source is None else max(row.sources, 1),
        ),
        pieces=pieces,
        schemas=schemas,
        consumers=consumers,
        source=source,
        ids=known,
        lost=mended.lost,
    )
    _tell_dropped(done, parts, lost_schemas)
    _tell_rebuilt(done, parts, mended.changed)
    return done


def _with_bounds(parts: StreamParts, body_of: BodyOf) -> StreamRow:
    """The row with the start, the end and the kind that everything else of the stream tells."""
    row, entries = parts.row, parts.entries
    if not parts.made_anew:
        # A row of an older version: it states its start.
        stops = [entry.stop for entry in entries.values()]
        last = max(entries, default=None)
        time_max = TIME_MIN if last is None else entries[last].time_running_max
        return replace(row, end=max([row.start, *stops]), time_running_max=time_max)
    if not parts.kind_known:
        row = _with_kind(parts, body_of)
    known = [entry.stop for entry in entries.values()]
    known += [consumer.offset for consumer in parts.consumers.values()]
    known += [schema["offset"] for schema in parts.schemas.values()]
    known += [offset + 1 for _, offset in parts.ids.values()]
    # Nothing of a captured stream is ever dropped from below.
    first = 0 if row.kind == "captured" else min(entries, default=max(known, default=0))
    return replace(row, start=first, end=max(known, default=0))


def _with_kind(parts: StreamParts, body_of: BodyOf) -> StreamRow:
    """The row with the kind that its records have."""
    entries = parts.entries.values()
    bodies = [found for entry in entries if not isinstance(found := body_of(entry), str)]
    captured = parts.schemas or parts.source or any(b.codec != _EVENTS_CODEC for b in bodies)
    return replace(
        parts.row,
        kind="captured" if captured else "events",
        compression="zstd" if any(body.compression for body in bodies) else "none",
        created_us=min([entry.time_min for entry in entries], default=parts.row.created_us),
    )


def _schema_numbers(parts: StreamParts, row: StreamRow) -> tuple[dict[int, int], list[int]]:
    """New numbers, dense, of the schema versions that are left, and which ones are gone."""
    named = {number for entry in parts.entries.values() for _, number in entry.relations}
    count = row.schemas if parts.counted else max({*parts.schemas, *named}, default=-1) + 1
    kept = [number for number in range(count) if number in parts.schemas]
    gone = [number for number in range(count) if number not in parts.schemas]
    return {number: place for place, number in enumerate(kept)}, gone


def _schema_fault(
    entry: IndexEntry, schemas: Mapping[int, Mapping[str, Any]], numbers: Mapping[int, int]
) -> str | None:
    for relation, number in entry.relations:
        if number not in numbers:
            return f"schema version {number}, under which they were written, is gone"
        if schemas[number].get("relation", relation) != relation:
            return f"schema version {number}, under which they were written, is of another table"
    if len({relation for relation, _ in entry.relations}) != len(entry.relations):
        return "their index entry names a table twice"
    return None


def _renumbered(piece: Piece, numbers: Mapping[int, int]) -> Piece:
    pairs = tuple((relation, numbers[schema]) for relation, schema in piece.entry.relations)
    if pairs == piece.entry.relations:
        return piece
    return replace(piece, entry=replace(piece.entry, relations=pairs))


def _schemas(
    stored: Mapping[int, dict[str, Any]], numbers: Mapping[int, int], pieces: list[Piece], end: int
) -> list[dict[str, Any]]:
    """The versions in order; none of them is younger than the records under it."""
    limits = [end] * len(numbers)
    for piece in reversed(pieces):
        for _, place in piece.entry.relations:
            limits[place] = piece.entry.first_offset
    result: list[dict[str, Any]] = []
    limit = end
    for number, place in reversed(list(numbers.items())):
        limit = max(min(limit, limits[place], stored[number]["offset"]), 0)
        result.append({**stored[number], "offset": limit})
    return result[::-1]


def _within(row: ConsumerRow, end: int) -> ConsumerRow:
    return replace(row, offset=min(max(row.offset, 0), end), epoch=max(row.epoch, 1))


def _covering(source: Mapping[str, Any] | None, pieces: list[Piece]) -> Mapping[str, Any] | None:
    """The source's state; all that is in the stream is covered by its position."""
    if source is None or not pieces:
        return source
    covered = max(pieces[-1].entry.transactions.position.tolist())
    return {**source, "position": covered} if source.get("position", 0) < covered else source


def _ids(found: Ids, lost: list[LostRange], end: int) -> list[tuple[bytes, int]]:
    """The ids whose records are there: who appends one that is lost again, stores it again."""
    starts = [gone.start for gone in lost]

    def is_there(offset: int) -> bool:
        place = bisect_right(starts, offset) - 1
        return offset < end and (place < 0 or offset >= lost[place].stop)

    return [pair for _, pair in sorted(found.items()) if is_there(pair[1])]


def _tell_dropped(done: SalvagedStream, parts: StreamParts, lost_schemas: list[int]) -> None:
    name = f"stream {done.row.name!r}"
    for consumer in sorted(parts.damaged_consumers):
        what = f"consumer {consumer!r} of {name}: its row is damaged, its name may be wrong"
        done.dropped.append(what)
    vanished = parts.row.consumers - len(parts.consumers) - len(parts.damaged_consumers)
    if vanished > 0:
        done.dropped.append(f"{vanished} of the consumers of {name}, whose names are gone too")
    for number in lost_schemas:
        damaged = number in parts.damaged_schemas
        why = "its row is damaged" if damaged else "its row is gone"
        done.dropped.append(f"schema version {number} of {name}: {why}")
    fed = parts.row.sources or (parts.made_anew and done.row.kind == "captured")
    if parts.damaged_source or (fed and parts.source is None):
        done.dropped.append(
            f"the state of the source of {name}: capture it anew, under another name"
        )
    dropped_ids = len(parts.ids) - len(done.ids)
    if parts.ids:
        dropped_ids += max(parts.ids) + 1 - min(parts.ids) - len(parts.ids)
    if dropped_ids:
        what = f"{dropped_ids} of the ids of {name}: an append under one of them is stored again"
        done.dropped.append(what)


def _tell_rebuilt(done: SalvagedStream, parts: StreamParts, changed: int) -> None:
    name = f"stream {done.row.name!r}"
    before, after = parts.row, done.row
    if parts.made_anew:
        done.rebuilt.append(f"the row of {name}, as a stream of {after.kind}")
    elif parts.counted and any(getattr(before, n) != getattr(after, n) for n in _HEAD):
        done.rebuilt.append(f"the head of {name}")
    if changed:
        done.rebuilt.append(f"running times or transaction bounds of {changed} entries of {name}")
    moved = [n for n, row in parts.consumers.items() if done.consumers[n] != row]
    if moved:
        done.rebuilt.append(f"offset or epoch of the consumers {', '.join(moved)} of {name}")
    if parts.source is not None and done.source != parts.source:
        done.rebuilt.append(f"the position of the source of {name}")
