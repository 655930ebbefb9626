"""The assembler without a server: the same batches however the frames are cut."""

from __future__ import annotations

import random
import struct
from typing import NamedTuple

import pytest

from cdc.postgres.assembler import Assembler
from cdc.postgres.protocol.frames import Frames
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.wire import WireError
from cdc.postgres.schema.schema_book import SchemaBook
from eventlog.engine import Batch
from eventlog.engine.batch import BATCH_BYTES
from eventlog.engine.payload import decode
from tests.fix_capture import (
    begin,
    commit,
    insert_record,
    keepalive,
    message_record,
    relation,
    transaction,
    truncate_record,
    xlog,
)

T, U = 16_400, 16_401
TABLE = relation(T, "t", "id", "note")
OTHER = relation(U, "u", "id")
ROW_OVERHEAD = len(insert_record(T, b""))


class Told(NamedTuple):
    """One record with what its batch says of it."""

    record: bytes
    tx: int
    position: int
    time_us: int
    place: int
    schema: int | None


def new(position: int = 0) -> Assembler:
    return Assembler(SchemaBook([], lambda oid: None), Lsn(position))


def told(batches: list[Batch]) -> list[Told]:
    found = []
    for batch in batches:
        payload = decode(b"".join(batch.body.parts()), where="a test")
        marks, relations = batch.transactions, dict(batch.relations)
        firsts = marks.first.tolist()
        for slot, record in enumerate(payload.records(range(batch.body.count))):
            mark = max(i for i, first in enumerate(firsts) if first <= slot)
            back = marks.back if mark == 0 else 0
            oid = int.from_bytes(record[6:10] if record[:1] == b"T" else record[1:5], "big")
            found.append(
                Told(
                    record,
                    int(marks.tx[mark]),
                    int(marks.position[mark]),
                    int(marks.time[mark]),
                    back + slot - firsts[mark],
                    None if record[:1] == b"M" else relations[oid],
                )
            )
    return found


def taken(assembler: Assembler) -> list[Told]:
    flush = assembler.take_complete()
    assert flush.staged_end is None
    return told(list(flush.batches))


def fed(messages: list[bytes], cuts: list[int], *, position: int = 0) -> list[Told]:
    assembler = new(position)
    for low, high in zip([0, *cuts], [*cuts, len(messages)], strict=True):
        if high > low:
            assembler.feed(Frames.of(messages[low:high]))
    return taken(assembler)


def a_history() -> list[bytes]:
    rows = [insert_record(T, b"%d" % i, b"n" * (i % 50)) for i in range(40)]
    return [
        *transaction(100, 1, rows[:3], TABLE),
        keepalive(120),
        *transaction(200, 2, [rows[3], insert_record(U, b"1"), truncate_record(T, U)], OTHER),
        *transaction(300, 3, []),
        xlog(message_record("app", b"aside", 310, transactional=False), 310, 7),
        *transaction(400, 4, [message_record("app", b"inside", 390, transactional=True)]),
        *transaction(500, 5, [message_record("eventlog", b"", 490, transactional=True), rows[4]]),
        xlog(message_record("eventlog", b"", 510, transactional=False), 510),
        *transaction(600, 6, rows, relation(T, "t", "id", "note", "more")),
        keepalive(700),
    ]


def test_a_history_becomes_these_records() -> None:
    found = fed(a_history(), [])
    assert [(item.tx, item.position, item.place) for item in found[:3]] == [
        (1, 100, 0),
        (1, 100, 1),
        (1, 100, 2),
    ]
    tags = [(item.record[:1], item.tx, item.position) for item in found[3:10]]
    assert tags == [
        (b"I", 2, 200),
        (b"I", 2, 200),
        (b"T", 2, 200),
        (b"T", 2, 200),
        (b"M", 0, 310),
        (b"M", 4, 400),
        (b"I", 5, 500),
    ]
    assert [item.record[6:10] for item in found[5:7]] == [struct.pack(">I", oid) for oid in (T, U)]
    assert [item.place for item in found[10:]] == list(range(40))
    assert {item.schema for item in found[10:]} == {2}, "the table has a new version"
    assert found[9].schema == found[0].schema == 0


