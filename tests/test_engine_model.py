"""The engine against a model in plain Python: any order of appends, consumers, retentions, crashes.

A crash is a copy of the data file as it is after the last commit, opened in another directory: what
was staged is there and its owner is not.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eventlog.engine import (
    Advance,
    Append,
    Batch,
    Engine,
    Plan,
    SourceUpdate,
    StreamKind,
    Transactions,
    batch_of,
    batches_of,
    check,
)
from eventlog.engine.upkeep.compact import compact
from eventlog.engine.upkeep.retain import retain
from eventlog.errors import ConsumerFenced, OffsetOutOfRange

STREAMS = ["a", "b", "shop"]
times = st.integers(-100, 100)
records = st.lists(st.binary(max_size=8), min_size=1, max_size=4)
transactions = st.lists(st.tuples(times, records), min_size=1, max_size=4)


@dataclass
class Row:
    """One record of the model."""

    data: bytes
    time: int
    start: int


@dataclass
class Model:
    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in STREAMS})
    starts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    consumers: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    ids: dict[tuple[str, int], int] = field(default_factory=dict)

    def retained(self, stream: str) -> list[tuple[int, Row]]:
        return list(enumerate(self.rows[stream]))[self.starts[stream] :]

    def append_alone(self, stream: str, time: int, data: list[bytes]) -> range:
        """Records of no source transaction."""
        offsets = [self.append(stream, [(time, [record])]) for record in data]
        return range(offsets[0].start, offsets[-1].stop)

    def append(self, stream: str, made: Sequence[tuple[int, list[bytes]]]) -> range:
        rows = self.rows[stream]
        before = len(rows)
        for time, data in made:
            start = len(rows)
            rows.extend(Row(record, time, start) for record in data)
        return range(before, len(rows))

    def offset_at(self, stream: str, time: int) -> int:
        rows = self.rows[stream]
        found = next((i for i, row in enumerate(rows) if row.time >= time), len(rows))
        return max(found, self.starts[stream])


class EngineMachine(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "log"
        self.engine = Engine.open(self.path, create=True)
        self.lives = 0
        for name in STREAMS:
            kind: StreamKind = "captured" if name == "shop" else "events"
            self.engine.create_stream(name, kind, compression="zstd" if name == "b" else None)
        self.writer = self.engine.writer("shop")
        self.position = 0
        self.model = Model()

    def batch(self, made: Sequence[tuple[int, list[bytes]]], drop: bool = False) -> Batch:
        """One batch of these transactions; with `drop` a dropped slot follows each record."""
        width = 2 if drop else 1
        data = [piece for _, part in made for record in part for piece in [record, b"?"][:width]]
        counts = [len(part) * width for _, part in made]
        words = Transactions(
            first=np.cumsum([0, *counts[:-1]]).astype(np.uint32),
            time=np.array([time for time, _ in made], np.int64),
            tx=np.arange(1, len(made) + 1, dtype=np.uint64),
            position=self.position + 1 + np.arange(len(made), dtype=np.uint64),
        )
        self.position += len(made)
        states = np.tile([0, 1], len(data) // 2).astype(np.uint8) if drop else None
        return replace(batch_of(2, data, words), states=states)

    def sources(self, streams: Sequence[str]) -> list[SourceUpdate]:
        if "shop" not in streams:
            return []
        state = {"position": self.position}
        return [SourceUpdate(stream="shop", writer_epoch=self.writer.epoch, state=state)]

    @rule(
        stream=st.sampled_from(STREAMS), made=st.lists(transactions, max_size=3), drop=st.booleans()
    )
    def append(self, stream: str, made: list[Any], drop: bool) -> None:
        batches = [self.batch(part, drop) for part in made]
        plan = Plan(
            appends=[Append(stream=stream, batches=batches)], sources=self.sources([stream])
        )
        expected = self.model.append(stream, [pair for part in made for pair in part])
        assert self.engine.commit(plan).offsets == (expected,)

    @rule(stream=st.sampled_from(STREAMS), made=transactions)
    def append_a_batch_of_dropped_records_only(self, stream: str, made: list[Any]) -> None:
        batch = self.batch(made)
        batch = replace(batch, states=np.ones(batch.body.count, np.uint8))
        (offsets,) = self.engine.commit(
            Plan(appends=[Append(stream=stream, batches=[batch])], sources=self.sources([stream]))
        ).offsets
        assert len(offsets) == 0

    @rule(
        stream=st.sampled_from(["a", "b"]),
        sizes=st.lists(st.sampled_from([0, 7, 100_000, 600_000]), min_size=1, max_size=6),
        time=times,
        after=st.none() | transactions,
        publish=st.booleans(),
    )
    def stage(
        self, stream: str, sizes: list[int], time: int, after: list[Any] | None, publish: bool
    ) -> None:
        data = [bytes([i]) * size for i, size in enumerate(sizes)]
        owner = self.engine.appender(stream)
        for batch in batches_of(2, data, time_us=time):
            self.engine.stage(owner, [batch])
        self.reads_as_the_model()
        if publish:
            batches = [] if after is None else [self.batch(after)]
            done = self.engine.commit(
                Plan(appends=[Append(stream=stream, staged=owner.id, batches=batches)])
            )
            first = self.model.append_alone(stream, time, data)
            rest = self.model.append(stream, after or [])
            assert done.offsets == (range(first.start, rest.stop),)
        owner.close()
        assert [row.kind for row in self.engine.owners()] == ["capture"]

    @rule(stream=st.sampled_from(STREAMS), count=st.integers(1, 40), time=times)
    def append_one_by_one(self, stream: str, count: int, time: int) -> None:
        for number in range(count):
            made = [(time + number, [b"%d" % number])]
            plan = Plan(
                appends=[Append(stream=stream, batches=[self.batch(made)])],
                sources=self.sources([stream]),
            )
            assert self.engine.commit(plan).offsets == (self.model.append(stream, made),)

    @rule(
        stream=st.sampled_from(["a", "b"]), ids=st.lists(st.integers(0, 9), max_size=5), time=times
    )
    def append_with_ids(self, stream: str, ids: list[int], time: int) -> None:
        data = [b"id %d" % number for number in ids]
        batches = list(batches_of(2, data, time_us=time))
        append = Append(stream=stream, batches=batches, ids=[str(number) for number in ids])
        (offsets,) = self.engine.commit(Plan(appends=[append])).offsets
        expected = []
        for number, record in zip(ids, data, strict=True):
            if (stream, number) not in self.model.ids:
                added = self.model.append(stream, [(time, [record])])
                self.model.ids[stream, number] = added.start
            expected.append(self.model.ids[stream, number])
        assert list(offsets) == expected

    @rule(stream=st.sampled_from(["a", "b"]), force=st.booleans(), data=st.data())
    def retain(self, stream: str, force: bool, data: st.DataObject) -> None:
        start, end = self.model.starts[stream], len(self.model.rows[stream])
        below = data.draw(st.integers(start, end))
        done = retain(self.engine.store, stream, below=below, force=force)
        places = [o for (s, _), (o, _) in self.model.consumers.items() if s == stream]
        limit = below if force else min([below, *places])
        assert start <= done.start <= max(limit, start) and done.end == end
        assert done.offsets == done.start - start
        if done.start < limit:
            entry = self.engine.entry_holding(stream, done.start)
            assert entry is not None and entry.stop > limit, "only whole batches go"
        self.model.starts[stream] = done.start

    @rule(staged=st.booleans())
    def crash(self, staged: bool) -> None:
        if staged:
            # Neither is ever published: they die with their owners.
            owner = self.engine.appender("a")
            owner.stage([self.batch([(0, [b"lost"])])])
            self.writer.owner.stage([self.batch([(0, [b"lost too"])])])
        self.lives += 1
        crashed = self.path.with_name(f"log {self.lives}")
        crashed.mkdir()
        shutil.copyfile(self.path / "data.mdb", crashed / "data.mdb")
        if staged:
            owner.close()
        self.writer.close()
        self.engine.close()
        shutil.rmtree(self.path)
        self.path = crashed
        self.engine = Engine.open(self.path)
        self.writer = self.engine.writer("shop")
        assert [row.kind for row in self.engine.owners()] == ["capture"]

    @rule()
    def compact(self) -> None:
        self.writer.close()
        self.engine.close()
        compact(self.path)
        self.engine = Engine.open(self.path)
        self.writer = self.engine.writer("shop")

    @rule(name=st.sampled_from(["x", "y"]), stream=st.sampled_from(STREAMS), data=st.data())
    def create_consumer(self, name: str, stream: str, data: st.DataObject) -> None:
        low = self.model.starts[stream]
        start = data.draw(st.integers(low, len(self.model.rows[stream])))
        found = self.engine.consumer(stream, name, start=start)
        expected = self.model.consumers.setdefault((stream, name), (start, 1))
        assert (found.offset, found.epoch) == expected

    @rule(made=transactions, rewind=st.booleans(), stale=st.sampled_from([0, 0, 1]), data=st.data())
    def consume_and_produce(
        self, made: list[Any], rewind: bool, stale: int, data: st.DataObject
    ) -> None:
        if not self.model.consumers:
            return
        stream, name = data.draw(st.sampled_from(sorted(self.model.consumers)))
        offset, epoch = self.model.consumers[stream, name]
        target = data.draw(st.integers(0, len(self.model.rows[stream]) + 1))
        plan = Plan(
            appends=[Append(stream="b", batches=[self.batch(made)])],
            advances=[
                Advance(
                    stream=stream,
                    consumer=name,
                    offset=target,
                    expected_offset=offset,
                    expected_epoch=epoch + stale,
                    rewind=rewind,
                )
            ],
        )
        end = len(self.model.rows[stream]) + (sum(len(d) for _, d in made) if stream == "b" else 0)
        if stale:
            with pytest.raises(ConsumerFenced):
                self.engine.commit(plan)
        elif target > end or target < (self.model.starts[stream] if rewind else offset):
            with pytest.raises(OffsetOutOfRange):
                self.engine.commit(plan)
        else:
            assert self.engine.commit(plan).offsets == (self.model.append("b", made),)
            self.model.consumers[stream, name] = (target, epoch + rewind)

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.engine.close()
        self.engine = Engine.open(self.path)
        epoch = self.writer.epoch
        self.writer = self.engine.writer("shop")
        assert self.writer.epoch == epoch + 1

    @rule(stream=st.sampled_from(STREAMS), time=st.integers(-110, 110))
    def find_a_time(self, stream: str, time: int) -> None:
        assert self.engine.offset_at(stream, time) == self.model.offset_at(stream, time)

    @rule(stream=st.sampled_from(STREAMS), data=st.data())
    def read_a_range(self, stream: str, data: st.DataObject) -> None:
        rows = self.model.rows[stream]
        start = data.draw(st.integers(self.model.starts[stream], len(rows)))
        stop = data.draw(st.integers(start, len(rows)))
        assert self.read(stream, start, stop) == list(enumerate(rows))[start:stop]
        if start < len(rows):
            assert self.engine.transaction_start(stream, start) == rows[start].start
            assert self.engine.transaction_time(stream, start) == rows[start].time

    def read(self, stream: str, start: int, stop: int) -> list[tuple[int, Row]]:
        found = []
        for stretch in self.engine.scan(stream, start, stop, lambda entry: True):
            entry, payload = stretch.entry, stretch.payload
            slots, offsets = stretch.readable_slots()
            assert payload is not None
            places = entry.slot_transactions()
            for slot, offset, record in zip(slots, offsets, payload.records(slots), strict=True):
                time = int(entry.transactions.time[places[slot]])
                begin = self.engine.transaction_start(stream, offset)
                found.append((offset, Row(record, time, begin)))
        return found

    @invariant()
    def reads_as_the_model(self) -> None:
        for stream, rows in self.model.rows.items():
            start = self.model.starts[stream]
            assert self.engine.bounds(stream) == (start, len(rows))
            assert self.read(stream, start, len(rows)) == self.model.retained(stream)
        found = {(s, name): (row.offset, row.epoch) for s, name, row in self.engine.consumers()}
        assert found == self.model.consumers

    def teardown(self) -> None:
        assert check(self.engine) == []
        self.writer.close()
        self.engine.close()
        self.folder.cleanup()


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
