"""COPY streams through libpq: the transport behind `Frames`, and where psycopg's `pq` is used.

libpq reads 16 KB at a time. `read` drains what is there and, asked to `gather`, waits a moment for
more, because waking up for every few rows is what costs (D1). A pipe wakes a waiting `read` from
another thread or a signal handler. One thread owns a connection.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Protocol, Self

import psycopg
from psycopg import pq, sql

from cdc.errors import ConnectionLost, ServerError
from cdc.postgres.connection import Connection, is_unconverted
from cdc.postgres.faults import failed, translated
from cdc.postgres.protocol.frames import Frames
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.publishing.slot import slot_in_use

CANCEL_S = 10.0
"""How long a server may take to accept a request to cancel."""

CANCELLED = "57014"
"""The SQLSTATE of a statement that was cancelled."""


class Transport(Protocol):
    """What the capture needs of a replication connection."""

    def read(self, *, timeout_s: float, gather_s: float = 0.0) -> Frames | None:
        """What came, None if nothing did within `timeout_s`. Raises ConnectionLost at the end."""
        ...

    def send(self, message: bytes) -> None:
        """Send one message upstream."""
        ...

    def close(self) -> None:
        """End the stream in order, if the connection is still there."""
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
            raise _server_said(result, conn, doing)
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
            raise _server_said(failure, self._conn, doing)

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


class ReplicationStream:
    """A running START_REPLICATION."""

    def __init__(
        self, conn: Connection, slot: str, start: Lsn, publications: list[str], wake: Wake
    ):
        """Begin to stream from `start`, 0 meaning where the slot stands.

        Raises SlotInUse, or what the server answers.
        """
        self._conn = conn
        names = ",".join(sql.Identifier(name).as_string(conn) for name in publications)
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} "
            "(proto_version '1', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.SQL(str(start)), sql.Literal(names))
        pgconn = conn.pgconn
        statement = command.as_bytes(conn)
        if is_unconverted(conn):
            with translated("asking for text as it is"):
                conn.execute("SET client_encoding = 'SQL_ASCII'")
        pgconn.send_query(statement)
        result = pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise _server_said(result, conn, f"starting to stream from slot {slot!r}", slot)
        self._reader = CopyReader(conn, wake)

    def read(self, *, timeout_s: float, gather_s: float = 0.0) -> Frames | None:
        """See Transport."""
        frames = self._reader.read(timeout_s=timeout_s, gather_s=gather_s)
        if frames is None and self._reader.ended:
            self._reader.finish("streaming changes")
            raise ConnectionLost(
                "the server ended the replication stream",
                hint="it is taken up again as soon as the server answers",
            )
        return frames

    def send(self, message: bytes) -> None:
        """See Transport."""
        pgconn = self._conn.pgconn
        try:
            pgconn.put_copy_data(message)
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


def lost(error: Exception | None) -> ConnectionLost:
    """The error for a connection that broke; None: the server closed it without a word."""
    said = str(error or "").strip().splitlines()
    return ConnectionLost(
        f"the connection to the server was lost: {said[0] if said else 'no reason given'}",
        hint="it is made anew with growing pauses; stop the capture with Ctrl-C",
    )


def _server_said(
    result: pq.abc.PGresult | None, conn: Connection, doing: str, slot: str | None = None
) -> Exception:
    if result is None:
        return ConnectionLost(f"the server did not answer {doing}", hint="is it running?")
    code = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
    if slot is not None and code == b"55006":
        words = message.decode().replace(",", " ").split()
        pid = next((int(word) for word in words if word.isdigit()), None)
        return slot_in_use(slot, pid)
    return answered(code, message, doing)


def answered(code: bytes, message: bytes, doing: str) -> Exception:
    """The error for an SQLSTATE and a message of the server."""
    kind: type[psycopg.Error] = psycopg.OperationalError
    if code:
        try:
            kind = psycopg.errors.lookup(code.decode())
        except KeyError:  # a code of the user's own, raised by a function
            kind = psycopg.DatabaseError
    text = message.decode("utf-8", "replace")
    return failed(kind(text or "no reason given", encoding="utf-8"), doing)
