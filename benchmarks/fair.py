"""How long a small writer waits for its commits beside greedy ones.

This process appends single events, durably, at an even pace; two other processes append calls of
100,000 events to streams of their own without a pause. All share one write lock, which LMDB does
not give in turn. Beside it the same small writer alone, and what the disk takes for a flush: a
commit has two. Latency is that of the call of `append`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import eventlog
from benchmarks.bulk_process import CALL_EVENTS
from benchmarks.child import ChildFailed
from benchmarks.machine import flush_ms
from benchmarks.measure import Ratio, Result, Sample, figures_of, in_turn, ratio_samples
from benchmarks.options import Options

QUESTION = "how long does a small writer wait for a commit beside two bulk writers?"
BULK_WRITERS = 2
PACE_S = 0.005
TARGET_MS = 30.0
"""Of the design, for the 99th percentile, on a disk that flushes in 0.2 ms."""

ALONE = "alone"
BESIDE = f"beside {BULK_WRITERS} bulk writers"
FLUSH = "write + fdatasync"
ROLES = {BESIDE: "subject", ALONE: "limit", FLUSH: "limit"}
WHAT = {
    BESIDE: f"Stream.append every {PACE_S * 1000:g} ms, others append_many {CALL_EVENTS:,} events",
    ALONE: "the same, and no one else",
    FLUSH: "4 KiB in a file that has its blocks, nobody else writing",
}

P50, P99, GREATEST = "latency, p50", "latency, p99", "latency, greatest"
BULK = "events of the bulk writers"
UNITS = {P50: "ms", P99: "ms", GREATEST: "ms", BULK: "1/s"}


def run(options: Options) -> Result:
    """Measure the small writer with others and without; rows are its commits of a sample."""
    commits = options.rows or (60 if options.quick else 400)

    def note(text: str) -> None:
        options.note(f"fair: {text}")

    taken = in_turn(
        {
            BESIDE: lambda: _sample(options.directory, commits, bulk_writers=BULK_WRITERS),
            ALONE: lambda: _sample(options.directory, commits, bulk_writers=0),
            FLUSH: lambda: {P50: flush_ms(options.directory)},
        },
        samples=options.samples,
        note=note,
    )
    case = f"a commit every {PACE_S * 1000:g} ms"
    figures = figures_of(taken, case, roles=ROLES, units=UNITS)
    ratios = [
        Ratio(
            case=case,
            quantity=P99,
            of=BESIDE,
            to="1 ms",
            samples=tuple(sample[P99] for sample in taken[BESIDE]),
            at_most=TARGET_MS,
        ),
        Ratio(
            case=case,
            quantity=P50,
            of=BESIDE,
            to=FLUSH,
            samples=ratio_samples(taken, P50, of=BESIDE, to=FLUSH),
        ),
    ]
    about: dict[str, Any] = {"commits": commits, "contenders": WHAT}
    return Result(
        name="fair", question=QUESTION, about=about, figures=tuple(figures), ratios=tuple(ratios)
    )


def _sample(directory: Path, commits: int, *, bulk_writers: int) -> Sample:
    """Append single events to a log of its own; latencies in ms."""
    with TemporaryDirectory(prefix="benchmark-", dir=directory) as made, ExitStack() as end:
        log = end.enter_context(eventlog.open(Path(made) / "log", create=True))
        small = log.stream("small", create=True)
        others = [log.stream(f"bulk-{number}", create=True) for number in range(bulk_writers)]
        writers = [end.enter_context(_bulk_writer(log.path, other.name)) for other in others]
        small.append(0)
        before = sum(other.end for other in others)
        began = time.perf_counter()
        taken_ms = []
        for number in range(commits):
            early_s = began + number * PACE_S - time.perf_counter()
            if early_s > 0:
                time.sleep(early_s)
            start = time.perf_counter()
            small.append(number)
            taken_ms.append((time.perf_counter() - start) * 1000)
        wall_s = time.perf_counter() - began
        stored = sum(other.end for other in others) - before
        if any(writer.poll() is not None for writer in writers):
            raise ChildFailed("a bulk writer ended before it was told to")
    taken_ms.sort()
    found = {
        P50: statistics.median(taken_ms),
        P99: taken_ms[int(len(taken_ms) * 0.99)],
        GREATEST: taken_ms[-1],
    }
    return found | ({BULK: stored / wall_s} if bulk_writers else {})


@contextmanager
def _bulk_writer(log_dir: Path, stream: str) -> Iterator[subprocess.Popen[bytes]]:
    """A bulk writer that has appended once; ended at the end."""
    command = [sys.executable, "-m", "benchmarks.bulk_process", str(log_dir), stream]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise ChildFailed(f"the bulk writer of {stream} ended with {process.wait()}")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
