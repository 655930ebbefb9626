"""What other threads have done by the thread that owns something, between two of its steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


class Inbox:
    """Functions to be run on one thread, in the order that they were put in.

    `put` may be called on any thread; the owner calls the rest.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` ends the wait of an owner who waits elsewhere."""
        self._wake = wake
        self._work: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, work: Callable[[], Result]) -> Future[Result]:
        """Have `work` run; its result or error comes with the future.

        The future is cancelled where the owner has stopped.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            self._work.append((work, future))  # type: ignore[arg-type]
            self._changed.notify()
        self._wake()
        return future

    def wait(self, timeout_s: float) -> None:
        """Wait until something is there, `timeout_s` at most."""
        with self._changed:
            if not self._work and not self._closed:
                self._changed.wait(timeout_s)

    def run(self) -> None:
        """Run what is there."""
        while self._work:
            work, future = self._work.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    def close(self) -> None:
        """Cancel what is there, and what comes."""
        with self._changed:
            self._closed = True
            while self._work:
                self._work.popleft()[1].cancel()
