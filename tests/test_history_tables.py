"""Histories as Arrow and pandas tables, and which keys they take."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy
import pyarrow as pa
import pytest

import eventlog
from eventlog.changes.change import UNCHANGED
from eventlog.errors import UsageError, ValueDoesNotFit
from tests.fix_log import INT, NUMERIC, MadeSource, column, delete, insert, truncate, update

PRICED = (column("id", INT, key=True), column("price", NUMERIC), column("note"))


def test_the_versions_of_a_row_are_a_table(log: eventlog.Log, shop: MadeSource) -> None:
    before = shop.table("orders", *PRICED[:2])
    shop.commit(insert(before, 1, "1.5"), insert(before, 2, "9"))
    orders = shop.table("orders", *PRICED)
    shop.commit(update(orders, 1, UNCHANGED, "a"))
    shop.commit(delete(orders, 1, None, None))
    shop.commit(insert(orders, 1, None, "b"), truncate(orders))
    history = log.stream("shop").history("orders", 1)
    found = history.to_arrow()
    assert found.schema.names == ["_offset", "_op", "_time", "_life", "id", "price", "note"]
    assert found.schema.field("price").metadata == {b"postgres_type": b"numeric"}
    rows = [tuple(row.values()) for row in found.drop_columns(["_time"]).to_pylist()]
    price = Decimal("1.500000000")
    assert rows == [
        (0, "insert", 1, 1, price, None),
        (2, "update", 1, 1, price, "a"),
        (3, "delete", 1, 1, None, None),
        (4, "insert", 2, 1, None, "b"),
        (5, "truncate", 2, None, None, None),
    ], "unchanged values are filled, as in the versions"
    assert found.column("_time")[1].as_py() == dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC)
    assert [change.offset for change in history] == found.column("_offset").to_pylist()
    assert history.to_pandas()["note"].tolist()[3] == "b"
    none = log.stream("shop").history("orders", 77).to_arrow()
    assert none.num_rows == 0 and none.schema == found.schema
    late = log.stream("shop").history("orders", 1, start=3).to_arrow()
    assert late.equals(found.slice(2))


def test_versions_take_casts_and_misfits(log: eventlog.Log, shop: MadeSource) -> None:
    orders = shop.table("orders", *PRICED)
    shop.commit(insert(orders, 1, "NaN", ""), update(orders, 1, "2", ""))
    history = log.stream("shop").history("orders", 1)
    with pytest.raises(ValueDoesNotFit, match="at offset 0 holds 'NaN'"):
        history.to_arrow()
    assert history.to_arrow(cast={"price": "text"}).column("price").to_pylist() == ["NaN", "2"]
    dropped = history.to_arrow(unfit="null")
    assert dropped.column("price").to_pylist() == [None, Decimal(2)]
    assert history.to_pandas(unfit="null")["price"].tolist()[1] == Decimal(2)


def test_the_events_of_a_key_are_a_table(log: eventlog.Log) -> None:
    clicks = log.stream("clicks", create=True)
    clicks.append_many([{"n": 1.5}, "other", None, [b"\x01"]], keys=["7", "8", "7", "7"])
    history = clicks.history(key=7)
    found = history.to_arrow()
    assert found.drop_columns(["_time"]).to_pylist() == [
        {"_offset": 0, "_life": 1, "key": "7", "value": '{"n": 1.5}'},
        {"_offset": 2, "_life": 1, "key": "7", "value": None},
        {"_offset": 3, "_life": 2, "key": "7", "value": '["\\\\x01"]'},
    ]
    assert found.schema.field("_time").type == pa.timestamp("us", "UTC")
    assert found.column("_time").to_pylist() == [event.time for event in history]
    assert len(history.to_pandas()) == 3
    assert clicks.history(key="none").to_arrow().schema == found.schema


@pytest.mark.parametrize("key", [7.0, 1.5, numpy.float64(7), numpy.float32(0.5), float("nan")])
def test_a_float_is_no_key_for_its_text_is_not_known(
    log: eventlog.Log, shop: MadeSource, key: object
) -> None:
    table = shop.table("t", column("n", NUMERIC, key=True))
    shop.commit(insert(table, "7"), insert(table, "7.00"), insert(table, "1.5"))
    stream = log.stream("shop")
    for form in (key, {"n": key}):
        with pytest.raises(UsageError, match="is a float, and one number has several") as refused:
            stream.history("t", form)
        assert "the source's text" in refused.value.hint
    events = log.stream("events", create=True)
    with pytest.raises(TypeError, match="is text or an integer, not float"):
        events.history(key=key)


def test_keys_are_compared_as_the_source_s_text(log: eventlog.Log, shop: MadeSource) -> None:
    table = shop.table("t", column("n", NUMERIC, key=True))
    shop.commit(insert(table, "7"), insert(table, "7.00"), insert(table, "100"))
    stream = log.stream("shop")
    for key, offsets in (
        ("7", [0]),
        (7, [0]),
        (numpy.int64(7), [0]),
        (Decimal("7.00"), [1]),
        (Decimal("1E+2"), [2]),
        ("7.0", []),
    ):
        assert [change.offset for change in stream.history("t", key)] == offsets, key
