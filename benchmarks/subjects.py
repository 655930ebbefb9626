"""The log as a contender of `append`: its public face, and the engine below it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import eventlog
from benchmarks.appender import Appender
from benchmarks.load import Load
from eventlog.codecs.events import CODEC
from eventlog.engine import Append, Plan, batches_of, now_us

STREAM = "events"


def of_mappings(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Values, as an application has them."""
    return _of_values(load.values, directory, end)


def of_bytes(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Values that are bytes already."""
    return _of_values(load.records, directory, end)


def of_threads(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Single mappings, from as many threads as the case says; each waits for its own event."""
    log = _log(directory, end)
    stream = log.stream(STREAM)
    threads = load.case.threads
    pool = end.enter_context(ThreadPoolExecutor(threads))

    def some(calls: list[list[dict[str, Any]]]) -> None:
        for (value,) in calls:
            stream.append(value)

    def append_all() -> None:
        list(pool.map(some, [load.values[place::threads] for place in range(threads)]))

    return Appender(append_all=append_all, stored=_count(log))


def of_engine(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Records encoded before, straight into the engine."""
    log = _log(directory, end)
    engine = log.engine

    def append_all() -> None:
        for call in load.records:
            batches = list(batches_of(CODEC.id, call, time_us=now_us()))
            engine.commit(Plan(appends=[Append(stream=STREAM, batches=batches)]))

    return Appender(append_all=append_all, stored=_count(log))


def _of_values(calls: list[Any], directory: Path, end: ExitStack) -> Appender:
    log = _log(directory, end)
    stream = log.stream(STREAM)

    def append_all() -> None:
        for call in calls:
            if len(call) == 1:
                stream.append(call[0])
            else:
                stream.append_many(call)

    return Appender(append_all=append_all, stored=_count(log))


def _log(directory: Path, end: ExitStack) -> eventlog.Log:
    log = end.enter_context(eventlog.open(directory / "log", create=True))
    log.stream(STREAM, create=True)
    return log


def _count(log: eventlog.Log) -> Callable[[], int]:
    """Counts the records themselves, their checksums verified, not what the index says of them."""

    def stored() -> int:
        start, end = log.engine.bounds(STREAM)
        stretches = log.engine.scan(STREAM, start, end, lambda entry: True)
        return sum(len(stretch.payload.ends) for stretch in stretches if stretch.payload)

    return stored
