"""Values that must not reach the disk, through whole captures: the log is searched byte by byte."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import cdc
import eventlog
from cdc.errors import HashKeyFault
from cdc.options import Event
from cdc.postgres import streaming
from eventlog.errors import SnapshotRefused, UsageError
from tests.fix_capture import captured_in_background, state_of, until, wal_position
from tests.fix_postgres import Database, RunCli, assert_explained

SECRET = re.compile(rb"(?:geheim|9172635)[a-z0-9]*")
"""What each secret of these tests looks like, as text or within a number."""

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATE_KEY", KEY)
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)


def hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), key=KEY.encode(), digest_size=16).hexdigest()


def shop(database: Database, *tables: str) -> cdc.Source:
    return cdc.Source("shop", database.dsn, tables or ("public.*",))


def capture(log: eventlog.Log, source: cdc.Source, *columns: str, **options: Any) -> list[Event]:
    told: list[Event] = []
    source.capture(
        log, report=told.append, until="current", hash=columns, hash_key="env:GATE_KEY", **options
    )
    return told


def files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.name, path.read_bytes()


def found_in(log_dir: Path, pattern: re.Pattern[bytes] = SECRET) -> set[tuple[str, bytes]]:
    """What the pattern finds in any file of the log, freed pages included."""
    return {(name, match) for name, data in files_of(log_dir) for match in pattern.findall(data)}


def everything(log: eventlog.Log, stream: str = "shop") -> bytes:
    """All records as the codecs read them, and all schema versions, as text."""
    parts = [repr(fields) for _, fields in log.engine.schemas(stream)]
    parts += [repr(change) for change in log.stream(stream).read()]
    return "\n".join(parts).encode()


def rows(log: eventlog.Log, table: str) -> list[dict[str, Any]]:
    found = log.snapshot("shop").table(f"public.{table}").to_arrow().to_pylist()
    return sorted(found, key=repr)


def expected(
    database: Database, table: str, columns: str, hashes: Iterable[str]
) -> list[dict[str, Any]]:
    """The table's rows, with what the gate makes of the hashed columns."""
    cursor = database.connection.execute(f"select {columns} from {table}")
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    for row in found:
        for name in hashes:
            row[name] = None if row[name] is None else hashed(str(row[name]))
    return sorted(found, key=repr)


def equals(
    log: eventlog.Log, database: Database, table: str, columns: str, hashes: Iterable[str] = ()
) -> bool:
    """Whether a snapshot has these columns of the table, and no others; False inside a copy."""
    with contextlib.suppress(SnapshotRefused):
        return rows(log, table) == expected(database, table, columns, hashes)
    return False


TABLES = """
create table customers (
    id int primary key, email text, tier text, phone text, body text
);
alter table customers alter body set storage external;
create table vault (pin bigint primary key, note text);
create table loud (email text, note text);
alter table loud replica identity full;
insert into customers select g, 'geheim' || g, 'plainly', 'geheimtel' || g,
    case g when 1 then repeat('geheim', 5000) end from generate_series(1, 50) g;
insert into customers values (51, E'geheim\\tx\\\\', 'plainly', null, null);
insert into customers values (52, null);
insert into vault select 9172635000 + g, 'plainly' from generate_series(1, 20) g;
insert into loud select 'geheim' || g, 'plainly' from generate_series(1, 10) g;
"""
SPECS = ("customers(id,email,tier,body)", "vault", "loud")
HASHES = ("customers.email", "customers.body", "vault.pin", "loud.email")
CHANGES = """
insert into customers values (60, 'geheim60', 'plainly', 'geheimtel', repeat('geheim', 4000));
update customers set email = 'geheimnew' where id = 1;
update customers set tier = 'plainly2' where id in (1, 60);
delete from customers where id = 2;
update customers set id = 100 where id = 3;
update vault set pin = 9172635777 where pin = 9172635001;
update vault set note = 'plainly3' where pin = 9172635002;
delete from vault where pin = 9172635003;
insert into vault values (9172635003, 'plainly again');
update loud set note = 'plainly4' where email = 'geheim1';
update loud set email = 'geheim1000' where email = 'geheim2';
delete from loud where email = 'geheim3';
truncate vault;
insert into vault values (9172635004, 'plainly last'), (9172635005, 'plainly last');
update vault set pin = 9172635006 where pin = 9172635005;
alter table customers add code text default 'geheimcode';
update customers set tier = 'plainly5' where id = 4;
"""
LARGE = """
insert into customers select g, 'geheim' || g, 'plainly', 'geheimtel',
    repeat('geheim' || g, 20) from generate_series(1000, 6000) g
"""


