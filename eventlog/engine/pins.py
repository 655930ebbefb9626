"""Pins: manifests that the log has been told of, so that retention keeps what they need.

Keys in `meta`: `pin/` + id, of 16 hexadecimal digits; the counters count them. A pin says which
offsets `[start, stop)` of which streams its manifest is made of, and holds the manifest itself. The
first one brings the feature `pins` to the format: a version that does not know of pins must not
drop what they hold.

They are rows of `meta`, as a database of their own would not be seen by a process that opened the
log before it was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventlog.engine import rows
from eventlog.engine.commit import require_stream
from eventlog.engine.rows import StreamRow
from eventlog.engine.scan import dropped
from eventlog.engine.store import Store, Txn
from eventlog.errors import OffsetOutOfRange, UsageError

FEATURE = "pins"
PINS_MAX = 1_000
"""Each retention reads them all."""

MANIFEST_BYTES_MAX = 4 << 20
"""It lies in one row, and so in one commit."""

PIN_KEYS = b"pin/"
COUNT = "pins"
"""What the counters call the number of pins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinRow:
    """A pinned manifest: `ranges` are [first offset, stop] by stream, `digest` the manifest's own.

    `name` is what people call it: the file that it was written to.
    """

    id: str
    name: str
    digest: str
    created_us: int
    ranges: Mapping[str, Sequence[int]]
    manifest: bytes
    more: Mapping[str, Any] = field(default_factory=dict)


def put(store: Store, row: PinRow) -> None:
    """Store a pin, or store it again, in one commit.

    Raises OffsetsDropped where retention was faster, OffsetOutOfRange where the stream has not got
    so far, UsageError where there are PINS_MAX of them, or the manifest is too long.
    """
    if len(row.manifest) > MANIFEST_BYTES_MAX:
        raise UsageError(
            f"a manifest of {len(row.manifest):,} bytes cannot be pinned",
            hint=f"name fewer tables: the log keeps up to {MANIFEST_BYTES_MAX:,} bytes",
        )
    with store.write() as txn:
        for name, (start, stop) in row.ranges.items():
            stream = require_stream(store, txn, name)
            if start < stream.start:
                raise dropped(name, start, stream.start)
            if stop > stream.end:
                raise OffsetOutOfRange(f"stream {name!r} ends at {stream.end}, below {stop}")
        known = pin_rows(store, txn)
        if row.id not in {pin.id for pin in known}:
            if len(known) >= PINS_MAX:
                raise UsageError(
                    f"the log has {len(known):,} pins, and keeps no more",
                    hint="drop one that is not needed: eventlog snapshot pins --drop ID",
                )
            _count(store, txn, len(known) + 1)
        rows.write_map(store, txn, PIN_KEYS + row.id.encode(), rows.stored_map(row))
        _bring_feature(store, txn)


def drop(store: Store, pin_id: str) -> PinRow:
    """Take a pin away. Raises UsageError where there is none of that id."""
    with store.write() as txn:
        known = {row.id: row for row in pin_rows(store, txn)}
        if pin_id not in known:
            raise UsageError(
                f"the log has no pin {pin_id!r}",
                hint=f"it has {', '.join(known)}" if known else "it has none",
            )
        txn.delete(PIN_KEYS + pin_id.encode(), db=store.meta)
        _count(store, txn, len(known) - 1)
    return known[pin_id]


def pins(store: Store) -> list[PinRow]:
    """All pins, the oldest first. Raises DamagedLog."""
    with store.read() as txn:
        return sorted(pin_rows(store, txn), key=lambda row: (row.created_us, row.id))


def pin_rows(store: Store, txn: Txn) -> list[PinRow]:
    """All pins by id. Raises DamagedLog where one is damaged, or gone."""
    found = [rows.load_row(PinRow, stored) for _, stored in rows.meta_maps(store, txn, PIN_KEYS)]
    counted = count_in(rows.counters(store, txn))
    if len(found) != counted:
        raise rows.vanished(f"{counted} manifests are pinned, and {len(found)} pins are there")
    return found


