"""The demo: its whole course on a few days, what it refuses, and what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import eventlog
from cdc import Source
from cdc.commands.demo import demo
from cdc.commands.demo_narrator import TextNarrator
from cdc.demo import comparing, scenario
from cdc.demo.child import Child
from cdc.demo.comparing import Counts, Rebuilt, moment_of, rebuilt
from cdc.demo.home import MARKER, demo_log
from cdc.demo.narrator import Progress
from cdc.demo.replay import create_tables
from cdc.demo.summary import Summary
from eventlog.errors import EnvironmentFault, LogExists, SourceError
from tests.fix_postgres import Database, RunCli, assert_explained

FLIGHT = (
    "insert into flights (id, carrier, flight, tailnum, origin, dest, distance, sched_dep,"
    " sched_arr) values (%s, 'UA', 1, %s, 'EWR', 'IAH', 1400, '2013-01-01', '2013-01-01')"
)


def test_two_days_end_equal_and_leave_a_log_that_the_suggested_commands_read(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with demo_log(Path("left")) as old:
        old.stream("of-an-old-demo", create=True)
    done = run_cli("demo", "--days", "2", "--log", "left", "--json")
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert found["equal"] and found["applied"] == found["captured"]
    assert found["applied"]["inserts"] > found["flights"] > 1_000
    tables = [(t["table"], t["equal"], t["rows"] == t["postgres_rows"]) for t in found["rebuilt"]]
    assert tables == [(name, True, True) for name in comparing.KEYS] * 2
    halfway, end = found["rebuilt"][0], found["rebuilt"][2]
    assert 0 < halfway["offset"] < found["killed_at_offset"] < end["offset"]
    assert 0 < halfway["rows"] < end["rows"]
    assert 0 < found["score"]["labels"] <= found["score"]["predictions"]
    assert found["score"]["log_loss"] < found["score"]["base_log_loss"]

    told = done.stderr
    assert "killed the capture (SIGKILL" in told and "restarted it as process" in told
    assert told.count("equal to Postgres row for row") == 4
    assert "DIFFERENT" not in told and "Traceback" not in told

    with eventlog.open("left") as log:
        names = [info.name for info in log.streams()]
        assert names == [
            "flights",
            "flights-tables",
            "late-labels",
            "late-metrics",
            "late-models",
            "late-predictions",
        ]
        instances = [event.value["instance"] for event in log.stream("late-predictions").read()]
        assert len({i["offset"] for i in instances}) == len(instances)
        assert log.check() == []
    assert len(found["next"]) >= 5
    for command in found["next"]:
        assert command in told
        words = shlex.split(command)
        assert words[0] == "eventlog"
        tried = run_cli(*words[1:])
        assert (tried.returncode, tried.stderr) == (0, ""), command
        assert tried.stdout.strip(), command
    assert Path("flights.parquet").stat().st_size > 0


def test_ctrl_c_ends_the_server_and_every_other_process(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "eventlog.cli", "demo", "--log", str(tmp_path / "left")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert running.stdout is not None
        assert any("An application lives" in line for line in running.stdout)
        children = _wait_for_children(running.pid, 3)
        homes = [home for pid in children if (home := _server_home(pid))]
        assert len(homes) == 1 and homes[0].is_dir()
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert (running.returncode, told.strip()) == (130, "")
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert not homes[0].exists()
    with eventlog.open(tmp_path / "left") as log:
        assert log.check() == []


def test_a_difference_is_told_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = Summary(
        log="left",
        applied=Counts(inserts=2, updates=1, deletes=0),
        captured=Counts(inserts=2, updates=0, deletes=0),
        seconds={"all": 1.0},
    )
    monkeypatch.setattr(scenario, "run", lambda *_: summary)
    done = CliRunner().invoke(demo, ["--log", str(tmp_path / "left"), "--json"])
    assert json.loads(done.stdout)["equal"] is False
    assert isinstance(done.exception, SourceError)
    table = Rebuilt(table="t", offset=9, rows=2, postgres_rows=2, differing=0)
    assert replace(summary, captured=summary.applied, rebuilt=[table]).equal
    for wrong in (replace(table, differing=1), replace(table, postgres_rows=3)):
        assert not replace(summary, captured=summary.applied, rebuilt=[wrong]).equal


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal: bool) -> None:
    shown = io.StringIO()
    tell = TextNarrator(Console(file=shown, force_terminal=terminal, width=100, highlight=False))
    day = np.datetime64("2013-01-31T12:00")
    tell.step("[bold] is no markup")
    for applied in (10, 30, 1_000):
        now = Progress(total=1_000, applied=applied, captured=applied - 7, at=day)
        tell.progress(now)
    tell.say("a line")
    tell.table(("what", "count"), [("rows", "1,000"), ("more", "7")])
    tell.end(1.5, ["eventlog streams"])
    text = shown.getvalue()
    assert "[bold] is no markup" in text and "2013-01-31" in text
    if terminal:
        assert "captured 993" in text and "\x1b[?25h" in text, "the cursor is shown again"
    else:
        assert "1,000 of 1,000 applied, log 7 behind" in text
        assert text.count("applied") == 1 and "\x1b" not in text
        assert "   rows  1,000\n   more      7\n" in text


def test_rows_are_compared_in_every_column(database18: Database, log: eventlog.Log) -> None:
    create_tables(database18.dsn)
    for number, tailnum in enumerate([None, "", "N1", "N2"]):
        database18.execute(FLIGHT, [number, tailnum])
    source = Source("flights", database18.dsn, ["public.*"])
    source.capture(log, until="current")
    same = moment_of(database18.dsn)
    assert same.tables["public.flights"]["tailnum"].to_pylist() == [None, "", "N1", "N2"]
    for table, rows in (("public.flights", 4), ("public.weather", 0)):
        found = rebuilt(log, "flights", table, same)
        assert (found.equal, found.rows, found.differing) == (True, rows, 0)

    database18.execute("update flights set tailnum = '' where id = 0")
    changed = rebuilt(log, "flights", "public.flights", moment_of(database18.dsn))
    assert (changed.equal, changed.rows, changed.postgres_rows) == (False, 4, 4)
    assert changed.differing == 2, "the row as it is in each"
    database18.execute("delete from flights where id > 1")
    fewer = rebuilt(log, "flights", "public.flights", moment_of(database18.dsn))
    assert (fewer.equal, fewer.postgres_rows, fewer.differing) == (False, 2, 4)

    source.capture(log, until="current")
    now = moment_of(database18.dsn)
    assert rebuilt(log, "flights", "public.flights", now).equal
    then = rebuilt(log, "flights", "public.flights", same)
    assert then.equal and then.rows == 4, "the past stays what it was"
    assert comparing.counts_of(log, "flights") == Counts(inserts=4, updates=1, deletes=2)


def test_a_directory_that_holds_anything_else_is_refused_and_not_touched(
    tmp_path: Path, run_cli: RunCli
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    done = run_cli("demo", "--log", str(foreign))
    assert_explained(done)
    assert str(foreign) in done.stderr and "--log" in done.stderr
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_a_log_that_no_demo_made_is_refused(tmp_path: Path) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        log.stream("clicks", create=True).append({"user": 7})
    with pytest.raises(LogExists, match="holds no demo log"), demo_log(tmp_path / "log"):
        pass
    with eventlog.open(tmp_path / "log") as log:
        assert log.stream("clicks").end == 1


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogExists), demo_log(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_an_old_demo_log_is_replaced_but_not_what_was_put_beside_it(tmp_path: Path) -> None:
    home = tmp_path / "log"
    home.mkdir()
    with demo_log(home) as log:
        log.stream("first", create=True)
    with demo_log(home) as log:
        assert log.streams() == []
        log.stream("second", create=True)
    assert (home / MARKER).stat().st_mode & 0o777 == 0o600
    (home / "export.parquet").write_text("mine")
    with pytest.raises(LogExists, match=r"export\.parquet"), demo_log(home):
        pass
    with eventlog.open(home) as log:
        assert [info.name for info in log.streams()] == ["second"]


def test_a_replacement_that_was_cut_off_is_taken_up(tmp_path: Path) -> None:
    with demo_log(tmp_path / "log") as log:
        log.stream("first", create=True)
    (tmp_path / "log" / "data.mdb").unlink()
    with demo_log(tmp_path / "log") as log:
        assert log.streams() == []


def test_two_demos_never_share_a_directory(tmp_path: Path) -> None:
    with demo_log(tmp_path / "log") as log:
        log.stream("first", create=True)
        with pytest.raises(LogExists, match="another demo"), demo_log(tmp_path / "log"):
            pass
        assert [info.name for info in log.streams()] == ["first"]


def test_more_days_than_the_months_have_are_refused(tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("demo", "--days", "60", "--log", str(tmp_path / "left"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--full" in done.stderr and not (tmp_path / "left").exists()


def test_a_child_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    says = tmp_path / "says.txt"
    missing = str(tmp_path / "missing")
    child = Child("eventlog.cli", "read", "flights", "--log", missing, says=says)
    with child, pytest.raises(EnvironmentFault, match="holds no event log") as caught:
        child.wait(60)
    assert "exit code 1" in str(caught.value) and "--log" in caught.value.hint
    assert says.stat().st_mode & 0o777 == 0o600


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        log.stream("clicks", create=True)
    program = """
import sys
from pathlib import Path
from cdc.demo.child import Child
child = Child("eventlog.cli", "tail", "clicks", "--log", sys.argv[1], says=Path(sys.argv[2]))
print(child.pid, flush=True)
child.wait(600)
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "log"), str(tmp_path / "says")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        while _state(pid) is not None and b"tail" not in _command(pid):
            time.sleep(0.01)
        assert _state(pid) is not None, "it runs while its parent does"
        parent.kill()
    deadline = time.monotonic() + 60
    while _state(pid) not in (None, "Z") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _state(pid) in (None, "Z")


def _wait_for_children(pid: int, count: int) -> list[int]:
    """The direct children of a process, once there are that many."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        if len(text.split()) >= count:
            return [int(word) for word in text.split()]
        time.sleep(0.02)
    raise AssertionError(f"the demo never had {count} children")


def _server_home(pid: int) -> Path | None:
    """The throw-away directory, if the process is the server."""
    words = _command(pid).decode().split("\0")
    return Path(words[words.index("-D") + 1]).parent if "-D" in words else None


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def _state(pid: int) -> Any:
    """The state letter of a process; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