def assert_private(log: eventlog.Log, database: Database) -> None:
    read = everything(log)
    assert b"plainly" in read
    assert SECRET.findall(read) == []
    assert rows(log, "customers") == expected(
        database, "customers", "id, email, tier, body", ["email", "body"]
    )
    assert rows(log, "vault") == expected(database, "vault", "pin, note", ["pin"])
    assert rows(log, "loud") == expected(database, "loud", "email, note", ["email"])


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_no_secret_reaches_the_disk_by_copy_stream_or_staging(
    database: Database, tmp_path: Path, compression: Any
) -> None:
    database.execute(TABLES)
    with eventlog.open(tmp_path / "log", create=True) as log:
        log.engine.create_stream("shop", "captured", compression=compression)
        source = shop(database, *SPECS)
        options = {"hash": HASHES, "hash_key": "env:GATE_KEY", "stage_bytes": 64 << 10}
        with captured_in_background(log, source, **options) as running:
            running.saw("streaming")
            for statement in CHANGES.split(";\n"):
                database.execute(statement)
            database.execute(LARGE)
            running.reached(wal_position(database))
        assert_private(log, database)
        database.execute("update customers set tier = 'plainly6' where id < 1010")
        source.capture(log, until="current", hash_key="env:GATE_KEY")
        assert_private(log, database)
        assert state_of(log).hash_check
    if compression == "none":
        assert found_in(tmp_path / "log", re.compile(b"plainly")), "the search would find it"
    assert found_in(tmp_path / "log") == set()
    assert found_in(tmp_path / "log", re.compile(KEY.encode())) == set()
    with eventlog.open(tmp_path / "log") as log:
        assert log.check() == []


