"""The demo's course: a Postgres, an application that lives in it, a capture, a model, the proof.

Everything that is started here is ended here, by its process id, however the course ends. What
stays is the log.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdc.demo import comparing, model
from cdc.demo.capturing import POLL_S, STREAM, Daemon
from cdc.demo.child import Child
from cdc.demo.comparing import Counts, Rebuilt
from cdc.demo.flights import Event, Schedule, load_schedule
from cdc.demo.home import demo_log
from cdc.demo.narrator import Narrator, Progress
from cdc.demo.plan import Plan
from cdc.demo.replay import Replayed, create_tables, replay
from cdc.demo.summary import Summary, suggestions
from cdc.postgres.server import EmbeddedServer
from eventlog.changes.quantities import counted
from eventlog.errors import EnvironmentFault

if TYPE_CHECKING:
    import eventlog

KILL_AT, RESTART_AT = 0.52, 0.60
"""Shares of the changes applied; between them the application goes on without a capture."""

MODEL_STALL_S = 60.0
FLIGHTS_SHOWN = 6
HOURS_SHOWN = 3


def run(directory: Path, plan: Plan, narrator: Narrator) -> Summary:
    """Run the demo and leave its log in `directory`.

    Raises LogExists, EnvironmentFault, SourceError. What differs stands in the summary.
    """
    return _Run(directory, plan, narrator).run()


class _Run:
    """One run: what its parts share."""

    def __init__(self, directory: Path, plan: Plan, narrator: Narrator) -> None:
        self._directory = directory
        self._plan = plan
        self._tell = narrator
        self._summary = Summary(log=str(directory))

    def run(self) -> Summary:
        began = time.monotonic()
        # Before an old log goes: the data may not be installed.
        schedule = load_schedule(self._plan.months)
        with ExitStack() as stack:
            log = stack.enter_context(demo_log(self._directory))
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="eventlog-demo-"))
            server = self._serve(stack)
            daemon = stack.enter_context(Daemon(log, server.dsn, Path(scratch)))
            self._begin_capture(daemon, server.dsn)
            until = f"{self._plan.training_stop(schedule)}Z"
            follower = stack.enter_context(
                Child(
                    model.MODULE,
                    *("--log", str(log.path), "--source", STREAM, "--train-until", until),
                    says=Path(scratch) / "model.txt",
                )
            )
            halfway = self._replay(log, daemon, server.dsn, schedule)
            end = comparing.moment_of(server.dsn)
            daemon.finish()
            self._prove(log, [("half-way", halfway), ("the end", end)])
            self._show_model(log, follower, until)
        self._summary.seconds["all"] = round(time.monotonic() - began, 2)
        self._summary.next = suggestions(self._summary)
        return self._summary

    def _serve(self, stack: ExitStack) -> EmbeddedServer:
        began = time.monotonic()
        server = stack.enter_context(EmbeddedServer.start(port=None))
        self._took("server", began)
        self._tell.step(f"PostgreSQL {server.version} runs in a throw-away directory")
        return server

    def _begin_capture(self, daemon: Daemon, dsn: str) -> None:
        began = time.monotonic()
        create_tables(dsn)
        daemon.start()
        daemon.await_streaming()
        self._took("capture_start", began)
        self._tell.step(
            f"`eventlog capture` follows flights and weather, as process {daemon.pid} of its own"
        )

    def _replay(
        self, log: eventlog.Log, daemon: Daemon, dsn: str, schedule: Schedule
    ) -> comparing.Moment:
        """Let the application live, kill the capture meanwhile; returns the tables half-way."""
        stop = self._plan.stop(schedule)
        flights = int(np.count_nonzero(schedule.event[:stop] == Event.SCHEDULED))
        self._summary.flights = flights
        self._tell.step(
            f"An application lives through {flights:,} flights:"
            " scheduled, departed, landed, cancelled"
        )
        state = Progress(total=stop, applied=0, captured=0, at=schedule.at[0])
        down = 0

        def advance(done: int, at: np.datetime64) -> None:
            nonlocal state, down
            daemon.check()
            state = replace(state, applied=done, captured=daemon.captured, at=at)
            self._tell.progress(state)
            if not down and done >= KILL_AT * stop:
                down = done
                self._kill(log, daemon, state)
            elif down and not daemon.running and done >= RESTART_AT * stop:
                self._restart(daemon, missed=done - daemon.captured)

        def wait() -> None:
            nonlocal state
            state = replace(state, captured=daemon.captured)
            self._tell.progress(state)

        began = time.monotonic()
        parts = [replay(dsn, schedule, stop=stop // 2, progress=advance)]
        halfway = comparing.moment_of(dsn)
        parts.append(replay(dsn, schedule, start=stop // 2, stop=stop, progress=advance))
        self._took("replay", began)
        if not daemon.running:
            self._restart(daemon, missed=stop - daemon.captured)
        self._count(parts)
        began_waiting = time.monotonic()
        daemon.catch_up(stop, wait)
        self._took("catch_up", began_waiting)
        rate = stop / max(time.monotonic() - began, 1e-9)
        self._tell.say(
            f"{counted(stop, 'change')} in {counted(self._summary.transactions, 'transaction')};"
            f" the log had the last one {self._summary.seconds['catch_up']:.1f} s after its commit"
            f" ({rate:,.0f} changes a second)"
        )
        return halfway

    def _kill(self, log: eventlog.Log, daemon: Daemon, now: Progress) -> None:
        pid = daemon.pid
        daemon.kill()
        offset = self._summary.killed_at_offset = log.stream(STREAM).end
        self._tell.say(
            f"killed the capture (SIGKILL to process {pid}) at offset {offset:,},"
            f" {counted(now.applied - daemon.captured, 'change')} behind; the application goes on"
        )

    def _restart(self, daemon: Daemon, *, missed: int) -> None:
        daemon.start()
        self._tell.say(
            f"restarted it as process {daemon.pid}, {counted(missed, 'change')} behind: it goes on"
            " where the log ends"
        )

    def _count(self, parts: list[Replayed]) -> None:
        self._summary.transactions = sum(part.transactions for part in parts)
        self._summary.applied = Counts(
            inserts=sum(part.inserted for part in parts),
            updates=sum(part.updated for part in parts),
            deletes=sum(part.deleted for part in parts),
        )

    def _prove(self, log: eventlog.Log, moments: list[tuple[str, comparing.Moment]]) -> None:
        began = time.monotonic()
        summary = self._summary
        summary.captured = comparing.counts_of(log, STREAM)
        self._tell.step("Nothing is missing, and nothing came twice")
        pairs = zip(asdict(summary.applied).items(), asdict(summary.captured).values(), strict=True)
        self._tell.table(
            ("", "Postgres did", "the log has", ""),
            [
                (name, f"{did:,}", f"{has:,}", "equal" if did == has else "DIFFERENT")
                for (name, did), has in pairs
            ],
        )
        for name, moment in moments:
            for table in comparing.KEYS:
                found = comparing.rebuilt(log, STREAM, table, moment)
                summary.rebuilt.append(found)
                self._tell.say(_verdict(found, name))
        self._took("proof", began)

    def _show_model(self, log: eventlog.Log, follower: Child, until: str) -> None:
        began = time.monotonic()
        self._tell.step(
            f"A model of departures before {until[:10]} judges each later one as it happens:"
            f" over {model.LATE_MINUTES} minutes late?"
        )
        _await_model(log, follower)
        self._took("model_catch_up", began)
        score = self._summary.score = model.score_of(log)
        if score is None:
            raise EnvironmentFault(
                "the model made no prediction whose truth came", hint="replay more --days"
            )
        self._tell.table(
            ("departed (UTC)", "flight", "route", "left late", "P(late)", "arrived late", ""),
            [
                (
                    f"{flight.departed:%m-%d %H:%M}",
                    flight.name,
                    flight.route,
                    f"{flight.dep_delay:+} min",
                    f"{flight.proba:.2f}",
                    f"{flight.arr_delay:+} min",
                    "right" if flight.right else "wrong",
                )
                for flight in model.flights_of(log, STREAM, FLIGHTS_SHOWN)
            ],
        )
        self._tell.table(
            ("hour of landing (UTC)", "landed", "log loss", "bias"),
            [
                (
                    f"{hour.start:%m-%d %H:00}",
                    f"{hour.labels:,}",
                    f"{hour.log_loss:.3f}",
                    f"{hour.bias:+.3f}",
                )
                for hour in model.hours_of(log, HOURS_SHOWN)
            ]
            + [("all", f"{score.labels:,}", f"{score.log_loss:.3f}", f"{score.bias:+.3f}")],
        )
        self._tell.say(
            f"{score.right:.1%} right of {score.labels:,}, of which {score.late:.1%} were late;"
            f" to say that share each time has a log loss of {score.base_log_loss:.3f}"
        )

    def _took(self, what: str, began: float) -> None:
        self._summary.seconds[what] = round(time.monotonic() - began, 2)


def _verdict(found: Rebuilt, name: str) -> str:
    said = f"{found.table} as of offset {found.offset:,} ({name}): {counted(found.rows, 'row')}"
    if found.equal:
        return f"{said}, equal to Postgres row for row"
    return f"{said}, DIFFERENT: Postgres had {found.postgres_rows:,}, {found.differing:,} differ"


def _await_model(log: eventlog.Log, follower: Child) -> None:
    """Wait until the model has seen the whole stream, then stop it. Raises EnvironmentFault."""
    end = log.stream(STREAM).end
    last, since = model.followed(log), time.monotonic()
    while last < end:
        if not follower.running or time.monotonic() - since > MODEL_STALL_S:
            follower.check()
            raise EnvironmentFault(
                f"the model stopped at offset {last:,} of {end:,}", hint="run the demo again"
            )
        time.sleep(POLL_S)
        if (now := model.followed(log)) != last:
            last, since = now, time.monotonic()
    follower.stop()
    follower.check()
