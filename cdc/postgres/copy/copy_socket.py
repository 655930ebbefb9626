"""The lines of a COPY TO STDOUT, read from a plain connection's socket: many rows at a time.

::

    H            d            d            ...  c    C      Z
    the copy     'd' length   'd' length        the copy's end, what was done, ready again
    begins       line LF      line LF

libpq hands out one row a call, which costs more than the server spends on making it. Here a block
of bytes is taken at once and its rows are found with array operations: a line ends in its only LF,
and an LF inside a length stands at most five bytes behind the LF before it, which that of a line
never does. All lengths are compared with what was found.

libpq only sends the statement. It is not shown the answer; at the end a Sync asks the server for
another `Z`, which tells libpq that the connection is ready. This needs a connection that is not
encrypted: `opened` looks at the first byte of the answer and takes nothing else.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import psycopg

from cdc.errors import ConnectionLost
from cdc.postgres.connection import Connection
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.libpq import CANCEL_S, CANCELLED, answered, lost

READ_BYTES = 1 << 20
GATHER_S = 0.0005
"""How long rows are let come together: a receiver that is awake for every few takes three times the
CPU, and one that sleeps too long lets the server wait."""

_HEAD = struct.Struct(">cI")
_HEAD_BYTES = 5
_LENGTH_BYTES = 4
_SYNC = b"S" + struct.pack(">I", _LENGTH_BYTES)
_ANSWERS = b"HENSA"
"""What the server's answer to a COPY may begin with; encrypted records begin with other bytes."""

_LF, _ROW = ord("\n"), ord("d")

U8 = npt.NDArray[np.uint8]


class SocketReader:
    """A running COPY TO STDOUT of which libpq sees nothing. See `cdc.postgres.copy.copy_out`."""

    def __init__(self, conn: Connection, plain: socket.socket) -> None:
        self._conn = conn
        self._socket = plain
        self._poll = select.poll()
        self._poll.register(plain.fileno(), select.POLLIN)
        self._buffer = bytearray(READ_BYTES)
        self._held = 0
        self._wanted = _HEAD_BYTES
        self._failure: tuple[bytes, bytes] | None = None
        self.ended = False

    @classmethod
    def opened(cls, conn: Connection, copy: bytes) -> SocketReader | None:
        """Send the statement and wait for the answer; None where libpq must read it."""
        pgconn = conn.pgconn
        pgconn.send_query(copy)
        poll = select.poll()
        while pgconn.flush():
            poll.register(pgconn.socket, select.POLLOUT)
            poll.poll()
        poll.register(pgconn.socket, select.POLLIN)
        poll.poll()
        if pgconn.ssl_in_use:
            return None
        plain = socket.socket(fileno=os.dup(pgconn.socket))
        try:
            plain.setblocking(False)
            first = plain.recv(1, socket.MSG_PEEK)
        except OSError:
            first = b""
        if not first or first not in _ANSWERS:
            plain.close()
            return None
        return cls(conn, plain)

    def read(self, *, timeout_s: float) -> Run | None:
        """Whole lines, up to about a megabyte; None if none came within `timeout_s`.

        Raises ConnectionLost.
        """
        if not self._poll.poll(timeout_s * 1000):
            return None
        time.sleep(GATHER_S)
        try:
            count = self._socket.recv_into(memoryview(self._buffer)[self._held :])
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._lost(error) from error
        if not count:
            raise self._lost(None)
        self._held += count
        if self._held < self._wanted:
            return None
        runs, used = self._parse()
        self._keep(used)
        return Run.joined(runs) if runs else None

    def finish(self, doing: str) -> None:
        """Make libpq ready again. Raises what the server answered. REQUIRES: ended."""
        pgconn = self._conn.pgconn
        try:
            self._socket.send(_SYNC)
            while pgconn.is_busy():
                self._poll.poll()
                pgconn.consume_input()
            while pgconn.get_result() is not None:
                pass
        except (OSError, psycopg.Error) as error:
            raise self._lost(error) from error
        finally:
            self._socket.close()
        if self._failure is not None:
            raise answered(*self._failure, doing)

    def cancel(self) -> None:
        """See `cdc.postgres.copy.copy_out.LineReader`."""
        try:
            self._conn.cancel_safe(timeout=CANCEL_S)
        except psycopg.Error as error:
            raise lost(error) from error
        while not self.ended:
            self.read(timeout_s=CANCEL_S)
        if self._failure is not None and self._failure[0] == CANCELLED.encode():
            self._failure = None
        self.finish("cancelling a copy")

    def close(self) -> None:
        """See `cdc.postgres.copy.copy_out.LineReader`."""
        self._socket.close()

    def _keep(self, used: int) -> None:
        """Move what is left of the buffer to its front, and make room for a message that is cut."""
        rest = self._buffer[used : self._held]
        self._held = len(rest)
        self._wanted = _HEAD_BYTES
        if self._held >= _HEAD_BYTES:
            self._wanted = 1 + _HEAD.unpack_from(rest)[1]
        size = max(READ_BYTES, self._wanted)
        if len(self._buffer) != size:
            self._buffer = bytearray(size)
        self._buffer[: self._held] = rest

    def _parse(self) -> tuple[list[Run], int]:
        """The lines among what is held, and how many bytes were whole messages."""
        runs: list[Run] = []
        at, held = 0, self._held
        while held - at >= _HEAD_BYTES:
            tag, length = _HEAD.unpack_from(self._buffer, at)
            stop = at + 1 + length
            if length < _LENGTH_BYTES:
                raise _nonsense(f"a message of {length} bytes")
            if stop > held:
                break
            if tag != b"d":
                self._control(tag, bytes(self._buffer[at + _HEAD_BYTES : stop]))
                at = stop
            elif stop - at > READ_BYTES // 2:
                # Finding and masking would need several times the memory of this one large row.
                data = bytes(memoryview(self._buffer)[at + _HEAD_BYTES : stop])
                runs.append(Run(data=data, ends=np.array([len(data)], np.int64)))
                at = stop
            else:
                run, size = _lines(np.frombuffer(self._buffer, np.uint8, held - at, at))
                runs.append(run)
                at += size
        return runs, at

    def _control(self, tag: bytes, content: bytes) -> None:
        """Take note of a message that is no row."""
        if tag == b"E":
            fields = dict(_fields(content))
            self._failure = (fields.get(b"C", b""), fields.get(b"M", b""))
        elif tag == b"Z":
            self.ended = True
        elif tag not in (b"H", b"c", b"C", b"N", b"S", b"A"):
            raise _nonsense(f"a message {tag!r}")

    def _lost(self, error: Exception | None) -> Exception:
        self._socket.close()
        if self._failure is not None:
            return answered(*self._failure, "copying")
        return lost(error)


