"""The initial copy equals the tables, row for row, however it is cut, filtered or stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any

import msgpack
import psycopg
import pytest
from psycopg import sql

import eventlog
from cdc.errors import CaptureError, PermissionMissing, ServerError
from cdc.postgres.connection import Connection, connect
from cdc.postgres.copy import chunks
from cdc.postgres.copy.chunks import CopyCursor, Pace
from cdc.postgres.copy.copying import CopyProgress, copy_tables
from cdc.postgres.copy.ranges import Range, Tid
from cdc.postgres.copy.snapshot_reader import Job, Snapshot, SnapshotReader
from cdc.postgres.copy.throttle import Throttle
from cdc.postgres.protocol import plain_socket
from cdc.postgres.protocol.frames import Frames, Run
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.plain_socket import PlainSocket
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import Table
from eventlog.changes.schema import Column, Schema
from eventlog.changes.table_name import TableName
from eventlog.engine import Append, Batch, Plan, SourceUpdate
from tests.fix_capture import until
from tests.fix_postgres import Database

CONTROL, PGOUTPUT, COPY = 1, 3, 4
POSITION = Lsn(0x1_0000)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of some kilobytes, from the first."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(chunks, "BYTES_MAX", 40_000)
    monkeypatch.setattr(chunks, "PAGES_FIRST", 2)


@pytest.fixture(params=["socket", "libpq"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to read rows: as if the answer were encrypted, libpq reads it."""
    if request.param == "libpq":
        monkeypatch.setattr(plain_socket, "_SAYS", b"")


class Copy:
    """Copies tables of a database into a log, as a capture does."""

    def __init__(self, log: eventlog.Log, database: Database) -> None:
        log.engine.create_stream("shop", "captured")
        self.cursors: dict[str, CopyCursor] = {}
        self.stores = 0
        self.progress: list[CopyProgress] = []
        self.rewritten: list[str] = []
        self._log = log
        self._database = database
        self._writer = log.engine.writer("shop")
        self._pending: list[Schema] = []

    def table(self, name: str) -> Table:
        with closing(connect(self._database.dsn)) as conn:
            (table,) = catalog.resolve_tables(conn, [TableName.parse(name)])
        return table

    def job(self, name: str, number: int, where: str | None = None) -> Job:
        table = self.table(name)
        schema = Schema(
            id=number,
            offset=0,
            relation=table.oid,
            namespace=table.schema,
            name=table.name,
            identity="n",
            columns=tuple(
                Column(name=column, type=25, typmod=-1, key=False, attribute=place + 1)
                for place, column in enumerate(table.columns)
            ),
        )
        self._pending.append(schema)
        return Job(table=table, schema=schema, where=where)

    def run(
        self,
        *tables: str | tuple[str, str],
        meanwhile: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> bool:
        """Copy tables, or a table and which of its rows; `meanwhile` comes after the snapshot."""
        jobs = [
            self.job(t, n) if isinstance(t, str) else self.job(t[0], n, t[1])
            for n, t in enumerate(tables)
        ]
        with self.exported() as snapshot:
            meanwhile()
            return copy_tables(
                self._database.dsn,
                snapshot,
                jobs,
                begun=0,
                store=self._store,
                progress=self.progress.append,
                rewritten=lambda job: self.rewritten.append(job.table.name),
                **options,
            )

    @contextmanager
    def exported(self) -> Iterator[Snapshot]:
        with psycopg.connect(self._database.dsn) as holder:
            holder.execute("set transaction isolation level repeatable read")
            row = holder.execute("select pg_export_snapshot()").fetchone()
            assert row is not None
            yield Snapshot(name=row[0], position=POSITION)

    def _store(self, job: Job, batches: list[Batch], cursor: CopyCursor) -> None:
        self.stores += 1
        self.cursors[str(job.table.table)] = cursor
        stored = {name: cursor.to_map() for name, cursor in self.cursors.items()}
        update = SourceUpdate(
            stream="shop",
            writer_epoch=self._writer.epoch,
            state={"codec": PGOUTPUT, "position": int(POSITION), "copies": stored},
            schemas=[(schema.id, schema.to_map()) for schema in self._pending],
        )
        self._pending.clear()
        appends = [Append(stream="shop", batches=batches)] if batches else []
        self._log.engine.commit(Plan(appends=appends, sources=[update]))

    def cursor(self, name: str) -> CopyCursor:
        """How far the log says that the copy of a table is."""
        stored = self._log.engine.source_state("shop")
        assert stored is not None
        return CopyCursor.from_map(stored["copies"][name])

    def records(self, codec: int) -> list[bytes]:
        """The records of one codec, raw, in order."""
        start, stop = self._log.engine.bounds("shop")
        found = []
        for stretch in self._log.engine.scan("shop", start, stop, lambda entry: True):
            if stretch.payload is not None and stretch.payload.codec == codec:
                found += stretch.payload.records(stretch.readable_slots()[0])
        return found

    def lines(self) -> list[bytes]:
        """The rows in the log, as they were copied."""
        return self.records(COPY)

    def controls(self) -> list[tuple[str, str, int | None]]:
        """The other records: what they do, to which table, and their number of rows."""
        found = map(msgpack.unpackb, self.records(CONTROL))
        return [(fields["op"], fields["table"], fields.get("rows")) for fields in found]

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
def copy(log: eventlog.Log, database: Database) -> Iterator[Copy]:
    made = Copy(log, database)
    yield made
    made.close()
    assert_nothing_left(database)


def assert_nothing_left(database: Database) -> None:
    """No thread of a copy runs any more, and no connection is there but the test's own."""
    assert [t.name for t in threading.enumerate() if t.name.startswith("copy")] == []
    others = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and application_name = 'eventlog'"
    )
    until(lambda: database.value(others) == 0, "the end of the copy's connections")


