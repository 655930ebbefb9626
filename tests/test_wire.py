"""The wire: every message whole, cut at every byte, and with a byte too many."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.postgres.protocol import messages as m
from cdc.postgres.protocol import wire
from cdc.postgres.protocol.lsn import Lsn
from eventlog.changes.change import UNCHANGED, Marker, Text
from eventlog.errors import SourceError

XID = 771
LSN = Lsn(0x16_B374D848)
END = Lsn(0x16_B374D878)
SENT = 823_132_800_123_456  # as Postgres counts
UNIX = SENT + 946_684_800_000_000


def string(text: str) -> bytes:
    return text.encode() + b"\0"


def row(values: tuple[Text, ...]) -> bytes:
    parts = [struct.pack(">H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, Marker):
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack(">i", len(value)) + value)
    return b"".join(parts)


def encode(message: m.Message) -> bytes:
    """Write a message as the server does."""
    pack = struct.pack
    epoch = wire.EPOCH_US
    match message:
        case m.Begin(lsn, time, xid):
            return b"B" + pack(">QqI", lsn, time - epoch, xid)
        case m.Commit(flags, lsn, end, time):
            return b"C" + pack(">BQQq", flags, lsn, end, time - epoch)
        case m.Origin(lsn, name):
            return b"O" + pack(">Q", lsn) + string(name)
        case m.LogicalMessage(transactional, lsn, prefix, content):
            head = pack(">BQ", transactional, lsn) + string(prefix)
            return b"M" + head + pack(">i", len(content)) + content
        case m.Relation(relation, namespace, name, identity, columns):
            head = pack(">I", relation) + string(namespace) + string(name) + identity.encode()
            body = b"".join(
                pack(">B", c.key) + string(c.name) + pack(">Ii", c.type, c.typmod) for c in columns
            )
            return b"R" + head + pack(">H", len(columns)) + body
        case m.TypeMessage(oid, namespace, name):
            return b"Y" + pack(">I", oid) + string(namespace) + string(name)
        case m.Insert(relation, new):
            return b"I" + pack(">I", relation) + b"N" + row(new)
        case m.Update(relation, old, old_is_key, new):
            before = b"" if old is None else (b"K" if old_is_key else b"O") + row(old)
            return b"U" + pack(">I", relation) + before + b"N" + row(new)
        case m.Delete(relation, old, old_is_key):
            return b"D" + pack(">I", relation) + (b"K" if old_is_key else b"O") + row(old)
        case m.Truncate(relations, options):
            head = pack(">IB", len(relations), options)
            return b"T" + head + b"".join(pack(">I", relation) for relation in relations)
        case m.StreamStart(xid, first):
            return b"S" + pack(">IB", xid, first)
        case m.StreamStop():
            return b"E"
        case m.StreamCommit(xid, flags, lsn, end, time):
            return b"c" + pack(">IBQQq", xid, flags, lsn, end, time - epoch)
        case m.StreamAbort(xid, subxid, None, _):
            return b"A" + pack(">II", xid, subxid)
        case m.StreamAbort(xid, subxid, lsn, time):
            assert lsn is not None and time is not None
            return b"A" + pack(">IIQq", xid, subxid, lsn, time - epoch)
        case m.BeginPrepare(lsn, end, time, xid, gid):
            return b"b" + pack(">QQqI", lsn, end, time - epoch, xid) + string(gid)
        case m.RollbackPrepared(flags, lsn, end, time, rolled, xid, gid):
            head = pack(">BQQqqI", flags, lsn, end, time - epoch, rolled - epoch, xid)
            return b"r" + head + string(gid)
        case m.Prepare() | m.CommitPrepared() | m.StreamPrepare():
            tag = {m.Prepare: b"P", m.CommitPrepared: b"K", m.StreamPrepare: b"p"}[type(message)]
            flags, lsn, end, time, xid, gid = message
            return tag + pack(">BQQqI", flags, lsn, end, time - epoch, xid) + string(gid)


COLUMNS = (
    m.RelationColumn("id", 23, -1, True),
    m.RelationColumn("größe", 1700, (12 << 16 | 2) + 4, False),
)

CASES: list[m.Message] = [
    m.Begin(LSN, UNIX, XID),
    m.Commit(0, LSN, END, UNIX),
    m.Origin(LSN, "node_a"),
    m.LogicalMessage(True, LSN, "prefix", b"content\0\xff"),
    m.LogicalMessage(False, LSN, "", b""),
    m.Relation(16_384, "public", "orders", "d", COLUMNS),
    m.Relation(16_385, "public", "bare", "n", ()),
    m.TypeMessage(16_400, "public", "mood"),
    m.Insert(16_384, (b"1", None)),
    m.Insert(16_385, ()),
    m.Update(16_384, None, False, (b"1", UNCHANGED)),
    m.Update(16_384, (b"1", None), True, (b"2", b"")),
    m.Update(16_384, (b"1", b"9.50"), False, (b"2", None)),
    m.Delete(16_384, (b"1", None), True),
    m.Delete(16_384, (b"1", b"9.50"), False),
    m.Truncate((16_384,), 0),
    m.Truncate((16_384, 4_294_967_295), 3),
    m.StreamStart(XID, True),
    m.StreamStop(),
    m.StreamCommit(XID, 0, LSN, END, UNIX),
    m.StreamAbort(XID, XID + 1, None, None),
    m.StreamAbort(XID, XID, LSN, UNIX),
    m.BeginPrepare(LSN, END, UNIX, XID, "gid"),
    m.Prepare(0, LSN, END, UNIX, XID, "gid"),
    m.CommitPrepared(0, LSN, END, UNIX, XID, "gid"),
    m.RollbackPrepared(0, LSN, END, UNIX, UNIX + 1, XID, ""),
    m.StreamPrepare(0, LSN, END, UNIX, XID, "gid"),
]

each_message = pytest.mark.parametrize("message", CASES, ids=lambda case: type(case).__name__)


def test_every_tag_of_the_protocol_has_a_case() -> None:
    assert {encode(message)[:1] for message in CASES} == set(
        map(bytes, zip(b"BCORYIUDTMSEcAbPKrp"))
    )


@each_message
def test_a_whole_message_is_read(message: m.Message) -> None:
    read = wire.parse(encode(message))
    assert type(read) is type(message)
    assert read == message
    assert wire.parse(memoryview(encode(message))) == message


@each_message
def test_a_message_cut_at_any_byte_is_refused(message: m.Message) -> None:
    whole = encode(message)
    for length in range(len(whole)):
        if whole[:1] == b"A" and length == 9:
            continue  # the form without position and time
        with pytest.raises(wire.WireError) as caught:
            wire.parse(whole[:length])
        if length:
            assert repr(chr(whole[0])) in str(caught.value)
            assert " at byte " in str(caught.value)


@each_message
@pytest.mark.parametrize("more", [b"\0", b"n", b"\xff"])
def test_a_byte_too_many_is_refused(message: m.Message, more: bytes) -> None:
    with pytest.raises(wire.WireError, match=r"at byte|expected"):
        wire.parse(encode(message) + more)


def test_wire_errors_are_the_sources() -> None:
    assert issubclass(wire.WireError, SourceError)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"", "is empty"),
        (b"?", "unknown tag '\\?'"),
        (b"\xff", "unknown tag"),
        (b"I\0\0\0\1K\0\0", "'N' expected, 'K' found at byte 5"),
        (b"U\0\0\0\1X\0\0", "'N' expected, 'X' found at byte 5"),
        (b"D\0\0\0\1N\0\0", "'K' or 'O' expected, 'N' found at byte 5"),
        (b"I\0\0\0\1N\0\1b\0\0\0\1x", "unknown kind 'b' at byte 8"),
        (b"I\0\0\0\1N\0\1t\xff\xff\xff\xff", "-1 bytes expected"),
        (b"I\0\0\0\1N\0\1t\x7f\xff\xff\xff", "2147483647 bytes expected, 0 left"),
        (b"T\xff\xff\xff\xff\0", "4 bytes expected, 0 left"),
        (b"O\0\0\0\0\0\0\0\0name", "a string without end at byte 9"),
        (b"O\0\0\0\0\0\0\0\0\xff\0", "a string that is not UTF-8 at byte 9"),
    ],
)
def test_what_is_no_message_is_named_by_tag_and_place(payload: bytes, problem: str) -> None:
    with pytest.raises(wire.WireError, match=problem):
        wire.parse(payload)


def test_an_empty_namespace_means_pg_catalog() -> None:
    relation = wire.parse(b"R" + struct.pack(">I", 1) + b"\0pg_x\0d\0\0")
    assert relation == m.Relation(1, "pg_catalog", "pg_x", "d", ())
    assert wire.parse(b"Y" + struct.pack(">I", 1) + b"\0x\0") == m.TypeMessage(1, "pg_catalog", "x")


u8, u32, u64 = st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
lsns = u64.map(Lsn)
times = st.integers(-(2**62), 2**62)
names = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
rows = st.lists(st.one_of(st.none(), st.just(UNCHANGED), st.binary())).map(tuple)
gids = names
prepared = (u8, lsns, lsns, times, u32, gids)
typmods = st.integers(-(2**31), 2**31 - 1)
columns = st.lists(st.builds(m.RelationColumn, names, u32, typmods, st.booleans())).map(tuple)
updates = st.one_of(
    st.builds(m.Update, u32, st.none(), st.just(False), rows),
    st.builds(m.Update, u32, rows, st.booleans(), rows),
)
any_message = st.one_of(
    st.builds(m.Begin, lsns, times, u32),
    st.builds(m.Commit, u8, lsns, lsns, times),
    st.builds(m.Origin, lsns, names),
    st.builds(m.LogicalMessage, st.booleans(), lsns, names, st.binary()),
    st.builds(m.Relation, u32, names.filter(bool), names, st.sampled_from("dnfi"), columns),
    st.builds(m.TypeMessage, u32, names.filter(bool), names),
    st.builds(m.Insert, u32, rows),
    updates,
    st.builds(m.Delete, u32, rows, st.booleans()),
    st.builds(m.Truncate, st.lists(u32).map(tuple), u8),
    st.builds(m.StreamStart, u32, st.booleans()),
    st.builds(m.StreamCommit, u32, u8, lsns, lsns, times),
    st.builds(m.StreamAbort, u32, u32, st.none(), st.none()),
    st.builds(m.StreamAbort, u32, u32, lsns, times),
    st.builds(m.BeginPrepare, lsns, lsns, times, u32, gids),
    st.builds(m.Prepare, *prepared),
    st.builds(m.CommitPrepared, *prepared),
    st.builds(m.StreamPrepare, *prepared),
    st.builds(m.RollbackPrepared, u8, lsns, lsns, times, times, u32, gids),
)


@given(any_message)
def test_any_message_survives(message: m.Message) -> None:
    read = wire.parse(encode(message))
    assert (type(read), read) == (type(message), message)


@given(any_message, st.data())
def test_any_message_cut_anywhere_is_refused(message: m.Message, data: st.DataObject) -> None:
    whole = encode(message)
    length = data.draw(st.integers(0, len(whole) - 1))
    if not (whole[:1] == b"A" and length == 9):
        with pytest.raises(wire.WireError):
            wire.parse(whole[:length])


@given(st.binary(), st.sampled_from(b"BCORYIUDTMSEcAbPKrp"))
def test_no_bytes_raise_anything_but_wire_errors(noise: bytes, tag: int) -> None:
    for read in (wire.parse, wire.parse_frame, wire.split_truncate, wire.take_xid):
        for payload in (noise, bytes([tag]) + noise):
            refused(read, payload)


def refused(read: Callable[[bytes], object], payload: bytes) -> bool:
    try:
        read(payload)
    except wire.WireError:
        return True
    return False


def test_a_truncate_of_three_tables_becomes_three_of_one() -> None:
    parts = wire.split_truncate(encode(m.Truncate((7, 8, 7), 2)))
    assert parts == [encode(m.Truncate((relation,), 2)) for relation in (7, 8, 7)]


def test_a_truncate_of_one_table_stays_as_it_is() -> None:
    payload = encode(m.Truncate((7,), 1))
    assert wire.split_truncate(payload) == [payload]


def test_only_a_truncate_is_split() -> None:
    with pytest.raises(wire.WireError, match="no truncate"):
        wire.split_truncate(b"E")


@each_message
def test_a_streamed_message_gives_up_its_transaction_id(message: m.Message) -> None:
    stored = encode(message)
    assert wire.take_xid(stored[:1] + struct.pack(">I", XID) + stored[1:]) == (XID, stored)


@pytest.mark.parametrize("payload", [b"", b"I", b"I\0\0\0"])
def test_a_streamed_message_without_a_whole_transaction_id_is_refused(payload: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.take_xid(payload)


def test_frames_are_read() -> None:
    payload = encode(CASES[0])
    frame = b"w" + struct.pack(">QQq", LSN, END, SENT) + payload
    assert wire.parse_frame(frame) == wire.XLogData(LSN, END, UNIX, payload)
    alive = b"k" + struct.pack(">QqB", END, SENT, 1)
    assert wire.parse_frame(memoryview(alive)) == wire.Keepalive(END, UNIX, True)


def test_cut_and_overlong_frames_are_refused() -> None:
    alive = b"k" + struct.pack(">QqB", END, SENT, 1)
    data = b"w" + struct.pack(">QQq", LSN, END, SENT)
    for frame in (alive, data):
        for length in range(len(frame)):
            assert refused(wire.parse_frame, frame[:length]), (frame[:1], length)
    assert refused(wire.parse_frame, alive + b"\0")
    assert refused(wire.parse_frame, b"r" + alive[1:])


def test_a_status_update_is_34_bytes_in_the_order_of_the_protocol() -> None:
    status = wire.status_update(END, LSN, Lsn(1), UNIX, reply=True)
    assert status == b"r" + struct.pack(">QQQqB", END, LSN, 1, SENT, 1)
    assert len(status) == 34
    assert wire.status_update(1, 1, 1, UNIX)[-1] == 0
