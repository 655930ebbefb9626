"""Payloads split across rows say what the row decoders say, of sound records and of damaged ones.

The row decoder is the oracle: it was there first, and it is simple.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.postgres import copy_split, pgoutput_split
from cdc.postgres.copy_codec import CODEC as COPY
from cdc.postgres.pgoutput import CODEC as PGOUTPUT
from cdc.postgres.protocol import messages as m
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.values.text_codec import FEW_ROWS
from eventlog.changes.change import ABSENT, UNCHANGED, Op, RawChange, Text
from eventlog.changes.codec import ChangeCodec
from eventlog.changes.schema import Column, Schema
from eventlog.changes.split import (
    OPS,
    Rows,
    Split,
    SplitPayload,
    Texts,
    joined,
    joined_columns,
    repeated,
    split_changes,
    texts_of,
)
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog
from tests.test_wire import encode

Schemas = dict[int, Schema]

seeds = st.integers(0, 2**32 - 1)
TEXTS = [b"", b"t", b"n", b"\\N", b"\t", b"\n", b"\\", b"a\\\\tb", b"tntu\0\0\0\1", b"I\0\0\x40\0N"]
PIECES = [b"\\", b"\t", b"\n", b"\r", b"\b", b"\f", b"\v", b"N", b"n", b"t", b"x", b"\xff\0"]


def payload_of(records: Sequence[bytes], codec: int = 3) -> Payload:
    ends = np.cumsum([len(record) for record in records]).astype("<u4")
    return Payload(codec=codec, ends=ends, data=b"".join(records))


def schema_of(relation: int, columns: Sequence[Column]) -> Schema:
    return Schema(
        id=relation,
        offset=0,
        relation=relation,
        namespace="public",
        name=f"t{relation}",
        identity="d",
        columns=tuple(columns),
    )


def random_schema(rng: random.Random, relation: int) -> Schema:
    width = rng.choice([0, 1, 2, 3, 8])
    names = (f"c{place}" for place in range(width))
    keys = (place == 0 or rng.random() < 0.2 for place in range(width))
    columns = [Column(name=n, type=25, typmod=-1, key=k) for n, k in zip(names, keys, strict=True)]
    return schema_of(relation, columns)


def random_text(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.5:
        return b"%d" % rng.randrange(10 ** rng.randrange(1, 12))
    if kind < 0.8:
        return rng.choice(TEXTS)
    if kind < 0.95:
        return b"".join(rng.choices(PIECES, k=rng.randrange(12)))
    return rng.randbytes(rng.choice([3, 255, 256, 257, 3_000, 70_000]))


def random_row(rng: random.Random, schema: Schema, nothings: float) -> tuple[Text, ...]:
    return tuple(
        rng.choice([None, UNCHANGED]) if rng.random() < nothings else random_text(rng)
        for _ in schema.columns
    )


def random_message(rng: random.Random, schema: Schema, ops: str, nothings: float) -> bytes:
    def row() -> tuple[Text, ...]:
        return random_row(rng, schema, nothings)

    match rng.choice(ops):
        case "I":
            return encode(m.Insert(schema.relation, row()))
        case "U":
            old = row() if rng.random() < 0.5 else None
            return encode(m.Update(schema.relation, old, rng.random() < 0.5, row()))
        case "D":
            return encode(m.Delete(schema.relation, row(), rng.random() < 0.5))
        case "T":
            return encode(m.Truncate((schema.relation,), 1))
    return encode(m.LogicalMessage(True, Lsn(9), "mine", random_text(rng)))


def random_messages(rng: random.Random) -> tuple[list[bytes], Schemas]:
    """Messages of some tables, now of all kinds, now of one."""
    numbers = [16_384, 16_385, 2**32 - 1, 65_536][: rng.choice([1, 1, 2, 4])]
    schemas = {number: random_schema(rng, number) for number in numbers}
    ops = rng.choice(["I", "IU", "IUD", "D", "U", "IIIIIIIUDTM"])
    nothings = rng.choice([0, 0.1, 0.9])
    many = rng.choice([0, 1, FEW_ROWS, 40, 120])
    chosen = [schemas[rng.choice(numbers)] for _ in range(many)]
    return [random_message(rng, schema, ops, nothings) for schema in chosen], schemas


def escaped(text: Text) -> bytes:
    """A field as COPY writes it."""
    if not isinstance(text, bytes):
        return b"\\N"
    written = text.replace(b"\\", b"\\\\")
    for letter, meant in {b"b": 8, b"f": 12, b"n": 10, b"r": 13, b"t": 9, b"v": 11}.items():
        written = written.replace(bytes([meant]), b"\\" + letter)
    return written


def random_lines(rng: random.Random) -> tuple[list[bytes], Schemas]:
    schema = random_schema(rng, 16_384)
    nothings = rng.choice([0, 0.1, 0.9])
    many = rng.choice([0, 1, 2, 30, 120])
    return [random_line(rng, schema, nothings) for _ in range(many)], {16_384: schema}


def random_line(rng: random.Random, schema: Schema, nothings: float) -> bytes:
    return b"\t".join(map(escaped, random_row(rng, schema, nothings))) + b"\n"


def some_slots(rng: random.Random, count: int) -> list[int]:
    """All of them, a stretch, or any; ascending."""
    kind = rng.random()
    if kind < 0.5:
        return list(range(count))
    if kind < 0.7:
        start = rng.randrange(count + 1)
        return list(range(start, rng.randrange(start, count + 1)))
    return sorted(rng.sample(range(count), rng.randrange(count + 1)))


def row_values(rows: Rows | None, split: Split) -> Any:
    if rows is None:
        return None
    pairs = zip(rows.starts, rows.lengths, strict=True)
    return [Texts(data=split.data, starts=s, lengths=n).to_list() for s, n in pairs]


def values(found: SplitPayload) -> tuple[dict[int, Any], list[RawChange]]:
    """All that a split payload says."""
    rows = {}
    for split in found.rows:
        assert split.schema.relation not in rows
        assert split.new.starts.dtype == split.new.lengths.dtype == np.int64
        assert split.new.starts.shape == (len(split.schema.columns), len(split))
        rows[split.schema.relation] = (
            split.slots.tolist(),
            [OPS[number] for number in split.ops],
            row_values(split.new, split),
            row_values(split.old, split),
        )
    return rows, sorted(found.rare, key=lambda raw: raw.slot)


def decoded(
    codec: ChangeCodec, payload: Payload, slots: list[int], schemas: Schemas
) -> list[RawChange] | str:
    try:
        return list(codec.decode(payload.records(slots), slots, schemas))
    except DamagedLog as error:
        return str(error)


def expect_agreement(
    codec: ChangeCodec, payload: Payload, slots: list[int], schemas: Schemas
) -> bool:
    """Whether the records were sound; either way, both decoders say so."""
    expected = decoded(codec, payload, slots, schemas)
    if isinstance(expected, str):
        with pytest.raises(DamagedLog):
            codec.split(payload, slots, schemas)
        return False
    found = codec.split(payload, slots, schemas)
    assert values(found) == values(split_changes(expected, schemas))
    one_by_one = [raw for split in found.rows for raw in split.changes()] + found.rare
    assert sorted(one_by_one, key=lambda raw: raw.slot) == [*map(without_empty_old, expected)]
    return True


def without_empty_old(raw: RawChange) -> RawChange:
    """The split form does not tell an old row of which nothing was sent from none."""
    if raw.op is Op.UPDATE and raw.old is not None and set(raw.old) <= {ABSENT}:
        return raw._replace(old=None)
    return raw


def damaged(rng: random.Random, records: list[bytes]) -> list[bytes]:
    """The records with one of them cut, lengthened, or altered in a byte."""
    place = rng.randrange(len(records))
    record = records[place]
    at = rng.randrange(len(record) + 1)
    match rng.randrange(5):
        case 0:
            record = record[:at]
        case 1:
            record += rng.choice([b"\0", b"n", b"N", b"\n", b"\t"])
        case 2:
            record = record[:at] + rng.choice([b"\0", b"n", b"\t", b"\n", b"\\"]) + record[at:]
        case 3 if record[at:]:
            record = record[:at] + bytes([rng.randrange(256)]) + record[at + 1 :]
        case _ if record[at:]:
            record = record[:at] + bytes([record[at] ^ 1 << rng.randrange(8)]) + record[at + 1 :]
    return [*records[:place], record, *records[place + 1 :]]


@pytest.fixture(params=["whole", "in blocks"], scope="module")
def blocks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Blocks as they are, then so small that every payload has several."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in blocks":
            patch.setattr(pgoutput_split, "ROWS_MAX", 7)
            patch.setattr(copy_split, "BLOCK_BYTES", 64)
        yield


@pytest.mark.usefixtures("blocks")
@settings(max_examples=300, deadline=None)
@given(seeds)
def test_split_messages_are_what_the_row_decoder_reads(seed: int) -> None:
    rng = random.Random(seed)
    records, schemas = random_messages(rng)
    slots = some_slots(rng, len(records))
    assert expect_agreement(PGOUTPUT, payload_of(records), slots, schemas)


@pytest.mark.usefixtures("blocks")
@settings(max_examples=300, deadline=None)
@given(seeds)
def test_split_lines_are_what_the_row_decoder_reads(seed: int) -> None:
    rng = random.Random(seed)
    records, schemas = random_lines(rng)
    slots = some_slots(rng, len(records))
    assert expect_agreement(COPY, payload_of(records, 4), slots, schemas)


@pytest.mark.usefixtures("blocks")
@settings(max_examples=100, deadline=None)
@given(seeds)
def test_damaged_messages_are_refused_alike(seed: int) -> None:
    rng = random.Random(seed)
    records, schemas = random_messages(rng)
    for _ in range(5 if records else 0):
        broken = payload_of(damaged(rng, records))
        expect_agreement(PGOUTPUT, broken, list(range(len(records))), schemas)


@pytest.mark.usefixtures("blocks")
@settings(max_examples=100, deadline=None)
@given(seeds)
def test_damaged_lines_are_refused_alike(seed: int) -> None:
    rng = random.Random(seed)
    records, schemas = random_lines(rng)
    for _ in range(5 if records else 0):
        broken = payload_of(damaged(rng, records), 4)
        expect_agreement(COPY, broken, list(range(len(records))), schemas)


PAIR = schema_of(7, [Column(name=n, type=25, typmod=-1, key=n == "id") for n in ("id", "note")])
FULL = [encode(m.Insert(7, (b"%d" % number, b"x"))) for number in range(FEW_ROWS)]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"I",
        b"I\0\0\0\7",
        b"I\0\0\0\7N",
        b"I\0\0\0\7N\0\2",
        encode(m.Insert(7, (b"1", b"x")))[:-1],
        encode(m.Insert(7, (b"1", b"x"))) + b"n",
        encode(m.Insert(7, (b"1",))),
        encode(m.Insert(7, (b"1",) * 258)),
        encode(m.Insert(8, (b"1", b"x"))),
        b"I\0\0\0\7K\0\2nn",
        b"I\0\0\0\7K\0\2nnN\0\2nn",
        b"D\0\0\0\7N\0\2nn",
        b"D\0\0\0\7K\0\2nnN\0\2nn",
        b"U\0\0\0\7K\0\2nn",
        b"U\0\0\0\7X\0\2nnN\0\2nn",
        b"U\0\0\0\7N\0\2nnN\0\2nn",
        b"I\0\0\0\7N\0\2nb",
        b"I\0\0\0\7N\0\2nt\xff\xff\xff\xff",
        b"I\0\0\0\7N\0\2nt\0\0\1\0x",
        b"B" + bytes(20),
    ],
)
@pytest.mark.parametrize("place", [0, 5, len(FULL)])
def test_one_bad_message_among_many_is_damage_wherever_it_stands(bad: bytes, place: int) -> None:
    records = [*FULL[:place], bad, *FULL[place:]]
    slots = list(range(len(records)))
    assert not expect_agreement(PGOUTPUT, payload_of(records), slots, {7: PAIR})


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\n",
        b"1\n",
        b"1\t2",
        b"1\t2\t3\n",
        b"1\n2\n",
        b"1\t2\n\n",
        b"1\n2\t",
        b"\t\n\t",
        b"\\\t2\n",
        b"1\t\\\n",
        b"1\t\\Nx\n",
        b"x\\N\t1\n",
        b"1\t\\x\n",
        b"1\t\\\\\\\n",
        b"\\\\\\N\t1\n",
    ],
)
@pytest.mark.parametrize("place", [0, 2, FEW_ROWS])
def test_one_bad_line_among_many_is_damage_wherever_it_stands(bad: bytes, place: int) -> None:
    lines = [b"1\tx\n"] * FEW_ROWS
    records = [*lines[:place], bad, *lines[place:]]
    slots = list(range(len(records)))
    assert not expect_agreement(COPY, payload_of(records, 4), slots, {7: PAIR})


@pytest.mark.parametrize("records", [[b"\n\n", b""], [b"", b"\n\n"], [b"\n", b"\n\n", b""]])
def test_rows_of_no_column_are_a_line_end_each(records: list[bytes]) -> None:
    bare = {7: schema_of(7, [])}
    lines = [b"\n"] * FEW_ROWS
    slots = list(range(len(lines) + len(records)))
    assert not expect_agreement(COPY, payload_of([*lines, *records], 4), slots, bare)
    assert expect_agreement(COPY, payload_of(lines, 4), slots[:FEW_ROWS], bare)


@pytest.mark.parametrize("schemas", [{}, {7: PAIR, 8: PAIR}])
def test_copied_rows_are_of_one_relation(schemas: Schemas) -> None:
    assert not expect_agreement(COPY, payload_of([b"1\tx\n"], 4), [0], schemas)


def test_sound_rows_are_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, the tests above would pass with the row decoder alone."""

    def refuse(*arguments: Any) -> Iterator[RawChange]:
        raise AssertionError("read one by one")

    messages = [
        encode(m.Insert(7, (b"1", None))),
        encode(m.Update(7, (b"1", None), True, (b"2", UNCHANGED))),
        encode(m.Update(7, None, False, (b"2", b"x" * 70_000))),
        encode(m.Delete(7, (b"2", None), True)),
    ] * FEW_ROWS
    lines = [b"1\t\\N\n", b"2\ta\\tb\n", b"3\t\\\\N\n"] * FEW_ROWS
    monkeypatch.setattr(type(PGOUTPUT), "decode", refuse)
    monkeypatch.setattr(type(COPY), "decode", refuse)
    (split,) = PGOUTPUT.split(payload_of(messages), range(len(messages)), {7: PAIR}).rows
    assert split.old is not None
    assert split.new_texts(1).to_list()[:4] == [None, UNCHANGED, b"x" * 70_000, ABSENT]
    assert split.old_texts(0).to_list()[:4] == [ABSENT, b"1", ABSENT, b"2"]
    assert split.old_texts(1).to_list()[:4] == [ABSENT] * 4
    (split,) = COPY.split(payload_of(lines, 4), range(len(lines)), {7: PAIR}).rows
    assert split.new_texts(1).to_list()[:4] == [None, b"a\tb", b"\\N", None]
    assert {OPS[number] for number in split.ops} == {Op.READ}
    big = payload_of([encode(m.Insert(7, (b"1", b"x" * 70_000)))])
    (split,) = PGOUTPUT.split(big, [0], {7: PAIR}).rows
    assert np.shares_memory(split.data, np.frombuffer(big.data, np.uint8)), "a copy of it"


