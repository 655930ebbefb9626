"""The parts in the stress test: `python -m tests.stress_worker ROLE LOG SECONDS NAME`.

::

    single          one event a commit into `events`, and tells each: {"by": NAME, "n": 0, 1, ...}
    bulk            thousands at once, into the same stream
    staging         more than one commit takes, into the same stream
    threads         as single, from several threads that share commits; the first one tells
    consumer        exactly once from `events` into `copied`
    reader          walks `events` again and again: dense, immutable, nothing by halves
    aging           appends to `aged`, and drops what is old there
    visitor         opens the log, looks, and closes it, all the time

A writer that is started again under its name goes on where it was: it finds the number of its last
event in the stream itself. What it prints was acknowledged.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import eventlog
from eventlog.engine.upkeep.retain import retain
from eventlog.errors import ConsumerFenced, OffsetsDropped
from tests import workload

EVENTS, COPIED, AGED = "events", "copied", "aged"
CONSUMER = "copier"
BULK_EVENTS = 2_000
STAGED_EVENTS, STAGED_BYTES = 24, 12_000
AGED_EVENTS = 50
THREADS = 4
PAUSE_S = 0.002


def until(seconds: float) -> Iterator[int]:
    """Count up for so long."""
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        yield number
        number += 1


def next_number(log: eventlog.Log, name: str) -> int:
    """What a writer of that name has yet to append: it may have died after a commit."""
    numbers = [event.value["n"] for event in log.stream(EVENTS).read() if event.value["by"] == name]
    return numbers[-1] + 1 if numbers else 0


def tell(number: int) -> None:
    print(number, flush=True)


def single(log: eventlog.Log, seconds: float, name: str) -> None:
    stream = log.stream(EVENTS)
    number = next_number(log, name)
    for _ in until(seconds):
        stream.append({"by": name, "n": number})
        number += 1
        tell(number)
        time.sleep(PAUSE_S)


def threads(log: eventlog.Log, seconds: float, name: str) -> None:
    def append(mine: str, told: Callable[[int], None]) -> None:
        number = next_number(log, mine)
        for _ in until(seconds):
            log.stream(EVENTS).append({"by": mine, "n": number})
            number += 1
            told(number)
            time.sleep(5 * PAUSE_S)

    with ThreadPoolExecutor(THREADS) as pool:
        names = [f"{name}-{number}" for number in range(THREADS)]
        told = [tell, *[lambda number: None] * (THREADS - 1)]
        for done in [pool.submit(append, *each) for each in zip(names, told, strict=True)]:
            done.result()


def bulk(log: eventlog.Log, seconds: float, name: str) -> None:
    stream = log.stream(EVENTS)
    number = next_number(log, name)
    for _ in until(seconds):
        numbers = range(number, number + BULK_EVENTS)
        stream.append_many({"by": name, "n": n, "of": BULK_EVENTS} for n in numbers)
        number = numbers.stop
        tell(number)
        time.sleep(50 * PAUSE_S)


def staging(log: eventlog.Log, seconds: float, name: str) -> None:
    stream = log.stream(EVENTS)
    number = next_number(log, name)
    chance = random.Random(name)
    for _ in until(seconds):
        numbers = range(number, number + STAGED_EVENTS)
        with workload.small_commits():
            stream.append_many(
                {"by": name, "n": n, "of": STAGED_EVENTS, "noise": chance.randbytes(STAGED_BYTES)}
                for n in numbers
            )
        number = numbers.stop
        tell(number)
        time.sleep(50 * PAUSE_S)


def consumer(log: eventlog.Log, seconds: float, name: str) -> None:
    source = log.stream(EVENTS)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # Another process of the same name may be ahead: then read again, and go on from there.
        with suppress(ConsumerFenced):
            taken = source.consumer(CONSUMER)
            for batch in taken.follow(max_rows=700, stop=lambda: time.monotonic() >= end):
                with taken.commit(batch) as tx:
                    tx.append(COPIED, [[event.value["by"], event.value["n"]] for event in batch])
                tell(batch.stop)


def reader(log: eventlog.Log, seconds: float, name: str) -> None:
    stream = log.stream(EVENTS)
    known: list[Any] = []
    for _ in until(seconds):
        end = stream.end
        found = [
            (event.offset, event.value["by"], event.value["n"]) for event in stream.read(0, end)
        ]
        assert [offset for offset, _, _ in found] == list(range(end)), "dense"
        assert found[: len(known)] == known, "what was read stays"
        require_whole(stream, len(known), end)
        known = found
        tell(end)


def aging(log: eventlog.Log, seconds: float, name: str) -> None:
    stream = log.stream(AGED)
    number = stream.end
    for turn in until(seconds):
        stream.append_many(range(number, number + AGED_EVENTS))
        number += AGED_EVENTS
        tell(number)
        if turn % 10 == 0:
            retain(log.engine.store, AGED, below=number - 10 * AGED_EVENTS)
        time.sleep(5 * PAUSE_S)


def require_whole(stream: eventlog.Stream, start: int, stop: int) -> None:
    """Raise where a call's events are not all there, one after the other."""
    left: list[tuple[str, int]] = []
    for event in stream.read(start, stop):
        value = event.value
        if left:
            assert (value["by"], value["n"]) == left.pop(), "nothing by halves"
        elif "of" in value:
            rest = range(value["n"] + value["of"] - 1, value["n"], -1)
            left = [(value["by"], n) for n in rest]
    assert not left, "nothing by halves"


def visitor(path: Path, seconds: float, name: str) -> None:
    seen = 0
    for visits in until(seconds):
        with eventlog.open(path) as log:
            end = log.stream(EVENTS).end
            assert end >= seen
            seen = end
            if end:
                (last,) = log.stream(EVENTS).read(end - 1, end)
                assert last.offset == end - 1
            # What is read may be dropped meanwhile.
            with suppress(OffsetsDropped):
                for event in log.stream(AGED).read():
                    assert event.value == event.offset
        tell(visits)


ROLES: dict[str, Callable[[eventlog.Log, float, str], None]] = {
    role.__name__: role for role in (single, threads, bulk, staging, consumer, reader, aging)
}


def main(role: str, directory: str, seconds: str, name: str) -> None:
    if role == "visitor":
        visitor(Path(directory), float(seconds), name)
        return
    with eventlog.open(Path(directory)) as log:
        ROLES[role](log, float(seconds), name)


if __name__ == "__main__":
    main(*sys.argv[1:])
