"""Time-travel SQL: which rows a name means, what is rebuilt for it, and what it cannot reach."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest

import eventlog
from eventlog import UNCHANGED, Op
from eventlog.changes.schema import Schema
from eventlog.errors import (
    EnvironmentFault,
    EventLogError,
    SnapshotRefused,
    UnknownColumn,
    UnknownTable,
    UsageError,
    ValueDoesNotFit,
)
from eventlog.snapshots.table import Table
from tests.fix_log import (
    BIGINT,
    BOOL,
    BYTEA,
    FLOAT,
    INT,
    NUMERIC,
    TIMESTAMPTZ,
    MadeSource,
    column,
    control,
    copied,
    delete,
    insert,
    truncate,
    update,
)

secret_of_the_process = pa.table({"secret": [1]})


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    """Three orders at 3; at the end the first is changed, the second gone."""
    table = shop.table(
        "orders",
        column("id", INT, key=True),
        column("customer", INT),
        column("amount", NUMERIC, typmod=(12 << 16 | 2) + 4),
        column("note"),
    )
    shop.commit(
        insert(table, 1, 7, "10.50", "a"),
        insert(table, 2, 8, "20.00", "b"),
        insert(table, 3, 7, "5.25", None),
    )
    shop.commit(update(table, 1, 7, "11.00", UNCHANGED), delete(table, 2, None, None, None))
    return table


@pytest.fixture
def crm(log: eventlog.Log) -> Iterator[MadeSource]:
    source = MadeSource(log, "crm")
    customers = source.table("customers", column("id", INT, key=True), column("tier"))
    source.commit(insert(customers, 7, "silver"), insert(customers, 8, "gold"))
    source.commit(update(customers, 7, "gold"))
    yield source
    source.close()


def rows(snapshot: eventlog.Snapshot, query: str, **others: Any) -> list[tuple[Any, ...]]:
    return list(snapshot.sql(query, **others))


def test_one_table_under_each_of_its_names(log: eventlog.Log, orders: Schema) -> None:
    now = log.snapshot("shop")
    wanted = [(1, Decimal("11.00")), (3, Decimal("5.25"))]
    for name in ("shop.public.orders", "public.orders", "orders", '"public"."orders"', "ORDERS"):
        assert rows(now, f"select id, amount from {name} order by id") == wanted, name
    both = "select count(*) from orders a join shop.public.orders b using (id)"
    assert rows(now, both) == [(2,)]


def test_an_older_cut_gives_the_older_rows(log: eventlog.Log, orders: Schema) -> None:
    then = log.snapshot("shop", at=3)
    assert rows(then, "select id, note from orders order by id") == [(1, "a"), (2, "b"), (3, None)]
    inside = log.snapshot("shop", at=4).sql("select sum(amount) from orders")
    assert list(inside) == [(Decimal("35.75"),)]
    cut = inside.cuts["shop"]
    assert (cut.stream, cut.stop, cut.time) == ("shop", 3, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


def test_two_sources_join_at_their_own_offsets(
    log: eventlog.Log, orders: Schema, crm: MadeSource
) -> None:
    query = """
        select o.id, c.tier from shop.public.orders o
        join crm.public.customers c on c.id = o.customer order by o.id"""
    assert rows(log.snapshot({"shop": 3, "crm": 2}), query) == [
        (1, "silver"),
        (2, "gold"),
        (3, "silver"),
    ]
    assert rows(log.snapshot({"shop": 5, "crm": 3}), query) == [(1, "gold"), (3, "gold")]


def test_one_stream_at_two_points_in_one_query(log: eventlog.Log, orders: Schema) -> None:
    now, before = log.snapshot("shop"), log.snapshot("shop", at="2026-01-01T00:30Z")
    query = """
        select b.id, b.amount, o.amount from before.public.orders b
        left join shop.public.orders o using (id) where o.amount is distinct from b.amount
        order by 1"""
    result = now.sql(query, before=before)
    assert list(result) == [
        (1, Decimal("10.50"), Decimal("11.00")),
        (2, Decimal("20.00"), None),
    ]
    assert {name: (cut.stream, cut.stop) for name, cut in result.cuts.items()} == {
        "shop": ("shop", 5),
        "before": ("shop", 3),
    }
    new = "select a.id from shop.public.orders a anti join before.public.orders b using (id)"
    assert rows(now, new, before=log.snapshot("shop", at=0)) == [(3,), (1,)]
    # The alias does not make names without a stream ambiguous.
    assert rows(now, "select count(*) from orders", before=before) == [(2,)]
    with pytest.raises(UsageError, match="is a stream of this snapshot already"):
        now.sql("select 1", shop=before)
    with pytest.raises(UsageError, match="before= is no snapshot"):
        now.sql("select 1", before=3)  # type: ignore[arg-type]


def test_an_event_stream_is_its_latest_events_or_all_of_them(log: eventlog.Log) -> None:
    clicks = log.stream("page-clicks", create=True)
    clicks.append({"at": {"x": 1}}, key=7)
    clicks.append({"at": {"x": 2}}, key=7)
    clicks.append({"at": {"x": 5}}, key=8)
    clicks.append(None, key=8)
    snapshot = log.snapshot("page-clicks")
    latest = 'select _offset, key, value.at.x::int from "page-clicks"'
    assert rows(snapshot, latest) == [(1, "7", 2)]
    every = "select _offset, (value->>'$.at.x')::int from \"page-clicks\".events order by 1"
    assert rows(snapshot, every) == [(0, 1), (1, 2), (2, 5), (3, None)]
    assert rows(log.snapshot("page-clicks", at=0), every) == []
    assert snapshot.sql('from "page-clicks"').columns == ["_offset", "_time", "key", "value"]


def test_the_offset_of_a_row_is_there_for_queries_that_name_it(
    log: eventlog.Log, orders: Schema
) -> None:
    now = log.snapshot("shop")
    assert rows(now, "select _offset, id from orders order by 1") == [(2, 3), (3, 1)]
    assert now.sql("select * from orders").columns == ["id", "customer", "amount", "note"]


def test_only_what_a_query_names_is_rebuilt(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    other = shop.table("other", column("id", INT, key=True), relation=9)
    shop.commit(insert(other, 1))
    taken: list[tuple[str, Any]] = []
    real = Table.to_batches

    def spy(table: Table, columns: Any = None, **options: Any) -> Any:
        taken.append((table.name, columns))
        return real(table, columns, **options)

    with mock.patch.object(Table, "to_batches", spy):
        now = log.snapshot("shop")
        now.sql("select o.Note from orders o where ID > 1")
        now.sql("select count(*) from orders")
        now.sql("select * from orders")
        now.sql("with other as (select id from orders) select 1 from other, other o")
    whole = ["id", "customer", "amount", "note"]
    assert taken[0] == ("public.orders", ["id", "note"])
    assert taken[1] == ("public.orders", [])
    assert taken[2] == ("public.orders", whole)
    assert {name for name, _ in taken} == {"public.orders"}


@pytest.mark.parametrize(
    "query",
    [
        "select orders from orders order by id",
        "select o from orders as o order by id",
        "select #1, #4 from orders order by 1",
        "select * from orders o(a, b, c, d) order by a",
        "select count(*) from orders natural join (select 1 as id, 'x' as q)",
        "select columns('n.*') from orders order by id",
        "select note.upper() from orders order by id",
        "select sum(amount) over (partition by customer order by id) from orders order by id",
        "with t(x) as (select customer from orders) select x from t order by x",
        "with recursive r as (select 1 as n union all select n + 1 from r, orders where n < 2) "
        "select n from r order by n",
        "select id from orders where exists (from orders b where b.customer = 7) order by id",
        "pivot (select id, customer from orders) on customer in (7, 8) using count(id)",
        "select * from orders pivot (sum(amount) for customer in (7)) order by id",
        "from orders select max(amount) filter (where customer = 7)",
        "select distinct on (customer) customer, note from orders order by customer, id",
        "describe orders",
        "summarize select id from orders",
        "table orders order by id",
        "select main.orders from orders order by orders.id",
    ],
)
def test_leaving_out_columns_changes_no_result(
    log: eventlog.Log, orders: Schema, query: str
) -> None:
    """The plain truth: the same query over all columns, in an ordinary DuckDB."""
    import duckdb

    now = log.snapshot("shop")
    with duckdb.connect() as plain:
        plain.register("orders", now.table("orders").to_arrow())
        expected = plain.sql(query).to_arrow_table()
    found = now.sql(query).to_arrow()
    assert found.to_pylist() == expected.to_pylist()
    assert expected.num_rows > 0


def test_a_whole_row_under_a_longer_name_has_all_of_its_columns(
    log: eventlog.Log, orders: Schema
) -> None:
    now = log.snapshot("shop")
    whole = rows(now, "select o from shop.public.orders o order by o.id")
    assert list(whole[0][0]) == ["id", "customer", "amount", "note"]
    for name, table in (
        ("public.orders", "public.orders"),
        ("shop.public.orders", "shop.public.orders"),
        ("PUBLIC.Orders", "public.orders"),
        ("main.orders", "orders"),
        ("memory.main.orders", "orders"),
    ):
        query = f"select {name} from {table} order by orders.id"
        assert rows(now, query) == whole, query
    # A column that is called like a table stays a column.
    query = "select t.customer, t._offset from orders t join orders customer using (id) order by 2"
    assert rows(now, query) == [(7, 2), (7, 3)]


def test_why_there_is_no_offset_beside_whole_rows_is_said(
    log: eventlog.Log, orders: Schema
) -> None:
    with pytest.raises(UsageError) as caught:
        log.snapshot("shop").sql("select _offset, * from orders")
    assert caught.value.hint is not None and caught.value.hint.startswith("beside whole rows")


def test_a_column_that_differs_from_the_offset_by_case_alone_is_the_table_s_own(
    log: eventlog.Log, shop: MadeSource
) -> None:
    table = shop.table("t", column("id", INT, key=True), column("_OFFSET", INT))
    shop.commit(insert(table, 1, 50), insert(table, 2, 60))
    assert rows(log.snapshot("shop"), "select _offset from t order by id") == [(50,), (60,)]


def test_equal_cuts_give_equal_results(log: eventlog.Log, shop: MadeSource) -> None:
    """I7: sums of floats and the order of groups are the same each time, and after more changes."""
    table = shop.table("big", column("id", INT, key=True), column("x", FLOAT), column("g", INT))
    values = [(i, (i * 7919 % 10007) / 997, i % 11) for i in range(1_000)]
    for start in range(0, 1_000, 100):
        stop = shop.commit(*(insert(table, *row) for row in values[start : start + 100])).stop
    query = "select g, avg(x), sum(x * x), string_agg(id::text, ',') from big group by g"
    first = log.snapshot("shop").sql(query).to_arrow()
    for i in range(3):
        shop.commit(update(table, i, -1, 0))
        assert log.snapshot("shop", at=stop).sql(query).to_arrow().equals(first)
    assert not log.snapshot("shop").sql(query).to_arrow().equals(first)
    sample = "select id from big tablesample reservoir(20 rows) repeatable (3)"
    assert rows(log.snapshot("shop"), sample) == rows(log.snapshot("shop"), sample)


def test_types_come_through(log: eventlog.Log, shop: MadeSource) -> None:
    wide = (60 << 16 | 3) + 4
    table = shop.table(
        "kinds",
        column("id", BIGINT, key=True),
        column("at", TIMESTAMPTZ),
        column("wide", NUMERIC, typmod=wide),
        column("raw", BYTEA),
        column("yes", BOOL),
        column("f", FLOAT),
    )
    big = "9" * 50 + ".125"
    shop.commit(
        insert(table, 2**62, "2026-01-31 12:00:00.5+00", big, "\\x00ff", "t", "NaN"),
        insert(table, 1, None, None, None, None, None),
    )
    now = log.snapshot("shop")
    with mock.patch.dict(os.environ, {"TZ": "America/New_York"}):
        (row, empty) = rows(now, "select * from kinds order by id desc")
    assert row[:5] == (
        2**62,
        dt.datetime(2026, 1, 31, 12, 0, 0, 500_000, dt.UTC),
        big,
        b"\x00\xff",
        True,
    )
    assert row[5] != row[5]
    assert empty == (1, None, None, None, None, None)
    shown = (
        'select "at"::text, "at" at time zone \'Europe/Berlin\' from kinds where wide is not null'
    )
    assert rows(now, shown) == [
        ("2026-01-31 12:00:00.5+00", dt.datetime(2026, 1, 31, 13, 0, 0, 500_000))
    ]
    (line,) = now.sql("select * from kinds where id > 1").as_json()
    assert line == {
        "id": 2**62,
        "at": "2026-01-31 12:00:00.5+00",
        "wide": big,
        "raw": "\\x00ff",
        "yes": True,
        "f": "NaN",
    }


def test_a_value_that_does_not_fit_matters_where_it_is_asked_for(
    log: eventlog.Log, shop: MadeSource
) -> None:
    table = shop.table("odd", column("id", INT, key=True), column("n", NUMERIC))
    shop.commit(insert(table, 1, "NaN"), insert(table, 2, "2"))
    now = log.snapshot("shop")
    assert rows(now, "select id from odd order by 1") == [(1,), (2,)]
    with pytest.raises(ValueDoesNotFit):
        now.sql("select n from odd")
    dropped = now.sql("select n from odd order by id", unfit="null")
    assert list(dropped) == [(None,), (Decimal(2),)]
    assert dropped.unfit == {"shop.public.odd.n": 1}
    assert rows(now, "select n from odd order by id", cast={"n": "text"}) == [("NaN",), ("2",)]
    with pytest.raises(UnknownColumn, match="no table of the query has a column 'm' to cast"):
        now.sql("select n from odd", cast={"m": "text"})


def test_names_that_differ_by_case(log: eventlog.Log, shop: MadeSource) -> None:
    lower = shop.table("t", column("a", INT, key=True), column("A", INT), column("b"), relation=1)
    upper = shop.table("T", column("a", INT, key=True), relation=2)
    shop.commit(insert(lower, 1, 2, "x"), insert(upper, 9))
    now = log.snapshot("shop")
    assert rows(now, 'select a from "T"') == [(9,)]
    assert rows(now, "select b from t") == [("x",)]
    with pytest.raises(
        UsageError, match=r"columns 'a', 'A' of table public\.t differ by case alone"
    ):
        now.sql("select * from t")
    with pytest.raises(UsageError, match="tables T and t differ by case alone"):
        now.sql('select x.a from "T" x, t y')
    assert rows(now, 'select count(*), max(y.b) from "T" x, public.t y') == [(1, "x")]


def test_quoted_names(log: eventlog.Log, shop: MadeSource) -> None:
    odd = shop.table('Ünï "q" tab.le', column("Schl üssel", INT, key=True), namespace="my schema")
    shop.commit(insert(odd, 4))
    query = 'select "Schl üssel" from shop."my schema"."Ünï ""q"" tab.le"'
    assert rows(log.snapshot("shop"), query) == [(4,)]


def test_a_table_without_columns_has_rows(log: eventlog.Log, shop: MadeSource) -> None:
    bare = shop.table("bare", identity="n")
    shop.commit(insert(bare), insert(bare))
    assert rows(log.snapshot("shop"), "select count(*) from bare") == [(2,)]


ATTACKS = [
    "select * from read_csv('{file}')",
    "select * from read_csv_auto('{file}')",
    "select * from read_text('{file}')",
    "select * from read_blob('{file}')",
    "select * from read_json('{file}')",
    "select * from read_parquet('{file}')",
    "select * from parquet_metadata('{file}')",
    "select * from read_text(':memory:')",
    "select * from sniff_csv('{file}')",
    "select * from glob('/*')",
    "select * from '{file}'",
    "from 'file.csv'",
    "select (select content from read_text('{file}'))",
    "with t as (from read_text('{file}')) from t",
    "select * from orders, lateral (from read_text('{file}'))",
    "copy (select 1) to '{out}'",
    "copy orders to '{out}'",
    "export database '{out}'",
    "import database '{out}'",
    "attach '{out}' as x",
    "attach ':memory:' as x",
    "install httpfs",
    "load httpfs",
    "select * from 'http://localhost/x.csv'",
    "pragma version",
    "pragma database_list",
    "call pragma_version()",
    "set threads = 4",
    "set enable_external_access = true",
    "reset lock_configuration",
    "select 1; set threads = 4",
    "select 1; select * from orders",
    "select getenv('HOME')",
    "select current_setting('secret_directory')",
    "from duckdb_secrets()",
    "from duckdb_settings()",
    "from duckdb_functions()",
    "from pg_catalog.pg_class",
    "from information_schema.tables",
    "from sqlite_master",
    "from duckdb_tables",
    "create secret (type s3)",
    "create table x as select 1",
    "create macro m() as 1",
    "insert into orders values (1)",
    "delete from orders",
    "with x as (insert into orders values (1) returning 1) from x",
    "with x as (delete from orders returning 1) from x",
    "update orders set id = 4",
    "drop table orders",
    "explain select 1",
    "prepare p as select 1",
    "execute p",
    "vacuum",
    "checkpoint",
    "use memory",
    "begin",
    "from secret_of_the_process",
    "from local_secret",
    "select * from arrow_scan(1, 2, 3)",
    "select * from pandas_scan(1)",
    "select * from python_map_function()",
    "select * from query('select 1')",
    "select * from query_table('orders')",
    "select * from json_execute_serialized_sql(json_serialize_sql('select 1'))",
    "select nextval('s')",
    "select json_serialize_plan('from duckdb_settings()', optimize := true)",
    "select write_log('x')",
    "show tables",
    "show databases",
    "select $1",
    "",
    ";",
]


@pytest.mark.parametrize("query", ATTACKS)
def test_a_query_reaches_nothing_but_the_tables_of_the_log(
    log: eventlog.Log, orders: Schema, tmp_path: Path, query: str
) -> None:
    file, out = tmp_path / "file.csv", tmp_path / "out"
    file.write_text("a\n1\n")
    local_secret = pa.table({"secret": [2]})
    assert local_secret.num_rows == 1
    with pytest.raises(EventLogError) as refused:
        log.snapshot("shop").sql(query.format(file=file, out=out))
    assert refused.value.hint
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_the_connection_is_locked_by_itself(tmp_path: Path) -> None:
    """The second wall: what DuckDB refuses should a query ever get past the first."""
    import duckdb

    from eventlog.changes.duck import locked_connection

    file = tmp_path / "file.csv"
    file.write_text("a\n1\n")
    spill = tmp_path / "spill"
    spill.mkdir()
    connection = locked_connection(threads=1, spill_dir=str(spill))
    local_secret = pa.table({"secret": [2]})
    assert local_secret.num_rows == 1
    for query in (
        f"from read_csv('{file}')",
        f"from read_text('{file}')",
        f"from '{file}'",
        f"copy (select 1) to '{tmp_path / 'out.csv'}'",
        f"attach '{tmp_path / 'out.db'}' as x",
        "install httpfs",
        "load httpfs",
        "from glob('/*')",
        "from duckdb_secrets()",
        "create secret (type s3)",
        "set enable_external_access = true",
        "set threads = 4",
        "set TimeZone = 'America/New_York'",
        "reset lock_configuration",
        "from local_secret",
        "from secret_of_the_process",
        "select getenv('HOME')",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(query)
    connection.close()
    assert sorted(tmp_path.iterdir()) == [file, spill]


@pytest.mark.parametrize(
    "query",
    [
        "select now()",
        "select current_timestamp",
        "select CURRENT_DATE",
        "select id, today() from orders",
        "select random()",
        "select main.random() from orders",
        "select uuid()",
        "select age(timestamp '2020-01-01')",
        "from orders tablesample 50%",
        "from orders using sample 3",
    ],
)
def test_what_differs_each_time_is_refused(log: eventlog.Log, orders: Schema, query: str) -> None:
    with pytest.raises(UsageError) as refused:
        log.snapshot("shop").sql(query)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("query", "cause", "hint"),
    [
        ("selec 1", 'at line 1, column 1: syntax error at or near "selec"', "DuckDB's SQL"),
        ("select id,\n from from orders", 'syntax error at or near "from"', "DuckDB's SQL"),
        ("select\n nate from orders", 'line 2, column 2: Referenced column "nate"', "note"),
        ("select o.amuont from orders o", 'does not have a column named "amuont"', "amount"),
        ("select foo(1)", "Scalar Function with name foo does not exist", "floor"),
        ("select note::int from orders", "Could not convert string 'a' to INT32", "DuckDB's SQL"),
        ("pivot orders on note", "PIVOT has to know its values", "IN ("),
    ],
)
def test_a_wrong_query_is_explained_in_one_sentence(
    log: eventlog.Log, orders: Schema, query: str, cause: str, hint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        log.snapshot("shop").sql(query)
    assert cause in str(refused.value)
    assert "\n" not in str(refused.value)
    assert hint in refused.value.hint


def test_an_unknown_table_names_what_is_near(
    log: eventlog.Log, orders: Schema, crm: MadeSource
) -> None:
    log.stream("clicks", create=True)
    both = log.snapshot(["shop", "crm", "clicks"])
    for query, hint in {
        "from shop.public.ordrs": "public.orders",
        "from crm.public.custmers": "public.customers",
        "from orders": "shop.public.orders",
        "from click": "clicks",
        "from clicks.event": "clicks.events",
        "from clicks.public.x": "clicks",
        "from before.public.orders": "--at before=end",
        "from a.b.c.d": "shop.public.orders",
    }.items():
        with pytest.raises(UnknownTable) as refused:
            both.sql(query)
        assert hint in refused.value.hint, query
    with pytest.raises(UnknownTable, match="at offset 0"):
        log.snapshot("crm", at=0).sql("from customer")


def test_a_table_without_a_state_is_refused_as_by_its_snapshot(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    fresh = shop.table("fresh", column("id", INT, key=True), relation=3)
    begun = shop.commit(control(Op.COPY_BEGIN, fresh)).stop
    shop.commit(copied(fresh, 1), copied(fresh, 2))
    shop.commit(control(Op.COPY_END, fresh))
    assert rows(log.snapshot("shop"), "select count(*) from fresh") == [(2,)]
    inside = log.snapshot("shop", at=begun + 2)
    with pytest.raises(SnapshotRefused, match=r"the copy of table public\.fresh is not complete"):
        inside.sql("from fresh")
    assert len(inside.sql("from fresh", as_is=True)) == 2
    assert len(inside.sql("select 1 from orders")) == 2
    seen = shop.table("seen", column("a", INT), relation=4, identity="n", inserts_only=True)
    shop.commit(insert(seen, 1), insert(seen, 1))
    with pytest.raises(SnapshotRefused, match="no replica identity"):
        log.snapshot("shop").sql("from seen")
    assert len(log.snapshot("shop").sql("from seen, orders", as_inserts=True)) == 4


def test_streams_with_names_that_duckdb_has_taken(log: eventlog.Log) -> None:
    found = {}
    for name in ("main", "memory", "temp", "public"):
        source = MadeSource(log, name)
        table = source.table("t", column("id", INT, key=True))
        source.commit(insert(table, 5))
        source.close()
        try:
            found[name] = rows(log.snapshot(name), f"from {name}.public.t")
        except UsageError as error:
            found[name] = [(error.hint,)]
    for name in ("main", "temp"):
        hint = f"give it another: --at s={name}@end, or sql(..., s=snapshot)"
        assert found.pop(name) == [(hint,)]
    assert found == {"memory": [(5,)], "public": [(5,)]}
    assert rows(log.snapshot("main"), "from s.public.t", s=log.snapshot("temp")) == [(5,)]
    twice = "select * from public.t, memory.public.t"
    with pytest.raises(UsageError, match="are one name, which one query does not tell apart"):
        log.snapshot("main").sql(twice, memory=log.snapshot("temp"))


def test_a_locked_connection_spills_to_its_own_directory_alone(tmp_path: Path) -> None:
    import duckdb

    from eventlog.changes.duck import locked_connection

    real = duckdb.connect

    def small(config: dict[str, Any]) -> Any:
        return real(config={**config, "memory_limit": "40MB"})

    values = "md5(i::text) as m, md5((i + 1)::text) as n"
    query = f"create table t as select {values} from range(1000000) r(i)"
    with mock.patch("duckdb.connect", small):
        connection = locked_connection(threads=1, spill_dir=str(tmp_path))
        connection.execute(query)
        assert list(tmp_path.iterdir()) != []
        assert connection.execute("select count(n) from t").fetchall() == [(1_000_000,)]
        connection.close()
        connection = locked_connection(threads=1)
        with pytest.raises(duckdb.OutOfMemoryException):
            connection.execute(query)
        connection.close()


def test_the_directory_for_spilling_is_the_query_s_own_and_goes_with_it(
    log: eventlog.Log, orders: Schema, tmp_path: Path
) -> None:
    (tmp_path / "spill").mkdir()
    with mock.patch("tempfile.tempdir", str(tmp_path / "spill")):
        log.snapshot("shop").sql("from orders")
        with pytest.raises(UsageError):
            log.snapshot("shop").sql("selec")
        assert list((tmp_path / "spill").iterdir()) == []
        nowhere = mock.patch("tempfile.tempdir", str(tmp_path / "not there"))
        with nowhere, pytest.raises(EnvironmentFault):
            log.snapshot("shop").sql("from orders")


def test_a_result_shows_itself(log: eventlog.Log, shop: MadeSource, orders: Schema) -> None:
    result = log.snapshot("shop").sql(
        "select id, note, id as id, id as id_1 from orders order by 1"
    )
    assert result.columns == ["id", "note", "id_2", "id_1"]
    assert repr(result).splitlines() == [
        "id  note  id_2  id_1",
        "--  ----  ----  ----",
        "1   a     1     1",
        "3   -     3     3",
        "2 rows",
    ]
    assert result.num_rows == len(result) == 2
    assert result.to_pandas()["note"].tolist()[0] == "a"
    assert result.to_arrow().schema.field("id").type == pa.int32()
    long = repr(log.snapshot("shop").sql("select r, repeat('x', 90) from range(50) t(r)"))
    assert "… " not in long
    assert long.splitlines()[-1] == "... and 30 more"
    assert max(map(len, long.splitlines())) < 60


def test_a_truncated_table_and_an_empty_one_have_their_columns(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(truncate(orders))
    assert log.snapshot("shop").sql("from orders").columns == ["id", "customer", "amount", "note"]
    assert rows(log.snapshot("shop"), "select sum(amount), count(*) from orders") == [(None, 0)]


@pytest.mark.parametrize("words", ["Query interrupted", "INTERRUPT Error: Interrupted!"])
def test_a_query_that_is_interrupted_is_no_failure_of_duckdb(
    log: eventlog.Log, orders: Schema, words: str
) -> None:
    import duckdb

    kind = RuntimeError if words.startswith("Query") else duckdb.InterruptException
    broken = mock.patch("eventlog.snapshots.sql.query.answer", side_effect=kind(words))
    with broken, pytest.raises(KeyboardInterrupt):
        log.snapshot("shop").sql("select 1")
