"""How fast a stream is read: appended in large calls, and committed one by one.

Both hold the same events and lie in the page cache. A tiny commit must not leave a tiny batch for
ever (the log merges them), so that what readers pay does not depend on how writers wrote. Raw reads
take the records as bytes, through the engine; `Stream.read` makes events of them. The limit is one
copy of the same bytes in memory.

Commits are made one by one in memory (tmpfs) where there is enough of it: on a disk a million would
take minutes, and the reader sees the same pages.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import eventlog
from benchmarks.appender import NotStored
from benchmarks.load import EVENT_BYTES, SEED, Case, Load, load_of
from benchmarks.machine import filesystem
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
from benchmarks.peers import sqlite
from eventlog.codecs.events import CODEC
from eventlog.engine import Append, Plan, batches_of, now_us

QUESTION = "how many events of 100 bytes a second are read, however they were committed?"
STREAM = "events"
RATE = "events"
COST = "time an event"
UNITS = {RATE: "1/s", COST: "ns"}
ONE = "1M/s"
CALL = 10_000
SELECT = "select value from events order by id"
COPY_BYTES = 4 << 20
"""Copied at a time, about as the log does: fresh memory for all of it would cost more."""

MEMORY = Path("/dev/shm")
ROOM_BYTES_PER_EVENT = 1_000

RAW = "eventlog.engine"
RAW_SINGLES = "eventlog.engine, one by one"
READ = "eventlog"
READ_SINGLES = "eventlog, one by one"
SQLITE = "SQLite"
SQLITE_JSON = "SQLite, JSON"
COPY = "memory copy"

WHAT = {
    RAW: "records through Engine.scan, checksums verified, appended in calls of 10,000",
    RAW_SINGLES: "the same, committed one by one",
    READ: "events through Stream.read, appended in calls of 10,000",
    READ_SINGLES: "the same, committed one by one",
    SQLITE: "select value from events order by id, blobs",
    SQLITE_JSON: "the same of text, through json.loads",
    COPY: "bytes(memoryview) of the records end to end, 4 MiB at a time",
}
ROLES = {RAW: "subject", RAW_SINGLES: "subject", READ: "subject", READ_SINGLES: "subject"}
ROLES |= {SQLITE: "peer", SQLITE_JSON: "peer", COPY: "limit"}

RAW_TARGET = 3.0
"""Millions of records a second."""

SINGLES_TARGET = 1.5
"""Reading what was committed one by one, over reading what was not."""


def run(options: Options) -> Result:
    """Write the logs, then measure; rows are the events of each."""
    events = options.rows or (20_000 if options.quick else 1_000_000)
    case = Case(call=min(CALL, events), calls=max(events // CALL, 1))
    # Without the mappings: the collector would walk them while events are read.
    load = replace(load_of(case), values=[])
    place = _place(options.directory, events)
    with TemporaryDirectory(prefix="benchmark-", dir=place) as made, ExitStack() as end:
        options.note("read: writing in calls")
        batched = _written(Path(made) / "batched", load.records, end)
        options.note("read: committing one by one")
        singles = _written(Path(made) / "singles", [[r] for c in load.records for r in c], end)
        sqlite.of_records(load, Path(made), end).append_all()
        json_load = replace(load, values=load_of(case).values)
        sqlite.of_json(json_load, Path(made), end).append_all()
        del json_load
        taken = in_turn(
            {
                RAW: _timed(lambda: _raw(batched), case),
                RAW_SINGLES: _timed(lambda: _raw(singles), case),
                READ: _timed(lambda: _read(batched), case),
                READ_SINGLES: _timed(lambda: _read(singles), case),
                SQLITE: _timed(lambda: _rows(Path(made) / "records.sqlite"), case),
                SQLITE_JSON: _timed(lambda: _json(Path(made) / "json.sqlite"), case),
                COPY: _timed(_copier(load), case),
            },
            samples=options.samples,
            note=lambda text: options.note(f"read: {text}"),
        )
        batches = {"in calls": _batches(batched), "one by one": _batches(singles)}
    about: dict[str, Any] = {"event_bytes": EVENT_BYTES, "seed": SEED}
    about["files_on"] = filesystem(place)
    about["batches"] = batches
    about["contenders"] = WHAT
    return Result(
        name="read",
        question=QUESTION,
        about=about,
        figures=_figures(f"{case.events:,} events", taken),
        ratios=_ratios(f"{case.events:,} events", taken),
    )


def _place(directory: Path, events: int) -> Path:
    """Memory where there is enough of it, else the benchmark's directory."""
    room = events * ROOM_BYTES_PER_EVENT
    if not os.access(MEMORY, os.W_OK) or filesystem(MEMORY) != "tmpfs":
        return directory
    found = os.statvfs(MEMORY)
    return MEMORY if found.f_bavail * found.f_frsize > room else directory


