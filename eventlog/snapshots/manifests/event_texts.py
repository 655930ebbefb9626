"""The latest events of a stream as they are stored, for digests: three texts each.

::

    _time   its bytes as i64 little-endian, in µs since 1970 UTC
    key     UTF-8, or null
    value   msgpack, as it was appended
"""

from __future__ import annotations

COLUMNS = (("_time", "int64"), ("key", "text"), ("value", "msgpack"))
"""Names and types as they enter the digest."""
