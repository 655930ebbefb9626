"""How soon a follower in another process has a commit, and what it costs to wait for one.

This process appends single events, durably, at an even pace. A follower takes the time at which it
has each. Latency is shown from just before the call of `append`, which holds the commit's two
flushes, and from its return. The limit is a byte through a pipe, sent when `append` has returned:
what the machine takes to wake another process at all. Where the disk is slower than the pace, the
commits come as fast as they can (`commits`).

An idle follower waits on a log that nobody writes to. CPU is a share of one core.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import eventlog
from benchmarks.child import run_child
from benchmarks.follow_process import EVENTS, READY, SETTLE_S
from benchmarks.machine import flush_ms
from benchmarks.measure import (
    Contender,
    Figure,
    Ratio,
    Result,
    Sample,
    figures_of,
    in_turn,
    ratio_samples,
)
from benchmarks.options import Options

QUESTION = "how soon does a follower in another process see a commit, and what does waiting cost?"
PACES = (200, 1_000)
WARM_UP_COMMITS = 10
LATENCY_TARGET_MS = 2.0
IDLE_TARGET_PERCENT = 2.0

FOR = "for"
AWAITED = "async for"
POLLING = "polling"
PIPE = "pipe"
FLUSH = "write + fdatasync"
ROLES = {FOR: "subject", AWAITED: "subject", POLLING: "peer", PIPE: "limit", FLUSH: "limit"}
WHAT = {
    FOR: "Stream.follow, iterated in a thread",
    AWAITED: "the same, in an event loop",
    POLLING: "the same as `for`, where there is no inotify",
    PIPE: "a byte through a pipe when append has returned, no log",
    FLUSH: "4 KiB in a file that has its blocks",
}

CALL_P50 = "from the call, p50"
CALL_P99 = "from the call, p99"
RETURN_P50 = "from the return, p50"
RETURN_P99 = "from the return, p99"
COMMITS = "commits"
CPU = "CPU of the follower"
FLUSH_MS = "flush, p50"
UNITS = {CALL_P50: "ms", CALL_P99: "ms", RETURN_P50: "ms", RETURN_P99: "ms"}
UNITS |= {COMMITS: "1/s", CPU: "%", FLUSH_MS: "ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The log that is followed, and a directory for what processes exchange."""

    log: eventlog.Log
    directory: Path


def run(options: Options) -> Result:
    """Measure each pace, then the idle follower; rows are the commits of a sample."""
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    idle_s = 0.3 if options.quick else 10.0
    with TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made, ExitStack() as end:
        log = end.enter_context(eventlog.open(Path(made) / "log", create=True))
        for name in (EVENTS, READY):
            log.stream(name, create=True)
        place = Place(log=log, directory=Path(made))
        for pace in PACES[-1:] if options.quick else PACES:
            commits = options.rows or int(pace * (0.5 if options.quick else 3))
            found = _paced(place, options, pace, commits)
            figures += found[0]
            ratios += found[1]
        found = _idle(place, options, idle_s)
    figures += found[0]
    ratios += found[1]
    about: dict[str, Any] = {"idle_s": idle_s, "contenders": WHAT}
    return Result(
        name="follow",
        question=QUESTION,
        about=about,
        figures=tuple(figures),
        ratios=tuple(ratios),
    )


def _paced(
    place: Place, options: Options, pace: int, commits: int
) -> tuple[list[Figure], list[Ratio]]:
    def follower(how: str) -> Contender:
        return lambda: _followed(place, how, pace, commits)

    contenders = {how: follower(how) for how in (FOR, AWAITED, POLLING, PIPE)}
    contenders[FLUSH] = lambda: {FLUSH_MS: flush_ms(place.directory)}
    case = f"{pace:,} commits/s"
    taken = _in_turn(contenders, options, case)
    targets = [
        _to_one(taken, case, RETURN_P50, of=how, one="1 ms", at_most=LATENCY_TARGET_MS)
        for how in (FOR, AWAITED)
    ]
    limits = [
        Ratio(
            case=case,
            quantity=RETURN_P50,
            of=how,
            to=PIPE,
            samples=ratio_samples(taken, RETURN_P50, of=how, to=PIPE),
        )
        for how in (FOR, AWAITED)
    ]
    return _figures(taken, case), targets + limits


