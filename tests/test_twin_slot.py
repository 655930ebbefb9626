"""The same WAL read twice: by a capture, and by Postgres itself.

`test_decoding` writes down what a second slot holds: the log must have the same transactions in
the same order, each with the same changes. A native subscriber applies them: its tables, the
source's and the log's snapshot must be the same, row for row.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import cdc
import eventlog
from cdc.postgres import streaming
from cdc.postgres.attending import attendant
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.server import EmbeddedServer
from eventlog.changes.change import UNCHANGED, Marker, Op
from eventlog.changes.reading import pieces
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.errors import SnapshotRefused, UnknownTable
from tests.fix_capture import (
    SAME_TEXT,
    captured_in_background,
    confirmed,
    state_of,
    until,
    wal_position,
)
from tests.fix_postgres import SETTINGS, Database
from tests.source_client import Kind
from tests.source_tables import TABLES, SourceTable, fill, rows_of, source_tables
from tests.source_workload import Workload

OWN = "eventlog"
GENERATED = "doubled"
GENERATED_SENT = 180_000
Values = dict[str, str | None]


class Told(NamedTuple):
    """One change as either side tells it; the log's own columns only, old rows without NULLs."""

    op: str
    table: str
    old: Values
    new: Values


class Unit(NamedTuple):
    """A transaction, or a message outside of any (`xid` None), and where it ends or lies."""

    xid: str | None
    position: Lsn
    changes: list[Told]


@pytest.fixture(autouse=True)
def store_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle source's position is stored, and its tables are looked at, more often."""
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)
    monkeypatch.setattr(attendant, "LOOK_S", 0.2)


# What test_decoding tells

_VALUE = re.compile(
    r"""\ (?P<name>"(?:[^"]|"")+"|[^\s"\[]+)
        \[(?P<type>"(?:[^"]|"")+"(?:\[\])?|[^\]"]*(?:\[\])?)\]
        :(?P<value>'(?:[^']|'')*'|[^\s']+)""",
    re.VERBOSE | re.DOTALL,
)
_MESSAGE = re.compile(
    r"message: transactional: ([01]) prefix: (.*?), sz: \d+ content:(.*)", re.DOTALL
)
_TABLE = re.compile(r'(?:"(?:[^"]|"")+"|[^\s".,:]+)\.(?P<name>"(?:[^"]|"")+"|[^\s".,:]+)')


def units_of_slot(database: Database, slot: str) -> list[Unit]:
    """Everything that a slot of test_decoding holds, but the capture's own messages."""
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(SAME_TEXT)
        rows = conn.execute(
            "select lsn::text, xid::text, data from pg_logical_slot_get_changes(%s, null, null)",
            [slot],
        ).fetchall()
        all_sent = conn.info.server_version >= GENERATED_SENT
    units: list[Unit] = []
    opened: list[Told] | None = None
    for lsn, xid, data in rows:
        if data.startswith("BEGIN"):
            opened = []
        elif data.startswith("COMMIT"):
            assert opened is not None
            units.append(Unit(xid, Lsn.parse(lsn), opened))
            opened = None
        elif (message := _MESSAGE.fullmatch(data)) is not None:
            told = _message(message[2], message[1] == "1", message[3])
            if message[2] == OWN:
                continue
            if opened is not None and message[1] == "1":
                opened.append(told)
            else:
                units.append(Unit(None, Lsn.parse(lsn), [told]))
        else:
            assert opened is not None
            opened.extend(_change(data))
    for unit in units:
        for change in unit.changes if not all_sent else ():
            change.new.pop(GENERATED, None)
    return [unit for unit in units if unit.changes]


def _change(line: str) -> Iterator[Told]:
    assert line.startswith("table ")
    at = len("table ")
    tables = []
    while (match := _TABLE.match(line, at)) is not None:
        tables.append(_unquoted(match["name"]))
        at = match.end() + len(", ")
    op, _, rest = line[at:].partition(":")
    if op == "TRUNCATE":
        # Where the root is published, a partition's own truncate is not sent.
        yield from (Told("truncate", _root(t), {}, {}) for t in tables if not _is_leaf(t))
        return
    (table,) = tables
    old: Values = {}
    if rest.startswith(" old-key:"):
        before, _, after = rest.partition(" new-tuple:")
        old, rest = _values(before.removeprefix(" old-key:")), after
    new = _values(rest)
    if op == "DELETE":
        old, new = new, {}
    yield Told(op.lower(), _root(table), _known(old), new)


