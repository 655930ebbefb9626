"""Events as Arrow: `_offset`, `_time`, `key`, and `value` as JSON text (null: a tombstone)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from eventlog.changes.arrow import times_array
from eventlog.changes.arrow_texts import binary_array
from eventlog.changes.decoding import json_text
from eventlog.changes.event_run import EventRun, StoredEvent
from eventlog.changes.split import Texts
from eventlog.errors import DamagedLog

SCHEMA = pa.schema(
    [
        ("_offset", pa.int64()),
        ("_time", pa.timestamp("us", "UTC")),
        ("key", pa.string()),
        ("value", pa.string()),
    ]
)

_COLUMN_BYTES_MAX = 1 << 30
"""Larger payloads go event by event: an array of texts holds 2 GiB."""


def event_table(events: Iterable[StoredEvent]) -> pa.Table:
    """Decoded events as Arrow: what `run_table` is held to."""
    known = list(events)
    values = [None if e.value is None else json_text(e.value) for e in known]
    columns: list[Any] = [
        pa.array([e.offset for e in known], pa.int64()),
        times_array([e.time_us for e in known]),
        pa.array([e.key for e in known], pa.string()),
        pa.array(values, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def run_table(run: EventRun) -> pa.Table | None:
    """The same of a whole run, by columns; None where its events must be decoded one by one."""
    texts = run.codec.split(run.payload, run.slots)
    if texts.odd.any() or len(run.payload.data) > _COLUMN_BYTES_MAX:
        return None
    try:
        keys, values = text_array(texts.keys), run.codec.json_array(texts.values)
    except DamagedLog:
        return None
    columns = [pa.array(run.offsets, pa.int64()), times_array(run.times), keys, values]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def text_array(texts: Texts) -> pa.Array:
    """Texts as strings. Raises DamagedLog where one is not UTF-8."""
    try:
        return binary_array(texts).cast(pa.string())
    except pa.ArrowInvalid as error:
        raise DamagedLog("a key is not UTF-8") from error


def stacked_events(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of events one behind the other."""
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
