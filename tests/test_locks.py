"""Tables that somebody else has locked: told by name, and never waited for without an end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import cdc
import eventlog
from cdc.errors import TableLocked
from cdc.postgres import locks, streaming
from cdc.postgres.attending import attendant
from cdc.postgres.connection import connect
from cdc.postgres.copy import chunks, whole_copy
from cdc.postgres.publishing import slot
from cdc.postgres.schema.sent import sent_by
from cdc.requests import ask, facts
from tests.fix_capture import (
    Background,
    assert_snapshot_equals_postgres,
    captured_in_background,
    state_of,
    until,
    wal_position,
)
from tests.fix_postgres import Database

ROWS = """
create table orders (id int primary key, note text);
insert into orders select g, repeat('x', 300) from generate_series(1, 2000) g;
create table calm (id int primary key);
insert into calm select generate_series(1, 100);
"""

PLAIN = """
create table plain (a int);
insert into plain values (1), (2);
alter table plain replica identity full;
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendant, "LOOK_S", 0.1)
    monkeypatch.setattr(attendant, "LOCKED_S", 0.1)
    monkeypatch.setattr(locks, "WAIT_MS", 200)
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)


@contextmanager
def locked(database: Database, table: str) -> Iterator[int]:
    """Within it another session has the table for itself; gives its pid."""
    with psycopg.connect(database.dsn) as other:
        other.execute(f"lock table {table} in access exclusive mode")
        yield other.info.backend_pid
        other.rollback()


def shop(database: Database, *tables: str) -> cdc.Source:
    return cdc.Source("shop", database.dsn, tables or ("public.*",))


def warned(running: Background, pattern: str) -> Callable[[], bool]:
    return lambda: any(re.search(pattern, event.text) for event in running.events)


def captured(log: eventlog.Log, database: Database, running: Background) -> None:
    running.reached(wal_position(database))


def copied(log: eventlog.Log, table: str) -> bool:
    return any(t.fact.fact == "copied" and t.fact.table == table for t in facts(log, "shop"))


def test_a_locked_table_keeps_no_other_from_joining_and_is_told_by_name(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(ROWS)
    with captured_in_background(log, shop(database)) as running:
        running.saw("streaming")
        with locked(database, "orders"):
            database.execute("create table later (id int primary key); insert into later values(1)")
            until(lambda: copied(log, "public.later"), "the copy of another table")
            database.execute("insert into calm values (101)")
            captured(log, database, running)
        with locked(database, "calm") as pid:
            ask(log, "shop", "recopy", "public.calm")
            named = rf"public\.calm is locked by pid {pid} \(ACCESS EXCLUSIVE\), which began at"
            until(warned(running, named), "a word about who holds the lock")
            assert not copied(log, "public.calm") or state_of(log).copies
            database.execute("insert into orders values (0, 'beside')")
            captured(log, database, running)
        until(lambda: copied(log, "public.calm") and not state_of(log).copies, "the copy")
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "orders", "calm", "later")


def test_a_new_table_that_is_locked_joins_when_it_is_let_go(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(ROWS)
    with captured_in_background(log, shop(database)) as running:
        running.saw("streaming")
        with psycopg.connect(database.dsn, autocommit=True) as other:
            # The table is seen before it can be locked by this session.
            other.execute("begin; create table fresh (id int primary key)")
            other.execute("insert into fresh values (1)")
            other.execute("commit; begin; lock table fresh in access exclusive mode")
            pid = other.info.backend_pid
            until(
                lambda: (
                    warned(running, rf"fresh is locked by pid {pid}")()
                    or copied(log, "public.fresh")
                ),
                "a word about the lock",
            )
            said = len(facts(log, "shop"))
            rounds = state_of(log).looked
            database.execute("insert into calm values (300)")
            captured(log, database, running)
            until(lambda: state_of(log).looked >= rounds, "another round")
            assert len(facts(log, "shop")) == said, "nothing is stored that is taken back"
            other.execute("rollback")
        until(lambda: copied(log, "public.fresh"), "the copy of the new table")
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "fresh", "calm")


def test_a_request_about_a_locked_table_waits_for_it_and_is_not_refused(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(ROWS)
    with captured_in_background(log, shop(database, "public.calm")) as running:
        running.saw("streaming")
        with locked(database, "orders") as pid:
            ask(log, "shop", "add", "public.orders")
            until(warned(running, rf"orders is locked by pid {pid}"), "a word about the lock")
            assert not any(t.fact.fact == "refused" for t in facts(log, "shop"))
        until(lambda: copied(log, "public.orders"), "the copy of the table that was added")
    shop(database, "public.calm").capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "orders", "calm")