@pytest.mark.parametrize("seed", range(20))
def test_cuts_between_frames_change_nothing(seed: int) -> None:
    messages = a_history()
    whole = fed(messages, [])
    chance = random.Random(seed)
    print(f"seed {seed}")
    cuts = sorted(chance.choices(range(len(messages) + 1), k=chance.randrange(1, 30)))
    assert fed(messages, cuts) == whole


def test_message_by_message_is_the_same() -> None:
    messages = a_history()
    assert fed(messages, list(range(1, len(messages)))) == fed(messages, [])


@pytest.mark.parametrize("position", [0, 100, 120, 200, 300, 311, 400, 500, 600])
def test_what_ends_at_or_below_the_position_is_dropped(position: int) -> None:
    messages = a_history()
    rest = [item for item in fed(messages, []) if item.position > position]
    bare = [item[:5] for item in fed(messages, [], position=position)]
    # A message outside of transactions stands for the position one byte behind its own.
    wanted = [item[:5] for item in rest if not (item.position == 310 and position == 311)]
    assert bare == wanted


def test_the_description_in_a_dropped_transaction_is_no_new_version() -> None:
    assembler = new(100)
    assembler.feed(Frames.of(transaction(100, 1, [insert_record(T, b"1", b"")], TABLE)))
    assembler.feed(Frames.of([keepalive(150)]))
    assert not assembler.take_complete().schemas
    assembler.feed(Frames.of(transaction(200, 2, [insert_record(T, b"2", b"")])))
    flush = assembler.take_complete()
    assert [number for number, _ in flush.schemas] == [0]
    assert [item.tx for item in told(list(flush.batches))] == [2]


def test_the_position_is_that_of_the_last_whole_transaction_or_a_later_keepalive() -> None:
    assembler = new(50)
    first, second = transaction(100, 1, [insert_record(T, b"1", b"")], TABLE), begin(192, 2)
    assembler.feed(Frames.of([*first, second, keepalive(150, reply=True)]))
    flush = assembler.take_complete()
    assert flush.position == 100, "a keepalive inside a transaction says nothing about it"
    assert assembler.reply_requested and assembler.server_end == 150
    assembler.feed(Frames.of([commit(192, 200), keepalive(250)]))
    assert assembler.take_complete().position == 250
    assembler.feed(Frames.of([keepalive(220)]))
    assert assembler.take_complete().position == 250, "a position never goes back"


def test_an_open_transaction_is_not_taken() -> None:
    assembler = new()
    messages = transaction(100, 1, [insert_record(T, b"1", b"")], TABLE)
    assembler.feed(Frames.of(messages[:-1]))
    assert not assembler.has_complete and taken(assembler) == []
    assembler.feed(Frames.of(messages[-1:]))
    assert len(taken(assembler)) == 1


def test_small_transactions_share_a_batch() -> None:
    assembler = new()
    for xid in range(1, 101):
        before = [TABLE] if xid == 1 else []
        row = insert_record(T, b"%d" % xid, b"")
        assembler.feed(Frames.of(transaction(xid * 100, xid, [row], *before)))
    (batch,) = assembler.take_complete().batches
    assert batch.transactions.tx.tolist() == list(range(1, 101))
    assert batch.transactions.position.tolist() == [xid * 100 for xid in range(1, 101)]


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_a_batch_is_never_larger_than_it_may_be(spare: int) -> None:
    size = BATCH_BYTES // 2 - 4 + spare
    rows = [
        insert_record(T, b"x" * (size - ROW_OVERHEAD)),
        insert_record(T, b"y" * (size - ROW_OVERHEAD)),
    ]
    assert {len(row) for row in rows} == {size}
    for pieces in ([rows], [rows[:1], rows[1:]]):
        assembler = new()
        end = 0
        for piece in pieces:
            end += 100
            messages = transaction(end, end, piece, relation(T, "t", "id"))
            assembler.feed(Frames.of(messages))
        batches = assembler.take_complete().batches
        assert len(batches) == (2 if spare > 0 else 1)
        assert all(batch.body.count * 4 + size <= BATCH_BYTES for batch in batches)
        assert [item.record for item in told(list(batches))] == rows


