"""Captures of a real Postgres: the log holds what Postgres holds, in the order of its commits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

import psycopg
import pytest

import cdc
import eventlog
from cdc.driver import driver_of
from cdc.errors import SlotMissing
from cdc.options import Event
from cdc.postgres import streaming
from cdc.postgres.connection import connect, connect_replication
from cdc.postgres.copy import chunks
from cdc.postgres.protocol.frames import Frames
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.socket_stream import SocketStream
from cdc.postgres.setup import current_end
from eventlog.changes.change import UNCHANGED, Change, Op
from eventlog.engine import Batch, Owner
from tests.fix_capture import (
    assert_snapshot_equals_postgres,
    captured_in_background,
    confirmed,
    flushed,
    state_of,
    until,
    wal_position,
)
from tests.fix_postgres import Database

MIXED = """
create type mood as enum ('sad', 'ok');
create domain positive as int check (value > 0);
create type pair as (a int, b text);
create table mixed (
    id bigint primary key, n numeric(12, 3), m numeric, f float8, t text, b bytea, flag bool,
    d date, ts timestamp, tz timestamptz, iv interval, u uuid, j jsonb, a int[], aa text[],
    e mood, p positive, c pair, r int4range, i inet, money money
);
"""
MIXED_ROWS = """
insert into mixed select g, g * 1.125, g / 7.0, g / 3.0::float8, E'tab\\t\\\\ "ü" ' || g,
    decode(lpad(to_hex(g), 4, '0'), 'hex'), g % 2 = 0, '2024-01-01'::date + g,
    '2024-01-01 12:34:56.789012'::timestamp + g * '1 min'::interval,
    '2024-06-01 00:00+02'::timestamptz + g * '1 hour'::interval, g * '1 day 2 hours'::interval,
    ('00000000-0000-0000-0000-' || lpad(g::text, 12, '0'))::uuid, jsonb_build_object('k', g),
    array[g, null], array['a,b', null, '"'], case g % 2 when 0 then 'sad' else 'ok' end::mood,
    g, row(g, 'x, y')::pair, int4range(g, g + 5), '10.0.0.1', g::text::money
from generate_series({start}, {stop}) g;
"""
NASTY_ROW = """
insert into mixed (id, n, m, f, t, d, ts, tz, a)
values (-{id}, null, 'NaN', '-Infinity', '', 'infinity', '-infinity', '0044-03-15 BC',
    '[0:1]={{7,8}}');
"""


@pytest.fixture(autouse=True)
def store_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The position of an idle source is stored sooner than every 10 s."""
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)


def shop(database: Database, *tables: str) -> cdc.Source:
    return cdc.Source("shop", database.dsn, tables or ("public.*",))


def changes(log: eventlog.Log, start: int = 0) -> list[Change]:
    return list(log.stream("shop").read(start))


def assert_dense(log: eventlog.Log) -> None:
    stream = log.stream("shop")
    assert [change.offset for change in changes(log)] == list(range(stream.start, stream.end))


