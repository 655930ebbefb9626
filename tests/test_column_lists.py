"""Columns that stay at the source: how they are written, published, and shown before a capture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from cdc import errors
from cdc.commands.doctor import doctor
from cdc.options import Options
from cdc.postgres.connection import Connection, connect
from cdc.postgres.privacy import hashing
from cdc.postgres.publishing import column_list, publication
from cdc.postgres.publishing.column_list import Identity
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.table_spec import ColumnName, TableSpec
from eventlog.changes.table_name import ANY, TableName
from eventlog.errors import UsageError
from tests.fix_postgres import Database

TABLES = """
create table customers (id int primary key, email text, tier text, born date);
create table "Odd Names" (id int primary key, "a,b(""c)" text, note text);
create table parent (id int primary key, note text);
create table child (extra text) inherits (parent);
alter table child add primary key (id);
create table parted (id int, at int, note text, primary key (id, at)) partition by range (at);
create table parted_1 partition of parted for values from (0) to (10);
create table loud (id int primary key, note text);
alter table loud replica identity full;
create table keyless (a int, b int);
"""

MEMBERS = """
select r.prrelid::regclass::text,
       (select array_agg(attname::text order by attnum) from pg_attribute
         where attrelid = r.prrelid and attnum = any(r.prattrs::int2[]))
  from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
 where p.pubname = %s order by 1
