"""Logs for tests, and a source of captured changes that needs no server.

Every log ends with the full integrity check.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import eventlog
from eventlog.changes.change import ABSENT, UNCHANGED, Op
from eventlog.changes.schema import Column, Schema
from eventlog.codecs.control import control_record
from eventlog.engine import (
    Append,
    Engine,
    Plan,
    SourceUpdate,
    Transactions,
    batch,
    batch_of,
    check,
)

CONTROL, PGOUTPUT, COPY = 1, 3, 4
INT, BIGINT, TEXT, NUMERIC, BOOL, BYTEA, TIMESTAMPTZ, FLOAT = 23, 20, 25, 1700, 16, 17, 1184, 701
HOUR_US = 3_600_000_000
T0_US = 1_767_225_600_000_000
"""2026-01-01 00:00 UTC."""

Record = tuple[int, bytes, Schema | None]
"""Codec, bytes, and the schema version that they need."""


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    """Where this test's log lies, or will."""
    return tmp_path / "log"


@contextmanager
def bodies_apart() -> Iterator[None]:
    """Within it small bodies are stored apart from their entries, as large ones are."""
    with mock.patch.object(batch, "INLINE_BYTES_MAX", 0):
        yield


@pytest.fixture
def apart() -> Iterator[None]:
    with bodies_apart():
        yield


@pytest.fixture
def engine(log_dir: Path) -> Iterator[Engine]:
    """The engine alone, over a fresh log that must be sound at the end."""
    with Engine.open(log_dir, create=True) as opened:
        yield opened
    with Engine.open(log_dir) as again:
        assert check(again) == []


@pytest.fixture
def fragile(log_dir: Path) -> Iterator[Engine]:
    """The same, for tests that damage it."""
    with Engine.open(log_dir, create=True) as opened:
        yield opened


@pytest.fixture
def log(tmp_path: Path) -> Iterator[eventlog.Log]:
    with eventlog.open(tmp_path / "log", create=True) as opened:
        yield opened
    with eventlog.open(tmp_path / "log") as again:
        assert again.check() == []


@pytest.fixture
def shop(log: eventlog.Log) -> Iterator[MadeSource]:
    source = MadeSource(log, "shop")
    yield source
    source.close()


def column(name: str, oid: int = TEXT, *, key: bool = False, **more: Any) -> Column:
    return Column(name=name, type=oid, typmod=more.pop("typmod", -1), key=key, **more)


def text(value: Any) -> Any:
    """What a test writes as a value, as stored text."""
    if value is None or value is UNCHANGED or value is ABSENT or isinstance(value, bytes):
        return value
    return str(value).encode()


def pg_row(kind: bytes, row: Sequence[Any]) -> bytes:
    parts = [kind, struct.pack(">H", len(row))]
    for value in map(text, row):
        if value is None or value is ABSENT:
            parts.append(b"n")
        elif value is UNCHANGED:
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack(">I", len(value)) + value)
    return b"".join(parts)


def insert(schema: Schema, *row: Any) -> Record:
    return PGOUTPUT, b"I" + struct.pack(">I", schema.relation) + pg_row(b"N", row), schema


def update(schema: Schema, *row: Any, key: Sequence[Any] = (), old: Sequence[Any] = ()) -> Record:
    """`key` is the old key under a key change (all columns, the others None), `old` a whole row."""
    before = pg_row(b"K", key) if key else pg_row(b"O", old) if old else b""
    head = b"U" + struct.pack(">I", schema.relation)
    return PGOUTPUT, head + before + pg_row(b"N", row), schema


def delete(schema: Schema, *old: Any) -> Record:
    kind = b"O" if schema.identity == "f" else b"K"
    return PGOUTPUT, b"D" + struct.pack(">I", schema.relation) + pg_row(kind, old), schema


def truncate(schema: Schema) -> Record:
    return PGOUTPUT, b"T" + struct.pack(">IBI", 1, 0, schema.relation), schema


def message(prefix: str, content: bytes) -> Record:
    head = b"M" + struct.pack(">BQ", 1, 0) + prefix.encode() + b"\0"
    return PGOUTPUT, head + struct.pack(">I", len(content)) + content, None


