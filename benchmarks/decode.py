"""How fast stored changes become typed Arrow columns, on one core.

The rows are those of the `capture` benchmark, made here as Postgres writes them, and lie in memory:
as `pgoutput` messages, as lines of COPY, as events of msgpack, and for the peers as fields and as
CSV. "decode" takes payloads as the log gives them; `Stream.read` finds them in a log in the page
cache, decompresses them, and verifies their checksums. The peers know nothing of offsets and times.
Rates are per second of CPU, of all threads: a core's.
"""

from __future__ import annotations

import io
import json
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg.adapt
import psycopg.pq
import pyarrow as pa
from pyarrow import csv

import eventlog
from benchmarks.appender import NotStored
from benchmarks.measure import Contender, Ratio, Result, Sample, figures_of, in_turn, ratio_samples
from benchmarks.options import Options
from eventlog.changes.arrow import Conversion, change_table, stacked
from eventlog.changes.codec import codec
from eventlog.changes.schema import Column, Schema
from eventlog.changes.split import joined_columns, mended
from eventlog.changes.together import TOGETHER_BYTES, split_payloads
from eventlog.engine import Append, Batch, Plan, SourceUpdate, batches_of
from eventlog.engine.payload import Payload, decode

QUESTION = "how many rows of 8 columns a second become typed Arrow columns on one core?"
PGOUTPUT, COPY = 3, 4
RELATION = 16_400
MESSAGE_CALL = 10_000

RATE, CLOCK = "rows a CPU second", "rows by the clock"
UNITS = {RATE: "1/s", CLOCK: "1/s"}
ONE = "1M/s"
TARGET = 2.0
"""Of the design, in millions of typed rows a second."""

DECODE, DECODE_COPY = "decode, pgoutput", "decode, copy"
READ, READ_TWO, READ_COPY = "read, pgoutput", "read, 2 columns", "read, copy"
EVENTS = "read, events"
PSYCOPG, CSV = "psycopg's loaders", "pyarrow's CSV reader"

WHAT = {
    DECODE: "payloads of pgoutput messages, split and converted",
    DECODE_COPY: "payloads of lines of COPY, split and converted",
    READ: "Stream.read(table=).to_arrow() of the same messages in a log",
    READ_TWO: "the same with columns=['id', 'amount']",
    READ_COPY: "Stream.read(table=).to_arrow() of the same lines in a log",
    EVENTS: "Stream.read().to_arrow() of the same rows as events: key, and value as JSON",
    PSYCOPG: "Transformer.load_sequence over the fields of each row, in C, to Python values",
    CSV: "read_csv with the same types, one thread, rows as CSV",
}
ROLES = dict.fromkeys((DECODE, DECODE_COPY, READ, READ_TWO, READ_COPY, EVENTS), "subject")
ROLES |= {PSYCOPG: "peer", CSV: "peer"}

ORDERS = Schema(
    id=0,
    offset=0,
    relation=RELATION,
    namespace="public",
    name="orders",
    identity="d",
    columns=tuple(
        Column(name=name, type=oid, typmod=typmod, key=name == "id")
        for name, oid, typmod in (
            ("id", 20, -1),
            ("customer_id", 23, -1),
            ("amount", 1700, (10 << 16 | 2) + 4),
            ("country", 25, -1),
            ("paid", 16, -1),
            ("weight", 701, -1),
            ("created_at", 1184, -1),
            ("note", 25, -1),
        )
    ),
)

