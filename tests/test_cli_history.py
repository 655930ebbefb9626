"""`eventlog history` and `eventlog index`: what they print, and how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import eventlog
from eventlog.changes.change import UNCHANGED
from eventlog.changes.schema import Schema
from eventlog.cli import cli
from eventlog.errors import UnknownColumn, UnknownTable, UsageError
from tests.fix_log import INT, NUMERIC, MadeSource, column, delete, insert, update
from tests.fix_postgres import RunCli, assert_explained

Run = Callable[..., Result]


@pytest.fixture
def run(log: eventlog.Log) -> Run:
    """Runs a command on the test's log, inside this process."""

    def call(*args: str, code: int = 0) -> Result:
        done = CliRunner().invoke(cli, args, env={"EVENTLOG_DIR": str(log.path)})
        assert done.exit_code == code, (done.output, done.exception)
        return done

    return call


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    table = shop.table(
        "orders", column("id", INT, key=True), column("amount", NUMERIC), column("n")
    )
    shop.commit(insert(table, 7, "1.50", "a b"))
    shop.commit(update(table, 7, "9.75", UNCHANGED))
    shop.commit(update(table, 8, "9.75", UNCHANGED, key=(7, None, None)))
    shop.commit(update(table, 8, "9.75", UNCHANGED))
    shop.commit(delete(table, 8, None, None))
    shop.commit(insert(table, 8, None, "new"))
    return table