def lines_of(database: Database, table: Table, where: str = "true") -> list[bytes]:
    """What Postgres itself writes for a table, leaf after leaf."""
    found = []
    with closing(connect(database.dsn)) as conn:
        for leaf in chunks.leaves(conn, table):
            rng = Range(leaf=leaf, low=Tid(0, 0), high=None)
            copy = chunks.statement(rng, table.columns, where)
            with conn.cursor().copy(copy) as rows:
                found += [bytes(row) for row in rows]
    return found


ITEMS = """
create table items (id int primary key, name text, price numeric, tags text[], note text);
insert into items
select i, 'item ' || i, i / 7.0, array['a', E'b\\t' || i],
       case when i % 3 = 0 then E'two\\nlines' end
from generate_series(1, 60000) i;
delete from items where id % 1000 < 300;
"""


@pytest.mark.usefixtures("small_chunks")
def test_a_copy_of_hundreds_of_chunks_equals_the_table_row_for_row(
    copy: Copy, database: Database
) -> None:
    database.execute(ITEMS)
    expected = lines_of(database, copy.table("public.items"))

    def change() -> None:
        database.execute("update items set name = 'changed' where id % 2 = 0")
        database.execute("delete from items where id > 30000")
        database.execute("insert into items select i, 'new' from generate_series(70000, 80000) i")

    assert copy.run("public.items", workers=3, meanwhile=change)
    assert copy.lines() == expected
    assert copy.stores > 100
    assert copy.controls() == [
        ("copy_begin", "items", None),
        ("copy_end", "items", len(expected)),
    ]
    assert copy.cursor("public.items").done
    last = copy.progress[-1]
    assert (last.done, last.rows, last.bytes) == (True, len(expected), sum(map(len, expected)))
    assert (last.rows_estimate, last.bytes_estimate) == (last.rows, last.bytes)
    assert all(p.rows_estimate is not None for p in copy.progress)


