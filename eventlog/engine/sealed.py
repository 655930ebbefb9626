"""The envelope of every small stored value: msgpack under a magic, a version and a checksum.

::

    0     2  3                 11
    +-----+--+-----------------+----------------------+
    | EV  |v | xxh3-64, big-e. | msgpack map          |
    +-----+--+-----------------+----------------------+

The checksum covers the record's key, the first three bytes and the map, so that a value that
strays under another key is noticed. Names in the map that a reader does not know are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import xxhash

from eventlog.errors import DamagedLog, LogVersionError

_MAGIC = b"EV"
_VERSION = 1
_HEAD = _MAGIC + bytes([_VERSION])
HEAD_BYTES = len(_HEAD) + 8


def seal(key: bytes, value: Mapping[str, Any]) -> bytes:
    """Encode `value` for storage under `key`."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return _HEAD + _checksum(key, _HEAD, packed) + packed


def unseal(key: bytes, stored: bytes) -> dict[str, Any]:
    """Decode what `seal` made.

    Raises DamagedLog where the bytes are not what was written, LogVersionError where a newer
    version wrote them.
    """
    head, checksum, packed = stored[:3], stored[3:HEAD_BYTES], stored[HEAD_BYTES:]
    if head[:2] != _MAGIC:
        raise DamagedLog(f"the value under {key!r} has no magic bytes", hint=REPAIR_HINT)
    if checksum != _checksum(key, head, packed):
        raise DamagedLog(f"the checksum of the value under {key!r} is wrong", hint=REPAIR_HINT)
    if head[2] != _VERSION:
        raise LogVersionError(
            f"the value under {key!r} has version {head[2]}, known is {_VERSION}",
            hint="open this log with the version of eventlog-cdc that wrote it, or a newer one",
        )
    value = msgpack.unpackb(packed, raw=False, strict_map_key=False)
    if not isinstance(value, dict):
        raise DamagedLog(f"the value under {key!r} is no map", hint=REPAIR_HINT)
    return value


def _checksum(key: bytes, head: bytes, packed: bytes) -> bytes:
    state = xxhash.xxh3_64(key)
    state.update(head)
    state.update(packed)
    return bytes(state.digest())


REPAIR_HINT = "run `eventlog check` to see what else is damaged, and `eventlog repair` to drop it"