def objects(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.usefixtures("orders")
def test_history_prints_each_version_and_what_changed(run: Run) -> None:
    done = run("history", "shop", "public.orders", "8")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["offset", "time", "op", "tx", "life", "change"]
    assert [line.split(maxsplit=5)[0::2] for line in lines[1:]] == [
        ["0", "insert", "1"],
        ["1", "update", "1"],
        ["2", "update", "1"],
        ["3", "update", "1"],
        ["4", "delete", "1"],
        ["5", "insert", "2"],
    ]
    assert [line.split(maxsplit=5)[5] for line in lines[1:]] == [
        'id=7 amount="1.50" n="a b"',
        'amount: "1.50" → "9.75"',
        "id: 7 → 8",
        "(nothing)",
        "id=8",
        'id=8 amount=null n="new"',
    ]
    assert lines[1].split()[3] == "701"
    assert done.stderr == ""


@pytest.mark.usefixtures("orders")
def test_history_as_json_is_that_of_python(log: eventlog.Log, run: Run) -> None:
    found = objects(run("history", "shop", "orders", "8", "--json"))
    assert found == list(log.stream("shop").history("orders", key=8).as_json())
    later = objects(run("history", "shop", "orders", "8", "--json", "--start", "2", "--stop", "4"))
    assert [line["offset"] for line in later] == [2, 3]
    assert later[0]["changed"] == {"id": [7, 8]}


def test_history_takes_each_form_of_a_key(shop: MadeSource, run: Run) -> None:
    one = shop.table("one", column("id", key=True), relation=1)
    two = shop.table("two", column("a", INT, key=True), column("b", key=True), relation=2)
    odd = ("7", "id=7", "x=1", "{", "1,2")
    shop.commit(*[insert(one, value) for value in odd], insert(two, 1, "x"), insert(two, 1, "y,z"))

    def asked(table: str, key: str) -> list[int]:
        return [line["offset"] for line in objects(run("history", "shop", table, key, "--json"))]

    assert [asked("one", key) for key in odd] == [[0], [0], [2], [3], [4]]
    assert asked("one", "id=id=7") == [1]
    assert asked("one", '{"id": 7}') == [0]
    assert asked("two", "a=1,b=x") == asked("two", "b=x, a=1") == [5]
    assert asked("two", '{"a": 1, "b": "y,z"}') == [6]


def test_history_of_events_is_asked_for_without_a_table(log: eventlog.Log, run: Run) -> None:
    stream = log.stream("clicks", create=True)
    stream.append_many([{"n": 1}, {"n": 2}, None, "x"], keys=[7, 7, 7, 7])
    lines = run("history", "clicks", "7").stdout.splitlines()
    assert lines[0].split() == ["offset", "time", "life", "change"]
    told = [line.split(maxsplit=3)[2:] for line in lines[1:]]
    assert told == [["1", "n=1"], ["1", "n: 1 → 2"], ["1"], ["2", '"x"']]
    assert objects(run("history", "clicks", "7", "--json"))[1]["changed"] == {"n": [1, 2]}
    assert isinstance(run("history", "clicks", "t", "7", code=1).exception, UsageError)


@pytest.mark.usefixtures("orders")
def test_a_key_that_was_never_seen_is_said_and_is_no_failure(run: Run) -> None:
    for more in ((), ("--json",)):
        done = run("history", "shop", "orders", "9", *more)
        assert done.stdout == ""
        assert done.stderr == "no version of id=9 in public.orders in [0, 6)\n"
    done = run("history", "shop", "orders", "ids=9")
    assert done.stderr.splitlines()[1] == (
        "Hint: the key is the column 'id', not 'ids', so all of that was its value"
    )


@pytest.mark.usefixtures("orders")
def test_what_is_wrong_is_explained(run: Run) -> None:
    run("history", "shop", code=2)
    run("history", "shop", "orders", "8", "9", code=2)
    run("history", "shop", "8", code=2)
    run("index", "shop", "--follow", "--drop", code=2)
    for words, error in (
        (("order", "8"), UnknownTable),
        (("orders", '{"amount": 1}'), UnknownColumn),
        (("orders", "{}"), UsageError),
    ):
        found = run("history", "shop", *words, code=1).exception
        assert isinstance(found, error) and found.hint


@pytest.mark.usefixtures("orders")
def test_an_error_is_a_sentence_and_a_hint(log: eventlog.Log, run_cli: RunCli) -> None:
    assert_explained(run_cli("history", "shop", "order", "8", "--log", str(log.path)))


@pytest.mark.usefixtures("orders")
def test_history_says_where_its_index_cannot_be_written(log: eventlog.Log, run: Run) -> None:
    for number in range(3):
        log.stream(f"s{number}", create=True)
    (log.path / "derived" / "keys").write_text("in the way")
    done = run("history", "shop", "orders", "8", "--json")
    assert len(objects(done)) == 6
    assert done.stderr == "", "six records are read whether there is an index or not"
    assert isinstance(run("index", "shop", code=1).exception, eventlog.EventLogError)


@pytest.mark.usefixtures("orders")
def test_index_builds_shows_and_drops(log: eventlog.Log, run: Run) -> None:
    (shown,) = objects(run("index", "shop", "--json"))
    size = shown.pop("bytes")
    assert size > 0
    assert shown == {"stream": "shop", "start": 0, "stop": 6, "entries": 7, "runs": 1}
    assert "offsets [0, 6) of shop: 7 entries in 1 file of " in run("index", "shop").stdout
    assert objects(run("index", "shop", "--drop", "--json")) == [{"stream": "shop", "removed": 1}]
    assert list((log.path / "derived" / "keys" / "shop").glob("*.run")) == []
    assert run("index", "shop", "--drop").stdout == "removed 0 files\n"
    log.stream("none", create=True)
    assert objects(run("index", "none", "--json"))[0]["runs"] == 0


def test_index_follows_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        stream = log.stream("clicks", create=True)
        stream.append(1, key="a")
        words = ["-m", "eventlog", "index", "clicks", "--follow", "--log", str(log.path), "--json"]
        with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert json.loads(child.stdout.readline())["stop"] == 1
            stream.append(2, key="a")
            index = stream.key_index()
            deadline = time.monotonic() + 60
            while index.runs()[-1].stop < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
        assert child.returncode == 0
        assert index.runs()[-1].stop == 2
        assert [event.offset for event in stream.history(key="a")] == [0, 1]
        assert log.check() == []