def _idle(place: Place, options: Options, seconds: float) -> tuple[list[Figure], list[Ratio]]:
    def follower(how: str) -> Contender:
        def sample() -> Sample:
            told = _child(place, [how, "idle", seconds], lambda: None)
            return {CPU: 100 * told["cpu_s"] / told["wall_s"]}

        return sample

    hows = (FOR, AWAITED, POLLING)
    taken = _in_turn({how: follower(how) for how in hows}, options, "idle")
    targets = [
        _to_one(taken, "idle", CPU, of=how, one="1 %", at_most=IDLE_TARGET_PERCENT)
        for how in (FOR, AWAITED)
    ]
    return _figures(taken, "idle"), targets


def _in_turn(
    contenders: dict[str, Contender], options: Options, case: str
) -> dict[str, list[Sample]]:
    def note(text: str) -> None:
        options.note(f"follow, {case}: {text}")

    return in_turn(contenders, samples=options.samples, note=note)


def _figures(taken: dict[str, list[Sample]], case: str) -> list[Figure]:
    return figures_of(taken, case, roles=ROLES, units=UNITS)


def _to_one(
    taken: dict[str, list[Sample]], case: str, quantity: str, *, of: str, one: str, at_most: float
) -> Ratio:
    """A figure over its unit: what has a target of its own."""
    samples = tuple(sample[quantity] for sample in taken[of])
    return Ratio(case=case, quantity=quantity, of=of, to=one, samples=samples, at_most=at_most)


def _followed(place: Place, how: str, pace: int, commits: int) -> Sample:
    """Append while a follower waits; latencies in ms."""
    fifo = place.directory / "fifo"
    called: list[int] = []
    returned: list[int] = []
    total = WARM_UP_COMMITS + commits

    def write() -> None:
        stream = place.log.stream(EVENTS)
        with ExitStack() as end:
            pipe = end.enter_context(fifo.open("wb", buffering=0)) if how == PIPE else None
            time.sleep(SETTLE_S)
            start = time.monotonic()
            for number in range(total):
                early_s = start + number / pace - time.monotonic()
                if early_s > 0:
                    time.sleep(early_s)
                called.append(time.monotonic_ns())
                stream.append(number)
                returned.append(time.monotonic_ns())
                if pipe is not None:
                    pipe.write(b"\0")

    os.mkfifo(fifo)
    try:
        told = _child(place, [how, "commits", total, fifo], write)
    finally:
        fifo.unlink()
    from_call = _milliseconds(called, told["received"])
    from_return = _milliseconds(returned, told["received"])
    return {
        CALL_P50: statistics.median(from_call),
        CALL_P99: from_call[int(len(from_call) * 0.99)],
        RETURN_P50: statistics.median(from_return),
        RETURN_P99: from_return[int(len(from_return) * 0.99)],
        COMMITS: (total - 1) / (called[-1] - called[0]) * 1e9,
        CPU: 100 * told["cpu_s"] / told["wall_s"],
    }


def _milliseconds(starts: list[int], ends: list[int]) -> list[float]:
    """How long each commit took to come, in order of length, the warm-up left out."""
    pairs = list(zip(starts, ends, strict=True))[WARM_UP_COMMITS:]
    return sorted((end - start) / 1e6 for start, end in pairs)


def _child(place: Place, told: list[object], write: Callable[[], None]) -> dict[str, Any]:
    """Run a follower, and `write` when it is ready; returns what it says. Raises ChildFailed."""
    how, *what = map(str, told)
    command = [sys.executable, "-m", "benchmarks.follow_process", how, str(place.log.path), *what]
    ready = place.log.stream(READY)
    start = ready.end
    with ThreadPoolExecutor(1) as pool:
        child = pool.submit(run_child, command, {}, place.directory)
        if any(ready.follow(start, until=start + 1, stop=child.done)):
            write()
        said: dict[str, Any] = json.loads(child.result().output)
    return said
