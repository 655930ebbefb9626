"""Tables that are copied beside the stream amid writes: equal to Postgres, in version order."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import cdc
import eventlog
from cdc.errors import ServerError
from cdc.postgres import streaming
from cdc.postgres.attending import attendant
from cdc.postgres.attending.answering import Answering
from cdc.postgres.copy import backfill, chunks, window
from cdc.requests import ask, facts
from eventlog.changes.change import Op
from tests.fix_capture import (
    Background,
    assert_snapshot_equals_postgres,
    captured_in_background,
    state_of,
    until,
    wal_position,
)
from tests.fix_postgres import Database

SEED = random.randrange(1 << 32)
ROWS = 3_000


@pytest.fixture(autouse=True)
def small_and_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks of a small table, and a look at the catalog every moment."""
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)
    monkeypatch.setattr(attendant, "LOOK_S", 0.1)
    monkeypatch.setattr(attendant, "TRY_AGAIN_S", 0.2)
    monkeypatch.setattr(backfill, "WRITERS_TELL_S", 0.3)
    monkeypatch.setattr(chunks, "PAGES_FIRST", 4)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 30_000)


def shop(database: Database, *tables: str) -> cdc.Source:
    return cdc.Source("shop", database.dsn, tables or ("public.*",))


class Writers:
    """Clients that write to a table `t(id, v, note, body)`, in transactions of every kind.

    `v` grows with each version of a row. Bodies are stored out of line and mostly left alone.
    """

    def __init__(self, dsn: str, seed: int, *, clients: int = 4) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self.errors: list[BaseException] = []
        self.done = 0
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed + i),))
            for i in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.errors, self.errors

    def _run(self, choose: random.Random) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as conn:
                conn.execute("set lock_timeout = '5s'; set deadlock_timeout = '50ms'")
                while not self._stop.is_set():
                    self._transaction(conn, choose)
        except BaseException as error:
            self.errors.append(error)

    def _transaction(self, conn: psycopg.Connection[Any], choose: random.Random) -> None:
        try:
            with conn.transaction():
                for _ in range(choose.choice([1, 1, 2, 5])):
                    self._statement(conn, choose)
                if choose.random() < 0.05:
                    time.sleep(choose.random() * 0.3)
                if choose.random() < 0.15:
                    raise psycopg.Rollback
        except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
            pass
        except (psycopg.errors.UniqueViolation, psycopg.errors.SerializationFailure):
            pass  # the latter: a row moved to another partition
        self.done += 1

    def _statement(self, conn: psycopg.Connection[Any], choose: random.Random) -> None:
        key = choose.randrange(1, ROWS)
        kind = choose.random()
        if kind < 0.5:
            conn.execute("update t set v = v + 1, note = note || 'u' where id = %s", [key])
        elif kind < 0.6:
            conn.execute("update t set v = v + 1, body = repeat('n', 2500) where id = %s", [key])
        elif kind < 0.7:
            conn.execute("delete from t where id = %s", [key])
        elif kind < 0.85:
            conn.execute(
                "insert into t values (%s, nextval('versions') * 1000, 'i', repeat('i', 2500))"
                " on conflict (id) do update set v = t.v + 1",
                [key],
            )
        elif kind < 0.95:
            conn.execute("update t set id = -id, v = v + 1 where id = %s", [key])
        else:
            with conn.transaction(force_rollback=True):
                conn.execute("update t set v = v + 500, note = 'never' where id = %s", [key])


MAKE = (
    "create sequence versions start 10;"
    "create table t (id int primary key, v bigint, note text, body text){of};"
    "alter table t alter body set storage external"
)
FILL = (
    "insert into t select g, 0, 'first', repeat('b', 2100 + g % 100)"
    f" from generate_series(1, {ROWS}) g"
)


@contextmanager
def written(database: Database, seed: int) -> Iterator[Writers]:
    writers = Writers(database.dsn, seed)
    try:
        yield writers
    finally:
        writers.end()


def copied(log: eventlog.Log, table: str, times: int = 1) -> Callable[[], bool]:
    """Whether a table's copy has ended so often."""

    def ended() -> bool:
        told = [t.fact for t in facts(log, "shop") if t.fact.fact == "copied"]
        return sum(fact.table == f"public.{table}" for fact in told) >= times

    return ended


