"""How the attendant has things done by the streaming thread, and waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from cdc.postgres.streaming import Streamer

Result = TypeVar("Result")

_LOOK_S = 0.1


class Stopped(Exception):
    """The capture ends; whoever waits gives up what it does."""


class Link:
    """Asks the streaming thread on behalf of another one."""

    def __init__(self, streamer: Streamer, stopping: Callable[[], bool]) -> None:
        self.streamer = streamer
        self._stopping = stopping

    def ask(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, done on the streaming thread. Raises Stopped."""
        return self.wait(self.streamer.call(work))

    def wait(self, future: Future[Result]) -> Result:
        """The future's result. Raises Stopped where the capture ends first."""
        try:
            while True:
                try:
                    return future.result(_LOOK_S)
                except FutureTimeout:
                    if future.done():
                        # It ended right after the wait did, or with a time-out of its own.
                        return future.result()
                    self.expect_running()
        except CancelledError as error:
            raise Stopped from error

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the streaming thread finds the condition true. Raises Stopped."""
        while not self.ask(condition):
            self.pause(0.01)

    def pause(self, seconds: float) -> None:
        """Sleep, in short steps. Raises Stopped."""
        deadline = time.monotonic() + seconds
        self.expect_running()
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_S))
            self.expect_running()

    @property
    def running(self) -> bool:
        """Whether the capture goes on."""
        return not self._stopping()

    def expect_running(self) -> None:
        """Raise Stopped where the capture ends."""
        if self._stopping():
            raise Stopped
