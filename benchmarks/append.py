"""How fast events become durable, against what people would use instead, on the same disk.

Everyone stores the same seeded events of 100 bytes (encoded), in calls of the same size, each call
durable before the next; afterwards everyone is asked how many it holds. Peers get the records
encoded before, but for one, which is given mappings as the log is. The limits are bare files,
written and flushed: one that grows, as a log does, and one that has its blocks already. A peer that
is not installed is left out, and `about` says so.

Single events come from one thread, and from several that share commits. What one of them makes the
log write is counted in pages of its file.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import bare_file, subjects
from benchmarks.appender import Absent, Appender, NotStored, Opener
from benchmarks.load import EVENT_BYTES, SEED, Case, load_of
from benchmarks.measure import Contender, Figure, Ratio, Result, Sample, in_turn, ratio_samples
from benchmarks.options import Options
from benchmarks.page_writes import PAGES, page_writes
from benchmarks.peers import nats_jetstream, redis_streams, sqlite

QUESTION = "how many events of 100 bytes a second become durable?"
RATE = "events"
ONE = "1M/s"
THREADS_MAX = 8

LOG = "eventlog"
BYTES = "eventlog, bytes"
ENGINE = "eventlog.engine"
THREADS = f"eventlog, {THREADS_MAX} threads"
SQLITE = "SQLite"
SQLITE_JSON = "SQLite, JSON"
REDIS = "Redis Streams"
NATS = "NATS JetStream"
GROWING = "write + fdatasync, growing"
FILE = "write + fdatasync"

WHAT = {
    LOG: "Stream.append_many of mappings (append for single events)",
    BYTES: "the same of bytes, the peers' records",
    ENGINE: "the engine, records encoded before",
    THREADS: "Stream.append of mappings by threads of one process",
    SQLITE: "WAL, synchronous=FULL, records encoded before",
    SQLITE_JSON: "the same, mappings through json.dumps",
    REDIS: "appendfsync always, XADD, many in one script",
    NATS: "file storage, sync_interval always, many in atomic batches",
    GROWING: "records encoded before, at the end of a file",
    FILE: "the same, a file that has its blocks",
}
OPENERS: dict[str, Opener] = {
    LOG: subjects.of_mappings,
    BYTES: subjects.of_bytes,
    ENGINE: subjects.of_engine,
    THREADS: subjects.of_threads,
    SQLITE: sqlite.of_records,
    SQLITE_JSON: sqlite.of_json,
    REDIS: redis_streams.of_records,
    NATS: nats_jetstream.of_records,
    GROWING: bare_file.growing,
    FILE: bare_file.allotted,
}
ROLES = {LOG: "subject", BYTES: "subject", ENGINE: "subject", THREADS: "subject"}
ROLES |= {SQLITE: "peer", SQLITE_JSON: "peer", REDIS: "peer", NATS: "peer"}
ROLES |= {GROWING: "limit", FILE: "limit"}

ALONE = (LOG, BYTES, ENGINE, SQLITE, SQLITE_JSON, REDIS, NATS, GROWING, FILE)
TOGETHER = (THREADS, LOG, GROWING)
PEER_TARGETS = {SQLITE: 3.0, SQLITE_JSON: 3.0, REDIS: 5.0, NATS: 5.0}
"""Of the design, whatever the size of a call."""

BULK_TARGET = 2.0
"""Millions of durable events of 100 bytes a second, in calls of BULK_CALL."""

BULK_CALL = 100_000
SINGLE_LIMIT = 0.45
BULK_LIMIT = 0.6
"""Of what the bare file takes."""


def run(options: Options) -> Result:
    """Measure every case; rows are the events of a sample of the largest one."""
    total = options.rows or (BULK_CALL if options.quick else 1_000_000)
    flushes = min(50 if options.quick else 400, total)
    cases = [
        Case(call=1, calls=flushes),
        Case(call=1, calls=flushes, threads=min(THREADS_MAX, flushes)),
        Case(call=min(1_000, total), calls=max(total // 10_000, 1)),
        Case(call=min(BULK_CALL, total), calls=max(total // BULK_CALL, 1)),
    ]
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for case in cases:
        taken = _measure(case, options, versions, skipped)
        figures += _figures(case, taken)
        ratios += _ratios(case, taken)
    figures.append(_pages(options))
    about: dict[str, Any] = {"event_bytes": EVENT_BYTES, "seed": SEED}
    about["contenders"] = WHAT
    about["versions"] = versions
    about["skipped"] = skipped
    return Result(
        name="append",
        question=QUESTION,
        about=about,
        figures=tuple(figures),
        ratios=tuple(ratios),
    )


def _measure(
    case: Case, options: Options, versions: dict[str, str], skipped: dict[str, str]
) -> dict[str, list[Sample]]:
    """Samples by contender; learns versions, and why a contender was skipped."""
    load = load_of(case)
    # The load is not what is measured: the collector would walk its mappings for whoever allocates.
    gc.collect()
    gc.freeze()

    def note(text: str) -> None:
        options.note(f"append, {case.name}: {text}")

    with TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made, ExitStack() as end:
        contenders: dict[str, Appender] = {}
        for name in TOGETHER if case.threads > 1 else ALONE:
            directory = Path(made) / str(len(contenders))
            directory.mkdir()
            try:
                contenders[name] = OPENERS[name](load, directory, end)
            except Absent as absent:
                skipped[name] = f"skipped: {absent}"
                directory.rmdir()
            else:
                if contenders[name].version:
                    versions[name] = contenders[name].version
        taken = in_turn(
            {name: _timed(contender.append_all, case) for name, contender in contenders.items()},
            samples=options.samples,
            note=note,
        )
        for name, contender in contenders.items():
            _expect_stored(name, contender, case.events * (1 + options.samples))
    return taken


def _timed(append_all: Callable[[], None], case: Case) -> Contender:
    def sample() -> dict[str, float]:
        start = time.perf_counter()
        append_all()
        return {RATE: case.events / (time.perf_counter() - start)}

    return sample


def _expect_stored(name: str, contender: Appender, events: int) -> None:
    if contender.stored is not None and (found := contender.stored()) != events:
        raise NotStored(f"{name} was given {events:,} events and holds {found:,}")


def _figures(case: Case, taken: dict[str, list[Sample]]) -> list[Figure]:
    return [
        Figure(
            case=case.name,
            contender=name,
            role=ROLES[name],
            quantity=RATE,
            unit="1/s",
            samples=tuple(sample[RATE] for sample in samples),
        )
        for name, samples in taken.items()
    ]


def _ratios(case: Case, taken: dict[str, list[Sample]]) -> list[Ratio]:
    """What has a target, or says how near to a limit it is, among those that took part."""
    bulk = case.call >= BULK_CALL
    single = SINGLE_LIMIT if case.call == 1 else None
    bare = BULK_LIMIT if bulk else single
    pairs: list[tuple[str, str, float | None]] = [(THREADS, LOG, None), (THREADS, GROWING, single)]
    for limit in (GROWING, FILE):
        pairs += [(LOG, limit, single), (BYTES, limit, bare), (ENGINE, limit, bare)]
    pairs += [(LOG, SQLITE_JSON, PEER_TARGETS[SQLITE_JSON])]
    for peer in (SQLITE, REDIS, NATS):
        pairs += [(of, peer, PEER_TARGETS[peer]) for of in (BYTES, ENGINE)]
    if case.threads > 1:
        pairs = [pair for pair in pairs if THREADS in pair]
    ratios = [
        Ratio(
            case=case.name,
            quantity=RATE,
            of=of,
            to=to,
            samples=ratio_samples(taken, RATE, of=of, to=to),
            at_least=target,
        )
        for of, to, target in pairs
        if of in taken and to in taken
    ]
    if bulk:
        millions = tuple(sample[RATE] / 1e6 for sample in taken[BYTES])
        ratios.append(
            Ratio(
                case=case.name,
                quantity=RATE,
                of=BYTES,
                to=ONE,
                samples=millions,
                at_least=BULK_TARGET,
            )
        )
    return ratios


def _pages(options: Options) -> Figure:
    """Bytes that a tiny commit makes the log write, each sample the mean of many commits."""
    options.note("append: pages of tiny commits")
    commits = 16 if options.quick else 256
    with TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made:
        written = page_writes(Path(made), commits=commits * options.samples)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    means = [
        sum(written[place : place + commits]) / commits * page_bytes
        for place in range(0, len(written), commits)
    ]
    return Figure(
        case="single",
        contender=LOG,
        role="subject",
        quantity=PAGES,
        unit="B",
        samples=tuple(means),
    )
