"""The lines of a COPY TO STDOUT, read from a plain connection's socket: many rows at a time.

::

    H            d            d            ...  c    C      Z
    the copy     'd' length   'd' length        the copy's end, what was done, ready again
    begins       line LF      line LF

libpq only sends the statement. It is not shown the answer; at the end a Sync asks the server for
another `Z`, which tells libpq that the connection is ready.
`cdc.postgres.protocol.plain_socket` does the reading.
"""

from __future__ import annotations

import struct
from typing import Self

import numpy as np
import psycopg

from cdc.errors import ConnectionLost
from cdc.postgres.connection import Connection
from cdc.postgres.protocol.answers import CANCEL_S, CANCELLED, answered, lost
from cdc.postgres.protocol.frames import Run, without_heads
from cdc.postgres.protocol.plain_socket import PlainSocket

GATHER_S = 0.0005
"""How long rows are let come together: a receiver that is awake for every few takes three times the
CPU, and one that sleeps too long lets the server wait."""

_LF = ord("\n")
_SYNC = b"S" + struct.pack(">I", 4)


class SocketReader:
    """A running COPY TO STDOUT of which libpq sees nothing. See `cdc.postgres.copy.copy_out`."""

    def __init__(self, conn: Connection, plain: PlainSocket) -> None:
        self._conn = conn
        self._plain = plain

    @classmethod
    def opened(cls, conn: Connection, copy: bytes) -> Self | None:
        """Send the statement and wait for the answer; None where libpq must read it."""
        plain = PlainSocket.opened(conn, copy, last=b"Z", doing="copying")
        return None if plain is None else cls(conn, plain)

    @property
    def ended(self) -> bool:
        return self._plain.ended

    @property
    def arriving(self) -> int:
        return self._plain.arriving

    def read(self, *, timeout_s: float) -> Run | None:
        """Whole lines, up to about a megabyte, or a single larger one; None if none came.

        Raises ConnectionLost.
        """
        frames = self._plain.read(timeout_s=timeout_s, gather_s=GATHER_S)
        if frames is None:
            return None
        run = without_heads(frames, None, 0)
        empty = (frames.starts == frames.ends).any()
        if empty or (np.frombuffer(run.data, np.uint8)[run.ends - 1] != _LF).any():
            raise ConnectionLost(
                "copying: the server sent a row without an end",
                hint="the connection is made anew; if it happens again, connect without a proxy",
            )
        return run

    def finish(self, doing: str) -> None:
        """Make libpq ready again. Raises what the server answered. REQUIRES: ended."""
        pgconn, plain = self._conn.pgconn, self._plain
        try:
            plain.request(_SYNC)
            while pgconn.is_busy():
                plain.wait()
                pgconn.consume_input()
            while pgconn.get_result() is not None:
                pass
        except psycopg.Error as error:
            raise lost(error) from error
        finally:
            plain.close()
        if plain.failure is not None:
            raise answered(*plain.failure, doing)

    def cancel(self) -> None:
        """See `cdc.postgres.copy.copy_out.LineReader`."""
        plain = self._plain
        plain.forget()
        try:
            self._conn.cancel_safe(timeout=CANCEL_S)
        except psycopg.Error as error:
            raise lost(error) from error
        while not plain.ended:
            plain.read(timeout_s=CANCEL_S)
        if plain.failure is not None and plain.failure[0] == CANCELLED.encode():
            plain.failure = None
        self.finish("cancelling a copy")

    def close(self) -> None:
        """See `cdc.postgres.copy.copy_out.LineReader`."""
        self._plain.close()
