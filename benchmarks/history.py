"""How fast the history of one row is told, in a log of many changes, and what its index costs.

A table of a million rows (a tenth of the changes) is inserted and then updated at random, so a row
has about ten versions, each in another batch. The log is made without a server, out of `pgoutput`
messages as one would send them. A history is asked for by `Stream.history`, of rows drawn anew for
each round, and is checked for beginning with its insert. The limit is reading and unpacking the
batches that hold these versions, which every way to show them must do. Building the index is timed
beside it: dropped, and built again from the whole log.
"""

from __future__ import annotations

import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import eventlog
from benchmarks.appender import NotStored
from benchmarks.load import SEED
from benchmarks.machine import filesystem
from benchmarks.measure import Figure, Ratio, Result, Sample, figures_of, in_turn, ratio_samples
from benchmarks.options import Options
from eventlog.changes.change import Op
from eventlog.changes.schema import Column, Schema
from eventlog.engine import Append, Batch, Plan, SourceUpdate, Transactions
from eventlog.engine.payload import encode

QUESTION = "how long does it take to tell the history of one row, and to index the keys of all?"
STREAM, TABLE, RELATION = "shop", "public.orders", 16_400
PGOUTPUT, INT, TEXT = 3, 20, 25
VERSIONS = 10
FIRST_ID = 10_000_000
BATCH_RECORDS = 3_000
COMMIT_BATCHES = 64
ASKED = 25
"""Rows of one round."""

LATENCY, COST, BYTES = "time a history, median", "time a change", "bytes a change"
UNITS = {LATENCY: "ms", COST: "ns", BYTES: "B"}
HISTORY, BATCHES, BUILD = "eventlog", "their batches alone", "eventlog index"
WHAT = {
    HISTORY: "Stream.history(table, key=...), all versions decoded and compared",
    BATCHES: "Engine.scan of the same offsets one by one, verified and unpacked, not decoded",
    BUILD: "KeyIndex.update of the whole stream after KeyIndex.drop, flushed",
}
ROLES = {HISTORY: "subject", BATCHES: "limit", BUILD: "subject"}
TEN_MS = "10 ms"
TARGET_MS = 10.0


