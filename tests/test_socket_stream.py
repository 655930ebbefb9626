"""A replication stream read from its socket: whatever comes and is sent, wherever it is cut."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cdc.errors import ConnectionLost, ServerError, SlotInUse
from cdc.postgres.protocol import plain_socket
from cdc.postgres.protocol.answers import answered
from cdc.postgres.protocol.plain_socket import PlainSocket
from cdc.postgres.protocol.socket_stream import SocketStream
from cdc.postgres.protocol.transport import Wake
from cdc.postgres.protocol.wire import status_update
from tests.fix_capture import keepalive, xlog


def message(tag: bytes, content: bytes) -> bytes:
    return tag + struct.pack(">I", 4 + len(content)) + content


NOTICE = message(b"N", b"SNOTICE\0Mno\ndo\n\0\0")
SETTING = message(b"S", b"TimeZone\0UTC\0")
ERROR = message(b"E", b"SERROR\0C58P01\0Mrequested WAL segment has already been removed\0\0")
FATAL = message(b"E", b"SFATAL\0C57P01\0Mterminating connection\0\0")
READY = message(b"Z", b"I")
DONE = message(b"c", b"")
COMPLETE = message(b"C", b"COPY 0\0")


class Connection:
    """libpq's, as far as a stream uses it."""

    def close(self) -> None:
        pass


class Line:
    """A stream and the server's end of its socket."""

    def __init__(self) -> None:
        self.server, client = socket.socketpair()
        self.server.settimeout(10)
        client.setblocking(False)
        self.plain = PlainSocket(client, last=b"EcCZ", doing="streaming changes", mark=ord("w"))
        self.wake = Wake()
        self.plain.wake_by(self.wake)
        conn: Any = Connection()
        self.stream = SocketStream(conn, self.plain, None)

    def read(self, *, timeout_s: float = 0) -> list[bytes]:
        """The contents of what comes; empty if nothing does."""
        frames = self.stream.read(timeout_s=timeout_s)
        return [] if frames is None else [bytes(frames[i]) for i in range(len(frames))]

    def sent(self, stream: bytes, *, piece: int) -> list[bytes]:
        """What is made of a stream that comes in pieces."""
        found = []
        for start in range(0, len(stream), piece):
            self.server.sendall(stream[start : start + piece])
            found += self.read()
        for _ in range(5):  # A large message takes more than one.
            found += self.read()
        return found

    def close(self) -> None:
        self.server.close()
        self.plain.close()
        self.wake.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(plain_socket, "READ_BYTES", 4096)
    made = Line()
    yield made
    made.close()


def contents_of(rng: random.Random) -> list[bytes]:
    """Messages of a stream, some of them larger than a block, some that look like heads."""
    sizes = [0, 3, 60, 300, 2_000, 2_043, 2_044, 4_091, 4_096, 9_000]
    return [
        rng.choice(
            [
                xlog(b"I" + bytes(rng.choices(b"dw\0\x05Zx", k=rng.choice(sizes)))),
                keepalive(rng.randrange(1 << 40)),
                b"",
            ]
        )
        for _ in range(rng.randint(1, 40))
    ]


def test_every_message_comes_whole_wherever_the_stream_is_cut(line: Line) -> None:
    for seed in range(40):
        print(f"seed {seed}")
        rng = random.Random(seed)
        contents = contents_of(rng)
        between = [b"", b"", b"", NOTICE, SETTING]
        stream = b"".join(message(b"d", each) + rng.choice(between) for each in contents)
        assert line.sent(stream, piece=rng.choice([7, 100, 1000, 5000])) == contents


def test_a_stream_that_comes_byte_by_byte(line: Line) -> None:
    contents = [xlog(b"I" + b"x" * 20), keepalive(7), xlog(b"I" + b"d\0\0\0\x05w" * 3), b""]
    stream = NOTICE + NOTICE.join(message(b"d", each) for each in contents) + SETTING
    assert line.sent(stream, piece=1) == contents


def test_a_connection_that_dies_amid_a_message_is_lost(line: Line) -> None:
    for size in (10, 8_000):
        dying = Line()
        whole = message(b"d", keepalive(1))
        assert dying.sent(whole + message(b"d", xlog(b"x" * size))[:-1], piece=1000) == [
            keepalive(1)
        ]
        dying.server.close()
        with pytest.raises(ConnectionLost, match="was lost"):
            dying.read(timeout_s=1)
        dying.close()


def test_an_error_comes_after_what_was_sent_before_it(line: Line) -> None:
    line.server.sendall(message(b"d", keepalive(1)) + ERROR + READY)
    assert line.read(timeout_s=1) == [keepalive(1)]
    for _ in range(2):
        with pytest.raises(ServerError, match="streaming changes: requested WAL segment") as told:
            line.read(timeout_s=1)
    assert told.value.sqlstate == "58P01"