def settle(log: eventlog.Log, database: Database, background: Background) -> None:
    """Wait until everything committed by now is in the log."""
    background.reached(wal_position(database))


def assert_in_version_order(log: eventlog.Log) -> None:
    """I8: from the last `copy_begin` on, no row comes after a newer version of itself."""
    versions: dict[int, int] = {}
    for change in log.stream("shop").read(table="public.t"):
        if change.op in (Op.COPY_BEGIN, Op.TRUNCATE):
            versions.clear()
        elif change.row is not None and change.op is not Op.COPY_END:
            key, version = change.row["id"], change.row["v"]
            assert version >= versions.get(key, version), (change.offset, change.op, key)
            versions[key] = version


def test_a_table_that_joins_amid_writes_equals_postgres(
    database: Database, log: eventlog.Log
) -> None:
    print(f"seed {SEED}")
    database.execute("create table other (id int primary key)")
    with captured_in_background(log, shop(database)) as background:
        background.saw("streaming")
        database.execute(MAKE.format(of=""))
        database.execute(FILL)
        with written(database, SEED) as writers:
            until(copied(log, "t"), "the copy")
            assert writers.done > 20
        settle(log, database, background)
        assert_snapshot_equals_postgres(log, database, "t")
    assert_in_version_order(log)
    assert sum(c.op is Op.READ for c in log.stream("shop").read(table="public.t")) > 500


def test_a_transaction_of_more_keys_than_are_kept_holds_no_row_back(
    database18: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "KEYS_MAX", 100)
    print(f"seed {SEED}")
    database18.execute("create table other (id int primary key)")
    with captured_in_background(log, shop(database18)) as background:
        background.saw("streaming")
        database18.execute(MAKE.format(of=""))
        database18.execute(FILL)
        with written(database18, SEED):
            for _ in range(3):
                background.saw("copying", 3)
                with contextlib.suppress(psycopg.errors.DeadlockDetected):
                    database18.execute("update t set v = v + 1 where id % 3 = 0")
        until(copied(log, "t"), "the copy")
        settle(log, database18, background)
        assert_snapshot_equals_postgres(log, database18, "t")
    assert_in_version_order(log)


@pytest.mark.parametrize("how", ["vacuum full t", "truncate t", "alter table t alter v type int8"])
def test_a_copy_of_a_table_that_is_rewritten_meanwhile_begins_anew(
    database18: Database, log: eventlog.Log, how: str
) -> None:
    print(f"seed {SEED}")
    database18.execute("create table other (id int primary key)")
    with captured_in_background(log, shop(database18)) as background:
        background.saw("streaming")
        database18.execute(MAKE.format(of=""))
        database18.execute(FILL)
        with written(database18, SEED):
            background.saw("copying", 5)
            database18.execute(how if "alter" not in how else how + " using v + 1")
            until(copied(log, "t"), "the copy")
        settle(log, database18, background)
        until(lambda: not state_of(log).copies, "the end of all copies")
        assert_snapshot_equals_postgres(log, database18, "t")