def test_splitting_reads_no_byte_behind_the_last_record() -> None:
    """A row that ends in NULLs ends the buffer: no length is looked for behind it."""
    records = [encode(m.Insert(7, (None, None)))] * FEW_ROWS
    assert expect_agreement(PGOUTPUT, payload_of(records), list(range(len(records))), {7: PAIR})


@pytest.mark.parametrize("last", [b"", b"\t", b"1", b"\xc3\xa9", b"x" * 7, None, UNCHANGED])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_535, 65_536])
def test_texts_of_any_length_before_any_last_value(size: int, last: Text) -> None:
    """Lengths of one byte and of more are read in two ways, and the last value in a third."""
    rows = [(b"y" * size, last), (b"z" * (size // 2), last)] * FEW_ROWS
    records = [encode(m.Insert(7, row)) for row in rows]
    slots = list(range(len(records)))
    assert expect_agreement(PGOUTPUT, payload_of(records), slots, {7: PAIR})
    if last is not UNCHANGED:
        lines = [b"\t".join(map(escaped, row)) + b"\n" for row in rows]
        assert expect_agreement(COPY, payload_of(lines, 4), slots, {7: PAIR})


TEXT_LISTS = st.lists(st.one_of(st.none(), st.just(UNCHANGED), st.just(ABSENT), st.binary()))


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT_LISTS, min_size=1, max_size=5))
def test_columns_are_made_taken_cut_and_joined_without_a_change(lists: list[list[Text]]) -> None:
    columns = [texts_of(texts) for texts in lists]
    for texts, column in zip(lists, columns, strict=True):
        assert column.to_list() == texts
        assert [column.text(place) for place in range(len(texts))] == texts
        assert column.take(np.arange(len(texts))[::-1]).to_list() == texts[::-1]
    whole = joined([*columns, repeated(b"end", 2), columns[0]])
    assert whole.to_list() == [t for texts in lists for t in texts] + [b"end"] * 2 + lists[0]


def test_buffers_that_columns_share_are_joined_once() -> None:
    buffer = texts_of([b"a", b"bc"])
    one, two = buffer.take(np.array([0])), buffer.take(np.array([1]))
    first, second, third = joined_columns([[one, two, None], [two, one, None]])
    assert first is not None and second is not None and third is None
    assert first.to_list() == [b"a", b"bc"] and second.to_list() == [b"bc", b"a"]
    assert first.data is second.data and len(first.data) == len(buffer.data)


def test_a_part_of_a_split_holds_its_records() -> None:
    records = [encode(m.Update(7, (b"%d" % n, None), True, (b"x", None))) for n in range(20)]
    (split,) = PGOUTPUT.split(payload_of(records), range(20), {7: PAIR}).rows
    part = split.cut(3, 5)
    assert part.slots.tolist() == [3, 4] and len(part) == 2
    assert part.old_texts(0).to_list() == [b"3", b"4"]
    assert list(part.changes()) == list(split.changes())[3:5]
