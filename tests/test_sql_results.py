"""Results of queries: kept in bounded memory, read by pieces, in the forms of `read --json`."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import ipc
from pyarrow import parquet as pq

import eventlog
from eventlog.cli import cli
from eventlog.errors import EnvironmentFault, UsageError
from eventlog.snapshots.sql import kept_rows
from eventlog.snapshots.sql.result import Result
from tests.fix_log import (
    BOOL,
    BYTEA,
    FLOAT,
    INT,
    NUMERIC,
    TIMESTAMPTZ,
    MadeSource,
    column,
    insert,
)
from tests.held_memory import measured

MANY = (
    "select r, md5(r::text) as m, case when r % 3 = 0 then null else r / 4 end as f, r as r "
    "from range(9000) t(r)"
)
DATE, TIME, TIMESTAMP, REAL, REALS, INTS, INTERVAL = 1082, 1083, 1114, 700, 1021, 1007, 1186


@pytest.fixture
def ask(log: eventlog.Log) -> Callable[..., Result]:
    """Asks what needs no table."""
    snapshot = log.snapshot("clicks") if log.stream("clicks", create=True) else None
    assert snapshot is not None
    return snapshot.sql


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where large results go, from 50,000 bytes on."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr(kept_rows, "IN_MEMORY_BYTES", 50_000)
    return place


# Kept rows


def test_many_rows_are_kept_in_a_file_that_nobody_sees(
    ask: Callable[..., Result], temporary: Path
) -> None:
    with mock.patch.object(kept_rows, "IN_MEMORY_BYTES", 1 << 30):
        whole = ask(MANY)
    filed = ask(MANY)
    assert filed._rows._file is not None and whole._rows._file is None
    assert list(temporary.iterdir()) == [], "the file has no name any more"
    assert filed.to_arrow().equals(whole.to_arrow())
    assert filed.columns == ["r", "m", "f", "r_1"] == filed.schema.names
    assert filed.num_rows == whole.num_rows == len(list(filed)) == 9_000
    assert list(filed) == list(whole) == list(filed), "as often as one likes"
    assert list(filed.as_json()) == list(whole.as_json())
    assert repr(filed) == repr(whole)
    assert filed.to_pandas().equals(whole.to_pandas())


@pytest.mark.parametrize("rows", [1, 7, 2_048, 5_000, 100_000])
def test_pieces_have_at_most_so_many_rows_and_all_of_them(
    ask: Callable[..., Result], temporary: Path, rows: int
) -> None:
    found = ask(MANY.replace("9000", "5100"))
    pieces = list(found.to_batches(max_rows=rows))
    assert max(piece.num_rows for piece in pieces) <= rows
    assert all(piece.num_rows > 0 and piece.schema == found.schema for piece in pieces)
    assert pa.concat_tables(pieces).equals(found.to_arrow())
    if rows >= 2_048:
        assert len(pieces) <= 5_100 // (rows // 2) + 1, "no more pieces than need be"


def test_pieces_of_long_values_have_fewer_rows(ask: Callable[..., Result]) -> None:
    found = ask("select repeat('x', 9000) as x from range(9000) t(r)")
    pieces = list(found.to_batches())
    assert len(pieces) > 3 and sum(piece.num_rows for piece in pieces) == 9_000
    assert max(piece.nbytes for piece in pieces) < 20 << 20


def test_no_rows_are_one_empty_piece(ask: Callable[..., Result], temporary: Path) -> None:
    found = ask("select 1::bigint as a, 'x' as a where false")
    (piece,) = found.to_batches()
    assert piece.num_rows == 0 == len(found) and piece.column_names == ["a", "a_1"]
    assert list(found) == [] == list(found.as_json())
    with pytest.raises(UsageError, match="max_rows=0 is no number"):
        found.to_batches(max_rows=0)


def test_a_result_outlives_its_log_and_is_read_by_many_threads(
    tmp_path: Path, temporary: Path
) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        log.stream("clicks", create=True)
        found = log.snapshot("clicks").sql(MANY)
        assert log.check() == []
    sums: list[int] = []
    threads = [
        threading.Thread(target=lambda: sums.append(sum(row[0] for row in found))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [sum(range(9_000))] * 4


def test_a_full_disk_is_explained_and_leaves_nothing(
    ask: Callable[..., Result], temporary: Path
) -> None:
    full = OSError(28, "No space left on device")
    writer = mock.Mock(**{"write_batch.side_effect": full})
    with (
        mock.patch("pyarrow.ipc.new_stream", return_value=writer),
        pytest.raises(EnvironmentFault, match=r"the result cannot be kept: .*No space") as refused,
    ):
        ask(MANY)
    assert "TMPDIR" in refused.value.hint
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("rows", [10, 30_000])
def test_an_error_between_rows_says_what_and_where(
    ask: Callable[..., Result], temporary: Path, rows: int
) -> None:
    text = f"case when r = {rows - 1} then 'x' else '1' end"
    with pytest.raises(UsageError) as refused:
        ask(f"select\n ({text})::int from range({rows}) t(r)")
    assert "at line 2, column" in str(refused.value)
    assert "Could not convert string 'x' to INT32" in str(refused.value)
    assert "\n" not in str(refused.value) and refused.value.hint
    assert list(temporary.iterdir()) == []


# Memory


def test_what_outgrows_the_memory_limit_is_on_disk_and_the_answer_is_the_same(
    log: eventlog.Log, shop: MadeSource, temporary: Path
) -> None:
    table = shop.table("t", column("id", INT, key=True), column("note"))
    for start in range(0, 4_000, 400):
        notes = ((i, f"{i * 7919 % 4_000:>4}" * 4_000) for i in range(start, start + 400))
        shop.commit(*(insert(table, i, note) for i, note in notes))
    snapshot = log.snapshot("shop")
    spilt: list[bool] = []
    real = kept_rows.keep

    def spying(schema: Any, batches: Any, path: Path) -> Any:
        found = real(schema, batches, path)
        spilt.append(any(path.with_name("spill").iterdir()))
        return found

    queries = (
        "select sum(length(note)), min(id), max(left(note, 8)) from t",
        "select repeat(md5(r::text), 2) as m, r from range(400000) t(r) order by m desc",
    )
    with mock.patch("eventlog.snapshots.sql.answering.keep", spying):
        for query in queries:
            little = snapshot.sql(query, memory_limit="40MiB").to_arrow()
            assert little.equals(snapshot.sql(query).to_arrow()), query
    assert spilt == [True, False] * len(queries)
    assert list(temporary.iterdir()) == []


def test_memory_that_does_not_suffice_is_explained(ask: Callable[..., Result]) -> None:
    query = "select string_agg(md5(r::text)) as all from range(3000000) t(r)"
    with pytest.raises(EnvironmentFault, match="needs more than there is") as refused:
        ask(query, memory_limit=40 << 20)
    assert "--memory-limit" in refused.value.hint and "\n" not in str(refused.value)
    for limit in ("1MB", 0, "much", -1, "31MiB", 2**63, "9" * 20 + "TB", "1" * 400 + "GB"):
        with pytest.raises(UsageError) as wrong:
            ask("select 1", memory_limit=limit)
        assert wrong.value.hint
    assert list(ask("select 1", memory_limit="32MiB")) == [(1,)]


@pytest.mark.parametrize("threads", [0, -1, 257, 10**6, 2**70, "2", True, None])
def test_threads_that_cannot_be_are_refused(ask: Callable[..., Result], threads: Any) -> None:
    with pytest.raises(UsageError, match=r"threads=.* is no number of threads"):
        ask("select 1", threads=threads)
    assert list(ask("select 1", threads=2)) == [(1,)]


# Values


def test_what_python_cannot_hold_is_text_where_rows_are_iterated(
    ask: Callable[..., Result], temporary: Path
) -> None:
    query = (
        "select 'infinity'::timestamptz as a, ['-infinity'::date, null] as b, r, "
        "case when r % 2 = 0 then timestamp '2026-01-31' else 'infinity' end as c "
        "from range(3) t(r)"
    )
    day = dt.datetime(2026, 1, 31)
    wanted = [("infinity", ["-infinity", None], r, "infinity" if r % 2 else day) for r in range(3)]
    assert list(ask(query)) == wanted


def test_unions_are_results_as_other_values_are(
    ask: Callable[..., Result], temporary: Path
) -> None:
    found = ask("select union_value(a := r) as u, r as u from range(9000) t(r)")
    assert found._rows._file is not None
    assert list(found) == [(r, r) for r in range(9000)]
    assert next(found.as_json()) == {"u": 0, "u_1": 0}
    empty = ask("select union_value(a := 1) as u where false")
    assert (empty.columns, list(empty), list(empty.as_json())) == (["u"], [], [])


MEASURED = """
import sys
from eventlog.__main__ import main
import pyarrow
pyarrow.array([])  # Loads pandas, once, which is not the result's.
import eventlog.snapshots.sql.result as result
from eventlog.snapshots.sql import kept_rows
kept_rows.IN_MEMORY_BYTES = 1 << 20
result.PIECE_BYTES = 1 << 20
real, peaks = result.Result._piece, []

