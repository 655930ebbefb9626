"""COPY streams through libpq, for connections that are encrypted, and where `pq` is used.

libpq reads 16 KB at a time. `read` drains what is there and, asked to `gather`, waits a moment for
more, because waking up for every few rows is what costs (D1). One thread owns a connection.
"""

from __future__ import annotations

import select
import time
from typing import Self

import psycopg
from psycopg import pq

from cdc.errors import ConnectionLost, ServerError
from cdc.postgres.connection import Connection
from cdc.postgres.protocol.answers import CANCEL_S, CANCELLED, lost, server_said, stream_ended
from cdc.postgres.protocol.frames import Frames
from cdc.postgres.protocol.transport import Wake


class CopyReader:
    """Reads the messages of a COPY that this connection is in."""

    READ_BYTES_MAX = 1 << 20

    def __init__(self, conn: Connection, wake: Wake | None = None) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._pgconn.nonblocking = 1
        self._wake = wake
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)
        if wake is not None:
            self._poll.register(wake.fileno(), select.POLLIN)
        self.ended = False

    @classmethod
    def of_statement(cls, conn: Connection, doing: str) -> Self:
        """Read the COPY TO STDOUT that was sent. Raises what the server answers instead of rows."""
        reader = cls(conn)
        try:
            result = reader._result()
        except psycopg.Error as error:
            raise lost(error) from error
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            while (rest := reader._result()) is not None:
                result = result or rest
            raise server_said(result, doing)
        return reader

    def read(self, *, timeout_s: float, gather_s: float = 0.0) -> Frames | None:
        """Up to about READ_BYTES_MAX of messages; None if none came within `timeout_s`.

        At the stream's end `ended` is set; the last messages come first.
        """
        if self.ended:
            return None
        messages: list[memoryview] = []
        size = self._drain(messages)
        wait_s = 0.0 if messages else timeout_s
        gathered = gather_s == 0.0
        while size < self.READ_BYTES_MAX and not self.ended:
            if self._wait(wait_s):
                size += self._drain(messages)
                wait_s = 0.0
            elif messages and not gathered:
                # Asleep, not polling: the server sends few rows at a time, and each wakes a poll.
                time.sleep(gather_s)
                gathered = True
            else:
                break
        return Frames.of(messages) if messages else None

    def _wait(self, timeout_s: float) -> bool:
        """Wait for bytes from the server and take them in; False on a time-out or a wake."""
        events = self._poll.poll(timeout_s * 1000)
        if not events:
            return False
        came = False
        for descriptor, _ in events:
            if self._wake is not None and descriptor == self._wake.fileno():
                self._wake.clear()
            else:
                came = True
        if came:
            try:
                self._pgconn.consume_input()
            except psycopg.Error as error:
                raise lost(error) from error
        return came

    def _drain(self, messages: list[memoryview]) -> int:
        get, add = self._pgconn.get_copy_data, messages.append
        size = 0
        try:
            while size < self.READ_BYTES_MAX:
                length, data = get(1)
                if length <= 0:
                    if length < 0:
                        self.ended = True
                    break
                add(data)
                size += length
        except psycopg.Error as error:
            raise lost(error) from error
        return size

    def finish(self, doing: str) -> None:
        """Read the results that end the COPY. Raises what the server answered."""
        failure = None
        try:
            while (result := self._result()) is not None:
                if result.status == pq.ExecStatus.FATAL_ERROR:
                    failure = failure or result
        except psycopg.Error as error:
            raise lost(error) from error
        if failure is not None:
            raise server_said(failure, doing)

    def cancel(self) -> None:
        """Make the server end the COPY and forget what still comes; its transaction is aborted.

        Where the COPY ended by itself a moment before, nothing is aborted. The connection is usable
        afterwards. Raises ConnectionLost, and what the server answers but for the cancellation.
        """
        try:
            self._conn.cancel_safe(timeout=CANCEL_S)
        except psycopg.Error as error:
            raise lost(error) from error
        while not self.ended:
            self.read(timeout_s=CANCEL_S)
        try:
            self.finish("cancelling a copy")
        except ServerError as error:
            if error.sqlstate != CANCELLED:
                raise

    def _result(self) -> pq.abc.PGresult | None:
        """The next result, waited for without stopping the other threads, as libpq would."""
        pgconn, server = self._pgconn, select.poll()
        while pgconn.flush():
            server.register(pgconn.socket, select.POLLIN | select.POLLOUT)
            server.poll()
            pgconn.consume_input()
        server.register(pgconn.socket, select.POLLIN)
        while pgconn.is_busy():
            server.poll()
            pgconn.consume_input()
        return pgconn.get_result()


class LibpqStream:
    """A replication stream that libpq reads. See `Transport`."""

    def __init__(self, conn: Connection, slot: str, wake: Wake) -> None:
        """Take the answer to the START_REPLICATION that was sent.

        Raises SlotInUse, or what the server answers.
        """
        self._conn = conn
        result = conn.pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise server_said(result, f"starting to stream from slot {slot!r}", slot=slot)
        self._reader = CopyReader(conn, wake)

    def read(self, *, timeout_s: float, gather_s: float = 0.0) -> Frames | None:
        """See Transport."""
        frames = self._reader.read(timeout_s=timeout_s, gather_s=gather_s)
        if frames is None and self._reader.ended:
            self._reader.finish("streaming changes")
            raise stream_ended()
        return frames

    def send(self, status: bytes) -> None:
        """See Transport; a server that takes none for ten seconds is lost."""
        pgconn = self._conn.pgconn
        try:
            pgconn.put_copy_data(status)
            deadline = time.monotonic() + 10.0
            while pgconn.flush():
                if time.monotonic() > deadline:
                    raise ConnectionLost(
                        "the server takes no status messages", hint="the connection is made anew"
                    )
                select.select([], [pgconn.socket], [], 1.0)
        except psycopg.Error as error:
            raise lost(error) from error

    def close(self) -> None:
        """See Transport."""
        pgconn = self._conn.pgconn
        try:
            pgconn.put_copy_end()
            pgconn.flush()
            deadline = time.monotonic() + 1.0
            while not self._reader.ended and time.monotonic() < deadline:
                self._reader.read(timeout_s=0.1)
        except (psycopg.Error, ConnectionLost):
            pass  # the server is gone already, which ends the stream as well
        finally:
            self._conn.close()
