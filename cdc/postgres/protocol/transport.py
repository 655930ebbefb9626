"""The seam between a replication connection and what is made of it; and a way to end a wait.

::

    plain connection ──▶ socket_stream   blocks of messages, straight from the socket ─┐
    TLS, GSSAPI      ──▶ libpq           message by message                            ├──▶ Frames
                                                                                       ┘
One thread owns a connection. A pipe wakes a waiting `read` from another one or a signal handler.
"""

from __future__ import annotations

import contextlib
import os
from typing import Protocol

from cdc.postgres.protocol.frames import Frames


class Transport(Protocol):
    """What the capture needs of a replication connection."""

    def read(self, *, timeout_s: float, gather_s: float = 0.0) -> Frames | None:
        """What came, about a megabyte at most or one larger message; None if nothing did.

        That is so after `timeout_s`, and at a wake. With `gather_s` what comes first is let gather
        so long. Raises what the server answers instead, and ConnectionLost at the end.
        """
        ...

    def send(self, status: bytes) -> None:
        """Send a status update. One that the server does not take yet gives way to a later one."""
        ...

    def close(self) -> None:
        """End the stream in order, if the connection is still there, and close the connection."""
        ...


class Wake:
    """A pipe that ends a wait."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._closed = False

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        """End the wait that goes on, or the next one. Safe in a signal handler."""
        # A full pipe wakes too. A closed one has no waiter, and its number may be another file's.
        if not self._closed:
            with contextlib.suppress(BlockingIOError):
                os.write(self._write, b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        self._closed = True
        os.close(self._read)
        os.close(self._write)
