"""`eventlog append`: every line stored, or the first bad one named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import eventlog
from tests.fix_log import MadeSource
from tests.fix_postgres import RunCli, assert_explained


def values(log: eventlog.Log, stream: str = "clicks") -> list[object]:
    return [event.value for event in log.stream(stream).read()]


def test_lines_become_events_in_order_with_their_keys(log: eventlog.Log, run_cli: RunCli) -> None:
    lines = '{"user": "a", "n": 1}\n\n{"user": 7, "n": 2.5}\r\n{"user": "ü", "n": null}'
    args = ("append", "clicks", "--create", "--key", "user", "--log", str(log.path))
    done = run_cli(*args, input=lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "stored 3 events in 'clicks', the last at offset 2\n"
    found = list(log.stream("clicks").read())
    assert [event.key for event in found] == ["a", "7", "ü"]
    assert found[1].value == {"user": 7, "n": 2.5}


def test_create_makes_a_log_that_only_its_owner_reads(tmp_path: Path, run_cli: RunCli) -> None:
    place = tmp_path / "new"
    args = ("append", "clicks", "--log", str(place))
    assert_explained(run_cli(*args, input="1\n"))
    assert not place.exists()
    done = run_cli(*args, "--create", "--json", input="1\n[2]\n")
    assert json.loads(done.stdout) == {"stream": "clicks", "stored": 2, "last_offset": 1}
    assert place.stat().st_mode & 0o077 == 0
    with eventlog.open(place) as log:
        assert values(log) == [1, [2]]
        assert log.check() == []


def test_no_input_stores_nothing(log: eventlog.Log, run_cli: RunCli) -> None:
    done = run_cli("append", "clicks", "--create", "--log", str(log.path), input="")
    assert (done.returncode, done.stdout) == (0, "stored 0 events in 'clicks'\n")


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        '{"n": NaN}',
        '{"n": 1e400}',
        "-1e400",
        '{"n": 1} x',
        '{"n": "\\ud800"}',
        '{"n": 18446744073709551616}',
        "null",
        "[" * 200 + "]" * 200,
        "[" * 100_000,
        "1" * 5000,
    ],
    ids=lambda bad: bad[:12],
)
def test_a_bad_line_stops_with_its_number_and_the_count_stored(
    log: eventlog.Log, run_cli: RunCli, bad: str
) -> None:
    args = ("append", "clicks", "--create", "--log", str(log.path))
    done = run_cli(*args, input=f'{{"n": 1}}\n\n{{"n": 2}}\n{bad}\n{{"n": 3}}\n')
    assert_explained(done)
    assert "line 4 cannot be stored" in done.stderr
    assert "events stored before it: 2" in done.stderr
    assert values(log) == [{"n": 1}, {"n": 2}]


def test_null_is_refused_in_the_words_of_the_command(log: eventlog.Log, run_cli: RunCli) -> None:
    args = ("append", "clicks", "--create", "--log", str(log.path))
    done = run_cli(*args, input="null\n")
    assert_explained(done)
    assert "line 1 cannot be stored: it is null" in done.stderr
    assert "append(" not in done.stderr


def test_an_array_over_several_lines_is_refused_with_the_way_to_send_it(
    log: eventlog.Log, run_cli: RunCli
) -> None:
    args = ("append", "clicks", "--create", "--log", str(log.path))
    done = run_cli(*args, input='[\n  {"n": 1},\n  {"n": 2}\n]\n')
    assert_explained(done)
    assert "line 1" in done.stderr and "`jq -c '.[]'`" in done.stderr
    assert values(log) == []


@pytest.mark.parametrize("first", ["", "\n"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(
    log: eventlog.Log, run_cli: RunCli, first: str
) -> None:
    args = ("append", "clicks", "--create", "--log", str(log.path))
    done = run_cli(*args, input=f'\ufeff{first}{{"n": 1}}\n')
    assert (done.returncode, done.stderr) == (0, "")
    assert values(log) == [{"n": 1}]
    assert_explained(run_cli(*args, input='1\n\ufeff{"n": 1}\n'))


def test_an_empty_id_is_none(log: eventlog.Log, run_cli: RunCli) -> None:
    args = ("append", "clicks", "--create", "--id", "id", "--log", str(log.path))
    done = run_cli(*args, input='{"id": ""}\n')
    assert_explained(done)
    assert "non-empty text or an integer" in done.stderr


def test_a_line_that_is_not_utf8_is_refused(log: eventlog.Log) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "eventlog.cli", "append", "clicks", "--create"),
            *("--log", str(log.path)),
        ],
        input=b'"ok"\n"\xff"\n',
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"line 2 cannot be stored: it is not UTF-8" in done.stderr
    assert values(log) == ["ok"]


@pytest.mark.parametrize("bad", ['{"user": true}', '{"user": 1.5}', "{}", "[1]", '{"user": null}'])
def test_a_line_without_its_key_is_refused(log: eventlog.Log, run_cli: RunCli, bad: str) -> None:
    args = ("append", "clicks", "--create", "--key", "user", "--log", str(log.path))
    done = run_cli(*args, input='{"user": 1}\n' + bad)
    assert_explained(done)
    assert "line 2 cannot be stored: it has no key in the field 'user'" in done.stderr
    assert values(log) == [{"user": 1}]


def test_more_than_one_commit_of_input_is_stored_in_order(
    log: eventlog.Log, run_cli: RunCli
) -> None:
    pad = "x" * 1000
    lines = "".join(json.dumps({"n": n, "pad": pad}) + "\n" for n in range(10_000))
    args = ("append", "clicks", "--create", "--log", str(log.path))
    done = run_cli(*args, input=lines + "bad\n")
    assert_explained(done)
    assert "line 10001 cannot be stored" in done.stderr
    assert [value["n"] for value in values(log)] == list(range(10_000))  # type: ignore[index]


def test_a_line_too_long_to_hold_is_refused(log: eventlog.Log, run_cli: RunCli) -> None:
    args = ("append", "clicks", "--create", "--log", str(log.path))
    done = run_cli(*args, input='1\n"' + "x" * (17 << 20) + '"\n')
    assert_explained(done)
    assert "line 2 is longer than 16 MiB" in done.stderr
    assert values(log) == [1]


def test_events_are_durable_while_the_input_is_still_open(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    with subprocess.Popen(
        [sys.executable, "-m", "eventlog.cli", "append", "clicks", "--log", str(log.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"n": 1}\n')
        process.stdin.flush()
        (batch,) = stream.follow("begin", until=1)
        assert [event.value for event in batch] == [{"n": 1}]
        process.kill()


def test_a_closed_stdin_is_refused_and_no_file_of_the_log_takes_its_place(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *("sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "eventlog.cli"),
            *("append", "clicks", "--create", "--log", str(tmp_path / "log")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert_explained(done)
    assert list(tmp_path.iterdir()) == []


def test_refused_before_anything_is_read(shop: MadeSource, tmp_path: Path, run_cli: RunCli) -> None:
    place = str(tmp_path / "log")
    assert_explained(run_cli("append", "clicks", "--log", place, input="1\n"))
    assert_explained(run_cli("append", "shop", "--create", "--log", place, input="1\n"))
    done = run_cli("append", "Bad", "--create", "--log", str(tmp_path / "other"), input="1\n")
    assert_explained(done)
    assert not (tmp_path / "other").exists()