def _values(text: str) -> Values:
    found: Values = {}
    if text == " (no-tuple-data)":
        return found
    at = 0
    while at < len(text):
        match = _VALUE.match(text, at)
        assert match is not None, text[at : at + 200]
        at = match.end()
        name, value = _unquoted(match["name"]), match["value"]
        if value.startswith("'"):
            found[name] = value[1:-1].replace("''", "'")
        else:
            found[name] = None if value == "null" else value
    return found


def _known(values: Values) -> Values:
    return {name: value for name, value in values.items() if value is not None}


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _is_leaf(table: str) -> bool:
    return table.startswith("parts_") and table != "parts_renamed"


def _root(table: str) -> str:
    """What stands for a table on both sides: a partition does not tell what its root is called."""
    return "parts" if table.startswith("parts_") else table


def _message(prefix: str, transactional: bool, content: str) -> Told:
    return Told("message", "", {}, {"prefix": prefix, "at": str(transactional), "is": content})


# What the log holds


def units_of_log(log: eventlog.Log, start: int) -> list[Unit]:
    """The streamed changes of the log from an offset on, transaction by transaction."""
    history = SchemaHistory(log.engine, "shop")
    units: list[Unit] = []
    for piece in pieces(log.engine, history, start, log.stream("shop").end):
        moments = piece.moments()
        for _, raw in piece.changes():
            moment = moments[raw.slot]
            if raw.op is Op.MESSAGE:
                assert raw.fields is not None
                content = raw.fields["content"].decode()
                told = _message(raw.fields["prefix"], raw.fields["transactional"], content)
            elif raw.op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE):
                assert raw.relation is not None
                schema = piece.schemas[raw.relation]
                old, new = _texts(schema, raw.old), _texts(schema, raw.new)
                told = Told(str(raw.op), _root(schema.name), _known(old), new)
            else:
                continue
            xid = piece.codec.transaction_text(moment.tx)
            position = Lsn(moment.position)
            if xid is not None and units and units[-1][:2] == (xid, position):
                units[-1].changes.append(told)
            else:
                units.append(Unit(xid, position, [told]))
    return units


def _texts(schema: Schema, row: Sequence[Any] | None) -> Values:
    if row is None:
        return {}
    values: Values = {}
    for column, value in zip(schema.columns, row, strict=True):
        if value is UNCHANGED:
            values[column.name] = "unchanged-toast-datum"
        elif not isinstance(value, Marker):
            values[column.name] = None if value is None else value.decode()
    return values


# The comparison


def shop(database: Database) -> cdc.Source:
    return cdc.Source("shop", database.dsn, ["public.*"])


def source_of(database: Database, seed: int) -> None:
    database.execute(TABLES)
    fill(database.connection, seed=seed)


def work(
    database: Database, log: eventlog.Log, seed: int, kinds: Kind, *, rounds: int, steps: int
) -> Workload:
    """Run a workload while a capture comes and goes, and at last until every table has a state."""
    draw = random.Random(seed)
    with Workload(database.dsn, seed=seed, kinds=kinds) as workload:
        for _ in range(rounds):
            if draw.random() < 0.3:
                workload.run(steps)
            with captured_in_background(log, shop(database)) as running:
                workload.run(steps)
                if draw.random() < 0.5:
                    running.reached(wal_position(database))
        workload.show_every_table()
    assert workload.transactions > rounds
    with captured_in_background(log, shop(database)) as running:
        running.reached(wal_position(database))

        def settled() -> bool:
            running.expect_alive()
            with psycopg.connect(database.dsn, autocommit=True) as conn:
                left[:] = refusals(log, source_tables(conn))
                return not left

        left: list[str] = []
        try:
            until(settled, "copies of what no stream shows")
        finally:
            print("\n".join([*left, *(event.text for event in running.events[-20:])]))
    return workload


def assert_same_units(log: eventlog.Log, database: Database, slot: str, start: int) -> int:
    """Compare transaction by transaction; returns how many there are."""
    expected, found = units_of_slot(database, slot), units_of_log(log, start)
    nameless = {"heap", "heap_renamed"}
    for unit in expected:
        # Of a table without identity only inserts are asked for, and it has no key to tell.
        unit.changes[:] = [
            change
            for change in unit.changes
            if change.table not in nameless or change.op not in ("update", "delete")
        ]
    expected = [unit for unit in expected if unit.changes]
    for ours, theirs in zip(found, expected, strict=False):
        assert ours == theirs, difference(ours, theirs)
    assert len(found) == len(expected)
    return len(found)


