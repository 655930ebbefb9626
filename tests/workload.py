"""One workload for the proofs: every kind of write that a log knows, as a list of steps.

::

    clicks      one event a commit, enough of them to be merged more than once
    bulk        thousands of events a commit
    staged      events too large for one commit, staged and published
    left right  one event each, in one transaction
    named       events with ids: all are appended again by a run that was cut off
    packed      compressed batches
    aging       its oldest batches are dropped, a few at a time
    doubled     what the consumer `doubler` makes of `clicks`, in the commit of its offset
    shop        captured: schemas, a writer, a position; some transactions staged

A step looks at what is there and does what is missing. So a run that was cut off anywhere is
finished by the next one, and gives the log of an undisturbed run. Whatever was acknowledged (the
call returned) is told.

    python -m tests.workload DIRECTORY      does all, and prints `SUBJECT NUMBER` when acknowledged
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import eventlog
from eventlog import outbox
from eventlog.engine import Append, Batch, Plan, SourceUpdate, Transactions, batch_of
from eventlog.engine.upkeep import retain as retention
from eventlog.engine.upkeep.backup import backup
from eventlog.engine.upkeep.compact import compact
from tests.fix_log import INT, PGOUTPUT, Column, Schema, column, insert, update

SINGLES = 330
BULKS, BULK_EVENTS = 3, 2_000
LARGES, LARGE_EVENTS, LARGE_BYTES = 2, 11, 30_000
PAIRS = 20
IDS, IDS_EACH = 24, 3
PACKS, PACK_EVENTS = 2, 100
AGES, AGE_EVENTS, AGE_DROPPED = 8, 25, 6
CHANGES, CHANGES_EACH, STAGED_EVERY = 12, 3, 4
SCHEMAS, SCHEMA_EVERY = 2, 5
IDLE = 2
CONSUMER = "doubler"

Told = Callable[[str, int], None]
"""What is safe from here on: the end of a stream, or a consumer's offset under `NAME@STREAM`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of the workload; `streams` are those that it writes."""

    name: str
    streams: tuple[str, ...]
    do: Callable[[eventlog.Log, Told], None]


def unheard(subject: str, number: int) -> None:
    """Told, and not noted."""


