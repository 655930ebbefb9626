"""A thread that commits, so that reading from the source goes on while the disk flushes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout


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
        if self._running is None:
            return True
        try:
            self._running.result(timeout_s)
        except FutureTimeout:
            if not self._running.done():
                return False
            self._running = None
            raise
        except BaseException:
            self._running = None
            raise
        self._running = None
        return True

    def close(self) -> None:
        """Wait for the work's end and stop the thread."""
        self._pool.shutdown(wait=True)