@pytest.mark.usefixtures("small_chunks", "way")
def test_many_tables_of_every_shape_come_one_after_the_other(
    copy: Copy, database: Database
) -> None:
    database.execute("""
        create table empty (id int primary key);
        create table "no columns" ();
        insert into "no columns" select from generate_series(1, 5000);
        create schema "Odd ""x";
        create table "Odd ""x"."T%s {a}" ("a b" int, "c%" text, "select" bool, "Zoë" text);
        insert into "Odd ""x"."T%s {a}"
        select i, '100 %', i % 2 = 0, 'ë' || i from generate_series(1, 3000) i;
        create table parts (a int, b text, c int) partition by range (a);
        create table first (c int, gone int, b text, a int);
        alter table first drop column gone;
        alter table parts attach partition first for values from (0) to (1000);
        create table second partition of parts for values from (1000) to (6000)
            partition by hash (b);
        create table "second a" partition of second for values with (modulus 2, remainder 0);
        create table "second b" partition of second for values with (modulus 2, remainder 1);
        create table nothing partition of parts for values from (6000) to (7000);
        insert into parts select i, 'row ' || i, -i from generate_series(0, 5999) i;
        create table base (id int, name text);
        create table child (more text) inherits (base);
        insert into base select i, 'base' from generate_series(1, 100) i;
        insert into child select i, 'child', 'more' from generate_series(1, 100) i;
        create table bare (a int) partition by list (a);
    """)
    names = [
        "public.empty",
        'public."no columns"',
        '"Odd ""x"."T%s {a}"',
        "public.parts",
        "public.base",
        "public.bare",
    ]
    expected = {name: lines_of(database, copy.table(name)) for name in names}
    assert len(expected["public.parts"]) == 6000
    assert len(expected["public.base"]) == 100
    assert copy.run(*names)
    assert copy.lines() == [line for name in names for line in expected[name]]
    shown = [str(copy.table(name).table) for name in names]
    ends = [c for c in copy.controls() if c[0] == "copy_end"]
    assert [rows for _, _, rows in ends] == [len(expected[name]) for name in names]
    assert len(copy.controls()) == 2 * len(names)
    assert all(copy.cursor(name).done for name in shown)


@pytest.mark.usefixtures("small_chunks", "way")
def test_rows_that_are_too_wide_for_a_chunk_come_in_smaller_ranges(
    copy: Copy, database: Database
) -> None:
    # Stored out of line, a page has a hundred of them: megabytes.
    database.execute("""
        create table wide (id int, small text, large text);
        insert into wide select i, 'x', case i % 4 when 0 then repeat('ab' || i, 20000)
            when 1 then repeat('c' || i, 3000) else i::text end from generate_series(1, 300) i;
        insert into wide select i, repeat('y', 500), null from generate_series(301, 2000) i;
    """)
    expected = lines_of(database, copy.table("public.wide"))
    assert max(map(len, expected)) > 2 * chunks.BYTES_MAX
    assert copy.run("public.wide")
    assert copy.lines() == expected


