"""Payloads split together are what each is alone, and what was cut apart is mended again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from cdc.postgres.copy_codec import CODEC as COPY
from cdc.postgres.pgoutput import CODEC as PGOUTPUT
from eventlog.changes import shown, together
from eventlog.changes.change import ABSENT, Op, RawChange
from eventlog.changes.codec import ChangeCodec
from eventlog.changes.reading import Piece, pieces
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.split import Split, SplitPayload, mended
from eventlog.changes.together import split_payloads, split_pieces
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog
from tests.fix_log import MadeSource, column, control, copied, delete, insert, message, update
from tests.test_split import (
    Schemas,
    damaged,
    payload_of,
    random_line,
    random_message,
    random_schema,
    some_slots,
    values,
)

seeds = st.integers(0, 2**32 - 1)


def random_payloads(rng: random.Random) -> tuple[ChangeCodec, list[Payload], Schemas]:
    """Some payloads of one codec, each of other operations, few records or many."""
    count = rng.randrange(1, 6)
    if rng.random() < 0.4:
        schema = random_schema(rng, 16_384)
        lines = [
            [random_line(rng, schema, nothings) for _ in range(rng.choice([1, 3, 40]))]
            for nothings in rng.choices([0, 0.2, 0.9], k=count)
        ]
        return COPY, [payload_of(records, 4) for records in lines], {16_384: schema}
    schemas = {number: random_schema(rng, number) for number in (16_384, 65_536)}
    tables = rng.choice([[16_384], [16_384, 65_536]])
    messages = [
        [
            random_message(rng, schemas[rng.choice(tables)], ops, 0.1)
            for _ in range(rng.choice([1, 3, 40]))
        ]
        for ops in rng.choices(["I", "U", "IU", "IUD", "D", "IIIUDTM"], k=count)
    ]
    return PGOUTPUT, [payload_of(records) for records in messages], schemas


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_payloads_split_together_are_what_each_is_alone(seed: int) -> None:
    rng = random.Random(seed)
    codec, payloads, schemas = random_payloads(rng)
    slots = [some_slots(rng, len(payload.ends)) for payload in payloads]
    found = split_payloads(codec, payloads, slots, schemas)
    assert len(found) == len(payloads)
    for split, payload, chosen in zip(found, payloads, slots, strict=True):
        alone = codec.split(payload, chosen, schemas)
        assert said(split) == said(alone)
        assert one_by_one(split) == one_by_one(alone)


def said(found: SplitPayload) -> Any:
    """All that it says. Old rows of which nothing was sent are the same as none."""
    rows, rare = values(found)
    for relation, (slots, ops, new, old) in rows.items():
        if Op.DELETE not in ops and {t for texts in old or [] for t in texts} <= {ABSENT}:
            rows[relation] = (slots, ops, new, None)
    return rows, rare


def one_by_one(found: SplitPayload) -> list[RawChange]:
    changes = [raw for split in found.rows for raw in split.changes()]
    return sorted(changes, key=lambda raw: raw.slot)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_damage_in_one_payload_is_damage_together(seed: int) -> None:
    rng = random.Random(seed)
    codec, payloads, schemas = random_payloads(rng)
    place = rng.randrange(len(payloads))
    broken = payload_of(damaged(rng, payloads[place].records(range(len(payloads[place].ends)))))
    payloads[place] = Payload(codec=codec.id, ends=broken.ends, data=broken.data)
    slots = [range(len(payload.ends)) for payload in payloads]
    try:
        alone = [codec.split(p, s, schemas) for p, s in zip(payloads, slots, strict=True)]
    except DamagedLog:
        with pytest.raises(DamagedLog):
            split_payloads(codec, payloads, slots, schemas)
        return
    found = split_payloads(codec, payloads, slots, schemas)
    assert [*map(said, found)] == [*map(said, alone)]


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_what_was_cut_apart_is_mended(seed: int) -> None:
    rng = random.Random(seed)
    schema = random_schema(rng, 16_384)
    records = [random_message(rng, schema, "IUD", 0.2) for _ in range(40)]
    (whole,) = PGOUTPUT.split(payload_of(records), range(40), {16_384: schema}).rows
    bounds = sorted(rng.sample(range(41), rng.randrange(2, 8)))
    parts = [whole.cut(start, stop) for start, stop in pairwise(bounds)]
    again = [part.cut(0, len(part) // 2) for part in parts]
    rests = [part.cut(len(part) // 2, len(part)) for part in parts]
    halves = [half for pair in zip(again, rests, strict=True) for half in pair if len(half)]
    (found,) = mended(halves)
    assert [*found.changes()] == [*whole.changes()][bounds[0] : bounds[-1]]
    assert np.shares_memory(found.new.starts, whole.new.starts) or not schema.columns

    others = [*rng.sample(parts, len(parts)), whole]
    kept = mended(others)
    assert [raw for split in kept for raw in split.changes()] == [
        raw for split in others for raw in split.changes()
    ]


def test_splits_of_different_wholes_stay_apart() -> None:
    schema = random_schema(random.Random(1), 16_384)
    payload = payload_of([random_message(random.Random(2), schema, "I", 0) for _ in range(20)])
    one, two = (PGOUTPUT.split(payload, range(20), {16_384: schema}).rows[0] for _ in range(2))
    parts: list[Split] = [one.cut(0, 5), two.cut(5, 10), one.cut(12, 20), one]
    assert mended(parts) == parts
    assert mended([]) == []


def some_commits(source: MadeSource) -> Schema:
    """Commits of all kinds, one of them under other columns; returns the last version."""
    orders = source.table("orders", column("id", key=True), column("note"))
    users = source.table("users", column("id", key=True), relation=16_500)
    source.commit(control(Op.COPY_BEGIN, orders), control(Op.COPY_END, orders))
    source.commit(*(copied(orders, n, "x") for n in range(30)))
    for number in range(12):
        source.commit(*(insert(orders, number * 100 + n, "y") for n in range(40)))
        source.commit(insert(users, number), update(orders, number * 100, "z"), message("m", b"x"))
        source.commit(*(delete(users, number) for number in range(number)), insert(users, 1))
    orders = source.table("orders", column("id", key=True), column("note"), column("more"))
    for number in range(5):
        source.commit(*(insert(orders, 5_000 + number * 100 + n, "y", None) for n in range(40)))
    return orders


def all_pieces(source: MadeSource, log: eventlog.Log) -> Iterator[Piece]:
    engine = log.engine
    return pieces(engine, SchemaHistory(engine, source.name), *engine.bounds(source.name))


def test_pieces_come_in_order_with_what_each_splits_into(
    shop: MadeSource, log: eventlog.Log
) -> None:
    some_commits(shop)
    expected = [*all_pieces(shop, log)]
    found = [*split_pieces(all_pieces(shop, log))]
    assert [piece.offsets for piece, _ in found] == [piece.offsets for piece in expected]
    for piece, split in found:
        assert said(split) == said(piece.split())


def test_pieces_are_split_together_in_growing_groups(
    shop: MadeSource, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants the first change does not wait for many; nor is more held than the limit."""
    orders = shop.table("orders", column("id", key=True))
    shop.commit(*(insert(orders, 1) for _ in range(20)))
    (piece,) = all_pieces(shop, log)
    every = [piece] * 40
    monkeypatch.setattr(together, "TOGETHER_BYTES", 8 * len(piece.payload.data))
    taken: list[Piece] = []

    def taking() -> Iterator[Piece]:
        for piece in every:
            taken.append(piece)
            yield piece

    ahead = []
    for number, _ in enumerate(split_pieces(taking()), start=1):
        ahead.append(len(taken) - number)
    assert ahead[:3] == [0, 1, 0] and max(ahead) == 7
    buffers = [id(split.rows[0].data) for _, split in split_pieces(iter(every))]
    groups = [len([*same]) for _, same in groupby(buffers)]
    assert groups[:4] == [1, 2, 4, 8] and max(groups) == 8 and sum(groups) == len(every)


