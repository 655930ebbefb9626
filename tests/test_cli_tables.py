"""`eventlog tables`: what its users see, with and without a capture in another process."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import eventlog
from cdc.commands.tables import tables as tables_command
from cdc.postgres.protocol.lsn import Lsn
from cdc.requests import Fact, FactKind, pending, tell
from eventlog.changes.change import Op
from eventlog.engine import Plan, SourceUpdate
from eventlog.errors import SnapshotRefused
from tests.fix_capture import PATIENCE_S, assert_snapshot_equals_postgres, until
from tests.fix_log import MadeSource, column, insert
from tests.fix_postgres import Database, RunCli, assert_explained
from tests.forked import Forked

TABLES = """
create table a (id int primary key, x text);
insert into a select g, 'a' || g from generate_series(1, 100) g;
create table b (id int primary key, x text);
insert into b select g, repeat('b', 100) || g from generate_series(1, 20000) g;
"""


Answer = tuple[list[Fact], dict[str, Any]]
"""Facts, and what changes in the state with them."""

Joining = tuple["Capturing", Forked]


class Capturing:
    """`eventlog capture` in a process of its own; its events as they come."""

    def __init__(self, run_cli: RunCli, database: Database, log_dir: Path, *args: str) -> None:
        self._database = database
        self._log_dir = log_dir
        self.events: list[dict[str, Any]] = []
        places = ("--dsn", database.dsn, "--log", str(log_dir))
        self.process = run_cli.spawn("capture", "--source", "shop", "--json", *places, *args)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def saw(self, kind: str) -> None:
        """Wait until an event of that kind came."""

        def came() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return any(event["kind"] == kind for event in self.events)

        until(came, f"an event {kind!r}")

    def reached_now(self, log: eventlog.Log) -> None:
        """Wait until everything that is committed by now is in the log, and a message behind it.

        The position of one of our own, without a record, would be stored some seconds later.
        """
        text = self._database.value("select pg_logical_emit_message(true, 'test', '')::text")
        position = int(Lsn.parse(text))

        def stored() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return (log.source("shop") or {}).get("position", 0) >= position

        until(stored, "all that is committed")

    def kill(self) -> None:
        self.process.kill()
        self._reader.join()
        self.process.communicate()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self._reader.join()
        _, said = self.process.communicate()
        assert self.process.returncode == 0, said


@contextmanager
def capturing(
    run_cli: RunCli, database: Database, log_dir: Path, *args: str
) -> Iterator[Capturing]:
    """A capture that streams, until the block's end."""
    running = Capturing(run_cli, database, log_dir, *args)
    try:
        running.saw("streaming")
        yield running
    finally:
        running.end()


@contextmanager
def opened(log_dir: Path) -> Iterator[eventlog.Log]:
    """The log of a capture, sound at the end."""
    with eventlog.open(log_dir) as log:
        yield log
        assert log.check() == []