@pytest.mark.usefixtures("small_chunks", "way")
def test_rows_larger_than_a_chunk_are_held_one_at_a_time(
    copy: Copy, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones are read ahead; these could fill the memory."""
    database.execute(
        "create table wide (id int, body text); alter table wide alter body set storage external;"
        "insert into wide select i, case when i % 50 = 7 then repeat('x', 700000) end"
        " from generate_series(1, 400) i"
    )
    events: list[str] = []
    read, store = SnapshotReader.read, Copy._store

    def watched_read(reader: SnapshotReader, job: Job, rng: Range, **how: bool) -> Any:
        future = read(reader, job, rng, **how)

        def came(done: Future[Run | None]) -> None:
            lines = None if done.cancelled() else done.result()
            if lines is not None and len(lines.data) > 700_000:
                events.append("large")

        future.add_done_callback(came)
        return future

    def watched_store(stored: Copy, job: Job, batches: list[Batch], cursor: CopyCursor) -> None:
        store(stored, job, batches, cursor)
        if any(batch.body.size > 700_000 for batch in batches):
            events.append("stored")

    monkeypatch.setattr(SnapshotReader, "read", watched_read)
    monkeypatch.setattr(Copy, "_store", watched_store)
    assert copy.run("public.wide", workers=3)
    assert events == ["large", "stored"] * 8
    assert copy.lines() == lines_of(database, copy.table("public.wide"))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("stores", [1, 7, 40])
def test_a_stop_ends_the_copy_and_the_cursor_tells_which_rows_are_in_the_log(
    copy: Copy, database: Database, stores: int
) -> None:
    database.execute("create table first (id int); insert into first values (1)")
    database.execute(ITEMS)
    names = ("public.first", "public.items")
    first, items = (copy.table(name) for name in names)
    expected = lines_of(database, items)
    assert not copy.run(*names, stopped=lambda: copy.stores >= stores)
    assert copy.stores == stores
    assert copy.cursor("public.first").done
    lines = copy.lines()
    assert lines[:1] == lines_of(database, first)
    if stores == 1:
        assert "public.items" not in copy.cursors
        return
    cursor = copy.cursor("public.items")
    assert not cursor.done
    before = f"ctid < '({cursor.page},{cursor.item})'"
    assert lines[1:] == lines_of(database, items, before) == expected[: cursor.rows]
    # The rest of the rows is what the cursor's next ranges hold, and no other.
    with closing(connect(database.dsn)) as conn:
        rest = list(_rest(conn, items, cursor))
    assert b"".join([*lines[1:], *rest]) == b"".join(expected)


def _rest(conn: Connection, table: Table, cursor: CopyCursor) -> Iterator[bytes]:
    leaves = chunks.leaves(conn, table)
    assert cursor.continues(leaves)
    pace = Pace()
    while not cursor.done:
        rng = cursor.range(leaves, pages=pace.pages)
        run = chunks.fetch(conn, chunks.statement(rng, table.columns, None), bytes_max=None)
        assert run is not None
        pace.saw(rng.pages, len(run.data))
        cursor = cursor.after(rng, rows=len(run))
        yield run.data


def test_a_stop_does_not_wait_for_who_holds_the_table(copy: Copy, database: Database) -> None:
    database.execute("create table items (id int); insert into items values (1)")
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    with psycopg.connect(database.dsn) as other:

        def lock() -> None:
            other.execute("lock table items in access exclusive mode")

        def waiting() -> bool:
            return bool(database.value(waits))

        assert not copy.run("public.items", meanwhile=lock, stopped=waiting)
        assert_nothing_left(database)
    assert copy.stores == 0


@pytest.mark.usefixtures("small_chunks")
def test_only_the_rows_that_pass_the_filter_are_copied(copy: Copy, database: Database) -> None:
    database.execute(ITEMS)
    database.execute("create index on items (price)")
    where = "(price > 1000) OR (name = 'item 555')"
    expected = lines_of(database, copy.table("public.items"), where)
    assert copy.run(("public.items", where))
    assert copy.lines() == expected
    assert 0 < len(expected) < 60_000


@pytest.mark.usefixtures("small_chunks", "way")
def test_what_fails_in_a_worker_ends_the_copy_with_that_error(
    copy: Copy, database: Database
) -> None:
    database.execute(ITEMS)
    with pytest.raises(ServerError, match=r"copying public\.items: division by zero") as failure:
        copy.run(("public.items", "1 / (id - 20555) is not null"))
    assert failure.value.sqlstate == "22012"
    cursor = copy.cursor("public.items")
    assert 0 < cursor.rows == len(copy.lines())


def test_a_server_that_goes_away_ends_the_copy(copy: Copy, database: Database) -> None:
    database.execute(ITEMS)
    end = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name = 'eventlog'"
    )
    with pytest.raises(CaptureError):
        copy.run("public.items", stopped=lambda: bool(database.fetch(end)) and False)


def test_a_failed_commit_ends_the_copy(copy: Copy, database: Database) -> None:
    database.execute(ITEMS)

    def fail(job: Job, batches: list[Batch], cursor: CopyCursor) -> None:
        raise OSError("the disk is on fire")

    job = copy.job("public.items", 0)
    with copy.exported() as snapshot, pytest.raises(OSError, match="on fire"):
        copy_tables(database.dsn, snapshot, [job, job], begun=0, store=fail)


@pytest.mark.parametrize(
    "change",
    [
        "alter table b alter id type int using id::int",
        "truncate b",
        "alter table b rename id to x; alter table b rename note to id;"
        "alter table b rename x to note",
        "alter table b drop note; alter table b add note text",
    ],
)
def test_a_table_altered_after_the_snapshot_is_told_and_not_copied(
    copy: Copy, database: Database, change: str
) -> None:
    database.execute("create table a (id int); insert into a select generate_series(1, 9)")
    database.execute("create table b (id text, note text); insert into b values ('1', 'n')")
    assert copy.run("public.a", "public.b", meanwhile=lambda: database.execute(change))
    assert copy.rewritten == ["b"]
    assert copy.lines() == [b"%d\n" % i for i in range(1, 10)]


@pytest.mark.parametrize(
    "change",
    [
        'alter table b rename to "B ""new"""',
        'create schema "Else where"; alter table b set schema "Else where"',
        "alter table a rename to c; alter table b rename to a; alter table c rename to b",
        "alter table b rename to c; create table b (id int); insert into b values (77)",
    ],
)
def test_a_table_renamed_after_the_snapshot_is_copied_and_no_namesake_of_it(
    copy: Copy, database: Database, change: str
) -> None:
    for name, first in (("a", 1), ("b", 101)):
        database.execute(f"create table {name} (id int)")
        database.execute(f"insert into {name} select generate_series({first}, {first + 5000})")
    assert copy.run("public.a", "public.b", meanwhile=lambda: database.execute(change))
    assert copy.rewritten == []
    numbers = [*range(1, 5002), *range(101, 5102)]
    assert copy.lines() == [b"%d\n" % number for number in numbers]


