"""Salvage: what a sound log would be, out of what can still be read of a damaged one.

::

    keys                           see `eventlog.engine.upkeep.damaged_keys`
    format, identity, counters     kept, else made anew
    streams                        kept; one whose row is gone is made anew, as numbers are dense
    entries and bodies             see `eventlog.engine.upkeep.mending`
    schema versions                kept, under dense numbers; records under a lost one are lost
    consumers, sources, ids, pins  kept, else dropped and named
    owners and their staging       dropped, as those of the dead always are

Rows of a newer version are never dropped: LogVersionError. Pure: nothing here reads or writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventlog.engine import ids, index, pins, rows
from eventlog.engine.directory import FORMAT_NUMBER
from eventlog.engine.index import IndexEntry
from eventlog.engine.rows import ConsumerRow, StreamRow
from eventlog.engine.sealed import unseal
from eventlog.engine.upgrade import FEATURES, KNOWN
from eventlog.engine.upkeep.damaged_keys import proves_itself, restore_keys
from eventlog.engine.upkeep.findings import BodyFacts, Findings, proven
from eventlog.engine.upkeep.mending import BodyOf, LostRange
from eventlog.engine.upkeep.salvage_stream import SalvagedStream, StreamParts, salvage_stream
from eventlog.errors import DamagedLog, LogVersionError, NotALog

_PAIR = struct.Struct(">II")
_PLACEHOLDER = "recovered"
"""What a stream is called, with its number, whose name is gone."""


@dataclass(slots=True, kw_only=True)
class Salvaged:
    """A sound log, and what of the damaged one is gone or was rebuilt."""

    meta: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    streams: list[SalvagedStream] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)

    @property
    def lost(self) -> list[LostRange]:
        return [gone for stream in self.streams for gone in stream.lost]


def sound_log(found: Findings, *, new_id: bytes, now_us: int) -> Salvaged:
    """Decide what the repaired log is; `new_id` is its identity where its own is gone.

    Raises NotALog where nothing of a log is left, LogVersionError where a newer version wrote it.
    """
    if not found.bodies and not any(found.values.values()):
        raise NotALog(
            "this data.mdb holds nothing of an event log, or nothing is left of it",
            hint="name the directory of a log, or restore it from a copy",
        )
    done = Salvaged()
    done.rebuilt += restore_keys(found.values, found.doubles)
    if found.state_doubtful:
        done.dropped.append("the last commit, perhaps: what leads to one of two states is damaged")
    for name in found.unknown:
        done.dropped.append(f"database {name!r}, which this version does not know")
    meta, damaged = _unsealed(found.values["meta"])
    counted = _format(done, meta)
    _identity(done, meta, new_id, now_us)
    counters = meta.get(rows.COUNTERS_KEY)
    if counters is None and (counted or any(map(_is_stream, meta))):
        # The first version wrote none before there was a stream.
        done.rebuilt.append("the counters")
    streams = _streams(done, found, meta, damaged, counters, counted=counted, now_us=now_us)
    _share_out(done, found, meta, damaged, streams)
    body_of = _bodies(found)
    for number in sorted(streams):
        stream = salvage_stream(streams[number], body_of)
        done.streams.append(stream)
        done.dropped += stream.dropped
        done.rebuilt += stream.rebuilt
    kept = _pins(done, meta, damaged, counters)
    owners = [m.get("id", 0) for k, m in meta.items() if k.startswith(rows.OWNER_KEYS)]
    done.meta[rows.COUNTERS_KEY] = {
        **(counters or {}),
        "stream": max([0, *streams]) + 1,
        "owner": max([(counters or {}).get("owner", 1), *[number + 1 for number in owners]]),
        **({pins.COUNT: kept} if kept or pins.count_in(counters or {}) else {}),
    }
    return done


def _pins(
    done: Salvaged,
    meta: Mapping[bytes, Mapping[str, Any]],
    damaged: Sequence[bytes],
    counters: Mapping[str, Any] | None,
) -> int:
    """Keep the pins that can be read; returns how many."""
    ends = {stream.row.name: stream.row.end for stream in done.streams}
    kept, gone = pins.salvaged(meta, damaged, ends, counted=pins.count_in(counters or {}))
    done.meta |= kept
    done.dropped += gone
    known = done.meta[rows.FORMAT_KEY]
    if kept and pins.FEATURE not in known["must_know"]:
        known["must_know"] = sorted({*known["must_know"], pins.FEATURE})
    return len(kept)


def _unsealed(stored: Mapping[bytes, bytes]) -> tuple[dict[bytes, dict[str, Any]], list[bytes]]:
    """The maps that can be read, and the keys of the others."""
    found: dict[bytes, dict[str, Any]] = {}
    damaged = []
    for key, value in stored.items():
        try:
            found[key] = unseal(key, value)
        except DamagedLog:
            damaged.append(key)
    return found, damaged


def _format(done: Salvaged, meta: Mapping[bytes, Mapping[str, Any]]) -> bool:
    """Decide the row of the format; returns whether streams' rows have heads."""
    found = meta.get(rows.FORMAT_KEY)
    if found is None:
        done.rebuilt.append("the row of the format")
        found = {"number": FORMAT_NUMBER, "must_know": [], "may_ignore": []}
        counted = any("end" in m for k, m in meta.items() if k.startswith(rows.STREAM_KEYS))
    else:
        counted = "heads" in found["must_know"]
    unknown = set(found["must_know"]) - KNOWN
    if found["number"] != FORMAT_NUMBER or unknown:
        raise LogVersionError(
            f"a newer version wrote this log: its format is number {found['number']}, with "
            f"{', '.join(sorted(unknown)) or 'no features'} that this version does not know",
            hint="repair it with that version of eventlog-cdc",
        )
    features = sorted({*found["must_know"], *FEATURES})
    done.meta[rows.FORMAT_KEY] = {**found, "must_know": features}
    return counted