def _written(directory: Path, calls: list[list[bytes]], end: ExitStack) -> eventlog.Log:
    """A log with one commit for each call."""
    log = end.enter_context(eventlog.open(directory, create=True))
    log.stream(STREAM, create=True)
    for call in calls:
        batches = list(batches_of(CODEC.id, call, time_us=now_us()))
        log.engine.commit(Plan(appends=[Append(stream=STREAM, batches=batches)]))
    return log


def _raw(log: eventlog.Log) -> int:
    start, stop = log.engine.bounds(STREAM)
    found = 0
    for stretch in log.engine.scan(STREAM, start, stop, lambda entry: True):
        slots, _ = stretch.readable_slots()
        assert stretch.payload is not None
        found += len(stretch.payload.records(slots))
    return found


def _read(log: eventlog.Log) -> int:
    return sum(1 for _ in log.stream(STREAM).read())


def _rows(path: Path) -> int:
    # A connection of its own: the one that wrote has pages of its own in memory.
    with ExitStack() as end:
        found = sqlite.reader(path, end)
        return sum(1 for _ in found.execute(SELECT))


def _json(path: Path) -> int:
    with ExitStack() as end:
        found = sqlite.reader(path, end)
        return sum(1 for (text,) in found.execute(SELECT) if json.loads(text))


def _copier(load: Load) -> Callable[[], int]:
    data = memoryview(b"".join(record for call in load.records for record in call))
    pieces = [data[place : place + COPY_BYTES] for place in range(0, len(data), COPY_BYTES)]
    return lambda: sum(len(bytes(piece)) for piece in pieces) // EVENT_BYTES


def _batches(log: eventlog.Log) -> int:
    start, stop = log.engine.bounds(STREAM)
    return sum(1 for _ in log.engine.scan(STREAM, start, stop, lambda entry: False))


def _timed(read_all: Callable[[], int], case: Case) -> Contender:
    def sample() -> dict[str, float]:
        start = time.perf_counter()
        found = read_all()
        took = time.perf_counter() - start
        if found != case.events:
            raise NotStored(f"{found:,} events were read of {case.events:,}")
        return {RATE: found / took, COST: 1e9 * took / found}

    return sample


def _figures(case: str, taken: dict[str, list[Sample]]) -> tuple[Figure, ...]:
    return tuple(figures_of(taken, case, roles=ROLES, units=UNITS))


def _ratios(case: str, taken: dict[str, list[Sample]]) -> tuple[Ratio, ...]:
    def ratio(quantity: str, of: str, to: str, **target: float) -> Ratio:
        samples = ratio_samples(taken, quantity, of=of, to=to)
        return Ratio(case=case, quantity=quantity, of=of, to=to, samples=samples, **target)

    millions = tuple(sample[RATE] / 1e6 for sample in taken[RAW])
    return (
        Ratio(case=case, quantity=RATE, of=RAW, to=ONE, samples=millions, at_least=RAW_TARGET),
        ratio(COST, RAW_SINGLES, RAW, at_most=SINGLES_TARGET),
        ratio(COST, READ_SINGLES, READ, at_most=SINGLES_TARGET),
        ratio(RATE, RAW, SQLITE),
        ratio(RATE, READ, SQLITE_JSON),
        ratio(RATE, RAW, COPY),
    )
