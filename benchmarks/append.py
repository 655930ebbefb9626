"""How fast events become durable, against SQLite and a bare file on the same disk.

Everyone stores the same seeded events of 100 bytes (encoded), in calls of the same size, each call
durable before the next. The limits are bare files, written and flushed: one that grows, as a log
does, and one that has its blocks already. The targets are against the one that grows, as the log's
own file does in a run.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import eventlog
from benchmarks.measure import Contender, Figure, Note, Ratio, Result, in_turn, ratio_samples
from benchmarks.options import Options
from eventlog.codecs.events import CODEC
from eventlog.engine import Append, Plan, batches_of, now_us

QUESTION = "how many events of 100 bytes a second become durable?"
EVENT_BYTES = 100
SEED = 1
RATE = "events"
SQLITE_TARGET = 3.0
"""Of the design, whatever the size of a call."""

LOG = "eventlog"
ENGINE = "eventlog.engine"
SQLITE = "SQLite"
SQLITE_JSON = "SQLite, JSON"
GROWING = "write + fdatasync, growing"
FILE = "write + fdatasync"

WHAT = {
    LOG: "Stream.append_many of mappings (append for single events)",
    ENGINE: "the engine, records encoded before",
    SQLITE: "WAL, synchronous=FULL, records encoded before",
    SQLITE_JSON: "the same, mappings through json.dumps",
    GROWING: "records encoded before, at the end of a file",
    FILE: "the same, a file that has its blocks",
}
ROLES = {LOG: "subject", ENGINE: "subject", SQLITE: "peer", SQLITE_JSON: "peer"}
ROLES |= {GROWING: "limit", FILE: "limit"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """So many events a call, so many calls a sample."""

    call: int
    calls: int

    @property
    def name(self) -> str:
        return "single" if self.call == 1 else f"{self.call:,} a call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The events of one case, by call: as values and as records."""

    values: list[list[dict[str, Any]]]
    records: list[list[bytes]]