def _identity(
    done: Salvaged, meta: Mapping[bytes, Mapping[str, Any]], new_id: bytes, now_us: int
) -> None:
    found = meta.get(rows.LOG_KEY)
    if found is None or len(found.get("id", b"")) != 16 or found.get("generation", 0) < 1:
        done.dropped.append("the identity of the log: it has a new one, of generation 1")
        found = {"id": new_id, "created_us": now_us, "generation": 1, "covers": {}}
    done.meta[rows.LOG_KEY] = dict(found)


def _streams(
    done: Salvaged,
    found: Findings,
    meta: Mapping[bytes, dict[str, Any]],
    damaged: Iterable[bytes],
    counters: Mapping[str, Any] | None,
    *,
    counted: bool,
    now_us: int,
) -> dict[int, StreamParts]:
    """All streams that there ever were, by number; those without a row are made anew."""
    streams: dict[int, StreamParts] = {}
    nameless = [_text(k.removeprefix(rows.STREAM_KEYS)) for k in damaged if _is_stream(k)]
    for key, stored in meta.items():
        if not _is_stream(key):
            continue
        row: StreamRow | None = _loaded(StreamRow, stored)
        own_key = row is not None and rows.STREAM_KEYS + row.name.encode() == key
        if row is not None and own_key and row.id not in streams:
            streams[row.id] = StreamParts(row=row, counted=counted)
        else:
            nameless.append(_text(key.removeprefix(rows.STREAM_KEYS)))
    top = max([0, *streams])
    if counters is not None:
        top = max(top, int(counters.get("stream", 1)) - 1)
    else:
        top = max(top, *_numbers_seen(found), 0)
    missing = [number for number in range(1, top + 1) if number not in streams]
    taken = {parts.row.name for parts in streams.values()}
    for number in missing:
        former = sorted(f for f in found.former if f.id == number and f.name not in taken)
        known = len({(f.name, f.kind) for f in former}) == 1
        if known:
            row = StreamRow(**former[0]._asdict())
        else:
            sure = len(missing) == 1 and len(nameless) == 1
            name = nameless[0] if sure else f"{_PLACEHOLDER}-{number}"
            if sure:
                done.dropped.append(f"the row of stream {name!r}, whose name may be wrong")
            row = StreamRow(id=number, name=name, kind="events", created_us=now_us)
        taken.add(row.name)
        nameless = [name for name in nameless if name != row.name]
        streams[number] = StreamParts(row=row, made_anew=True, kind_known=known)
    done.dropped += [
        f"the name of stream {name!r}: its row is damaged, and does not tell which one it was"
        for name in nameless
    ]
    return streams


def _numbers_seen(found: Findings) -> Iterable[int]:
    """Numbers of streams that entries, schema versions and consumers stand under."""
    seen = {0}
    for name in ("index", "schema", "consumer"):
        for key, value in found.values[name].items():
            if len(key) > 4 and proves_itself(name, key, value):
                seen.add(int.from_bytes(key[:4], "big"))
    return seen


