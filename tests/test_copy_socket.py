"""Rows of a COPY are found in blocks of bytes, wherever these are cut and however long rows are."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from cdc.errors import ConnectionLost, ServerError
from cdc.postgres.connection import connect
from cdc.postgres.copy import copy_socket
from cdc.postgres.copy.copy_socket import SocketReader
from cdc.postgres.protocol import plain_socket
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.plain_socket import PlainSocket
from tests.fix_postgres import Database

COPY_BEGINS = b"H" + struct.pack(">IBH", 7, 0, 0)
NOTICE = b"N" + struct.pack(">I", 4 + 17) + b"SNOTICE\0Mno\ndo\n\0\0"
SETTING = b"S" + struct.pack(">I", 4 + 13) + b"TimeZone\0UTC\0"
ENDS = b"c" + struct.pack(">I", 4) + b"C" + struct.pack(">I", 4 + 7) + b"COPY 1\0"
READY = b"Z" + struct.pack(">Ic", 5, b"I")


def framed(line: bytes) -> bytes:
    return b"d" + struct.pack(">I", 4 + len(line)) + line


def line_of(length: int, rng: random.Random) -> bytes:
    """A line of so many bytes, of letters that heads are made of, too."""
    return bytes(rng.choices(b"dZE\tx\x00\x01\x05\xff", k=length - 1)).replace(b"\n", b"x") + b"\n"


class Sender:
    """The server's end of a socket, and a reader of the other."""

    def __init__(self) -> None:
        self.server, client = socket.socketpair()
        client.setblocking(False)
        none: Any = None  # libpq's connection is of use at the end alone
        self.reader = SocketReader(none, PlainSocket(client, last=b"Z", doing="copying"))

    def lines(self, stream: bytes, *, piece: int) -> Run:
        """What the reader makes of a stream that comes in pieces."""
        runs = []
        for start in range(0, len(stream), piece):
            self.server.sendall(stream[start : start + piece])
            run = self.reader.read(timeout_s=0)
            if run is not None:
                runs.append(run)
        while (run := self.reader.read(timeout_s=0)) is not None:
            runs.append(run)
        return Run.joined(runs)

    def close(self) -> None:
        self.server.close()
        self.reader.close()


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    monkeypatch.setattr(plain_socket, "READ_BYTES", 4096)
    monkeypatch.setattr(copy_socket, "GATHER_S", 0)
    made = Sender()
    yield made
    made.close()


def assert_same(run: Run, lines: list[bytes]) -> None:
    assert run.data == b"".join(lines)
    ends = run.ends.tolist()
    assert [high - low for low, high in zip([0, *ends], ends, strict=False)] == list(
        map(len, lines)
    )


# A length with a byte 0x0A looks like the end of a line: 6, 262, 518, and 2556 to 2811 bytes.
LENGTHS = {
    "an integer of five digits": [6] * 400,
    "no columns": [1] * 500,
    "all short ones": list(range(1, 40)) * 8,
    "a length of two line feeds": [2566 - 4 + 4, 2566 - 4, 6, 6, 1, 2562, 1, 2570 - 4],
    "lengths whose third byte is a line feed": list(range(2550, 2580)),
    "larger than the buffer": [1, 9_000, 6, 4096, 4091, 1, 70_000, 2049, 2048, 2043],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
@pytest.mark.parametrize("piece", [1, 7, 1000, 10_000])
def test_every_row_comes_whole_wherever_the_stream_is_cut(
    sender: Sender, lengths: list[int], piece: int
) -> None:
    if piece == 1:
        lengths = [length for length in lengths if length < 5_000]
        lengths = lengths[: max(10_000 // max(lengths), 5)]
    rng = random.Random(len(lengths))
    lines = [line_of(length, rng) for length in lengths]
    stream = COPY_BEGINS + b"".join(map(framed, lines)) + ENDS + READY
    assert_same(sender.lines(stream, piece=piece), lines)
    assert sender.reader.ended


def test_rows_of_any_lengths_in_any_pieces(sender: Sender) -> None:
    for seed in range(25):
        print(f"seed {seed}")
        rng = random.Random(seed)
        longest = rng.choice([8, 300, 3000])
        lines = [line_of(rng.randint(1, longest), rng) for _ in range(rng.randint(1, 300))]
        stream = b"".join(map(framed, lines))
        assert_same(sender.lines(stream, piece=rng.randint(1, 5_000)), lines)


@pytest.mark.parametrize("piece", [3, 1000])
def test_what_the_server_says_between_rows_is_no_row(sender: Sender, piece: int) -> None:
    lines = [b"1\n", b"22222\n", b"3\n"]
    middle = NOTICE.join(map(framed, lines))
    stream = NOTICE + COPY_BEGINS + SETTING + middle + SETTING + ENDS + READY
    assert_same(sender.lines(stream, piece=piece), lines)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (framed(b"1\n") + b"?" + struct.pack(">I", 4), r"a message b'\?'"),
        (b"d" + struct.pack(">I", 3) + b"1\n", "a message of 3 bytes"),
        (framed(b"a row without an end"), "a row without an end"),
        (framed(b""), "a row without an end"),
        (framed(b"1\n") + framed(b"") + framed(b"3\n"), "a row without an end"),
    ],
)
def test_bytes_that_are_no_copy_are_refused(sender: Sender, stream: bytes, said: str) -> None:
    with pytest.raises(ConnectionLost, match=said):
        sender.lines(stream, piece=1000)


def test_a_connection_that_ends_early_is_lost(sender: Sender) -> None:
    stream = framed(b"1\n") + framed(b"2\n")[:-1]
    assert_same(sender.lines(stream, piece=1000), [b"1\n"])
    sender.server.close()
    with pytest.raises(ConnectionLost, match="was lost"):
        sender.reader.read(timeout_s=1)


def test_a_server_that_says_why_it_ends_is_heard(sender: Sender) -> None:
    fields = b"SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    sender.server.sendall(b"E" + struct.pack(">I", 4 + len(fields)) + fields)
    assert sender.reader.read(timeout_s=1) is None
    sender.server.close()
    with pytest.raises(ConnectionLost, match="administrator command"):
        sender.reader.read(timeout_s=1)


def test_a_plain_connection_is_read_by_its_socket_and_stays_usable(database: Database) -> None:
    conn = connect(database.dsn)
    statement = b"copy (select i from generate_series(1, 100000) i) to stdout"
    for _ in range(2):
        reader = SocketReader.opened(conn, statement)
        assert reader is not None
        runs = []
        while not reader.ended:
            runs += filter(None, [reader.read(timeout_s=1)])
        reader.finish("copying")
        assert_same(Run.joined(runs), [b"%d\n" % i for i in range(1, 100_001)])
        assert conn.execute("select 7").fetchone() == (7,)
    conn.close()


def test_what_fails_at_the_server_is_told_and_the_connection_stays_usable(
    database: Database,
) -> None:
    conn = connect(database.dsn)
    for statement, state in [
        (b"copy (select 1 / (50000 - i) from generate_series(1, 60000) i) to stdout", "22012"),
        (b"copy nowhere to stdout", "42P01"),
        (b"copy (select 1) two stdout", "42601"),
    ]:
        reader = SocketReader.opened(conn, statement)
        assert reader is not None
        while not reader.ended:
            reader.read(timeout_s=1)
        with pytest.raises(ServerError, match="copying: ") as failure:
            reader.finish("copying")
        assert failure.value.sqlstate == state
        assert conn.execute("select 7").fetchone() == (7,)
    conn.close()
