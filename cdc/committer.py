"""A thread that commits, so that reading from the source goes on while the disk flushes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress


class Committer:
    """Runs one commit at a time; `finished` is called, on its thread, after each."""

    def __init__(self, finished: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._finished = finished
        self._running: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether work was submitted that `settle` has not seen end."""
        return self._running is not None

    def submit(self, work: Callable[[], None]) -> None:
        """Start work. REQUIRES: not busy."""
        assert self._running is None
        self._running = self._pool.submit(work)
        self._running.add_done_callback(lambda _: self._finished())

    def settle(self, *, timeout_s: float) -> bool:
        """Wait for the work's end; False if it still runs. Raises what the work raised."""
        running = self._running
        if running is None:
            return True
        with suppress(FutureTimeout):
            running.exception(timeout_s)
        # The work may have ended since the wait did, and may itself have raised a TimeoutError.
        if not running.done():
            return False
        self._running = None
        running.result()
        return True

    def close(self) -> None:
        """Wait for the work's end and stop the thread."""
        self._pool.shutdown(wait=True)