def _share_out(
    done: Salvaged,
    found: Findings,
    meta: Mapping[bytes, dict[str, Any]],
    damaged: Iterable[bytes],
    streams: Mapping[int, StreamParts],
) -> None:
    """Give each stream what belongs to it."""
    homeless: dict[str, int] = {}

    def home(key: bytes, kind: str) -> StreamParts | None:
        parts = streams.get(int.from_bytes(key[:4], "big"))
        if parts is None:
            homeless[kind] = homeless.get(kind, 0) + 1
        return parts

    for key, value in found.values["index"].items():
        if len(key) == 12 and (parts := home(key, "entries")):
            _take_entry(parts, key, value)
    schemas, bad_schemas = _unsealed(found.values["schema"])
    for key in (*schemas, *bad_schemas):
        if len(key) == _PAIR.size and (parts := home(key, "schema versions")):
            number = _PAIR.unpack(key)[1]
            if isinstance(schemas.get(key, {}).get("offset"), int):
                parts.schemas[number] = schemas[key]
            else:
                parts.damaged_schemas.add(number)
    consumers, bad_consumers = _unsealed(found.values["consumer"])
    for key in (*consumers, *bad_consumers):
        if len(key) > 4 and (parts := home(key, "consumers")):
            consumer = _loaded(ConsumerRow, consumers.get(key, {}))
            if consumer is None:
                parts.damaged_consumers.append(_text(key[4:]))
            else:
                parts.consumers[_text(key[4:])] = consumer
    by_name = {parts.row.name: parts for parts in streams.values()}
    for key in (*meta, *damaged):
        if key.startswith(rows.SOURCE_KEYS):
            _take_source(done, by_name, _text(key.removeprefix(rows.SOURCE_KEYS)), meta.get(key))
    for key, value in found.values["ids"].items():
        if (known := ids.stored_id(key, value)) and (parts := home(key, "ids")):
            digest, offset, sequence = known
            parts.ids[sequence] = digest, offset
    for kind, count in homeless.items():
        done.dropped.append(f"{kind} of streams that were never made: {count}")


def _take_entry(parts: StreamParts, key: bytes, value: bytes) -> None:
    _, first_offset = index.split_key(key)
    try:
        parts.entries[first_offset] = index.unpack(first_offset, value, under=key)
    except DamagedLog:
        parts.damaged_entries.append(first_offset)


def _take_source(
    done: Salvaged,
    by_name: Mapping[str, StreamParts],
    name: str,
    stored: Mapping[str, Any] | None,
) -> None:
    parts = by_name.get(name)
    if parts is None:
        doubt = " (its row is damaged: the name may be wrong)" if stored is None else ""
        what = f"the state of the source {name!r}, whose stream is not there"
        done.dropped.append(f"{what}{doubt}")
    elif stored is None or not isinstance(stored.get("position", 0), int):
        parts.damaged_source = True
    else:
        parts.source = stored


def _bodies(found: Findings) -> BodyOf:
    anywhere = {(facts.checksum, facts.size): facts for facts in found.bodies.values()}

    def body_of(entry: IndexEntry) -> BodyFacts | str:
        if entry.body is not None:
            facts, why = proven(entry.body, ())
            if facts is None:
                return f"their payload is damaged: {why}"
            if (facts.checksum, facts.count) != (entry.payload_checksum, entry.slots):
                return "the payload in their index entry is another one"
            return facts
        wanted = entry.payload_checksum, entry.body_bytes
        facts = found.bodies.get(entry.payload_id)
        if facts is None or (facts.checksum, facts.size) != wanted:
            facts = anywhere.get(wanted) or found.strays.get(wanted)
        if facts is not None and facts.count == entry.slots:
            return facts
        if entry.payload_id in found.unusable:
            return f"their payload is damaged: {found.unusable[entry.payload_id]}"
        if entry.payload_id in found.bodies:
            return "the payload under their number is another one"
        return "their payload is gone"

    return body_of


def _loaded(cls: Any, stored: Mapping[str, Any]) -> Any:
    """The row of a map; None where names are missing."""
    try:
        return rows.load_row(cls, stored)
    except TypeError:
        return None


def _is_stream(key: bytes) -> bool:
    return key.startswith(rows.STREAM_KEYS)


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "backslashreplace")
