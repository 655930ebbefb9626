"""What zstd saves of a stream of JSON-like events, and what it costs to append and to read them.

The events are page views, as applications log them: a few names, a few values that repeat, a few
that do not. What is stored is measured by the log's own file, unused pages included.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import eventlog
from benchmarks.load import SEED
from benchmarks.measure import Contender, Figure, Ratio, Result, Sample, in_turn, ratio_samples
from benchmarks.options import Options
from eventlog.engine import Compression

QUESTION = "how many bytes of disk does an event take, and what does less of them cost?"
STREAM = "views"
CALL = 10_000

NONE: Compression = "none"
ZSTD: Compression = "zstd"
STORED = "stored"
APPENDED = "appended"
READ = "read"
UNITS = {STORED: "B/event", APPENDED: "1/s", READ: "1/s"}
WHAT = {
    NONE: "as events are stored unless asked otherwise",
    ZSTD: "log.stream(name, create=True, compression='zstd')",
}

PATHS = [f"/shop/{kind}/{number}" for kind in ("item", "list", "help") for number in range(70)]
AGENTS = [f"Mozilla/5.0 (X11; Linux x86_64; rv:{n}.0) Gecko/20100101" for n in range(100, 120)]
COUNTRIES = ["DE", "FR", "JP", "PL", "US"]


def run(options: Options) -> Result:
    """Measure both; rows are the events of a sample."""
    events = options.rows or (20_000 if options.quick else 500_000)
    views = _views(events)
    calls = [views[place : place + CALL] for place in range(0, events, CALL)]
    taken = in_turn(
        {NONE: _contender(calls, NONE, options), ZSTD: _contender(calls, ZSTD, options)},
        samples=options.samples,
        note=lambda text: options.note(f"compression: {text}"),
    )
    case = f"{events:,} page views"
    about: dict[str, Any] = {"seed": SEED, "call": CALL, "contenders": WHAT}
    return Result(
        name="compression",
        question=QUESTION,
        about=about,
        figures=tuple(
            Figure(
                case=case,
                contender=name,
                role="subject",
                quantity=quantity,
                unit=unit,
                samples=tuple(sample[quantity] for sample in samples),
            )
            for quantity, unit in UNITS.items()
            for name, samples in taken.items()
        ),
        ratios=tuple(
            Ratio(
                case=case,
                quantity=quantity,
                of=ZSTD,
                to=NONE,
                samples=ratio_samples(taken, quantity, of=ZSTD, to=NONE),
            )
            for quantity in UNITS
        ),
    )


def _contender(
    calls: list[list[dict[str, Any]]], compression: Compression, options: Options
) -> Contender:
    def sample() -> Sample:
        events = sum(map(len, calls))
        with (
            TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made,
            ExitStack() as end,
        ):
            directory = Path(made) / "log"
            log = end.enter_context(eventlog.open(directory, create=True))
            empty = (directory / "data.mdb").stat().st_size
            stream = log.stream(STREAM, create=True, compression=compression)
            start = time.perf_counter()
            for call in calls:
                stream.append_many(call)
            appended = time.perf_counter() - start
            start = time.perf_counter()
            assert sum(1 for _ in stream.read()) == events
            read = time.perf_counter() - start
            stored = (directory / "data.mdb").stat().st_size - empty
        return {STORED: stored / events, APPENDED: events / appended, READ: events / read}

    return sample


def _views(count: int) -> list[dict[str, Any]]:
    chance = random.Random(SEED)
    return [
        {
            "user": chance.randrange(50_000),
            "session": f"{chance.getrandbits(64):016x}",
            "path": chance.choice(PATHS),
            "agent": chance.choice(AGENTS),
            "country": chance.choice(COUNTRIES),
            "status": 200 if chance.random() < 0.97 else 404,
            "ms": round(chance.expovariate(1 / 40), 2),
            "new": chance.random() < 0.2,
        }
        for _ in range(count)
    ]
