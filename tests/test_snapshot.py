"""Snapshots: a table as of a cut, equal to a plain model of what the source did (D12 to D15)."""

from __future__ import annotations

import datetime as dt
import sys
import tempfile
from decimal import Decimal
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from eventlog import UNCHANGED, Op
from eventlog.changes.arrow import unfit_counts
from eventlog.changes.schema import Schema
from eventlog.errors import (
    EnvironmentFault,
    OffsetOutOfRange,
    SnapshotRefused,
    UnknownColumn,
    UnknownTable,
    UsageError,
    ValueDoesNotFit,
)
from eventlog.snapshots.state import table_state
from tests.fix_log import (
    BOOL,
    INT,
    NUMERIC,
    MadeSource,
    column,
    control,
    copied,
    delete,
    insert,
    truncate,
    update,
)

KEYED = (column("id", INT, key=True), column("n", INT), column("note"))


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    return shop.table("orders", *KEYED)


def rows(log: eventlog.Log, name: str = "orders", at: Any = "end", **options: Any) -> list[Any]:
    """Offset and values of each row."""
    table = log.snapshot("shop", at=at).table(name, **options).to_arrow(offsets=True)
    return [tuple(row.values()) for row in table.to_pylist()]


def test_the_latest_version_of_each_row_in_order_of_its_offset(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, 20, "b"), insert(orders, 3, 30, "c"))
    shop.commit(update(orders, 1, 11, "A"), delete(orders, 3, None, None))
    assert rows(log) == [(1, 2, 20, "b"), (3, 1, 11, "A")]
    assert rows(log, at=3) == [(0, 1, 10, "a"), (1, 2, 20, "b"), (2, 3, 30, "c")]
    assert rows(log, at="2026-01-01T01:00Z") == rows(log, at=3)
    assert rows(log, at=0) == []
    snapshot = log.snapshot("shop", at=4)
    assert (snapshot.stop, snapshot.stops) == (3, {"shop": 3})
    assert snapshot.time == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def test_a_start_keeps_the_rows_whose_latest_version_lies_behind_it(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, 20, "b"))
    shop.commit(update(orders, 1, 11, UNCHANGED))
    table = log.snapshot({"shop": (2, "end")}).table("orders")
    assert table.to_arrow().to_pylist() == [{"id": 1, "n": 11, "note": "a"}]
    with pytest.raises(OffsetOutOfRange):
        log.snapshot({"shop": (2, 0)})
    with pytest.raises(UsageError, match="at= has no say"):
        log.snapshot({"shop": (0, 2)}, at=3)
    nothing: tuple[Any, ...] = ({}, [])
    for none in nothing:
        with pytest.raises(UsageError, match="no stream is named"):
            log.snapshot(none)


def test_a_key_change_moves_the_row_and_carries_unchanged_values(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 10, "long"), insert(orders, 5, 50, "x"))
    shop.commit(update(orders, 2, 11, UNCHANGED, key=(1, None, None)))
    shop.commit(update(orders, 2, 12, UNCHANGED), insert(orders, 1, 1, "new"))
    assert rows(log) == [(1, 5, 50, "x"), (3, 2, 12, "long"), (4, 1, 1, "new")]


def test_a_swap_of_keys_is_applied_in_order(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 1, "one"), insert(orders, 2, 2, "two"))
    shop.commit(
        update(orders, 3, 1, UNCHANGED, key=(1, None, None)),
        update(orders, 1, 2, UNCHANGED, key=(2, None, None)),
        update(orders, 2, 1, UNCHANGED, key=(3, None, None)),
    )
    assert rows(log) == [(3, 1, 2, "two"), (4, 2, 1, "one")]


