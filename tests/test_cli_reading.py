"""The commands that read a log: what they print, and how they end."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import eventlog
from eventlog.changes.change import UNCHANGED, Op
from eventlog.changes.schema import Schema
from eventlog.cli import cli
from eventlog.engine import Engine, index
from eventlog.errors import LogUnreadable, SnapshotRefused
from tests.fix_log import (
    BYTEA,
    INT,
    NUMERIC,
    MadeSource,
    column,
    control,
    copied,
    delete,
    insert,
    update,
)
from tests.fix_postgres import RunCli, assert_explained
from tests.test_engine_check import delete as delete_row
from tests.test_engine_check import flip, orphan_payload

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
    """A captured table: two rows copied, one updated, one inserted, one deleted."""
    table = shop.table(
        "orders", column("id", INT, key=True), column("amount", NUMERIC), column("n")
    )
    shop.commit(control(Op.COPY_BEGIN, table))
    shop.commit(copied(table, 1, "1.50", "a"), copied(table, 2, "2.50", None))
    shop.commit(control(Op.COPY_END, table))
    shop.commit(update(table, 1, "9.75", UNCHANGED))
    shop.commit(insert(table, 3, "3.00", "line\nbreak \x1b[2J"))
    shop.commit(delete(table, 2, None, None))
    return table


def objects(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_streams_names_each_stream_with_what_it_holds(
    log: eventlog.Log, orders: Schema, run: Run
) -> None:
    log.stream("clicks", create=True).append({"page": "/"})
    clicks, shop = objects(run("streams", "--json"))
    assert (clicks["name"], clicks["kind"], clicks["start"], clicks["end"]) == (
        "clicks",
        "events",
        0,
        1,
    )
    assert (shop["name"], shop["kind"], shop["records"]) == ("shop", "captured", 7)
    assert shop["bytes"] > 0
    shown = run("streams").stdout.splitlines()
    assert shown[0].split() == ["name", "kind", "start", "end", "records", "bytes"]
    assert shown[2].split()[:5] == ["shop", "captured", "0", "7", "7"]


def test_streams_goes_on_past_what_it_cannot_read(tmp_path: Path, run_cli: RunCli) -> None:
    where = ("--log", str(tmp_path / "log"))
    with eventlog.open(tmp_path / "log", create=True) as log:
        for name in ("a", "b", "c", "d"):
            log.stream(name, create=True).append_many([1, 2])
        flip(log.engine, "index", index.key(2, 0))
        flip(log.engine, "meta", b"stream/c")
    done = run_cli("streams", "--json", *where)
    assert done.returncode == 1 and done.stderr.count("Error: ") == 2
    held = [tuple(json.loads(line).values())[:5] for line in done.stdout.splitlines()]
    assert held == [
        ("a", "events", 0, 2, 2),
        ("b", "events", 0, 2, None),
        ("c", None, None, None, None),
        ("d", "events", 0, 2, 2),
    ]
    shown = run_cli("streams", *where)
    assert_explained(shown)
    assert [line.split()[1:] for line in shown.stdout.splitlines()[2:4]] == [
        ["events", "0", "2", "?", "?"],
        ["?", "?", "?", "?", "?"],
    ]


def test_streams_tells_of_a_row_that_is_gone(tmp_path: Path, run_cli: RunCli) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        for name in ("a", "b"):
            log.stream(name, create=True).append(1)
        delete_row(log.engine, "meta", b"stream/a")
    done = run_cli("streams", "--json", "--log", str(tmp_path / "log"))
    assert_explained(done)
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["b"]


def test_check_names_ids_without_a_stream_at_once(tmp_path: Path, run_cli: RunCli) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        log.stream("other", create=True).append(1, id="kept")
        log.stream("s", create=True).append_many(range(50), ids=map(str, range(50)))
        delete_row(log.engine, "meta", b"stream/s")
        found = [v for v in log.check() if v.invariant == "ids"]
    assert [(v.where, v.what) for v in found] == [
        ("stream number 2", "101 rows of ids of a stream with no row")
    ]


def test_check_prints_no_line_of_json_for_a_sound_log(log: eventlog.Log, run_cli: RunCli) -> None:
    done = run_cli("check", "--json", "--log", str(log.path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    told = " ".join(run_cli("check", "--help").stdout.split())
    assert "a sound log prints none" in told
    told = " ".join(run_cli("repair", "--help").stdout.split())
    assert "Exits with 0 once the log is repaired, whatever was lost" in told


def test_read_json_prints_the_promised_fields(orders: Schema, run: Run) -> None:
    found = objects(run("read", "shop", "--start", "3", "--json"))
    assert found[0]["op"] == "copy_end"
    changed = found[1]
    assert list(changed)[:6] == ["offset", "op", "table", "key", "row", "old"]
    assert changed["key"] == {"id": 1} and changed["row"] == {"id": 1, "amount": "9.75"}
    assert changed["unchanged"] == ["n"]
    assert found[-1]["op"] == "delete" and found[-1]["row"] is None


def test_read_for_people_is_aligned_and_cannot_steer_the_terminal(orders: Schema, run: Run) -> None:
    lines = run("read", "shop", "--table", "public.orders").stdout.splitlines()
    assert lines[0].split() == ["offset", "time", "op", "table", "key", "row"]
    assert len(lines) == 1 + 7
    starts = {line.index("public.orders") for line in lines[1:]}
    assert len(starts) == 1
    assert "n=(unchanged)" in lines[5]
    assert "\x1b" not in "".join(lines) and "line\\nbreak" in lines[6]


def test_read_takes_offsets_times_and_the_end(orders: Schema, run: Run) -> None:
    def offsets(*args: str) -> list[int]:
        return [found["offset"] for found in objects(run("read", "shop", "--json", *args))]

    assert offsets() == list(range(7))
    assert offsets("--start", "2", "--stop", "4") == [2, 3]
    assert offsets("--stop", "2026-01-01") == []
    assert offsets("--start", "2026-01-01T03:00") == [4, 5, 6]
    assert offsets("--start", "end") == []
    assert offsets("--stop", "end", "--start", "6") == [6]


def test_fill_takes_unchanged_values_from_the_history(orders: Schema, run: Run) -> None:
    args = ("read", "shop", "--table", "orders", "--start", "4", "--stop", "5", "--json")
    (found,) = objects(run(*args, "--fill"))
    assert found["row"] == {"id": 1, "amount": "9.75", "n": "a"} and "unchanged" not in found


def test_read_shows_events_with_key_and_value(log: eventlog.Log, run: Run) -> None:
    log.stream("clicks", create=True).append({"page": "/ü"}, key=7)
    (found,) = objects(run("read", "clicks", "--json"))
    assert (found["key"], found["value"]) == ("7", {"page": "/ü"})
    heading, line = run("read", "clicks").stdout.splitlines()
    assert heading.split() == ["offset", "time", "key", "value"]
    assert line.endswith('{"page": "/ü"}')


@pytest.mark.parametrize("option", [("--fill",), ("--table", "public.orders")])
def test_what_is_for_tables_is_refused_of_events(
    log: eventlog.Log, run_cli: RunCli, option: tuple[str, ...]
) -> None:
    log.stream("clicks", create=True).append(1)
    done = run_cli("read", "clicks", *option, "--log", str(log.path))
    assert_explained(done)
    assert "holds events, which have no tables" in done.stderr


def test_an_empty_stream_prints_headings_and_no_json(log: eventlog.Log, run: Run) -> None:
    log.stream("clicks", create=True)
    assert run("read", "clicks").stdout.split() == ["offset", "time", "key", "value"]
    assert run("read", "clicks", "--json").stdout == ""


def test_check_finds_a_sound_log_sound(orders: Schema, run: Run) -> None:
    assert run("check").stdout == "the log is sound\n"
    assert run("check", "--json").stdout == ""


def test_check_names_every_violated_invariant_and_exits_with_1(
    fragile: Engine, log_dir: Path, run_cli: RunCli
) -> None:
    log = eventlog.Log(fragile)
    log.stream("clicks", create=True).append({"n": 1})
    orphan_payload(fragile)
    done = run_cli("check", "--log", str(log_dir))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"{log.check()[0]}\nviolations: 1\n"
    (found,) = map(
        json.loads, run_cli("check", "--json", "--log", str(log_dir)).stdout.splitlines()
    )
    assert found["invariant"] == log.check()[0].invariant


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv"])
def test_snapshot_export_writes_the_rows_of_the_cut(
    orders: Schema, run: Run, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"orders{suffix}"
    args = ("snapshot", "export", "shop", "--table", "public.orders", "--out", str(out))
    said = run(*args).stdout
    assert f"public.orders as of offset 7 (2026-01-01T05:00:00+00:00): 2 rows in {out}" in said
    assert sorted(row["id"] for row in exported(out)) == [1, 3]
    (done,) = objects(run(*args, "--at", "4", "--json"))
    assert (done["at"], done["rows"], done["time"]) == (4, 2, "2026-01-01T02:00:00+00:00")
    assert sorted(row["id"] for row in exported(out)) == [1, 2]
    assert out.stat().st_mode & 0o077 == 0
    assert {path.name for path in tmp_path.iterdir()} == {"log", out.name}


def exported(path: Path) -> list[dict[str, Any]]:
    from pyarrow import csv, ipc, parquet

    if path.suffix == ".parquet":
        table = parquet.read_table(path)
    elif path.suffix == ".arrow":
        with ipc.open_file(path) as reader:
            table = reader.read_all()
    else:
        table = csv.read_csv(path)
    return table.to_pylist()


def test_export_takes_every_insert_of_a_table_without_identity(
    shop: MadeSource, run: Run, run_cli: RunCli, log: eventlog.Log, tmp_path: Path
) -> None:
    table = shop.table("bare", column("n", INT), identity="n", inserts_only=True)
    shop.commit(insert(table, 1), insert(table, 1))
    out = tmp_path / "bare.csv"
    args = ("snapshot", "export", "shop", "--table", "bare", "--out", str(out))
    refused = run_cli(*args, "--log", str(log.path))
    assert refused.returncode == 1
    assert "--as-inserts" in refused.stderr
    assert "2 rows in" in run(*args, "--as-inserts").stdout


def test_export_moves_a_cut_out_of_a_transaction_and_says_so(
    shop: MadeSource, run: Run, tmp_path: Path
) -> None:
    table = shop.table("t", column("id", INT, key=True))
    shop.commit(insert(table, 1))
    shop.commit(insert(table, 2), insert(table, 3))
    out = tmp_path / "t.csv"
    args = ("snapshot", "export", "shop", "--table", "t", "--out", str(out))
    assert "public.t" not in run(*args, "--at", "3").stdout
    assert "t as of offset 1 (" in run(*args, "--at", "2").stdout
    assert out.read_text() == '"id"\n1\n'


def test_a_refused_export_leaves_the_file_that_was_there(
    orders: Schema, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "orders.csv"
    out.write_text("kept")
    args = ("snapshot", "export", "shop", "--table", "orders", "--out", str(out))
    done = CliRunner().invoke(cli, [*args, "--at", "2", "--log", str(tmp_path / "log")])
    assert isinstance(done.exception, SnapshotRefused), "inside the copy there is no state"
    assert out.read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"log", out.name}


def test_a_csv_keeps_null_apart_from_empty_text_and_bytes_in_hex(
    shop: MadeSource, run: Run, tmp_path: Path
) -> None:
    table = shop.table("t", column("id", INT, key=True), column("x"), column("b", BYTEA))
    shop.commit(insert(table, 1, "", "\\xff00"), insert(table, 2, None, None))
    out = tmp_path / "t.csv"
    run("snapshot", "export", "shop", "--table", "t", "--out", str(out))
    assert out.read_text() == '"id","x","b"\n1,"","\\xff00"\n2,,\n'


def test_numbers_in_a_csv_are_bare(orders: Schema, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "orders.csv"
    run("snapshot", "export", "shop", "--table", "orders", "--at", "4", "--out", str(out))
    assert out.read_text().splitlines()[1:] == ['1,1.500000000,"a"', "2,2.500000000,"]


def test_export_casts_columns_and_counts_what_does_not_fit(
    shop: MadeSource, run: Run, tmp_path: Path
) -> None:
    table = shop.table("t", column("id", INT, key=True), column("amount", NUMERIC))
    shop.commit(insert(table, 1, "NaN"), insert(table, 2, "2.5"))
    out = tmp_path / "t.parquet"
    args = ("snapshot", "export", "shop", "--table", "t", "--out", str(out))
    run(*args, "--cast", "amount=text")
    assert [row["amount"] for row in exported(out)] == ["NaN", "2.5"]
    said = run(*args, "--unfit", "null").stdout
    assert "amount: null for 1 value that did not fit" in said
    assert exported(out)[0]["amount"] is None


def test_export_of_an_event_stream_needs_no_table(
    log: eventlog.Log, run: Run, tmp_path: Path
) -> None:
    log.stream("clicks", create=True).append_many([{"n": 1}, {"n": 2}], keys=["a", "a"])
    out = tmp_path / "clicks.parquet"
    run("snapshot", "export", "clicks", "--out", str(out))
    assert [row["value"] for row in exported(out)] == ['{"n": 2}']


@pytest.mark.parametrize(
    "args",
    [
        ("--out", "rows.xlsx", "--table", "t"),
        ("--table", "t"),
        ("--out", "rows.csv", "--table", "t", "--cast", "amount"),
        ("--out", "rows.csv", "--table", "t", "--unfit", "drop"),
    ],
)
def test_wrong_usage_of_export_exits_with_2(run_cli: RunCli, args: tuple[str, ...]) -> None:
    done = run_cli("snapshot", "export", "shop", *args)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("Usage: ")


BAD = [
    ("read", "nothing"),
    ("read", "Bad Name"),
    ("read", "shop", "--start", "8"),
    ("read", "shop", "--start", "5", "--stop", "4"),
    ("read", "shop", "--start", "yesterday"),
    ("read", "shop", "--start", "-1"),
    ("read", "shop", "--start", "9" * 40),
    ("read", "shop", "--table", "public.nothing"),
    ("read", "shop", "--table", "Not A Table"),
    ("read", "clicks", "--table", "public.orders"),
    ("tail", "nothing"),
    ("tail", "shop", "--start", "99"),
    ("snapshot", "export", "shop", "--out", "x.csv"),
    ("snapshot", "export", "shop", "--table", "public.nothing", "--out", "x.csv"),
    ("snapshot", "export", "shop", "--table", "public.orders", "--at", "99", "--out", "x.csv"),
    ("snapshot", "export", "shop", "--table", "public.orders", "--out", "/dev/null/at/all/x.csv"),
    (
        *("snapshot", "export", "shop", "--table", "public.orders", "--out", "x.csv"),
        *("--cast", "amount=money"),
    ),
]


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_input_is_explained_in_one_sentence_with_a_hint(
    log: eventlog.Log,
    orders: Schema,
    run_cli: RunCli,
    args: tuple[str, ...],
) -> None:
    log.stream("clicks", create=True)
    done = run_cli(*args, env={"EVENTLOG_DIR": str(log.path)})
    assert_explained(done)
    assert done.stdout == "" and not Path("x.csv").exists()


@pytest.mark.parametrize("command", ["streams", "check", "read", "tail"])
def test_a_directory_without_a_log_is_refused_and_left_alone(
    run_cli: RunCli, tmp_path: Path, command: str
) -> None:
    args = [command] if command in ("streams", "check") else [command, "shop"]
    for place in (tmp_path, tmp_path / "missing"):
        assert_explained(run_cli(*args, "--log", str(place)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["streams", "check", "read", "tail", "repair", "backup"])
def test_a_directory_that_one_may_not_look_into_is_explained_and_is_no_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def refused(path: Any, *more: Any, **names: Any) -> os.stat_result:
        if Path(path).name == "data.mdb":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *more, **names)

    real = os.stat
    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setattr(os, "access", lambda path, mode, **more: False)
    argument = {"read": ["clicks"], "tail": ["clicks"], "backup": [str(tmp_path / "copy")]}
    args = [command, *argument.get(command, []), "--log", str(tmp_path)]
    done = CliRunner().invoke(cli, args)
    assert isinstance(done.exception, LogUnreadable) and done.exception.hint


@pytest.fixture
def tailing(log: eventlog.Log) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `eventlog tail`; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "eventlog.cli", "tail", *args, "--log", str(log.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tail_prints_what_comes_and_a_signal_ends_it_with_0(
    log: eventlog.Log, tailing: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    stream = log.stream("clicks", create=True)
    stream.append({"n": 1})
    process = tailing("clicks", "--start", "begin", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["value"] == {"n": 1}
    stream.append({"n": 2})
    assert json.loads(process.stdout.readline())["value"] == {"n": 2}
    process.send_signal(number)
    rest, complaint = process.communicate(timeout=30)
    assert (process.returncode, rest, complaint) == (0, "", "")


def test_a_reader_that_goes_away_ends_read_quietly(log: eventlog.Log) -> None:
    log.stream("clicks", create=True).append_many([{"n": n, "pad": "x" * 500} for n in range(2000)])
    with subprocess.Popen(
        [sys.executable, "-m", "eventlog.cli", "read", "clicks", "--json", "--log", str(log.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 128 + signal.SIGPIPE


def test_on_a_terminal_lines_end_with_the_screen(log: eventlog.Log) -> None:
    log.stream("clicks", create=True).append({"text": "wide 宽 " * 50})
    reader, terminal = os.openpty()
    with open(reader, "rb", buffering=0) as screen:
        done = subprocess.run(
            [sys.executable, "-m", "eventlog.cli", "read", "clicks", "--log", str(log.path)],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.PIPE,
            env={**os.environ, "COLUMNS": "60"},
            timeout=60,
            check=False,
        )
        shown = screen.read(8192).decode()
        os.close(terminal)
    assert done.returncode == 0, done.stderr
    heading, line = re.sub("\x1b\\[[0-9]*m", "", shown).splitlines()
    assert heading.split() == ["offset", "time", "key", "value"]
    assert line.endswith("…") and len(line) <= 60
