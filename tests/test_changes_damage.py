"""What cannot be read is refused with its place: damage, other versions, missing codecs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

import eventlog
from eventlog.changes.change import Op
from eventlog.codecs.control import CODEC, control_record
from eventlog.engine import Append, Plan, SourceUpdate, Transactions, batch_of, rows
from eventlog.errors import CodecNotInstalled, DamagedLog, LogVersionError, OffsetsDropped
from tests.fix_log import INT, MadeSource, column, control, insert


@pytest.fixture
def bad(tmp_path: Path) -> Iterator[eventlog.Log]:
    """A log that need not be sound at the end."""
    with eventlog.open(tmp_path / "log", create=True) as opened:
        yield opened


def append(log: eventlog.Log, stream: str, codec: int, record: bytes, relation: int = -1) -> None:
    pairs = ((relation, 0),) if relation >= 0 else ()
    batch = batch_of(codec, [record], Transactions.one(time_us=0), relations=pairs)
    row = log.engine.stream(stream)
    sources = []
    if row.kind == "captured":
        sources = [SourceUpdate(stream=stream, writer_epoch=row.writer_epoch, state={})]
    log.engine.commit(Plan(appends=[Append(stream=stream, batches=[batch])], sources=sources))


def test_a_codec_that_is_not_installed_is_named(bad: eventlog.Log) -> None:
    stream = bad.stream("clicks", create=True)
    stream.append("fine")
    append(bad, "clicks", 99, b"?")
    assert [event.value for event in stream.read(0, 1)] == ["fine"]
    with pytest.raises(CodecNotInstalled, match="codec 99") as caught:
        list(stream.read())
    assert caught.value.hint


def test_a_damaged_event_is_refused(bad: eventlog.Log) -> None:
    stream = bad.stream("clicks", create=True)
    append(bad, "clicks", 2, b"\xc1")
    with pytest.raises(DamagedLog, match="no event"):
        list(stream.read())


def test_a_damaged_change_names_its_stream_and_offsets(bad: eventlog.Log) -> None:
    source = MadeSource(bad, "shop")
    orders = source.table("orders", column("id", INT, key=True))
    source.commit(insert(orders, 1))
    codec, record, schema = insert(orders, 2)
    source.commit((codec, record[:-1], schema))
    with pytest.raises(DamagedLog, match=r"'shop', offsets \[1, 2\)") as caught:
        list(source.stream.read())
    assert "eventlog check" in caught.value.hint
    assert [change.key for change in source.stream.read(0, 1)] == [1]
    source.close()


def test_a_batch_whose_schema_is_missing_is_refused(bad: eventlog.Log) -> None:
    bad.engine.create_stream("shop", "captured")
    append(bad, "shop", 1, control_record(Op.COPY_BEGIN, relation=7), relation=7)
    with pytest.raises(DamagedLog, match="no schema version 0"):
        list(bad.stream("shop").read())


def test_a_control_record_of_a_newer_version_is_refused_as_such(bad: eventlog.Log) -> None:
    bad.engine.create_stream("shop", "captured")
    append(bad, "shop", 1, msgpack.packb({"op": "merge", "relation": None}))
    with pytest.raises(LogVersionError, match="'merge'"):
        list(bad.stream("shop").read())


@pytest.mark.parametrize("record", [b"", b"\x81", msgpack.packb([1]), msgpack.packb({"op": 1})])
def test_a_damaged_control_record_is_refused(record: bytes) -> None:
    with pytest.raises(DamagedLog):
        list(CODEC.decode([record], [0], {}))


def test_a_control_record_outside_its_batchs_relations_is_refused() -> None:
    with pytest.raises(DamagedLog, match="relation 7"):
        list(CODEC.decode([control_record(Op.COPY_END, relation=7)], [0], {}))
    with pytest.raises(ValueError, match="no operation"):
        control_record(Op.INSERT)


def test_a_control_record_carries_its_fields(shop: MadeSource) -> None:
    orders = shop.table("orders", column("id", INT, key=True))
    shop.commit(control(Op.COPY_END, orders, rows=3, position="0/1"))
    (change,) = shop.stream.read()
    assert (change.op, change.table, change.position) == ("copy_end", "public.orders", "0/1")
    assert change.row == {"schema": "public", "table": "orders", "rows": 3, "position": "0/1"}


def test_a_consumer_below_the_start_is_told_what_is_gone(bad: eventlog.Log) -> None:
    stream = bad.stream("clicks", create=True)
    stream.append_many(range(10))
    consumer = stream.consumer("late")
    engine = bad.engine
    with engine.store.write() as txn:
        rows.write_stream(engine.store, txn, replace(engine.stream("clicks"), start=5))
    with pytest.raises(OffsetsDropped, match="stands at 0, but stream 'clicks' begins at 5") as e:
        next(consumer.follow(until="current"))
    assert "rewind(to=5)" in e.value.hint
    with pytest.raises(OffsetsDropped):
        stream.read(0)
    consumer.rewind(to=5)
    assert [event.value for event in next(consumer.follow(until="current"))] == [5, 6, 7, 8, 9]