def difference(ours: Unit, theirs: Unit) -> str:
    """What differs first."""
    for mine, other in zip_longest(ours.changes, theirs.changes):
        if mine != other and ours[:2] == theirs[:2]:
            return f"transaction {ours.xid} at {ours.position} has {mine} for {other}"
    return f"{ours[:2]} for {theirs[:2]}"


def refusals(log: eventlog.Log, tables: Sequence[SourceTable]) -> Iterator[str]:
    """Why tables whose updates are captured have no state at the end of the log."""
    for table in tables:
        try:
            if table.identified:
                log.snapshot("shop").table(f"public.{table.name}")
        except (SnapshotRefused, UnknownTable) as error:
            yield str(error)


def assert_snapshots_equal(log: eventlog.Log, database: Database) -> int:
    """Compare every table of the source with the log's snapshot; returns how many rows."""
    count = 0
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(SAME_TEXT)
        snapshot = log.snapshot("shop")
        for table in source_tables(conn):
            if not table.identified:
                continue
            rows = snapshot.table(f"public.{table.name}")
            assert tuple(rows.schema.names) == table.sent, table.name
            texts = rows.to_arrow(cast=dict.fromkeys(table.sent, "text")).to_pylist()
            found = Counter(tuple(row[name] for name in table.sent) for row in texts)
            expected = rows_of(conn, table)
            count += expected.total()
            assert not found - expected, (table.name, list(found - expected)[:3])
            assert not expected - found, (table.name, list(expected - found)[:3])
    return count


def twin(database: Database, plugin: str) -> str:
    """A second slot, that begins here."""
    slot = f"twin_{plugin}_{database.name}"
    try:
        database.execute("select pg_create_logical_replication_slot(%s, %s)", [slot, plugin])
    except psycopg.errors.UndefinedFile:
        pytest.skip(f"this server has no {plugin}: install its contrib modules")
    return slot


def compare_with_test_decoding(
    database: Database, log: eventlog.Log, seed: int, kinds: Kind, *, rounds: int, steps: int
) -> None:
    source_of(database, seed)
    shop(database).capture(log, until="current")
    start = log.stream("shop").end
    slot = twin(database, "test_decoding")
    work(database, log, seed, kinds, rounds=rounds, steps=steps)
    assert assert_same_units(log, database, slot, start) > rounds
    assert assert_snapshots_equal(log, database) > 0


@contextmanager
def subscriber(
    database: Database, seed: int, slot: str, publications: Sequence[str]
) -> Iterator[Database]:
    """A database on a server of its own that subscribes to what the capture's publications send.

    Apply workers crash when they are told of an abort of what was never streamed to them, and all
    sessions of their server with them; they go on where they were, and may crash there for ever.
    No such abort is told where nothing was spilled: what sends to them has the memory for it.
    """
    settings = {**SETTINGS, "wal_retrieve_retry_interval": "100ms"}
    with (
        EmbeddedServer.start(bindir=database.server.bindir, settings=settings) as server,
        closing((second := Database(server)).connection),
    ):
        source_of(second, seed)
        if second.connection.info.server_version >= GENERATED_SENT:
            second.execute(f"alter table computed alter {GENERATED} drop expression")
        # The role outlives the test: one for all.
        database.execute(
            "do $$ begin create role twin_sender superuser login;"
            " exception when duplicate_object then null; end $$;"
            "alter role twin_sender set logical_decoding_work_mem = '1GB'"
        )
        sender = make_conninfo(database.dsn, user="twin_sender")
        connection = sender.replace("'", "''")
        second.execute(
            f"create subscription twin connection '{connection}'"
            f" publication {', '.join(publications)}"
            f" with (create_slot = false, slot_name = '{slot}',"
            " copy_data = false, synchronous_commit = local, streaming = off)"
        )
        yield second


def compare_with_a_subscriber(
    database: Database, log: eventlog.Log, seed: int, *, rounds: int, steps: int
) -> None:
    source_of(database, seed)
    shop(database).capture(log, until="current")
    slot = twin(database, "pgoutput")
    with subscriber(database, seed, slot, state_of(log).publications) as second:
        work(database, log, seed, Kind.DML, rounds=rounds, steps=steps)
        position = wal_position(database)
        until(lambda: confirmed(database, slot) >= position, "the subscriber")
        assert assert_snapshots_equal(log, database) > 0
        with until(lambda: reached(second), "the subscriber's server") as there:
            there.execute(SAME_TEXT)
            database.execute(SAME_TEXT)
            for table in source_tables(database.connection):
                theirs = rows_of(there, table)
                if table.name == "heap":
                    ours = log.snapshot("shop").table("public.heap", as_inserts=True)
                    texts = ours.to_arrow(cast={"a": "text"}).to_pylist()
                    assert Counter((row["a"], row["b"]) for row in texts) == theirs
                else:
                    assert rows_of(database.connection, table) == theirs


