"""The latest events of a stream as they are stored, for digests: three texts each.

::

    _time   its bytes as i64 little-endian, in µs since 1970 UTC
    key     UTF-8, or null
    value   msgpack, as it was appended
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.engine import Engine
from eventlog.errors import DamagedLog

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (("_time", "int64"), ("key", "text"), ("value", "msgpack"))
"""Names and types as they enter the digest."""

_LENGTHS = {0xD9: (2, struct.Struct(">B")), 0xDA: (3, struct.Struct(">H"))}
_LENGTHS[0xDB] = (5, struct.Struct(">I"))
_NIL = 0xC0


def event_texts(
    engine: Engine, stream: str, offsets: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], list[pa.Array]]]:
    """The events at these ascending offsets, by pieces: offsets, and arrays of the three texts.

    Raises DamagedLog, OffsetsDropped.
    """
    import pyarrow as pa

    if not len(offsets):
        return
    for stretch in engine.scan(stream, int(offsets[0]), int(offsets[-1]) + 1, lambda entry: True):
        assert stretch.payload is not None
        slots, found = stretch.readable_slots()
        places = np.flatnonzero(np.isin(np.array(found, np.int64), offsets))
        if not len(places):
            continue
        wanted = [slots[place] for place in places.tolist()]
        at = np.array(found, np.int64)[places]
        times = stretch.entry.transactions.time[stretch.entry.slot_transactions()][wanted]
        pairs = [
            _split(record, f"the record at offset {offset} of stream {stream!r}")
            for record, offset in zip(stretch.payload.records(wanted), at.tolist(), strict=True)
        ]
        yield (
            at,
            [
                pa.array([time.tobytes() for time in times.astype("<i8")], pa.binary()),
                pa.array([key for key, _ in pairs], pa.binary()),
                pa.array([value for _, value in pairs], pa.large_binary()),
            ],
        )


def _split(record: Any, what: str) -> tuple[bytes | None, bytes]:
    """The key and the stored value of an event's record, [key, value]."""
    data = bytes(record)
    if len(data) > 2 and data[0] == 0x92:
        head, kind = 1, data[1]
        if kind == _NIL:
            return None, data[2:]
        if 0xA0 <= kind <= 0xBF:
            head, size = 2, kind - 0xA0
        elif kind in _LENGTHS:
            skip, number = _LENGTHS[kind]
            head = 1 + skip
            size = number.unpack_from(data, 2)[0] if len(data) > head else len(data)
        else:
            size = len(data)
        if head + size < len(data):
            return data[head : head + size], data[head + size :]
    raise DamagedLog(f"{what} is no event", hint="run `eventlog check`")
