"""Columns that are hashed or left out, while tables join, change and are copied anew."""

from __future__ import annotations

from typing import Any

import pytest

import cdc
import eventlog
from cdc.postgres import streaming
from cdc.postgres.attending import attendant
from cdc.postgres.copy import chunks
from cdc.requests import Fact, ask, facts
from tests.fix_capture import Background, captured_in_background, state_of, until, wal_position
from tests.fix_postgres import Database
from tests.test_gate_capture import KEY, SECRET, equals, everything, expected, found_in, rows


@pytest.fixture(autouse=True)
def small_and_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks of a small table, and a look at the catalog every moment."""
    monkeypatch.setenv("GATE_KEY", KEY)
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)
    monkeypatch.setattr(attendant, "LOOK_S", 0.1)
    monkeypatch.setattr(attendant, "TRY_AGAIN_S", 0.2)
    monkeypatch.setattr(chunks, "PAGES_FIRST", 4)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 30_000)


@pytest.fixture
def plain_log(log: eventlog.Log) -> eventlog.Log:
    """A log whose files show what they hold."""
    log.engine.create_stream("shop", "captured", compression="none")
    return log


def begun(log: eventlog.Log, database: Database, *tables: str, **options: Any) -> cdc.Source:
    """A source whose first capture is over."""
    database.execute("create table if not exists seed (id int primary key)")
    source = cdc.Source("shop", database.dsn, ["seed", *tables])
    source.capture(log, until="current", hash_key="env:GATE_KEY", **options)
    return source


def told(log: eventlog.Log, fact: str, table: str) -> list[Fact]:
    return [
        found.fact
        for found in facts(log, "shop")
        if (found.fact.fact, found.fact.table) == (fact, f"public.{table}")
    ]


def copied(running: Background, log: eventlog.Log, database: Database, table: str) -> None:
    """Wait until the table that bears this name now was copied beside the stream."""
    oid = database.value("select %s::regclass::oid::int8", [table])

    def is_copied() -> bool:
        running.expect_alive()
        return any(fact.relation == oid for fact in told(log, "copied", table))

    until(is_copied, f"the copy of {table}")


def becomes_equal(
    running: Background, log: eventlog.Log, database: Database, table: str, columns: str
) -> None:
    def is_equal() -> bool:
        running.expect_alive()
        return equals(log, database, table, columns)

    until(is_equal, f"{table} in the log to equal the source's")


def assert_clean(log: eventlog.Log) -> None:
    assert SECRET.findall(everything(log)) == []
    assert found_in(log.path) == set()


TABLES = """
create table joined (id int primary key, email text, phone text, note text);
alter table joined alter email set storage external;
create table vault (pin bigint primary key, note text);
create table loud (email text, note text);
alter table loud replica identity full;
insert into joined select g, 'geheim' || repeat('x', g % 3 * 1500) || g, 'geheimtel', 'plainly'
    from generate_series(1, 600) g;
