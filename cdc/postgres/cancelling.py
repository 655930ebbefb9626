"""Ending what a connection waits for, as soon as that is wished.

A wait for a lock or for other transactions ends when it is cancelled at the server. The wish comes
from a signal handler or another thread, which must do no more than set a flag: a thread looks at it
and cancels, again and again, because a request that comes between two statements is void.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import psycopg

from cdc.postgres.connection import Connection

LOOK_S = 0.1
CANCEL_S = 1.0
"""How long the server may take to accept a request to cancel."""


@contextlib.contextmanager
def cancelled_on(wished: Callable[[], bool], *conns: Connection) -> Iterator[None]:
    """Within the block, cancel what these connections do once `wished` gives True.

    Their statements then fail with SQLSTATE 57014.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_S):
            if wished():
                for conn in conns:
                    _cancel(conn)

    watcher = threading.Thread(target=watch, name="canceller", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _cancel(conn: Connection) -> None:
    # The server may be gone, or full: then the statement fails, or comes to its end.
    with contextlib.suppress(psycopg.Error):
        if not conn.closed:
            conn.cancel_safe(timeout=CANCEL_S)
