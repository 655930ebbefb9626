"""A process that opens images of a log and tells what it sees; it may die of what it sees.

::

    test                            python -m tests.onlooker DIRECTORY NAME...
    remember("B", image)  ─────▶    open, read everything, keep what was seen
    look(image)           ─────▶    open, read everything, compare
                          ◀─────    equal to "B"; or what differs; or, by its end, a death

LMDB's assertions abort, and pages that are not there kill. So images that may be damaged are opened
in a child, many by each; when it dies, the next one takes over.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import eventlog
from eventlog.engine import Engine
from eventlog.engine.store import DATABASES, Store
from eventlog.errors import (
    DamagedLog,
    EventLogError,
    LogUnreadable,
    LogVersionError,
    NotALog,
    UsageError,
)

ROOT = Path(__file__).parents[1]
HONEST = (DamagedLog, NotALog, LogVersionError, LogUnreadable)
"""How a damaged log may answer. Any other error blames the caller, or is none of ours."""

_FRAME = struct.Struct("<cQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an image looked like.

    `equal` are the remembered images that it equals in everything. `differs` says for each of the
    others where it has another value; where it has an error instead, that is in `errors`.
    """

    died: bool = False
    equal: tuple[str, ...] = ()
    differs: dict[str, list[str]] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()


class Onlooker:
    """The child, started when needed. A context manager.

    `names` are `STREAM`, `STREAM:CONSUMER` and `STREAM#ID`, to be asked for; `exact` compares every
    stored key and value, too.
    """

    def __init__(self, directory: Path, *, names: Sequence[str], exact: bool = False) -> None:
        self._directory = directory
        self._words = [*names, *(["--exact"] if exact else [])]
        self._remembered: dict[str, bytes] = {}
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Onlooker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def remember(self, name: str, image: bytes) -> Seen:
        """Keep what an image looks like under one letter."""
        self._remembered[name] = image
        return self._ask(name, image)

    def look(self, image: bytes) -> Seen:
        """Compare an image with those that are remembered."""
        return self._ask("?", image)

    def _ask(self, what: str, image: bytes) -> Seen:
        if self._child is None:
            self._start()
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(_FRAME.pack(what.encode(), len(image)) + image)
            child.stdin.flush()
        except BrokenPipeError:
            self._end()
            return Seen(died=True)
        line = child.stdout.readline()
        if not line.endswith(b"\n"):
            code = child.wait(timeout=60)
            self._end()
            assert code < 0, f"the onlooker ended with {code}, by no signal"
            return Seen(died=True)
        found = json.loads(line)
        return Seen(
            equal=tuple(found["equal"]),
            differs=found["differs"],
            errors=tuple(found["errors"]),
            violations=tuple(found["violations"]),
        )

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.onlooker", str(self._directory), *self._words]
        self._child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name, image in self._remembered.items():
            assert not self._ask(name, image).died

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.stdin is not None:
            child.stdin.close()
        if child.stdout is not None:
            child.stdout.close()
        child.wait(timeout=60)


# In the child


@dataclass(frozen=True, slots=True)
class Failure:
    """An error instead of a value, and what was read before it."""

    error: str
    honest: bool
    before: Any = None


View = dict[str, Any]


def view(directory: Path, names: Sequence[str], *, exact: bool) -> View:
    """All that a log can be asked for, by the name of the question.

    But for who has staged: where an owner of staging vanished nothing is ever published by it.
    """
    found: View = {}
    if exact:
        _ask(found, "every key and value", lambda: _stored(directory))
    try:
        opened = eventlog.open(directory)
    except Exception as error:
        found["open"] = _failure(error)
        return found
    with opened as log:
        engine = log.engine
        _ask(found, "identity", engine.identity)
        _ask(found, "streams", lambda: [(r.id, r.name, r.kind, r.start) for r in engine.streams()])
        _ask(found, "consumers", engine.consumers)
        for name in names:
            if ":" in name:
                _ask(found, f"consumer {name}", partial(_consumer, engine, *name.split(":")))
            elif "#" in name:
                _ask(found, f"id {name}", partial(engine.offset_of_id, *name.split("#")))
            else:
                _stream(found, log, name)
        _ask(found, "check", lambda: [str(violation) for violation in log.check()])
    return found


def _stream(found: View, log: eventlog.Log, name: str) -> None:
    engine = log.engine
    _ask(found, f"{name}: bounds", partial(engine.bounds, name))
    _ask(found, f"{name}: schemas", partial(engine.schemas, name))
    _ask(found, f"{name}: source", partial(engine.source_state, name))
    _walk(found, f"{name}: stored records", partial(_records, engine, name))
    _walk(found, f"{name}: records", partial(_events, log, name))
    for part in range(1, 4):
        _walk(found, f"{name}: from {part} of 4", partial(_some, log, name, part))
    _ask(found, f"{name}: bounds of transactions", partial(_transactions, engine, name))
    _ask(found, f"{name}: offset by time", partial(engine.offset_at, name, 3_000_000))