def _lines(block: U8) -> tuple[Run, int]:
    """The whole rows that a block begins with, without their heads, and the bytes they took.

    REQUIRES: the block begins with a whole row of less than its size.
    """
    ends = np.flatnonzero(block == _LF)
    gaps = np.empty_like(ends)
    gaps[:1] = ends[:1] + 1
    np.subtract(ends[1:], ends[:-1], out=gaps[1:])
    ends = ends[gaps > _HEAD_BYTES]
    starts = np.empty_like(ends)
    starts[:1] = 0
    starts[1:] = ends[:-1] + 1
    # A view of the four bytes at every place, as the length that they would be.
    lengths = np.ndarray((len(block) - _LENGTH_BYTES + 1,), ">u4", block.data, 0, (1,))
    rows = (block[starts] == _ROW) & (lengths[starts + 1] + starts == ends)
    if not rows.all():
        count = int(np.argmin(rows))
        starts, ends = starts[:count], ends[:count]
    if not len(ends):
        raise _nonsense("a row without an end")
    used = int(ends[-1]) + 1
    kept = np.ones(used, np.bool_)
    for place in range(_HEAD_BYTES):
        kept[starts + place] = False
    heads = _HEAD_BYTES * np.arange(1, len(ends) + 1)
    return Run(data=block[:used][kept].tobytes(), ends=ends + 1 - heads), used


def _fields(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The fields of an ErrorResponse, by their one-byte codes."""
    for field in content.split(b"\0"):
        if field:
            yield field[:1], field[1:]


def _nonsense(what: str) -> ConnectionLost:
    return ConnectionLost(
        f"the server sent {what} where rows of a copy should come",
        hint="the connection is made anew; if it happens again, connect without a proxy",
    )
