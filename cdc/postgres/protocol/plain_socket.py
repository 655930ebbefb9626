"""A connection that is not encrypted, read past libpq: blocks of messages instead of single ones.

::

    libpq connects, authenticates, sends one statement; of its answer it is shown nothing

    socket ──recv──▶ block of READ_BYTES ──▶ Frames: all CopyData messages in it, heads in between
                └──▶ a buffer of its own     one large message: a view, never copied
    others: E what failed, N S A nothing, W H it begins, c C Z how it ends

libpq hands out one message a call, which costs more than the server spends on making it, and holds
a large one three times. So the messages are taken here: as many as there are, at once.

What is sent must not stop what is received, else both ends might wait for each other. So the socket
never blocks, what it does not take is kept, and goes out first when it does.

A request to wake ends a wait. One thread owns all of it; the socket is a copy of libpq's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import Self

import numpy as np

from cdc.errors import CaptureError, ConnectionLost
from cdc.postgres.connection import Connection
from cdc.postgres.protocol.answers import answered, error_fields, lost
from cdc.postgres.protocol.finding import (
    DENSE_BYTES,
    HEAD_BYTES,
    LENGTH_BYTES,
    Found,
    copy_data,
)
from cdc.postgres.protocol.frames import Frames
from cdc.postgres.protocol.transport import Wake

READ_BYTES = 1 << 19
"""What is taken at once. A message of more than half of it gets a buffer of its own."""

MESSAGE_BYTES_MAX = (1 << 30) + (1 << 20)
"""Postgres makes no value of 1 GiB, and no message that holds more than one row."""

_HEAD = struct.Struct(">cI")
_DONE = b"c" + struct.pack(">I", LENGTH_BYTES)
_BEGINS = b"WH"
_SAYS = b"WHENSAcCZd"
"""What the server may say in answer to a COPY; encrypted records begin with other bytes."""


class PlainSocket:
    """The answer to one statement that copies; `ended` once a message of the kinds `last` came.

    `begun`: the server accepted the statement. `failure`: the SQLSTATE and message of its error.
    """

    def __init__(
        self, plain: socket.socket, *, last: bytes, doing: str, mark: int | None = None
    ) -> None:
        """`mark`: what the content of most messages begins with. `doing`: for errors."""
        self.begun = self.ended = False
        self.failure: tuple[bytes, bytes] | None = None
        self._socket = plain
        self._last = last
        self._doing = doing
        self._mark = mark
        self._wake: Wake | None = None
        self._woken = False
        self._poll = select.poll()
        self._poll.register(plain.fileno(), select.POLLIN)
        self._buffer = bytearray(READ_BYTES)
        self._held = 0
        self._dense = True
        self._scratch = np.empty((2, READ_BYTES), np.bool_)
        self._large: memoryview | None = None
        self._large_held = 0
        self._forgetting = False
        self._forget_bytes = 0
        self._unsent = self._to_send = b""

    @classmethod
    def opened(
        cls, conn: Connection, statement: bytes, *, last: bytes, doing: str, mark: int | None = None
    ) -> Self | None:
        """Send the statement and wait for the answer; None where libpq must read it."""
        pgconn = conn.pgconn
        pgconn.send_query(statement)
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
        if not first or first not in _SAYS:
            plain.close()
            return None
        return cls(plain, last=last, doing=doing, mark=mark)

    @property
    def arriving(self) -> int:
        """The size in bytes of the large message that is being received; 0 where none is."""
        return 0 if self._large is None else len(self._large)

    def wake_by(self, wake: Wake) -> None:
        """From now on, let that end a wait."""
        self._wake = wake
        self._poll.register(wake.fileno(), select.POLLIN)

    def read(self, *, timeout_s: float, gather_s: float = 0.0) -> Frames | None:
        """What came: a block of whole messages or a large one. None if nothing whole did.

        Raises ConnectionLost, and what the server said before it closed the connection.
        """
        self._woken = False
        if self.ended or not self._wait(timeout_s):
            return None
        if self._forget_bytes:
            room = memoryview(self._buffer)[: self._forget_bytes]
            self._forget_bytes -= self._receive(room)
            return None
        if self._large is not None:
            return self._read_large(self._large, time.monotonic() + timeout_s)
        return self._parsed() if self._fill(gather_s) else None

    def forget(self) -> None:
        """Keep no large message any more: its bytes are dropped as they come."""
        self._forgetting = True
        if self._large is not None:
            self._forget_bytes = len(self._large) - self._large_held
            self._large = None

    def send(self, content: bytes) -> None:
        """Send a CopyData message, instead of one that waits to be sent.

        Whether the server is still there, `read` tells.
        """
        self._to_send = _HEAD.pack(b"d", LENGTH_BYTES + len(content)) + content
        self._flush()

    def finish(self, *, timeout_s: float) -> None:
        """Tell the server that this is the end, and read on until it is ready again."""
        if not self.ended:
            self.forget()
            self._to_send += _DONE
            self._last = b"Z"
            self._flush()
        deadline = time.monotonic() + timeout_s
        while not self.ended and (left := deadline - time.monotonic()) > 0:
            self.read(timeout_s=left)

    def close(self) -> None:
        """Let go of the socket; libpq's own stays."""
        self._socket.close()

    def request(self, message: bytes) -> None:
        """Send a whole message, waiting until it is taken. REQUIRES: `ended`."""
        self._to_send += message
        self._flush()
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLOUT)
        while self._unsent or self._to_send:
            poll.poll()
            self._flush()

    def wait(self) -> None:
        """Wait for more from the server, for libpq to read."""
        self._poll.poll()

    def _wait(self, timeout_s: float) -> bool:
        """Wait for bytes from the server; False on a time-out or a wake."""
        came = False
        for descriptor, event in self._poll.poll(timeout_s * 1000):
            if self._wake is not None and descriptor == self._wake.fileno():
                self._wake.clear()
                self._woken = True
                continue
            if event & select.POLLOUT:
                self._flush()
            came |= bool(event & ~select.POLLOUT)
        return came

    def _fill(self, gather_s: float) -> bool:
        """Fill the block with what is there; False where nothing is."""
        block, before = memoryview(self._buffer), self._held
        self._held += self._receive(block[before:])
        if gather_s and before < self._held < len(block):
            # Asleep, not polling: the server sends few rows at a time, and each wakes a poll. The
            # socket was emptied before, so that the server need not wait meanwhile.
            time.sleep(gather_s)
        # What came counts first, if the connection breaks behind it: that is met again.
        with contextlib.suppress(CaptureError):
            while before < self._held < len(block):
                count = self._receive(block[self._held :])
                if not count:
                    break
                self._held += count
        return self._held > before

    def _receive(self, room: memoryview) -> int:
        """Take what is there, 0 if nothing is."""
        try:
            count = self._socket.recv_into(room)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken(error) from error
        if not count:
            raise self._broken(None)
        return count

    def _flush(self) -> None:
        while self._unsent or self._to_send:
            if not self._unsent:
                self._unsent, self._to_send = self._to_send, b""
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                self._poll.modify(self._socket.fileno(), select.POLLIN | select.POLLOUT)
                return
            except OSError:
                # Why, the server may have said: what it sent is read first.
                self._unsent = self._to_send = b""
                break
            self._unsent = self._unsent[sent:]
        self._poll.modify(self._socket.fileno(), select.POLLIN)

    def _parsed(self) -> Frames | None:
        """The messages among what is held; the rest of the block moves to its front."""
        block, at, held = memoryview(self._buffer), 0, self._held
        found: list[Found] = []
        while held - at >= HEAD_BYTES and not self.ended:
            tag, stop = self._head(block, at)
            if stop > held:
                break
            if tag == b"d":
                scratch = self._scratch if self._dense else None
                found.append(copy_data(block, at, held, mark=self._mark, scratch=scratch))
                at = int(found[-1][1][-1])
            else:
                self._control(tag, bytes(block[at + HEAD_BYTES : stop]))
                at = stop
        frames = None
        if found:
            starts = np.concatenate([starts for starts, _ in found])
            ends = np.concatenate([ends for _, ends in found])
            self._dense = at < DENSE_BYTES * len(ends)
            frames = Frames(data=bytes(block[:at]), starts=starts + HEAD_BYTES, ends=ends)
        self._keep(bytes(block[at:held]))
        return frames

    def _keep(self, rest: bytes) -> None:
        self._held = len(rest)
        self._buffer[: len(rest)] = rest
        if self._held < HEAD_BYTES or self.ended:
            return
        tag, size = self._head(memoryview(rest), 0)
        if size <= READ_BYTES // 2:
            return
        self._held = 0
        if self._forgetting and tag == b"d":
            self._forget_bytes = size - len(rest)
            return
        # Not zeroed: pages that were not filled take no memory.
        self._large = np.empty(size, np.uint8).data
        self._large[: len(rest)] = rest
        self._large_held = len(rest)

    def _read_large(self, large: memoryview, deadline: float) -> Frames | None:
        """Go on with a large message, until it is whole or the time is over."""
        while True:
            count = self._receive(large[self._large_held :])
            self._large_held += count
            if self._large_held == len(large):
                break
            left = deadline - time.monotonic()
            if self._woken or left <= 0 or (not count and not self._wait(left)):
                return None
        self._large = None
        tag, size = self._head(large, 0)
        if tag != b"d":
            self._control(tag, bytes(large[HEAD_BYTES:]))
            return None
        starts, ends = np.array([HEAD_BYTES], np.int64), np.array([size], np.int64)
        return Frames(data=large.toreadonly(), starts=starts, ends=ends)

    def _head(self, block: memoryview, at: int) -> tuple[bytes, int]:
        """The kind of the message that begins there, and where it ends."""
        tag, length = _HEAD.unpack_from(block, at)
        if tag not in _SAYS:
            raise self._nonsense(f"a message {tag!r}")
        if not LENGTH_BYTES <= length <= MESSAGE_BYTES_MAX:
            raise self._nonsense(f"a message of {length} bytes")
        return tag, at + 1 + length

    def _control(self, tag: bytes, content: bytes) -> None:
        """Take note of a message that is no CopyData."""
        if tag == b"E":
            fields = dict(error_fields(content))
            self.failure = fields.get(b"C", b""), fields.get(b"M", b"")
        self.begun |= tag in _BEGINS
        self.ended |= tag in self._last

    def _broken(self, error: Exception | None) -> Exception:
        if self.failure is not None:
            return answered(*self.failure, self._doing)
        return lost(error)

    def _nonsense(self, what: str) -> ConnectionLost:
        return ConnectionLost(
            f"{self._doing}: the server sent {what}",
            hint="the connection is made anew; if it happens again, connect without a proxy",
        )
