"""A running START_REPLICATION over a plain connection: the transport that reads its socket."""

from __future__ import annotations

from typing import Self

from cdc.errors import CaptureError
from cdc.postgres.connection import Connection
from cdc.postgres.protocol.answers import answered, stream_ended
from cdc.postgres.protocol.frames import Frames
from cdc.postgres.protocol.plain_socket import PlainSocket
from cdc.postgres.protocol.transport import Wake

DOING = "streaming changes"
XLOG_DATA = ord("w")

_LAST = b"EcCZ"
"""An error, or the server's end of the stream: a server that stops says no more than `C`."""

_START_S = 1.0
_CLOSE_S = 1.0


class SocketStream:
    """A replication stream of which libpq sees nothing. See `Transport`."""

    def __init__(self, conn: Connection, plain: PlainSocket, first: Frames | None) -> None:
        """`first` came together with the server's consent."""
        self._conn = conn
        self._plain = plain
        self._first = first

    @classmethod
    def opened(cls, conn: Connection, statement: bytes, slot: str, wake: Wake) -> Self | None:
        """Begin to stream; None where libpq must read the answer.

        Raises SlotInUse, ConnectionLost, or what the server answers.
        """
        doing = f"starting to stream from slot {slot!r}"
        plain = PlainSocket.opened(conn, statement, last=_LAST, doing=DOING, mark=XLOG_DATA)
        if plain is None:
            return None
        try:
            first = None
            while not plain.begun and not plain.ended:
                first = plain.read(timeout_s=_START_S)
            # Once it began, what failed is told by `read`, behind what came before.
            if plain.failure is not None and not plain.begun:
                raise answered(*plain.failure, doing, slot=slot)
        except BaseException:
            plain.close()
            raise
        plain.wake_by(wake)
        return cls(conn, plain, first)

    def read(self, *, timeout_s: float, gather_s: float = 0.0) -> Frames | None:
        """See Transport."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        plain = self._plain
        frames = plain.read(timeout_s=timeout_s, gather_s=gather_s)
        if frames is None and plain.ended:
            if plain.failure is not None:
                raise answered(*plain.failure, DOING)
            raise stream_ended()
        return frames

    def send(self, status: bytes) -> None:
        """See Transport."""
        self._plain.send(status)

    def close(self) -> None:
        """See Transport."""
        try:
            self._plain.finish(timeout_s=_CLOSE_S)
        except CaptureError:
            pass  # the server is gone already, which ends the stream as well
        finally:
            self._plain.close()
            self._conn.close()
