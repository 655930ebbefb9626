"""Reading captured streams: values, keys, markers, batches, Arrow, lines of JSON."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

import eventlog
from eventlog import ABSENT, UNCHANGED, Op
from eventlog.changes.arrow import unfit_counts
from eventlog.changes.schema import Schema
from eventlog.errors import (
    OffsetOutOfRange,
    UnknownColumn,
    UnknownTable,
    UsageError,
    ValueDoesNotFit,
)
from tests.fix_log import (
    BOOL,
    BYTEA,
    FLOAT,
    INT,
    NUMERIC,
    T0_US,
    TIMESTAMPTZ,
    MadeSource,
    column,
    control,
    copied,
    delete,
    insert,
    message,
    truncate,
    update,
)


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    return shop.table(
        "orders", column("id", INT, key=True), column("amount", NUMERIC), column("note")
    )


def lines(stream: eventlog.Stream, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.read(**options).json_lines()]


def test_every_operation_reads_as_documented(shop: MadeSource, orders: Schema) -> None:
    shop.commit(
        control(Op.COPY_BEGIN, orders, position="0/10"),
        copied(orders, 1, "1.50", "tab\\there"),
        control(Op.COPY_END, orders, rows=1),
    )
    shop.commit(
        insert(orders, 7, "12.50", None),
        update(orders, 7, "13.00", UNCHANGED),
        update(orders, 8, "13.00", "x", key=(7, None, None)),
        delete(orders, 8, ABSENT, ABSENT),
        truncate(orders),
        message("app", b"\x00\xff"),
    )
    shop.commit(control(Op.DATA_LOSS, None, **{"from": "0/1", "to": "0/2"}))
    changes = list(shop.stream.read())
    assert [c.offset for c in changes] == list(range(10))
    assert [(c.op, c.table, c.key, c.row, c.old) for c in changes] == [
        (
            "copy_begin",
            "public.orders",
            None,
            {"schema": "public", "table": "orders", "position": "0/10"},
            None,
        ),
        (
            "read",
            "public.orders",
            1,
            {"id": 1, "amount": Decimal("1.50"), "note": "tab\there"},
            None,
        ),
        (
            "copy_end",
            "public.orders",
            None,
            {"schema": "public", "table": "orders", "rows": 1},
            None,
        ),
        ("insert", "public.orders", 7, {"id": 7, "amount": Decimal("12.50"), "note": None}, None),
        (
            "update",
            "public.orders",
            7,
            {"id": 7, "amount": Decimal("13.00"), "note": UNCHANGED},
            None,
        ),
        (
            "update",
            "public.orders",
            8,
            {"id": 8, "amount": Decimal("13.00"), "note": "x"},
            {"id": 7},
        ),
        ("delete", "public.orders", 8, None, {"id": 8}),
        ("truncate", "public.orders", None, None, None),
        (
            "message",
            None,
            None,
            {"prefix": "app", "content": b"\x00\xff", "transactional": True},
            None,
        ),
        ("data_loss", None, None, {"from": "0/1", "to": "0/2"}, None),
    ]
    assert [c.tx for c in changes] == [None] * 3 + ["702"] * 6 + [None]
    assert changes[0].position == "0/10" and changes[2].position is None
    assert changes[1].position == "0/2BD00" and changes[3].position == "0/2BE00"
    assert changes[1].time == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert changes[3].time == dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC)


def test_a_line_of_json_has_the_documented_form(shop: MadeSource, orders: Schema) -> None:
    shop.commit(insert(orders, 7, "12.50", "é"), time_us=T0_US + 123_456)
    shop.commit(
        update(orders, 8, "NaN", UNCHANGED, key=(7, None, None)),
        message("app", b"\x00\xff"),
    )
    first, second, third = lines(shop.stream)
    assert first == {
        "offset": 0,
        "op": "insert",
        "table": "public.orders",
        "key": {"id": 7},
        "row": {"id": 7, "amount": "12.50", "note": "é"},
        "old": None,
        "tx": "701",
        "position": "0/2BD00",
        "time": "2026-01-01T00:00:00.123456+00:00",
    }
    assert (second["key"], second["row"], second["old"], second["unchanged"]) == (
        {"id": 8},
        {"id": 8, "amount": "NaN"},
        {"id": 7},
        ["note"],
    )
    assert third["row"] == {"prefix": "app", "content": "\\x00ff", "transactional": True}
    assert "unchanged" not in first and third["key"] is None


def test_values_of_a_line_are_json_where_json_has_them(shop: MadeSource) -> None:
    wide = shop.table(
        "wide",
        column("i", INT, key=True),
        column("f", FLOAT),
        column("b", BOOL),
        column("raw", BYTEA),
        column("t", TIMESTAMPTZ),
        column("many", 1007),
    )
    shop.commit(
        insert(wide, 1, "0.1", "t", "\\x00ff", "2026-01-31 12:00:00.5+00", "{1,NULL,3}"),
        insert(wide, 2, "Infinity", "f", None, "infinity", "{}"),
    )
    one, two = (line["row"] for line in lines(shop.stream))
    assert one == {
        "i": 1,
        "f": 0.1,
        "b": True,
        "raw": "\\x00ff",
        "t": "2026-01-31 12:00:00.5+00",
        "many": [1, None, 3],
    }
    assert two == {"i": 2, "f": "Infinity", "b": False, "raw": None, "t": "infinity", "many": []}


def test_keys_of_several_columns_are_mappings_and_no_key_is_none(shop: MadeSource) -> None:
    pair = shop.table(
        "pair", column("a", INT, key=True), column("b", key=True), column("c"), relation=1
    )
    full = shop.table(
        "full", column("a", INT, key=True), column("b", key=True), relation=2, identity="f"
    )
    shop.commit(
        insert(pair, 1, "x", "y"),
        delete(pair, 1, "x", None),
        insert(full, 1, "x"),
        update(full, 2, UNCHANGED, old=(1, "x")),
        delete(full, 2, "x"),
    )
    changes = list(shop.stream.read())
    assert [c.key for c in changes] == [{"a": 1, "b": "x"}, {"a": 1, "b": "x"}, None, None, None]
    assert [c.old for c in changes] == [
        None,
        {"a": 1, "b": "x"},
        None,
        {"a": 1, "b": "x"},
        {"a": 2, "b": "x"},
    ]


def test_an_unchanged_key_column_is_taken_from_the_old_key(shop: MadeSource) -> None:
    docs = shop.table(
        "docs", column("id", INT, key=True), column("path", key=True), column("n", INT)
    )
    shop.commit(update(docs, 1, UNCHANGED, 5, key=(1, "/long", None)))
    (change,) = shop.stream.read()
    assert change.key == {"id": 1, "path": "/long"}


def test_records_are_lazy_and_repeatable_with_a_fixed_end(shop: MadeSource, orders: Schema) -> None:
    shop.commit(insert(orders, 1, "1", None), insert(orders, 2, "2", None))
    records = shop.stream.read()
    shop.commit(insert(orders, 3, "3", None))
    for _ in range(2):
        assert [change.key for change in records] == [1, 2]
    assert [change.key for change in shop.stream.read(1, 3)] == [2, 3]
    assert list(shop.stream.read(3, 3)) == []
    assert [c.key for c in shop.stream.read("2026-01-01T01:00Z")] == [3]


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (4, None), (-1, None), (2, 1)])
def test_a_range_outside_the_stream_is_refused(
    shop: MadeSource, orders: Schema, start: int, stop: int | None
) -> None:
    shop.commit(*(insert(orders, number, "1", None) for number in range(3)))
    with pytest.raises(OffsetOutOfRange) as caught:
        shop.stream.read(start, stop)
    assert "[0, 3]" in caught.value.hint


def test_an_empty_stream_reads_as_nothing(log: eventlog.Log, shop: MadeSource) -> None:
    clicks = log.stream("clicks", create=True)
    for stream in (shop.stream, clicks):
        assert (stream.start, stream.end) == (0, 0)
        assert list(stream.read()) == [] and list(stream.read().batches()) == []
    assert clicks.read().to_arrow().column_names == ["_offset", "_time", "key", "value"]


def test_a_table_selects_its_records_and_those_that_concern_all(
    shop: MadeSource, orders: Schema
) -> None:
    users = shop.table("users", column("id", INT, key=True), relation=2)
    other = shop.table("orders", column("id", INT, key=True), relation=3, namespace="old")
    shop.commit(insert(orders, 1, "1", None), insert(users, 1), insert(other, 5), split=True)
    shop.commit(insert(users, 2), insert(orders, 2, "1", None), message("app", b""))
    shop.commit(control(Op.DATA_LOSS), control(Op.COPY_BEGIN, users), split=True)
    shop.commit(control(Op.COPY_BEGIN, orders), truncate(orders), truncate(users))
    read = shop.stream.read
    assert [c.offset for c in read(table="orders")] == [0, 4, 6, 8, 9]
    assert [c.offset for c in read(table="shop.public.orders")] == [0, 4, 6, 8, 9]
    assert [c.offset for c in read(table="*.orders")] == [0, 2, 4, 6, 8, 9]
    assert [c.offset for c in read(1, 4, table="public.users")] == [1, 3]
    with pytest.raises(UsageError, match="asked of stream"):
        read(table="crm.public.orders")


def test_unknown_tables_and_columns_are_refused_with_near_names(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "1", None))
    with pytest.raises(UnknownTable) as table:
        shop.stream.read(table="public.ordesr")
    assert "public.orders" in table.value.hint
    with pytest.raises(UnknownColumn) as name:
        shop.stream.read(table="orders", columns=["amuont"])
    assert "amount" in name.value.hint
    with pytest.raises(UsageError, match="needs a table"):
        shop.stream.read(columns=["id"])
    with pytest.raises(UsageError, match="no tables"):
        log.stream("clicks", create=True).read(table="orders")


def test_columns_limit_rows_and_old_rows_but_not_keys(shop: MadeSource, orders: Schema) -> None:
    shop.commit(insert(orders, 1, "1", "x"), delete(orders, 1, None, None))
    one, two = shop.stream.read(table="orders", columns=["note", "amount"])
    assert (one.key, one.row) == (1, {"amount": Decimal(1), "note": "x"})
    assert (two.key, two.old) == (1, {})
    table = shop.stream.read(table="orders", columns=["note", "amount"]).to_arrow()
    assert table.column_names == ["_offset", "_op", "_time", "note", "amount"]


def test_batches_cover_the_range_without_a_gap(shop: MadeSource, orders: Schema) -> None:
    users = shop.table("users", column("id", INT, key=True), relation=2)
    for number in range(10):
        shop.commit(insert(users, number), insert(orders, number, "1", None))
    batches = list(shop.stream.read(1, 19, table="orders").batches(max_rows=4))
    assert [(b.start, b.stop, [c.key for c in b]) for b in batches] == [
        (1, 8, [0, 1, 2, 3]),
        (8, 16, [4, 5, 6, 7]),
        (16, 19, [8]),
    ]
    with pytest.raises(UsageError, match="max_rows"):
        list(shop.stream.read().batches(max_rows=0))


def test_a_batch_closes_at_a_change_of_schema(shop: MadeSource, orders: Schema) -> None:
    shop.commit(insert(orders, 1, "1", "x"), insert(orders, 2, "2", "y"))
    wider = shop.table("orders", *orders.columns, column("more", INT))
    shop.commit(insert(wider, 3, "3", "z", 9))
    for source in (
        shop.stream.read(table="orders").batches(),
        shop.stream.follow("begin", table="orders", until="current"),
    ):
        first, second = source
        assert (first.start, first.stop, second.start, second.stop) == (0, 2, 2, 3)
        assert "more" not in first.to_arrow().column_names
        assert second.to_arrow()["more"].to_pylist() == [9]
    whole = shop.stream.read(table="orders").to_arrow()
    assert whole["more"].to_pylist() == [None, None, 9]


def test_arrow_has_offset_operation_time_and_typed_columns(
    shop: MadeSource, orders: Schema
) -> None:
    shop.commit(control(Op.COPY_BEGIN, orders), copied(orders, 1, "1.5", "x"))
    shop.commit(update(orders, 1, "2", "y"), delete(orders, 1, None, None), truncate(orders))
    table = shop.stream.read(table="orders").to_arrow()
    assert table.schema.names == ["_offset", "_op", "_time", "id", "amount", "note"]
    assert table.schema.field("id").type == pa.int32()
    assert table.schema.field("amount").type == pa.decimal128(38, 9)
    assert table.schema.field("_time").type == pa.timestamp("us", "UTC")
    assert table.schema.field("amount").metadata == {b"postgres_type": b"numeric"}
    assert table["_op"].to_pylist() == ["copy_begin", "read", "update", "delete", "truncate"]
    assert table["_offset"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["id"].to_pylist() == [None, 1, 1, 1, None]
    assert table["note"].to_pylist() == [None, "x", "y", None, None]
    frame = shop.stream.read(table="orders").to_pandas()
    assert list(frame["_offset"]) == [0, 1, 2, 3, 4]


def test_a_known_table_without_rows_has_its_columns(shop: MadeSource, orders: Schema) -> None:
    shop.announce()
    table = shop.stream.read(table="orders").to_arrow()
    assert table.num_rows == 0
    assert table.column_names == ["_offset", "_op", "_time", "id", "amount", "note"]


def test_several_tables_are_no_arrow_table(shop: MadeSource, orders: Schema) -> None:
    users = shop.table("users", column("id", INT, key=True), relation=2)
    shop.commit(insert(orders, 1, "1", None), insert(users, 1))
    with pytest.raises(UsageError) as caught:
        shop.stream.read().to_arrow()
    assert "public.orders, public.users" in str(caught.value) and "table=" in caught.value.hint
    with pytest.raises(UsageError):
        shop.stream.read(table="*").to_arrow()
    assert shop.stream.read(0, 1).to_arrow().num_rows == 1


def test_an_unchanged_value_is_never_a_null_unasked(shop: MadeSource, orders: Schema) -> None:
    shop.commit(insert(orders, 1, "1", "long"))
    shop.commit(update(orders, 1, "2", UNCHANGED))
    read = shop.stream.read
    with pytest.raises(ValueDoesNotFit, match=r"'note' of .* at offset 1") as caught:
        read(table="orders").to_arrow()
    assert "fill=True" in caught.value.hint
    nulled = read(table="orders").to_arrow(unfit="null")
    assert nulled["note"].to_pylist() == ["long", None]
    assert unfit_counts(nulled) == {"note": 1}
    assert read(table="orders", fill=True).to_arrow()["note"].to_pylist() == ["long", "long"]
    assert read(table="orders", columns=["id"]).to_arrow().num_rows == 2


def test_filling_takes_values_from_before_the_range_and_across_keys(
    shop: MadeSource, orders: Schema
) -> None:
    full = shop.table("full", column("a", INT), column("b"), relation=2, identity="f")
    shop.commit(insert(orders, 1, "1", "long"), insert(full, 1, "wide"))
    shop.commit(
        update(orders, 2, "2", UNCHANGED, key=(1, None, None)),
        update(orders, 2, "3", UNCHANGED),
        update(full, 2, UNCHANGED, old=(1, "wide")),
        update(orders, 9, "3", UNCHANGED),
    )
    filled = [c.row for c in shop.stream.read(2, fill=True)]
    assert [row and row.get("note", row.get("b")) for row in filled] == [
        "long",
        "long",
        "wide",
        UNCHANGED,
    ]
    assert "unchanged" not in lines(shop.stream, start=3, fill=True)[0]
    assert lines(shop.stream, start=5, fill=True)[0]["unchanged"] == ["note"]


def test_reads_go_by_relation_and_follows_by_name(shop: MadeSource) -> None:
    first = shop.table("orders", column("id", INT, key=True), relation=1)
    shop.commit(insert(first, 1))
    renamed = shop.table("orders_old", column("id", INT, key=True), relation=1)
    again = shop.table("orders", column("id", INT, key=True), relation=2)
    shop.commit(insert(renamed, 2), insert(again, 3))
    read = shop.stream.read
    assert [c.key for c in read(table="orders_old")] == [1, 2]
    assert [c.key for c in read(table="orders")] == [3]
    assert [c.key for c in read(stop=1, table="orders")] == [1]
    assert [c.table for c in read(table="orders_old")] == ["public.orders", "public.orders_old"]
    followed = shop.stream.follow("begin", table="orders", until="current")
    assert [c.key for batch in followed for c in batch] == [1, 3]
