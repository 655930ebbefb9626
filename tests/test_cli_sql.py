"""`eventlog sql`: what it prints in each format, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from pyarrow import ipc

import eventlog
from eventlog.changes.schema import Schema
from eventlog.cli import cli
from tests.fix_log import BYTEA, INT, NUMERIC, MadeSource, column, insert, update
from tests.fix_postgres import assert_explained

Run = Callable[..., Result]


@pytest.fixture
def run(log: eventlog.Log) -> Run:
    """Runs `eventlog sql` on the test's log, inside this process."""

    def call(*args: str, code: int = 0) -> Result:
        done = CliRunner().invoke(cli, ["sql", *args], env={"EVENTLOG_DIR": str(log.path)})
        assert done.exit_code == code, (done.output, done.exception)
        return done

    return call


@pytest.fixture
def orders(log: eventlog.Log, shop: MadeSource) -> Schema:
    """Two orders at 2, of which the first is changed at 3; and one event."""
    table = shop.table(
        "orders", column("id", INT, key=True), column("amount", NUMERIC), column("raw", BYTEA)
    )
    shop.commit(insert(table, 1, "10.5", "\\x00ff"), insert(table, 2, "20", None))
    shop.commit(update(table, 1, "11.25", None))
    log.stream("late-marks", create=True).append({"mark": [1, 2]}, key=7)
    return table


ALL = "select id, amount::varchar as amount, raw from shop.public.orders order by id"


def test_a_table_and_where_it_was_cut(run: Run, orders: Schema) -> None:
    done = run(ALL)
    assert done.stdout.splitlines() == [
        "id  amount        raw",
        " 1  11.250000000  -",
        " 2  20.000000000  -",
    ]
    assert done.stderr == "shop as of offset 3 (2026-01-01T01:00:00+00:00)\n"


def test_numbers_are_bare_for_they_may_be_ids_and_years(run: Run) -> None:
    assert run("select 2013 as year, -1234567 as id").stdout == "year        id\n2013  -1234567\n"


def test_a_cut_by_offset_time_and_end(run: Run, orders: Schema) -> None:
    first = "select amount::double from orders where id = 1"
    for at, amount in (("2", 10.5), ("1", None), ("2026-01-01T00:30", 10.5), ("end", 11.25)):
        done = run("--at", f"shop={at}", first, "--format", "ndjson")
        values = [next(iter(json.loads(line).values())) for line in done.stdout.splitlines()]
        assert values == ([] if amount is None else [amount])
    assert run("--at", "shop=1", first).stderr == "shop as of offset 0\n"


def test_one_stream_at_two_points(run: Run, orders: Schema) -> None:
    query = (
        "select b.id, (o.amount - b.amount)::double as more from before.public.orders b "
        "join shop.public.orders o using (id) order by 1"
    )
    done = run("--at", "shop=end", "--at", "before=shop@2", query, "--json")
    assert json.loads(done.stdout) == {
        "cuts": {
            "before": {"stream": "shop", "stop": 2, "time": "2026-01-01T00:00:00+00:00"},
            "shop": {"stream": "shop", "stop": 3, "time": "2026-01-01T01:00:00+00:00"},
        },
        "columns": ["id", "more"],
        "rows": [{"id": 1, "more": 0.75}, {"id": 2, "more": 0.0}],
    }
    assert done.stderr == ""
    told = run("--at", "shop=end", "--at", "before=shop@2", query).stderr
    assert "before is shop as of offset 2 (2026-01-01T00:00:00+00:00)\n" in told


def test_ndjson_and_csv(run: Run, orders: Schema) -> None:
    query = "select id, amount, raw, [id, 2] as l, 'x,\"' as t from orders order by id"
    lines = run("--at", "shop=2", query, "--format", "ndjson").stdout.splitlines()
    assert json.loads(lines[0]) == {
        "id": 1,
        "amount": "10.500000000",
        "raw": "\\x00ff",
        "l": [1, 2],
        "t": 'x,"',
    }
    text = run("--at", "shop=2", query, "--format", "csv").stdout
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["id", "amount", "raw", "l", "t"]
    assert rows[1:] == [
        ["1", "10.500000000", "\\x00ff", "[1, 2]", 'x,"'],
        ["2", "20.000000000", "", "[2, 2]", 'x,"'],
    ]


