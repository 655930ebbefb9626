"""A running COPY TO STDOUT as lines, by the fastest way that its connection allows.

::

    plain connection ──▶ copy_socket   blocks of rows, straight from the socket
    TLS, GSSAPI      ──▶ libpq         row by row
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import psycopg
from psycopg import sql

from cdc.postgres.connection import Connection, is_unconverted
from cdc.postgres.copy.copy_socket import SocketReader
from cdc.postgres.protocol.answers import lost
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.libpq import CopyReader

GATHER_S = 0.002
"""How long libpq lets rows come together: waking up for every few is what costs (D1)."""


class LineReader(Protocol):
    """Reads the lines of one COPY; one thread owns it and its connection."""

    @property
    def ended(self) -> bool:
        """Whether the server has sent all; then `finish` comes."""
        ...

    @property
    def arriving(self) -> int:
        """The size in bytes of a large row whose beginning came; 0 where that is not known."""
        ...

    def read(self, *, timeout_s: float) -> Run | None:
        """Whole lines, about a megabyte at most or a larger one; None if none came.

        Raises ConnectionLost.
        """
        ...

    def finish(self, doing: str) -> None:
        """Make the connection ready for another statement. Raises what the server answered."""
        ...

    def cancel(self) -> None:
        """Make the server end the COPY and drop what still comes; its transaction is aborted.

        Where the COPY ended by itself a moment before, nothing is aborted. The connection is usable
        afterwards. Raises ConnectionLost, and what the server answers but for the cancellation.
        """
        ...

    def close(self) -> None:
        """Let go of what the reader holds; before `finish`, the connection is of no more use."""
        ...


class LibpqReader:
    """A running COPY TO STDOUT read by libpq. See LineReader."""

    def __init__(self, conn: Connection, doing: str) -> None:
        self._reader = CopyReader.of_statement(conn, doing)

    @property
    def ended(self) -> bool:
        return self._reader.ended

    @property
    def arriving(self) -> int:
        return 0

    def read(self, *, timeout_s: float) -> Run | None:
        frames = self._reader.read(timeout_s=timeout_s, gather_s=GATHER_S)
        return None if frames is None else Run(data=frames.data, ends=np.asarray(frames.ends))

    def finish(self, doing: str) -> None:
        self._reader.finish(doing)

    def cancel(self) -> None:
        self._reader.cancel()

    def close(self) -> None:
        pass  # the connection is all it has


def start(conn: Connection, copy: sql.Composed, doing: str) -> LineReader:
    """Begin a COPY TO STDOUT without options; its first rows, or an error, are under way.

    Raises ConnectionLost, or what the server answered.
    """
    if is_unconverted(conn):
        copy += sql.SQL(" (ENCODING 'SQL_ASCII')")
    try:
        return SocketReader.opened(conn, copy.as_bytes(conn)) or LibpqReader(conn, doing)
    except psycopg.Error as error:
        raise lost(error) from error