def sampled(self, batches):
    peaks.append(anonymous())
    return real(self, batches)

result.Result._piece = sampled
try:
    sys.argv[0] = "eventlog"
    main()
finally:
    print(len(peaks), max(peaks) - peaks[0], file=sys.stderr)
"""
ROWS, WIDTH = 80_000, 512


@pytest.mark.parametrize(
    "args",
    [["--format", "ndjson"], ["--format", "csv"], ["--out", "x.parquet"]],
    ids=" ".join,
)
def test_printing_a_large_result_takes_little_memory(
    log: eventlog.Log, tmp_path: Path, args: list[str]
) -> None:
    log.stream("clicks", create=True)
    query = f"select r, repeat(md5(r::text), {WIDTH // 32}) as m from range({ROWS}) t(r)"
    command = ["sql", query, *args, "--log", str(log.path)]
    with (tmp_path / "out").open("wb") as out:
        done = measured(MEASURED, *command, stdout=out, cwd=tmp_path)
    pieces, grown = map(int, done.stderr.splitlines()[-1].split())
    assert pieces > 20
    assert grown < ROWS * WIDTH // 2, "held whole, it would be more than all of it"
    written = next(tmp_path.glob("x.*"), tmp_path / "out")
    assert written.stat().st_size > (0 if written.suffix == ".parquet" else ROWS * WIDTH)


def test_a_query_that_computes_long_between_rows_can_be_interrupted(log: eventlog.Log) -> None:
    log.stream("clicks", create=True)
    never = "select r from range(9000000000000) t(r) where r < 5000 or hash(r) = 7"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(log.path), never],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told


INTERRUPTED = """
import sys
import eventlog
from eventlog.snapshots.sql import answering