def run(options: Options) -> Result:
    """Write the log, then measure; rows are its changes."""
    changes = options.rows or (100_000 if options.quick else 10_000_000)
    rows = max(changes // VERSIONS, 1)
    with (
        TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made,
        ExitStack() as end,
    ):
        options.note("history: writing the log")
        log = end.enter_context(eventlog.open(Path(made) / "log", create=True))
        _write(log, changes, rows)
        draw = np.random.default_rng(SEED)
        asked: list[int] = []

        def history() -> Sample:
            asked[:] = (FIRST_ID + draw.integers(0, rows, ASKED)).tolist()
            return {LATENCY: _median_ms(lambda key: _history(log, key), asked)}

        def batches() -> Sample:
            stream = log.stream(STREAM)
            offsets = {k: [c.offset for c in stream.history(TABLE, key=k)] for k in asked}
            return {LATENCY: _median_ms(lambda key: _batches(log, offsets[key]), asked)}

        taken = in_turn(
            {BUILD: lambda: _build(log, changes), HISTORY: history, BATCHES: batches},
            samples=options.samples,
            note=lambda text: options.note(f"history: {text}"),
        )
    return Result(
        name="history",
        question=QUESTION,
        about={
            "changes": changes,
            "rows": rows,
            "histories a round": ASKED,
            "seed": SEED,
            "files_on": filesystem(options.directory),
            "contenders": WHAT,
        },
        figures=_figures(f"{changes:,} changes", taken),
        ratios=_ratios(f"{changes:,} changes", taken),
    )


def _write(log: eventlog.Log, changes: int, rows: int) -> None:
    """Insert every row, then update rows at random, as a capture would have stored it."""
    engine = log.engine
    engine.create_stream(STREAM, "captured")
    writer = engine.writer(STREAM)
    schemas = [(0, _schema().to_map())]
    batches: list[Batch] = []
    for number, (tag, ids) in enumerate(_ids(changes, rows)):
        batches.append(_batch(tag, ids, number))
        if len(batches) == COMMIT_BATCHES:
            _commit(log, writer.epoch, batches, schemas)
            batches, schemas = [], []
    _commit(log, writer.epoch, batches, schemas)
    writer.close()
    stored = log.stream(STREAM).end
    if stored != changes:
        raise NotStored(f"the log was given {changes:,} changes and holds {stored:,}")


def _commit(log: eventlog.Log, epoch: int, batches: list[Batch], schemas: list[Any]) -> None:
    state = {"codec": PGOUTPUT}
    source = SourceUpdate(stream=STREAM, writer_epoch=epoch, state=state, schemas=schemas)
    appends = [Append(stream=STREAM, batches=batches)] if batches else []
    log.engine.commit(Plan(appends=appends, sources=[source]))


def _schema() -> Schema:
    columns = (
        Column(name="id", type=INT, typmod=-1, key=True, attribute=1),
        Column(name="note", type=TEXT, typmod=-1, key=False, attribute=2),
        Column(name="amount", type=TEXT, typmod=-1, key=False, attribute=3),
    )
    return Schema(
        id=0,
        offset=0,
        relation=RELATION,
        namespace="public",
        name="orders",
        identity="d",
        columns=columns,
    )


def _ids(changes: int, rows: int) -> Iterator[tuple[bytes, np.ndarray[Any, Any]]]:
    """The tag and the rows of each batch."""
    draw = np.random.default_rng(SEED)
    for start in range(0, rows, BATCH_RECORDS):
        yield b"I", np.arange(start, min(start + BATCH_RECORDS, rows))
    for start in range(rows, changes, BATCH_RECORDS):
        yield b"U", draw.integers(0, rows, min(BATCH_RECORDS, changes - start))


def _batch(tag: bytes, ids: np.ndarray[Any, Any], number: int) -> Batch:
    """Messages of one size: a template, into which ids and amounts are put as digits."""
    note = b"the same words in every row"
    head = tag + struct.pack(">IcHc", RELATION, b"N", 3, b"t") + struct.pack(">I", 8)
    between = b"t" + struct.pack(">I", len(note)) + note + b"t" + struct.pack(">I", 8)
    template = np.frombuffer(head + bytes(8) + between + bytes(8), np.uint8)
    records = np.tile(template, (len(ids), 1))
    records[:, len(head) : len(head) + 8] = _digits(FIRST_ID + ids)
    records[:, -8:] = _digits(FIRST_ID + (np.arange(len(ids)) * 7919 + number) % 1_000_000)
    ends = (np.arange(1, len(ids) + 1) * len(template)).astype(np.uint32)
    transactions = Transactions.one(
        time_us=1_767_225_600_000_000 + number, tx=number + 1, position=number + 1
    )
    body = encode(PGOUTPUT, ends, records.tobytes())
    return Batch(body=body, transactions=transactions, relations=((RELATION, 0),))


def _digits(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return numbers[:, None] // 10 ** np.arange(7, -1, -1) % 10 + ord("0")


def _build(log: eventlog.Log, changes: int) -> Sample:
    stream = log.stream(STREAM)
    index = stream.key_index()
    index.drop()
    start = time.perf_counter()
    index.update(stream.end)
    took = time.perf_counter() - start
    runs = index.runs()
    if sum(run.count for run in runs) != changes:
        raise NotStored("the index has not an entry for each change")
    return {COST: 1e9 * took / changes, BYTES: sum(run.bytes for run in runs) / changes}


def _history(log: eventlog.Log, key: int) -> None:
    first = next(iter(found := list(log.stream(STREAM).history(TABLE, key=key))))
    if first.op is not Op.INSERT or {change.row["id"] for change in found} != {key}:
        raise NotStored(f"the history of row {key} is not that of the row")


def _batches(log: eventlog.Log, offsets: list[int]) -> None:
    for offset in offsets:
        for stretch in log.engine.scan(STREAM, offset, offset + 1, lambda entry: True):
            assert stretch.payload is not None


def _median_ms(ask: Callable[[int], None], keys: list[int]) -> float:
    taken = []
    for key in keys:
        start = time.perf_counter()
        ask(key)
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def _figures(case: str, taken: dict[str, list[Sample]]) -> tuple[Figure, ...]:
    return tuple(figures_of(taken, case, roles=ROLES, units=UNITS))


def _ratios(case: str, taken: dict[str, list[Sample]]) -> tuple[Ratio, ...]:
    latency = tuple(sample[LATENCY] / TARGET_MS for sample in taken[HISTORY])
    limit = ratio_samples(taken, LATENCY, of=HISTORY, to=BATCHES)
    return (
        Ratio(case=case, quantity=LATENCY, of=HISTORY, to=TEN_MS, samples=latency, at_most=1.0),
        Ratio(case=case, quantity=LATENCY, of=HISTORY, to=BATCHES, samples=limit),
    )