def copied(schema: Schema, *row: Any) -> Record:
    fields = [b"\\N" if value is None else value for value in map(text, row)]
    return COPY, b"\t".join(fields) + b"\n", schema


def control(op: Op, schema: Schema | None = None, **fields: Any) -> Record:
    if schema is None:
        return CONTROL, control_record(op, **fields), None
    named = {"schema": schema.namespace, "table": schema.name, **fields}
    return CONTROL, control_record(op, relation=schema.relation, **named), schema


class MadeSource:
    """Writes a captured stream as a capture would, out of records made by the functions above."""

    def __init__(self, log: eventlog.Log, name: str) -> None:
        log.engine.create_stream(name, "captured")
        self.name = name
        self.now_us = T0_US
        self._log = log
        self._writer = log.engine.writer(name)
        self._pending: list[Schema] = []
        self._schemas = 0
        self._transactions = 700
        log.engine.commit(Plan(sources=[self._update(state={"codec": PGOUTPUT})]))

    @property
    def stream(self) -> eventlog.Stream:
        return self._log.stream(self.name)

    def table(
        self,
        name: str,
        *columns: Column,
        relation: int = 16_400,
        identity: str = "d",
        inserts_only: bool = False,
        namespace: str = "public",
        **more: Any,
    ) -> Schema:
        """A schema version, stored by the commit of its first record."""
        schema = Schema(
            id=self._schemas,
            offset=0,
            relation=relation,
            namespace=namespace,
            name=name,
            identity=identity,
            columns=columns,
            inserts_only=inserts_only,
            **more,
        )
        self._schemas += 1
        self._pending.append(schema)
        return schema

    def announce(self) -> None:
        """Store the pending schema versions without a record."""
        self._log.engine.commit(Plan(sources=[self._update()]))

    def commit(self, *records: Record, time_us: int | None = None, split: bool = False) -> range:
        """One source transaction; returns its offsets. `split` gives each record its own batch.

        Every transaction is an hour after the one before, unless `time_us` says otherwise.
        """
        time_us = self.now_us if time_us is None else time_us
        self.now_us += HOUR_US
        self._transactions += 1
        tx = self._transactions if any(codec == PGOUTPUT for codec, _, _ in records) else 0
        batches, back = [], 0
        for run in _runs(records, split=split):
            relations = {s.relation: s.id for _, _, s in run if s is not None}
            transactions = Transactions(
                first=np.zeros(1, np.uint32),
                time=np.array([time_us], np.int64),
                tx=np.array([tx], np.uint64),
                position=np.array([self._transactions << 8], np.uint64),
                back=back,
            )
            codec = run[0][0]
            bodies = [record for _, record, _ in run]
            relation_pairs = tuple(sorted(relations.items()))
            batches.append(batch_of(codec, bodies, transactions, relations=relation_pairs))
            back += len(run)
        state = {"codec": PGOUTPUT, "position": self._transactions << 8}
        source = self._update(state=state)
        plan = Plan(appends=[Append(stream=self.name, batches=batches)], sources=[source])
        return self._log.engine.commit(plan).offsets[0]

    def close(self) -> None:
        self._writer.close()

    def _update(self, state: Mapping[str, Any] | None = None) -> SourceUpdate:
        pending, self._pending = self._pending, []
        return SourceUpdate(
            stream=self.name,
            writer_epoch=self._writer.epoch,
            state=state,
            schemas=[(schema.id, schema.to_map()) for schema in pending],
        )


def _runs(records: Sequence[Record], *, split: bool) -> Iterator[list[Record]]:
    """Records that can share a batch: one codec, one schema version per relation."""
    run: list[Record] = []
    for record in records:
        codec, _, schema = record
        clash = any(
            other is not None
            and schema is not None
            and other.relation == schema.relation
            and other.id != schema.id
            for _, _, other in run
        )
        mixed = codec == COPY and any(schema is not other for _, _, other in run)
        if run and (split or clash or mixed or run[0][0] != codec):
            yield run
            run = []
        run.append(record)
    if run:
        yield run