def test_a_truncate_empties_its_table_alone(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    users = shop.table("users", *KEYED, relation=2)
    shop.commit(insert(orders, 1, 1, "o"), insert(users, 1, 1, "u"))
    shop.commit(truncate(orders), insert(orders, 2, 2, "later"))
    assert rows(log) == [(3, 2, 2, "later")]
    assert rows(log, "users") == [(1, 1, 1, "u")]


def test_a_keyless_table_under_full_identity_folds_as_a_multiset(
    log: eventlog.Log, shop: MadeSource
) -> None:
    full = shop.table("full", column("a", INT, key=True), column("b", key=True), identity="f")
    shop.commit(*(insert(full, 1, "x") for _ in range(3)), insert(full, 2, None))
    shop.commit(delete(full, 1, "x"), update(full, 9, UNCHANGED, old=(1, "x")))
    assert rows(log, "full") == [(0, 1, "x"), (3, 2, None), (5, 9, "x")]
    shop.commit(delete(full, 2, None))
    assert rows(log, "full") == [(0, 1, "x"), (5, 9, "x")]


def test_keys_are_compared_as_the_sources_text(log: eventlog.Log, shop: MadeSource) -> None:
    prices = shop.table("prices", column("p", NUMERIC, key=True))
    shop.commit(insert(prices, "1.0"), insert(prices, "1.00"), delete(prices, "1.0"))
    assert rows(log, "prices") == [(1, Decimal("1.00"))]


# Copies and losses


def test_a_copy_resets_its_table_and_a_cut_inside_is_refused(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 9, 9, "stale"))
    shop.commit(control(Op.COPY_BEGIN, orders))
    shop.commit(copied(orders, 1, 10, "a"))
    shop.commit(copied(orders, 2, 20, None), control(Op.COPY_END, orders))
    assert rows(log, at=1) == [(0, 9, 9, "stale")]
    for at in (2, 3):
        with pytest.raises(SnapshotRefused, match=f"not complete at offset {at}") as caught:
            rows(log, at=at)
        assert "from 5 on, by time after 2026-01-01T0" in caught.value.hint
    assert rows(log) == [(2, 1, 10, "a"), (3, 2, 20, None)]