"""


@pytest.fixture
def conn(database: Database) -> Iterator[Connection]:
    database.execute(TABLES)
    with connect(database.dsn) as ordinary:
        yield ordinary


def resolve(conn: Connection, *specs: str) -> list[Table]:
    return catalog.resolve_tables(conn, [TableSpec.parse(spec) for spec in specs])


def members(database: Database, name: str) -> dict[str, list[str] | None]:
    return dict(database.fetch(MEMBERS, [name]))


# How they are written


@pytest.mark.parametrize(
    ("text", "schema", "name", "columns"),
    [
        ("customers", "public", "customers", None),
        ("app.customers", "app", "customers", None),
        ("*.*", ANY, ANY, None),
        ('"*"."*"', "*", "*", None),
        ("public.customers(id,tier)", "public", "customers", ("id", "tier")),
        ("customers ( id , tier ) ", "public", "customers", ("id", "tier")),
        ('"Odd (Names"("a,b(""c)",id)', "public", "Odd (Names", ('a,b("c)', "id")),
    ],
)
def test_a_table_is_read_with_its_columns(
    text: str, schema: str, name: str, columns: tuple[str, ...] | None
) -> None:
    spec = TableSpec.parse(text)
    assert spec == TableSpec(table=TableName(schema=schema, name=name), columns=columns)
    assert TableSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shop.public.customers",
        "customers(",
        "customers()",
        "customers(id",
        "customers(id,)",
        "customers(id,id)",
        "customers(id) x",
        "customers(Id)",
        "customers(*)",
        "customers(id)(tier)",
        'customers("id)',
        'cust"omers',
        "public.*(id)",
        "(id)",
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        TableSpec.parse(text)
    assert repr(text) in str(caught.value) or "is not a table" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("customers.email", "public.customers.email"),
        ("app.customers.email", "app.customers.email"),
        ('"A".b."C d"', '"A".b."C d"'),
        ("public.*.email", "public.*.email"),
    ],
)
def test_a_column_is_read_with_its_table(text: str, shown: str) -> None:
    assert str(ColumnName.parse(text)) == shown
    assert ColumnName.parse(shown) == ColumnName.parse(text)


@pytest.mark.parametrize("text", ["", "email", "public.customers.*", "a.b.c.d", "customers(email)"])
def test_what_is_no_column_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a column's name") as caught:
        ColumnName.parse(text)
    assert "schema.table.column" in caught.value.hint


# What they mean


def test_a_list_narrows_its_table_also_beside_a_pattern(conn: Connection) -> None:
    for specs in (["public.*", "customers(tier,id)"], ["customers(tier,id)", "public.*"]):
        tables = {table.name: table for table in resolve(conn, *specs)}
        assert tables["customers"].columns == ("id", "tier")
        assert tables["customers"].listed
        assert tables["keyless"].columns == ("a", "b")
        assert not tables["keyless"].listed


def test_a_column_that_is_not_there_is_told_with_the_nearest(conn: Connection) -> None:
    with pytest.raises(errors.MissingTable, match="has no column teir") as caught:
        resolve(conn, "customers(id,teir)")
    assert caught.value.hint == "did you mean tier?"
    with pytest.raises(errors.MissingTable) as caught:
        resolve(conn, "customers(zzz)")
    assert caught.value.hint == "its columns are id, email, tier, born"


@pytest.mark.parametrize("other", ["customers", "customers(id,tier,born)"])
def test_a_table_given_twice_with_other_columns_is_refused(conn: Connection, other: str) -> None:
    with pytest.raises(UsageError, match="given twice") as caught:
        resolve(conn, "customers(id,tier)", other)
    assert "name the table once" in caught.value.hint
    assert len(resolve(conn, other, other)) == 1


def test_the_columns_of_a_partition_are_those_of_its_table(conn: Connection) -> None:
    with pytest.raises(UsageError, match=r"is a partition of public\.parted"):
        resolve(conn, "parted", "parted_1(id,at)")
    (alone,) = resolve(conn, "parted_1(id,at)")
    assert alone.columns == ("id", "at")


def test_a_hash_that_would_hash_nothing_is_refused(conn: Connection) -> None:
    tables = resolve(conn, "public.*", "customers(id,tier,email)")
    hashing.require_present(["public.customers.email", "public.*.note"], tables)
    with pytest.raises(errors.MissingTable, match="has no column emial") as caught:
        hashing.require_present(["public.customers.emial"], tables)
    assert caught.value.hint == "did you mean email?"
    for nothing in ("public.nobody.email", "public.parted_1.note", "public.*.zzz", "app.*.note"):
        with pytest.raises(UsageError, match="means no column"):
            hashing.require_present([nothing], tables)
    with pytest.raises(errors.MissingTable, match="has no column born"):
        hashing.require_present(["public.customers.born"], tables)


def test_columns_to_hash_are_kept_in_one_spelling() -> None:
    asked = ("customers.email", "public.customers.email", 'public."customers"."email"')
    assert hashing.spelled(Options(tables=(), hash=asked)) == ("public.customers.email",)


def test_for_a_running_source_a_table_is_never_wider_than_any_of_its_lists(
    database: Database, conn: Connection
) -> None:
    def now(*specs: str) -> dict[str, Table]:
        found = catalog.tables_now(conn, [TableSpec.parse(spec) for spec in specs])
        return {table.name: table for table in found}

    found = now("public.*", "customers(id,tier,gone)", "nobody(id)", "parted(id,at)")
    assert found["customers"].columns == ("id", "tier")
    assert found["customers"].listed
    assert found["parent"].columns == ("id", "note")
    assert "parted_1" not in found
    assert now("customers(id,tier)", "customers(id,email)", "customers")["customers"].columns == (
        "id",
    )
    assert now("public.*", "customers(gone)").keys() == found.keys() - {"customers"}
    assert now("parted", "parted_1(id)").keys() == {"parted"}


# What must not break the application (D13)


def test_an_identity_column_that_is_left_out_is_refused_and_would_fail_at_the_source(
    database: Database, conn: Connection
) -> None:
    tables = resolve(conn, "customers(tier)")
    with pytest.raises(errors.ServerNotReady, match=r"lack id of its replica identity") as caught:
        publication.ensure_both(conn, "shop", tables)
    assert "add id to the list" in caught.value.hint
    assert database.fetch("select from pg_publication") == []
    database.execute("create publication by_hand for table customers (tier)")
    database.execute("insert into customers values (1, 'a@b.c', 'gold')")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        database.execute("update customers set tier = 'none'")


def test_a_list_under_replica_identity_full_is_refused_and_would_fail_at_the_source(
    database: Database, conn: Connection
) -> None:
    with pytest.raises(errors.ServerNotReady, match="REPLICA IDENTITY FULL") as caught:
        publication.ensure_both(conn, "shop", resolve(conn, "loud(id,note)"))
    assert "--hash" in caught.value.hint
    database.execute("create publication by_hand for table loud (id, note)")
    database.execute("insert into loud values (1)")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        database.execute("update loud set note = ''")


def test_the_identity_of_a_partitioned_table_is_that_of_its_partitions(
    database: Database, conn: Connection
) -> None:
    publication.ensure_both(conn, "shop", resolve(conn, "parted(id,at)"))
    database.execute("insert into parted values (1, 1, 'x'); update parted set note = 'y'")
    database.execute(
        "alter table parted_1 alter note set not null;"
        "create unique index by_note on parted_1 (note);"
        "alter table parted_1 replica identity using index by_note"
    )
    (table,) = resolve(conn, "parted(id,at)")
    found = column_list.identities(conn, [table.oid])
    assert found == {table.oid: Identity(full=False, columns=frozenset({"id", "at", "note"}))}
    with pytest.raises(errors.ServerNotReady, match="lack note"):
        publication.ensure_both(conn, "shop", [table])
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        database.execute("update parted set id = 2")


def test_a_list_that_lacks_the_identity_lets_no_updates_through(conn: Connection) -> None:
    tables = {t.oid: t for t in resolve(conn, "customers(tier)", "parent(id)", "loud", "keyless")}
    sent = column_list.sendable(conn, tables)
    assert {t.name: t.updatable for t in sent.values()} == {
        "customers": False,
        "parent": True,
        "loud": True,
        "keyless": False,
    }


def test_a_table_whose_updates_are_not_published_may_leave_out_any_column(
    database: Database, conn: Connection
) -> None:
    publication.ensure_both(conn, "shop", resolve(conn, "keyless(b)"))
    assert members(database, "eventlog__inserts_shop") == {"keyless": ["b"]}
    database.execute("insert into keyless values (1, 2); update keyless set b = 3")


def test_a_server_too_old_for_column_lists_is_refused(conn: Connection) -> None:
    (table,) = resolve(conn, "customers(id,tier)")
    error = column_list.refusal(table, Identity(), version=140_012)
    assert isinstance(error, errors.UnsupportedServer)
    assert "needs PostgreSQL 15, and the server is 14" in str(error)
    whole = replace(table, listed=False)
    assert column_list.refusal(whole, Identity(), version=140_012) is None


# Publications


def test_publications_come_to_hold_the_columns_that_are_wanted(
    database: Database, conn: Connection
) -> None:
    for specs, wanted in [
        (["customers(id,tier)"], {"customers": ["id", "tier"]}),
        (["customers(id,email)", "parent"], {"customers": ["id", "email"], "parent": None}),
        (
            ["customers", '"Odd Names"(id,"a,b(""c)")'],
            {
                "customers": None,
                '"Odd Names"': ["id", 'a,b("c)'],
            },
        ),
        (["parted(id,at)"], {"parted": ["id", "at"]}),
        (["customers(id,tier,email,born)"], {"customers": ["id", "email", "tier", "born"]}),
    ]:
        names = publication.ensure_both(conn, "shop", resolve(conn, *specs))
        assert members(database, names[0]) == wanted
        before = database.fetch("select oid, xmin from pg_publication_rel order by oid")
        publication.ensure_both(conn, "shop", resolve(conn, *specs))
        assert database.fetch("select oid, xmin from pg_publication_rel order by oid") == before


def test_a_row_filter_that_someone_put_into_our_publication_is_taken_out(
    database: Database, conn: Connection
) -> None:
    names = publication.ensure_both(conn, "shop", resolve(conn, "customers"))
    database.execute("alter publication eventlog_shop set table customers where (id > 7)")
    publication.ensure_both(conn, "shop", resolve(conn, "customers"))
    assert publication.read(conn, names[0]).row_filters == {}


def test_inheritance_children_are_members_only_when_they_are_named(
    database: Database, conn: Connection
) -> None:
    names = publication.ensure_both(conn, "shop", resolve(conn, "parent"))
    assert members(database, names[0]) == {"parent": None}
    publication.ensure_both(conn, "shop", resolve(conn, "parent", "child"))
    assert members(database, names[0]) == {"child": None, "parent": None}
    publication.ensure_both(conn, "shop", resolve(conn, "child"))
    assert members(database, names[0]) == {"child": None}
    publication.add(conn, names, resolve(conn, "parent(id)"))
    assert members(database, names[0]) == {"child": None, "parent": ["id"]}
    publication.remove(conn, names, [table.oid for table in resolve(conn, "parent")])
    assert members(database, names[0]) == {"child": None}


def test_tables_are_added_and_removed_one_by_one(database: Database, conn: Connection) -> None:
    names = publication.ensure_both(conn, "shop", resolve(conn, "customers"))
    keyless, parent = resolve(conn, "keyless", "parent(id)")
    assert publication.add(conn, names, [keyless, parent]) == [keyless, parent]
    assert publication.add(conn, names, [keyless, parent]) == []
    assert members(database, names[0]) == {"customers": None, "parent": ["id"]}
    assert members(database, names[1]) == {"keyless": None}
    publication.remove(conn, names, [keyless.oid, parent.oid, 4_000_000_000])
    assert members(database, names[0]) == {"customers": None}
    assert members(database, names[1]) == {}
    publication.remove(conn, names, [keyless.oid])


def test_a_table_moves_when_its_identity_comes_or_goes(
    database: Database, conn: Connection
) -> None:
    names = publication.ensure_both(conn, "shop", resolve(conn, "keyless", "customers"))
    database.execute("alter table keyless add primary key (a)")
    (keyed,) = resolve(conn, "keyless")
    assert publication.add(conn, names, [keyed]) == [keyed]
    assert members(database, names[0]) == {"customers": None, "keyless": None}
    assert members(database, names[1]) == {}
    database.execute("alter table keyless replica identity nothing")
    assert publication.add(conn, names, resolve(conn, "keyless(b)")) != []
    assert members(database, names[0]) == {"customers": None}
    assert members(database, names[1]) == {"keyless": ["b"]}
    with pytest.raises(errors.ServerNotReady):
        publication.add(conn, names, resolve(conn, "customers(tier)"))
    assert members(database, names[0]) == {"customers": None}


def test_sources_whose_names_resemble_each_other_share_no_publication(
    database: Database, conn: Connection
) -> None:
    first = publication.ensure_both(conn, "a", resolve(conn, "customers"))
    second = publication.ensure_both(conn, "a_inserts", resolve(conn, "parent"))
    third = publication.ensure_both(conn, "inserts_a", resolve(conn, "keyless"))
    assert len({*first, *second, *third}) == 6
    assert members(database, first[0]) == {"customers": None}
    assert members(database, first[1]) == {}
    assert members(database, third[1]) == {"keyless": None}


def test_stored_generated_columns_are_sent_from_18_on(database: Database, conn: Connection) -> None:
    new = conn.info.server_version >= 180_000
    database.execute(
        "create table made (id int primary key, twice int generated always as (id * 2) stored)"
    )
    if new:
        database.execute("alter table made add thrice int generated always as (id * 3) virtual")
    (made,) = resolve(conn, "made")
    assert made.columns == (("id", "twice") if new else ("id",))
    names = publication.ensure_both(conn, "shop", [made])
    (published,) = publication.read(conn, names[0]).tables
    assert published.columns == made.columns
    if new:
        # One that an earlier version made.
        database.execute("alter publication eventlog_shop set (publish_generated_columns = none)")
        assert publication.read(conn, names[0]).tables[0].columns == ("id",)
        publication.ensure_both(conn, "shop", [made])
        assert publication.read(conn, names[0]).tables[0].columns == ("id", "twice")
        (listed,) = resolve(conn, "made(id,twice)")
        publication.ensure_both(conn, "shop", [listed])
        assert members(database, names[0]) == {"made": ["id", "twice"]}
        with pytest.raises(errors.MissingTable, match="no column thrice"):
            resolve(conn, "made(id,thrice)")


# What doctor shows


def shown(database: Database, *args: str, exit_code: int = 0) -> list[dict[str, Any]]:
    done = CliRunner().invoke(doctor, ["--dsn", database.dsn, "--json", *args])
    assert done.exit_code == exit_code, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_doctor_shows_what_will_be_stored_of_each_table(
    database: Database, conn: Connection
) -> None:
    args = ["--table", "public.*", "--table", "customers(id,email)", "--hash", "customers.email"]
    found = shown(database, *args)
    columns = {line["subject"]: line["columns"] for line in found if "columns" in line}
    assert columns["public.customers"] == {
        "stored": ["id"],
        "hashed": ["email"],
        "left_out": ["tier", "born"],
    }
    assert columns["public.parent"] == {"stored": ["id", "note"], "hashed": [], "left_out": []}
    assert columns.keys() >= {"public.child", "public.parted", "public.loud", "public.keyless"}
    done = CliRunner().invoke(doctor, ["--dsn", database.dsn, *args], env={"COLUMNS": "200"})
    assert (
        "can be captured: stored are id; hashed email; left out tier, born; columns added later "
        "are left out" in done.stdout
    )
    assert "can be captured: stored are all 2 columns" in done.stdout


def test_doctor_finds_what_is_wrong_with_columns(database: Database, conn: Connection) -> None:
    found = shown(
        database,
        *["--table", "customers(tier)", "--table", "loud(id)", "--table", "parent(id,nte)"],
        *["--hash", "customers.emial", "--hash", "nobody.email"],
        exit_code=1,
    )
    wrong = [line for line in found if line["severity"] == "error"]
    said = [(line["subject"], line["finding"]) for line in wrong]
    for subject, part in [
        ("public.customers", "lack id of its replica identity"),
        ("public.loud", "REPLICA IDENTITY FULL"),
        ("tables", "public.parent has no column nte"),
        ("tables", "public.customers has no column emial"),
        ("tables", "--hash public.nobody.email means no column"),
    ]:
        assert any(s == subject and part in text for s, text in said), (subject, part, said)
    assert all(line["remedy"] for line in wrong)
    assert not any("columns" in line for line in wrong)