real = answering._interruptible

def telling(connection, reader):
    print("asked", flush=True)
    yield from real(connection, reader)

answering._interruptible = telling
with eventlog.open(sys.argv[1]) as log:
    try:
        log.snapshot("clicks").sql(sys.argv[2])
    except KeyboardInterrupt:
        sys.exit(0)
sys.exit(3)
"""


# Forms


@pytest.fixture
def run(log: eventlog.Log) -> Callable[..., Any]:
    def call(*args: str) -> Any:
        done = CliRunner().invoke(cli, ["sql", *args], env={"EVENTLOG_DIR": str(log.path)})
        assert done.exit_code == 0, (done.output, done.exception)
        return done

    return call


def test_sql_prints_a_row_as_read_does(
    log: eventlog.Log, shop: MadeSource, run: Callable[..., Any], tmp_path: Path
) -> None:
    kinds = shop.table(
        "kinds",
        column("id", INT, key=True),
        column("price", NUMERIC, typmod=(12 << 16 | 2) + 4),
        column("n", NUMERIC, typmod=(30 << 16 | 9) + 4),
        column("yes", BOOL),
        column("raw", BYTEA),
        column("at", TIMESTAMPTZ),
        column("plain_at", TIMESTAMP),
        column("day", DATE),
        column("hour", TIME),
        column("f", FLOAT),
        column("r", REAL),
        column("ints", INTS),
        column("reals", REALS),
        column("note"),
    )
    when = "2026-01-31 12:00:00"
    shop.commit(
        insert(kinds, 1, "12.50", "0.000000001", "t", r"\x00ff", f"{when}.5+00", when,
               "2026-01-31", "12:30:00.25", "0.1", "0.1", "{1,NULL,3}", "{0.1,NaN}", 'a"b,\n'),
        insert(kinds, 2, "-0.05", "0.000000000", "f", r"\x", f"{when}+00", f"{when}.000001",
               "0001-01-01", "00:00:00", "NaN", "-Infinity", "{}", "{}", ""),
        insert(kinds, 3, *[None] * 13),
        insert(kinds, 4, "0.00", "1.500000000", "t", r"\x5c", "1969-12-31 23:59:59.999999+00",
               "9999-12-31 23:59:59", "9999-12-31", "23:59:59.999999", "Infinity", "1.5e+30",
               "{-1}", "{-Infinity,1e-07}", "NULL"),
    )  # fmt: skip
    read = [json.loads(line)["row"] for line in log.stream("shop").read().json_lines()]
    query = "select * from kinds order by id"
    lines = run(query, "--format", "ndjson").stdout.splitlines()
    assert [json.loads(line) for line in lines] == read
    whole = run(query, "--json").stdout
    assert json.loads(whole)["rows"] == read and whole.count("\n") == 1
    for args in (["--format", "csv"], ["--out", str(tmp_path / "x.csv")]):
        printed = run(query, *args).stdout
        text = printed if "--format" in args else Path(args[1]).read_text()
        names, *rows = csv.reader(io.StringIO(text))
        assert names == list(read[0])
        assert [list(map(of_csv, row)) for row in rows] == [
            [of_csv(as_csv(value)) for value in row.values()] for row in read
        ]
        assert ',"a""b,\n"\n' in text, "as one field of one record"
        assert '"{}"' not in text and "\n3,,,,,,,,,,,,,\n" in text, "null is no text"
    exported = CliRunner().invoke(
        cli,
        ["snapshot", "export", "shop", "--table", "kinds", "--out", str(tmp_path / "y.csv"),
         "--log", str(log.path)],
    )  # fmt: skip
    assert exported.exit_code == 0
    assert sorted((tmp_path / "y.csv").read_text()) == sorted(text), "one form for both"


def as_csv(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


def of_csv(text: str) -> Any:
    """Numbers have several forms."""
    try:
        return float(text) if text not in ("NaN", "") else text
    except ValueError:
        return text


def test_sums_and_other_values_that_only_queries_make(run: Callable[..., Any]) -> None:
    query = """
        select sum(d) as money, sum(i) as whole, count(*) as n, avg(f) as mean, [d, null] as l,
            {'at': timestamptz '2026-01-31 12:00:00+01', 'f': 'nan'::double} as s,
            map {'k': 1.10} as m, interval '14 months -3 days 04:05:06.5' as i, null as nothing,
            d::double / 0 as inf, -0.0::double as zero, timestamp 'infinity' as late,
            date '-infinity' as early, timestamp '0044-03-15 (BC) 10:00:00' as caesar,
            timestamptz '12026-01-31 00:00:00.25+00' as far, time '24:00:00' as midnight,
            0.1::float as single, 'sad'::enum('ok', 'sad') as mood, 7::utinyint as tiny,
            uuid '00000000-0000-0000-0000-00000000000a' as u, 9007199254740993 as big,
            0.000000001::decimal(38,9) as small, true as yes, '\\x01'::blob as raw
        from (select 1.05::decimal(12,2) as d, 3 as i, 0.5::double as f) group by all"""
    found = json.loads(run(query, "--format", "ndjson").stdout)
    assert found == {
        "money": "1.05", "whole": "3", "n": 1, "mean": 0.5, "l": ["1.05", None],
        "s": {"at": "2026-01-31 11:00:00+00", "f": "NaN"}, "m": [["k", "1.10"]],
        "i": "P1Y2M-3DT4H5M6.5S", "nothing": None, "inf": "Infinity", "zero": 0.0,
        "late": "infinity", "early": "-infinity", "caesar": "0044-03-15 10:00:00 BC",
        "far": "12026-01-31 00:00:00.25+00", "midnight": "24:00:00", "single": 0.1, "mood": "sad",
        "tiny": 7, "u": "00000000-0000-0000-0000-00000000000a", "big": 9007199254740993,
        "small": "0.000000001", "yes": True, "raw": "\\x01",
    }  # fmt: skip
    names, row = csv.reader(io.StringIO(run(query, "--format", "csv").stdout))
    told = dict(zip(names, row, strict=True))
    assert {name: told[name] for name in ("money", "whole", "inf", "late", "small", "nothing")} == {
        "money": "1.05", "whole": "3", "inf": "Infinity", "late": "infinity",
        "small": "0.000000001", "nothing": "",
    }  # fmt: skip
    assert json.loads(told["s"]) == found["s"] and told["i"] == found["i"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("340282366920938463463374607431768211455::uhugeint", "UHUGEINT"),
        ("timetz '10:00:00+02'", "TIME WITH TIME ZONE"),
        ("'101'::bit", "BIT"),
        ("[timetz '10:00:00+02']", "TIME WITH TIME ZONE"),
        ("{'a': [1::uhugeint]}", "UHUGEINT"),
        ("map {'101'::bit: 1}", "BIT"),
        ("5::bignum", "BIGNUM"),
        ("array_value('1'::bit, '0'::bit)", "BIT"),
    ],
)
def test_types_that_would_be_told_wrongly_are_refused(
    ask: Callable[..., Result], value: str, kind: str
) -> None:
    with pytest.raises(UsageError, match=f"column 'a' of the result has values of type {kind}"):
        ask(f"select {value} as a")
    assert len(ask(f"select ({value})::varchar as a")) == 1
    assert ask("select {'BIT': 1, 'x': 'UHUGEINT'} as a, 'BIT'::enum('BIT') as b").num_rows == 1


def test_files_and_streams_of_a_large_result_are_whole(
    run: Callable[..., Any], log: eventlog.Log, temporary: Path, tmp_path: Path
) -> None:
    log.stream("clicks", create=True)
    expected = log.snapshot("clicks").sql(MANY)
    wanted = expected.to_arrow()
    assert ipc.open_stream(run(MANY, "--format", "arrow").stdout_bytes).read_all().equals(wanted)
    for suffix, read in ((".parquet", pq.read_table), (".arrow", read_ipc)):
        out = tmp_path / f"x{suffix}"
        assert run(MANY, "--out", str(out)).stdout == f"9,000 rows in {out}\n"
        assert read(out).equals(wanted)
    lines = run(MANY, "--format", "ndjson").stdout.splitlines()
    assert list(map(json.loads, lines)) == list(expected.as_json())
    assert json.loads(run(MANY, "--json").stdout)["rows"] == list(expected.as_json())
    assert json.loads(run("select 1 as a where false", "--json").stdout)["rows"] == []
    rows = list(csv.reader(io.StringIO(run(MANY, "--format", "csv").stdout)))
    assert rows[0] == expected.columns and [row[1] for row in rows[1:]] == [r[1] for r in expected]
    assert len(run(MANY).stdout.splitlines()) == 9_001


def read_ipc(path: Path) -> pa.Table:
    return ipc.open_file(path).read_all()