def test_a_hashed_column_stays_hashed_when_it_is_renamed_or_made_anew(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(
        "create table t (id int primary key, email text);"
        "insert into t values (1, 'geheim1'), (2, 'geheim2')"
    )
    source = shop(database, "t")
    capture(log, source, "t.email")
    database.execute("alter table t rename email to mail; insert into t values (3, 'geheim3')")
    source.capture(log, until="current", hash_key="env:GATE_KEY")
    with captured_in_background(log, source, hash_key="env:GATE_KEY") as running:
        running.saw("streaming")
        database.execute("alter table t rename mail to post; insert into t values (4, 'geheim4')")
        database.execute("alter table t rename to people; insert into people values (5, 'geheim5')")
        database.execute("alter table people add note text")
        database.execute("insert into people values (6, 'geheim6', 'plainly')")
        running.reached(wal_position(database))
    assert rows(log, "people") == expected(database, "people", "id, post, note", ["post"])
    database.execute("alter table people rename to t; alter table t drop post")
    with captured_in_background(log, source, hash_key="env:GATE_KEY") as running:
        running.saw("streaming")
        database.execute("alter table t add email text default 'geheimdefault'")
        database.execute("insert into t values (7, 'plainly', 'geheim7')")
        running.reached(wal_position(database))
        # Whether it was renamed may be open: then the table is copied again, and refused till then.
        is_equal = partial(equals, log, database, "t", "id, note, email", ["email"])
        until(is_equal, "the table in the log to equal the source's")
    assert SECRET.findall(everything(log)) == []


def test_equal_values_have_equal_hashes_in_copy_and_stream_and_in_every_table(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(
        "create table a (id int primary key, email text);"
        "create table b (email varchar(40) primary key, n numeric(9, 2));"
        "insert into a values (1, 'x@y.z'), (2, '7.50'); insert into b values ('x@y.z', 7.5)"
    )
    source = shop(database, "a", "b")
    capture(log, source, "a.email", "b.email", "b.n")
    database.execute("insert into a values (3, 'x@y.z'), (4, null), (5, '')")
    source.capture(log, until="current", hash_key="env:GATE_KEY")
    same = hashed("x@y.z")
    assert [row["email"] for row in rows(log, "a")] == [
        same,
        hashed("7.50"),
        same,
        None,
        hashed(""),
    ]
    assert rows(log, "b") == [{"email": same, "n": hashed("7.50")}]


# The key


def test_a_source_without_its_key_or_with_another_is_refused(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("create table t (id int primary key, email text)")
    source = shop(database, "t")
    capture(log, source, "t.email")
    end = log.stream("shop").end
    database.execute("insert into t values (1, 'geheim1')")
    with pytest.raises(HashKeyFault, match="cannot be read"):
        source.capture(log, until="current")
    assert not log.path.with_name("log.hash-key").exists()
    monkeypatch.setenv("GATE_KEY", "another key, long enough")
    with pytest.raises(HashKeyFault, match="not the one"):
        source.capture(log, until="current", hash_key="env:GATE_KEY")
    assert log.stream("shop").end == end


def test_hashing_cannot_begin_once_values_may_be_in_the_log(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key, email text)")
    source = shop(database, "t")
    source.capture(log, until="current")
    with pytest.raises(UsageError, match=r"without hashing public\.t\.email") as caught:
        capture(log, source, "t.email")
    assert "another source name" in caught.value.hint


def test_the_first_capture_makes_a_key_beside_the_log_and_says_so(
    database18: Database, log: eventlog.Log
) -> None:
    database18.execute("create table t (id int primary key, email text)")
    database18.execute("insert into t values (1, 'geheim1')")
    source = shop(database18, "t")
    told: list[Event] = []
    with pytest.raises(UsageError, match="means no column"):
        source.capture(log, until="current", hash=["nobody.email"])
    place = log.path.with_name("log.hash-key")
    assert not place.exists()
    assert database18.fetch("select from pg_publication") == []
    source.capture(log, report=told.append, until="current", hash=["t.email"])
    assert any(str(place) in event.text for event in told if event.kind == "warning")
    secret = place.read_bytes().strip()
    assert found_in(log.path, re.compile(secret)) == set()
    assert not any(secret.decode() in event.text for event in told)
    (row,) = rows(log, "t")
    assert row["email"] == hashlib.blake2b(b"geheim1", key=secret, digest_size=16).hexdigest()
    other = cdc.Source("crm", database18.dsn, ["t"])
    other.capture(log, until="current", hash=["t.email"])
    place.unlink()
    third = cdc.Source("hr", database18.dsn, ["t"])
    with pytest.raises(HashKeyFault):
        third.capture(log, until="current", hash=["t.email"])
    assert not place.exists()


def test_the_command_line_leaves_out_and_hashes(
    database18: Database, tmp_path: Path, run_cli: RunCli
) -> None:
    database18.execute(
        "create table t (id int primary key, email text, phone text);"
        "insert into t values (1, 'geheim1', 'geheimtel')"
    )
    place = tmp_path / "key"
    place.write_text(KEY)
    place.chmod(0o600)
    words = ["capture", "--source", "shop", "--dsn", database18.dsn, "--until", "current"]
    words += ["--log", str(tmp_path / "log"), "--table", "t(id,email)"]
    assert_explained(run_cli(*words, "--hash", "t.phone"))
    assert_explained(run_cli(*words, "--hash", "t.email", "--hash-key", str(tmp_path / "none")))
    done = run_cli(*words, "--hash", "t.email", "--hash-key", str(place), "--copy-workers", "1")
    assert done.returncode == 0, done
    with eventlog.open(tmp_path / "log") as log:
        assert rows(log, "t") == [{"id": 1, "email": hashed("geheim1")}]
    assert found_in(tmp_path / "log") == set()


# A publication that the user gave


def test_a_given_publication_must_not_send_what_is_left_out(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(
        "create table t (id int primary key, email text, note text);"
        "insert into t values (1, 'geheim1', 'plainly');"
        "create publication wide for table t; create publication narrow for table t (id, note)"
    )
    source = shop(database, "t(id,note)")
    with pytest.raises(UsageError, match=r"sends email of public\.t too") as caught:
        source.capture(log, until="current", publication="wide")
    assert "never altered" in caught.value.hint
    source.capture(log, until="current", publication="narrow")
    assert rows(log, "t") == [{"id": 1, "note": "plainly"}]
    assert SECRET.findall(everything(log)) == []


# A trial leaves no trace


def traces(database: Database) -> list[tuple[Any, ...]]:
    return database.fetch(
        "select slot_name::text from pg_replication_slots where database = current_database()"
        " union all select pubname::text from pg_publication"
    )


def test_a_temporary_capture_leaves_nothing_at_the_server(
    database: Database, log: eventlog.Log
) -> None:
    database.execute("create table t (id int primary key); insert into t values (1)")
    outcome = shop(database).capture(log, until="current", temporary=True)
    until(lambda: traces(database) == [], "the server to drop the slot")
    assert outcome.slot is None
    assert rows(log, "t") == [{"id": 1}]


def test_a_temporary_capture_that_fails_leaves_nothing_and_spares_what_was_given(
    database: Database, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("create table t (id int primary key); create publication mine for table t")

    def fail(*_: object, **__: object) -> None:
        raise HashKeyFault("no stream today", hint="none")

    monkeypatch.setattr("cdc.postgres.capture.Streamer", fail)
    with pytest.raises(HashKeyFault, match="no stream today"):
        shop(database).capture(log, until="current", temporary=True)
    until(lambda: traces(database) == [("mine",)], "the server to drop the slot")
    with pytest.raises(HashKeyFault, match="no stream today"):
        cdc.Source("crm", database.dsn).capture(
            log, until="current", temporary=True, publication="mine"
        )
    until(lambda: traces(database) == [("mine",)], "the server to drop the slot")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_temporary_capture_that_is_interrupted_leaves_nothing(
    database18: Database, tmp_path: Path, run_cli: RunCli, how: signal.Signals
) -> None:
    database18.execute("create table t (id int primary key); insert into t values (1)")
    words = ["--dsn", database18.dsn, "--log", str(tmp_path / "log")]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "eventlog.cli", "capture", "--source", "shop", *words),
            *("--table", "t", "--temporary"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        active = "select from pg_replication_slots where active and database = current_database()"
        until(lambda: database18.fetch(active), "the trial to stream")
        assert len(traces(database18)) == 3
        process.send_signal(how)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    if how is signal.SIGKILL:
        until(lambda: len(traces(database18)) == 2, "the server to notice that it is gone")
        done = run_cli("drop-source", "shop", *words)
        assert "dropped publication eventlog_shop" in done.stdout, done
    else:
        assert process.returncode == 0, said
        assert "drop-source" not in said
    until(lambda: traces(database18) == [], "the server to drop the slot")