def run(options: Options) -> Result:
    """Measure every case; rows are the events of a sample of the largest one."""
    total = options.rows or (100_000 if options.quick else 1_000_000)
    flushes = 50 if options.quick else 200
    cases = [
        Case(call=1, calls=min(flushes, total)),
        Case(call=min(1_000, total), calls=max(total // 10_000, 1)),
        Case(call=min(100_000, total), calls=max(total // 100_000, 1)),
    ]
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for case in cases:
        found = _measure(case, options)
        figures += found[0]
        ratios += found[1]
    about: dict[str, Any] = {
        "event_bytes": EVENT_BYTES,
        "seed": SEED,
        "sqlite": sqlite3.sqlite_version,
    }
    about["contenders"] = WHAT
    return Result(
        name="append",
        question=QUESTION,
        about=about,
        figures=tuple(figures),
        ratios=tuple(ratios),
    )


def _measure(case: Case, options: Options) -> tuple[list[Figure], list[Ratio]]:
    load = _load(case)

    def note(text: str) -> None:
        options.note(f"append, {case.name}: {text}")

    with TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made, ExitStack() as end:
        contenders = _contenders(load, Path(made), end)
        taken = _in_turn(contenders, case, options.samples, note)
    figures = [
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
    single = case.call == 1
    bulk = case.call >= 100_000
    bare = 0.45 if single else 0.6 if bulk else None
    pairs = [
        (LOG, GROWING, bare if single else None),
        (ENGINE, GROWING, bare),
        (LOG, FILE, bare if single else None),
        (ENGINE, FILE, bare),
        (LOG, SQLITE_JSON, SQLITE_TARGET),
        (ENGINE, SQLITE, SQLITE_TARGET),
    ]
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
    ]
    return figures, ratios


def _in_turn(
    contenders: dict[str, Callable[[], None]], case: Case, samples: int, note: Note
) -> dict[str, list[Any]]:
    def timed(append_all: Callable[[], None]) -> Contender:
        def sample() -> dict[str, float]:
            start = time.perf_counter()
            append_all()
            return {RATE: case.call * case.calls / (time.perf_counter() - start)}

        return sample

    return in_turn(
        {name: timed(append_all) for name, append_all in contenders.items()},
        samples=samples,
        note=note,
    )


def _load(case: Case) -> Load:
    chance = random.Random(SEED)
    encode = CODEC.encoder()
    values = [[_event(chance) for _ in range(case.call)] for _ in range(case.calls)]
    records = [[encode(None, value) for value in call] for call in values]
    assert {len(record) for call in records for record in call} == {EVENT_BYTES}
    return Load(values=values, records=records)


def _event(chance: random.Random) -> dict[str, Any]:
    """A mapping that takes EVENT_BYTES as a record."""
    return {
        "user": chance.randrange(70_000, 4_000_000_000),
        "page": f"/{chance.getrandbits(128):032x}",
        "ms": chance.random() * 1000,
        "agent": f"{chance.getrandbits(112):028x}",
    }


def _contenders(load: Load, directory: Path, end: ExitStack) -> dict[str, Callable[[], None]]:
    return {
        LOG: _log(load, directory, end),
        ENGINE: _engine(load, directory, end),
        SQLITE: _sqlite(load, directory, end),
        SQLITE_JSON: _sqlite_json(load, directory, end),
        GROWING: _file(load, directory / "growing", end, grows=True),
        FILE: _file(load, directory / "file", end, grows=False),
    }


def _log(load: Load, directory: Path, end: ExitStack) -> Callable[[], None]:
    log = end.enter_context(eventlog.open(directory / "log", create=True))
    stream = log.stream("events", create=True)

    def append_all() -> None:
        for call in load.values:
            if len(call) == 1:
                stream.append(call[0])
            else:
                stream.append_many(call)

    return append_all


def _engine(load: Load, directory: Path, end: ExitStack) -> Callable[[], None]:
    log = end.enter_context(eventlog.open(directory / "engine", create=True))
    engine = log.engine
    engine.create_stream("events", "events")

    def append_all() -> None:
        for call in load.records:
            batches = list(batches_of(CODEC.id, call, time_us=now_us()))
            engine.commit(Plan(appends=[Append(stream="events", batches=batches)]))

    return append_all


def _sqlite(load: Load, directory: Path, end: ExitStack) -> Callable[[], None]:
    database = _database(directory / "records.sqlite", "blob", end)

    def append_all() -> None:
        for call in load.records:
            rows = [(now_us(), record) for record in call]
            with database:
                database.executemany("insert into events (time, value) values (?, ?)", rows)

    return append_all


def _sqlite_json(load: Load, directory: Path, end: ExitStack) -> Callable[[], None]:
    database = _database(directory / "json.sqlite", "text", end)

    def append_all() -> None:
        for call in load.values:
            rows = [(now_us(), json.dumps(value)) for value in call]
            with database:
                database.executemany("insert into events (time, value) values (?, ?)", rows)

    return append_all


def _database(path: Path, kind: str, end: ExitStack) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    end.callback(database.close)
    mode = database.execute("pragma journal_mode = wal").fetchone()
    assert mode == ("wal",)
    database.execute("pragma synchronous = full")
    database.execute(f"create table events (id integer primary key, time integer, value {kind})")
    return database


def _file(load: Load, path: Path, end: ExitStack, *, grows: bool) -> Callable[[], None]:
    blocks = [b"".join(call) for call in load.records]
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    end.callback(os.close, file)
    if not grows:
        for block in blocks:
            os.write(file, bytes(len(block)))
        os.fsync(file)

    def append_all() -> None:
        if not grows:
            os.lseek(file, 0, os.SEEK_SET)
        for block in blocks:
            view = memoryview(block)
            while view:
                view = view[os.write(file, view) :]
            os.fdatasync(file)

    return append_all
