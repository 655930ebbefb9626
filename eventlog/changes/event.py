"""One record of an event stream, decoded."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple


class Event(NamedTuple):
    """An application's event.

    `time` is when it was appended, aware, in UTC. `key` is text, or None. `value` None is a
    tombstone: the key has no value from this offset on.
    """

    offset: int
    time: datetime
    key: str | None
    value: Any
