"""Features of the format, and what brings an older log up to them.

::

    heads     streams' rows hold `end`, running time and tail, and count their other rows
    ids       the database `ids`
    inline    entries may hold their bodies themselves
    lost      state 4 of a slot: its record was damaged, and dropped by a repair
    packed    transactions of an entry may be packed
    zstd      bodies may be compressed

All are in `must_know`: a version without them would write rows without heads, or misread bodies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eventlog.engine import rows
from eventlog.engine.rows import TIME_MIN, StreamRow
from eventlog.engine.scan import last_entry
from eventlog.engine.store import Store, Txn

FEATURES = ("heads", "ids", "inline", "lost", "packed", "zstd")

KNOWN = frozenset({*FEATURES, "pins"})
"""With those that a log gets only when it first needs them: `pins` with its first pinned manifest.
"""


def is_current(store: Store) -> bool:
    """Whether a log has all FEATURES. REQUIRES: it has a row of the format."""
    with store.read() as txn:
        found = rows.read_map(store, txn, rows.FORMAT_KEY) or {}
    return set(FEATURES) <= set(found["must_know"])


def upgrade(store: Store) -> None:
    """Bring a log up to FEATURES in one commit; does nothing where it has them all."""
    if is_current(store):
        return
    with store.write() as txn:
        found = rows.read_map(store, txn, rows.FORMAT_KEY) or {}
        missing = set(FEATURES) - set(found["must_know"])
        if "heads" in missing:
            _write_heads(store, txn)
        features = sorted({*found["must_know"], *FEATURES})
        rows.write_map(store, txn, rows.FORMAT_KEY, {**found, "must_know": features})


def _write_heads(store: Store, txn: Txn) -> None:
    # Without heads nothing counted the rows: they are taken as they are found.
    if rows.read_map(store, txn, rows.COUNTERS_KEY) is None:
        rows.write_map(store, txn, rows.COUNTERS_KEY, {})
    for owner in rows.owner_rows(store, txn):
        staged = txn.cursor(db=store.staging)
        rows.write_owner(store, txn, replace(owner, staged=_count(staged, rows.u64(owner.id))))
    for row in rows.stream_rows(store, txn):
        rows.write_stream(store, txn, _with_head(store, txn, row))


def _with_head(store: Store, txn: Txn, row: StreamRow) -> StreamRow:
    last = last_entry(store, txn, row.id)
    prefix = rows.u32(row.id)
    return replace(
        row,
        end=row.start if last is None else last.stop,
        time_running_max=TIME_MIN if last is None else last.time_running_max,
        consumers=_count(txn.cursor(db=store.consumer), prefix),
        schemas=_count(txn.cursor(db=store.schema), prefix),
        sources=int(txn.get(rows.SOURCE_KEYS + row.name.encode(), db=store.meta) is not None),
    )


def _count(cursor: Any, prefix: bytes) -> int:
    found = 0
    positioned = cursor.set_range(prefix)
    while positioned and cursor.key().startswith(prefix):
        found += 1
        positioned = cursor.next()
    return found