def test_copy_and_stream_give_the_tables_of_postgres(database: Database, log: eventlog.Log) -> None:
    database.execute(MIXED)
    database.execute(MIXED_ROWS.format(start=1, stop=300))
    database.execute(NASTY_ROW.format(id=1))
    database.execute(
        "create table notes (a text, b int, body text, primary key (b, a));"
        "alter table notes alter body set storage external;"
        "insert into notes select 'k' || g, g, repeat('x', g * 100) from generate_series(1, 60) g;"
        "create table whole (a int, b text); alter table whole replica identity full;"
        "insert into whole values (1, 'x'), (1, 'x'), (2, null);"
        'create table "Odd ""name" ("select" int primary key, "Ä" text);'
        """insert into "Odd ""name" values (1, 'x');"""
        "create table empty (id int primary key)"
    )
    tables = ("mixed", "notes", "whole", "empty")
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, *tables)
    before = log.stream("shop").end
    copied = changes(log)
    assert sum(change.op is Op.READ for change in copied) == 301 + 60 + 3 + 1
    database.execute(MIXED_ROWS.format(start=301, stop=400))
    database.execute(NASTY_ROW.format(id=2))
    database.execute(
        "update mixed set t = 'new', n = null, j = '[1]' where id between 50 and 80;"
        "update mixed set id = id + 10000 where id between 90 and 95;"
        "delete from mixed where id between 10 and 20;"
        "update notes set a = 'moved' where b = 60; delete from notes where b = 1;"
        "update whole set b = 'y' where a = 2; delete from whole where ctid = '(0,1)'"
    )
    database.execute(
        "begin; update notes set b = 61 where b = 50; delete from notes where b = 61;"
        "insert into notes values ('k', 50, 'again'); commit"
    )
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, *tables)
    odd = log.snapshot("shop").table('public."Odd ""name"')
    assert odd.to_arrow().to_pylist() == [{"select": 1, "Ä": "x"}]
    database.execute("truncate notes, whole; insert into notes values ('z', 1, 'z')")
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, *tables)
    ops = [change.op for change in changes(log, before)]
    assert ops.count(Op.TRUNCATE) == 2 and ops.count(Op.INSERT) == 101 + 1 + 1
    assert_dense(log)


