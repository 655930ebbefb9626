"""Tail merging: few batches whatever the size of commits, and every record as it was."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import eventlog
from eventlog.engine import (
    Append,
    Batch,
    Engine,
    IndexEntry,
    Plan,
    Transactions,
    batch_of,
    batch_of_one,
    check,
    index,
    scan,
)
from eventlog.engine.batch import BATCH_BYTES
from eventlog.engine.merge import COUNT_MAX, FAN_IN, Tail
from eventlog.engine.store import Store
from eventlog.errors import DiskFull

Found = tuple[int, bytes, int, int, int, int]
"""Offset, record, time, transaction, position, and where the transaction starts."""


def append(engine: Engine, *batches: Batch, stream: str = "s") -> Any:
    return engine.commit(Plan(appends=[Append(stream=stream, batches=batches)])).offsets[0]


def entries(engine: Engine, stream: str = "s") -> list[IndexEntry]:
    start, end = engine.bounds(stream)
    return [stretch.entry for stretch in engine.scan(stream, start, end, lambda entry: False)]


def found(engine: Engine, stream: str = "s") -> list[Found]:
    result = []
    for stretch in engine.scan(stream, *engine.bounds(stream), lambda entry: True):
        assert stretch.payload is not None
        slots, offsets = stretch.readable_slots()
        words = stretch.entry.transactions
        places = stretch.entry.slot_transactions()
        for slot, offset, record in zip(
            slots, offsets, stretch.payload.records(slots), strict=True
        ):
            place = places[slot]
            result.append(
                (
                    offset,
                    record,
                    int(words.time[place]),
                    int(words.tx[place]),
                    int(words.position[place]),
                    engine.transaction_start(stream, offset),
                )
            )
    return result


def test_a_thousand_commits_of_one_record_leave_few_batches(engine: Engine) -> None:
    engine.create_stream("s", "events")
    for number in range(1000):
        assert append(engine, batch_of_one(2, b"%d" % number, time_us=number)) == range(
            number, number + 1
        )
    kept = entries(engine)
    assert len(kept) <= 3 * FAN_IN
    assert found(engine) == [(n, b"%d" % n, n, 0, 0, n) for n in range(1000)]
    assert [engine.offset_at("s", time) for time in (0, 1, 500, 999, 1000)] == [
        0,
        1,
        500,
        999,
        1000,
    ]


@pytest.mark.parametrize("sizes", [[100], [900, 20_000], [20_000], [120_000], [10, 3_000, 70_000]])
def test_small_batches_grow_to_full_ones_whatever_their_sizes(
    engine: Engine, sizes: list[int]
) -> None:
    engine.create_stream("s", "events")
    total = count = 0
    while total < 4 * BATCH_BYTES and count < 3000:
        size = sizes[count % len(sizes)]
        append(engine, batch_of_one(2, b"x" * size, time_us=count))
        total += size + 4
        count += 1
    kept = entries(engine)
    full = [entry for entry in kept if entry.raw_bytes > BATCH_BYTES // 2]
    assert len(kept) - len(full) <= 3 * COUNT_MAX
    assert sum(entry.raw_bytes for entry in full) >= total - BATCH_BYTES - 3 * 16 * 17_000
    assert [size for _, record, *_ in found(engine) for size in [len(record)]] == [
        sizes[n % len(sizes)] for n in range(count)
    ]


moments = st.integers(-1000, 1000)
words = st.integers(0, 2**63)
runs = st.lists(
    st.tuples(st.integers(1, 3), moments, words, words), min_size=1, max_size=3
)  # Records, time, tx, position of each transaction.


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    made = draw(runs)
    count = sum(records for records, *_ in made)
    size = draw(st.sampled_from([1, 1, 1, 1, 40, 400, 3_000]))
    records = [bytes([draw(st.integers(0, 255))]) * size for _ in range(count)]
    firsts = np.cumsum([0] + [records for records, *_ in made[:-1]])
    transactions = Transactions(
        first=firsts.astype(np.uint32),
        time=np.array([time for _, time, _, _ in made], np.int64),
        tx=np.array([tx for _, _, tx, _ in made], np.uint64),
        position=np.array([position for *_, position in made], np.uint64),
    )
    relations = draw(st.sampled_from([(), ((1, 0),), ((1, 0), (2, 0)), ((2, 1),)]))
    batch = batch_of(draw(st.sampled_from([2, 2, 2, 3])), records, transactions)
    states = None
    if draw(st.integers(0, 4)) == 0:
        states = np.array([draw(st.sampled_from([0, 0, 1, 2])) for _ in range(count)], np.uint8)
    more = {"origins": [1]} if draw(st.integers(0, 15)) == 0 else {}
    return replace(batch, relations=relations, states=states, more=more)


@given(made=st.lists(batches(), min_size=1, max_size=80), again=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_any_batches_read_as_if_none_was_merged(
    tmp_path_factory: pytest.TempPathFactory, made: list[Batch], again: int
) -> None:
    place = tmp_path_factory.mktemp("log")
    with Engine.open(place / "log", create=True) as engine:
        for name in ("merged", "apart"):
            engine.create_stream(name, "events", compression="zstd")
        for batch in made * again:
            append(engine, batch, stream="merged")
            # What says more than this version knows is left as it is.
            append(engine, replace(batch, more={"apart": 1}), stream="apart")
        assert found(engine, "merged") == found(engine, "apart")
        assert engine.bounds("merged") == engine.bounds("apart")
        for time in (-1001, -500, 0, 500, 1001):
            assert engine.offset_at("merged", time) == engine.offset_at("apart", time)
        origins = [e.more for e in entries(engine, "merged") if "origins" in e.more]
        expected = [b for b in made * again if b.more and b.entry(0).records]
        assert len(origins) == len(expected)
        found_schemas = [v for v in check(engine) if v.invariant != "schema"]
        assert found_schemas == []


def test_a_transaction_over_many_small_batches_stays_one(engine: Engine) -> None:
    engine.create_stream("s", "events")
    batch_words = [Transactions.one(time_us=5, tx=9, position=7, back=n) for n in range(40)]
    append(engine, *[batch_of(2, [b"%d" % n], w) for n, w in enumerate(batch_words)])
    assert len(entries(engine)) < 20
    assert found(engine) == [(n, b"%d" % n, 5, 9, 7, 0) for n in range(40)]
    merged = entries(engine)[0]
    assert len(merged.transactions) == 1 and merged.records >= FAN_IN


def test_copied_rows_of_two_tables_stay_apart(fragile: Engine) -> None:
    """Of no transaction; their codec knows the rows' table only by that of the batch."""
    fragile.create_stream("s", "events")
    for number in range(200):
        batch = batch_of_one(2, b"%d" % number, time_us=number)
        append(fragile, replace(batch, relations=((number // 3 % 2, 0),)))
    assert {len(entry.relations) for entry in entries(fragile)} == {1}
    assert len(entries(fragile)) < 100, "those of one table that follow each other are merged"
    assert [record for _, record, *_ in found(fragile)] == [b"%d" % n for n in range(200)]
    assert {v.invariant for v in check(fragile)} == {"schema"}, "which this test has none of"


def test_merged_batches_of_a_compressed_stream_are_compressed(engine: Engine) -> None:
    engine.create_stream("s", "events", compression="zstd")
    for number in range(600):
        append(engine, batch_of_one(2, b"%s %d" % (b"/home" * 20, number), time_us=number))
    large = [entry for entry in entries(engine) if entry.raw_bytes > 4000]
    assert large and all(entry.body_bytes < entry.raw_bytes / 2 for entry in large)
    assert [record[-3:] for _, record, *_ in found(engine)][-1] == b"599"


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("harm", ["payload", "index"])
def test_damage_in_the_tail_fails_no_append(fragile: Engine, harm: str) -> None:
    fragile.create_stream("s", "events")
    for number in range(5):
        append(fragile, batch_of_one(2, b"%d" % number, time_us=0))
    store = fragile.store
    with store.write() as txn:
        cursor = txn.cursor(db=getattr(store, harm))
        assert cursor.first()
        key, value = cursor.item()
        txn.put(key, value[:-1] + b"!", db=getattr(store, harm))
    for number in range(5, 60):
        append(fragile, batch_of_one(2, b"%d" % number, time_us=0))
    lost: list[tuple[int, int]] = []
    kept = []
    for stretch in fragile.scan(
        "s", 0, 60, lambda entry: True, damaged=lambda a, b, error: lost.append((a, b))
    ):
        assert stretch.payload is not None
        kept += stretch.payload.records(stretch.readable_slots()[0])
    assert lost == [(0, 1)]
    assert kept == [b"%d" % number for number in range(1, 60)]


ENTRY_BYTES_MAX = 2_020
"""With its key: what LMDB keeps in a leaf."""


@pytest.mark.parametrize("size", [0, 7, 40])
def test_no_merged_entry_outgrows_a_leaf_by_the_body_inside_it(engine: Engine, size: int) -> None:
    """Transactions in no order take 28 bytes each, whatever the packing."""
    engine.create_stream("s", "events")
    chance = random.Random(1)
    for _ in range(FAN_IN * 7):
        time, tx, position = (chance.getrandbits(bits) for bits in (60, 64, 64))
        words = Transactions.one(time_us=time, tx=tx, position=position)
        append(engine, batch_of(2, [bytes(size)], words))
    with engine.store.read() as txn:
        stored = [
            (len(key) + len(value), index.unpack(index.split_key(key)[1], value, under=key))
            for key, value in txn.cursor(db=engine.store.index)
        ]
    inside = [length for length, entry in stored if entry.body is not None]
    assert max(inside, default=0) <= ENTRY_BYTES_MAX
    apart = [entry for _, entry in stored if entry.body is None]
    assert any(len(entry.transactions) >= FAN_IN for entry in apart), "some have no room inside"
    assert [record for _, record, *_ in found(engine)] == [bytes(size)] * FAN_IN * 7


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=60),
    relations=st.integers(0, 150),
    transactions=st.integers(1, 60),
)
def test_an_entry_that_may_hold_its_body_fits_a_leaf(
    sizes: list[int], relations: int, transactions: int
) -> None:
    count = min(transactions, len(sizes))
    words = np.frombuffer(random.Random(7).randbytes(24 * count), np.uint64).reshape(3, count)
    made = Transactions(
        first=np.arange(count, dtype=np.uint32),
        time=(words[0] >> np.uint64(2)).astype(np.int64),
        tx=words[1],
        position=words[2],
    )
    schemas = tuple((number, number) for number in range(relations))
    batch = batch_of(2, [bytes(size) for size in sizes], made, relations=schemas)
    batch = replace(batch, states=np.ones(len(sizes), np.uint8))
    if batch.fits_entry:
        key = index.key(1, 0)
        assert len(key) + len(index.pack(batch.entry(0), under=key)) <= ENTRY_BYTES_MAX


@pytest.mark.parametrize("times", [1, 1_000])
def test_a_disk_too_full_to_merge_still_takes_the_record(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    engine.create_stream("s", "events")
    real, failed = Tail._replace, 0

    def full(tail: Tail, group: Any) -> IndexEntry:
        nonlocal failed
        if failed < times:
            failed += 1
            raise DiskFull("the disk is full", hint="free some space")
        return real(tail, group)

    monkeypatch.setattr(Tail, "_replace", full)
    for number in range(3 * FAN_IN):
        assert append(engine, batch_of_one(2, b"%d" % number, time_us=number)) == range(
            number, number + 1
        )
    assert failed == min(times, 3)
    assert len(entries(engine)) > 2 * FAN_IN if times > 1 else len(entries(engine)) <= 2 * FAN_IN
    monkeypatch.undo()
    for number in range(3 * FAN_IN, 6 * FAN_IN):
        append(engine, batch_of_one(2, b"%d" % number, time_us=number))
    assert len(entries(engine)) <= 5 * FAN_IN, "what comes later is merged again"
    assert found(engine) == [(n, b"%d" % n, n, 0, 0, n) for n in range(6 * FAN_IN)]
    assert check(engine) == []


def test_a_disk_too_full_to_merge_and_to_append_is_told_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")
    append(engine, batch_of_one(2, b"0", time_us=0))
    tried: list[Store] = []

    def full(store: Store) -> Any:
        tried.append(store)
        raise DiskFull("the disk is full", hint="free some space")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(DiskFull):
            append(engine, batch_of_one(2, b"1", time_us=1))
    assert len(tried) == 2, "once with merging, once without"
    assert append(engine, batch_of_one(2, b"1", time_us=1)) == range(1, 2)


def test_a_reader_in_the_middle_of_what_is_merged_sees_each_record_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")
    monkeypatch.setattr(scan, "READ_ENTRIES", 3)
    written = 0

    def write(count: int) -> None:
        nonlocal written
        for _ in range(count):
            append(engine, batch_of_one(2, b"%d" % written, time_us=0))
            written += 1

    write(14)
    seen: list[bytes] = []
    for stretch in engine.scan("s", 0, 14, lambda entry: True):
        assert stretch.payload is not None
        seen += stretch.payload.records(stretch.readable_slots()[0])
        write(1)  # Two more, and the first sixteen are one batch.
    assert seen == [b"%d" % number for number in range(14)]
    assert len(entries(engine)) < written


def test_tiny_commits_dirty_few_pages(tmp_path: Path) -> None:
    """What one more record rewrites stays the same, however long the stream has become."""
    with eventlog.open(tmp_path / "log", create=True) as log:
        stream = log.stream("s", create=True)
        data = tmp_path / "log" / "data.mdb"

        def pages_per_commit() -> float:
            changed = 0
            before = data.read_bytes()
            for number in range(64):
                stream.append({"n": number})
                after = data.read_bytes()
                size = max(len(before), len(after))
                changed += sum(
                    before[at : at + 4096] != after[at : at + 4096] for at in range(0, size, 4096)
                )
                before = after
            return changed / 64

        early = pages_per_commit()
        stream.append_many({"n": number} for number in range(20_000))
        for number in range(300):
            stream.append({"n": number})
        assert pages_per_commit() <= early + 4
        assert log.check() == []