def holding(found: Sequence[PinRow], stream: StreamRow, limit: int) -> list[tuple[str, int]]:
    """The pins that need offsets of a stream below `limit`: their ids, and from where on.

    What was dropped already, by force, holds nothing.
    """
    held = []
    for row in found:
        start, stop = row.ranges.get(stream.name, (0, 0))
        start = max(start, stream.start)
        if start < min(stop, limit):
            held.append((row.id, start))
    return held


def damages(meta: Mapping[bytes, Mapping[str, Any]], ends: Mapping[str, int]) -> Iterator[str]:
    """What the integrity check finds wrong with the pins among the rows of `meta`.

    `ends` are the ends of streams by name.
    """
    found = 0
    for key, stored in meta.items():
        if not key.startswith(PIN_KEYS):
            continue
        found += 1
        what = fault(key, stored)
        if what is not None:
            yield f"row {key!r}: {what}"
            continue
        for name in _beyond(stored, ends):
            yield f"row {key!r}: it needs offsets of stream {name!r} that are not there"
    counters = meta.get(rows.COUNTERS_KEY)
    if counters is not None and count_in(counters) != found:
        yield f"{count_in(counters)} were stored, and {found} can be read"
    if found and FEATURE not in meta.get(rows.FORMAT_KEY, {}).get("must_know", (FEATURE,)):
        yield f"there are {found}, and the format does not name the feature"


def fault(key: bytes, stored: Mapping[str, Any]) -> str | None:
    """Why a map is no pin of that key; None for one that is."""
    ranges, pin_id = stored.get("ranges"), stored.get("id")
    if not isinstance(pin_id, str) or PIN_KEYS + pin_id.encode() != key:
        return "it names another pin"
    texts = all(isinstance(stored.get(name), str) for name in ("name", "digest"))
    if not texts or not isinstance(stored.get("manifest"), bytes):
        return "it has no manifest"
    if not isinstance(stored.get("created_us"), int) or not isinstance(ranges, dict):
        return "it has no ranges"
    for pair in ranges.values():
        numbers = isinstance(pair, list) and [type(number) for number in pair] == [int, int]
        if not numbers or not 0 <= pair[0] <= pair[1]:
            return f"{pair!r} is no range"
    return None


def salvaged(
    meta: Mapping[bytes, Mapping[str, Any]],
    damaged: Sequence[bytes],
    ends: Mapping[str, int],
    *,
    counted: int,
) -> tuple[dict[bytes, dict[str, Any]], list[str]]:
    """The pins that a repair keeps, with the keys of their rows, and words for the others.

    `ends` are the ends of the repaired streams by name, `counted` is how many there were.
    """
    kept, gone = {}, []
    for key in (*meta, *damaged):
        if not key.startswith(PIN_KEYS):
            continue
        stored = meta.get(key, {})
        if fault(key, stored) is None and not list(_beyond(stored, ends)):
            kept[key] = dict(stored)
        else:
            name = key.removeprefix(PIN_KEYS).decode("utf-8", "backslashreplace")
            gone.append(f"pin {name}: what it needs may be dropped, until it is pinned again")
    missing = counted - len(kept) - len(gone)
    if missing > 0:
        gone.append(f"pins that are gone: {missing}")
    return kept, gone


def count_in(counters: Mapping[str, Any]) -> int:
    """How many pins the row of the counters tells of."""
    return int(counters.get(COUNT, 0))


def _beyond(stored: Mapping[str, Any], ends: Mapping[str, int]) -> Iterator[str]:
    """The streams of which a pin needs offsets that they have not got to."""
    return (name for name, (_, stop) in stored["ranges"].items() if stop > ends.get(name, -1))


def _count(store: Store, txn: Txn, count: int) -> None:
    rows.write_map(store, txn, rows.COUNTERS_KEY, {**rows.counters(store, txn), COUNT: count})


def _bring_feature(store: Store, txn: Txn) -> None:
    found = rows.read_map(store, txn, rows.FORMAT_KEY) or {}
    if FEATURE not in found["must_know"]:
        features = sorted({*found["must_know"], FEATURE})
        rows.write_map(store, txn, rows.FORMAT_KEY, {**found, "must_know": features})