def test_a_cut_before_the_first_copy_of_a_table_is_refused_and_not_empty(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    users = shop.table("users", *KEYED, relation=2)
    shop.announce()
    shop.commit(control(Op.COPY_BEGIN, orders))
    shop.commit(copied(orders, 1, 10, "a"), control(Op.COPY_END, orders))
    shop.commit(control(Op.COPY_BEGIN, users))
    assert rows(log, at=3) == [(1, 1, 10, "a")]
    for at in (0, 3, 4):
        with pytest.raises(SnapshotRefused) as caught:
            rows(log, "users", at=at)
        assert "has not ended" in caught.value.hint
    shop.commit(control(Op.COPY_END, users))
    assert rows(log, "users") == []
    with pytest.raises(SnapshotRefused) as caught:
        rows(log, "users", at=3)
    assert "from 5 on" in caught.value.hint


def test_a_loss_is_refused_until_the_table_is_copied_again(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    users = shop.table("users", *KEYED, relation=2)
    shop.commit(insert(orders, 1, 1, "x"), insert(users, 1, 1, "u"))
    shop.commit(control(Op.DATA_LOSS, None, **{"from": "0/1", "to": "0/9"}))
    shop.commit(control(Op.COPY_BEGIN, orders), copied(orders, 2, 2, "y"))
    shop.commit(control(Op.COPY_END, orders))
    assert rows(log, at=2) == [(0, 1, 1, "x")]
    with pytest.raises(SnapshotRefused, match="were lost at the source, from 0/1 to 0/9"):
        rows(log, at=3)
    assert rows(log) == [(4, 2, 2, "y")]
    with pytest.raises(SnapshotRefused, match=r"public\.users .* were lost"):
        rows(log, "users")


def test_an_insert_only_table_has_no_state_unless_asked_for_as_inserts(
    log: eventlog.Log, shop: MadeSource
) -> None:
    seen = shop.table("seen", column("a", INT), identity="d", inserts_only=True)
    shop.commit(insert(seen, 1), insert(seen, 1))
    with pytest.raises(SnapshotRefused, match="no replica identity") as caught:
        rows(log, "seen")
    assert "as_inserts=True" in caught.value.hint
    assert rows(log, "seen", as_inserts=True) == [(0, 1), (1, 1)]
    shop.commit(truncate(seen), insert(seen, 3))
    assert rows(log, "seen", as_inserts=True) == [(3, 3)]


def test_a_value_that_the_log_never_saw_is_refused_and_never_null(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(update(orders, 1, 11, UNCHANGED))
    table = log.snapshot("shop").table("orders")
    with pytest.raises(ValueDoesNotFit, match=r"'note' of public\.orders at offset 0"):
        table.to_arrow()
    assert table.to_arrow(["n"]).to_pylist() == [{"n": 11}]
    nulled = table.to_arrow(unfit="null")
    assert nulled["note"].to_pylist() == [None] and unfit_counts(nulled) == {"note": 1}


# Schemas


def test_rows_move_to_the_columns_at_the_cut(log: eventlog.Log, shop: MadeSource) -> None:
    def version(*columns: tuple[int, str, str | None]) -> Schema:
        return shop.table(
            "items",
            *(
                column(name, key=name == "id", attribute=attribute, missing=missing)
                for attribute, name, missing in columns
            ),
        )

    first = version((1, "id", None), (2, "name", None), (3, "old", None))
    shop.commit(insert(first, 1, "a", "gone"), insert(first, 2, "b", "gone"))
    # `name` renamed, `old` dropped and made anew, `tier` added with a fast default.
    second = version((1, "id", None), (2, "title", None), (4, "old", None), (5, "tier", "basic"))
    shop.commit(update(second, 2, "B", "here", "gold"))
    # A rewrite of the table made the source forget the fast default; columns changed places.
    third = version((5, "tier", None), (1, "id", None), (2, "title", None), (4, "old", None))
    shop.commit(insert(third, "silver", 3, "c", None))
    assert rows(log, "items", at=2) == [(0, "1", "a", "gone"), (1, "2", "b", "gone")]
    assert rows(log, "items", at=3) == [(0, "1", "a", None, "basic"), (2, "2", "B", "here", "gold")]
    assert rows(log, "items") == [
        (0, "basic", "1", "a", None),
        (2, "gold", "2", "B", "here"),
        (3, "silver", "3", "c", None),
    ]


def test_columns_of_inferred_versions_are_matched_by_name(
    log: eventlog.Log, shop: MadeSource
) -> None:
    first = shop.table("items", column("id", key=True, attribute=1), column("a", attribute=2))
    shop.commit(insert(first, 1, "x"))
    second = shop.table("items", column("id", key=True), column("b"), column("a"))
    shop.commit(insert(second, 2, "B", "A"))
    assert rows(log, "items") == [(0, "1", None, "x"), (1, "2", "B", "A")]


def test_rows_are_found_again_when_the_key_itself_changes(
    log: eventlog.Log, shop: MadeSource
) -> None:
    first = shop.table("items", column("id", key=True), column("code"))
    shop.commit(insert(first, 1, "a"), insert(first, 2, "b"))
    full = shop.table("items", column("id", key=True), column("code", key=True), identity="f")
    shop.commit(delete(full, 1, "a"), insert(full, 2, "b"))
    second = shop.table("items", column("id"), column("code", key=True), identity="i")
    shop.commit(update(second, 9, "b"))
    assert rows(log, "items", at=4) == [(1, "2", "b"), (3, "2", "b")]
    assert rows(log, "items") == [(4, "9", "b")]


def test_a_name_means_the_relation_that_bears_it_at_the_cut(
    log: eventlog.Log, shop: MadeSource
) -> None:
    first = shop.table("orders", *KEYED, relation=1)
    shop.commit(insert(first, 1, 1, "first"))
    renamed = shop.table("archive", *KEYED, relation=1)
    again = shop.table("orders", *KEYED, relation=2)
    shop.commit(insert(renamed, 2, 2, "renamed"), insert(again, 3, 3, "again"))
    assert rows(log, "orders", at=1) == [(0, 1, 1, "first")]
    assert rows(log, "archive") == [(0, 1, 1, "first"), (1, 2, 2, "renamed")]
    assert rows(log, "orders") == [(2, 3, 3, "again")]
    with pytest.raises(UnknownTable) as caught:
        rows(log, "archive", at=1)
    assert "record at offset 1" in caught.value.hint


def test_versions_of_one_commit_are_told_apart_by_their_first_records(
    log: eventlog.Log, shop: MadeSource
) -> None:
    first = shop.table("items", column("id", INT, key=True), column("a"))
    second = shop.table("items", column("id", INT, key=True), column("b"))
    third = shop.table("things", column("id", INT, key=True), column("b"))
    users = shop.table("users", *KEYED, relation=2)
    shop.commit(insert(users, 1, 1, "u"), insert(first, 1, "x"))
    shop.commit(insert(second, 2, "y"), insert(users, 2, 2, "v"))
    shop.commit(insert(third, 3, "z"))
    names = log.snapshot("shop", at=2).table("items").schema.names
    assert names == ["id", "a"]
    assert log.snapshot("shop", at=4).table("items").schema.names == ["id", "b"]
    assert log.snapshot("shop").table("things").num_rows == 3
    with pytest.raises(UnknownTable):
        log.snapshot("shop").table("items")


def test_a_dropped_table_gives_its_name_to_a_new_one(log: eventlog.Log, shop: MadeSource) -> None:
    for relation in (1, 2):
        table = shop.table("orders", *KEYED, relation=relation)
        shop.commit(insert(table, relation, 0, None))
    assert rows(log, at=1) == [(0, 1, 0, None)]
    assert rows(log) == [(1, 2, 0, None)]


# What comes out


def test_arrow_types_follow_from_the_declared_types(log: eventlog.Log, shop: MadeSource) -> None:
    numeric_8_2 = column("price", NUMERIC, typmod=(8 << 16 | 2) + 4)
    items = shop.table("items", column("id", INT, key=True), numeric_8_2, column("day", 1082))
    shop.announce()
    empty = log.snapshot("shop").table("items")
    assert empty.num_rows == 0
    assert empty.schema.field("price").type == pa.decimal128(8, 2)
    assert empty.schema.field("price").metadata == {b"postgres_type": b"numeric(8,2)"}
    shop.commit(insert(items, 1, "12.50", "2026-01-31"))
    table = log.snapshot("shop").table("items")
    assert table.to_arrow().schema.equals(empty.schema, check_metadata=True)
    assert table.schema.equals(empty.schema, check_metadata=True)
    assert table.to_arrow(["day", "price"]).to_pylist() == [
        {"day": dt.date(2026, 1, 31), "price": Decimal("12.50")}
    ]
    assert list(table.to_pandas(offsets=True).columns) == ["_offset", "id", "price", "day"]
    with pytest.raises(UnknownColumn):
        table.to_arrow(["prise"])


def test_a_value_that_does_not_fit_names_its_place_and_the_ways_out(
    log: eventlog.Log, shop: MadeSource
) -> None:
    items = shop.table("items", column("id", INT, key=True), column("p", NUMERIC))
    shop.commit(insert(items, 1, "NaN"), insert(items, 2, "2.5"), insert(items, 3, "Infinity"))
    table = log.snapshot("shop").table("items")
    with pytest.raises(ValueDoesNotFit, match=r"'p' of public\.items at offset 0 .*'NaN'") as error:
        table.to_arrow()
    assert "cast={'p': 'text'}" in error.value.hint
    assert table.to_arrow(cast={"p": "text"})["p"].to_pylist() == ["NaN", "2.5", "Infinity"]
    floats = table.to_arrow(cast={"p": "float64"})["p"].to_pylist()
    assert floats[1:] == [2.5, float("inf")] and floats[0] != floats[0]
    nulled = table.to_arrow(unfit="null", cast={"p": "decimal(10, 2)"})
    assert nulled["p"].to_pylist() == [None, Decimal("2.50"), None]
    assert unfit_counts(nulled) == {"p": 2}
    for bad in ("decimal(99,2)", "decimal(2,3)", "int"):
        with pytest.raises(UsageError, match="cannot be cast"):
            table.to_arrow(cast={"p": bad})
    with pytest.raises(UnknownColumn):
        table.to_arrow(cast={"q": "text"})
    with pytest.raises(UsageError, match="unfit="):
        table.to_arrow(unfit="drop")  # type: ignore[arg-type]


def test_changes_of_a_snapshot_are_those_of_the_table_below_the_cut(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    users = shop.table("users", *KEYED, relation=2)
    shop.commit(insert(orders, 1, 1, "x"), insert(users, 1, 1, "u"))
    shop.commit(update(orders, 1, 2, UNCHANGED))
    shop.commit(delete(orders, 1, None, None))
    changes = log.snapshot("shop", at=3).changes("orders", fill=True)
    assert [(c.op, c.row and c.row["note"]) for c in changes] == [("insert", "x"), ("update", "x")]
    assert [c.offset for c in log.snapshot({"shop": (2, 3)}).changes("orders")] == [2]


def test_several_streams_each_at_its_own_cut(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    crm = MadeSource(log, "crm")
    people = crm.table("people", *KEYED)
    crm.commit(insert(people, 1, 1, "p"))
    shop.commit(insert(orders, 1, 1, "x"))
    crm.close()
    clicks = log.stream("clicks", create=True)
    clicks.append_many(["a", "b", None], keys=["1", "2", "1"])
    snapshot = log.snapshot({"shop": 0, "crm": "end", "clicks": 2})
    assert snapshot.stops == {"shop": 0, "crm": 1, "clicks": 2}
    assert snapshot.table("crm.public.people").num_rows == 1
    assert snapshot.table("clicks").to_arrow()["value"].to_pylist() == ['"a"', '"b"']
    with pytest.raises(UnknownTable, match="2 of the streams"):
        snapshot.table("people")
    with pytest.raises(UsageError, match="3 streams"):
        snapshot.stop  # noqa: B018
    latest = log.snapshot("clicks").table()
    assert (latest.num_rows, latest.to_arrow()["key"].to_pylist()) == (1, ["2"])
    assert log.snapshot(["shop", "crm"], at="2026-01-01").stops == {"shop": 0, "crm": 0}
    with pytest.raises(OffsetOutOfRange):
        log.snapshot("shop", at=2)
    with pytest.raises(UsageError, match="has tables"):
        log.snapshot("shop").table()


def test_events_without_a_key_are_never_superseded(log: eventlog.Log) -> None:
    clicks = log.stream("clicks", create=True)
    clicks.append_many([1, 2, 3, 4], keys=["k", None, "k", None])
    table = log.snapshot("clicks").table("clicks")
    arrow = table.to_arrow(offsets=True)
    assert arrow["_offset"].to_pylist() == [1, 2, 3]
    assert arrow.column_names == ["_offset", "_time", "key", "value"]
    assert table.schema.names == ["_time", "key", "value"]
    assert table.to_arrow(["value"]).to_pylist() == [{"value": v} for v in "234"]
    with pytest.raises(UnknownColumn):
        table.to_arrow(["valeu"])
    with pytest.raises(UsageError, match="no types"):
        table.to_arrow(cast={"value": "float64"})


def test_pandas_that_is_not_installed_is_said_so(
    log: eventlog.Log, shop: MadeSource, orders: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.commit(insert(orders, 1, 1, "x"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EnvironmentFault, match="pandas is not installed") as caught:
        log.snapshot("shop").table("orders").to_pandas()
    assert "eventlog-cdc[pandas]" in caught.value.hint


def test_numpy_takes_numbers_and_names_what_is_none(log: eventlog.Log, shop: MadeSource) -> None:
    table = shop.table(
        "orders",
        column("id", INT, key=True),
        column("n", NUMERIC, typmod=(8 << 16 | 2) + 4),
        column("paid", BOOL),
        column("note"),
    )
    shop.commit(insert(table, 1, "1.50", "t", "a"), insert(table, 2, None, "f", None))
    orders = log.snapshot("shop").table("orders")
    features, y, ids = orders.to_numpy(["n", "id"], target="paid")
    assert features.dtype == np.float64 and ids.tolist() == [0, 1]
    np.testing.assert_array_equal(features, [[1.5, 1], [np.nan, 2]])
    assert y is not None and y.tolist() == [1.0, 0.0]
    found = orders.to_numpy(columns=["id"], target="note")
    assert found.y is not None and found.y.tolist() == ["a", None]
    assert orders.to_numpy(["id"]).y is None
    assert orders.to_numpy(target="note").X.shape == (2, 3)
    with pytest.raises(UsageError, match=r"not all columns are numbers: note \(string\)") as caught:
        orders.to_numpy()
    assert "columns=" in caught.value.hint
    with pytest.raises(UnknownColumn):
        orders.to_numpy(["id"], target="notes")
    for take in (orders.to_numpy, orders.to_arrow, orders.to_pandas):
        with pytest.raises(UsageError, match="'id' is one text") as told:
            take("id")
        assert told.value.hint == "write columns=['id']"


def test_batches_are_the_table_by_pieces(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.announce()
    shop.commit(*(insert(orders, number, number, "x" * number) for number in range(10)))
    shop.commit(update(orders, 3, 33, UNCHANGED))
    table = log.snapshot("shop").table("orders")
    for size in (1, 4, 10, 100):
        pieces = list(table.to_batches(offsets=True, max_rows=size))
        assert all(0 < piece.num_rows <= size for piece in pieces)
        assert pa.concat_tables(pieces).equals(table.to_arrow(offsets=True))
        texts = list(table.texts(max_rows=size))
        assert [o for offsets, _ in texts for o in offsets.tolist()][-1] == 10
        notes = [note for _, columns in texts for note in columns[2].to_pylist()]
        assert notes == [b"x" * n for n in (0, 1, 2, 4, 5, 6, 7, 8, 9, 3)]
    (nothing,) = log.snapshot("shop", at=0).table("orders").to_batches(["note"])
    assert (nothing.num_rows, nothing.column_names) == (0, ["note"])
    assert list(log.snapshot("shop", at=0).table("orders").texts()) == []
    with pytest.raises(UnknownColumn):
        table.to_batches(["notes"])
    with pytest.raises(UsageError, match="max_rows=0"):
        table.to_batches(max_rows=0)


def test_events_come_by_pieces_and_as_they_were_stored(log: eventlog.Log) -> None:
    clicks = log.stream("clicks", create=True)
    clicks.append_many([{"é": 1.5}, b"\x00", 3], keys=["k", None, "m"])
    table = log.snapshot("clicks").table()
    assert [piece.num_rows for piece in table.to_batches(max_rows=2)] == [2, 1]
    assert pa.concat_tables(table.to_batches(max_rows=2)).equals(table.to_arrow())
    shown = table.to_arrow(offsets=True).to_pydict()
    assert shown["_offset"] == [0, 1, 2] and shown["key"] == ["k", None, "m"]
    assert shown["value"] == ['{"é": 1.5}', '"\\\\x00"', "3"]
    assert all(time.tzinfo is not None for time in table.to_arrow(["_time"])["_time"].to_pylist())
    (nothing,) = log.snapshot("clicks", at=0).table().to_batches()
    assert nothing.num_rows == 0


def test_a_table_stays_what_it_was_though_the_log_grows(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, 20, "b"))
    table = log.snapshot("shop").table("orders")
    before = table.to_arrow()
    shop.commit(update(orders, 1, 11, "A"), delete(orders, 2, None, None))
    for number in range(40):  # small batches are merged meanwhile
        shop.commit(insert(orders, 100 + number, 0, "later"))
    assert table.to_arrow().equals(before) and table.num_rows == 2
    with mock.patch.object(table_state, "KEEP_BYTES", 0):
        unkept = log.snapshot("shop", at=2).table("orders")
    shop.commit(truncate(orders))
    assert unkept.to_arrow().equals(before)


def test_progress_ends_at_the_whole(log: eventlog.Log, shop: MadeSource, orders: Schema) -> None:
    for number in range(5):
        shop.commit(insert(orders, number, 0, None))
    told: list[tuple[int, int]] = []
    log.snapshot("shop").table("orders", progress=lambda done, all_: told.append((done, all_)))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


# Against a model

KEYS = st.integers(0, 4)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 9)),
        st.tuples(st.just("touch"), KEYS, st.integers(0, 9)),
        st.tuples(st.just("rekey"), KEYS, KEYS),
        st.tuples(st.just("delete"), KEYS, st.just(0)),
        st.tuples(st.sampled_from(["truncate", "copy", "widen"]), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(operations=OPERATIONS, split=st.booleans(), full=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_history_folds_to_what_the_source_had_at_every_cut(
    operations: list[tuple[str, int, int]], split: bool, full: bool
) -> None:
    """Play a life of a table against a dict, and compare all cuts; TOAST values stay unsent."""
    with (
        tempfile.TemporaryDirectory() as folder,
        eventlog.open(folder + "/log", create=True) as log,
    ):
        source = MadeSource(log, "shop")
        states = _play(source, operations, split=split, full=full)
        for stop, state in states.items():
            table = log.snapshot("shop", at=stop, strict=True).table("t").to_arrow(offsets=True)
            found = [tuple(row.values()) for row in table.to_pylist()]
            assert found == [
                (offset, *row) for row, offset in sorted(state.items(), key=lambda p: p[1])
            ]
        source.close()
        assert log.check() == []


def _play(
    source: MadeSource, operations: list[tuple[str, int, int]], *, split: bool, full: bool
) -> dict[int, dict[tuple[Any, ...], int]]:
    """Write the history; returns, for each cut, the offset of each row's latest version."""
    columns = [column("id", INT, key=True, attribute=1), column("n", INT, key=full, attribute=2)]
    columns += [column("toast", key=full, attribute=3)]

    def version() -> Schema:
        return source.table("t", *columns, identity="f" if full else "d")

    table = version()
    rows: dict[int, tuple[Any, ...]] = {}
    at: dict[int, int] = {}
    source.announce()
    states: dict[int, dict[tuple[Any, ...], int]] = {0: {}}
    for name, key, number in operations:
        extra = (None,) * (len(columns) - 3)
        if name == "put" and key not in rows:
            rows[key] = (key, number, f"toast {key}", *extra)
            records = [insert(table, *rows[key])]
            touched = [key]
        elif name in ("put", "touch") and key in rows:
            before = rows[key]
            rows[key] = (key, number, *before[2:])
            sent = (key, number, UNCHANGED, *before[3:])
            records, touched = [update(table, *sent, old=before if full else ())], [key]
        elif name == "rekey" and key in rows and number not in rows:
            before = rows.pop(key)
            at.pop(key)
            rows[number] = (number, *before[1:])
            old = {"old": before} if full else {"key": (key,) + (None,) * (len(columns) - 1)}
            sent = (number, before[1], UNCHANGED, *before[3:])
            records, touched = [update(table, *sent, **old)], [number]
        elif name == "delete" and key in rows:
            before = rows.pop(key)
            at.pop(key)
            records = [delete(table, *(before if full else (key, *(None,) * (len(columns) - 1))))]
            touched = []
        elif name == "truncate":
            rows, at, touched = {}, {}, []
            records = [truncate(table)]
        elif name == "copy":
            copy = [copied(table, *row) for row in rows.values()]
            records = [control(Op.COPY_BEGIN, table), *copy, control(Op.COPY_END, table)]
            touched = list(rows)
            if list(states) == [0]:
                states = {}  # before its first copy a table has no state
        elif name == "widen" and len(columns) < 6:
            attribute = len(columns) + 1
            columns.append(
                column(f"c{attribute}", key=full, attribute=attribute, missing=f"d{attribute}")
            )
            table = version()
            rows = {key: (*row, f"d{attribute}") for key, row in rows.items()}
            continue
        else:
            continue
        offsets = source.commit(*records, split=split)
        first = offsets.start + (1 if name == "copy" else 0)
        at.update({key: first + place for place, key in enumerate(touched)})
        states[offsets.stop] = {rows[key]: offset for key, offset in at.items()}
    return states
