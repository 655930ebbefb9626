"""A limit on how many bytes a second are read, shared by all who read (a token bucket)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Throttle:
    """Tells each reader how long to pause, so that all together keep to the rate. Thread-safe.

    What was not read in the past is not made up for: a pause follows each read, as long as the read
    should have taken.
    """

    def __init__(
        self, bytes_per_s: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`bytes_per_s` None: no limit. `clock` gives seconds."""
        self._rate = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_until = clock()

    def pause_s(self, size: int) -> float:
        """Take note of so many bytes read; the seconds to wait before more are."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._paid_until = max(self._paid_until, now) + size / self._rate
            return self._paid_until - now