def test_where_the_servers_view_must_be_asked_the_lock_is_told_too(
    database18: Database, log: eventlog.Log
) -> None:
    database = database18  # which opens all tables for the view, as 15 does not
    database.execute(ROWS + "create publication own for all tables")
    source = cdc.Source("shop", database.dsn)
    with captured_in_background(log, source, publication="own") as running:
        running.saw("streaming")
        with locked(database, "orders") as pid:
            told = rf"waits for a lock: .*orders is locked by pid {pid}"
            until(warned(running, told), "a word about the lock")
            database.execute("insert into calm values (700)")
            captured(log, database, running)
        database.execute("create table later (id int primary key); insert into later values (1)")
        until(lambda: copied(log, "public.later"), "the copy of a new table")
    source.capture(log, publication="own", until="current")
    assert_snapshot_equals_postgres(log, database, "orders", "calm", "later")


def test_a_whole_copy_lets_the_stream_go_on_where_its_table_is_locked(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(ROWS + PLAIN)
    made = slot.create
    with psycopg.connect(database.dsn) as other:
        pid = other.info.backend_pid

        def create(*args: Any, **options: Any) -> Any:
            """A slot; somebody locks the table before it can be read."""
            created = made(*args, **options)
            if options.get("temporary") and not attempts:
                other.execute("lock table plain in access exclusive mode")
            attempts.append(created.name)
            return created

        attempts: list[str] = []
        with captured_in_background(log, shop(database)) as running:
            running.saw("streaming")
            monkeypatch.setattr(slot, "create", create)
            ask(log, "shop", "recopy", "public.plain")
            until(warned(running, rf"plain is locked by pid {pid}"), "a word about the lock")
            database.execute("insert into calm values (500)")
            captured(log, database, running)
            assert len(attempts) == 1
            other.rollback()
            until(lambda: len(attempts) > 1 and not state_of(log).copies, "the copy")
            database.execute("insert into plain values (3)")
            captured(log, database, running)
    assert_snapshot_equals_postgres(log, database, "plain", "calm")


def test_the_stream_goes_on_while_a_whole_copy_waits_for_transactions_that_run(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_copy, "RUNNING_TELL_S", 0.1)
    database.execute(ROWS + PLAIN)
    with captured_in_background(log, shop(database)) as running:
        running.saw("streaming")
        with psycopg.connect(database.dsn) as other:
            other.execute("insert into plain values (9)")
            ask(log, "shop", "recopy", "public.plain")
            pid = other.info.backend_pid
            waits = rf"the copy of public\.plain waits for the end of the transaction of pid {pid}"
            until(warned(running, waits), "a word about the transaction")
            before = database.value("select count(*) from pg_replication_slots where temporary")
            assert before == 0, "no slot is waited for while the stream is held"
            database.execute("insert into calm values (600)")
            captured(log, database, running)
            other.commit()
        until(lambda: copied(log, "public.plain") and not state_of(log).copies, "the copy")
        captured(log, database, running)
    assert_snapshot_equals_postgres(log, database, "plain", "calm")


def test_a_table_is_not_locked_any_more_once_it_is_copied(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(chunks, "BYTES_MAX", 40_000)
    monkeypatch.setattr(chunks, "PAGES_FIRST", 2)
    database.execute(
        "create table a (id int primary key, note text);"
        "create table b (id int primary key, note text);"
        "insert into a select g, repeat('x', 300) from generate_series(1, 500) g;"
        "insert into b select g, repeat('x', 300) from generate_series(1, 500) g;"
    )
    altered: list[str] = []

    def alter(event: Any) -> None:
        """While one table is being copied, the other can be altered."""
        if event.kind != "copying" or event.table is None:
            return
        own, other = event.table.removeprefix("public."), "ab".replace(event.table[-1], "")
        if own in altered:
            return
        altered.append(own)
        with psycopg.connect(database.dsn, autocommit=True) as session:
            session.execute("set lock_timeout = '10s'")
            session.execute(f"alter table {other} alter note set default '{own}'")
            session.execute("set lock_timeout = '1ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                session.execute(f"alter table {own} alter note set default 'never'")

    shop(database).capture(log, until="current", report=alter)
    assert altered == ["a", "b"]
    assert_snapshot_equals_postgres(log, database, "a", "b")


def test_the_first_copy_waits_for_a_locked_table_and_says_for_whom(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(ROWS)
    made = slot.create
    with psycopg.connect(database.dsn) as other:

        def create(*args: Any, **options: Any) -> Any:
            """A slot, after which somebody locks a table."""
            created = made(*args, **options)
            if not options.get("temporary"):
                other.execute("lock table orders in access exclusive mode")
            return created

        monkeypatch.setattr(slot, "create", create)
        pid = other.info.backend_pid
        with captured_in_background(log, shop(database)) as running:
            told = rf"the copy of public\.orders waits for a lock.*is locked by pid {pid}"
            until(warned(running, told), "a word about the lock")
            other.rollback()
            running.saw("streaming")
    assert_snapshot_equals_postgres(log, database, "orders", "calm")


def test_a_capture_does_not_begin_behind_a_lock_for_ever(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEGIN_WAIT_MS", 100)
    database.execute(ROWS)
    with (
        locked(database, "orders") as pid,
        pytest.raises(TableLocked, match=rf"orders is locked by pid {pid} \(ACCESS EXCL") as fault,
    ):
        shop(database).capture(log, until="current")
    assert "wait for the end of the transaction" in fault.value.hint
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "orders", "calm")


@pytest.mark.parametrize("waits_for", ["a lock", "a slot"])
def test_a_capture_that_waits_at_its_beginning_is_stopped_at_once(
    database: Database, tmp_path: Path, waits_for: str
) -> None:
    database.execute(ROWS)
    command = [sys.executable, "-m", "eventlog.cli", "capture", "--source", "shop"]
    options = ["--dsn", database.dsn, "--table", "public.*", "--log", str(tmp_path / "log")]
    statement = (
        "lock table orders in access exclusive mode"
        if waits_for == "a lock"
        else "insert into calm values (1000)"
    )
    waiting = "select count(*) from pg_locks where not granted and pid is distinct from 0"
    with psycopg.connect(database.dsn) as other:
        other.execute(statement)
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        until(lambda: database.value(waiting), "a capture that waits")
        process.send_signal(signal.SIGINT)
        # Less than what the server would be waited for.
        out, _ = process.communicate(timeout=locks.BEGIN_WAIT_MS / 1000 - 2)
        assert process.returncode == 0
        assert "0 changes" in out
    slots = database.value(
        "select count(*) from pg_replication_slots where database = current_database()"
    )
    assert slots == 0
    assert not (tmp_path / "log").exists(), "nothing came of it"
    with eventlog.open(tmp_path / "log", create=True) as log:
        shop(database).capture(log, until="current")
        assert_snapshot_equals_postgres(log, database, "orders", "calm")
        assert log.check() == []


PUBLISHED = """
create table whole (id int primary key, note text, gone int, twice int generated always as (id * 2)
    stored);
alter table whole drop gone;
create table listed (id int primary key, note text, rest text);
create table filtered (id int primary key, note text);
create table root (id int primary key, v text) partition by range (id);
create table leaf partition of root for values from (0) to (10);
create schema "Other"; create table "Other"."Table" ("Id" int primary key);
"""


@pytest.mark.parametrize(
    "what",
    [
        "for table whole, listed (id, note), filtered where (id > 3), root, leaf"
        " with (publish_via_partition_root = true)",
        "for table whole, leaf with (publish_via_partition_root = true)",
        'for table whole, root, "Other"."Table"',
        "for all tables with (publish_via_partition_root = true)",
        "for all tables",
        'for table whole, tables in schema "Other" with (publish_via_partition_root = true)',
        "with (publish_via_partition_root = true)",
    ],
)
def test_the_catalog_tells_what_the_servers_view_does(database: Database, what: str) -> None:
    database.execute(PUBLISHED)
    database.execute(f"create publication p {what}")
    generated = {} if int(database.server.version.split(".")[0]) >= 18 else {"whole": {"twice"}}
    rows = database.fetch(
        "select c.oid::int8, c.relname, attnames::text[], rowfilter"
        "  from pg_publication_tables p join pg_namespace n on n.nspname = schemaname"
        "  join pg_class c on c.relname = tablename and c.relnamespace = n.oid"
    )
    expected = {
        oid: (set(names) - generated.get(table, set()), where) for oid, table, names, where in rows
    }
    with closing(connect(database.dsn)) as conn:
        found = {
            sent.relation: (
                set(sent.columns or ()) - generated.get(_name(database, sent.relation), set()),
                sent.where,
            )
            for sent in sent_by(conn, "p")
        }
        assert found == expected
        for oid in expected:
            (alone,) = sent_by(conn, "p", oid=oid)
            assert alone.relation == oid


def _name(database: Database, oid: int) -> str:
    return str(database.value("select relname from pg_class where oid = %s", [oid]))
