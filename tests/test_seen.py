"""Rows as seen and point-in-time joins, against a plain search through a plain model (D17)."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import eventlog
from eventlog import UNCHANGED, Op, count, later, lookup
from eventlog.changes.arrow import unfit_counts
from eventlog.changes.schema import Schema
from eventlog.errors import (
    SnapshotRefused,
    UnknownColumn,
    UnknownTable,
    UsageError,
    ValueDoesNotFit,
)
from eventlog.snapshots.seen.codes import coded
from eventlog.snapshots.seen.counting import _below
from eventlog.snapshots.seen.standing import standing
from tests.fix_log import (
    HOUR_US,
    INT,
    NUMERIC,
    T0_US,
    MadeSource,
    column,
    control,
    copied,
    delete,
    insert,
    truncate,
    update,
)
from tests.seen_history import History
from tests.seen_world import ORDERS

LABELS = (later("done"), later("amount", when="amount = '9'", name="paid"))
LABEL_NAMES = {"label", "_label_offset", "paid", "_paid_offset"}


def asked(log: eventlog.Log, at: Any = "end", *, vip: bool = True) -> list[dict[str, Any]]:
    """All that can be asked of the changes of `orders`."""
    tiers = ["tier", "body", "vip"] if vip else ["tier", "body"]
    seen = log.snapshot("shop", at=at).seen(
        "orders",
        on={"read", "insert", "update", "delete"},
        old=ORDERS,
        lookups=[
            lookup("customers", by="customer", columns=tiers),
            lookup("accounts", by="customer", on="code", columns=["id", "owner"]),
            lookup("orders", by="customer", on="customer", columns="number", name="last"),
            lookup("orders", by=["region", "number"], columns="amount", name="same"),
            lookup("visits", by="customer", on="customer", columns="page", name="visit"),
        ],
        counts=[
            count("orders", by="customer", over="6h"),
            count("orders", by=["customer", "region"]),
            count("customers", by="amount", on="tier", over="6h"),
            count("visits", by="customer", on="customer"),
            count("hits", by="customer", on="customer", as_inserts=True),
        ],
        label=LABELS,
    )
    rows: list[dict[str, Any]] = seen.to_arrow(unfit="null").to_pylist()
    for row in rows:
        del row["_time"]
    return rows


@pytest.mark.parametrize("seed", range(6))
def test_any_history_is_seen_as_a_plain_search_sees_it(
    log: eventlog.Log, shop: MadeSource, seed: int
) -> None:
    print(f"seed {seed}")
    history = History(shop, seed)
    history.run(30)
    history.age()
    history.run(30)
    expected = history.world.expected()
    for found, other in zip(asked(log), expected, strict=True):
        assert found == other


def test_no_later_record_changes_what_was_seen(log: eventlog.Log, shop: MadeSource) -> None:
    history = History(shop, seed=11)
    history.run(15)
    cuts = [log.snapshot("shop").stop]
    for _ in range(4):
        history.run(8)
        cuts.append(log.snapshot("shop").stop)
    whole = asked(log, vip=False)
    opened = 0
    for cut in cuts[:-1]:
        part = asked(log, cut, vip=False)
        assert len(part) == sum(row["_offset"] < cut for row in whole)
        for then, now in zip(part, whole[: len(part)], strict=True):
            assert without_labels(then) == without_labels(now)
            for name in ("label", "paid"):
                if then[f"_{name}_offset"] is not None:
                    assert then[name] == now[name]
                    assert then[f"_{name}_offset"] == now[f"_{name}_offset"] < cut
                opened += then[f"_{name}_offset"] is None and now[f"_{name}_offset"] is not None
    assert opened > 0


def without_labels(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in LABEL_NAMES}


# One rule each


@pytest.fixture
def customers(shop: MadeSource) -> Schema:
    return shop.table(
        "customers", column("id", INT, key=True), column("tier"), column("bio"), relation=1
    )


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    return shop.table(
        "orders",
        column("id", INT, key=True),
        column("customer", INT),
        column("amount", NUMERIC),
        column("note"),
        relation=2,
    )


def values(seen: Any, *names: str) -> list[Any]:
    """The columns of these names, or the values of the only one."""
    rows = seen.to_arrow().select(names).to_pylist()
    return [tuple(row.values()) if len(names) > 1 else row[names[0]] for row in rows]


def test_an_instance_has_its_row_what_was_known_then_and_what_came_later(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(insert(customers, 7, "basic", "x"))
    shop.commit(insert(orders, 1, 7, "12.50", None))
    shop.commit(update(customers, 7, "gold", UNCHANGED))
    shop.commit(insert(orders, 2, 7, "3", None), update(orders, 1, 7, "12.50", "late"))
    seen = log.snapshot("shop").seen(
        "public.orders",
        columns=["amount"],
        lookups=[lookup("public.customers", by="customer", columns=["tier", "bio"])],
        counts=[count("public.orders", by="customer", over="90d")],
        label=later("note"),
    )
    table = seen.to_arrow()
    assert table.column_names == seen.column_names
    assert table.to_pylist() == [
        {
            "_offset": 1,
            "_op": "insert",
            "_time": dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC),
            "amount": Decimal("12.5"),
            "customers.tier": "basic",
            "customers.bio": "x",
            "orders_90d": 0,
            "label": "late",
            "_label_offset": 4,
        },
        {
            "_offset": 3,
            "_op": "insert",
            "_time": dt.datetime(2026, 1, 1, 3, tzinfo=dt.UTC),
            "amount": Decimal("3"),
            "customers.tier": "gold",
            "customers.bio": "x",
            "orders_90d": 1,
            "label": None,
            "_label_offset": None,
        },
    ]
    assert seen.to_pandas()["orders_90d"].tolist() == [0, 1]


def test_earlier_records_of_the_same_transaction_are_known_and_later_ones_are_not(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(
        insert(orders, 1, 7, 1, None),
        insert(customers, 7, "new", None),
        insert(orders, 2, 7, 1, None),
        update(customers, 7, "newer", None),
        insert(orders, 3, 7, 1, None),
    )
    seen = log.snapshot("shop").seen(
        "orders",
        columns=[],
        lookups=[lookup("customers", by="customer", columns="tier")],
        counts=[count("orders", by="customer", name="n")],
    )
    assert values(seen, "customers.tier", "n") == [(None, 0), ("new", 1), ("newer", 2)]


def test_a_start_leaves_out_instances_and_not_what_they_know(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(insert(customers, 7, "basic", None), insert(orders, 1, 7, 1, "long"))
    shop.commit(update(orders, 1, 7, 2, UNCHANGED))
    seen = log.snapshot({"shop": (2, "end")}).seen(
        "orders",
        on={"insert", "update"},
        columns=["note"],
        old=["amount"],
        lookups=[lookup("customers", by="customer", columns="tier")],
    )
    assert values(seen, "_offset", "note", "old.amount", "customers.tier") == [
        (2, "long", Decimal(1), "basic")
    ]


def test_rows_that_are_copied_late_are_not_known_before(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(insert(customers, 7, "old", None), insert(orders, 1, 7, 1, None))
    shop.commit(control(Op.COPY_BEGIN, customers))
    shop.commit(insert(orders, 2, 7, 1, None))
    shop.commit(copied(customers, 7, "copied", None), control(Op.COPY_END, customers))
    shop.commit(insert(orders, 3, 7, 1, None))
    snapshot = log.snapshot("shop")
    seen = snapshot.seen(
        "orders",
        lookups=[lookup("customers", by="customer", columns="tier")],
        counts=[count("customers", by="customer", on="id", over="1h", name="fresh")],
    )
    assert values(seen, "customers.tier", "fresh") == [("old", 1), (None, 0), ("copied", 0)]
    assert values(snapshot.seen("customers", on="read"), "tier") == ["copied"]
    assert values(snapshot.seen("customers"), "tier") == ["old"]


def test_a_label_follows_its_row_through_key_changes_and_another_copy(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(*(insert(orders, n, 0, 1, None) for n in (1, 2, 3, 4)))
    shop.commit(update(orders, 10, 0, 1, None, key=(1, None, None, None)))
    shop.commit(insert(orders, 1, 0, 1, "another row"))
    shop.commit(control(Op.COPY_BEGIN, orders))
    shop.commit(copied(orders, 10, 0, 1, None), copied(orders, 2, 0, 1, "copied"))
    shop.commit(control(Op.COPY_END, orders))
    shop.commit(delete(orders, 3, None, None, None), insert(orders, 3, 0, 1, "again"))
    shop.commit(update(orders, 10, 0, 1, "found"))
    shop.commit(truncate(orders), insert(orders, 4, 0, 1, "after all"))
    seen = log.snapshot("shop").seen("orders", columns=["id"], label=later("note"))
    assert values(seen, "id", "label", "_label_offset")[:4] == [
        (1, "found", 12),
        (2, "copied", 8),
        (3, None, None),
        (4, None, None),
    ]


def test_a_label_is_of_a_later_version_even_where_the_instance_has_one(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 0, 1, "at once"), update(orders, 1, 0, 2, "later"))
    snapshot = log.snapshot("shop")
    assert values(snapshot.seen("orders", label=later("note")), "label") == ["later"]
    big = later("amount", when=lambda rows: pc.greater(rows["amount"], 1), name="big")
    assert values(snapshot.seen("orders", label=big), "big", "_big_offset") == [(Decimal(2), 1)]
    assert values(snapshot.seen("orders", on="update", label=big), "big") == [None]


def test_a_deleted_instance_shows_the_row_that_went(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(insert(customers, 7, "basic", None), insert(orders, 1, 7, 5, "x"))
    shop.commit(delete(orders, 1, None, None, None), delete(orders, 9, None, None, None))
    seen = log.snapshot("shop").seen(
        "orders", on="delete", lookups=[lookup("customers", by="customer", columns="tier")]
    )
    assert values(seen, "id", "amount", "note", "customers.tier") == [
        (1, Decimal(5), "x", "basic"),
        (9, None, None, None),
    ]


def test_the_window_is_open_at_its_far_end_and_time_never_runs_back(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    for number, hours in enumerate((0, 10, 4, 12, 20, 20)):
        shop.commit(insert(orders, number, 7, 1, None), time_us=T0_US + hours * HOUR_US)
    counts = [count("orders", by="customer", over="10h"), count("orders", by="customer", name="n")]
    seen = log.snapshot("shop").seen("orders", counts=counts)
    # Times count as 0, 10, 10, 12, 20, 20: at 10 what came at 0 is too old, at 20 what came at 10.
    assert values(seen, "orders_10h", "n") == [(0, 0), (0, 1), (1, 2), (2, 3), (1, 4), (2, 5)]


def test_counted_rows_go_move_and_come_back(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    def probe() -> None:
        for customer in (7, 8):
            shop.commit(insert(customers, customer, None, None))

    shop.commit(*(insert(orders, n, 7, 1, None) for n in (1, 2, 3)))
    probe()
    shop.commit(update(orders, 1, 8, 1, None), delete(orders, 2, None, None, None))
    probe()
    shop.commit(update(orders, 1, 7, 1, None), insert(orders, 2, 7, 1, None))
    probe()
    shop.commit(truncate(orders))
    probe()
    counts = [
        count("orders", by="id", on="customer"),
        count("orders", by="id", on="customer", over="6h"),
    ]
    seen = log.snapshot("shop").seen("customers", columns=[], counts=counts)
    assert values(seen, "orders", "orders_6h") == [
        (3, 3), (0, 0), (1, 1), (1, 1), (3, 1), (0, 0), (0, 0), (0, 0),
    ]  # fmt: skip


def test_null_matches_nothing(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(insert(customers, 1, None, None), insert(orders, 1, None, 1, None))
    shop.commit(insert(orders, 2, None, 1, None))
    seen = log.snapshot("shop").seen(
        "orders",
        lookups=[lookup("customers", by="customer", columns="id")],
        counts=[count("orders", by="customer"), count("customers", by="note", on="tier")],
    )
    assert values(seen, "customers.id", "orders", "customers") == [(None, 0, 0), (None, 0, 0)]


def test_instances_are_those_for_which_a_condition_holds(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 7, 1, None), insert(orders, 2, None, 5, "x"))
    shop.commit(update(orders, 1, 7, 3, "y"), update(orders, 2, None, 1, UNCHANGED))
    snapshot = log.snapshot("shop")

    def found(where: Any) -> list[Any]:
        return values(snapshot.seen("orders", on={"insert", "update"}, where=where), "_offset")

    assert found("note is not null and old.note is null") == [1, 2]
    assert found("customer > 5") == [0, 2]
    assert found("_op = 'update' and amount > old.amount and _time >= '2026-01-01'") == [2]
    assert found(lambda rows: pc.equal(rows["customer"], 7)) == [0, 2]
    assert found(lambda rows: np.asarray(rows["_offset"]) > 2) == [3]
    assert found("false") == []


def test_values_that_the_log_never_saw_are_refused_or_counted_and_never_silently_null(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(update(customers, 7, "gold", UNCHANGED), insert(orders, 1, 7, 1, None))
    seen = log.snapshot("shop").seen(
        "orders", lookups=[lookup("customers", by="customer", columns="bio")]
    )
    with pytest.raises(ValueDoesNotFit, match=r"'bio' of public\.customers at offset 0"):
        seen.to_arrow()
    table = seen.to_arrow(unfit="null")
    assert table["customers.bio"].to_pylist() == [None]
    assert unfit_counts(table) == {"customers.bio": 1}


def test_columns_of_the_answer_are_cast_by_their_names(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 7, "1.50", None), update(orders, 1, 7, "2", None))
    snapshot = log.snapshot("shop")
    seen = snapshot.seen(
        "orders",
        columns=["amount"],
        old=["amount"],
        lookups=[lookup("orders", by="id", columns="amount", name="before")],
        label=later("amount"),
    )
    cast = {"amount": "text", "before.amount": "float64", "label": "float64"}
    schema = seen.to_arrow(cast=cast).schema
    assert schema.field("amount").type == pa.string()
    assert schema.field("old.amount").type == pa.decimal128(38, 9)
    assert schema.field("before.amount").type == schema.field("label").type == pa.float64()
    with pytest.raises(UnknownColumn, match="no column 'nope' to cast"):
        seen.to_arrow(cast={"nope": "text"})


def test_numbers_come_with_the_label_and_the_offsets(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 7, "1.50", None), insert(orders, 2, 7, None, None))
    shop.commit(update(orders, 2, 7, None, "late"))
    seen = log.snapshot("shop").seen(
        "orders",
        columns=["amount"],
        counts=[count("orders", by="customer", name="n")],
        label=later("note"),
    )
    X, y, ids = seen.to_numpy()  # noqa: N806
    assert np.array_equal(X, [[1.5, 0], [np.nan, 1]], equal_nan=True)
    assert y is not None and y.tolist() == [None, "late"]
    assert ids.tolist() == [0, 1]
    assert seen.to_numpy(["n"], target="amount").X.tolist() == [[0.0], [1.0]]
    with pytest.raises(UsageError, match="not all columns are numbers: label"):
        seen.to_numpy(["n", "label"])


def test_nothing_asked_of_nothing_has_its_columns(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(insert(orders, 1, 7, 1, None), insert(orders, 2, 7, 1, None))
    shop.announce()
    snapshot = log.snapshot("shop")
    asked = {
        "lookups": [lookup("customers", by="customer", columns=["tier", "id"])],
        "counts": [count("customers", by="customer", on="id", over="1d")],
        "label": later("note"),
    }
    seen = snapshot.seen("orders", **asked)
    assert values(seen, "customers.tier", "customers_1d", "label") == [(None, 0, None)] * 2
    none = snapshot.seen("orders", on="delete", **asked).to_arrow()
    assert none.num_rows == 0 and none.schema.equals(seen.to_arrow().schema)
    parts = list(seen.to_batches(max_rows=1))
    assert [part.num_rows for part in parts] == [1, 1]
    assert pa.concat_tables(parts).to_pylist() == seen.to_arrow().to_pylist()


def test_long_keys_are_compared_and_long_values_are_left_behind(
    log: eventlog.Log, shop: MadeSource
) -> None:
    things = shop.table("things", column("id", key=True), column("other"), column("bulk"))
    keys = ["k" * 8, "k" * 9, "k" * 7, "", "ä" * 40]
    shop.commit(*(insert(things, key, keys[-1 - n], "b" * 5_000) for n, key in enumerate(keys)))
    shop.commit(*(update(things, key, key, UNCHANGED) for key in keys))
    seen = log.snapshot("shop").seen(
        "things", on="update", columns=["id"],
        lookups=[lookup("things", by="id", columns=["id", "other"], name="was")],
    )  # fmt: skip
    assert values(seen, "id", "was.id", "was.other") == [
        (key, key, keys[-1 - n]) for n, key in enumerate(keys)
    ]
    bulk = log.snapshot("shop").seen("things", on="update", columns=["bulk"])
    assert values(bulk, "bulk") == ["b" * 5_000] * 5


def test_tables_without_updates_are_seen_as_inserts_and_looked_up_by_nobody(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    hits = shop.table("hits", column("id", INT), relation=5, inserts_only=True)
    shop.commit(insert(hits, 1), insert(orders, 1, 1, 1, None), insert(hits, 1))
    snapshot = log.snapshot("shop")
    assert values(snapshot.seen("hits"), "_offset", "id") == [(0, 1), (2, 1)]
    with pytest.raises(SnapshotRefused, match="cannot be looked up"):
        snapshot.seen("orders", lookups=[lookup("hits", by="id", on="id", columns="id")])
    with pytest.raises(SnapshotRefused, match="cannot be counted") as caught:
        snapshot.seen("orders", counts=[count("hits", by="id")])
    assert "as_inserts=True" in caught.value.hint


def _above_the_mean(rows: pa.Table) -> Any:
    ids = rows.column("id").to_numpy()
    return ids > ids.mean()


@pytest.mark.parametrize(
    ("wrong", "error", "cause"),
    [
        ({"on": "upsert"}, UsageError, "'upsert' is no change of a row"),
        ({"on": "truncate"}, UsageError, "'truncate' is no change"),
        ({"on": ()}, UsageError, "names no change"),
        ({"columns": ["idd"]}, UnknownColumn, "no column 'idd'"),
        ({"columns": ["id", "id"]}, UsageError, "names a column twice"),
        ({"columns": "id"}, UsageError, "columns='id' is one text"),
        ({"old": "id"}, UsageError, "old='id' is one text"),
        ({"old": ["x"]}, UnknownColumn, "no column 'x'"),
        ({"label": "note"}, UsageError, "label= was given 'note'"),
        ({"label": ["note"]}, UsageError, "label= was given 'note'"),
        ({"lookups": ["customers"]}, UsageError, "lookups= was given 'customers'"),
        ({"counts": later("id")}, UsageError, "counts= was given Later"),
        ({"label": later("x")}, UnknownColumn, "no column 'x'"),
        ({"label": [later("id"), later("note")]}, UsageError, "two columns .* 'label'"),
        ({"lookups": [lookup("nope", by="id", columns="id")]}, UnknownTable, "no table"),
        ({"lookups": [lookup("customers", by="x", columns="id")]}, UnknownColumn, "'x'"),
        ({"lookups": [lookup("customers", by="id", columns="x")]}, UnknownColumn, "'x'"),
        ({"lookups": [lookup("customers", by="id", on="x", columns="id")]}, UnknownColumn, "'x'"),
        ({"lookups": 2 * [lookup("customers", by="id", columns="id")]}, UsageError, "two columns"),
        (
            {"lookups": [lookup("customers", by=["id", "note"], columns="id")]},
            UsageError,
            r"key of public\.customers has 1 columns, by= names 2",
        ),
        ({"lookups": [lookup("full", by="id", columns="id")]}, UsageError, "has no key"),
        ({"counts": [count("customers", by="customer")]}, UnknownColumn, "'customer'"),
        ({"where": "nope > 1"}, UsageError, "where= fails: Referenced column"),
        ({"where": lambda rows: [True]}, UsageError, r"where= gave bool of shape \(1,\) for 2"),
        ({"where": "amount = (select max(amount) from rows)"}, UsageError, "has a subquery"),
        ({"where": "sum(id) over () > 1"}, UsageError, r"has sum\(\) over a window"),
        ({"where": "max(id) = id"}, UsageError, r"has max\(\) over all rows"),
        ({"where": "unnest([true, false])"}, UsageError, r"has unnest\(\), which makes several"),
        ({"where": "columns(*) > 1"}, UsageError, "has several columns at once"),
        ({"where": "random() < 2"}, UsageError, r"random\(\) gives another answer each time"),
        ({"where": "id > 1), (true"}, UsageError, "where= is not one expression"),
        ({"where": "id > 1) from rows where (true"}, UsageError, "where= is not one expression"),
        ({"where": " "}, UsageError, "where= is not one expression"),
        ({"where": "(id = 1) as y from rows --"}, UsageError, "where= fails: syntax error"),
        ({"where": _above_the_mean}, UsageError, "where= is not row by row: it says otherwise"),
        ({"label": later("id", when="id +")}, UsageError, "when= of 'label' fails"),
    ],
)
def test_a_wrong_question_is_explained(
    log: eventlog.Log,
    shop: MadeSource,
    orders: Schema,
    customers: Schema,
    wrong: dict[str, Any],
    error: type[UsageError],
    cause: str,
) -> None:
    full = shop.table("full", column("id", INT, key=True), relation=9, identity="f")
    shop.commit(insert(orders, 1, 7, 1, None), insert(orders, 2, 7, 1, None), insert(full, 1))
    with pytest.raises(error, match=cause) as caught:
        log.snapshot("shop").seen("orders", **wrong).to_arrow()
    assert caught.value.hint


def test_one_definition_alone_is_taken_as_a_list_of_one(
    log: eventlog.Log, shop: MadeSource, orders: Schema, customers: Schema
) -> None:
    shop.commit(insert(orders, 1, 7, 1, None), insert(orders, 2, 7, 1, None))
    one, looked = count("orders", by="customer"), lookup("customers", by="customer", columns="id")
    snapshot = log.snapshot("shop")
    alone = snapshot.seen("orders", counts=one, lookups=looked).to_arrow()
    assert alone.equals(snapshot.seen("orders", counts=[one], lookups=[looked]).to_arrow())
    assert "orders" in alone.column_names


def test_a_wrong_definition_is_explained_before_there_is_a_log(log: eventlog.Log) -> None:
    for wrong in (
        lambda: lookup("public.*", by="id", columns="x"),
        lambda: lookup("orders", by=[], columns="x"),
        lambda: lookup("orders", by="id", columns=["x", "x"]),
        lambda: lookup("orders", by="id", on=["a", "b"], columns="x"),
        lambda: lookup("orders", by="id", columns="x", name="_x"),
        lambda: count("orders", by="id", over="soon"),
        lambda: count("orders", by="id", over="0d"),
        lambda: later(""),
    ):
        with pytest.raises(UsageError) as caught:
            wrong()
        assert caught.value.hint
    assert count("orders", by="id", over=dt.timedelta(minutes=90)).name == "orders_5400s"
    log.stream("clicks", create=True)
    with pytest.raises(UsageError, match="has events"):
        log.snapshot("clicks").seen("clicks")


# The searches, against the plainest ones


def test_searches_find_what_a_loop_finds() -> None:
    for seed in range(30):
        draw = random.Random(seed)
        print(f"seed {seed}")
        size, questions = draw.randint(0, 40), draw.randint(0, 40)
        codes = np.array([draw.randint(-1, 3) for _ in range(size)], np.int64)
        starts = np.sort(np.array(draw.sample(range(100), size), np.int64))
        ends = starts + [draw.choice((0, 1, 5, 50, 2**40)) for _ in range(size)]
        asked = np.array([draw.randint(-1, 4) for _ in range(questions)], np.int64)
        offsets = np.array([draw.randrange(110) for _ in range(questions)], np.int64)
        found = standing(codes, starts, ends, asked=asked, offsets=offsets)
        for code, offset, place in zip(asked, offsets, found, strict=True):
            standing_now = np.flatnonzero((codes == code) & (starts < offset) & (ends >= offset))
            assert place == (standing_now.max(initial=-1) if code >= 0 else -1)
        low = np.array([draw.randint(0, size) for _ in range(questions)], np.int64)
        high = np.array([draw.randint(at, size) for at in low], np.int64)
        below = _below(ends, low, high, offsets)
        for at, (first, last) in enumerate(zip(low, high, strict=True)):
            assert below[at] == (ends[first:last] < offsets[at]).sum()


def test_equal_codes_mean_equal_texts() -> None:
    from eventlog.changes.split import texts_of

    draw = random.Random(5)
    words = [b"", b"a", b"aa", b"12345678", b"123456789", b"12345679", None]
    for known in (words, words[:4]):
        one = [[draw.choice(known) for _ in range(50)] for _ in range(2)]
        two = [[draw.choice(known) for _ in range(50)] for _ in range(2)]
        left, right = coded([list(map(texts_of, one)), list(map(texts_of, two))])
        for code, pair in zip(left, zip(*one, strict=True), strict=True):
            for other, another in zip(right, zip(*two, strict=True), strict=True):
                assert (code == other) == (pair == another) or None in pair
            assert (code < 0) == (None in pair)


@pytest.mark.parametrize("where", ["max(id) = id", "wavg(id, id) > 0"])
def test_a_condition_over_all_rows_is_refused_though_there_is_one(
    log: eventlog.Log, shop: MadeSource, orders: Schema, where: str
) -> None:
    shop.commit(insert(orders, 1, 7, 1, None))
    with pytest.raises(UsageError, match="where= is not row by row"):
        log.snapshot("shop").seen("orders", where=where).to_arrow()
    commented = log.snapshot("shop").seen("orders", where="id = 1 -- the first")
    assert commented.to_arrow().num_rows == 1