def _ask(found: View, question: str, answer: Callable[[], Any]) -> None:
    try:
        found[question] = answer()
    except Exception as error:
        found[question] = _failure(error)


def _walk(found: View, question: str, walk: Callable[[Callable[[Any], None]], None]) -> None:
    kept: list[Any] = []
    try:
        walk(kept.append)
        found[question] = kept
    except Exception as error:
        found[question] = _failure(error, kept)


def _failure(error: Exception, before: Any = None) -> Failure:
    honest = isinstance(error, EventLogError) and not isinstance(error, UsageError)
    return Failure(f"{type(error).__name__}: {error}", honest and isinstance(error, HONEST), before)


def _stored(directory: Path) -> list[tuple[str, bytes, bytes]]:
    # Before the log is opened: that may write, to drop what a dead appender staged.
    store = Store(directory, create=False)
    try:
        with store.read() as txn:
            return [
                (name, bytes(key), bytes(value))
                for name in DATABASES
                for key, value in txn.cursor(db=getattr(store, name))
            ]
    finally:
        store.close()


def _records(engine: Engine, name: str, keep: Callable[[Any], None]) -> None:
    start, stop = engine.bounds(name)
    for stretch in engine.scan(name, start, stop, lambda entry: True):
        entry, payload = stretch.entry, stretch.payload
        assert payload is not None
        slots, offsets = entry.readable_slots(start, stop)
        words = entry.transactions
        places = entry.slot_transactions()[slots].tolist()
        times, ids = words.time.tolist(), words.tx.tolist()
        for offset, record, at in zip(offsets, payload.records(slots), places, strict=True):
            keep((offset, payload.codec, record, times[at], ids[at], int(words.position[at])))


def _consumer(engine: Engine, stream: str, name: str) -> tuple[int, int, str]:
    # As a consumer is opened: one that is not there is made, at the stream's end.
    row = engine.consumer(stream, name, start=engine.bounds(stream)[1])
    return row.offset, row.epoch, row.filter


def _events(log: eventlog.Log, name: str, keep: Callable[[Any], None]) -> None:
    for record in log.stream(name).read():
        keep(record)


def _some(log: eventlog.Log, name: str, part: int, keep: Callable[[Any], None]) -> None:
    # From the middle: found through the index by an offset, not by walking.
    stream = log.stream(name)
    start = stream.start + (stream.end - stream.start) * part // 4
    for record in stream.read(start, min(start + 3, stream.end)):
        keep(record)


def _transactions(engine: Engine, name: str) -> list[tuple[int, int]]:
    start, stop = engine.bounds(name)
    offsets = sorted({start + (stop - start) * part // 9 for part in range(9)})
    return [
        (engine.transaction_start(name, offset), engine.transaction_time(name, offset))
        for offset in offsets
        if offset < stop
    ]


def differences(found: View, truth: View) -> list[str]:
    """Where a view says something else than the truth. An honest error says nothing else."""
    if "open" in found:
        failure = found["open"]
        return [] if failure.honest else [f"open: {failure.error}"]
    wrong = []
    for question, true in truth.items():
        value = found[question]
        if question == "check":
            continue
        if isinstance(value, Failure):
            if not value.honest:
                wrong.append(f"{question}: {value.error}")
            elif value.before is not None and value.before != true[: len(value.before)]:
                wrong.append(f"{question}: other records before the error {value.error}")
        elif value != true:
            wrong.append(f"{question}: {_shown(value, true)}")
    return wrong


def _shown(value: Any, true: Any) -> str:
    if isinstance(value, list) and isinstance(true, list):
        at = next((n for n, (a, b) in enumerate(zip(value, true, strict=False)) if a != b), None)
        if at is None:
            return f"{len(value)} items instead of {len(true)}"
        value, true = (f"at {at} of {len(value)}: {value[at]}"), (f"{true[at]} of {len(true)}")
    return f"{value!s:.300} instead of {true!s:.300}"


def _answer(found: View, remembered: dict[str, View]) -> dict[str, Any]:
    failures = {q: value for q, value in found.items() if isinstance(value, Failure)}
    checked = found.get("check", [])
    return {
        "equal": [name for name, truth in remembered.items() if found == truth],
        "differs": {name: differences(found, truth) for name, truth in remembered.items()},
        "errors": [f"{question}: {failure.error}" for question, failure in failures.items()],
        "violations": [] if isinstance(checked, Failure) else checked,
    }


def main() -> None:
    directory, *words = map(str, sys.argv[1:])
    names = [word for word in words if word != "--exact"]
    remembered: dict[str, View] = {}
    place = Path(directory)
    source, sink = sys.stdin.buffer, sys.stdout
    while head := source.read(_FRAME.size):
        what, size = _FRAME.unpack(head)
        image = source.read(size)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "data.mdb").write_bytes(image)
        found = view(place, names, exact="--exact" in words)
        if what != b"?":
            remembered[what.decode()] = found
        print(json.dumps(_answer(found, remembered)), file=sink, flush=True)


if __name__ == "__main__":
    main()
