"""What can still be read of a damaged data file: small values whole, bodies by what they state.

Every value proves itself (a checksum over its key and its bytes), so it does not matter on which
page it was found. What no walk reached is looked at in two ways:

- a body counts wherever it lies, if an entry names its checksum and its length
- any other value counts only on a page that is certain to be of the newest state (see `walker`):
  an older version of a row proves itself just as well
- of an older version of a stream's row only what never changes counts: its number, name and kind
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from eventlog.engine import ids, payload, pins, rows
from eventlog.engine.rows import Compression, StreamKind, StreamRow
from eventlog.engine.sealed import unseal
from eventlog.engine.store import DATABASES
from eventlog.engine.upkeep.pages import METAS, BadPage
from eventlog.engine.upkeep.walker import Stored, Walker
from eventlog.errors import DamagedLog

Progress = Callable[[int, int], None]

_PART_KEY = struct.Struct(">QI")
_STORED_AT = 24
_SMALL = tuple(name for name in DATABASES if name not in ("payload", "staging"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyFacts:
    """A body that proved itself: what it states, and where its parts lie in the file."""

    checksum: int
    size: int
    count: int
    codec: int
    compression: int
    parts: tuple[Stored, ...]


class FormerStream(NamedTuple):
    """What never changes of a stream's row."""

    id: int
    name: str
    kind: StreamKind
    created_us: int
    compression: Compression


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was found.

    `values` are keys and values by database, `doubles` further values under keys that have one,
    `bodies` those by payload number, `unusable` why others are none. `strays` are bodies by
    checksum and length that no number leads to, `former` is what older rows tell of streams,
    `unknown` names databases of other versions. `state_doubtful`: one of the two states that a file
    has is gone, and may be the newer one.
    """

    values: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    doubles: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    bodies: dict[int, BodyFacts] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)
    strays: dict[tuple[int, int], BodyFacts] = field(default_factory=dict)
    former: set[FormerStream] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    state_doubtful: bool = False


def gather(walker: Walker, *, progress: Progress | None = None) -> Findings:
    """Read the whole file once; `progress` is told of bytes of bodies."""
    found = Findings(
        values={name: {} for name in _SMALL},
        state_doubtful=len(walker.file.metas) < METAS or walker.meta != walker.file.metas[0],
    )
    parts: dict[int, dict[int, Stored]] = {}
    for name in walker.databases:
        if name in _SMALL:
            for stored in walker.items(name):
                _take(walker, found, name, stored)
        elif name == "payload":
            for stored in walker.items(name):
                _take_part(parts, stored)
        else:
            for _ in walker.items(name):
                pass  # What its pages hold is no stray.
            if name != "staging":
                found.unknown.append(name)
    if walker.faults:
        _gather_strays(walker, found, parts)
    if walker.faults or not all(database_of(*pair) for pair in found.values["meta"].items()):
        _gather_former(walker, found)
    _prove(walker, found, parts, progress)
    return found


def database_of(key: bytes, value: bytes) -> str | None:
    """The database that a value of this form belongs to; None where it proves nothing."""
    if value[:4] == b"EVLI":
        return "index" if len(key) == 12 else None
    if ids.is_row(key, value):
        return "ids"
    try:
        found = unseal(key, value)
    except DamagedLog:
        return None
    prefixes = (rows.STREAM_KEYS, rows.SOURCE_KEYS, rows.OWNER_KEYS, pins.PIN_KEYS)
    if key in (rows.FORMAT_KEY, rows.LOG_KEY, rows.COUNTERS_KEY) or key.startswith(prefixes):
        return "meta"
    return "consumer" if {"offset", "epoch"} <= found.keys() else "schema"


def _take(walker: Walker, found: Findings, name: str, stored: Stored) -> None:
    try:
        value = walker.value(stored)
    except BadPage:
        value = b""
    if stored.key in found.values[name]:
        found.doubles.append((name, stored.key, value))
    else:
        found.values[name][stored.key] = value


def _take_part(parts: dict[int, dict[int, Stored]], stored: Stored) -> None:
    if len(stored.key) == _PART_KEY.size:
        payload_id, part = _PART_KEY.unpack(stored.key)
        parts.setdefault(payload_id, {}).setdefault(part, stored)


def _gather_strays(walker: Walker, found: Findings, parts: dict[int, dict[int, Stored]]) -> None:
    runs: list[int] = []
    leaves: list[Stored] = []
    for number, is_run in walker.strays():
        if is_run:
            runs.append(number)
        else:
            leaves += walker.leaf(number)
    for stored in leaves:
        try:
            value = walker.value(stored)
        except BadPage:
            continue
        name = database_of(stored.key, value)
        if name is not None and walker.free_known:
            found.values[name].setdefault(stored.key, value)
        elif name is None:
            _take_part(parts, stored)
            _take_stray(found, stored, value)
    for number in runs:
        run = _run(walker, number)
        if run is not None:
            _take_stray(found, run, walker.value(run))


def _gather_former(walker: Walker, found: Findings) -> None:
    for number, is_run in walker.strays(free_too=True):
        for stored in [] if is_run else walker.leaf(number):
            if not stored.key.startswith(rows.STREAM_KEYS):
                continue
            try:
                row = rows.load_row(StreamRow, unseal(stored.key, walker.value(stored)))
            except (BadPage, DamagedLog):
                continue
            if stored.key == rows.STREAM_KEYS + row.name.encode():
                former = FormerStream(row.id, row.name, row.kind, row.created_us, row.compression)
                found.former.add(former)


def _run(walker: Walker, number: int) -> Stored | None:
    # A body of one part in pages of its own, whose leaf page is gone.
    at = number * walker.file.page_bytes + 16
    try:
        head = walker.file.bytes_at(at, payload.HEADER_BYTES)
        size = payload.HEADER_BYTES + struct.unpack_from("<Q", head, _STORED_AT)[0]
        if head[:4] != b"EVLB" or size > payload.PART_BYTES:
            return None
        walker.file.bytes_at(at, size)
    except BadPage:
        return None
    return Stored(b"", at, size)


def _take_stray(found: Findings, stored: Stored, value: bytes) -> None:
    facts, _ = proven(value, (stored,))
    if facts is not None:
        found.strays.setdefault((facts.checksum, facts.size), facts)


def _prove(
    walker: Walker,
    found: Findings,
    parts: dict[int, dict[int, Stored]],
    progress: Progress | None,
) -> None:
    total = sum(stored.size for places in parts.values() for stored in places.values())
    done = 0
    for payload_id in sorted(parts):
        places = tuple(stored for _, stored in _dense(parts[payload_id]))
        try:
            facts, why = proven(b"".join(map(walker.value, places)), places)
        except BadPage as error:
            facts, why = None, f"{error}"
        if facts is None:
            found.unusable[payload_id] = why
        else:
            found.bodies[payload_id] = facts
        done += sum(stored.size for stored in parts[payload_id].values())
        if progress is not None:
            progress(done, total)


def _dense(places: dict[int, Stored]) -> Iterator[tuple[int, Stored]]:
    for number in range(len(places)):
        if number not in places:
            return
        yield number, places[number]


def proven(data: bytes, parts: tuple[Stored, ...]) -> tuple[BodyFacts | None, str]:
    """What a body states, if it proves itself; else why not."""
    if len(data) < payload.HEADER_BYTES:
        return None, "it is cut short"
    stored, checksum = struct.unpack_from("<QQ", data, _STORED_AT)
    size = payload.HEADER_BYTES + stored
    if len(data) < size:
        return None, "it is cut short"
    body = data[:size]
    try:
        read = payload.decode(body, where="it")
    except DamagedLog as error:
        return None, str(error).removeprefix("it is damaged: ")
    if np.any(read.ends[1:] < read.ends[:-1]):
        return None, "its record boundaries do not ascend"
    facts = BodyFacts(
        checksum=checksum,
        size=size,
        count=len(read.ends),
        codec=read.codec,
        compression=body[5],
        parts=parts[: payload.part_count(size)],
    )
    return facts, ""
