"""Every event that logical replication can tell, in whole captures, against Postgres itself."""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import cdc
import eventlog
from eventlog.changes.change import UNCHANGED, Change, Op
from eventlog.changes.table_name import quoted
from eventlog.errors import SnapshotRefused
from tests.fix_capture import assert_snapshot_equals_postgres, state_of
from tests.fix_postgres import Database

Told = tuple[Op, Any, dict[str, Any] | None]
"""What a change says: its kind, its key and its new row."""


def capture(database: Database, log: eventlog.Log, *tables: str, **options: Any) -> int:
    """Capture up to now; returns the end before, so where what is new begins."""
    before = log.stream("shop").end if log.source("shop") is not None else 0
    if "publication" not in options:
        tables = tables or ("public.*",)
    source = cdc.Source("shop", database.dsn, tables)
    source.capture(log, until="current", **options)
    return before


def changes(log: eventlog.Log, start: int = 0) -> list[Change]:
    return list(log.stream("shop").read(start))


def told(found: Sequence[Change]) -> list[Told]:
    return [(change.op, change.key, change.row) for change in found]


class TestKeys:
    def test_keys_that_change_and_unique_values_that_swap_in_one_transaction(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(
            "create table t (id int primary key, u int unique deferrable initially deferred);"
            "insert into t values (1, 10), (2, 20), (3, 30)"
        )
        capture(database, log)
        database.execute(
            "begin; update t set u = 20 where id = 1; update t set u = 10 where id = 2;"
            "update t set id = 0 where id = 1; update t set id = 1 where id = 2;"
            "update t set id = 2 where id = 0; delete from t where id = 3;"
            "insert into t values (3, 40); update t set id = id where id = 3; commit"
        )
        start = capture(database, log)
        assert told(changes(log, start)) == [
            (Op.UPDATE, 1, {"id": 1, "u": 20}),
            (Op.UPDATE, 2, {"id": 2, "u": 10}),
            (Op.UPDATE, 0, {"id": 0, "u": 20}),
            (Op.UPDATE, 1, {"id": 1, "u": 10}),
            (Op.UPDATE, 2, {"id": 2, "u": 20}),
            (Op.DELETE, 3, None),
            (Op.INSERT, 3, {"id": 3, "u": 40}),
            (Op.UPDATE, 3, {"id": 3, "u": 40}),
        ]
        olds = [change.old for change in changes(log, start)]
        assert olds == [None, None, {"id": 1}, {"id": 2}, {"id": 0}, {"id": 3}, None, None]
        assert_snapshot_equals_postgres(log, database, "t")

    def test_keys_that_swap_in_one_statement(self, database: Database, log: eventlog.Log) -> None:
        # A deferrable key is no replica identity; a statement may pass through duplicates of it.
        database.execute(
            "create table t (id int primary key deferrable, b text);"
            "alter table t replica identity full;"
            "insert into t select g, 'x' from generate_series(1, 50) g"
        )
        capture(database, log)
        database.execute("update t set id = 51 - id; update t set b = id where id % 2 = 0")
        start = capture(database, log)
        assert [(c.op, (c.old or {})["id"], (c.row or {})["id"]) for c in changes(log, start)] == [
            *((Op.UPDATE, n, 51 - n) for n in range(1, 51)),
            *((Op.UPDATE, n, n) for n in range(50, 0, -1) if n % 2 == 0),
        ]
        assert_snapshot_equals_postgres(log, database, "t")

    def test_one_key_a_thousand_times_in_one_transaction(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute("create table t (id int primary key, n int)")
        capture(database, log)
        with database.connection.transaction():
            for number in range(250):
                database.execute("insert into t values (1, %s)", [number])
                database.execute("update t set n = n + 1000")
                database.execute("update t set id = 2")
                database.execute("delete from t")
            database.execute("insert into t values (1, -1)")
        start = capture(database, log)
        found = changes(log, start)
        assert [change.op for change in found] == [
            *[Op.INSERT, Op.UPDATE, Op.UPDATE, Op.DELETE] * 250,
            Op.INSERT,
        ]
        assert [(c.row or {}).get("n") for c in found[::4]] == [*range(250), -1]
        assert len({(change.tx, change.position) for change in found}) == 1
        assert_snapshot_equals_postgres(log, database, "t")

    def test_replica_identities_switch_with_changes_in_between(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(
            "create table t (id int primary key, u int not null, b text);"
            "create unique index by_u on t (u); alter table t alter b set storage external;"
            "insert into t select g, g * 10, repeat('x', 9000) from generate_series(1, 4) g"
        )
        capture(database, log)
        serial = itertools.count(1000, 1000)

        def work(key: int) -> str:
            return (
                "update t set u = u + 100000; update t set u = u + 1 where id = 2;"
                "update t set id = id + 100 where id = 3;"
                f"update t set id = id - 100 where id > 100; delete from t where id = {key};"
                f"insert into t values ({key}, {next(serial)}, 'new')"
            )

        for key, identity in enumerate(["full", "using index by_u", "default", "full"], 1):
            database.execute(work(key))
            database.execute(
                f"begin; {work(4)}; alter table t replica identity {identity}; {work(key)}; commit"
            )
            if key % 2:
                capture(database, log)
                assert_snapshot_equals_postgres(log, database, "t")
        database.execute("delete from t where id = 1")
        capture(database, log)
        assert_snapshot_equals_postgres(log, database, "t")
        kinds = {version["identity"] for _, version in log.engine.schemas("shop")}
        assert kinds == {"d", "f", "i"}
        old = changes(log)[-1].old
        assert old is not None and old["id"] == 1 and old["b"] == "new"

    def test_without_an_identity_there_is_a_history_and_no_state(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(
            "create table t (id int primary key); alter table t replica identity nothing"
        )
        database.execute("insert into t values (1)")
        capture(database, log)
        database.execute("insert into t values (2); update t set id = 3 where id = 2; truncate t")
        start = capture(database, log)
        assert [change.op for change in changes(log, start)] == [Op.INSERT, Op.TRUNCATE]
        with pytest.raises(eventlog.errors.SnapshotRefused, match="no replica identity"):
            log.snapshot("shop").table("public.t")


class TestTruncate:
    def test_several_tables_with_those_that_refer_to_them(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(
            "create table a (id int generated always as identity primary key, n int);"
            "create table b (id int primary key, a int references a);"
            "create table c (id int primary key, b int references b);"
            "create table d (id int primary key);"
            "insert into a (n) values (1), (2); insert into b values (1, 1);"
            "insert into c values (1, 1); insert into d values (1)"
        )
        capture(database, log)
        database.execute(
            "begin; insert into d values (2); truncate d, a restart identity cascade;"
            "insert into a (n) values (3); insert into d values (3); commit"
        )
        start = capture(database, log)
        found = changes(log, start)
        assert [(c.op, c.table) for c in (found[0], *found[5:])] == [
            (Op.INSERT, "public.d"),
            (Op.INSERT, "public.a"),
            (Op.INSERT, "public.d"),
        ]
        assert {(c.op, c.table) for c in found[1:5]} == {
            (Op.TRUNCATE, f"public.{name}") for name in "abcd"
        }
        assert found[5].key == 1, "the sequence began anew"
        assert_snapshot_equals_postgres(log, database, "a", "b", "c", "d")

    def test_a_truncate_that_is_undone(self, database: Database, log: eventlog.Log) -> None:
        database.execute("create table t (id int primary key); insert into t values (1)")
        capture(database, log)
        database.execute(
            "begin; savepoint s; truncate t; insert into t values (2); rollback to s;"
            "insert into t values (3); commit; begin; truncate t; rollback"
        )
        start = capture(database, log)
        assert told(changes(log, start)) == [(Op.INSERT, 3, {"id": 3})]
        assert_snapshot_equals_postgres(log, database, "t")


class TestMessages:
    def test_any_prefix_and_any_content(self, database: Database, log: eventlog.Log) -> None:
        database.execute("create table t (id int primary key)")
        capture(database, log)
        large = bytes(range(256)) * 4096
        said = [
            ("app", b""),
            ("", b"no prefix"),
            ("päß 🦔\n\t\"'\\%s", b"odd"),
            ("x" * 5000, b"\x00\xff"),
            ("large", large),
            ("eventlog ", b"not our own"),
            ("eventlog", b"our own"),
            ("Eventlog", b"not either"),
        ]
        emit = "select pg_logical_emit_message(%s, %s, %s::bytea)"
        for transactional in (True, False):
            for prefix, content in said:
                database.execute(emit, [transactional, prefix, content])
        with database.connection.transaction(force_rollback=True):
            database.execute("insert into t values (1)")
            database.execute(emit, [True, "app", b"rolled back"])
            database.execute(emit, [False, "app", b"stays"])
        with database.connection.transaction():
            database.execute(emit, [True, "app", b"first"])
            with database.connection.transaction(force_rollback=True):
                database.execute(emit, [True, "app", b"undone"])
                database.execute(emit, [False, "app", b"in a savepoint"])
            database.execute(emit, [True, "app", b"last"])
        start = capture(database, log)
        rows = [change.row or {} for change in changes(log, start)]
        found = [(row["transactional"], row["prefix"], row["content"]) for row in rows]
        others = [(prefix, content) for prefix, content in said if prefix != "eventlog"]
        assert found == [
            *((True, prefix, content) for prefix, content in others),
            *((False, prefix, content) for prefix, content in others),
            (False, "app", b"stays"),
            (False, "app", b"in a savepoint"),
            (True, "app", b"first"),
            (True, "app", b"last"),
        ]
        assert len(next(log.stream("shop").read(start).batches()).to_arrow()) == len(rows)


class TestOrigins:
    def test_where_a_transaction_came_from_is_kept(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute("create table t (id int primary key, body text)")
        capture(database, log)
        origin = f"ünïcode origin of {database.name}"
        database.execute("select pg_replication_origin_create(%s)", [origin])
        try:
            database.execute("insert into t values (1)")
            database.execute("select pg_replication_origin_session_setup(%s)", [origin])
            database.execute(
                "begin; select pg_replication_origin_xact_setup('0/ABC', now());"
                "insert into t values (2); commit"
            )
            database.execute(
                "insert into t select g, repeat('x', 400) from generate_series(3, 20002) g"
            )
            database.execute("select pg_replication_origin_session_reset()")
            database.execute("insert into t values (0)")
            start = capture(database, log, stage_bytes=300_000)
        finally:
            database.execute("select pg_replication_origin_drop(%s)", [origin])
        assert [change.key for change in changes(log, start)] == [*range(1, 20003), 0]
        assert_snapshot_equals_postgres(log, database, "t")
        found = log.engine.scan("shop", start, start + 20003, lambda entry: True)
        names: list[str] = []
        for entry in (stretch.entry for stretch in found):
            by_place = dict(entry.more.get("origins", []))
            starts = [*entry.transactions.first.tolist(), entry.records]
            for place in range(len(starts) - 1):
                names += [by_place.get(place, "")] * (starts[place + 1] - starts[place])
        assert names == ["", *[origin] * 20001, ""]
        lines = log.stream("shop").read(start).as_json()
        # A line names the origin where there is one.
        assert [line.get("origin", "") for line in lines] == names


class TestPartitions:
    PARTED = """
    create table p (id int, region text, n int, primary key (id, region))
        partition by list (region);
    create table p_eu partition of p for values in ('eu');
    create table p_us partition of p for values in ('us') partition by range (id);
    create table p_us_low partition of p_us for values from (0) to (100);
    create table p_us_high (n int, gone int, region text not null, id int not null);
    alter table p_us_high drop column gone;
    alter table p_us attach partition p_us_high for values from (100) to (1000);
    create table p_rest partition of p default;
    insert into p select g, (array['eu', 'us', 'as'])[g % 3 + 1], 0 from generate_series(1, 200) g;
    """
    WORK = """
    update p set n = n + 1 where id % 5 = 0;
    update p set region = 'us' where id between 1 and 6;
    update p set id = id + 500 where region = 'us' and id < 20;
    begin; update p set region = 'as'; update p set region = 'us' where id > 50;
    delete from p where id % 7 = 0; savepoint s; truncate p; rollback to s; commit;
    insert into p values (1000, 'xx', 1), (7, 'us', 2), (14, 'eu', 3);
    """

    def test_a_partitioned_table_is_one_table(self, database: Database, log: eventlog.Log) -> None:
        database.execute(self.PARTED)
        capture(database, log, "public.p")
        database.execute(self.WORK)
        capture(database, log, "public.p")
        assert {change.table for change in changes(log)} == {"public.p"}
        assert_snapshot_equals_postgres(log, database, "p")
        database.execute("truncate p; insert into p values (1, 'us', 1)")
        start = capture(database, log, "public.p")
        assert [change.op for change in changes(log, start)][:2] == [Op.TRUNCATE, Op.INSERT]
        assert_snapshot_equals_postgres(log, database, "p")

    def test_leaves_are_tables_where_a_given_publication_sends_them_so(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(self.PARTED)
        database.execute("create publication leaves for table p")
        capture(database, log, publication="leaves")
        database.execute(self.WORK)
        capture(database, log, publication="leaves")
        leaves = ("p_eu", "p_us_low", "p_us_high", "p_rest")
        assert {change.table for change in changes(log)} == {f"public.{leaf}" for leaf in leaves}
        assert_snapshot_equals_postgres(log, database, *leaves)

    def test_a_given_publication_may_send_the_root(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(self.PARTED)
        database.execute(
            "create publication roots for table p with (publish_via_partition_root = true)"
        )
        capture(database, log, publication="roots")
        database.execute(self.WORK)
        capture(database, log, publication="roots")
        assert {change.table for change in changes(log)} == {"public.p"}
        assert_snapshot_equals_postgres(log, database, "p")

    @pytest.mark.parametrize("mode", ["ours", "root", "leaves"])
    def test_partitions_are_attached_and_detached(
        self, database: Database, log: eventlog.Log, mode: str
    ) -> None:
        """`mode`: of our publication, and of given ones that send the root or its leaves."""
        database.execute(
            self.PARTED
            + "create table late (id int, region text, n int, primary key (id, region));"
            "insert into late select g, 'za', g from generate_series(2000, 2020) g"
        )
        options = {}
        if mode != "ours":
            via = "true" if mode == "root" else "false"
            database.execute(
                f"create publication given for table p with (publish_via_partition_root = {via})"
            )
            options["publication"] = "given"
        tables = ("public.p",) if mode == "ours" else ()
        whole = ("p",) if mode != "leaves" else ("p_eu", "p_us_low", "p_us_high", "p_rest")
        capture(database, log, *tables, **options)
        database.execute(
            "alter table p attach partition late for values in ('za');"
            "insert into p values (3000, 'za', 1); update p set n = 5 where id = 2005;"
            "alter table p detach partition p_eu; insert into p_eu values (4000, 'eu', 1)"
        )
        capture(database, log, *tables, **options)
        assert_snapshot_equals_postgres(
            log, database, *(("p",) if mode != "leaves" else ("late", *whole[1:]))
        )
        if mode == "leaves":
            with pytest.raises(SnapshotRefused, match="sends it no more"):
                log.snapshot("shop").table("public.p_eu")
        database.execute(
            "alter table p attach partition p_eu for values in ('eu');"
            "alter table p detach partition late; update p set n = n + 1"
        )
        capture(database, log, *tables, **options)
        assert_snapshot_equals_postgres(log, database, *whole)

    def test_a_leaf_that_is_named_by_itself(self, database: Database, log: eventlog.Log) -> None:
        database.execute(self.PARTED)
        capture(database, log, "public.p_us_high", "public.p_eu")
        database.execute(self.WORK)
        capture(database, log, "public.p_us_high", "public.p_eu")
        assert {change.table for change in changes(log)} == {"public.p_us_high", "public.p_eu"}
        assert_snapshot_equals_postgres(log, database, "p_us_high", "p_eu")

    def test_tables_that_inherit_are_tables_of_their_own(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(
            "create table parent (id int primary key, n int);"
            "create table child (extra text, primary key (id)) inherits (parent);"
            "create table grandchild (primary key (id)) inherits (child);"
            "insert into parent values (1, 1); insert into child values (2, 2, 'c');"
            "insert into grandchild values (3, 3, 'g')"
        )
        capture(database, log)
        database.execute(
            "update parent set n = n + 10; delete from parent where id = 2;"
            "insert into child values (4, 4, 'd'); update child set extra = 'z';"
            "truncate only parent"
        )
        start = capture(database, log)
        assert [(c.op, c.table, c.key) for c in changes(log, start)] == [
            (Op.UPDATE, "public.parent", 1),
            (Op.UPDATE, "public.child", 2),
            (Op.UPDATE, "public.grandchild", 3),
            (Op.DELETE, "public.child", 2),
            (Op.INSERT, "public.child", 4),
            (Op.UPDATE, "public.child", 4),
            (Op.UPDATE, "public.grandchild", 3),
            (Op.TRUNCATE, "public.parent", None),
        ]
        rows = {
            name: log.snapshot("shop").table(f"public.{name}").to_arrow().to_pylist()
            for name in ("parent", "child", "grandchild")
        }
        for name, held in rows.items():
            cursor = database.connection.execute(f"select to_jsonb(t) from only {name} t")
            assert held == [row for (row,) in cursor.fetchall()]


class TestPublications:
    def test_row_filters_turn_updates_into_inserts_and_deletes(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(
            "create table t (id int primary key, n int); alter table t replica identity full;"
            "insert into t select g, g from generate_series(1, 6) g;"
            "create publication odd for table t where (n % 2 = 1 and length('{}%s\\') = 5)"
        )
        capture(database, log, publication="odd")
        database.execute(
            "update t set n = n + 1 where id = 1; update t set n = n + 1 where id = 2;"
            "update t set n = n + 2 where id = 3; update t set n = n + 2 where id = 4;"
            "delete from t where id = 5; delete from t where id = 6;"
            "insert into t values (7, 7), (8, 8)"
        )
        start = capture(database, log, publication="odd")
        assert [(c.op, (c.row or c.old or {})) for c in changes(log, start)] == [
            (Op.DELETE, {"id": 1, "n": 1}),
            (Op.INSERT, {"id": 2, "n": 3}),
            (Op.UPDATE, {"id": 3, "n": 5}),
            (Op.DELETE, {"id": 5, "n": 5}),
            (Op.INSERT, {"id": 7, "n": 7}),
        ]
        held = log.snapshot("shop").table("public.t").to_arrow().to_pylist()
        expected = database.fetch("select id, n from t where n % 2 = 1 order by id")
        assert sorted((row["id"], row["n"]) for row in held) == expected

    def test_column_lists_leave_columns_out_of_copy_and_stream(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(
            "create table t (secret text, id int primary key, n int, more text);"
            "insert into t values ('s', 1, 1, 'm');"
            "create publication narrow for table t (id, n)"
        )
        capture(database, log, publication="narrow")
        database.execute(
            "insert into t values ('s', 2, 2, 'm'); update t set secret = 'x';"
            "update t set n = 5, more = 'y' where id = 1; delete from t where id = 2"
        )
        capture(database, log, publication="narrow")
        assert told(changes(log)[1:]) == [
            (Op.READ, 1, {"id": 1, "n": 1}),
            (Op.COPY_END, None, changes(log)[2].row),
            (Op.INSERT, 2, {"id": 2, "n": 2}),
            (Op.UPDATE, 1, {"id": 1, "n": 1}),
            (Op.UPDATE, 2, {"id": 2, "n": 2}),
            (Op.UPDATE, 1, {"id": 1, "n": 5}),
            (Op.DELETE, 2, None),
        ]
        held = log.snapshot("shop").table("public.t").to_arrow().to_pylist()
        assert held == [{"id": 1, "n": 5}]

    def test_stored_generated_columns_that_a_publication_sends(
        self, database18: Database, log: eventlog.Log
    ) -> None:
        database18.execute(
            "create table t (id int primary key, n int,"
            " twice int generated always as (n * 2) stored,"
            " thrice int generated always as (n * 3) virtual);"
            "insert into t values (1, 1);"
            "create publication made for table t with (publish_generated_columns = stored)"
        )
        capture(database18, log, publication="made")
        database18.execute("insert into t values (2, 2); update t set n = 7 where id = 1")
        capture(database18, log, publication="made")
        held = log.snapshot("shop").table("public.t").to_arrow().to_pylist()
        assert sorted(held, key=lambda row: row["id"]) == [
            {"id": 1, "n": 7, "twice": 14},
            {"id": 2, "n": 2, "twice": 4},
        ]


class TestTransactions:
    def test_transactions_with_nothing_in_them_leave_no_trace_and_move_the_position(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute("create table t (id int primary key); create table other (id int)")
        capture(database, log, "public.t")
        before = state_of(log).position
        database.execute(
            "begin; commit; begin; select pg_current_xact_id(); commit;"
            "begin; insert into t values (1); rollback;"
            "begin; savepoint s; insert into t values (2); rollback to s; commit;"
            "begin; insert into other values (1); commit;"
            "begin; update t set id = id; delete from t where false; commit;"
            "create table later (id int); drop table later; analyze t"
        )
        start = capture(database, log, "public.t")
        assert changes(log, start) == []
        assert state_of(log).position > before

    def test_savepoints_and_aborted_subtransactions(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute("create table t (id int primary key, body text)")
        capture(database, log)
        database.execute(
            "begin; insert into t values (1, 'x'); savepoint a; insert into t values (2, 'x');"
            "savepoint b; update t set body = 'no'; insert into t values (3, 'no'); rollback to b;"
            "savepoint c; insert into t values (3, 'yes'); release c; release b;"
            "delete from t where id = 1; rollback to a; insert into t values (2, 'then');"
            "release a; update t set body = 'end'; commit;"
            "begin; savepoint a; insert into t values (9, 'x'); release a; rollback"
        )
        # Each EXCEPTION block is a subtransaction; enough rows that a snapshot of them overflows.
        database.execute(
            "do $$ begin for i in 100..300 loop begin insert into t values (i, repeat('x', 500));"
            "if i % 3 = 0 then raise 'undo'; end if; exception when raise_exception then null; end;"
            "end loop; end $$"
        )
        start = capture(database, log)
        assert told(changes(log, start))[:4] == [
            (Op.INSERT, 1, {"id": 1, "body": "x"}),
            (Op.INSERT, 2, {"id": 2, "body": "then"}),
            (Op.UPDATE, 1, {"id": 1, "body": "end"}),
            (Op.UPDATE, 2, {"id": 2, "body": "end"}),
        ]
        kept = [change.key for change in changes(log, start)[4:]]
        assert kept == [i for i in range(100, 301) if i % 3]
        assert_snapshot_equals_postgres(log, database, "t")

    def test_statements_that_change_rows_in_their_own_ways(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute(
            "create table a (id int primary key, n int);"
            "create table b (id int primary key, a int references a on delete cascade"
            " on update cascade);"
            "create function doubled() returns trigger language plpgsql as"
            " $$ begin new.n = new.n * 2; return new; end $$;"
            "create trigger doubled before insert on a for each row execute function doubled()"
        )
        capture(database, log)
        database.execute("insert into a select g, g from generate_series(1, 9) g")
        with database.connection.cursor().copy("copy b from stdin") as copy:
            for number in range(1, 10):
                copy.write_row((number, number))
        database.execute(
            "insert into a values (1, 5), (20, 5) on conflict (id) do update set n = excluded.n;"
            "insert into a values (2, 7) on conflict do nothing;"
            "with gone as (delete from a where id = 3 returning id) insert into a select id + 30, 0"
            " from gone;"
            "update a set id = 40 where id = 4; select * from a for update; update a set n = n;"
            "merge into a using (values (5), (50)) as s (id) on a.id = s.id"
            " when matched then delete when not matched then insert values (s.id, 1);"
            "begin; commit; begin; lock table a; rollback; select txid_current(); analyze a, b"
        )
        database.execute("vacuum a")
        for key, end in ((60, "commit"), (61, "rollback")):
            gid = f"'{end} of {database.name}'"
            database.execute(f"begin; insert into a values ({key}, 6); prepare transaction {gid}")
            database.execute(f"{end} prepared {gid}")
        start = capture(database, log)
        assert_snapshot_equals_postgres(log, database, "a", "b")
        found = changes(log, start)
        assert [c.key for c in found if c.table == "public.b" and c.op is Op.DELETE] == [3, 5]
        assert len({change.position for change in found}) == 4, (
            "statements sent as one text are one"
        )

    def test_a_transaction_over_hundreds_of_tables(
        self, database18: Database, log: eventlog.Log
    ) -> None:
        names = [f"t{number}" for number in range(400)]
        database18.execute(";".join(f"create table {name} (id int primary key)" for name in names))
        capture(database18, log, copy=False)
        inserts = ";".join(f"insert into {name} values ({n})" for n, name in enumerate(names))
        database18.execute(f"begin; {inserts}; truncate {', '.join(names[::2])}; commit")
        start = capture(database18, log, copy=False)
        found = changes(log, start)
        assert [(c.table, c.key) for c in found[:400]] == [
            (f"public.{name}", number) for number, name in enumerate(names)
        ]
        assert sorted(str(c.table) for c in found[400:]) == sorted(
            f"public.{n}" for n in names[::2]
        )
        assert len({change.position for change in found}) == 1


class TestShapes:
    def test_sixteen_hundred_columns(self, database: Database, log: eventlog.Log) -> None:
        columns = ", ".join(f"c{n} int" for n in range(1599))
        database.execute(f"create table t (id int primary key, {columns})")
        database.execute("alter table t drop column c700")
        database.execute("insert into t (id, c0, c1598) values (1, 10, 20)")
        capture(database, log)
        database.execute(
            f"insert into t values (2{', 7' * 1598}); update t set c1598 = c1598 + 1; delete from t"
            " where id = 1"
        )
        capture(database, log)
        assert len(log.snapshot("shop").table("public.t").to_arrow().column_names) == 1599
        (held,) = log.snapshot("shop").table("public.t").to_arrow().to_pylist()
        assert (held["id"], held["c699"], held["c701"], held["c1598"]) == (2, 7, 7, 8)
        assert list(database.fetch("select * from t")[0]) == list(held.values())

    def test_a_table_without_columns(self, database: Database, log: eventlog.Log) -> None:
        database.execute(
            "create table none (); insert into none default values;"
            "create table fewer (gone int); alter table fewer drop column gone;"
            "alter table none replica identity full; alter table fewer replica identity full;"
            "insert into fewer default values; insert into fewer default values"
        )
        capture(database, log)
        database.execute(
            "insert into none default values; insert into none default values;"
            "delete from none where ctid = '(0,1)'; delete from fewer where ctid = '(0,1)'"
        )
        start = capture(database, log)
        assert [(c.op, c.row) for c in changes(log, start)] == [
            (Op.INSERT, {}),
            (Op.INSERT, {}),
            (Op.DELETE, None),
            (Op.DELETE, None),
        ]
        for name in ("none", "fewer"):
            held = log.snapshot("shop").table(f"public.{name}").to_arrow()
            assert held.num_rows == database.value(f"select count(*) from {name}")

    def test_rows_of_many_megabytes(self, database18: Database, log: eventlog.Log) -> None:
        database18.execute(
            "create table t (id int primary key, n int, body text, raw bytea);"
            "alter table t alter body set storage external, alter raw set storage external;"
            "insert into t values (1, 0, repeat('0123456789abcdef', 1 << 20), null)"
        )
        capture(database18, log)
        database18.execute(
            "insert into t values (2, 0, repeat('é\\', 1 << 22), null);"
            "insert into t values (3, 0, null, decode(repeat('00ff5c0a', 1 << 21), 'hex'));"
            "update t set n = 1"
        )
        start = capture(database18, log)
        bodies = [(change.row or {})["body"] for change in changes(log, start)]
        assert bodies[0] == "é\\" * (1 << 22)
        assert bodies[2:] == [UNCHANGED, UNCHANGED, None]
        raw = (changes(log, start)[1].row or {})["raw"]
        assert raw == bytes.fromhex("00ff5c0a") * (1 << 21)
        held = log.snapshot("shop").table("public.t").to_arrow().to_pylist()
        found = sorted((row["id"], row["n"], md5(row["body"]), md5(row["raw"])) for row in held)
        assert found == database18.fetch("select id, n, md5(body), md5(raw) from t order by id")

    @pytest.mark.soak
    @pytest.mark.timeout(7_200)
    @pytest.mark.parametrize(
        "made_by",
        [
            "repeat('x', {})",
            "(select string_agg(md5(i::text), '') from generate_series(1, {} / 32) i)",
        ],
    )
    def test_a_row_of_almost_a_gigabyte_takes_few_times_its_size(
        self, database18: Database, log_dir: Path, made_by: str
    ) -> None:
        size = 950 << 20
        database18.execute(
            "create table t (id int primary key, body text);"
            "alter table t alter body set storage external"
        )
        select = made_by.format(size)
        for key in (1, 2):  # the first is copied, the second streamed
            database18.execute(f"insert into t select {key}, {select}")
            assert memory_peak(database18.dsn, log_dir) < (150 << 20) + 2.5 * size
        with eventlog.open(log_dir) as log:
            rows = [c.row for c in log.stream("shop").read() if c.op in (Op.READ, Op.INSERT)]
            assert [(row["id"], len(row["body"])) for row in rows if row] == [(1, size), (2, size)]
            assert log.check() == []


def memory_peak(dsn: str, log_dir: Path) -> int:
    """Capture in a process of its own; the most anonymous memory that it held, in bytes."""
    command = [sys.executable, "-m", "eventlog.cli", "capture", "--source", "shop", "--dsn", dsn]
    command += ["--table", "public.*", "--until", "current", "--log", str(log_dir)]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            held = re.search(r"RssAnon:\s+(\d+) kB", status)
            peak = max(peak, int(held[1]) << 10 if held else 0)
            time.sleep(0.01)
    assert process.returncode == 0
    return peak


def md5(value: str | bytes | None) -> str | None:
    """As Postgres has it."""
    if value is None:
        return None
    data = value.encode() if isinstance(value, str) else value
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


ODD = [
    "select",
    "user",
    "UPPER lower",
    "dots.and.more",
    "quotes \" and '",
    "line\nbreak\ttab",
    "%s %d {} $1 \\x \\",
    "漢字 🦔 ß",
    "é" * 31 + "x",
    "trailing ",
    "a,b(c);--",
]
"""Names of any characters; 63 bytes at most."""


def kind_of(name: str) -> str:
    return f"{name[:20]} of it"


def columns_of(name: str) -> tuple[str, str, str]:
    return name, "2" + name[:20], "list"


class TestLargeObjects:
    def test_their_oids_are_captured_and_what_they_hold_is_not(
        self, database: Database, log: eventlog.Log
    ) -> None:
        database.execute("create table t (id int primary key, scan oid)")
        oid = database.value("select lo_from_bytea(0, 'the first content'::bytea)::int8")
        database.execute("insert into t values (1, %s)", [oid])
        capture(database, log)
        database.execute("select lo_put(%s::int8::oid, 0, 'another content'::bytea)", [oid])
        database.execute("insert into t values (2, %s)", [oid])
        database.execute("select lo_unlink(%s::int8::oid)", [oid])
        start = capture(database, log)
        assert told(changes(log, start)) == [(Op.INSERT, 2, {"id": 2, "scan": oid})]
        assert_snapshot_equals_postgres(log, database, "t")
        assert b"content" not in (log.path / "data.mdb").read_bytes()


class TestNames:
    def test_schemas_tables_columns_and_types_of_any_name(
        self, database: Database, log: eventlog.Log
    ) -> None:
        execute = database.connection.execute
        for name in ODD:
            table, kind = sql.Identifier(name, name), sql.Identifier(name, kind_of(name))
            execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
            execute(sql.SQL("create type {} as enum ({})").format(kind, sql.Literal(name)))
            create = sql.SQL("create table {} ({} int primary key, {} {} default {}, {} text[])")
            first, second, third = map(sql.Identifier, columns_of(name))
            execute(create.format(table, first, second, kind, sql.Literal(name), third))
        insert = sql.SQL("insert into {} values ({}, default, array[{}])")
        tables = [f"{quoted(name)}.{quoted(name)}" for name in ODD]
        for number in (1, 2):
            for name in ODD:
                table = sql.Identifier(name, name)
                execute(insert.format(table, number, sql.Literal(name)))
            capture(database, log, *tables)
        for name, table in zip(ODD, tables, strict=True):
            rows = [
                dict(zip(columns_of(name), (number, name, [name]), strict=True))
                for number in (1, 2)
            ]
            found = list(log.stream("shop").read(table=table))
            assert {change.table for change in found} == {f"{name}.{name}"}
            assert [c.row for c in found if c.op in (Op.READ, Op.INSERT)] == rows
            assert log.snapshot("shop").table(table).to_arrow().to_pylist() == rows
        stored = [v["types"] for _, v in log.engine.schemas("shop")]
        enums = {(t["namespace"], t["name"]) for types in stored for t in types if t["kind"] == "e"}
        assert enums == {(name, kind_of(name)) for name in ODD}

    def test_a_database_of_any_name(self, database: Database, log: eventlog.Log) -> None:
        name = f"odd 'name' \\ \"é\" %s {database.name}"
        with psycopg.connect(database.server.dsn, autocommit=True) as admin:
            rename = sql.SQL("alter database {} rename to {}").format
            old, new = sql.Identifier(database.name), sql.Identifier(name)
            admin.execute(rename(old, new))
            try:
                dsn = make_conninfo(database.dsn, dbname=name)
                with psycopg.connect(dsn, autocommit=True) as conn:
                    conn.execute("create table t (id int primary key); insert into t values (1)")
                    source = cdc.Source("shop", dsn, ("public.*",))
                    source.capture(log, until="current")
                    conn.execute("insert into t values (2)")
                    source.capture(log, until="current")
            finally:
                admin.execute(
                    "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
                    " where datname = %s",
                    [name],
                )
                admin.execute(rename(new, old))
        assert log.snapshot("shop").table("public.t").to_arrow()["id"].to_pylist() == [1, 2]
