"""The assembler while a copy stands exactly at one position, or at a high watermark."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, cast

import numpy as np
import pytest

from cdc.postgres.assembler import Assembler
from cdc.postgres.attending.inbox import Inbox
from cdc.postgres.attending.link import Link, Stopped
from cdc.postgres.copy.copies import AGAIN, BEGUN, Chunk, Copies, Verdict
from cdc.postgres.copy.placing import control_batch
from cdc.postgres.protocol.frames import Frames, Run
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.visibility import Visibility
from cdc.postgres.schema.relation import CatalogColumn, CatalogRelation
from cdc.postgres.schema.schema_book import SchemaBook
from eventlog.changes.change import Op
from eventlog.changes.schema import Column, Schema
from tests.fix_capture import (
    insert_record,
    message_record,
    relation,
    row,
    transaction,
    xlog,
)

T = 16_400
TABLE = relation(T, "t", "id", "note")
SCHEMA = Schema(
    id=0,
    offset=0,
    relation=T,
    namespace="public",
    name="t",
    identity="d",
    columns=(
        Column(name="id", type=25, typmod=-1, key=True, attribute=1),
        Column(name="note", type=25, typmod=-1, key=False, attribute=2),
    ),
)
FOUND = CatalogRelation(
    oid=T,
    schema="public",
    name="t",
    identity="d",
    columns=tuple(
        CatalogColumn(
            attribute=place,
            name=name,
            type=25,
            typmod=-1,
            key=place == 1,
            generated=False,
            missing=None,
        )
        for place, name in enumerate(("id", "note"), 1)
    ),
    types={},
)
TOKEN = b"copy 0123456789abcdef 1"


def inserted(end: int, key: bytes, *before: bytes) -> list[bytes]:
    return transaction(end, end, [insert_record(T, key, b"x")], *before)


def test_a_hold_keeps_back_what_commits_at_its_position_or_later() -> None:
    assembler = Assembler(SchemaBook([], lambda oid: None), Lsn(0))
    assembler.hold(Lsn(0))
    assert assembler.stopped, "nothing is open, so nothing more is taken in"
    assembler.hold(Lsn(300))
    frames = [*inserted(200, b"1", TABLE), *inserted(310, b"2"), *inserted(400, b"3")]
    assembler.feed(Frames.of(frames))
    assert assembler.stopped
    assembler.insert([control_batch(Op.COPY_BEGIN, SCHEMA, position=Lsn(300), time_us=7)])
    positions = [int(p) for b in assembler.take_complete().batches for p in b.transactions.position]
    assert positions == [200, 300]
    assembler.release()
    assert not assembler.stopped
    flush = assembler.take_complete()
    assert [int(p) for b in flush.batches for p in b.transactions.position] == [310, 400]
    assert flush.position == 400


def test_a_transaction_that_is_open_is_finished_before_the_stream_holds() -> None:
    assembler = Assembler(SchemaBook([], lambda oid: None), Lsn(0))
    frames = inserted(200, b"1", TABLE)
    assembler.feed(Frames.of(frames[:2]))
    assembler.hold(Lsn(0))
    assert not assembler.stopped
    assembler.feed(Frames.of(frames[2:] + inserted(300, b"2")))
    assert assembler.stopped
    assert assembler.take_complete().position == 200
    assembler.hold(Lsn(250))
    assert assembler.stopped, "the second one commits behind the new position"
    assembler.release()
    assert assembler.take_complete().position == 300


@pytest.mark.parametrize(("lsn", "kept_back"), [(299, False), (300, True), (900, True)])
def test_a_message_outside_of_transactions_is_kept_back_like_them(
    lsn: int, kept_back: bool
) -> None:
    assembler = Assembler(SchemaBook([], lambda oid: None), Lsn(0))
    assembler.hold(Lsn(300))
    message = xlog(message_record("app", b"aside", lsn, transactional=False), lsn)
    assembler.feed(Frames.of([message]))
    assert assembler.stopped is kept_back
    assert bool(assembler.take_complete().batches) is not kept_back
    assembler.release()
    assert bool(assembler.take_complete().batches) is kept_back


def chunk(*lines: bytes, seen: str, begins: bool = False, ends: bool = False) -> Chunk:
    ends_of = np.cumsum([len(line) for line in lines]) if lines else np.zeros(0, np.int64)
    return Chunk(
        token=TOKEN,
        relation=T,
        schema=SCHEMA,
        serial=1,
        lines=Run(data=b"".join(lines), ends=ends_of),
        sees=Visibility.parse(seen),
        cursor=None if begins else {"leaves": [], "leaf": 0},
        begins=begins,
        ends=ends,
    )


def watermark(end: int) -> list[bytes]:
    message = message_record("eventlog", TOKEN, end - 10, transactional=True)
    return transaction(end, end, [message])


def test_a_chunk_comes_at_its_watermark_without_the_rows_that_the_stream_overtook() -> None:
    book = SchemaBook([SCHEMA], lambda oid: FOUND)
    copies = Copies(book, {T: AGAIN})
    copies.track(SCHEMA)
    assembler = Assembler(book, Lsn(0), copies=copies)
    assembler.feed(Frames.of(inserted(200, b"1", TABLE)))
    copies.expect(chunk(seen="201:201:", begins=True))
    assembler.feed(Frames.of([*watermark(250), *inserted(300, b"2")]))
    flush = assembler.take_complete()
    assert [b.body.codec for b in flush.batches] == [3, 1, 3], "changes, copy_begin, changes"
    assert flush.cursors == {T: BEGUN}
    first = {"leaves": [], "leaf": 0}
    assert copies.start(T, first) and copies.take_cursors() == {T: first}
    brought = chunk(b"1\told\n", b"2\told\n", b"3\told\n", seen="300:301:300")
    copies.expect(brought)
    assembler.feed(Frames.of([*inserted(350, b"4"), *watermark(400), *inserted(500, b"5")]))
    flush = assembler.take_complete()
    assert brought.answer.result(0).verdict is Verdict.PLACED
    bodies = [(b.body.codec, bytes(b.body.data)) for b in flush.batches]
    codecs = [codec for codec, _ in bodies]
    assert codecs == [3, 4, 3], "changes, rows, changes"
    assert b"1\told\n3\told\n" in bodies[1][1] and b"2\told" not in bodies[1][1]
    assert flush.cursors == {T: {"leaves": [], "leaf": 0}}
    assert row(b"5", b"x") in bodies[2][1]


def test_a_copy_that_is_to_be_done_again_takes_no_more_chunks() -> None:
    book = SchemaBook([SCHEMA], lambda oid: FOUND)
    copies = Copies(book, {T: {"leaves": []}})
    copies.track(SCHEMA)
    assembler = Assembler(book, Lsn(0), copies=copies)
    assert copies.again(T)
    brought = chunk(b"1\told\n", seen="1:1:")
    copies.expect(brought)
    assembler.feed(Frames.of(watermark(400)))
    assert brought.answer.result(0).verdict is Verdict.ANEW
    assert not copies.start(T, {"leaves": []})
    assert assembler.take_complete().cursors == {T: AGAIN}


def test_a_chunk_of_another_run_or_of_a_table_that_left_is_not_placed() -> None:
    book = SchemaBook([SCHEMA], lambda oid: None)
    copies = Copies(book, {})
    assembler = Assembler(book, Lsn(0), copies=copies)
    assembler.feed(Frames.of(watermark(300)))
    assert assembler.take_complete().batches == []
    brought = chunk(b"1\told\n", seen="1:1:")
    copies.expect(brought)
    assembler.feed(Frames.of(watermark(400)))
    assert brought.answer.result(0).verdict is Verdict.GONE
    assert assembler.take_complete().batches == []


def test_work_for_another_thread_is_done_in_order_and_cancelled_at_its_end() -> None:
    woken: list[int] = []
    inbox = Inbox(lambda: woken.append(1))
    done: list[int] = []

    def fail() -> None:
        raise ValueError("of the work")

    work = (lambda: done.append(1), fail, lambda: done.append(2))
    futures = [inbox.put(one) for one in work]
    assert woken == [1, 1, 1] and done == []
    inbox.run()
    assert done == [1, 2]
    with pytest.raises(ValueError, match="of the work"):
        futures[1].result(0)
    late = inbox.put(lambda: done.append(3))
    inbox.close()
    assert late.cancelled() and inbox.put(lambda: done.append(4)).cancelled() and done == [1, 2]


class Hasty(Future[int]):
    """Ends right after a wait for it has timed out."""

    def result(self, timeout: float | None = None) -> int:
        if timeout is not None and not self.done():
            self.set_result(7)
            raise FutureTimeout
        return super().result(timeout)


def test_what_is_done_right_after_a_wait_timed_out_is_no_fault() -> None:
    link = Link(cast(Any, None), lambda: False)
    assert link.wait(Hasty()) == 7
    late: Future[int] = Future()
    late.cancel()
    with pytest.raises(Stopped):
        link.wait(late)
    own: Future[int] = Future()
    own.set_exception(FutureTimeout("of the work"))
    with pytest.raises(FutureTimeout, match="of the work"):
        link.wait(own)
