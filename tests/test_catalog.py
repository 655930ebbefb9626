"""What the catalog tells, the publications made from it, and the slots."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cdc import errors
from cdc.postgres.connection import Connection, connect, connect_replication
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.publishing import publication, slot
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.relation import describe_relation
from cdc.postgres.schema.table_spec import TableSpec
from cdc.postgres.server import EmbeddedServer
from eventlog.changes.table_name import TableName
from eventlog.errors import UsageError
from tests.fix_postgres import SETTINGS, WHEEL, Database, bindir

TABLES = """
create schema app;
create table keyed (id int primary key, note text);
create table full_identity (note text);
alter table full_identity replica identity full;
create table by_index (id int not null, note text);
create unique index by_index_id on by_index (id);
alter table by_index replica identity using index by_index_id;
create table keyless (note text);
create table nothing (id int primary key);
alter table nothing replica identity nothing;
create table deferred (id int primary key deferrable initially deferred);
create table app."Mixed Case" (id int primary key, "a""b" text);
create unlogged table fleeting (id int primary key);
create view peek as select * from keyed;
create table parted (id int, at date, primary key (id, at)) partition by range (at);
create table parted_2025 partition of parted for values from ('2025-01-01') to ('2026-01-01');
create table parted_2026 partition of parted for values from ('2026-01-01') to ('2027-01-01')
    partition by list (id);