def test_a_record_larger_than_a_batch_goes_alone() -> None:
    rows = [
        insert_record(T, b"1", b""),
        insert_record(T, b"2", b"x" * (3 * BATCH_BYTES)),
        insert_record(T, b"3", b""),
    ]
    for cuts in ([], list(range(1, 6))):
        assembler = new()
        messages = transaction(100, 1, rows, TABLE)
        for low, high in zip([0, *cuts], [*cuts, len(messages)], strict=True):
            assembler.feed(Frames.of(messages[low:high]))
        batches = list(assembler.take_complete().batches)
        assert [batch.body.count for batch in batches] == [1, 1, 1]
        assert [item.record for item in told(batches)] == rows
        assert [item.place for item in told(batches)] == [0, 1, 2]


def test_a_new_version_of_a_table_closes_the_batch() -> None:
    assembler = new()
    wider = relation(T, "t", "id", "note", "more")
    assembler.feed(Frames.of(transaction(100, 1, [insert_record(T, b"1", b"")], TABLE)))
    assembler.feed(Frames.of(transaction(200, 2, [insert_record(T, b"2", b"", b"")], wider)))
    assembler.feed(Frames.of(transaction(300, 3, [insert_record(T, b"3", b"", b"")])))
    flush = assembler.take_complete()
    assert [batch.relations for batch in flush.batches] == [((T, 0),), ((T, 1),)]
    assert [batch.body.count for batch in flush.batches] == [1, 2]
    assert [number for number, _ in flush.schemas] == [0, 1]


def test_a_new_version_inside_a_transaction_closes_the_batch() -> None:
    wider = relation(T, "t", "id", "note", "more")
    messages = [
        begin(192, 1),
        TABLE,
        xlog(insert_record(T, b"1", b"")),
        wider,
        xlog(insert_record(T, b"2", b"", b"")),
        commit(192, 200),
    ]
    found = fed(messages, [])
    assert [(item.schema, item.place, item.position) for item in found] == [
        (0, 0, 200),
        (1, 1, 200),
    ]
    assert fed(messages, [1, 2, 3, 4, 5]) == found


def test_the_same_description_again_is_the_same_version() -> None:
    assembler = new()
    for end in (100, 200):
        assembler.feed(Frames.of(transaction(end, end, [insert_record(T, b"1", b"")], TABLE)))
    flush = assembler.take_complete()
    assert [batch.relations for batch in flush.batches] == [((T, 0),)]
    assert len(flush.schemas) == 1


def test_what_came_of_a_large_transaction_can_be_staged_before_its_end() -> None:
    rows = [insert_record(T, b"%d" % i, b"x" * 10_000) for i in range(200)]
    messages = transaction(200, 2, rows, TABLE)
    after = transaction(300, 3, [insert_record(T, b"3", b"")])
    assembler = new()
    staged: list[Batch] = []
    for piece in range(0, len(messages), 10):
        assembler.feed(Frames.of(messages[piece : piece + 10]))
        if piece + 10 < len(messages) and assembler.open_bytes > BATCH_BYTES:
            staged += assembler.take_open()
            assert assembler.open_bytes == 0 and not assembler.has_complete
    assembler.feed(Frames.of(after))
    flush = assembler.take_complete()
    assert flush.staged_end == 200 and flush.position == 300
    assert len(staged) > 4 and all(batch.transactions.position.tolist() == [0] for batch in staged)
    found = told([*staged, *flush.batches])
    assert [item.record for item in found[:-1]] == rows
    assert [item.place for item in found] == [*range(200), 0]
    assert {item.position for item in found[len(told(staged)) :]} == {200, 300}
    again = assembler.take_complete()
    assert again.staged_end is None and not again.batches


