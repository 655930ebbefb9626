"""Messages in a block of bytes are found where they are, whatever their contents look like."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.postgres.protocol.finding import copy_data, walked
from cdc.postgres.protocol.frames import WHOLE_BYTES, Frames, Run, without_heads

MARKS = (None, ord("w"))


def message(content: bytes, tag: bytes = b"d") -> bytes:
    return tag + struct.pack(">I", 4 + len(content)) + content


def places(stream: bytes, stop: int) -> list[tuple[int, int]]:
    """The definition: one message after the other, as long as they are whole and CopyData."""
    found, at = [], 0
    while at + 5 <= stop and stream[at : at + 1] == b"d":
        length = int.from_bytes(stream[at + 1 : at + 5], "big")
        if length < 4 or at + 1 + length > stop:
            break
        found.append((at, at + 1 + length))
        at += 1 + length
    return found


def found_in(stream: bytes, stop: int, *, at: int = 0) -> list[list[tuple[int, int]]]:
    """What each way finds in a stream that begins at `at` of a block and ends amid others."""
    block = memoryview(message(b"before")[:at].ljust(at, b"d") + stream + message(b"w behind"))
    ways = [walked(block, at, at + stop)]
    for mark in MARKS:
        for scratch in (None, np.ones((2, len(block)), np.bool_)):
            ways.append(copy_data(block, at, at + stop, mark=mark, scratch=scratch))
    for starts, ends in ways:
        assert starts.dtype == ends.dtype == np.int64
    return [
        [(int(start) - at, int(end) - at) for start, end in zip(starts, ends, strict=True)]
        for starts, ends in ways
    ]


FORGED = [b"d\0", b"d\0\0\0\x05w", b"d\0\0\0\x04", b"dw", b"w", b"\0\0\0\x1d", b"d", b"\x64\0"]
"""What heads are made of."""

contents = st.one_of(
    st.lists(st.sampled_from([*FORGED, b"x", b"\n"]), max_size=12).map(b"".join),
    st.lists(st.sampled_from(FORGED), max_size=12).map(lambda parts: b"w" + b"".join(parts)),
    st.binary(max_size=40),
    # A length whose bytes look like a head: 25,600 is 0x6400.
    st.sampled_from([25_600 - 4, 100 - 4, 356 - 4]).map(lambda size: b"w" * size),
)
messages = st.one_of(
    contents.map(message),
    contents.map(message),
    contents.map(message),
    st.sampled_from([message(b"k" * 18), message(b"note", b"N"), b"d\0\0\0\x03", b"d\0\0\0\0"]),
)


@given(
    st.lists(messages, max_size=20), st.integers(0, 9), st.one_of(st.just(0), st.integers(0, 200))
)
@example([message(b"w" + message(b"w" * 24))] * 3, 0, 0)
def test_what_is_guessed_is_what_is_walked(parts: list[bytes], at: int, cut: int) -> None:
    stream = b"".join(parts)
    stop = max(len(stream) - cut, 0)
    expected = places(stream, stop)
    for found in found_in(stream, stop, at=at):
        assert found == expected


def test_a_block_may_end_at_any_byte() -> None:
    parts = [b"w" + message(b"w") * 2, b"", b"w" * 30, b"k" * 18, b"wd\0\0\0\x05", b"w" * 300]
    stream = b"".join(map(message, parts))
    for stop in range(len(stream) + 1):
        expected = places(stream, stop)
        for found in found_in(stream, stop):
            assert found == expected
    assert len(places(stream, len(stream))) == len(parts)


def test_one_byte_too_many_belongs_to_the_next_message() -> None:
    stream = message(b"w" * 25)
    for byte in range(256):
        longer = stream + bytes([byte])
        for found in found_in(longer, len(longer)):
            assert found == [(0, len(stream))]


def test_a_chain_is_followed_to_another_kind_of_message() -> None:
    stream = message(b"w1") + message(b"w2") + message(b"said", b"N") + message(b"w3")
    for found in found_in(stream, len(stream)):
        assert found == [(0, 7), (7, 14)]


def test_forged_heads_in_every_message_are_none() -> None:
    forged = message(b"w" + message(b"w" * 24))
    count = 2_000
    stream = forged * count
    for found in found_in(stream, len(stream)):
        assert found == [(i * len(forged), (i + 1) * len(forged)) for i in range(count)]


@given(
    st.lists(st.tuples(st.binary(max_size=3), st.binary(min_size=4, max_size=60), st.booleans())),
    st.integers(0, 4),
)
def test_contents_come_without_heads_and_without_what_lies_between(
    parts: list[tuple[bytes, bytes, bool]], head: int
) -> None:
    data, starts, ends = b"", [], []
    for gap, content, _ in parts:
        starts.append(len(data) + len(gap))
        data += gap + content
        ends.append(len(data))
    frames = Frames(data=data, starts=np.array(starts, np.int64), ends=np.array(ends, np.int64))
    keep = np.array([kept for _, _, kept in parts], np.bool_)
    for mask, expected in [
        (keep, [content[head:] for _, content, kept in parts if kept]),
        (None, [content[head:] for _, content, _ in parts]),
    ]:
        run = without_heads(frames, mask, head)
        assert run.data == b"".join(expected)
        assert records(run) == expected


def test_a_large_message_is_handed_on_as_a_view() -> None:
    content = bytes(range(256)) * (WHOLE_BYTES // 256)
    buffer = memoryview(bytearray(message(content)))
    starts, ends = np.array([5]), np.array([len(buffer)])
    run = without_heads(Frames(data=buffer, starts=starts, ends=ends), np.array([True]), 0)
    assert isinstance(run.data, memoryview) and run.data == content
    buffer[5] = 7
    assert run.data[0] == 7, "the bytes are those that were received"
    assert isinstance(run.cut(0, 1).data, memoryview)


def records(run: Run) -> list[bytes]:
    ends = run.ends.tolist()
    return [bytes(run.data[low:high]) for low, high in zip([0, *ends], ends, strict=False)]