def listed(run_cli: RunCli, log_dir: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What `tables list` says: of the source, and of each table by name."""
    done = run_cli("tables", "list", "shop", "--log", str(log_dir), "--json")
    assert done.returncode == 0, done
    head, *tables = map(json.loads, done.stdout.splitlines())
    return head, {table["table"]: table for table in tables}


# Where no capture runs: the log alone


@pytest.fixture
def idle(log_dir: Path) -> Iterator[Path]:
    """A log with the source `shop`, which nobody captures now."""
    with eventlog.open(log_dir, create=True) as log:
        source = MadeSource(log, "shop")
        table = source.table("t", column("id", key=True), column("x", hashed=True), relation=7)
        source.commit(insert(table, 1, "a"))
        source.close()
    yield log_dir
    with eventlog.open(log_dir) as log:
        assert log.check() == []


@pytest.mark.parametrize("verb", ["add", "remove", "recopy"])
def test_a_request_is_stored_for_the_next_capture(run_cli: RunCli, idle: Path, verb: str) -> None:
    done = run_cli("tables", verb, "shop", "orders", '"Odd"', "crm.*", "--log", str(idle))
    assert done.returncode == 0, done
    assert done.stdout.splitlines() == [
        f"asked: {verb} public.orders",
        f'asked: {verb} public."Odd"',
        f"asked: {verb} crm.*",
        "no capture of shop runs in this log; the next one does it",
    ]
    with eventlog.open(idle) as log:
        asked = [(request.verb, request.table) for request in pending(log, "shop", 0)]
    assert asked == [(verb, "public.orders"), (verb, 'public."Odd"'), (verb, "crm.*")]
    head, _ = listed(run_cli, idle)
    assert [request["table"] for request in head["waiting"]] == [name for _, name in asked]


def test_programs_get_one_object_a_request(run_cli: RunCli, idle: Path) -> None:
    args = ("--hash", "customers.email", "--hash", "public.customers.phone", "--json")
    done = run_cli("tables", "add", "shop", "customers(id, email)", "--log", str(idle), *args)
    assert json.loads(done.stdout) == {
        "kind": "asked",
        "source": "shop",
        "writer": None,
        "offset": 0,
        "verb": "add",
        "table": "public.customers(id,email)",
        "hash": ["public.customers.email", "public.customers.phone"],
    }
    with eventlog.open(idle) as log:
        (request,) = pending(log, "shop", 0)
    assert request.hash == ("public.customers.email", "public.customers.phone")


def test_the_list_says_what_is_stored_of_each_table(run_cli: RunCli, idle: Path) -> None:
    head, tables = listed(run_cli, idle)
    assert (head["source"], head["writer"], head["waiting"]) == ("shop", None, [])
    table = tables["public.t"]
    assert (table["state"], table["since"], table["rows"]) == ("streaming", 0, None)
    assert (table["columns"], table["hashed"]) == (["id", "x"], ["x"])
    done = run_cli("tables", "list", "shop", "--log", str(idle))
    assert "no capture of it runs in this log" in done.stdout
    assert "public.t  streaming" in done.stdout and "id, x (hashed)" in done.stdout


@pytest.mark.parametrize("verb", ["add", "remove", "recopy", "list"])
def test_an_unknown_source_is_explained(run_cli: RunCli, idle: Path, verb: str) -> None:
    names = () if verb == "list" else ("public.t",)
    done = run_cli("tables", verb, "nope", *names, "--log", str(idle))
    assert_explained(done)
    assert "'nope' was never captured" in done.stderr and "shop" in done.stderr


@pytest.mark.parametrize("wrong", ["a.b.c.d", "shop.public.t", "public.*(id)", "t(id", ""])
def test_what_is_no_table_is_refused_before_anything_is_stored(
    run_cli: RunCli, idle: Path, wrong: str
) -> None:
    done = run_cli("tables", "add", "shop", "public.t", wrong, "--log", str(idle))
    assert_explained(done)
    with eventlog.open(idle) as log:
        assert pending(log, "shop", 0) == []


def test_a_table_that_the_server_has_not_is_told_at_once(
    run_cli: RunCli, idle: Path, database18: Database
) -> None:
    database18.execute("create table orders (id int primary key)")
    args = ("--log", str(idle), "--dsn", database18.dsn)
    done = run_cli("tables", "add", "shop", "public.oders", *args)
    assert_explained(done)
    assert "there is no table public.oders" in done.stderr and "public.orders" in done.stderr
    with eventlog.open(idle) as log:
        assert pending(log, "shop", 0) == []
    assert run_cli("tables", "add", "shop", "public.orders", *args).returncode == 0


# Waiting for a capture, which this process plays


class Played:
    """Answers requests as a capture would: one commit for each of these answers."""

    def __init__(self, log: eventlog.Log, source: MadeSource, *answers: Answer) -> None:
        self._log = log
        self._source = source
        self._answers = answers
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        self._thread.join()
        self._source.close()

    def _play(self) -> None:
        until(lambda: pending(self._log, "shop", 0), "a request")
        for said, state in self._answers:
            time.sleep(0.05)
            stored = {**(self._log.source("shop") or {}), **state}
            epoch = self._log.engine.stream("shop").writer_epoch
            update = SourceUpdate(stream="shop", writer_epoch=epoch, state=stored)
            appends = [tell("shop", said)] if said else []
            self._log.engine.commit(Plan(appends=appends, sources=[update]))
        self._source.close()


def fact(kind: FactKind, **more: Any) -> Fact:
    return Fact(fact=kind, table="public.t", relation=7, request=0, **more)


COPY = {"leaves": [[7, 1, 100]], "leaf": 0, "page": 50, "rows": 5, "begun": 1}
JOINED: Answer = ([fact("joined")], {"requests": 1, "copies": {"7": {}}})
COPYING: Answer = ([fact("copying")], {"copies": {"7": COPY}})
COPIED: Answer = ([fact("copied", rows=10)], {"copies": {}})
REFUSED: Answer = ([fact("refused", why="it is a view", hint="ask for t")], {"requests": 1})
NOTHING: Answer = ([], {"requests": 1})


def asked(log: eventlog.Log, *args: str) -> Result:
    """`tables add shop public.t` in this process, where a terminal is not."""
    return CliRunner().invoke(
        tables_command,
        ["add", "shop", "public.t", "--log", str(log.path), *args],
        env={"EVENTLOG_DSN": ""},
    )


def test_what_happens_is_told_until_the_copy_is_done(log: eventlog.Log, shop: MadeSource) -> None:
    with Played(log, shop, JOINED, COPYING, COPIED):
        done = asked(log)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"process {os.getpid()} does it now")
    assert lines[2] == "public.t is captured"
    assert lines[-1] == "public.t is copied: 10 rows"
    assert done.stderr == ""


def test_a_refusal_ends_with_1_and_the_reason(log: eventlog.Log, shop: MadeSource) -> None:
    with Played(log, shop, REFUSED):
        done = asked(log)
    said = "Error: public.t: it is a view\nHint: ask for t\n"
    assert (done.exit_code, done.stderr) == (1, said)


def test_programs_learn_how_a_request_ended(log: eventlog.Log, shop: MadeSource) -> None:
    with Played(log, shop, JOINED, COPIED):
        done = asked(log, "--json")
    first, last = map(json.loads, done.stdout.splitlines())
    assert (first["kind"], first["writer"]) == ("asked", str(os.getpid()))
    assert (last["kind"], last["offset"], last["why"]) == ("done", 0, None)
    assert [(f["fact"], f["rows"]) for f in last["facts"]] == [("copied", 10)]


def test_a_request_that_changes_nothing_says_so(log: eventlog.Log, shop: MadeSource) -> None:
    with Played(log, shop, NOTHING):
        done = asked(log)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "add public.t: nothing was to be done"


@pytest.mark.parametrize("answers", [(), (JOINED,)])
def test_a_capture_that_ends_meanwhile_leaves_the_rest_to_the_next(
    log: eventlog.Log, shop: MadeSource, answers: tuple[Answer, ...]
) -> None:
    with Played(log, shop, *answers):
        done = asked(log)
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert last == "the capture ended; the next one does it: add public.t"


# While a capture runs in another process


def test_a_table_joins_while_a_capture_runs(
    database: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database.execute(TABLES)
    with (
        capturing(run_cli, database, log_dir, "--table", "public.a") as running,
        opened(log_dir) as log,
    ):
        database.execute("update b set x = 'before' where id = 1; delete from a where id = 1")
        done = run_cli("tables", "add", "shop", "public.b", "--log", str(log_dir))
        assert done.returncode == 0, done
        lines = done.stdout.splitlines()
        assert lines[0] == "asked: add public.b"
        assert f"process {running.process.pid} does it now" in lines[1]
        assert "public.b is copied: 20,000 rows" in lines[-1]
        database.execute("delete from b where id = 2; insert into b values (0, 'after')")
        database.execute("update b set x = x || '!' where id between 100 and 200")
        running.reached_now(log)
        assert_snapshot_equals_postgres(log, database, "a", "b")
        head, tables = listed(run_cli, log_dir)
        assert head["writer"] == str(running.process.pid) and head["waiting"] == []
        assert (tables["public.a"]["rows"], tables["public.a"]["since"]) == (100, 0)
        assert tables["public.a"]["why"] == "the capture began"
        assert tables["public.b"]["state"] == "streaming"
        assert tables["public.b"]["rows"] == 20_000
        assert tables["public.b"]["since"] is not None and tables["public.b"]["copied_at"]


def test_a_table_leaves_while_a_capture_runs(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(TABLES)
    command = ("--table", "public.*")
    with capturing(run_cli, database18, log_dir, *command) as running, opened(log_dir) as log:
        database18.execute("insert into a values (0, 'last')")
        running.reached_now(log)
        complete = log.stream("shop").end
        done = run_cli("tables", "remove", "shop", "public.a", "--log", str(log_dir))
        assert done.returncode == 0, done
        assert done.stdout.splitlines()[-1].startswith("public.a is captured no more")
        database18.execute("insert into a values (-1, 'unseen'); insert into b values (-1, 'seen')")
        running.reached_now(log)
        stream = log.stream("shop")
        after = [(c.table, c.op) for c in stream.read(complete) if c.op is Op.INSERT]
        assert after == [("public.b", Op.INSERT)]
        with pytest.raises(SnapshotRefused):
            log.snapshot("shop").table("public.a")
        assert log.snapshot("shop", at=complete).table("public.a").to_arrow().num_rows == 101
        assert_snapshot_equals_postgres(log, database18, "b")
    head, tables = listed(run_cli, log_dir)
    assert tables["public.a"]["state"] == "left" and head["left_out"] == ["public.a"]
    with capturing(run_cli, database18, log_dir, *command) as running, opened(log_dir) as log:
        database18.execute("insert into a values (-2, 'unseen'); insert into b values (-2, 'seen')")
        running.reached_now(log)
        assert listed(run_cli, log_dir)[1]["public.a"]["state"] == "left"
        assert_snapshot_equals_postgres(log, database18, "b")
        done = run_cli("tables", "add", "shop", "public.a", "--log", str(log_dir))
        assert done.returncode == 0, done
        database18.execute("insert into a values (-3, 'seen again')")
        running.reached_now(log)
        assert_snapshot_equals_postgres(log, database18, "a", "b")


def test_a_table_is_copied_again_on_demand(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(TABLES)
    command = ("--table", "public.*")
    with capturing(run_cli, database18, log_dir, *command) as running, opened(log_dir) as log:
        database18.execute("delete from a where id > 50")
        running.reached_now(log)
        before = log.stream("shop").end
        done = run_cli("tables", "recopy", "shop", "public.a", "--log", str(log_dir), "--json")
        assert done.returncode == 0, done
        asked, ended = map(json.loads, done.stdout.splitlines())
        assert (asked["kind"], ended["kind"], ended["why"]) == ("asked", "done", None)
        assert ended["offset"] == asked["offset"]
        assert [fact["fact"] for fact in ended["facts"]] == ["copied"]
        ops = [change.op for change in log.stream("shop").read(before, table="public.a")]
        assert ops.count(Op.READ) == 50
        assert ops[0] is Op.COPY_BEGIN and ops[-1] is Op.COPY_END
        database18.execute("update a set x = 'later' where id = 7")
        running.reached_now(log)
        assert_snapshot_equals_postgres(log, database18, "a", "b")


def test_a_request_that_cannot_be_done_is_refused_with_the_reason(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(TABLES + "create view v as select * from a")
    with capturing(run_cli, database18, log_dir, "--table", "public.a"), opened(log_dir) as log:
        for verb, name, reason in (
            ("add", "public.nope", "no table"),
            ("add", "public.v", "view"),
            ("recopy", "public.b", "no table public.b is captured"),
            ("remove", "public.b", "no table public.b is captured"),
        ):
            done = run_cli("tables", verb, "shop", name, "--log", str(log_dir))
            assert_explained(done)
            assert name in done.stderr and reason in done.stderr, done
        head, tables = listed(run_cli, log_dir)
        assert head["waiting"] == [] and set(tables) == {"public.a"}
        assert (log.source("shop") or {})["requests"] >= 4


def test_several_tables_and_a_pattern_join_at_once(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(
        TABLES + "create schema crm;"
        "create table crm.people (id int primary key); insert into crm.people values (1), (2);"
        "create table crm.notes (body text); insert into crm.notes values ('x')"
    )
    with (
        capturing(run_cli, database18, log_dir, "--table", "public.a") as running,
        opened(log_dir) as log,
    ):
        done = run_cli("tables", "add", "shop", "public.b", "crm.*", "--log", str(log_dir))
        assert done.returncode == 0, done
        database18.execute("insert into crm.people values (3); insert into crm.notes values ('y')")
        running.reached_now(log)
        _, tables = listed(run_cli, log_dir)
        assert {name: table["state"] for name, table in tables.items()} == dict.fromkeys(
            ("crm.notes", "crm.people", "public.a", "public.b"), "streaming"
        )
        assert tables["crm.notes"]["inserts_only"]
        people = log.snapshot("shop").table("crm.people").to_arrow()
        assert sorted(people["id"].to_pylist()) == [1, 2, 3]
        assert_snapshot_equals_postgres(log, database18, "a", "b")
        database18.execute("drop table crm.notes")
        done = run_cli("tables", "recopy", "shop", "crm.*", "--log", str(log_dir))
        assert done.returncode == 0, done

        def gone() -> bool:
            _, tables = listed(run_cli, log_dir)
            return tables["crm.notes"]["state"] == "dropped at the source"

        until(gone, "the end of crm.notes")


def test_a_request_that_waits_is_carried_out_by_the_next_capture(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(TABLES)
    command = ("capture", "--source", "shop", "--dsn", database18.dsn, "--log", str(log_dir))
    args = ("--table", "public.a", "--until", "current")
    assert run_cli(*command, *args).returncode == 0
    done = run_cli("tables", "add", "shop", "public.b", "--log", str(log_dir))
    assert done.stdout.splitlines()[-1].endswith("the next one does it")
    database18.execute("update b set x = 'meanwhile' where id = 3")
    done = run_cli(*command, *args)
    assert done.returncode == 0, done
    with opened(log_dir) as log:
        assert_snapshot_equals_postgres(log, database18, "a", "b")
    head, tables = listed(run_cli, log_dir)
    assert head["waiting"] == [] and tables["public.b"]["state"] == "streaming"


def test_a_table_can_join_without_some_columns_and_with_hashes_of_others(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(
        "create table a (id int primary key);"
        "create table people (id int primary key, email text, phone text, tier int);"
        "insert into people select g, 'mail' || g || '@secret', 'phone-secret', 1"
        "  from generate_series(1, 200) g"
    )
    with (
        capturing(run_cli, database18, log_dir, "--table", "public.a") as running,
        opened(log_dir) as log,
    ):
        spec, hashed = "public.people(id,email,tier)", "public.people.email"
        done = run_cli("tables", "add", "shop", spec, "--hash", hashed, "--log", str(log_dir))
        assert done.returncode == 0, done
        database18.execute("update people set email = 'new@secret' where id = 1")
        running.reached_now(log)
        people = log.snapshot("shop").table("public.people").to_arrow()
        assert people.num_rows == 200 and "phone" not in people.column_names
        mails = people["email"].to_pylist()
        assert len(set(mails)) == 200 and {len(mail) for mail in mails} == {32}
        _, tables = listed(run_cli, log_dir)
        assert tables["public.people"]["columns"] == ["id", "email", "tier"]
        assert tables["public.people"]["hashed"] == ["email"]
    assert b"secret" not in (log_dir / "data.mdb").read_bytes()


def test_nobody_waits_for_a_request_unless_it_is_wanted(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(TABLES)
    with capturing(run_cli, database18, log_dir, "--table", "public.a"), opened(log_dir):
        done = run_cli("tables", "add", "shop", "public.b", "--no-wait", "--log", str(log_dir))
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done

        def joined() -> bool:
            _, tables = listed(run_cli, log_dir)
            return tables.get("public.b", {}).get("state") == "streaming"

        until(joined, "the table")


@contextmanager
def joining(database: Database, log_dir: Path, run_cli: RunCli) -> Iterator[Joining]:
    """A slow capture, and a command that waits until a large table has joined it: half-way."""
    database.execute(TABLES)
    database.execute(
        "insert into b select g, repeat('b', 1000) from generate_series(20001, 40000) g"
    )
    args = ("--table", "public.a", "--copy-rate", "3")
    running = Capturing(run_cli, database, log_dir, *args)
    try:
        running.saw("streaming")
        words = ("tables", "add", "shop", "public.b", "--log", str(log_dir))
        asking = run_cli.spawn(*words)

        def half() -> bool:
            _, tables = listed(run_cli, log_dir)
            return bool(tables.get("public.b", {}).get("share"))

        until(half, "a part of the copy")
        yield running, asking
    finally:
        running.kill()


def test_a_capture_killed_while_a_table_joins_leaves_the_rest_to_the_next(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    with joining(database18, log_dir, run_cli) as (running, asking):
        done = run_cli("status", "--log", str(log_dir))
        assert re.search(r"shop: copying public\.b: [\d,]+ rows, \d+ %", done.stdout), done
        running.kill()
        said, _ = asking.communicate(timeout=PATIENCE_S)
        assert asking.returncode == 0
        assert said.splitlines()[-1] == "the capture ended; the next one does it: add public.b"
    assert listed(run_cli, log_dir)[1]["public.b"]["state"] == "copying"
    database18.execute(
        "update b set x = 'meanwhile' where id % 1000 = 7; delete from b where id = 5"
    )
    command = ("capture", "--source", "shop", "--dsn", database18.dsn, "--log", str(log_dir))
    assert run_cli(*command, "--until", "current").returncode == 0
    with opened(log_dir) as log:
        assert_snapshot_equals_postgres(log, database18, "a", "b")
        ops = [change.op for change in log.stream("shop").read(table="public.b")]
    assert ops.count(Op.COPY_BEGIN) == ops.count(Op.COPY_END) == 1, "it went on where it was"
    assert listed(run_cli, log_dir)[1]["public.b"]["state"] == "streaming"


def test_a_table_can_be_removed_while_it_joins(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    with joining(database18, log_dir, run_cli) as (running, asking):
        done = run_cli("tables", "remove", "shop", "public.b", "--log", str(log_dir))
        assert done.returncode == 0, done
        _, said = asking.communicate(timeout=PATIENCE_S)
        assert asking.returncode == 1 and "Error: public.b: it was removed" in said
        assert listed(run_cli, log_dir)[1]["public.b"]["state"] == "left"
        with opened(log_dir) as log:
            running.reached_now(log)
            with pytest.raises(SnapshotRefused):
                log.snapshot("shop").table("public.b")
            assert_snapshot_equals_postgres(log, database18, "a")


# Leaving the server as it was


def test_dropping_a_source_frees_its_server_and_keeps_the_log(
    database: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database.execute(TABLES)
    args = ("--dsn", database.dsn, "--log", str(log_dir))
    with capturing(run_cli, database, log_dir, "--table", "public.a"):
        done = run_cli("drop-source", "shop", *args)
        assert_explained(done)
        assert "is being captured by process" in done.stderr
    done = run_cli("drop-source", "shop", *args)
    assert done.returncode == 0, done
    assert database.value("select count(*) from pg_publication") == 0
    left = "select count(*) from pg_replication_slots where database = current_database()"
    assert database.value(left) == 0
    with opened(log_dir) as log:
        assert_snapshot_equals_postgres(log, database, "a")
    done = run_cli("status", *args, "--json")
    assert "its slot 'eventlog_shop' is not on the server any more" in done.stderr
    assert json.loads(done.stdout)["retained_bytes"] is None


def test_what_a_killed_trial_left_is_dropped_without_its_log(
    database18: Database, log_dir: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    database18.execute(TABLES)
    trial = Capturing(run_cli, database18, log_dir, "--table", "public.a", "--temporary")
    try:
        trial.saw("streaming")
    finally:
        trial.kill()
    left = "select count(*) from pg_replication_slots where database = current_database()"
    until(lambda: database18.value(left) == 0, "the end of the temporary slot")
    made = sorted(name for (name,) in database18.fetch("select pubname from pg_publication"))
    assert len(made) == 2
    nowhere = ("--log", str(tmp_path / "nowhere"), "--dsn", database18.dsn, "--json")
    done = run_cli("drop-source", "shop", *nowhere)
    found = json.loads(done.stdout)
    assert sorted(found["dropped"]) == [f"publication {name}" for name in made]
    assert found["stays"] is None
    assert not (tmp_path / "nowhere").exists()


def test_status_tells_what_the_server_keeps(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(TABLES)
    args = ("--dsn", database18.dsn, "--log", str(log_dir), "--json")
    with capturing(run_cli, database18, log_dir, "--table", "public.a") as running, opened(log_dir):
        found = json.loads(run_cli("status", *args).stdout)
        assert found["writer"] == str(running.process.pid)
    database18.execute("insert into a select g from generate_series(1000, 3000) g")
    found = json.loads(run_cli("status", *args).stdout)
    assert found["writer"] is None
    assert found["retained_bytes"] >= found["lag_bytes"] > 100_000


def test_another_server_is_not_tidied_up(
    database18: Database, log_dir: Path, run_cli: RunCli
) -> None:
    database18.execute(TABLES)
    with capturing(run_cli, database18, log_dir, "--table", "public.a"):
        pass
    with eventlog.open(log_dir) as log:
        state = log.source("shop") or {}
        writer = log.engine.writer("shop")
        other = {**state, "system_id": state["system_id"] + 1}
        update = SourceUpdate(stream="shop", writer_epoch=writer.epoch, state=other)
        log.engine.commit(Plan(sources=[update]))
        writer.close()
    done = run_cli("drop-source", "shop", "--dsn", database18.dsn, "--log", str(log_dir))
    assert_explained(done)
    assert "another database cluster" in done.stderr
    assert database18.value("select count(*) from pg_publication") == 2
