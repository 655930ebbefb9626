"""Threads that work on database connections, one each, and that can be made to end at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg

from cdc.postgres.connection import Connection
from cdc.postgres.protocol.answers import CANCEL_S

Result = TypeVar("Result")


class OnlyOn(Exception):
    """Raised by work that must be done on a certain connection, and is done anew on that."""

    def __init__(self, conn: Connection) -> None:
        super().__init__()
        self.conn = conn


CANCEL_EVERY_S = 0.1


class Crew:
    """Does work on the connections that it was given; leaving the block ends both.

    What still runs then is cancelled at the server, what has not begun is forgotten.
    """

    def __init__(self, conns: Sequence[Connection]) -> None:
        """REQUIRES: at least one connection; nobody else uses them."""
        self._conns = conns
        self._free = list(conns)
        self._freed = threading.Condition()
        self._pool = ThreadPoolExecutor(len(conns), thread_name_prefix="copy")
        self._begun: set[Future[Any]] = set()
        self._ending = threading.Event()

    def submit(self, work: Callable[[Connection], Result]) -> Future[Result]:
        """Do work as soon as a connection is free, in the order of the calls."""
        future = self._pool.submit(self._run, work)
        self._begun.add(future)
        future.add_done_callback(self._begun.discard)
        return future

    def pause(self, seconds: float) -> None:
        """Let the calling thread of the crew wait, no longer than until the end."""
        self._ending.wait(seconds)

    def _run(self, work: Callable[[Connection], Result]) -> Result:
        wanted: Connection | None = None
        while True:
            conn = self._take(wanted)
            try:
                return work(conn)
            except OnlyOn as other:
                wanted = other.conn
            finally:
                self._give(conn)

    def _take(self, wanted: Connection | None) -> Connection:
        with self._freed:
            while not (self._free if wanted is None else wanted in self._free):
                self._freed.wait()
            if self._ending.is_set():
                raise CancelledError
            conn = wanted or self._free[0]
            self._free.remove(conn)
            return conn

    def _give(self, conn: Connection) -> None:
        with self._freed:
            self._free.append(conn)
            self._freed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        # Again and again: a request to cancel that comes between two statements is void.
        while wait(list(self._begun), timeout=0).not_done:
            for conn in self._conns:
                self._cancel(conn)
            wait(list(self._begun), timeout=CANCEL_EVERY_S)
        self._pool.shutdown(wait=True)
        for conn in self._conns:
            conn.close()

    def _cancel(self, conn: Connection) -> None:
        # The server may be gone, or full: then the statement fails, or comes to its end.
        with suppress(psycopg.Error):
            conn.cancel_safe(timeout=CANCEL_S)