def test_a_server_that_stops_says_why_or_only_that(line: Line) -> None:
    for said, pattern in [
        (FATAL, "terminating connection"),
        (COMPLETE, "the server ended the replication stream"),
        (DONE + COMPLETE + READY, "the server ended the replication stream"),
    ]:
        stopping = Line()
        stopping.server.sendall(message(b"d", keepalive(1)) + said)
        stopping.server.close()
        assert stopping.read(timeout_s=1) == [keepalive(1)]
        with pytest.raises(ConnectionLost, match=pattern):
            stopping.read(timeout_s=1)
        stopping.close()


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (message(b"?", b""), r"a message b'\?'"),
        (b"d" + struct.pack(">I", 3), "a message of 3 bytes"),
        (b"d" + struct.pack(">I", (1 << 31) - 1), "a message of 2147483647 bytes"),
        (message(b"d", b"w") + message(b"T", b""), r"a message b'T'"),
    ],
)
def test_bytes_that_are_no_stream_are_refused(line: Line, stream: bytes, said: str) -> None:
    with pytest.raises(ConnectionLost, match=said):
        line.sent(stream, piece=1000)


def test_a_large_message_is_not_copied(line: Line) -> None:
    content = xlog(b"I" + random.Random(1).randbytes(3_000_000))
    sending = threading.Thread(
        target=line.server.sendall, args=[message(b"d", content) + message(b"d", keepalive(1))]
    )
    sending.start()
    frames = None
    while frames is None:
        frames = line.stream.read(timeout_s=0.1)
        assert line.plain.arriving in (0, len(content) + 5)
    sending.join()
    assert isinstance(frames.data, memoryview) and frames.data.readonly
    assert len(frames) == 1 and frames[0] == content
    assert line.read(timeout_s=1) == [keepalive(1)]


def test_status_updates_wait_for_room_and_the_last_one_counts(line: Line) -> None:
    """The server reads nothing for a while: nothing blocks, and no message is torn apart."""
    line.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    updates = [status_update(position, position, position, 0) for position in range(20_000)]
    for update in updates:
        line.stream.send(update)
    line.server.sendall(message(b"d", keepalive(1)))
    assert line.read(timeout_s=1) == [keepalive(1)], "what came is read meanwhile"
    taken = b""
    while not taken.endswith(message(b"d", updates[-1])):
        taken += line.server.recv(1000)
        line.read()
    size = len(message(b"d", updates[0]))
    messages = [taken[start : start + size] for start in range(0, len(taken), size)]
    assert set(messages) <= {message(b"d", update) for update in updates}
    assert messages == sorted(messages) and len(messages) < len(updates)


def test_what_cannot_be_sent_is_told_by_what_the_server_said(line: Line) -> None:
    line.server.sendall(FATAL)
    line.server.close()
    for position in range(3):
        line.stream.send(status_update(position, 0, 0, 0))
    with pytest.raises(ConnectionLost, match="terminating connection"):
        line.read(timeout_s=1)


def test_a_wake_ends_a_wait_once(line: Line) -> None:
    waker = threading.Timer(0.05, line.wake.set)
    waker.start()
    assert line.read(timeout_s=30) == []
    waker.join()
    line.server.sendall(message(b"d", keepalive(1)))
    assert line.read(timeout_s=30) == [keepalive(1)]


def test_a_wake_ends_a_wait_for_the_rest_of_a_large_message(line: Line) -> None:
    content = xlog(b"x" * 10_000)
    line.server.sendall(message(b"d", content)[:5_000])
    assert line.read(timeout_s=1) == []
    line.wake.set()
    assert line.read(timeout_s=30) == []
    line.server.sendall(message(b"d", content)[5_000:])
    assert line.read(timeout_s=30) == [content]


def test_the_end_is_told_and_waited_for(line: Line) -> None:
    """What still comes is dropped, a large message that is half there included."""
    line.server.sendall(message(b"d", xlog(b"x" * 10_000))[:6_000])
    assert line.read(timeout_s=1) == []
    rest = message(b"d", xlog(b"x" * 10_000))[6_000:] + message(b"d", xlog(b"y" * 9_000))
    ending = threading.Thread(target=line.stream.close)
    line.stream.send(status_update(5, 5, 5, 0))
    line.server.sendall(rest)
    ending.start()
    expected = message(b"d", status_update(5, 5, 5, 0)) + DONE
    taken = b""
    while len(taken) < len(expected):
        taken += line.server.recv(1000)
    assert taken == expected
    line.server.sendall(message(b"d", keepalive(9)) + DONE + COMPLETE + READY)
    ending.join(10)
    assert not ending.is_alive() and line.plain.ended


def test_a_slot_that_another_process_uses_is_told_with_its_pid() -> None:
    said = b'replication slot "s" is active for PID 4711'
    error = answered(b"55006", said, "starting to stream", slot="s")
    assert isinstance(error, SlotInUse) and "4711" in str(error)
