"""Captured tables that the source sends no more: marked and refused, never silently stale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cdc
import eventlog
from cdc.captured import captured_tables
from cdc.driver import driver_of
from cdc.postgres import streaming
from cdc.postgres.assembler import Assembler
from cdc.postgres.attending import attendant, rounds
from cdc.postgres.connection import Connection
from cdc.postgres.copy.snapshot_reader import server_time_us
from cdc.postgres.gathered import Flush
from cdc.requests import ask, facts
from eventlog.changes.change import Op
from eventlog.errors import SnapshotRefused, UnknownTable
from tests.fix_capture import (
    assert_snapshot_equals_postgres,
    captured_in_background,
    state_of,
    until,
    wal_position,
)
from tests.fix_postgres import Database

PARTED = """
create table p (id int primary key, v text) partition by range (id);
create table p1 partition of p for values from (0) to (100);
create table p2 partition of p for values from (100) to (200);
insert into p select g, 'first' from generate_series(1, 150) g;
"""


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendant, "LOOK_S", 0.1)
    monkeypatch.setattr(attendant, "SOON_S", 0.1)
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)


def shop(database: Database, *tables: str) -> cdc.Source:
    return cdc.Source("shop", database.dsn, tables or ("public.*",))


def left(log: eventlog.Log, table: str) -> bool:
    return any(t.fact.fact == "left" and t.fact.table == table for t in facts(log, "shop"))


def test_a_partition_that_joined_by_itself_leaves_when_it_is_attached_again(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(PARTED)
    shop(database).capture(log, until="current")
    database.execute("alter table p detach partition p2")
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "p", "p2")
    database.execute("alter table p attach partition p2 for values from (100) to (200)")
    database.execute("update p set v = 'later' where id = 120")
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "p")
    assert left(log, "public.p2")
    with pytest.raises(SnapshotRefused, match="as a part of another table"):
        log.snapshot("shop").table("public.p2")
    database.execute("alter table p detach partition p2; delete from p2 where id = 130")
    shop(database).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "p", "p2")


def test_a_copy_that_is_due_of_a_partition_that_was_attached_keeps_no_capture_from_its_end(
    database18: Database, log: eventlog.Log
) -> None:
    database18.execute(PARTED + "alter table p detach partition p2")
    shop(database18).capture(log, until="current")
    ask(log, "shop", "recopy", "public.p2")
    database18.execute("alter table p attach partition p2 for values from (100) to (200)")
    shop(database18).capture(log, until="current")
    assert_snapshot_equals_postgres(log, database18, "p")
    assert not state_of(log).copies


def test_a_renamed_table_that_is_taken_out_of_the_publication_is_refused_from_then_on(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table a (id int primary key); insert into a values (1)")
    with captured_in_background(log, shop(database, "public.a")) as running:
        running.saw("streaming")
        database.execute("alter table a rename to b; insert into b values (2)")
        running.reached(wal_position(database))
        assert_snapshot_equals_postgres(log, database, "b")
        before = log.stream("shop").end
        database.execute("alter publication eventlog_shop drop table b")
        until(lambda: left(log, "public.b"), "the table's leaving")
        database.execute(
            "insert into b values (3); select pg_logical_emit_message(true, 'app', 'more')"
        )
        until(lambda: log.stream("shop").end > before, "a record behind it")
    with pytest.raises(SnapshotRefused, match="sends it no more"):
        log.snapshot("shop").table("public.b")
    assert log.snapshot("shop", at=before).table("public.b").to_arrow().num_rows == 2


def test_a_renamed_table_is_known_by_its_new_name_before_it_changes_again(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table a (id int primary key); insert into a values (1)")
    database.execute("create table other (id int primary key)")
    with captured_in_background(log, shop(database, "public.a", "public.other")) as running:
        running.saw("streaming")
        database.execute("insert into a values (2)")
        running.reached(wal_position(database))
        cut = log.stream("shop").end
        database.execute("alter table a rename to b")
        running.saw("renamed")
        # With nothing behind it in the source.
        assert_snapshot_equals_postgres(log, database, "b")
        last = list(log.stream("shop").read())[-1]
        assert (last.offset, last.op, last.table) == (cut, Op.RENAME, "public.b")
        assert last.row is not None and last.row["was"] == "public.a"
        kept = [change.op for change in log.stream("shop").history("public.b", key=1)]
        assert kept == [Op.READ], "it is no change of a row"
        listed = captured_tables(log, "shop", driver_of(database.dsn)).tables
        assert [table.table for table in listed] == ["public.b", "public.other"]
        database.execute("insert into other values (1)")
        until(lambda: log.stream("shop").end > cut + 1, "a change of another table")
        running.reached(wal_position(database))
        assert_snapshot_equals_postgres(log, database, "b", "other")
        with pytest.raises(UnknownTable):
            log.snapshot("shop").table("public.a")
        # What was true at an earlier cut stays so.
        assert log.snapshot("shop", at=cut).table("public.a").to_arrow().num_rows == 2
        with pytest.raises(UnknownTable):
            log.snapshot("shop", at=cut).table("public.b")
        database.execute("insert into b values (3)")
        running.reached(wal_position(database))
        assert_snapshot_equals_postgres(log, database, "b")
    versions = [schema for _, schema in log.engine.schemas("shop") if schema["name"] == "b"]
    assert len(versions) == 1, "the next change needs no version of its own"


def test_a_capture_up_to_now_learns_a_new_name_too(database: Database, log: eventlog.Log) -> None:
    database.execute("create table a (id int primary key); insert into a values (1)")
    database.execute("create table other (id int primary key)")
    source = shop(database, "public.a", "public.other")
    source.capture(log, until="current")
    before = log.stream("shop").end
    database.execute("alter table a rename to b")
    source.capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "b")
    assert log.snapshot("shop", at=before).table("public.a").to_arrow().num_rows == 1
    with pytest.raises(UnknownTable, match=f"at offset {before}"):
        log.snapshot("shop", at=before).table("public.b")
    database.execute("insert into other values (1)")
    source.capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "b", "other")


def test_tables_that_swapped_their_names_have_no_cut_between(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table a (id int primary key); insert into a values (1)")
    database.execute("create table b (id int primary key); insert into b values (2), (3)")
    source = shop(database, "public.a", "public.b")
    source.capture(log, until="current")
    before = log.stream("shop").end
    database.execute(
        "begin; alter table a rename to c; alter table b rename to a; alter table c rename to b;"
        " commit"
    )
    source.capture(log, until="current")
    assert log.stream("shop").end == before + 2
    assert_snapshot_equals_postgres(log, database, "a", "b")
    for cut in range(before, before + 3):
        snapshot = log.snapshot("shop", at=cut)
        rows = [snapshot.table(f"public.{name}").to_arrow().num_rows for name in "ab"]
        assert rows == ([1, 2] if cut == before else [2, 1])
    # And back, which nothing but the catalog tells either.
    database.execute(
        "begin; alter table a rename to c; alter table b rename to a; alter table c rename to b;"
        " commit"
    )
    source.capture(log, until="current")
    assert_snapshot_equals_postgres(log, database, "a", "b")
    assert log.check() == []


def test_a_name_that_the_stream_outran_is_not_taken_back(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("create table a (id int primary key)")
    asked = []

    def slow(conn: Connection) -> int:
        if not asked:
            # Between the look at the catalog and the record of what it showed.
            asked.append(1)
            database.execute("alter table b rename to c; insert into c values (1)")
            end = wal_position(database)
            until(lambda: state_of(log).position >= end, "the insert")
        return server_time_us(conn)

    source = shop(database, "public.a")
    source.capture(log, until="current")
    database.execute("alter table a rename to b")
    with monkeypatch.context() as patched:
        patched.setattr(rounds, "server_time_us", slow)
        source.capture(log, until="current")
    assert asked
    assert_snapshot_equals_postgres(log, database, "c")
    assert [change.table for change in log.stream("shop").read()][-1] == "public.c"
    names = [schema["name"] for _, schema in log.engine.schemas("shop")]
    assert names[-1] == "c" and "b" not in names


def test_a_look_that_is_asked_for_as_all_comes_to_rest_is_waited_for(
    database18: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database18.execute("create table a (id int primary key)")
    rest, make = attendant.Attendant._rest, rounds.Rounds.make
    made: list[int] = []
    rested: list[tuple[bool, int]] = []

    def looking(self: rounds.Rounds, conn: Connection) -> None:
        make(self, conn)
        made.append(1)

    def resting(self: attendant.Attendant) -> None:
        if not rested:
            self.look_soon()
        rest(self)
        rested.append((self.at_rest, len(made)))

    monkeypatch.setattr(rounds.Rounds, "make", looking)
    monkeypatch.setattr(attendant.Attendant, "_rest", resting)
    shop(database18).capture(log, until="current")
    at_rest, rounds_before = rested[0]
    assert not at_rest and len(made) > rounds_before


def test_a_doubt_that_comes_with_a_commit_is_looked_at_at_once(
    database18: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database18.execute("create table a (id int primary key)")
    monkeypatch.setattr(attendant, "LOOK_S", 3_600.0)
    take, make = Assembler.take_complete, rounds.Rounds.make
    doubted, made = [0], []
    relation = database18.value("select 'a'::regclass::oid::int8")

    def doubting(self: Assembler) -> Flush:
        flush = take(self)
        if flush.batches and not doubted:
            doubted.append(relation)
            assert self._copies.again(relation)
            self.doubts.append((relation, "a doubt"))
        return flush

    def looking(self: rounds.Rounds, conn: Connection) -> None:
        make(self, conn)
        made.append(1)

    monkeypatch.setattr(Assembler, "take_complete", doubting)
    monkeypatch.setattr(rounds.Rounds, "make", looking)
    with captured_in_background(log, shop(database18, "public.a")) as running:
        running.saw("streaming")
        database18.execute("insert into a values (1)")
        until(lambda: len(made) >= 2, "the round that the table's description led to")
        running.reached(wal_position(database18))
        doubted.clear()
        database18.execute("insert into a values (2)")
        running.saw("copied", 2)
    assert doubted == [relation]
    assert_snapshot_equals_postgres(log, database18, "a")


KILLED = """
import os, sys
import cdc, eventlog
from cdc.postgres.copy import backfill, chunks
from cdc.postgres.copy.whole_copy import WholeCopy