Row = tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The same rows in every form."""

    rows: list[Row]
    payloads: list[Payload]
    copy_payloads: list[Payload]
    log: eventlog.Log
    text: bytes


def run(options: Options) -> Result:
    """Make the rows, then let all read them; rows are those of each sample."""
    count = options.rows or (20_000 if options.quick else 500_000)
    with TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made, ExitStack() as end:
        options.note("decode: making rows")
        inputs = _inputs(count, Path(made), end)
        contenders = _contenders(inputs)
        _expect_equal(contenders)
        taken = in_turn(
            {name: _timed(read, count) for name, read in contenders.items()},
            samples=options.samples,
            note=lambda text: options.note(f"decode: {text}"),
        )
    case = f"{count:,} rows"
    about: dict[str, Any] = {
        "text_bytes_per_row": round(len(inputs.text) / count, 1),
        "payloads": len(inputs.payloads),
        "contenders": WHAT,
    }
    return Result(
        name="decode",
        question=QUESTION,
        about=about,
        figures=tuple(figures_of(taken, case, roles=ROLES, units=UNITS)),
        ratios=_ratios(case, taken),
    )


def _contenders(inputs: Inputs) -> dict[str, Callable[[], Any]]:
    shop, copied = inputs.log.stream("shop"), inputs.log.stream("copied")
    clicks = inputs.log.stream("clicks")
    two = ["id", "amount"]
    return {
        DECODE: lambda: typed(PGOUTPUT, inputs.payloads),
        DECODE_COPY: lambda: typed(COPY, inputs.copy_payloads),
        READ: lambda: shop.read(table="orders").to_arrow(),
        READ_TWO: lambda: shop.read(table="orders", columns=two).to_arrow(),
        READ_COPY: lambda: copied.read(table="orders").to_arrow(),
        EVENTS: lambda: clicks.read().to_arrow(),
        PSYCOPG: lambda: _loaded(inputs.rows),
        CSV: lambda: _csv(inputs.text),
    }


def typed(codec_id: int, payloads: Sequence[Payload]) -> pa.Table:
    """The rows of some payloads as typed columns."""
    reader = codec(codec_id)
    tables = []
    for group in _together(payloads):
        slots = [range(len(payload.ends)) for payload in group]
        found = split_payloads(reader, group, slots, {RELATION: ORDERS})
        splits = mended(split for each in found for split in each.rows)
        width = range(len(ORDERS.columns))
        whole = joined_columns([[split.new_texts(at) for at in width] for split in splits])
        options = {"offsets": range(sum(map(len, splits))), "conversion": Conversion()}
        tables.append(change_table(reader, ORDERS, whole, **options))
    return stacked(tables)


def _together(payloads: Sequence[Payload]) -> Iterator[list[Payload]]:
    """As many as are split together when a log is read."""
    group: list[Payload] = []
    size = 0
    for payload in payloads:
        group.append(payload)
        size += len(payload.data)
        if size >= TOGETHER_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _loaded(rows: list[Row]) -> list[Any]:
    transformer = psycopg.adapt.Transformer()
    types = [column.type for column in ORDERS.columns]
    transformer.set_loader_types(types, psycopg.pq.Format.TEXT)
    return [transformer.load_sequence(row) for row in rows]


def _csv(text: bytes) -> pa.Table:
    reader = codec(PGOUTPUT)
    types = {column.name: reader.arrow_type(ORDERS, column) for column in ORDERS.columns}
    return csv.read_csv(
        io.BytesIO(text),
        read_options=csv.ReadOptions(column_names=list(types), use_threads=False),
        convert_options=csv.ConvertOptions(
            column_types=types,
            true_values=["t"],
            false_values=["f"],
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _expect_equal(contenders: dict[str, Callable[[], Any]]) -> None:
    """Every Arrow table holds the same; who read something else would win for nothing."""
    expected = contenders[CSV]()
    for name in (DECODE, DECODE_COPY, READ, READ_COPY):
        found = contenders[name]().select(ORDERS.names)
        for column in ORDERS.names:
            if not found[column].equals(expected[column]):
                raise NotStored(f"column {column!r} of {name!r} is not what {CSV} reads")


def _timed(read: Callable[[], Any], count: int) -> Contender:
    def sample() -> Sample:
        start, cpu = time.perf_counter(), time.process_time()
        found = read()
        took, used = time.perf_counter() - start, time.process_time() - cpu
        if len(found) != count:
            raise NotStored(f"{len(found):,} rows were read of {count:,}")
        return {RATE: count / used, CLOCK: count / took}

    return sample


def _ratios(case: str, taken: dict[str, list[Sample]]) -> tuple[Ratio, ...]:
    def ratio(of: str, to: str) -> Ratio:
        samples = ratio_samples(taken, RATE, of=of, to=to)
        return Ratio(case=case, quantity=RATE, of=of, to=to, samples=samples)

    def millions(of: str) -> Ratio:
        samples = tuple(sample[RATE] / 1e6 for sample in taken[of])
        return Ratio(case=case, quantity=RATE, of=of, to=ONE, samples=samples, at_least=TARGET)

    return (
        millions(DECODE),
        millions(DECODE_COPY),
        *(ratio(of, to) for to in (PSYCOPG, CSV) for of in (DECODE, DECODE_COPY, READ)),
    )


def _inputs(count: int, directory: Path, end: ExitStack) -> Inputs:
    rows = [_row(number) for number in range(count)]
    log = end.enter_context(eventlog.open(directory / "log", create=True))
    messages, lines = list(map(_message, rows)), list(map(_line, rows))
    shop = list(_written(log, "shop", PGOUTPUT, messages, end))
    copied = list(_written(log, "copied", COPY, lines, end))
    clicks = log.stream("clicks", create=True)
    names = ORDERS.names
    for start in range(0, count, MESSAGE_CALL):
        part = rows[start : start + MESSAGE_CALL]
        clicks.append_many([dict(zip(names, map(_shown, row), strict=True)) for row in part])
    text = b"".join(b",".join(field or b"" for field in row) + b"\n" for row in rows)
    return Inputs(
        rows=rows,
        payloads=[_payload(batch) for batch in shop],
        copy_payloads=[_payload(batch) for batch in copied],
        log=log,
        text=text,
    )


def _written(
    log: eventlog.Log, stream: str, codec_id: int, records: list[bytes], end: ExitStack
) -> Iterator[Batch]:
    """Store records as a capture would; returns their batches."""
    log.engine.create_stream(stream, "captured")
    writer = end.enter_context(closing(log.engine.writer(stream)))
    stored = (ORDERS.id, ORDERS.to_map())
    schemas, relations = [stored], ((RELATION, ORDERS.id),)
    for batch in batches_of(codec_id, records, time_us=0, relations=relations):
        source = SourceUpdate(
            stream=stream, writer_epoch=writer.epoch, state={"codec": PGOUTPUT}, schemas=schemas
        )
        log.engine.commit(Plan(appends=[Append(stream=stream, batches=[batch])], sources=[source]))
        schemas = []
        yield batch


def _payload(batch: Batch) -> Payload:
    return decode(batch.body.data, where="a benchmark's payload")


BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def _row(number: int) -> Row:
    """One row of the `capture` benchmark's table, as Postgres writes it."""
    moment = BEGAN + timedelta(milliseconds=731 * number)
    written = f"{moment:%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".") + "+00"
    weight = repr(number % 977 / 7).removesuffix(".0").encode() if number % 10 else None
    note = b"leave it with the neighbours at number %d" % (number % 100)
    return (
        b"%d" % number,
        b"%d" % (number * 7919 % 50_000),
        b"%.2f" % (number * 104_729 % 1_000_000 / 100),
        (b"NL", b"DE", b"FR", b"BE", b"US")[number % 5],
        b"f" if number % 3 else b"t",
        weight,
        written.encode(),
        None if number % 4 else note,
    )


def _message(row: Row) -> bytes:
    fields = (b"n" if f is None else b"t" + struct.pack(">I", len(f)) + f for f in row)
    return struct.pack(">cIcH", b"I", RELATION, b"N", len(row)) + b"".join(fields)


def _line(row: Row) -> bytes:
    return b"\t".join(b"\\N" if field is None else field for field in row) + b"\n"


def _shown(field: bytes | None) -> Any:
    """A field as an application would put it into an event."""
    if field is None:
        return None
    try:
        return json.loads(field)
    except ValueError:
        return field.decode()