def test_tables_that_change_names_while_they_are_copied_are_not_taken_for_each_other(
    database18: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any lock, and so behind whatever named the table before it."""
    lock, made = chunks.lock, 0

    def late(conn: Any, found: Any) -> None:
        nonlocal made
        if found and made < 12:
            made += 1
            database18.execute(
                "alter table t rename to s; alter table u rename to t; alter table s rename to u"
            )
        lock(conn, found)

    monkeypatch.setattr(chunks, "lock", late)
    database18.execute("create table other (id int primary key)")
    with captured_in_background(log, shop(database18)) as background:
        background.saw("streaming")
        for name, first in (("t", 1), ("u", 10_001)):
            database18.execute(
                f"create table {name} (id int primary key, note text);"
                f"insert into {name} select g, repeat('n', 50) from"
                f" generate_series({first}, {first + 999}) g"
            )
        until(lambda: made == 12 and not state_of(log).copies, "the end of all copies")
        database18.execute("insert into t values (-1, 'new'); insert into u values (-2, 'new')")
        settle(log, database18, background)
        assert_snapshot_equals_postgres(log, database18, "t", "u")


def test_a_copy_that_is_stopped_again_and_again_goes_on(
    database18: Database, log: eventlog.Log
) -> None:
    print(f"seed {SEED}")
    choose = random.Random(SEED)
    database18.execute("create table other (id int primary key)")
    shop(database18).capture(log, until="current")
    database18.execute(MAKE.format(of=""))
    database18.execute(FILL)
    stops = 0
    with written(database18, SEED):
        while not copied(log, "t")():
            with captured_in_background(log, shop(database18)) as background:
                enough = choose.randrange(2, 6)
                seen = background.events
                until(
                    lambda seen=seen, enough=enough: (
                        sum(e.kind == "copying" for e in seen) >= enough or copied(log, "t")()
                    ),
                    "some chunks",
                )
            stops += 1
            assert stops < 100
    shop(database18).capture(log, until="current")
    assert stops > 2
    assert_snapshot_equals_postgres(log, database18, "t")
    assert_in_version_order(log)
    begun = sum(c.op is Op.COPY_BEGIN for c in log.stream("shop").read(table="public.t"))
    assert begun == 1, "what was copied was not copied again"


def test_a_partitioned_table_joins_amid_writes(database: Database, log: eventlog.Log) -> None:
    print(f"seed {SEED}")
    database.execute("create table other (id int primary key)")
    with captured_in_background(log, shop(database)) as background:
        background.saw("streaming")
        database.execute(
            MAKE.format(of=" partition by range (id)").replace("alter table t alter", "--")
        )
        database.execute(
            "create table low partition of t for values from (-100000) to (1000);"
            "create table high (body text, note text, v bigint, id int not null);"
            "alter table t attach partition high for values from (1000) to (100000);"
        )
        database.execute(FILL)
        with written(database, SEED):
            until(copied(log, "t"), "the copy")
        settle(log, database, background)
        until(lambda: not state_of(log).copies, "the end of all copies")
        assert_snapshot_equals_postgres(log, database, "t")


@pytest.mark.parametrize("identity", ["full", "nothing"])
def test_a_table_without_a_key_is_copied_exactly_at_one_place(
    database: Database, log: eventlog.Log, identity: str
) -> None:
    print(f"seed {SEED}")
    database.execute("create table other (id int primary key)")
    stop = threading.Event()

    def write() -> None:
        choose = random.Random(SEED)
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            while not stop.is_set():
                value = choose.randrange(50)
                conn.execute("insert into pile values (%s, 'new')", [value])
                if identity == "full":
                    conn.execute("update pile set b = b || 'x' where a = %s", [value])
                    conn.execute("delete from pile where a = %s and b like 'new%%xx'", [value])

    with captured_in_background(log, shop(database)) as background:
        background.saw("streaming")
        database.execute(
            f"create table pile (a int, b text); alter table pile replica identity {identity};"
            "insert into pile select g % 50, 'old' from generate_series(1, 2000) g"
        )
        writer = threading.Thread(target=write)
        writer.start()
        try:
            until(copied(log, "pile"), "the copy")
            time.sleep(0.2)
        finally:
            stop.set()
            writer.join()
        settle(log, database, background)
        if identity == "full":
            assert_snapshot_equals_postgres(log, database, "pile")
        else:
            rows = log.snapshot("shop").table("public.pile", as_inserts=True).to_arrow().num_rows
            assert rows == database.value("select count(*) from pile")
    slots = database.fetch(
        "select slot_name from pg_replication_slots where database = %s", [database.name]
    )
    assert slots == [("eventlog_shop",)], "the temporary slot is gone"


def test_a_copy_waits_for_transactions_that_wrote_before(
    database18: Database, log: eventlog.Log
) -> None:
    database18.execute(
        "create table other (id int primary key); create table t (id int primary key)"
    )
    log_of = shop(database18, "public.other")
    with captured_in_background(log, log_of) as background:
        background.saw("streaming")
        with psycopg.connect(database18.dsn) as slow:
            slow.execute("insert into t values (1)")
            ask(log, "shop", "add", "public.t")
            until(
                lambda: any("waits for the transaction" in e.text for e in background.events),
                "a warning that names the writer",
            )
            database18.execute("insert into t values (2)")
            slow.execute("insert into t values (3)")
        until(copied(log, "t"), "the copy")
        settle(log, database18, background)
        assert_snapshot_equals_postgres(log, database18, "t")


def test_a_table_is_copied_again_when_that_is_asked_for(
    database18: Database, log: eventlog.Log
) -> None:
    database18.execute("create table t (id int primary key); insert into t values (1), (2)")
    with captured_in_background(log, shop(database18)) as background:
        background.saw("streaming")
        first = log.stream("shop").end
        ask(log, "shop", "recopy", "public.t")
        until(copied(log, "t", 2), "the copy")
        settle(log, database18, background)
    ops = [change.op for change in log.stream("shop").read(first)]
    assert ops == [Op.COPY_BEGIN, Op.READ, Op.READ, Op.COPY_END]
    assert_snapshot_equals_postgres(log, database18, "t")


def test_a_request_that_a_cancelled_statement_disturbed_is_carried_out_later(
    database18: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database18.execute("create table t (id int primary key); insert into t values (1)")
    monkeypatch.setattr(attendant, "RECONNECT_S", 0.1)
    plain, faults = Answering._captured, [ServerError("cancelled", sqlstate="57014")]

    def disturbed(self: Answering, *given: Any) -> Any:
        if faults:
            raise faults.pop()
        return plain(self, *given)

    monkeypatch.setattr(Answering, "_captured", disturbed)
    with captured_in_background(log, shop(database18)) as background:
        background.saw("streaming")
        ask(log, "shop", "recopy", "public.t")
        until(copied(log, "t", 2), "the copy")
        assert not any(t.fact.fact == "refused" for t in facts(log, "shop"))


def test_rows_wider_than_a_chunk_are_copied_one_by_one(
    database18: Database, log: eventlog.Log
) -> None:
    database18.execute("create table other (id int primary key)")
    with captured_in_background(log, shop(database18)) as background:
        background.saw("streaming")
        database18.execute(
            "create table wide (id int primary key, body text);"
            "insert into wide select g, repeat('w', g * 20000) from generate_series(1, 12) g"
        )
        until(copied(log, "wide"), "the copy")
        settle(log, database18, background)
        assert_snapshot_equals_postgres(log, database18, "wide")


def test_a_change_that_came_before_its_transaction_is_visible_is_not_lost(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is in the WAL, and so in the stream, before snapshots see it.

    Waiting for a standby that is not there makes that moment last: the change comes behind the wait
    for writers and before `copy_begin`, and the first chunks do not see it.
    """
    name = database.value("select current_database()")
    database.execute("create table other (id int primary key)")
    database.execute(f'alter database "{name}" set synchronous_commit = local')
    database.execute("set synchronous_commit = local")
    database.execute("alter system set synchronous_standby_names = 'nobody'")
    database.execute("select pg_reload_conf()")
    real, held = backfill.Backfill._begin, []

    def write() -> None:
        with psycopg.connect(database.dsn, autocommit=True, application_name="held") as conn:
            conn.execute("set synchronous_commit = on")
            conn.execute("update t set v = 1 where id = 7")

    def begin(copy: backfill.Backfill) -> None:
        if copy.table.table.name == "t" and not held:
            held.append(threading.Thread(target=write))
            held[0].start()
            changes = copy._copies.windows[copy.table.oid]._changed
            until(lambda: changes, "the change in the stream")
            threading.Timer(1.0, database.execute, [CANCEL]).start()
        real(copy)

    monkeypatch.setattr(backfill.Backfill, "_begin", begin)
    try:
        with captured_in_background(log, shop(database)) as background:
            background.saw("streaming")
            database.execute(MAKE.format(of=""))
            database.execute(FILL)
            until(copied(log, "t"), "the copy")
            held[0].join(60)
            settle(log, database, background)
            assert_snapshot_equals_postgres(log, database, "t")
    finally:
        database.execute("alter system reset synchronous_standby_names")
        database.execute("select pg_reload_conf()")
    assert database.value("select v from t where id = 7") == 1


CANCEL = """select pg_cancel_backend(pid) from pg_stat_activity
             where application_name = 'held' and wait_event = 'SyncRep'"""
