"""`eventlog capture`, `drop-source` and `status` over a source of the test's own: no server."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cdc.driver
import cdc.source
import eventlog
from cdc.commands.capture import capture
from cdc.commands.drop_source import drop_source
from cdc.commands.status import status
from cdc.driver import Lag
from cdc.errors import ConnectionRefused, MissingTable, OtherSystem, SlotInUse
from cdc.options import Event, Options, Outcome, Report
from cdc.postgres.driver import DRIVER, threat
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.publishing.slot import SlotState
from cdc.postgres.state import Phase, SourceState
from cdc.requests import ask
from eventlog.engine import Plan, SourceUpdate
from tests.fix_log import MadeSource, column, insert


class MadeDriver:
    """A driver whose captures report three events, and end when a signal comes, if told to wait."""

    def __init__(self) -> None:
        self.options: Options | None = None
        self.dropped: list[tuple[str, Mapping[str, Any] | None]] = []
        self.lag_or_error: Lag | Exception = Lag(bytes=1234, seconds=0.5, retained_bytes=4096)
        self.fault: Exception | None = None
        self.absent: Exception | None = None
        self.waits_for: signal.Signals | None = None
        self.slot: str | None = "eventlog_shop"

    def capture(
        self, log: eventlog.Log, name: str, dsn: str, options: Options, report: Report
    ) -> MadeRun:
        self.options = options
        return MadeRun(self, log, name, report)

    def drop(self, dsn: str, name: str, state: Mapping[str, Any] | None) -> list[str]:
        self.dropped.append((name, state))
        return ["slot s", "publication p"] if len(self.dropped) == 1 else []

    def lag(self, dsn: str, state: Mapping[str, Any]) -> Lag:
        if isinstance(self.lag_or_error, Exception):
            raise self.lag_or_error
        return self.lag_or_error

    def tables(self, dsn: str, patterns: Sequence[str]) -> list[str]:
        if self.absent is not None:
            raise self.absent
        return list(patterns)

    def copied_share(self, cursor: Mapping[str, Any]) -> float | None:
        return DRIVER.copied_share(cursor)

    def warnings(self, dsn: str) -> list[str]:
        return ["it shows a secret"] if "secret" in dsn else []


class MadeRun:
    def __init__(self, driver: MadeDriver, log: eventlog.Log, name: str, report: Report) -> None:
        self._driver = driver
        self._log = log
        self._name = name
        self._report = report
        self._stopped = False

    def run(self) -> Outcome:
        self._report(Event(kind="warning", text="table t has no key"))
        self._report(Event(kind="copying", text="copying t: 1 rows"))
        self._report(Event(kind="copied", text="copied t: 2 rows", table="t", rows=2))
        if self._driver.fault is not None:
            raise self._driver.fault
        if self._driver.waits_for is not None:
            os.kill(os.getpid(), self._driver.waits_for)
            assert self._stopped, "the signal is to stop the capture"
        self._log.engine.create_stream(self._name, "captured")
        return Outcome(position="0/10", rows=2, slot=self._driver.slot)

    def stop(self) -> None:
        self._stopped = True

    @property
    def made_beside(self) -> Sequence[Path]:
        return ()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> MadeDriver:
    made = MadeDriver()
    monkeypatch.setattr(cdc.driver, "driver_of", lambda dsn: made)
    monkeypatch.setattr(cdc.source, "driver_of", lambda dsn: made)
    return made


def run(command: Any, *args: str, env: Mapping[str, str] | None = None) -> Result:
    done = CliRunner().invoke(command, args, env=env)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_a_capture_tells_people_what_happens_and_what_stays(
    driver: MadeDriver, log_dir: Path
) -> None:
    args = ("--source", "shop", "--dsn", "service=shop", "--table", "t", "--log", str(log_dir))
    done = run(capture, *args)
    assert done.stderr == "Warning: table t has no key\n"
    lines = done.stdout.splitlines()
    assert lines[:2] == ["copied t: 2 rows", "captured shop up to 0/10: 2 changes"]
    assert "keeps its WAL for slot eventlog_shop" in lines[2]
    command = lines[3].partition(": ")[2]
    assert command == f"eventlog drop-source shop --dsn service=shop --log {log_dir}"
    with eventlog.open(log_dir) as log:
        assert log.check() == []


def test_a_capture_tells_programs_one_object_an_event(driver: MadeDriver, log_dir: Path) -> None:
    args = ("--source", "shop", "--dsn", "d", "--table", "t", "--log", str(log_dir), "--json")
    found = [json.loads(line) for line in run(capture, *args).stdout.splitlines()]
    assert [event["kind"] for event in found] == ["warning", "copying", "copied", "ended"]
    assert (found[2]["table"], found[2]["rows"]) == ("t", 2)
    assert (found[3]["position"], found[3]["slot"]) == ("0/10", "eventlog_shop")
    assert found[3]["drop"].startswith("eventlog drop-source shop --dsn d")


def test_every_option_reaches_the_capture(driver: MadeDriver, log_dir: Path) -> None:
    run(
        capture,
        *("--source", "shop", "--dsn", "d", "--log", str(log_dir), "--until", "current"),
        *("--table", "a", "--table", "public.*", "--no-copy", "--temporary"),
        *("--slot", "s", "--publication", "p"),
    )
    assert driver.options == Options(
        tables=("a", "public.*"),
        until="current",
        copy=False,
        temporary=True,
        slot="s",
        publication="p",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_capture_in_order_with_0(
    driver: MadeDriver, log_dir: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    driver.waits_for = number
    done = run(capture, "--source", "shop", "--dsn", "d", "--table", "t", "--log", str(log_dir))
    assert "captured shop up to 0/10" in done.stdout
    assert signal.getsignal(number) is before


def test_without_a_slot_that_stays_nothing_is_to_be_dropped(
    driver: MadeDriver, log_dir: Path
) -> None:
    driver.slot = None
    done = run(capture, "--source", "shop", "--dsn", "d", "--table", "t", "--log", str(log_dir))
    assert "WAL" not in done.output and "drop-source" not in done.output


def test_the_command_to_drop_never_shows_a_secret(driver: MadeDriver, log_dir: Path) -> None:
    args = ("--source", "shop", "--table", "t", "--log", str(log_dir))
    typed = run(capture, *args, "--dsn", "password=secret")
    assert "Warning: it shows a secret\n" in typed.stderr
    hidden = run(capture, *args, env={"EVENTLOG_DSN": "password=secret"})
    assert "shows a secret" not in hidden.stderr
    for done in (typed, hidden):
        assert "--dsn env:EVENTLOG_DSN" in done.stdout and "password" not in done.stdout


@pytest.mark.parametrize("dsn", ["host='a b' dbname=x", "host='$x' user=\"y\"", "service=shop"])
def test_the_command_to_drop_can_be_pasted_into_a_shell(
    driver: MadeDriver, log_dir: Path, dsn: str
) -> None:
    args = ("--source", "shop", "--table", "t", "--log", str(log_dir), "--dsn", dsn)
    command = run(capture, *args).stdout.splitlines()[-1].partition(": ")[2]
    words = ["eventlog", "drop-source", "shop", "--dsn", dsn, "--log", str(log_dir)]
    assert shlex.split(command) == words


def test_a_fault_of_the_capture_comes_through(driver: MadeDriver, log_dir: Path) -> None:
    driver.fault = ConnectionRefused("no server", hint="start it")
    with pytest.raises(ConnectionRefused, match="no server"):
        run(capture, "--source", "shop", "--dsn", "d", "--table", "t", "--log", str(log_dir))


def test_a_source_without_the_tables_leaves_no_log(driver: MadeDriver, log_dir: Path) -> None:
    driver.absent = MissingTable("there is no table public.t", hint="did you mean s?")
    args = ("--source", "shop", "--dsn", "d", "--table", "t", "--log", str(log_dir))
    with pytest.raises(MissingTable, match="no table"):
        run(capture, *args)
    assert not log_dir.exists()
    driver.absent = None
    run(capture, *args)
    assert log_dir.exists()
    # What is there already is the capture's own affair: a table may have been renamed since.
    driver.absent = MissingTable("there is no table public.t")
    run(capture, *args)


def test_drop_source_says_what_was_removed_and_what_stays(
    driver: MadeDriver, log: eventlog.Log, shop: MadeSource
) -> None:
    shop.commit(insert(shop.table("t", column("x")), "a"))
    shop.close()
    args = ("shop", "--dsn", "d", "--log", str(log.path))
    said = run(drop_source, *args).stdout.splitlines()
    assert said[:2] == ["dropped slot s", "dropped publication p"]
    assert f"1 record up to 0/2BD00 in {log.path}" in said[2]
    assert driver.dropped == [("shop", log.source("shop"))]
    assert [info.name for info in log.streams()] == ["shop"]
    said = run(drop_source, *args).stdout.splitlines()
    assert said[0] == "the server holds no slot and no publication of source 'shop'"
    found = json.loads(run(drop_source, *args, "--json").stdout)
    stays = {"stream": "shop", "records": 1, "position": "0/2BD00"}
    assert found == {"source": "shop", "dropped": [], "stays": stays}


def test_drop_source_touches_nothing_while_a_capture_runs_in_this_log(
    driver: MadeDriver, log: eventlog.Log, shop: MadeSource
) -> None:
    args = ("shop", "--dsn", "d", "--log", str(log.path))
    with pytest.raises(SlotInUse, match=f"being captured by process {os.getpid()}"):
        run(drop_source, *args)
    assert driver.dropped == []


@pytest.mark.parametrize("name", ["shop", "unknown"])
def test_drop_source_needs_no_log_and_makes_none(
    driver: MadeDriver, log_dir: Path, name: str
) -> None:
    run(drop_source, name, "--dsn", "d", "--log", str(log_dir))
    assert driver.dropped == [(name, None)]
    assert not log_dir.exists()


def test_drop_source_takes_the_names_where_the_log_knows_no_such_source(
    driver: MadeDriver, log: eventlog.Log
) -> None:
    log.stream("clicks", create=True)
    for name in ("clicks", "unknown"):
        run(drop_source, name, "--dsn", "d", "--log", str(log.path))
    assert driver.dropped == [("clicks", None), ("unknown", None)]


def test_status_shows_sources_and_consumers_with_their_lag(
    driver: MadeDriver, log: eventlog.Log, shop: MadeSource
) -> None:
    shop.commit(insert(shop.table("t", column("x")), "a"), time_us=0)
    shop.stream.consumer("model")
    args = ("--log", str(log.path), "--json")
    source, consumer = map(json.loads, run(status, *args).stdout.splitlines())
    assert (source["source"], source["lag_bytes"], source["lag_seconds"]) == ("shop", None, None)
    assert source["position"] == "0/2BD00"
    assert (consumer["consumer"], consumer["stream"]) == ("model", "shop")
    assert (consumer["offset"], consumer["lag"]) == (0, 1)
    source, _ = map(json.loads, run(status, *args, "--dsn", "d").stdout.splitlines())
    assert (source["lag_bytes"], source["lag_seconds"]) == (1234, 0.5)
    assert source["retained_bytes"] == 4096
    shown = run(status, *args[:2], "--dsn", "d").stdout.splitlines()
    assert shown[0].split()[:3] == ["source", "phase", "writer"]
    assert shown[1].split()[0] == "shop" and "1,234" in shown[1]
    assert shown[4].split()[:4] == ["model", "shop", "0", "1"]


def test_a_source_of_another_server_has_no_lag_there(
    driver: MadeDriver, log: eventlog.Log, shop: MadeSource
) -> None:
    shop.commit(insert(shop.table("t", column("x")), "a"))
    driver.lag_or_error = OtherSystem("it is another cluster")
    done = run(status, "--log", str(log.path), "--json", "--dsn", "d")
    assert done.stderr == "Warning: source 'shop': it is another cluster\n"
    assert json.loads(done.stdout)["lag_bytes"] is None


def test_what_threatens_a_source_at_its_server_is_said(
    driver: MadeDriver, log: eventlog.Log, shop: MadeSource
) -> None:
    shop.commit(insert(shop.table("t", column("x")), "a"))
    driver.lag_or_error = Lag(bytes=7, warning="its slot is lost")
    done = run(status, "--log", str(log.path), "--json", "--dsn", "d")
    assert done.stderr == "Warning: source 'shop': its slot is lost\n"
    assert json.loads(done.stdout)["lag_bytes"] == 7


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [
        ("reserved", None, None),
        ("extended", None, None),
        ("unreserved", None, "may soon remove WAL"),
        ("lost", None, "changes are lost"),
        ("reserved", "idle_timeout", "changes are lost"),
    ],
)
def test_a_slot_that_is_lost_or_may_be_is_a_threat(
    status: str, reason: str | None, said: str | None
) -> None:
    found = SlotState(
        name="eventlog_shop",
        plugin="pgoutput",
        database="d",
        active=False,
        active_pid=None,
        temporary=False,
        confirmed_flush_lsn=None,
        restart_lsn=None,
        wal_status=status,
        invalidation_reason=reason,
        retained_bytes=0,
    )
    state = SourceState(
        phase=Phase.STREAMING,
        slot="eventlog_shop",
        slot_ours=True,
        temporary=False,
        publications=(),
        publications_ours=True,
        partial=False,
        tables=(),
        copied=True,
        system_id=1,
        timeline=1,
        position=Lsn(0),
    )
    told = threat(state, found)
    assert told is None if said is None else said in (told or "")
    assert "not on the server" in (threat(state, None) or "")
    assert threat(dataclasses.replace(state, temporary=True), None) is None


def test_status_shows_copies_at_work_and_requests_that_wait(
    driver: MadeDriver, log: eventlog.Log, shop: MadeSource
) -> None:
    shop.commit(insert(shop.table("t", column("x"), relation=7), "a"))
    cursor = {"leaves": [[7, 1, 300], [8, 1, 100]], "leaf": 0, "page": 180, "rows": 1234}
    state = {**(log.source("shop") or {}), "copies": {7: {**cursor, "begun": 0}}}
    epoch = log.engine.stream("shop").writer_epoch
    update = SourceUpdate(stream="shop", writer_epoch=epoch, state=state)
    log.engine.commit(Plan(sources=[update]))
    ask(log, "shop", "add", "public.next")
    args = ("--log", str(log.path))
    source = json.loads(run(status, *args, "--json").stdout)
    assert source["writer"] == str(os.getpid())
    assert source["copying"] == [{"table": "public.t", "rows": 1234, "share": 0.45}]
    assert source["waiting"] == [{"ask": "add", "table": "public.next"}]
    lines = run(status, *args).stdout.splitlines()
    assert "shop: copying public.t: 1,234 rows, 45 %" in lines
    assert "shop: not carried out yet: add public.next" in lines