chunks.PAGES_FIRST, chunks.CHUNK_BYTES = 2, 20_000
kind, dsn, path = sys.argv[1:]

def store(self, job, batches, cursor, plain=WholeCopy._store):
    plain(self, job, batches, cursor)
    os._exit(9)

def hand_over(self, copy, *, begins=False, plain=backfill.Backfill._hand_over, **more):
    size = plain(self, copy, begins=begins, **more)
    chunk = more.get("copied") is not None
    if begins and kind == "begun" or chunk and kind == "chunk":
        # The answer comes before the commit: wait for that, so that the death is a late one.
        self._link.wait(self._link.ask(self._link.streamer.change))
        os._exit(9)
    return size

if kind == "whole":
    WholeCopy._store = store
else:
    backfill.Backfill._hand_over = hand_over
with eventlog.open(path) as log:
    cdc.Source("shop", dsn, ("public.t",)).capture(log, until="current")
"""


def die(kind: str, database: Database, log: eventlog.Log) -> None:
    """Capture in another process, which dies at that moment of a copy beside the stream."""
    log.close()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, kind, database.dsn, str(log.path)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 9, done.stderr


@pytest.mark.parametrize("moment", ["begun", "whole"])
def test_no_older_cursor_is_taken_up_behind_a_copy_that_began_anew(
    database18: Database, log: eventlog.Log, log_dir: Path, moment: str
) -> None:
    database18.execute(
        "create table t (id int primary key, id2 int not null unique, v text);"
        "insert into t select g, g, repeat('x', 200) from generate_series(1, 2000) g"
    )
    shop(database18, "public.t").capture(log, until="current")
    ask(log, "shop", "recopy", "public.t")
    die("chunk", database18, log)
    with eventlog.open(log_dir) as again:
        (cursor,) = state_of(again).copies.values()
        assert cursor["page"] > 0, "the copy was under way"
    if moment == "whole":
        database18.execute("alter table t replica identity full")
    else:
        database18.execute(
            "alter table t drop constraint t_pkey; alter table t add primary key (id2)"
        )
    die(moment, database18, log)
    with eventlog.open(log_dir) as again:
        (cursor,) = state_of(again).copies.values()
        assert "leaves" not in cursor
        if moment == "whole":
            database18.execute("alter table t replica identity default")
        shop(database18, "public.t").capture(again, until="current")
        assert_snapshot_equals_postgres(again, database18, "t")