def reached(database: Database) -> psycopg.Connection[Any] | None:
    """A connection; None where its server is on its way back from a crash."""
    try:
        return psycopg.connect(database.dsn, autocommit=True)
    except psycopg.OperationalError:
        return None


def test_the_log_has_the_transactions_of_test_decoding(
    database: Database, log: eventlog.Log
) -> None:
    compare_with_test_decoding(database, log, 1, Kind.DML, rounds=2, steps=250)


def test_definitions_that_change_in_mid_stream_leave_every_record_its_own_columns(
    database: Database, log: eventlog.Log
) -> None:
    compare_with_test_decoding(database, log, 2, Kind.DML | Kind.DDL, rounds=2, steps=250)


def compare_in_the_end(
    database: Database, log: eventlog.Log, seed: int, *, rounds: int, steps: int
) -> None:
    source_of(database, seed)
    shop(database).capture(log, until="current")
    work(database, log, seed, Kind.ALL, rounds=rounds, steps=steps)
    assert assert_snapshots_equal(log, database) > 0


def test_whatever_was_done_to_the_tables_the_log_has_them_in_the_end(
    database: Database, log: eventlog.Log
) -> None:
    compare_in_the_end(database, log, 3, rounds=2, steps=250)


def test_the_snapshot_is_what_a_native_subscriber_has(
    database: Database, log: eventlog.Log
) -> None:
    compare_with_a_subscriber(database, log, 1, rounds=2, steps=250)


def test_an_abort_of_what_was_never_streamed_is_passed_over(
    database: Database, log: eventlog.Log
) -> None:
    # Servers tell of it where they come late to the end of a transaction that they spilled.
    database.execute("create table t (id int primary key, v text)")
    rows = "insert into t select g, repeat('x', 100) from generate_series({}, {}) g"
    with captured_in_background(log, shop(database)) as running:
        running.saw("streaming")
        pid = database.value(
            "select active_pid from pg_replication_slots where slot_name = 'eventlog_shop'"
        )
        with psycopg.connect(database.dsn, autocommit=True) as client:
            client.execute("begin")
            client.execute(rows.format(1, 3_000))
            client.execute("savepoint s")
            running.reached(wal_position(database))
            os.kill(pid, signal.SIGSTOP)
            try:
                client.execute(rows.format(3_001, 6_000))
                client.execute("rollback")
                database.execute("insert into t values (0, 'after')")
            finally:
                os.kill(pid, signal.SIGCONT)
        running.reached(wal_position(database))
    rows_left = log.snapshot("shop").table("public.t").to_arrow().to_pylist()
    assert rows_left == [{"id": 0, "v": "after"}]


@contextmanager
def fresh_log(database: Database, log_dir: Path) -> Iterator[tuple[Database, eventlog.Log]]:
    """Another database of the same server, and a log that must be sound at the end."""
    fresh = Database(database.server)
    try:
        log_dir.parent.mkdir(exist_ok=True)
        with eventlog.open(log_dir, create=True) as log:
            yield fresh, log
            assert log.check() == []
    finally:
        fresh.drop()


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_many_seeds_agree_with_test_decoding(database: Database, log_dir: Path) -> None:
    first = random.randrange(1_000_000)
    for seed in range(first, first + 25):
        with fresh_log(database, log_dir / str(seed)) as (fresh, log):
            kinds = Kind.DML | Kind.DDL if seed % 2 else Kind.DML
            compare_with_test_decoding(fresh, log, seed, kinds, rounds=6, steps=400)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_many_seeds_are_in_the_log_in_the_end(database: Database, log_dir: Path) -> None:
    first = random.randrange(1_000_000)
    for seed in range(first, first + 10):
        with fresh_log(database, log_dir / str(seed)) as (fresh, log):
            compare_in_the_end(fresh, log, seed, rounds=6, steps=400)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_many_seeds_agree_with_a_subscriber(database: Database, log_dir: Path) -> None:
    first = random.randrange(1_000_000)
    for seed in range(first, first + 10):
        with fresh_log(database, log_dir / str(seed)) as (fresh, log):
            compare_with_a_subscriber(fresh, log, seed, rounds=6, steps=400)