insert into vault select 9172635000 + g, 'plainly' from generate_series(1, 600) g;
insert into loud select 'geheim' || g, 'plainly' from generate_series(1, 300) g;
"""


def test_tables_that_join_beside_the_stream_pass_the_gate(
    database: Database, plain_log: eventlog.Log
) -> None:
    log = plain_log
    source = begun(log, database)
    database.execute(TABLES)
    with captured_in_background(log, source, hash_key="env:GATE_KEY") as running:
        running.saw("streaming")
        for table, column in (
            ("joined(id,email,note)", "public.joined.email"),
            ("vault", "public.vault.pin"),
            ("loud", "public.loud.email"),
        ):
            ask(log, "shop", "add", f"public.{table}", hash=[column])
        for number in range(60):
            database.execute(
                f"update joined set note = 'plainly {number}' where id % 7 = {number % 7};"
                f"update vault set note = 'plainly {number}' where pin % 7 = {number % 7};"
                f"update vault set pin = pin + 100000 where pin = 9172635{number:03};"
                f"update loud set note = 'plainly' where email = 'geheim{number}';"
                f"delete from joined where id = {number + 100}"
            )
        for table in ("joined", "vault", "loud"):
            copied(running, log, database, table)
        running.reached(wal_position(database))
    source.capture(log, until="current", hash_key="env:GATE_KEY")
    assert rows(log, "joined") == expected(database, "joined", "id, email, note", ["email"])
    assert rows(log, "vault") == expected(database, "vault", "pin, note", ["pin"])
    assert rows(log, "loud") == expected(database, "loud", "email, note", ["email"])
    assert state_of(log).hashes == ("public.joined.email", "public.loud.email", "public.vault.pin")
    assert_clean(log)


def test_a_copy_that_was_cut_off_goes_on_behind_the_gate(
    database: Database, plain_log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = plain_log
    database.execute(TABLES)
    source = cdc.Source("shop", database.dsn, ["joined(id,email,note)", "vault", "loud"])
    hashes = ["joined.email", "vault.pin", "loud.email"]
    running = source.start(log, hash=hashes, hash_key="env:GATE_KEY")
    store = log.engine.commit

    def stop_soon(plan: eventlog.engine.Plan) -> eventlog.engine.Committed:
        if any(append.stream == "shop" for append in plan.appends):
            running.stop()
        return store(plan)

    monkeypatch.setattr(log.engine, "commit", stop_soon)
    running.run()
    monkeypatch.undo()
    monkeypatch.setenv("GATE_KEY", KEY)
    assert state_of(log).copies
    database.execute(
        "update joined set note = 'plainly 2' where id % 3 = 0; delete from joined where id < 9;"
        "update vault set pin = pin + 1000000 where pin % 10 = 1; delete from loud where note = ''"
    )
    source.capture(log, until="current", hash_key="env:GATE_KEY")
    assert rows(log, "joined") == expected(database, "joined", "id, email, note", ["email"])
    assert rows(log, "vault") == expected(database, "vault", "pin, note", ["pin"])
    assert rows(log, "loud") == expected(database, "loud", "email, note", ["email"])
    assert_clean(log)


def test_a_partitioned_table_passes_the_gate_as_one(
    database: Database, plain_log: eventlog.Log
) -> None:
    log = plain_log
    database.execute(
        "create table people (id int, email text, phone text, note text, primary key (id))"
        " partition by range (id);"
        "create table people_1 (email text, id int not null, phone text, note text);"
        "alter table people attach partition people_1 for values from (0) to (100);"
        "create table people_2 partition of people for values from (100) to (200);"
        "insert into people select g, 'geheim' || g, 'geheimtel', 'plainly'"
        " from generate_series(1, 150) g"
    )
    source = begun(log, database, "people(id,email,note)", hash=["people.email"])
    database.execute(
        "update people set email = 'geheimneu' where id in (1, 101);"
        "update people set id = 199 where id = 2;"
        "insert into people_2 values (198, 'geheim198', 'geheimtel', 'plainly')"
    )
    source.capture(log, until="current", hash_key="env:GATE_KEY")
    assert rows(log, "people") == expected(database, "people", "id, email, note", ["email"])
    assert_clean(log)


def test_stored_generated_columns_are_copied_and_streamed_from_18_on(
    database: Database, log: eventlog.Log
) -> None:
    new = database.connection.info.server_version >= 180_000
    database.execute(
        "create table made (id int primary key, a int,"
        " twice int generated always as (a * 2) stored,"
        " secret text generated always as ('geheim' || a) stored);"
        "insert into made (id, a) select g, g from generate_series(1, 20) g"
    )
    source = begun(log, database, "made", hash=["made.secret"] if new else [])
    database.execute("update made set a = 77 where id = 1; insert into made (id, a) values (21, 3)")
    source.capture(log, until="current", hash_key="env:GATE_KEY")
    columns, hashes = ("id, a, twice, secret", ["secret"]) if new else ("id, a", [])
    assert rows(log, "made") == expected(database, "made", columns, hashes)
    assert SECRET.findall(everything(log)) == []


def test_a_request_that_contradicts_what_is_captured_is_refused(
    database18: Database, log: eventlog.Log
) -> None:
    database18.execute(
        "create table listed (id int primary key, a text, email text);"
        "create table whole (id int primary key, email text)"
    )
    source = begun(log, database18, "listed(id,a)", "whole")

    def refused() -> list[Fact]:
        return [found.fact for found in facts(log, "shop") if found.fact.fact == "refused"]

    with captured_in_background(log, source, hash_key="env:GATE_KEY") as running:
        running.saw("streaming")
        asked = [
            ("public.listed(id,email)", [], "captured already, as public.listed(id,a)"),
            ("public.listed", [], "captured already, as public.listed(id,a)"),
            ("public.whole(id)", [], "captured already, as public.whole"),
            ("public.whole", ["public.whole.email"], "the log may hold its values"),
        ]
        for table, hashes, _ in asked:
            ask(log, "shop", "add", table, hash=hashes)
        until(lambda: len(refused()) == len(asked), "the requests to be handled")
    for fact, (_, _, why) in zip(refused(), asked, strict=True):
        assert why in fact.why
    assert set(state_of(log).tables) == set(source.tables)
    assert state_of(log).hashes == ()


def published(database: Database) -> dict[str, list[tuple[str, list[str]]]]:
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for name, table, columns in database.fetch(
        "select pubname::text, tablename::text, attnames::text[] from pg_publication_tables"
        " where tablename <> 'seed' order by 1, 2"
    ):
        found.setdefault(name, []).append((table, columns))
    return found


LISTED = "create table listed (id int primary key, tier text, note text, email text)"


def test_a_listed_column_that_is_dropped_takes_nothing_else_along(
    database: Database, plain_log: eventlog.Log
) -> None:
    log = plain_log
    database.execute(LISTED)
    database.execute("insert into listed values (1, 'x', 'plainly', 'geheim1')")
    source = begun(log, database, "public.*", "listed(id,tier,note)")
    with captured_in_background(log, source, hash_key="env:GATE_KEY") as running:
        running.saw("streaming")
        # Without CASCADE the server refuses; with it the table leaves the publication.
        database.execute("alter table listed drop tier cascade")
        database.execute("insert into listed values (2, 'plainly', 'geheim2')")
        narrow = {"eventlog_shop": [("listed", ["id", "note"])]}
        until(lambda: published(database) == narrow, "the table to be published again")
        database.execute("insert into listed values (3, 'plainly', 'geheim3')")
        running.reached(wal_position(database))
        becomes_equal(running, log, database, "listed", "id, note")
        # Made anew without a column of the list.
        database.execute(
            "drop table listed;"
            "create table listed (id int primary key, email text, note text);"
            "insert into listed values (4, 'geheim4', 'plainly')"
        )
        copied(running, log, database, "listed")
        running.reached(wal_position(database))
        becomes_equal(running, log, database, "listed", "id, note")
    assert_clean(log)


def test_a_key_outside_the_list_stops_no_update_at_the_source_for_long(
    database: Database, plain_log: eventlog.Log
) -> None:
    log = plain_log
    database.execute(LISTED)
    database.execute("insert into listed values (1, 'x', 'plainly', 'geheim1')")
    source = begun(log, database, "listed(id,note)")
    with captured_in_background(log, source, hash_key="env:GATE_KEY") as running:
        running.saw("streaming")
        database.execute("alter table listed drop constraint listed_pkey, add primary key (email)")
        moved = {"eventlog__inserts_shop": [("listed", ["id", "note"])]}
        until(lambda: published(database) == moved, "only the inserts to be published")
        database.execute("update listed set note = 'plainly too'")
        database.execute("alter table listed drop constraint listed_pkey, add primary key (id)")
        back = {"eventlog_shop": [("listed", ["id", "note"])]}
        until(lambda: published(database) == back, "the updates to be published again")
        copied(running, log, database, "listed")
        database.execute("update listed set note = 'plainly again'")
        running.reached(wal_position(database))
        becomes_equal(running, log, database, "listed", "id, note")
    assert_clean(log)


@pytest.mark.parametrize("ours", [True, False])
def test_a_publication_that_somebody_widens_brings_no_value_that_is_left_out(
    database: Database, plain_log: eventlog.Log, ours: bool
) -> None:
    log = plain_log
    database.execute(LISTED)
    database.execute("insert into listed values (1, 'x', 'plainly', 'geheim1')")
    source = cdc.Source("shop", database.dsn, ["listed(id,note)"])
    name = "eventlog_shop" if ours else "given"
    if not ours:
        database.execute("create publication given for table listed (id, note)")
    source.capture(log, until="current", publication=None if ours else "given")
    database.execute(
        "alter table listed rename note to remark;"
        f"alter publication {name} set table listed;"
        "insert into listed values (2, 'geheimx', 'plainly', 'geheim2')"
    )
    source.capture(log, until="current")
    found = sorted(rows(log, "listed"), key=lambda row: int(row["id"]))
    assert [(row["id"], row["remark"]) for row in found] == [(1, "plainly"), (2, "plainly")]
    assert_clean(log)