def test_a_large_payload_is_not_copied(shop: MadeSource, log: eventlog.Log) -> None:
    orders = shop.table("orders", column("id", key=True))
    for size in (10, 10, together.TOGETHER_BYTES, 10):
        shop.commit(insert(orders, "x" * size))
    large = [piece for piece in all_pieces(shop, log) if len(piece.payload.data) > 10_000]
    assert large
    for piece, split in split_pieces(all_pieces(shop, log)):
        if len(piece.payload.data) > 10_000:
            held = np.frombuffer(piece.payload.data, np.uint8)
            assert np.shares_memory(split.rows[0].data, held)


def test_what_comes_before_damage_is_read_before_it_is_told(
    shop: MadeSource, log: eventlog.Log
) -> None:
    orders = shop.table("orders", column("id", key=True))
    for number in range(6):
        shop.commit(*(insert(orders, number * 20 + n) for n in range(20)))
    shop.commit((PGOUTPUT.id, b"I\0\0\x40\x10N\0\1t", orders))
    shop.commit(insert(orders, 7))
    read = iter(shop.stream.read(table="orders"))
    assert [next(read).offset for _ in range(120)] == list(range(120))
    with pytest.raises(DamagedLog, match=r"offsets \[120, 121\)"):
        next(read)


def test_what_was_read_ahead_is_given_out_before_an_error(
    shop: MadeSource, log: eventlog.Log
) -> None:
    some_commits(shop)
    every = [*all_pieces(shop, log)]

    def cut_off() -> Iterator[Piece]:
        yield from every[:-1]
        raise DamagedLog("no more")

    found = split_pieces(cut_off())
    assert [next(found)[0] for _ in every[:-1]] == every[:-1]
    with pytest.raises(DamagedLog, match="no more"):
        next(found)


def test_a_group_becomes_columns_without_joining_its_texts(
    shop: MadeSource, log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = shop.table("orders", column("id", key=True), column("note"))
    for number in range(20):
        shop.commit(*(insert(orders, number * 50 + n, "é") for n in range(50)))
    parts = []
    joined_columns = shown.joined_columns

    def counted(some: Any) -> Any:
        parts.append(len(some))
        return joined_columns(some)

    monkeypatch.setattr(shown, "joined_columns", counted)
    table = shop.stream.read(table="orders").to_arrow()
    assert table["id"].to_pylist() == [str(n) for n in range(1000)]
    assert set(table["note"].to_pylist()) == {"é"}
    assert sum(parts) < 8, "20 payloads came in groups of 1, 2, 4 …"