def test_a_transaction_staged_to_its_last_record_still_ends() -> None:
    assembler = new()
    large = insert_record(T, b"1", b"x" * BATCH_BYTES)
    messages = transaction(100, 1, [large, large], TABLE)
    assembler.feed(Frames.of(messages[:-1]))
    staged = assembler.take_open()
    assert [batch.body.count for batch in staged] == [1, 1]
    assembler.feed(Frames.of(messages[-1:]))
    flush = assembler.take_complete()
    assert flush.staged_end == 100
    assert [item.place for item in told(staged)] == [0, 1] and not flush.batches


def test_the_server_that_a_transaction_came_from_is_kept() -> None:
    origin = xlog(b"O" + struct.pack(">Q", 5) + b"elsewhere\0")
    assembler = new()
    assembler.feed(Frames.of(transaction(100, 1, [insert_record(T, b"1", b"")], TABLE)))
    assembler.feed(Frames.of(transaction(200, 2, [insert_record(T, b"2", b"")], origin)))
    (batch,) = assembler.take_complete().batches
    assert batch.more == {"origins": [[1, "elsewhere"]]}


INSERT = xlog(insert_record(T, b"1", b""))
BEGUN = [begin(92, 1), TABLE]
GARBAGE = {
    "an empty frame": [b""],
    "an empty frame at the end": [keepalive(9), b""],
    "an empty frame between": [keepalive(9), b"", keepalive(10)],
    "an unknown frame": [b"?" + bytes(30)],
    "a short keepalive": [keepalive(9)[:-1]],
    "a long keepalive": [keepalive(9) + b"\0"],
    "a frame without a message": [xlog(b"")],
    "a short head": [INSERT[:20]],
    "a short head at the end": [keepalive(9), INSERT[:2]],
    "an unknown message": [xlog(b"?")],
    "a message of a later protocol": [xlog(b"S" + bytes(5))],
    "a cut begin": [begin(92, 1)[:-1]],
    "a long begin": [begin(92, 1) + b"\0"],
    "a cut commit": [*BEGUN, commit(92, 100)[:-1]],
    "a begin in a transaction": [*BEGUN, begin(192, 2)],
    "a commit without a begin": [commit(92, 100)],
    "a row outside of a transaction": [TABLE, INSERT],
    "a row without a description": [begin(92, 1), INSERT],
    "a row that is too short": [*BEGUN, xlog(b"I" + struct.pack(">I", T) + b"N")],
    "a cut description": [begin(92, 1), TABLE[:-1]],
    "a truncate outside of a transaction": [TABLE, xlog(truncate_record(T))],
    "a truncate without a description": [begin(92, 1), xlog(truncate_record(T))],
    "a cut truncate": [*BEGUN, xlog(truncate_record(T)[:-1])],
    "a cut message": [*BEGUN, xlog(message_record("a", b"bc", 1, transactional=True)[:-1])],
    "a transactional message outside": [xlog(message_record("a", b"b", 1, transactional=True))],
    "an origin outside of a transaction": [xlog(b"O" + bytes(8) + b"x\0")],
    "transactions out of order": [
        *BEGUN,
        INSERT,
        commit(192, 200),
        begin(142, 2),
        commit(142, 150),
    ],
}


@pytest.mark.parametrize("messages", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_replication_stream_is_refused(messages: list[bytes]) -> None:
    with pytest.raises(WireError):
        new().feed(Frames.of(messages))
    with pytest.raises(WireError):
        fed(messages, list(range(1, len(messages))))


def test_a_transaction_across_the_position_is_refused() -> None:
    with pytest.raises(WireError, match="across"):
        new(95).feed(Frames.of([begin(92, 1), commit(92, 100)]))