@pytest.mark.usefixtures("small_chunks")
def test_the_files_are_not_rewritten_while_they_are_copied(copy: Copy, database: Database) -> None:
    database.execute(ITEMS)
    expected = lines_of(database, copy.table("public.items"))

    def rewrite(progress: CopyProgress) -> None:
        if progress.done:
            return
        database.execute("set lock_timeout = '1ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            database.execute("vacuum full items")

    job = copy.job("public.items", 0)
    with copy.exported() as snapshot:
        assert copy_tables(
            database.dsn, snapshot, [job], begun=0, store=copy._store, progress=rewrite
        )
    assert copy.lines() == expected


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("change", ["alter table items add more int", "reindex index items_pkey"])
def test_a_change_that_waits_for_the_copy_does_not_stop_it(
    copy: Copy, database: Database, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(ITEMS)
    expected = lines_of(database, copy.table("public.items"))
    blocked = "select count(*) from pg_locks where not granted"

    def alter() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as other:
            other.execute(change)

    changing = threading.Thread(target=alter)
    read = SnapshotReader.read

    def read_later(reader: SnapshotReader, job: Job, rng: Range, **how: bool) -> Any:
        # One connection has opened the table, and no other touched it.
        if not changing.ident:
            changing.start()
            # What needs the table's index alone does not even wait.
            until(lambda: database.value(blocked) or not changing.is_alive(), "a change")
        return read(reader, job, rng, **how)

    monkeypatch.setattr(SnapshotReader, "read", read_later)
    assert copy.run("public.items", workers=3)
    changing.join()
    assert copy.lines() == expected


@pytest.fixture
def reader(database: Database) -> Iterator[str]:
    """A role that may connect and nothing else."""
    name = f"reader_{database.name}"
    database.execute(f"create role {name} login; grant usage on schema public to {name}")
    yield name
    database.execute(f"drop owned by {name}; drop role {name}")


def test_a_role_that_may_read_some_columns_copies_these(database: Database, reader: str) -> None:
    database.execute(f"{ITEMS} grant select (id, name) on items to {reader}")
    with closing(connect(f"{database.dsn} user={reader}")) as conn:
        (table,) = catalog.resolve_tables(conn, [TableName.parse("public.items")])
        with pytest.raises(
            PermissionMissing, match=r'places of rows \(ctid\) of "public"'
        ) as fault:
            chunks.lock(conn, chunks.leaves(conn, table))
        assert f'GRANT SELECT ON "public"."items" TO "{reader}"' in fault.value.hint
        database.execute(f"grant select (ctid) on items to {reader}")
        conn.execute("begin")
        (leaf,) = chunks.leaves(conn, table)
        chunks.lock(conn, [leaf])
        locked = "select count(*) from pg_locks where relation = %s and mode = 'AccessShareLock'"
        assert database.value(locked, [leaf.oid]) == 1
        rng = Range(leaf=leaf, low=Tid(0, 0), high=None)
        run = chunks.fetch(conn, chunks.statement(rng, ["id", "name"], None), bytes_max=None)
        assert run is not None
        assert len(run) == database.value("select count(*) from items")


def test_fewer_connections_than_asked_for_are_enough(
    copy: Copy, database: Database, reader: str
) -> None:
    database.execute(f"{ITEMS} grant select on items to {reader}")
    database.execute(f"alter role {reader} connection limit 2")
    job = copy.job("public.items", 0)
    dsn = f"{database.dsn} user={reader}"
    with copy.exported() as snapshot:
        assert copy_tables(dsn, snapshot, [job], begun=0, store=copy._store, workers=3)
    assert copy.lines() == lines_of(database, job.table)


def test_partitions_that_a_role_may_not_read_are_named(database: Database, reader: str) -> None:
    database.execute(f"""
        create table parts (a int) partition by range (a);
        create table "first" partition of parts for values from (0) to (10);
        create table "next" partition of parts for values from (10) to (20);
        grant select on parts to {reader};
    """)
    with closing(connect(f"{database.dsn} user={reader}")) as conn:
        (table,) = catalog.resolve_tables(conn, [TableName.parse("public.parts")])
        with pytest.raises(PermissionMissing, match=r'"first", and 1 more partitions'):
            chunks.lock(conn, chunks.leaves(conn, table))


# Parts


def test_ranges_are_read_by_tid_range_scans_whatever_the_planner_is_set_to(
    database: Database,
) -> None:
    database.execute(ITEMS)
    database.execute("create index on items (name)")
    database.execute("create table small (id int primary key, name text)")
    database.execute("insert into small values (1, 'a')")
    database.execute("analyze")
    with closing(connect(f"{database.dsn} options='-c enable_tidscan=off'")) as conn:
        chunks.steer(conn)
        for name, where in [("items", None), ("items", "name = 'item 5'"), ("small", "id = 1")]:
            (table,) = catalog.resolve_tables(conn, [TableName.parse(f"public.{name}")])
            (leaf,) = chunks.leaves(conn, table)
            for high in (Tid(1, 0), None):
                rng = Range(leaf=leaf, low=Tid(0, 0), high=high)
                copy = chunks.statement(rng, table.columns, where).as_string(conn)
                query = copy.removeprefix("COPY (").removesuffix(") TO STDOUT")
                ((plan,), *_) = conn.execute(f"explain {query}".encode()).fetchall()
                assert plan.startswith("Tid Range Scan"), plan


@pytest.mark.usefixtures("way")
def test_a_cancelled_chunk_leaves_the_connection_usable(database: Database) -> None:
    database.execute(ITEMS)
    with closing(connect(database.dsn)) as conn:
        (table,) = catalog.resolve_tables(conn, [TableName.parse("public.items")])
        (leaf,) = chunks.leaves(conn, table)
        rng = Range(leaf=leaf, low=Tid(0, 0), high=None)
        copy = chunks.statement(rng, table.columns, None)
        for size in (0, 1000, 1_000_000):
            with conn.transaction():
                assert chunks.fetch(conn, copy, bytes_max=size) is None
                raise psycopg.Rollback
            assert conn.execute("select 7").fetchone() == (7,)
        run = chunks.fetch(conn, copy, bytes_max=None)
        assert run is not None
        assert run.data == b"".join(lines_of(database, table))


def test_a_row_that_is_too_large_is_given_up_when_it_begins(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[Frames] = []
    read = PlainSocket.read

    def watched(plain: PlainSocket, **how: float) -> Frames | None:
        frames = read(plain, **how)
        whole.extend([] if frames is None else [frames])
        return frames

    monkeypatch.setattr(PlainSocket, "read", watched)
    copy = sql.Composed([sql.SQL("copy (select repeat('x', 40000000)) to stdout")])
    with closing(connect(database.dsn)) as conn:
        assert chunks.fetch(conn, copy, bytes_max=1_000_000) is None
        assert whole == []
        assert conn.execute("select 7").fetchone() == (7,)
        run = chunks.fetch(conn, copy, bytes_max=None)
    assert run is not None and run.data == b"x" * 40_000_000 + b"\n"


def test_the_parts_of_a_range_are_that_range(database18: Database) -> None:
    database18.execute("create table t (id int); insert into t select generate_series(1, 5000)")
    with closing(connect(database18.dsn)) as conn:
        (table,) = catalog.resolve_tables(conn, [TableName.parse("public.t")])
        (leaf,) = chunks.leaves(conn, table)
    waiting = [Range(leaf=leaf, low=Tid(0, 0), high=None)]
    at = Tid(0, 0)
    singles = 0
    while waiting:
        rng = waiting.pop()
        assert rng.low == at
        if rng.single or rng.low >= Tid(leaf.pages, 0):
            singles += rng.single
            if rng.high is None:
                break
            at = rng.high
            continue
        parts = rng.parts()
        assert len(parts) > 1
        assert (parts[0].low, parts[-1].high) == (rng.low, rng.high)
        assert all(one.high == two.low for one, two in pairwise(parts))
        waiting += reversed(parts)
    assert singles >= 1000 * leaf.pages


def test_a_cursor_survives_being_stored() -> None:
    cursor = CopyCursor(
        leaves=(chunks.LeafMark(5, 6, 7), chunks.LeafMark(8, 9, 0)),
        leaf=1,
        page=3,
        item=2,
        rows=12,
        begun=40,
    )
    assert CopyCursor.from_map(cursor.to_map()) == cursor
    assert CopyCursor.from_map({**cursor.to_map(), "more": 1}) == cursor


def test_a_rate_is_kept_by_all_readers_together() -> None:
    now = 100.0
    throttle = Throttle(1000, clock=lambda: now)
    assert throttle.pause_s(0) == 0
    assert throttle.pause_s(500) == 0.5
    assert throttle.pause_s(1500) == 2.0, "two readers pay for both reads"
    now = 101.0
    assert throttle.pause_s(0) == 1.0
    now = 200.0
    assert throttle.pause_s(125) == 0.125, "what was not read before is not made up for"
    assert Throttle(None).pause_s(10**12) == 0


@pytest.mark.usefixtures("small_chunks")
def test_the_copy_tells_its_throttle_of_every_byte(copy: Copy, database: Database) -> None:
    class Meter(Throttle):
        read = 0

        def pause_s(self, size: int) -> float:
            with self._lock:
                self.read += size
            return 0.0

    database.execute(ITEMS)
    meter = Meter(1.0)
    assert copy.run("public.items", throttle=meter)
    assert meter.read >= sum(map(len, copy.lines()))


def test_a_slow_copy_is_stopped_in_its_pause(copy: Copy, database: Database) -> None:
    database.execute(ITEMS)
    assert not copy.run("public.items", throttle=Throttle(1.0), stopped=lambda: copy.stores > 0)
    assert copy.stores == 1