def test_arrow_goes_to_a_program(run: Run, log: eventlog.Log, orders: Schema) -> None:
    done = run(ALL, "--format", "arrow")
    table = ipc.open_stream(done.stdout_bytes).read_all()
    assert table.equals(log.snapshot("shop").sql(ALL).to_arrow())


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv"])
def test_a_file(run: Run, orders: Schema, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"rows{suffix}"
    done = run(ALL, "--out", str(out))
    assert done.stdout == f"2 rows in {out}\n"
    if suffix == ".csv":
        found = [row["amount"] for row in csv.DictReader(out.read_text().splitlines())]
    else:
        table = pq.read_table(out) if suffix == ".parquet" else ipc.open_file(out).read_all()
        found = table["amount"].to_pylist()
    assert found == ["11.250000000", "20.000000000"]
    line = json.loads(run(ALL, "--out", str(out), "--json").stdout)
    assert (line["rows"], line["out"]) == (2, str(out))


def test_a_result_that_a_file_cannot_hold(run: Run, orders: Schema, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    query = "select interval 1 day as day"
    assert run(query, "--out", str(tmp_path / "rows.csv")).exit_code == 0
    done = CliRunner().invoke(
        cli, ["sql", query, "--out", str(out), "--log", str(tmp_path / "log")]
    )
    assert "cannot hold the result" in str(done.exception)
    assert not out.exists()


def test_an_event_stream(run: Run, orders: Schema) -> None:
    query = 'select key, value.mark[0]::int as first from "late-marks".events'
    assert json.loads(run(query, "--format", "ndjson").stdout) == {"key": "7", "first": 1}


@pytest.mark.parametrize(
    "args",
    [
        ["--at", "shop", ALL],
        ["--at", "=2", ALL],
        ["--at", "shop=", ALL],
        ["--at", "b=@2", ALL],
        ["--at", "shop=1", "--at", "shop=2", ALL],
        ["--format", "csv", "--json", ALL],
        ["--format", "csv", "--out", "x.csv", ALL],
        ["--out", "x.txt", ALL],
        ["--threads", "0", ALL],
        ["--cast", "amount", ALL],
        [],
    ],
)
def test_wrong_usage(run: Run, orders: Schema, args: list[str]) -> None:
    run(*args, code=2)


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (["selec 1"], "syntax error"),
        (["select nix from orders"], 'Referenced column "nix" not found'),
        (["from ordrs"], "has no table public.ordrs"),
        (["from read_csv('/etc/passwd')"], "is locked"),
        (["--at", "shop=99", "from orders"], "99"),
        (["--at", "shop=noon", "from orders"], "neither an offset nor a time"),
        (["--at", "shoq=1", "from orders"], "shoq"),
        (["--at", "late-marks=end", "from shop.public.orders"], "'shop' is no stream of this"),
        (["from orders", "--out", "/dev/null/x.csv"], "cannot be written"),
    ],
)
def test_a_failure_is_explained(
    log: eventlog.Log, orders: Schema, args: list[str], cause: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eventlog", "sql", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "EVENTLOG_DIR": str(log.path)},
    )
    assert_explained(done)
    assert cause in done.stderr


def test_a_log_without_streams_answers_what_needs_none(run: Run) -> None:
    assert run("select 40 + 2 as n", "--format", "ndjson").stdout == '{"n": 42}\n'


def test_a_cast(run: Run, orders: Schema) -> None:
    done = run("select amount from orders where id = 2", "--cast", "amount=float64", "--json")
    assert json.loads(done.stdout)["rows"] == [{"amount": 20.0}]


def test_many_rows_come_whole(run: Run, orders: Schema) -> None:
    done = run("select r from range(12345) t(r)", "--format", "ndjson")
    assert len(done.stdout.splitlines()) == 12345
    assert pa.types.is_int64(
        ipc.open_stream(run("select r from range(3) t(r)", "--format", "arrow").stdout_bytes)
        .read_all()["r"]
        .type
    )