def test_a_value_that_the_server_left_out_is_not_null(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(
        "create table notes (id int primary key, n int, body text);"
        "alter table notes alter body set storage external;"
        "insert into notes values (1, 1, repeat('x', 20000))"
    )
    shop(database).capture(log, until="current")
    end = log.stream("shop").end
    database.execute("update notes set n = 2; update notes set body = null; delete from notes")
    shop(database).capture(log, until="current")
    first, second, third = changes(log, end)
    assert first.row == {"id": 1, "n": 2, "body": UNCHANGED}
    assert second.row == {"id": 1, "n": 2, "body": None}
    assert third.op is Op.DELETE and third.key == 1 and third.old == {"id": 1}


def test_messages_are_records_in_their_place_but_our_own_get_no_offset(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key)")
    shop(database).capture(log, until="current", copy=False)
    database.execute(
        "begin; insert into t values (1); select pg_logical_emit_message(true, 'app', 'in');"
        "select pg_logical_emit_message(true, 'eventlog', 'own'); insert into t values (2); commit"
    )
    database.execute("select pg_logical_emit_message(true, 'eventlog', 'alone')")
    database.execute("begin; select pg_logical_emit_message(false, 'app', 'aside'); rollback")
    database.execute("select pg_logical_emit_message(false, 'eventlog', 'own')")
    database.execute("insert into t values (3)")
    for _ in range(2):
        shop(database).capture(log, until="current", copy=False)
        found = changes(log)
        assert [change.op for change in found] == [
            Op.INSERT, Op.MESSAGE, Op.INSERT, Op.MESSAGE, Op.INSERT,
        ]  # fmt: skip
        rows = [change.row for change in found if change.op is Op.MESSAGE]
        assert [(row["prefix"], row["transactional"]) for row in rows if row] == [
            ("app", True),
            ("app", False),
        ]
    assert_dense(log)


def test_a_table_without_identity_warns_and_is_captured_insert_only(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(
        "create table t (id int primary key);create table hist (x int); insert into hist values (1)"
    )
    told: list[Event] = []
    shop(database).capture(log, report=told.append, until="current")
    (warning,) = [event for event in told if event.kind == "warning"]
    assert warning.table == "public.hist" and "only its inserts" in warning.text
    # The publication must not break the application's own updates and deletes.
    database.execute("insert into hist values (2); update hist set x = 5; delete from hist")
    database.execute("insert into t values (1); update t set id = 2")
    shop(database).capture(log, until="current")
    of_hist = [change.op for change in changes(log) if change.table == "public.hist"]
    assert of_hist == [Op.COPY_BEGIN, Op.READ, Op.COPY_END, Op.INSERT]
    assert_snapshot_equals_postgres(log, database, "t")


def test_the_backlog_of_a_slot_that_is_there_is_captured_without_a_copy(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key); insert into t values (1)")
    database.execute("create publication mine for table t")
    database.execute("select pg_create_logical_replication_slot('backlog', 'pgoutput')")
    database.execute("insert into t values (2); insert into t values (3)")
    definition = "select pubname, pubinsert, pubupdate, pubdelete, pubtruncate, xmin::text from "
    before = database.fetch(definition + "pg_publication")
    options = {"copy": False, "slot": "backlog", "publication": "mine", "until": "current"}
    outcome = shop(database).capture(log, **options)
    assert [change.row for change in changes(log)] == [{"id": 2}, {"id": 3}]
    assert outcome.slot == "backlog" and outcome.rows == 2
    database.execute("insert into t values (4)")
    shop(database).capture(log, **options)
    assert [change.key for change in changes(log)] == [2, 3, 4]
    assert database.fetch(definition + "pg_publication") == before, "it is never altered"
    assert database.fetch("select count(*) from pg_publication_rel") == [(1,)]
    state = state_of(log)
    assert not state.slot_ours and not state.publications_ours


def test_a_temporary_slot_copies_and_follows_and_leaves_no_slot(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key); insert into t values (1)")
    with captured_in_background(log, shop(database), temporary=True) as running:
        running.saw("streaming")
        database.execute("insert into t values (2)")
        running.reached(wal_position(database))
    assert running.outcome and running.outcome.slot is None
    assert_snapshot_equals_postgres(log, database, "t")
    count = "select count(*) from pg_replication_slots where database = current_database()"
    until(lambda: database.value(count) == 0, "the end of the temporary slot")
    with pytest.raises(eventlog.errors.UsageError, match="temporary") as refused:
        shop(database).capture(log, until="current")
    assert refused.value.hint


def test_a_capture_ends_at_a_position(database: Database, log: eventlog.Log) -> None:
    database.execute("create table t (id int primary key)")
    shop(database).capture(log, until="current")
    database.execute("insert into t values (1)")
    position = wal_position(database)
    outcome = shop(database).capture(log, until=str(position))
    assert int(state_of(log).position) >= int(position)
    assert outcome.position == str(state_of(log).position)
    assert_snapshot_equals_postgres(log, database, "t")


def test_without_the_right_to_write_a_message_the_end_is_where_the_wal_is_flushed(
    database: Database,
) -> None:
    for (signature,) in database.fetch(
        "select oid::regprocedure::text from pg_proc where proname = 'pg_logical_emit_message'"
    ):
        database.execute(f"revoke execute on function {signature} from public")
    conn, replication = connect(database.dsn), connect_replication(database.dsn)
    try:
        assert current_end(conn, replication) > Lsn(0)
        conn.execute("set role pg_monitor")
        before = flushed(database)
        assert before <= current_end(conn, replication) <= flushed(database)
    finally:
        conn.close()
        replication.close()


def test_each_record_is_decoded_under_the_schema_of_its_time(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key, a text); insert into t values (1, 'x')")
    with captured_in_background(log, shop(database)) as running:
        running.saw("streaming")
        database.execute("insert into t values (2, 'y')")
        running.reached(wal_position(database))
        database.execute("alter table t add column b int default 7; insert into t values (3, 'z')")
        running.reached(wal_position(database))
        database.execute(
            "begin; insert into t values (4, 'q'); alter table t drop column a;"
            "insert into t values (5, 50); commit"
        )
        running.reached(wal_position(database))
        database.execute("alter table t rename column b to c; alter table t rename to u")
        database.execute("update u set c = 51 where id = 5")
        database.execute("insert into u values (6, 60)")
        running.reached(wal_position(database))
    rows = [(c.table, c.row) for c in changes(log) if c.op in (Op.READ, Op.INSERT, Op.UPDATE)]
    assert rows == [
        ("public.t", {"id": 1, "a": "x"}),
        ("public.t", {"id": 2, "a": "y"}),
        ("public.t", {"id": 3, "a": "z", "b": 7}),
        ("public.t", {"id": 4, "a": "q", "b": 7}),
        ("public.t", {"id": 5, "b": 50}),
        ("public.u", {"id": 5, "c": 51}),
        ("public.u", {"id": 6, "c": 60}),
    ]
    assert_snapshot_equals_postgres(log, database, "u")


def test_schema_changes_that_wait_in_the_slot_are_decoded_too(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key, a text)")
    shop(database).capture(log, until="current")
    database.execute("insert into t values (1, 'x')")
    database.execute("alter table t drop column a; insert into t values (2)")
    database.execute("alter table t add column b int; insert into t values (3, 30)")
    shop(database).capture(log, until="current")
    rows = [change.row for change in changes(log) if change.op is Op.INSERT]
    assert rows == [{"id": 1, "a": "x"}, {"id": 2}, {"id": 3, "b": 30}]
    versions = len(log.engine.schemas("shop"))
    database.execute("insert into t values (4, 40)")
    shop(database).capture(log, until="current")
    assert len(log.engine.schemas("shop")) == versions, "a restart makes no new version"
    assert_snapshot_equals_postgres(log, database, "t")


def test_a_table_that_is_gone_is_decoded_from_what_the_server_sends(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(
        "create table t (id int primary key, a text); create table u (id int primary key)"
    )
    shop(database).capture(log, until="current")
    database.execute("insert into t values (1, 'x'); drop table t; insert into u values (1)")
    shop(database).capture(log, until="current")
    assert changes(log)[-2].row == {"id": 1, "a": "x"}
    assert_snapshot_equals_postgres(log, database, "u")


def test_a_large_transaction_is_staged_and_published_whole(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("create table t (id int primary key, body text)")
    shop(database).capture(log, until="current")
    end = log.stream("shop").end
    staged: list[int] = []
    ends: list[int] = []
    stage = Owner.stage

    def watched(owner: Owner, batches: list[eventlog.engine.Batch]) -> None:
        stage(owner, batches)
        staged.append(sum(len(batch.body.data) for batch in batches))
        ends.append(log.stream("shop").end)

    monkeypatch.setattr(Owner, "stage", watched)
    database.execute("insert into t values (-1, 'before');")
    database.execute("insert into t select g, repeat('x', 100) from generate_series(1, 40000) g")
    database.execute("insert into t values (-2, 'after')")
    options = {"stage_bytes": 300_000, "buffer_bytes": 600_000, "until": "current"}
    shop(database).capture(log, **options)
    assert sum(staged) > 3_000_000, "most of it was stored before its end"
    # What gathers while a commit runs is bounded by the buffer and one read.
    assert max(staged) <= 600_000 + (1 << 20) + 300_000
    assert set(ends) <= {end, end + 1}, "nothing of it is seen before its commit"
    runs = [(tx, len(list(group))) for tx, group in groupby(changes(log, end), lambda c: c.tx)]
    assert [count for _, count in runs] == [1, 40_000, 1]
    (position,) = {change.position for change in changes(log, end + 1)[:40_000]}
    assert position != "0/0"
    assert_dense(log)
    assert_snapshot_equals_postgres(log, database, "t")
    assert log.engine.owners() == []


def test_a_large_transaction_that_changes_a_schema_is_published_whole(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key, body text)")
    shop(database).capture(log, until="current")
    database.execute(
        "begin; insert into t select g, repeat('x', 100) from generate_series(1, 10000) g;"
        "alter table t add column n int default 3;"
        "insert into t select g, repeat('x', 100), g from generate_series(10001, 20000) g; commit"
    )
    shop(database).capture(log, stage_bytes=300_000, until="current")
    inserted = [change for change in changes(log) if change.op is Op.INSERT]
    assert len(inserted) == 20_000 and len({change.tx for change in inserted}) == 1
    assert_snapshot_equals_postgres(log, database, "t")


def test_no_large_row_is_received_while_another_one_is_stored(
    database18: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a transaction of them would need their size twice."""
    storing: list[int] = []
    received: list[bool] = []
    stage, read = Owner.stage, SocketStream.read

    def slow_stage(owner: Owner, batches: Sequence[Batch]) -> None:
        storing.append(sum(batch.body.size for batch in batches))
        time.sleep(0.05)
        stage(owner, batches)
        storing.append(0)

    def watched(stream: SocketStream, **how: float) -> Frames | None:
        frames = read(stream, **how)
        received.append(bool(storing and storing[-1]))
        return frames

    monkeypatch.setattr(Owner, "stage", slow_stage)
    monkeypatch.setattr(SocketStream, "read", watched)
    database18.execute("create table t (id int primary key, body text)")
    shop(database18).capture(log, until="current")
    database18.execute(
        "insert into t select g, (select string_agg(md5((g + i)::text), '')"
        " from generate_series(1, 30000) i) from generate_series(1, 6) g"
    )
    shop(database18).capture(log, until="current", buffer_bytes=100_000, stage_bytes=50_000)
    assert [size > 900_000 for size in storing[::2]] == [True] * 6
    assert received and not any(received)
    assert_snapshot_equals_postgres(log, database18, "t")


def test_small_transactions_share_a_commit(database: Database, log: eventlog.Log) -> None:
    database.execute("create table t (id int primary key)")
    shop(database).capture(log, until="current", copy=False)
    with psycopg.connect(database.dsn) as conn, conn.pipeline():
        for number in range(2_000):
            conn.execute("insert into t values (%s)", [number])
            conn.commit()
    shop(database).capture(log, until="current", copy=False)
    found = changes(log)
    assert [change.key for change in found] == list(range(2_000))
    assert len({change.tx for change in found}) == 2_000
    positions = [change.position for change in found]
    assert len(set(positions)) == 2_000
    batches = sum(1 for _ in log.engine.scan("shop", 0, 2_000, lambda entry: False))
    assert batches < 500


def test_what_was_rolled_back_leaves_nothing(database: Database, log: eventlog.Log) -> None:
    database.execute("create table t (id int primary key, body text)")
    shop(database).capture(log, until="current", copy=False)
    database.execute("begin; insert into t values (1, 'x'); rollback")
    database.execute(
        "begin; insert into t values (2, 'x'); savepoint s; insert into t values (3, 'x');"
        "rollback to s; insert into t values (4, 'x'); commit"
    )
    database.execute(
        "begin; insert into t select g, repeat('x', 100) from generate_series(10, 5000) g; rollback"
    )
    shop(database).capture(log, until="current", copy=False)
    assert [change.key for change in changes(log)] == [2, 4]


def test_rows_that_change_during_the_copy_come_once(database: Database, log: eventlog.Log) -> None:
    database.execute(
        "create table t (id int primary key, n int);"
        "insert into t select g, 0 from generate_series(1, 20000) g"
    )
    slots = "select count(*) from pg_replication_slots where database = current_database()"
    with captured_in_background(log, shop(database)) as running:
        until(lambda: database.value(slots), "the slot")
        for number in range(1, 200):
            database.execute("update t set n = n + 1 where id = %s", [number])
            database.execute("insert into t values (%s, 1)", [100_000 + number])
            database.execute("delete from t where id = %s", [20_000 - number])
        running.saw("streaming")
        running.reached(wal_position(database))
    assert_snapshot_equals_postgres(log, database, "t")


def test_an_idle_source_whose_slot_moved_goes_on_without_a_false_refusal(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("create table t (id int primary key); create table unseen (x text)")
    shop(database, "t").capture(log, until="current")
    with captured_in_background(log, shop(database, "t")) as running:
        database.execute("insert into t values (1)")
        database.execute("insert into unseen select repeat('x', 50) from generate_series(1, 5000)")
        target = flushed(database)
        running.reached(target)
        until(lambda: confirmed(database) >= target, "the slot's move")
    last = changes(log)[-1]
    assert last.position is not None and str(confirmed(database)) != last.position
    shop(database, "t").capture(log, until="current")
    database.execute("insert into t values (2)")
    shop(database, "t").capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "t")


def test_nothing_is_acknowledged_before_it_is_stored(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.05)
    monkeypatch.setattr(streaming, "ACKNOWLEDGE_S", 0.01)
    acknowledged: list[tuple[int, int]] = []
    send = SocketStream.send

    def watched(stream: SocketStream, message: bytes) -> None:
        flushed = int.from_bytes(message[9:17], "big")
        acknowledged.append((flushed, int(state_of(log).position)))
        send(stream, message)

    monkeypatch.setattr(SocketStream, "send", watched)
    database.execute("create table t (id int primary key); create table unseen (x text)")
    with captured_in_background(log, shop(database, "t")) as running:
        running.saw("streaming")
        for number in range(2_000):
            table = "t" if number % 3 else "unseen"
            database.execute(f"insert into {table} values ({number})")
            slot_at = confirmed(database)
            assert slot_at <= state_of(log).position
            if number >= 150 and len({flushed for flushed, _ in acknowledged}) > 5:
                break
        running.reached(wal_position(database))
    assert len({flushed for flushed, _ in acknowledged}) > 5, "it was acknowledged while it ran"
    assert all(flushed <= stored for flushed, stored in acknowledged)
    order = [flushed for flushed, _ in acknowledged]
    assert order == sorted(order), "acknowledgements never go back"


def test_dropping_a_source_removes_its_slot_and_publications(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key); create table hist (x int)")
    shop(database).capture(log, until="current")
    dropped = driver_of(database.dsn).drop(database.dsn, "shop", log.source("shop"))
    assert sorted(dropped) == [
        "publication eventlog__inserts_shop",
        "publication eventlog_shop",
        "slot eventlog_shop",
    ]
    assert database.value("select count(*) from pg_publication") == 0


def test_dropping_a_source_that_nobody_knows_names_those_that_are_there(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key)")
    shop(database).capture(log, until="current")
    with pytest.raises(SlotMissing, match="of a source 'shup'") as fault:
        driver_of(database.dsn).drop(database.dsn, "shup", None)
    assert "eventlog_shop" in fault.value.hint
    # Without its log a source is found by its name; what the log knows is no mistake.
    assert len(driver_of(database.dsn).drop(database.dsn, "shop", None)) == 3
    assert driver_of(database.dsn).drop(database.dsn, "shop", log.source("shop")) == []


def test_a_copy_that_was_cut_off_goes_on_beside_the_stream(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "PAGES_FIRST", 16)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100_000)
    database.execute(
        "create table t (id int primary key, body text);"
        "insert into t select g, repeat('x', 200) from generate_series(1, 60000) g;"
        "create table whole (a int); alter table whole replica identity full;"
        "insert into whole select g % 7 from generate_series(1, 500) g"
    )
    running = shop(database).start(log)
    store = log.engine.commit

    def stop_soon(plan: eventlog.engine.Plan) -> eventlog.engine.Committed:
        if log.stream("shop").end > 5_000:
            running.stop()
        return store(plan)

    monkeypatch.setattr(log.engine, "commit", stop_soon)
    running.run()
    monkeypatch.undo()
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100_000)
    cut = log.stream("shop").end
    assert state_of(log).phase == "copying" and 5_000 < cut < 60_000
    database.execute(
        "delete from t where id % 2 = 0; insert into t values (0, 'new');"
        "update t set body = 'y' where id % 5 = 0; update t set id = -id where id % 7 = 0;"
        "delete from whole where a = 3; update whole set a = 9 where a = 4"
    )
    told: list[Event] = []
    shop(database).capture(log, report=told.append, until="current")
    assert any("copied beside the stream" in event.text for event in told)
    assert_snapshot_equals_postgres(log, database, "t", "whole")
    begun = [c.table for c in changes(log) if c.op is Op.COPY_BEGIN]
    assert begun == ["public.t", "public.whole"], "what was copied before was not copied again"
    assert not state_of(log).copies