@contextmanager
def small_commits() -> Iterator[None]:
    """Within it two large events fill a batch, and what does not fit one batch is staged."""
    small = {"COMMIT_BYTES": LARGE_BYTES, "BATCH_BYTES": 5 * LARGE_BYTES // 2}
    with mock.patch.multiple(outbox, **small):
        yield


def single_appends(log: eventlog.Log, told: Told) -> None:
    stream = log.stream("clicks", create=True)
    for number in range(stream.end, SINGLES):
        stream.append({"number": number, "page": f"/{number % 7}"}, key=number % 5)
        told("clicks", number + 1)


def bulk_appends(log: eventlog.Log, told: Told) -> None:
    stream = log.stream("bulk", create=True)
    for call in range(stream.end // BULK_EVENTS, BULKS):
        first = call * BULK_EVENTS
        stream.append_many(
            {"number": first + n, "word": "x" * (n % 50)} for n in range(BULK_EVENTS)
        )
        told("bulk", first + BULK_EVENTS)


def staged_appends(log: eventlog.Log, told: Told) -> None:
    stream = log.stream("staged", create=True)
    for call in range(stream.end // LARGE_EVENTS, LARGES):
        chance = random.Random(call)
        with small_commits():
            stream.append_many(chance.randbytes(LARGE_BYTES) for _ in range(LARGE_EVENTS))
        told("staged", (call + 1) * LARGE_EVENTS)


def transactions(log: eventlog.Log, told: Told) -> None:
    left = log.stream("left", create=True)
    log.stream("right", create=True)
    for number in range(left.end, PAIRS):
        with log.transaction() as tx:
            tx.append("left", number)
            tx.append("right", -number)
        told("left", number + 1)
        told("right", number + 1)


def with_ids(log: eventlog.Log, told: Told) -> None:
    stream = log.stream("named", create=True)
    for number in range(0, IDS, IDS_EACH + 1):
        # No look at what is there: the ids tell the log.
        assert stream.append({"order": number}, id=id_of(number)) == number
        rest = range(number + 1, number + 1 + IDS_EACH)
        offsets = stream.append_many([{"order": n} for n in rest], ids=map(id_of, rest))
        assert offsets == list(rest)
        told("named", rest.stop)


def id_of(number: int) -> str:
    """The id of an event of `named`, by its offset."""
    return f"order-{number}"


def compressed(log: eventlog.Log, told: Told) -> None:
    stream = log.stream("packed", create=True, compression="zstd")
    for call in range(stream.end // PACK_EVENTS, PACKS):
        first = call * PACK_EVENTS
        stream.append_many({"number": first + n, "word": "z" * 60} for n in range(PACK_EVENTS))
        told("packed", first + PACK_EVENTS)


def retained(log: eventlog.Log, told: Told) -> None:
    stream = log.stream("aging", create=True)
    for call in range(stream.end // AGE_EVENTS, AGES):
        first = call * AGE_EVENTS
        stream.append_many(range(first, first + AGE_EVENTS))
        told("aging", first + AGE_EVENTS)
    with mock.patch.object(retention, "BATCHES", 2):
        retention.retain(log.engine.store, "aging", below=AGE_DROPPED * AGE_EVENTS + 1)


def consumed(log: eventlog.Log, told: Told) -> None:
    log.stream("doubled", create=True)
    log.stream("left").consumer("idle", start=IDLE)
    told("idle@left", IDLE)
    consumer = log.stream("clicks").consumer(CONSUMER)
    for batch in consumer.follow(max_rows=25, until=SINGLES):
        with consumer.commit(batch) as tx:
            tx.append("doubled", [2 * event.value["number"] for event in batch])
        told(f"{CONSUMER}@clicks", batch.stop)
        told("doubled", batch.stop)


def captured(log: eventlog.Log, told: Told) -> None:
    engine = log.engine
    engine.create_stream("shop", "captured")
    writer = engine.writer("shop")
    try:
        done = (engine.source_state("shop") or {}).get("position", 0)
        for position in range(done + 1, CHANGES + 1):
            version = min(position // SCHEMA_EVERY, SCHEMAS - 1)
            stored = len(engine.schemas("shop"))
            schemas = [(n, _schema(n).to_map()) for n in range(stored, version + 1)]
            source = SourceUpdate(
                stream="shop",
                writer_epoch=writer.epoch,
                state={"codec": PGOUTPUT, "position": position},
                schemas=schemas,
            )
            batches = [changes(position, version, part) for part in range(3)]
            if position % STAGED_EVERY == 0:
                writer.owner.stage(batches[:1])
                writer.owner.stage(batches[1:])
                append = Append(stream="shop", staged=writer.owner.id, staged_position=position)
            else:
                append = Append(stream="shop", batches=batches[:1])
            end = engine.commit(Plan(appends=[append], sources=[source])).offsets[0].stop
            told("shop", end)
    finally:
        writer.close()


def _schema(number: int) -> Schema:
    more: list[Column] = [column("note")] if number else []
    return Schema(
        id=number,
        offset=0,
        relation=16_400,
        namespace="public",
        name="orders",
        identity="d",
        columns=(column("id", INT, key=True), column("state"), *more),
        inserts_only=False,
    )


def changes(position: int, version: int, part: int) -> Batch:
    schema = _schema(version)
    note = ["" if number % 2 else None for number in range(version)]
    records = [
        (insert if number == 0 else update)(schema, 10 * position + part, f"at {number}", *note)[1]
        for number in range(CHANGES_EACH)
    ]
    times = Transactions.one(
        time_us=position * 1_000_000,
        tx=700 + position,
        position=position,
        back=part * CHANGES_EACH,
    )
    return batch_of(PGOUTPUT, records, times, relations=((schema.relation, version),))


STEPS = (
    Step(name="single appends", streams=("clicks",), do=single_appends),
    Step(name="bulk appends", streams=("bulk",), do=bulk_appends),
    Step(name="staged appends", streams=("staged",), do=staged_appends),
    Step(name="transactions", streams=("left", "right"), do=transactions),
    Step(name="with ids", streams=("named",), do=with_ids),
    Step(name="compressed", streams=("packed",), do=compressed),
    Step(name="retained", streams=("aging",), do=retained),
    Step(name="consumed", streams=("doubled",), do=consumed),
    Step(name="captured", streams=("shop",), do=captured),
)
STREAMS = tuple(stream for step in STEPS for stream in step.streams)
NAMES = (*STREAMS, f"clicks:{CONSUMER}", "left:idle", *(f"named#{id_of(n)}" for n in range(4)))
"""What to ask a log of this workload for, in the words of `tests.onlooker`."""


def run(log: eventlog.Log, told: Told = unheard) -> None:
    """Do whatever of the workload is missing."""
    for step in STEPS:
        step.do(log, told)


def run_alone(directory: Path, told: Told = unheard) -> None:
    """Open the log, made where there is none, and do all; then what needs the log closed."""
    with eventlog.open(directory, create=True) as log:
        run(log, told)
        if not backup_of(directory).exists():
            backup(log.engine, backup_of(directory))
    compact(directory)


def backup_of(directory: Path) -> Path:
    """Where the workload puts the backup of the log in a directory."""
    return directory.with_name(f"{directory.name}-backup")


def contents(log: eventlog.Log) -> dict[str, Any]:
    """What two runs of the workload must have in common: everything but times and epochs."""
    engine = log.engine
    found: dict[str, Any] = {}
    for row in engine.streams():
        records: list[bytes] = []
        start, end = engine.bounds(row.name)
        for stretch in engine.scan(row.name, start, end, lambda entry: True):
            assert stretch.payload is not None
            records += stretch.payload.records(stretch.entry.readable_slots(start, end)[0])
        found[row.name] = (row.kind, start, end, records)
        found[f"schemas of {row.name}"] = engine.schemas(row.name)
        if row.name == "named":
            found["ids"] = [engine.offset_of_id("named", id_of(n)) for n in range(IDS)]
        found[f"source of {row.name}"] = engine.source_state(row.name)
    for stream, name, consumer in engine.consumers():
        found[f"{name}@{stream}"] = (consumer.offset, consumer.epoch, consumer.filter)
    return found


def require_whole(log: eventlog.Log, truth: Mapping[str, Any], safe: Mapping[str, int]) -> None:
    """Hold a log whose run was cut off against an undisturbed run's contents.

    What is there is the beginning of what must come; nothing of a commit is there by halves; all
    that was acknowledged is there.
    """
    found = contents(log)
    ends = {name: value[2] for name, value in found.items() if name in STREAMS}
    for name in ends:
        kind, start, end, records = found[name]
        true_kind, true_start, _, true_records = truth[name]
        assert kind == true_kind and start <= true_start
        assert end == start + len(records)
        # What is still to be dropped lies below.
        there = records[true_start - start :]
        assert there == true_records[: len(there)], name
    assert ends.get("bulk", 0) % BULK_EVENTS == 0
    assert ends.get("staged", 0) % LARGE_EVENTS == 0
    assert ends.get("aging", 0) % AGE_EVENTS == 0 == found.get("aging", (0, 0))[1] % AGE_EVENTS
    assert ends.get("packed", 0) % PACK_EVENTS == 0
    assert ends.get("named", 0) % (IDS_EACH + 1) in (0, 1)
    assert ends.get("left", 0) == ends.get("right", 0)
    offset = found.get(f"{CONSUMER}@clicks", (0,))[0]
    assert offset == ends.get("doubled", 0)
    position = (found.get("source of shop") or {}).get("position", 0)
    each = [CHANGES_EACH * (1 if number % STAGED_EVERY else 3) for number in range(1, position + 1)]
    assert ends.get("shop", 0) == sum(each)
    named = ends.get("named", 0)
    known = [number if number < named else None for number in range(IDS)]
    assert found.get("ids", known) == known
    schemas = found.get("schemas of shop", [])
    assert schemas == truth["schemas of shop"][: len(schemas)]
    assert not position or len(schemas) == min(position // SCHEMA_EVERY, SCHEMAS - 1) + 1
    for subject, number in safe.items():
        there = found[subject][0] if "@" in subject else ends[subject]
        assert there >= number, f"{subject} stands at {there}; {number} was acknowledged"


def heard(output: str) -> dict[str, int]:
    """What a run in another process told; its last line may be cut."""
    whole = output[: output.rfind("\n") + 1]
    return {subject: int(number) for subject, number in map(str.split, whole.splitlines())}


def main() -> None:
    def tell(subject: str, number: int) -> None:
        print(subject, number, flush=True)

    run_alone(Path(sys.argv[1]), tell)


if __name__ == "__main__":
    main()
