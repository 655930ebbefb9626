"""The command as a whole: help, versions, usage, and what ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import click
import pytest

import eventlog
from eventlog.cli.commands import GROUP
from tests.fix_postgres import RunCli, assert_explained

OWN = ["append", "check", "read", "repair", "snapshot", "streams", "tail"]
OURS = ["capture", "doctor", "drop-source", "status"]
PATHS = [(name,) for name in sorted({*OWN, *OURS} - {"snapshot"})] + [("snapshot", "export")]


def test_help_lists_every_command_with_a_summary(run_cli: RunCli) -> None:
    done = run_cli("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = done.stdout.partition("Commands:\n")[2].partition("Examples:")[0]
    words = [line.split() for line in listed.splitlines()]
    summaries = {line[0]: line[1:] for line in words if line}
    for name in [*OWN, *OURS]:
        assert summaries[name], name


def test_names_of_commands_come_without_loading_them() -> None:
    program = """
import sys, click
from eventlog.cli import cli
print(*cli.list_commands(click.Context(cli)))
print(*sorted(m for m in sys.modules if m.startswith(("eventlog.cli.", "cdc", "inference"))))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    names, loaded = done.stdout.splitlines()
    assert {*OWN, *OURS} <= set(names.split())
    assert loaded.split() == ["eventlog.cli.commands", "eventlog.cli.printing"]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_the_help_of_every_command_has_an_example(run_cli: RunCli, path: tuple[str, ...]) -> None:
    done = run_cli(*path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"eventlog {' '.join(path)}" in done.stdout.partition("Example")[2], done.stdout


def test_every_registered_command_is_a_command_of_that_name() -> None:
    for point in entry_points(group=GROUP):
        command = point.load()
        assert isinstance(command, click.Command)
        assert command.name == point.name


def test_version_is_that_of_the_distribution(run_cli: RunCli) -> None:
    assert run_cli("--version").stdout == f"eventlog, version {version('eventlog-cdc')}\n"


@pytest.mark.parametrize(
    "args", [("nothing",), ("read",), ("streams", "--nothing"), ("read", "a", "b")], ids=" ".join
)
def test_wrong_usage_exits_with_2(run_cli: RunCli, args: tuple[str, ...]) -> None:
    done = run_cli(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert "Usage: eventlog" in done.stderr and "Traceback" not in done.stderr


def test_the_log_comes_from_the_option_then_the_environment_then_the_default(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTLOG_DIR", raising=False)
    append = ("append", "clicks", "--create")
    assert run_cli(*append, input="1").returncode == 0
    assert run_cli(*append, input="1", env={"EVENTLOG_DIR": "b"}).returncode == 0
    args = (*append, "--log", "c")
    assert run_cli(*args, input="1", env={"EVENTLOG_DIR": "d"}).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"eventlog-data", "b", "c"}


def test_the_package_is_the_command_too() -> None:
    for module in ("eventlog", "eventlog.cli"):
        command = [sys.executable, "-m", module, "--version"]
        assert subprocess.check_output(command, text=True, timeout=60).startswith("eventlog, ")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["streams", "read clicks", "read clicks --json", "check"])
def test_a_closed_output_is_no_fault_and_no_file_of_the_log_takes_its_place(
    log: eventlog.Log, closed: str, command: str
) -> None:
    log.stream("clicks", create=True).append_many(range(1_000))
    before = (log.path / "data.mdb").read_bytes()
    shell = f'"$0" -m eventlog.cli {command} --log "$1" {closed}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, str(log.path)], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (log.path / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("command", ["streams", "read clicks", "read clicks --json", "check"])
def test_an_output_without_room_is_explained(log: eventlog.Log, command: str) -> None:
    log.stream("clicks", create=True).append_many(range(1_000))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "eventlog.cli", *command.split(), "--log", str(log.path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert_explained(done)
    assert "No space left" in done.stderr and done.stderr.count("\n") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_without_a_traceback(
    tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "eventlog.cli", "append", "clicks", "--create"),
            *("--log", str(tmp_path / "log")),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (tmp_path / "log").exists():
            assert process.poll() is None
        process.send_signal(number)
        said, complaint = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said == "" and complaint.strip() == ""


@pytest.mark.parametrize("command", ["capture", "drop-source"])
@pytest.mark.parametrize("name", ["Shop", "1shop", "shop.x", "", "-x", "x" * 300])
def test_what_is_no_source_name_is_refused(
    run_cli: RunCli, tmp_path: Path, command: str, name: str
) -> None:
    place = tmp_path / "log"
    named = (f"--source={name}", "--table=t") if command == "capture" else ("--", name)
    done = run_cli(command, "--dsn=host=127.0.0.1 port=1", f"--log={place}", *named)
    assert_explained(done)
    assert not place.exists()


def test_a_password_that_was_typed_draws_a_warning_and_is_never_repeated(
    run_cli: RunCli, tmp_path: Path
) -> None:
    dsn = "postgresql://cdc:hunter2@127.0.0.1:1/shop"
    args = ("drop-source", "shop", "--log", str(tmp_path / "log"))
    done = run_cli(*args, "--dsn", dsn)
    assert done.returncode == 1 and done.stderr.startswith("Warning: ")
    assert "hunter2" not in done.stdout + done.stderr
    done = run_cli(*args, env={"EVENTLOG_DSN": dsn})
    assert_explained(done)
    assert "hunter2" not in done.stderr
