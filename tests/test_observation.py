"""What the catalog shows of a table, judged on real servers: did rows change without a record?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import msgpack
import psycopg
import pytest

from cdc.postgres.connection import Connection, connect
from cdc.postgres.publishing import publication
from cdc.postgres.schema import observation
from cdc.postgres.schema.catalog import resolve_tables
from cdc.postgres.schema.observation import TableFacts, judge, observe
from cdc.postgres.server import EmbeddedServer
from eventlog.changes.table_name import TableName
from tests.fix_postgres import Database

TABLES = """
create type mood as enum ('sad', 'ok');
create type pair as (a int, b text);
create domain pairs as pair[];
create domain short as varchar(10);
create domain checked as int default 5 check (value > 0);
create table t (
    id int primary key, n int, v varchar(10), w text, num numeric(10, 2), ts timestamp,
    tz timestamptz, m mood, ms mood[], p pairs, s short, kept int
);
insert into t select g, g, 'v', 'w', g, '2026-01-01', '2026-01-01', 'ok', '{sad}',
    array[row(g, 'x')::pair], 's' from generate_series(1, 3) g;
create table parted (id int, part int, note text, primary key (id, part)) partition by list (part);
create table parted_1 partition of parted for values in (1);
create table parted_2 partition of parted for values in (2) partition by list (id);
create table parted_2_1 partition of parted_2 for values in (1);
insert into parted values (1, 1, 'a'), (1, 2, 'b');
"""

REWRITTEN = "its rows were rewritten by ALTER TABLE"

PLAIN = {
    "nothing": ("select 1", None),
    "rows": ("insert into t (id) values (9); update t set n = 5; delete from t", None),
    "add": ("alter table t add column x int", None),
    "add and fill": ("alter table t add column x int; update t set x = 1", None),
    "add with a constant default": ("alter table t add column x int default 7", None),
    "add and drop the default": (
        "alter table t add column x int default 7; alter table t alter x drop default",
        None,
    ),
    "add with a stable default": ("alter table t add column x timestamptz default now()", None),
    "add with a volatile default": (
        "alter table t add column x float8 default random()",
        REWRITTEN,
    ),
    "add an identity": (
        "alter table t add column x int generated always as identity",
        REWRITTEN,
    ),
    "add serial": ("alter table t add column x serial", REWRITTEN),
    "add generated": (
        "alter table t add column x int generated always as (n * 2) stored",
        REWRITTEN,
    ),
    "add and drop again": (
        "alter table t add column x float8 default random(); alter table t drop column x",
        None,
    ),
    "drop": ("alter table t drop column n", None),
    "drop and add": ("alter table t drop column n; alter table t add column n int", None),
    "rename a column": ("alter table t rename column n to x", None),
    "rename the table": ("alter table t rename to t2", None),
    "move to another schema": ("create schema other; alter table t set schema other", None),
    "widen a varchar": ("alter table t alter v type varchar(20)", None),
    "unlimit a varchar": ("alter table t alter v type varchar", None),
    "varchar to text": ("alter table t alter v type text", None),
    "text to varchar": ("alter table t alter w type varchar", None),
    "text to short varchar": ("alter table t alter w type varchar(5)", REWRITTEN),
    "narrow a varchar": ("alter table t alter v type varchar(5)", REWRITTEN),
    "varchar to its domain": ("alter table t alter v type short", None),
    "domain to text": ("alter table t alter s type text", None),
    "int to bigint": ("alter table t alter n type bigint", REWRITTEN),
    "widen a numeric": ("alter table t alter num type numeric(12, 2)", None),
    "scale of a numeric": ("alter table t alter num type numeric(10, 3)", REWRITTEN),
    "timestamp to timestamptz": (
        "set timezone = 'UTC'; alter table t alter ts type timestamptz",
        "column 'ts' was given another type",
    ),
    "timestamptz to timestamp": (
        "set timezone = 'UTC'; alter table t alter tz type timestamp",
        "column 'tz' was given another type",
    ),
    "the same type": ("alter table t alter n type int using n + 1", REWRITTEN),
    "text upper": ("alter table t alter w type text using upper(w)", REWRITTEN),
    "set a default": ("alter table t alter n set default 5; insert into t (id) values (7)", None),
    "set statistics": ("alter table t alter n set statistics 500", None),
    "set storage": ("alter table t alter w set storage external", None),
    "not null": ("alter table t alter n set not null", None),
    "a constraint": ("alter table t add constraint c check (n > 0)", None),
    "an index": ("create index on t (n)", None),
    "vacuum full": ("vacuum full t", None),
    "cluster": ("cluster t using t_pkey", None),
    "truncate": ("truncate t", None),
    "analyze": ("analyze t", None),
    "unlogged": ("alter table t set unlogged", "it became unlogged, or had been"),
    "an enum's new value": ("alter type mood add value 'glad' before 'ok'", None),
    "an enum's renamed value": (
        "alter type mood rename value 'sad' to 'blue'",
        "a label of an enumeration was renamed",
    ),
    "a composite's new attribute": (
        "alter type pair add attribute c int",
        "a composite type was altered",
    ),
    "a composite's dropped attribute": (
        "alter type pair drop attribute b",
        "a composite type was altered",
    ),
    "a composite's renamed attribute": ("alter type pair rename attribute a to c", None),
    "replica identity": ("alter table t replica identity full", None),
    "no primary key": ("alter table t drop constraint t_pkey", None),
}

FAST = {
    "nothing": ("select 1", None),
    "vacuum full": ("vacuum full t", None),
    "cluster": ("cluster t using t_pkey", None),
    "truncate": ("truncate t", None),
    "the same type": ("alter table t alter x type int using x + 1", REWRITTEN),
    "the same type without a default": (
        "alter table t alter x drop default; alter table t alter x type int using x + 1",
        REWRITTEN,
    ),
    "another column": ("alter table t alter n type int using n + 1", REWRITTEN),
    "to bigint": ("alter table t alter x type bigint", REWRITTEN),
    "a later column": ("alter table t add column y int default 3", None),
}
"""With a fast default in place: `x int default 7`."""

ATTACHED = "a partition was attached"
PARTED = {
    "rows": ("insert into parted values (5, 1, 'x'); delete from parted where id = 1", None),
    "a new partition": (
        "create table parted_3 partition of parted for values in (3);"
        "insert into parted values (1, 3, 'c')",
        None,
    ),
    "a new partition below": (
        "create table parted_2_2 partition of parted_2 for values in (2);"
        "insert into parted values (2, 2, 'c')",
        None,
    ),
    "a new partition that is renamed": (
        "create table parted_3 partition of parted for values in (3);"
        "alter table parted_3 rename to parted_x; create schema other;"
        "alter table parted_x set schema other; insert into parted values (1, 3, 'c')",
        None,
    ),
    "attach empty": (
        "create table later (id int not null, part int not null, note text);"
        "alter table parted attach partition later for values in (3)",
        ATTACHED,
    ),
    "attach with rows": (
        "create table later (id int not null, part int not null, note text);"
        "insert into later values (1, 3, 'c');"
        "alter table parted attach partition later for values in (3)",
        ATTACHED,
    ),
    "attach what was renamed with it": (
        "create table early (id int not null, part int not null, note text);"
        "insert into early values (1, 3, 'c'); begin; alter table early rename to later;"
        "alter table parted attach partition later for values in (3); commit",
        ATTACHED,
    ),
    "made, filled and attached at once": (
        "begin; create table later (id int not null, part int not null, note text);"
        "insert into later values (1, 3, 'c');"
        "alter table parted attach partition later for values in (3); commit",
        ATTACHED,
    ),
    "made and attached at once": (
        "begin; create table later (id int not null, part int not null, note text);"
        "alter table parted attach partition later for values in (3); commit",
        None,
    ),
    "a tree attached": (
        "create table sub (id int not null, part int not null, note text) partition by list (id);"
        "create table sub_1 partition of sub for values in (1); insert into sub values (1, 3, 'c');"
        "alter table parted attach partition sub for values in (3)",
        ATTACHED,
    ),
    "detach": (
        "alter table parted detach partition parted_1",
        "a partition was detached or dropped",
    ),
    "detach below": (
        "alter table parted_2 detach partition parted_2_1",
        "a partition was detached or dropped",
    ),
    "drop": ("drop table parted_1", "a partition was detached or dropped"),
    "detach and attach": (
        "alter table parted detach partition parted_1; update parted_1 set note = 'changed';"
        "alter table parted attach partition parted_1 for values in (1)",
        "a partition was detached and attached",
    ),
    "truncate one": (
        "truncate parted_1",
        "a partition was truncated, or its rows were rewritten",
    ),
    "add a column": ("alter table parted add column x int default 7", None),
    "add a volatile column": (
        "alter table parted add column x float8 default random()",
        "a partition was truncated, or its rows were rewritten",
    ),
    "retype": (
        "alter table parted alter note type varchar(30) using upper(note)",
        "a partition was truncated, or its rows were rewritten",
    ),
    "rename a column": ("alter table parted rename column note to remark", None),
}


@pytest.fixture(scope="module")
def kept(postgres: EmbeddedServer) -> Iterator[Database]:
    """One database for all tests of this module, on each version in turn."""
    made = Database(postgres)
    yield made
    made.drop()


@pytest.fixture
def database(kept: Database) -> Database:
    """The same, with nothing but TABLES in it."""
    kept.execute(
        "set client_min_messages = warning; drop schema if exists other cascade;"
        "drop publication if exists p, eventlog_shop, eventlog_shop_inserts;"
        "drop schema public cascade; create schema public; grant usage on schema public to public"
    )
    kept.execute(TABLES)
    return kept


@pytest.fixture
def conn(database: Database) -> Iterator[Connection]:
    with connect(database.dsn) as connection:
        yield connection


def oid_of(database: Database, name: str) -> int:
    return database.value("select %s::regclass::oid::int8", [name])


def judged(database: Database, conn: Connection, name: str, statements: str) -> str | None:
    oid = oid_of(database, name)
    before = observe(conn, [oid])
    run(database, statements)
    now = observe(conn, [oid], before=before)
    stored = TableFacts.from_map(json.loads(json.dumps(before[oid].to_map())))
    assert stored == before[oid]
    return judge(stored, now[oid])


def run(database: Database, statements: str) -> None:
    """Each statement by itself, so that VACUUM can be one of them, but for what is in a block."""
    if "begin;" in statements:
        database.execute(statements)
        return
    for statement in statements.split(";"):
        if statement.strip():
            database.execute(statement)


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_table_is_judged(database: Database, conn: Connection, case: str) -> None:
    statements, expected = PLAIN[case]
    assert judged(database, conn, "t", statements) == expected


@pytest.mark.parametrize("case", FAST)
def test_a_table_with_a_fast_default_is_judged(
    database: Database, conn: Connection, case: str
) -> None:
    database.execute("alter table t add column x int default 7")
    statements, expected = FAST[case]
    assert judged(database, conn, "t", statements) == expected


@pytest.mark.parametrize("case", PARTED)
def test_a_partitioned_table_is_judged(database: Database, conn: Connection, case: str) -> None:
    statements, expected = PARTED[case]
    assert judged(database, conn, "parted", statements) == expected


def test_a_domain_with_a_default_is_judged_by_what_the_server_did(
    database: Database, conn: Connection
) -> None:
    found = judged(database, conn, "t", "alter table t add column x checked")
    filled = database.value(
        "select atthasmissing from pg_attribute where attrelid = 't'::regclass and attname = 'x'"
    )
    assert found == (None if filled else REWRITTEN)


def test_what_a_fast_default_left_is_not_told_from_a_rewrite_without_its_default(
    database: Database, conn: Connection
) -> None:
    """The entry of the default proves that a column was not retyped; without one, better copy."""
    database.execute("alter table t add column x int default 7; alter table t alter x drop default")
    assert judged(database, conn, "t", "vacuum full t") == REWRITTEN
    assert judged(database, conn, "t", "vacuum full t") is None


def test_a_generated_columns_new_expression_is_a_rewrite(database18: Database) -> None:
    database18.execute(
        "create table t (id int primary key, n int, x int generated always as (n * 2) stored,"
        " y int generated always as (n * 3) virtual); insert into t values (1, 1)"
    )
    with connect(database18.dsn) as conn:
        virtual = "alter table t alter y set expression as (n * 5)"
        assert judged(database18, conn, "t", virtual) is None
        stored = "alter table t alter x set expression as (n * 5)"
        assert judged(database18, conn, "t", stored) == REWRITTEN
        dropped = "alter table t alter x drop expression"
        assert judged(database18, conn, "t", dropped) == (
            "column 'x' is not generated any more, or is now"
        )


def test_the_publications_condition_and_columns_are_seen(
    database: Database, conn: Connection
) -> None:
    oid = oid_of(database, "t")
    database.execute(
        "create publication p for table t (id, n) where (id > 5) with (publish = 'insert')"
    )

    def look() -> TableFacts:
        return observe(conn, [oid], ["p"])[oid]

    first = look()
    assert first.condition is not None and first.listed == (1, 2)
    assert observe(conn, [oid])[oid].condition is None
    database.execute("alter publication p set table t (id, n) where (     id > 5)")
    assert judge(first, look()) is None
    database.execute("alter publication p set table t (id) where (id > 5)")
    narrow = look()
    assert judge(first, narrow) is None
    assert judge(narrow, first) == "column 'n', which was not sent before, is sent now"
    database.execute("alter publication p set table t (id) where (id > 6)")
    assert judge(narrow, look()) == "the publication's row filter changed"
    database.execute("alter publication p set table t")
    assert judge(narrow, replace(look(), condition=narrow.condition)) == (
        "column 'n', which was not sent before, is sent now"
    )


def test_what_becomes_of_identities_is_seen(database: Database, conn: Connection) -> None:
    oids = [oid_of(database, "t"), oid_of(database, "parted")]

    def look() -> list[tuple[str, str, bool, bool]]:
        found = observe(conn, oids)
        return [(f.name, f.identity, f.has_key, f.updatable) for f in (found[oid] for oid in oids)]

    assert look() == [("t", "d", True, True), ("parted", "d", True, True)]
    database.execute(
        "alter table t drop constraint t_pkey; alter table parted_1 replica identity nothing"
    )
    assert look() == [("t", "d", False, False), ("parted", "d", True, False)]
    database.execute("alter table t replica identity full")
    assert look()[0] == ("t", "f", False, True)
    database.execute("drop table t")
    assert list(observe(conn, oids)) == oids[1:]


def test_storage_names_the_files_of_all_leaves(database: Database, conn: Connection) -> None:
    oid, one, deep = (oid_of(database, name) for name in ("parted", "parted_1", "parted_2_1"))
    before = observe(conn, [oid])[oid].storage
    assert before.keys() == {one, deep}
    database.execute("truncate parted_1")
    after = observe(conn, [oid])[oid].storage
    assert [leaf for leaf in before if before[leaf] != after[leaf]] == [one]


def test_hundreds_of_tables_are_seen_by_any_role_with_few_statements(
    database: Database, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = f"plain_{database.name}"
    database.execute(f"create role {role} login")
    database.execute(
        "do $$ begin for i in 1..300 loop execute format('create table many_%s (id int primary key,"
        " m mood, p pair, note text default %L)', i, 'x'); end loop; end $$"
    )
    with connect(f"{database.dsn} user={role}") as plain:
        oids = [t.oid for t in resolve_tables(plain, [TableName.parse("public.*")])]
        counted = []
        execute = psycopg.Connection.execute

        def watched(self: Connection, query: object, *rest: object, **more: object) -> object:
            counted.append(query)
            return execute(self, query, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(psycopg.Connection, "execute", watched)
        found = observe(plain, oids, ["none"])
        assert len(counted) <= 9
        assert len(found) == 302
        again = observe(plain, oids, before=found)
        assert [judge(found[oid], again[oid]) for oid in oids] == [None] * 302
        some = found[oids[0]]
        packed = msgpack.packb([facts.to_map() for facts in found.values()])
        assert [TableFacts.from_map(m) for m in msgpack.unpackb(packed)] == list(found.values())
        assert len(packed) / len(found) < 1_000 and some.oid == oids[0]
    database.execute(f"drop role {role}")


def test_a_partition_that_may_not_be_read_counts_as_attached(
    database: Database, conn: Connection
) -> None:
    role = f"plain_{database.name}"
    database.execute(f"create role {role} login")
    oid = oid_of(database, "parted")
    with connect(f"{database.dsn} user={role}") as plain:
        before = observe(plain, [oid])
        database.execute("create table parted_3 partition of parted for values in (3)")
        now = observe(plain, [oid], before=before)
        assert judge(before[oid], now[oid]) == ATTACHED
        again = observe(plain, [oid], before=now)
        assert judge(now[oid], again[oid]) is None
        database.execute(
            f"create table parted_4 partition of parted for values in (4);"
            f"grant select on parted_4 to {role}"
        )
        allowed = observe(plain, [oid], before=again)
        assert judge(again[oid], allowed[oid]) is None
    database.execute(f"drop owned by {role}; drop role {role}")


def test_rows_of_a_new_partition_are_not_looked_for_in_a_namesake(
    database: Database, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    oid = oid_of(database, "parted")
    before = observe(conn, [oid])
    database.execute(
        "begin; create table parted_3 partition of parted for values in (3);"
        "insert into parted values (1, 3, 'with it'); end"
    )
    look = observation._has_rows_of

    def late(*args: object) -> bool:
        database.execute("alter table parted_3 rename to other; create table parted_3 (id int)")
        return look(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(observation, "_has_rows_of", late)
    now = observe(conn, [oid], before=before)
    assert judge(before[oid], now[oid]) == ATTACHED


def test_a_look_waits_for_no_lock(database: Database, conn: Connection) -> None:
    with psycopg.connect(database.dsn) as altering:
        altering.execute("alter table t add column x int; truncate parted")
        conn.execute("set lock_timeout = '1s'")
        found = observe(conn, [oid_of(database, "parted")])
        assert len(found) == 1


def test_both_publications_of_a_source_are_seen_as_they_are(
    database: Database, conn: Connection
) -> None:
    tables = resolve_tables(conn, [TableName.parse("public.*")])
    names = publication.ensure_both(conn, "shop", tables)
    found = observe(conn, [table.oid for table in tables], names)
    assert {facts.condition for facts in found.values()} == {None}