create table parted_2026_1 partition of parted_2026 for values in (1);
create table loose (id int) partition by list (id);
create table loose_1 partition of loose for values in (1);
"""


@pytest.fixture
def conn(database: Database) -> Iterator[Connection]:
    with connect(database.dsn) as ordinary:
        yield ordinary


@pytest.fixture
def replication(database: Database) -> Iterator[Connection]:
    with connect_replication(database.dsn) as walsender:
        yield walsender


def resolve(conn: Connection, *names: str) -> list[Table]:
    return catalog.resolve_tables(conn, [TableName.parse(name) for name in names])


def shown(tables: list[Table] | tuple[Table, ...]) -> list[str]:
    return [str(table.table) for table in tables]


@pytest.fixture
def plain(database: Database) -> Iterator[str]:
    """The name of a role of this test alone that owns nothing and may do nothing."""
    name = f"plain_{database.name}"
    database.execute(f"create role {name} login")
    yield name
    database.execute(f"drop owned by {name}")
    database.execute(f"drop role {name}")


class TestServer:
    def test_identity_is_the_servers_own(self, database: Database, replication: Connection) -> None:
        found = catalog.identify(replication)
        assert found.system_id == database.value(
            "select system_identifier from pg_control_system()"
        )
        assert found.timeline == 1
        assert (
            0 < found.wal_position <= Lsn.parse(database.value("select pg_current_wal_lsn()::text"))
        )
        assert catalog.timeline_history(replication, 1) == []

    def test_timeline_history_names_each_switch(self) -> None:
        with EmbeddedServer.start(bindir=bindir(WHEEL), settings=SETTINGS) as server:
            server.stop()
            (server.data / "recovery.signal").touch()
            # No hot standby: nobody gets in before recovery has ended and the timeline switched.
            server.restart(settings={"restore_command": "false", "hot_standby": "off"})
            with connect_replication(server.dsn) as replication:
                found = catalog.identify(replication)
                history = catalog.timeline_history(replication, found.timeline)
            assert found.timeline == 2
            assert [switch.timeline for switch in history] == [1]
            assert 0 < history[0].end <= found.wal_position

    def test_server_without_logical_wal_is_refused(self) -> None:
        settings = {**SETTINGS, "wal_level": "replica"}
        with EmbeddedServer.start(bindir=bindir(WHEEL), settings=settings) as server:
            with (
                connect(server.dsn) as conn,
                pytest.raises(errors.ServerNotReady, match=r"wal_level.*'replica'") as caught,
            ):
                catalog.require_capturable(conn)
            assert "ALTER SYSTEM SET wal_level = 'logical'" in caught.value.hint
            with (
                connect_replication(server.dsn) as replication,
                pytest.raises(errors.ServerNotReady, match="cannot make a logical slot") as caught,
            ):
                slot.create(replication, "s")
            assert "wal_level" in caught.value.hint

    def test_ready_server_is_let_pass(self, conn: Connection) -> None:
        catalog.require_capturable(conn)

    def test_too_old_a_server_is_refused(
        self, conn: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catalog, "server_version", lambda conn: 130_022)
        with pytest.raises(errors.UnsupportedServer, match="PostgreSQL 13, and 14 is the oldest"):
            catalog.require_capturable(conn)


class TestNames:
    def test_names_and_patterns_mean_tables_once_each(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(TABLES)
        assert shown(resolve(conn, "keyed", "public.keyed", '*."Mixed Case"')) == [
            'app."Mixed Case"',
            "public.keyed",
        ]
        everything = shown(resolve(conn, "*.*"))
        assert everything == [
            'app."Mixed Case"',
            "public.by_index",
            "public.deferred",
            "public.full_identity",
            "public.keyed",
            "public.keyless",
            "public.loose",
            "public.nothing",
            "public.parted",
        ]
        assert shown(resolve(conn, "app.*")) == ['app."Mixed Case"']

    def test_a_table_named_by_the_sign_for_any_is_one_table(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute('create table "*" (id int primary key); create table x (id int)')
        assert shown(resolve(conn, 'public."*"')) == ['public."*"']
        assert shown(resolve(conn, "public.*")) == ['public."*"', "public.x"]
        (star,) = catalog.resolve_tables(conn, [TableSpec.parse('public."*"(id)')])
        assert not star.table.is_pattern
        for text in ('public."*"', "public.*", '"*".x', "*.x", '*."*"'):
            assert str(TableName.parse(text)) == text
            assert TableName.parse(text).is_pattern == ("*" in text.replace('"*"', ""))

    def test_what_a_pattern_leaves_out_is_told_with_reasons(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(TABLES + "create materialized view kept as select 1 as one;")
        conn.execute("create temp table gone (id int)")
        left = catalog.passed_over(conn, [TableName.parse("public.*")])
        assert {(r.name, r.reason) for r in left} == {
            ("fleeting", "is an unlogged table"),
            ("kept", "is a materialized view"),
            ("peek", "is a view"),
        }

    def test_partitions_are_their_root_unless_named_without_it(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(TABLES)
        assert shown(resolve(conn, "parted_2026_1")) == ["public.parted_2026_1"]
        assert shown(resolve(conn, "parted", "parted_2026_1")) == ["public.parted"]
        assert shown(resolve(conn, "parted_2026", "parted_2026_1")) == ["public.parted_2026"]

    def test_key_and_identity_tell_whether_updates_pass(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(TABLES)
        database.execute("insert into keyed values (1, 'a'); update keyed set note = 'b'")
        found = {t.name: (t.identity, t.has_key, t.updatable) for t in resolve(conn, "*.*")}
        assert found == {
            "Mixed Case": ("d", True, True),
            "by_index": ("i", True, True),
            "deferred": ("d", False, False),
            "full_identity": ("f", False, True),
            "keyed": ("d", True, True),
            "keyless": ("d", False, False),
            "loose": ("d", False, False),
            "nothing": ("n", False, False),
            "parted": ("d", True, True),
        }
        # The oracle: with all of them published for updates, the server refuses the same ones.
        database.execute("create publication everything for all tables")
        database.execute(
            "insert into parted values (1, '2026-02-01'); insert into loose values (1)"
        )
        for table in resolve(conn, "*.*"):
            passes = True
            try:
                conn.execute(psycopg.sql.SQL("delete from {}").format(table.identifier))
            except psycopg.errors.ObjectNotInPrerequisiteState:
                passes = False
            assert passes == table.updatable, table

    def test_root_with_one_partition_that_lacks_identity_is_not_updatable(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(TABLES + "alter table parted_2026_1 replica identity nothing;")
        (table,) = resolve(conn, "parted")
        assert table.has_key and not table.updatable

    def test_rows_include_partitions(self, database: Database, conn: Connection) -> None:
        database.execute(TABLES)
        (before,) = resolve(conn, "parted")
        database.execute(
            "insert into parted select n, '2025-01-01' from generate_series(1, 2000) n;"
            "insert into parted select 1, date '2026-01-01' + n from generate_series(1, 100) n;"
        )
        database.execute("analyze")
        (after,) = resolve(conn, "parted")
        assert before.rows_estimate is None
        assert after.rows_estimate == 2100

    def test_columns_leave_out_dropped_ones_and_generated_ones_before_18(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(
            "create table t (a int primary key, b int, c int generated always as (a + 1) stored,"
            " d int); alter table t drop column b"
        )
        (table,) = resolve(conn, "t")
        generated = ("c",) if conn.info.server_version >= 180_000 else ()
        assert table.columns == ("a", *generated, "d")

    @pytest.mark.parametrize(
        ("name", "cause", "hint"),
        [
            ("public.kyed", "there is no table public.kyed", "did you mean public.keyed"),
            ("app.keyed", "there is no table app.keyed", "did you mean public.keyed"),
            ("zzzzzzzzz.qqqqqqqq", "there is no table", "list the tables"),
            ("nowhere.*", "no table matches nowhere.*", "list the tables"),
            ("public.peek", "public.peek is a view", "ordinary tables"),
            ("public.fleeting", "public.fleeting is an unlogged table", "ordinary tables"),
            ("pg_catalog.pg_class", "there is no table pg_catalog.pg_class", "list the tables"),
        ],
    )
    def test_missing_table_is_explained(
        self, database: Database, conn: Connection, name: str, cause: str, hint: str
    ) -> None:
        database.execute(TABLES)
        with pytest.raises(errors.MissingTable) as caught:
            resolve(conn, "keyed", name)
        assert cause in str(caught.value)
        assert hint in caught.value.hint


class TestDescription:
    def test_columns_carry_their_catalog_identity(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(
            """
            create table t (gone int, id int primary key, amount numeric(12, 2),
                            twice int generated always as (id * 2) stored);
            insert into t (id) values (1);
            alter table t drop column gone;
            alter table t add column plain int default 7;
            alter table t add column words text default E'a "b" \\\\ {c}, d';
            alter table t add column list int[] default '{{1,2},{3,4}}';
            alter table t add column empty text default '';
            alter table t add column moment timestamptz default '2026-01-02 03:04:05+05';
            alter table t add column none text;
            """
        )
        oid = database.value("select 't'::regclass::oid::int8")
        found = describe_relation(conn, oid)
        assert (found.schema, found.name, found.identity) == ("public", "t", "d")
        assert [(c.attribute, c.name, c.key, c.generated, c.missing) for c in found.columns] == [
            (2, "id", True, False, None),
            (3, "amount", False, False, None),
            (4, "twice", False, True, None),
            (5, "plain", False, False, "7"),
            (6, "words", False, False, 'a "b" \\ {c}, d'),
            (7, "list", False, False, "{{1,2},{3,4}}"),
            (8, "empty", False, False, ""),
            (9, "moment", False, False, "2026-01-01 22:04:05+00"),
            (10, "none", False, False, None),
        ]
        assert found.columns[1].typmod == (12 << 16 | 2) + 4

    def test_types_come_with_all_that_they_rest_on(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(
            """
            create type mood as enum ('sad', 'ok');
            create domain short as varchar(10);
            create domain moods as mood[];
            create type pair as (a int, b text);
            create table t (one moods, two short[], three pair, four int4range, five name,
                            six point, seven int2vector, eight int4multirange);
            """
        )
        oid = database.value("select 't'::regclass::oid::int8")
        types = describe_relation(conn, oid).types
        by_name = {kind.name: kind for kind in types.values()}
        kinds = {name: kind.kind for name, kind in by_name.items()}
        assert kinds == {
            "moods": "d",
            "_mood": "a",
            "mood": "e",
            "_short": "a",
            "short": "d",
            "varchar": "b",
            "pair": "c",
            "int4range": "r",
            "int4multirange": "m",
            "name": "b",
            "char": "b",
            "point": "b",
            "float8": "b",
            "int2vector": "b",
            "int2": "b",
        }
        assert by_name["moods"].base == by_name["_mood"].id
        assert by_name["_mood"].element == by_name["mood"].id
        assert by_name["short"].base == by_name["varchar"].id
        assert by_name["short"].base_typmod == 14
        assert by_name["name"].element == by_name["point"].element == 0
        assert by_name["mood"].namespace == "public"

    def test_the_primary_key_is_told_whatever_the_replica_identity(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(
            """
            create table plain (a int, b int unique, c int, primary key (c, a) include (b));
            alter table plain replica identity full;
            create table loose (a int primary key deferrable);
            create table p (a int, b int, primary key (b)) partition by list (b);
            create table p1 partition of p for values in (1);
            """
        )
        for table, expected in (("plain", {"a", "c"}), ("loose", set()), ("p", {"b"})):
            oid = database.value(f"select '{table}'::regclass::oid::int8")
            found = describe_relation(conn, oid)
            assert {c.name for c in found.columns if c.primary} == expected
            identity = set() if table == "plain" else expected
            assert {c.name for c in found.columns if c.key} == identity
        database.execute("alter table plain replica identity default")
        oid = database.value("select 'plain'::regclass::oid::int8")
        columns = describe_relation(conn, oid).columns
        assert {c.name for c in columns if c.key} == {"a", "c"}, "not what the index includes"

    def test_fast_defaults_of_a_partitioned_table_are_those_of_its_partitions(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(
            """
            create table p (id int, part int) partition by list (part);
            create table p1 partition of p for values in (1);
            create table p2 partition of p for values in (2) partition by list (id);
            create table p21 partition of p2 for values in (1);
            insert into p values (1, 1), (1, 2);
            alter table p add column plain int;
            alter table p add column seven int default 7;
            alter table p add column gone int;
            alter table p drop column gone;
            """
        )
        oid = database.value("select 'p'::regclass::oid::int8")
        leaves = database.fetch("select oid::int8 from pg_class where relname in ('p1', 'p21')")
        found = describe_relation(conn, oid)
        columns = [(c.name, c.missing, c.missing_known, c.has_default) for c in found.columns]
        assert columns[2:] == [("plain", None, True, False), ("seven", "7", True, True)]
        assert found.storage.keys() == {leaf for (leaf,) in leaves}
        dropped_by = "select xmin::text::int8 from pg_attribute where attrelid = %s and attnum = 5"
        assert found.dropped == {5: database.value(dropped_by, [oid])}
        database.execute("create table p3 partition of p for values in (3)")
        seven = describe_relation(conn, oid).columns[3]
        assert (seven.missing, seven.missing_known) == (None, False), "not of all partitions"

    def test_what_the_publications_send_is_told(self, database: Database, conn: Connection) -> None:
        database.execute("create table t (id int primary key, a int, b int)")
        oid = database.value("select 't'::regclass::oid::int8")
        assert describe_relation(conn, oid).published is None
        database.execute("create publication every for all tables")
        assert describe_relation(conn, oid, ["every"]).published is None
        assert describe_relation(conn, oid, ["every"]).generated_sent is False
        if conn.info.server_version >= 150_000:
            database.execute("create publication narrow for table t (id, b)")
            assert describe_relation(conn, oid, ["narrow"]).published == {1, 3}
        if conn.info.server_version >= 180_000:
            database.execute("alter publication every set (publish_generated_columns = stored)")
            assert describe_relation(conn, oid, ["every"]).generated_sent is True

    def test_dropped_relation_is_explained(self, conn: Connection) -> None:
        with pytest.raises(errors.MissingTable, match="not in the catalog any more"):
            describe_relation(conn, 4_000_000_000)


class TestPublications:
    def test_both_are_made_even_empty_and_follow_the_tables(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(TABLES)
        names = publication.ensure_both(conn, "shop", [])
        assert names == ("eventlog_shop", "eventlog__inserts_shop")
        assert [publication.read(conn, name).tables for name in names] == [(), ()]
        publication.ensure_both(conn, "shop", resolve(conn, "*.*"))
        full, inserts = (publication.read(conn, name) for name in names)
        assert full.operations == {"insert", "update", "delete", "truncate"}
        assert inserts.operations == {"insert", "truncate"} and inserts.inserts_only
        assert [t.name for t in full.tables] == [
            "Mixed Case",
            "by_index",
            "full_identity",
            "keyed",
            "parted",
        ]
        assert [t.name for t in inserts.tables] == ["deferred", "keyless", "loose", "nothing"]
        database.execute("alter table keyless replica identity full")
        publication.ensure_both(conn, "shop", resolve(conn, "keyed", "keyless"))
        full, inserts = (publication.read(conn, name) for name in names)
        assert [t.name for t in full.tables] == ["keyed", "keyless"]
        assert inserts.tables == ()

    def test_published_tables_stay_writable(self, database: Database, conn: Connection) -> None:
        database.execute(TABLES)
        publication.ensure_both(conn, "shop", resolve(conn, "*.*"))
        database.execute(
            "insert into keyless values ('x'); update keyless set note = 'y'; delete from keyless;"
            "insert into deferred values (1); delete from deferred; delete from loose"
        )

    def test_dropping_tells_whether_it_was_there(self, conn: Connection) -> None:
        name, other = publication.ensure_both(conn, "p", [])
        assert publication.drop(conn, name)
        assert not publication.drop(conn, name)
        assert publication.drop(conn, other)

    def test_given_publication_is_read_with_columns_and_filters(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute(TABLES)
        database.execute(
            "create publication given for table keyed (id) where (id > 5), by_index"
            " with (publish = 'insert')"
        )
        found = publication.read(conn, "given")
        assert [(t.name, t.columns) for t in found.tables] == [
            ("by_index", ("id", "note")),
            ("keyed", ("id",)),
        ]
        assert list(found.row_filters.values()) == ["(id > 5)"]
        assert found.inserts_only and not found.all_tables and not found.via_partition_root

    def test_publication_that_is_not_there(self, conn: Connection) -> None:
        with pytest.raises(errors.MissingPublication, match="no publication 'nope'") as caught:
            publication.read(conn, "nope")
        assert "\\dRp" in caught.value.hint

    def test_publication_of_that_name_with_other_operations_is_kept(
        self, database: Database, conn: Connection
    ) -> None:
        database.execute("create publication eventlog_shop for all tables")
        with pytest.raises(errors.ServerNotReady, match="is there and differs") as caught:
            publication.ensure_both(conn, "shop", [])
        assert 'DROP PUBLICATION "eventlog_shop"' in caught.value.hint
        assert publication.read(conn, "eventlog_shop").all_tables

    def test_missing_privilege_shows_what_a_dba_would_run(
        self, database: Database, plain: str
    ) -> None:
        database.execute(TABLES)
        with connect(make_conninfo(database.dsn, user=plain)) as conn:
            tables = resolve(conn, "keyed")
            with pytest.raises(errors.PermissionMissing, match="'eventlog_shop': perm") as caught:
                publication.ensure_both(conn, "shop", tables)
            statements = caught.value.hint.partition("runs: ")[2]
            assert statements.startswith('CREATE PUBLICATION "eventlog_shop"')
            assert statements.count("CREATE PUBLICATION") == 2, "a DBA is asked once"
            database.execute(statements)
            publication.ensure_both(conn, "shop", tables)
            assert shown(publication.read(conn, "eventlog_shop").tables) == ["public.keyed"]

    def test_too_long_a_source_name_is_refused(self) -> None:
        with pytest.raises(UsageError, match="above 63 bytes"):
            publication.inserts_publication_name("s" * 50)
        with pytest.raises(UsageError, match="above 63 bytes"):
            slot.slot_name("s" * 60)


class TestSlots:
    def test_snapshot_shows_what_was_before_the_consistent_point(
        self, database: Database, conn: Connection, replication: Connection
    ) -> None:
        database.execute("create table t (id int); insert into t values (1)")
        made = slot.create(replication, f"s_{database.name}")
        database.execute("insert into t values (2)")
        with psycopg.connect(database.dsn) as reader:
            reader.execute("set transaction isolation level repeatable read")
            reader.execute(f"set transaction snapshot '{made.snapshot}'")
            assert reader.execute("select id from t").fetchall() == [(1,)]
        state = slot.inspect(conn, made.name)
        assert state is not None
        assert state.confirmed_flush_lsn == made.consistent_point
        assert (state.plugin, state.database, state.active) == ("pgoutput", database.name, False)
        assert state.wal_status == "reserved" and not state.lost and not state.temporary
        assert state.retained_bytes > 0
        assert slot.require_usable(conn, made.name) == slot.inspect(conn, made.name)

    def test_temporary_slot_ends_with_its_connection(
        self, database: Database, conn: Connection
    ) -> None:
        name = f"s_{database.name}"
        with connect_replication(database.dsn) as replication:
            made = slot.create(replication, name, temporary=True, export=False)
            assert made.snapshot is None
            state = slot.inspect(conn, name)
            assert state is not None and state.temporary and state.active
            with pytest.raises(errors.SlotInUse, match=f"held by pid {state.active_pid}"):
                slot.drop(conn, name)
            with pytest.raises(errors.SlotInUse, match="held by pid"):
                slot.require_usable(conn, name)
            pid = state.active_pid
        database.execute("select pg_terminate_backend(%s, 10000)", [pid])
        assert slot.inspect(conn, name) is None

    def test_dropped_slot_is_missing(
        self, database: Database, conn: Connection, replication: Connection
    ) -> None:
        name = slot.create(replication, f"s_{database.name}").name
        slot.drop(conn, name)
        assert slot.inspect(conn, name) is None
        for attempt in (slot.drop, slot.require_usable):
            with pytest.raises(errors.SlotMissing, match=f"no replication slot '{name}'") as caught:
                attempt(conn, name)
            assert caught.value.hint

    def test_slot_of_that_name_that_is_there(
        self, database: Database, replication: Connection
    ) -> None:
        name = slot.create(replication, f"s_{database.name}").name
        with pytest.raises(errors.SlotExists, match="is there already") as caught:
            slot.create(replication, name)
        assert f"SELECT pg_drop_replication_slot('{name}');" in caught.value.hint

    def test_slot_of_another_plugin_is_refused(self, database: Database, conn: Connection) -> None:
        name = f"s_{database.name}"
        database.execute("select pg_create_physical_replication_slot(%s)", [name])
        try:
            with pytest.raises(errors.ServerNotReady, match="of plugin 'none'"):
                slot.require_usable(conn, name)
        finally:
            slot.drop(conn, name)

    @pytest.mark.parametrize("prepared", [False, True])
    def test_waiting_names_the_transaction_that_blocks(
        self, database: Database, conn: Connection, replication: Connection, prepared: bool
    ) -> None:
        database.execute("create table t (id int)")
        with psycopg.connect(database.dsn) as other:
            other.execute("insert into t values (1)")
            if prepared:
                other.execute(f"prepare transaction 'gid {database.name}'")
                blocker = f"the prepared transaction 'gid {database.name}'"
            else:
                blocker = f"transaction of pid {other.info.backend_pid}, of user 'postgres'"
            with pytest.raises(errors.SlotBlocked) as caught:
                slot.create(replication, f"s_{database.name}", lock_timeout_ms=100)
        assert blocker in str(caught.value)
        assert "waited 0.1 s" in str(caught.value)
        assert caught.value.retry
        assert slot.inspect(conn, f"s_{database.name}") is None

    def test_creation_waits_for_a_transaction_that_ends(
        self, database: Database, replication: Connection
    ) -> None:
        database.execute("create table t (id int)")
        with psycopg.connect(database.dsn) as other:
            other.execute("insert into t values (1)")
            end = threading.Timer(0.3, other.commit)
            end.start()
            made = slot.create(replication, f"s_{database.name}", lock_timeout_ms=60_000)
            end.join()
        assert made.consistent_point > 0

    def test_no_slot_is_free(self) -> None:
        settings = {**SETTINGS, "max_replication_slots": "1"}
        with (
            EmbeddedServer.start(bindir=bindir(WHEEL), settings=settings) as server,
            connect_replication(server.dsn) as replication,
        ):
            slot.create(replication, "one")
            with pytest.raises(errors.ServerNotReady, match="slots of the server are in") as caught:
                slot.create(replication, "two")
            assert "max_replication_slots" in caught.value.hint

    def test_lost_slot_is_told_with_what_is_gone(self) -> None:
        settings = {**SETTINGS, "max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB"}
        with (
            EmbeddedServer.start(bindir=bindir(WHEEL), settings=settings) as server,
            connect(server.dsn) as conn,
        ):
            with connect_replication(server.dsn) as replication:
                point = slot.create(replication, "left").consistent_point
            for _ in range(4):
                conn.execute("select pg_logical_emit_message(true, 'x', 'y')")
                conn.execute("select pg_switch_wal()")
            conn.execute("checkpoint")
            with pytest.raises(errors.SlotLost, match=f"changes since {point} are gone") as caught:
                slot.require_usable(conn, "left")
            assert "max_slot_wal_keep_size" in caught.value.hint
