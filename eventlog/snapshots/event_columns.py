"""Stored events as Arrow columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from eventlog.changes.arrow import times_array
from eventlog.changes.codec import codec
from eventlog.changes.event_arrow import SCHEMA, text_array
from eventlog.changes.event_view import damaged_record
from eventlog.changes.gathering import gathered
from eventlog.changes.split import Texts
from eventlog.errors import DamagedLog
from eventlog.snapshots.state.event_steps import KEY, TIME, VALUE
from eventlog.snapshots.state.state_rows import StateRows

_EVENTS = 2
"""The codec of events, whose values these are."""


def schema_of(names: Iterable[str]) -> pa.Schema:
    """The Arrow schema of these columns."""
    return pa.schema([SCHEMA.field(name) for name in names])


def columns_of(
    rows: StateRows, places: Sequence[int], names: Sequence[str], *, stream: str
) -> pa.Table:
    """The columns `names` of events, of whose stored columns those at `places` are at hand.

    Raises DamagedLog, naming the place.
    """
    found = {"_offset": pa.array(rows.offsets, pa.int64())}
    for row, place in enumerate(places):
        texts = rows.texts(row)
        if place == TIME:
            data, _ = gathered(texts.data, texts.starts, texts.lengths)
            found["_time"] = times_array(data.view("<i8"))
        elif place == KEY:
            found["key"] = _converted(text_array, texts, rows, stream)
        elif place == VALUE:
            found["value"] = _converted(codec(_EVENTS).json_array, texts, rows, stream)
    return pa.Table.from_arrays([found[name] for name in names], schema=schema_of(names))


def _converted(
    convert: Callable[[Texts], pa.Array], texts: Texts, rows: StateRows, stream: str
) -> pa.Array:
    try:
        return convert(texts)
    except DamagedLog:
        for place, offset in enumerate(rows.offsets.tolist()):
            try:
                convert(texts.take(np.array([place])))
            except DamagedLog as error:
                raise damaged_record(stream, offset, error) from error
        raise
