"""The events of a stream as records of a table of three stored columns.

::

    _time   its bytes as i64 little-endian, in µs since 1970 UTC
    key     UTF-8, or NULL
    value   msgpack, as it was appended

An event is an insert of its row, a tombstone a delete by its key. So what is true of tables, that
they are found by whole columns and read in bounded memory, is true of the latest events.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from eventlog.changes.change import Op
from eventlog.changes.event_run import EventRun
from eventlog.changes.schema import Column, Schema
from eventlog.changes.split import IS_ABSENT, OP_NUMBER, Rows
from eventlog.engine import Engine
from eventlog.engine.index import IndexEntry
from eventlog.errors import DamagedLog
from eventlog.snapshots.state.identity import LOOSE
from eventlog.snapshots.state.live_pass import Progress
from eventlog.snapshots.state.steps import Chunk, Holds, Part, Read
from eventlog.snapshots.state.table_state import TableState, folded

TIME, KEY, VALUE = range(3)
"""Places of the columns."""

EVENTS = Schema(
    id=0,
    offset=0,
    relation=0,
    namespace="",
    name="events",
    identity=LOOSE,
    columns=tuple(
        Column(name=name, type=0, typmod=-1, key=name == "key")
        for name in ("_time", "key", "value")
    ),
)

_TIME_BYTES = 8
_INSERT, _DELETE = OP_NUMBER[Op.INSERT], OP_NUMBER[Op.DELETE]


def event_state(
    engine: Engine, stream: str, *, stop: int, progress: Progress | None = None
) -> TableState:
    """The latest event of each key below `stop`, and all without a key."""
    low, _ = engine.bounds(stream)
    read = event_parts(engine, stream)
    return folded(read, EVENTS, low=low, stop=stop, progress=progress)


def event_parts(engine: Engine, stream: str) -> Read:
    """Reads the events of a stream. Raises DamagedLog for a record that is none."""

    def read(start: int, stop: int, holds: Holds | None) -> Iterator[Part]:
        def wanted(entry: IndexEntry) -> bool:
            return holds is None or holds(entry.first_offset, entry.stop)

        for stretch in engine.scan(stream, start, stop, wanted):
            if stretch.payload is None:
                continue
            run = EventRun.of(stretch)
            steps = [_chunk(run, stream)] if len(run) else []
            yield Part(stretch.start, stretch.stop, len(run), [*steps])

    return read


def _chunk(run: EventRun, stream: str) -> Chunk:
    texts = run.codec.split(run.payload, run.slots)
    if texts.odd.any():
        raise DamagedLog(
            f"the record at offset {run.offset(int(texts.odd.argmax()))} of stream {stream!r} "
            "is no event",
            hint="run `eventlog check`",
        )
    count, end = len(run), len(texts.values.data)
    times = np.arange(end, end + _TIME_BYTES * count, _TIME_BYTES)
    starts = np.stack([times, texts.keys.starts, texts.values.starts])
    sizes = np.full(count, _TIME_BYTES, np.int64)
    lengths = np.stack([sizes, texts.keys.lengths, texts.values.lengths])
    old = None
    if texts.tombstone.any():
        gone = np.full_like(lengths, IS_ABSENT)
        gone[KEY, texts.tombstone] = lengths[KEY, texts.tombstone]
        old = Rows(starts=starts, lengths=gone)
    return Chunk(
        schema=EVENTS,
        offsets=run.offsets,
        ops=np.where(texts.tombstone, _DELETE, _INSERT).astype(np.uint8),
        data=np.concatenate([texts.values.data, run.times.astype("<i8").view(np.uint8)]),
        new=Rows(starts=starts, lengths=lengths),
        old=old,
    )
