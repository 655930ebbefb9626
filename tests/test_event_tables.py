"""Events by whole columns: what is read and what a snapshot holds, against plain Python."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from eventlog.changes.decoding import json_line, json_text, json_texts, json_value
from eventlog.changes.split import texts_of
from eventlog.codecs import event_json
from eventlog.codecs.event_split import split_events
from eventlog.codecs.events import CODEC
from eventlog.engine import Append, Plan, Transactions, batch_of
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog, OffsetsDropped
from tests.fix_log import bodies_apart
from tests.held_memory import measured
from tests.state_limits import Limits, limited

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, -1, 127, 128, -32, -33, 2**16, 2**31, 2**32, 2**53, -(2**63), 2**64 - 1]),
    st.floats(),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(['"', "\\", "\n", "\x1f", "\x7f", "é", "\U0001f600", "between two values"]),
    st.sampled_from([31, 32, 255, 256, 65_535, 65_536]).map(lambda size: "x" * size),
)
TIMES = st.datetimes(
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=30))]),
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 1, 1),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, TEXTS, TIMES, st.binary(max_size=6),
    st.sampled_from([255, 256, 65_536]).map(bytes),
)  # fmt: skip
NAMES = st.one_of(st.sampled_from(["a", "b", "user", "é", '"', "n" * 40]), TEXTS)
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, min_size=15, max_size=17),
        st.dictionaries(NAMES, inner, max_size=4),
        st.fixed_dictionaries({f"c{n}": st.just(n) for n in range(17)}),
    ),
    max_leaves=6,
)


class Shape(NamedTuple):
    """Events that look alike, as those of one application do, but for some."""

    fields: dict[str, st.SearchStrategy[Any]]

    def value(self) -> st.SearchStrategy[Any]:
        whole = st.fixed_dictionaries(self.fields)
        some = st.fixed_dictionaries({}, optional=self.fields)
        return st.one_of(whole, whole, whole, some, NESTED)


SHAPES = [
    Shape({"user": st.integers(0, 300), "page": st.text("abc/é", max_size=9), "ms": st.floats()}),
    Shape({"n": NUMBERS, "ok": st.booleans(), "t": TIMES, "raw": st.binary(max_size=3)}),
    Shape({"mixed": LEAVES, "geo": st.fixed_dictionaries({"x": NUMBERS, "tags": st.lists(TEXTS)})}),
]
VALUES = st.one_of(*(shape.value() for shape in SHAPES), LEAVES)
KEYS = st.one_of(
    st.none(),
    st.sampled_from(["", "k", "7", "é", "\0", "k\0", "1" * 31, "1" * 32, "1" * 255, "1" * 256]),
    st.integers(-3, 12).map(str),
)


LIMITS = st.one_of(
    st.just(Limits()),
    st.builds(
        Limits,
        st.sampled_from([1, 2, 7]),
        st.sampled_from([1, 150, 1 << 28]),
        st.sampled_from([0, 500, 1 << 28]),
    ),
)


def plain(value: Any) -> Any:
    """A value as JSON has it, by the words of the documentation."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


def shown(value: Any) -> str | None:
    return None if value is None else json.dumps(plain(value), ensure_ascii=False)


def rows_of(stream: eventlog.Stream, events: Sequence[tuple[int, str | None, Any]]) -> list[Any]:
    times = {event.offset: event.time for event in stream.read()}
    return [
        {"_offset": at, "_time": times[at], "key": key, "value": shown(value)}
        for at, key, value in events
    ]


def latest(events: Sequence[tuple[int, str | None, Any]]) -> list[tuple[int, str | None, Any]]:
    """The definition: a map from each key to its latest event, and all without a key."""
    found: dict[Any, tuple[int, str | None, Any]] = {}
    for offset, key, value in events:
        found.pop(key, None)
        if key is None:
            found[object()] = (offset, key, value)
        elif value is not None:
            found[key] = (offset, key, value)
    return sorted(found.values(), key=lambda event: event[0])


@given(
    st.lists(st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=25), min_size=1, max_size=4),
    LIMITS,
    st.sampled_from([1, 3, 32]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_events_are_read_and_folded_as_a_map_of_python_says(
    commits: list[list[tuple[str | None, Any]]],
    limits: Limits,
    rows_min: int,
    apart: bool,
    random: Random,
) -> None:
    # Without a key a nil is no tombstone, and is not written.
    commits = [[(k, 0 if k is None and v is None else v) for k, v in some] for some in commits]
    with ExitStack() as end:
        path = Path(end.enter_context(tempfile.TemporaryDirectory())) / "log"
        end.enter_context(mock.patch.object(event_json, "ROWS_MIN", rows_min))
        if apart:
            end.enter_context(bodies_apart())
        log = end.enter_context(eventlog.open(path, create=True))
        clicks = log.stream("clicks", create=True)
        for some in commits:
            clicks.append_many([value for _, value in some], keys=[key for key, _ in some])
        flat = [(at, *event) for at, event in enumerate(e for some in commits for e in some)]
        assert clicks.read().to_arrow().to_pylist() == rows_of(clicks, flat)
        pieces = [batch.to_arrow().to_pylist() for batch in clicks.read().batches(max_rows=3)]
        assert [row for piece in pieces for row in piece] == rows_of(clicks, flat)
        assert all(len(piece) <= 3 for piece in pieces)
        stop = random.randint(0, len(flat))
        start = random.randint(0, stop)
        end.enter_context(limited(limits))
        for low, at in [(None, len(flat)), (None, stop), (start, stop)]:
            table = log.snapshot({"clicks": at if low is None else (low, at)}).table()
            expected = [event for event in latest(flat[:at]) if event[0] >= (low or 0)]
            assert table.num_rows == len(expected)
            assert table.to_arrow(offsets=True).to_pylist() == rows_of(clicks, expected)
            pieces = [p.to_pylist() for p in table.to_batches(["key"], offsets=True, max_rows=2)]
            keys = [{"_offset": offset, "key": key} for offset, key, _ in expected]
            assert [row for piece in pieces for row in piece] == keys
            stored = [
                (int(offset), *row)
                for offsets, arrays in table.texts(max_rows=3)
                for offset, *row in zip(offsets, *(a.to_pylist() for a in arrays), strict=True)
            ]
            assert [(at, key) for at, _, key, _ in stored] == [
                (at, None if key is None else key.encode()) for at, key, _ in expected
            ]
            pack = msgpack.Packer(datetime=True).pack
            assert [value for *_, value in stored] == [pack(value) for *_, value in expected]
        assert log.check() == []


# Its parts


@given(
    st.one_of(
        *(st.lists(shape.value(), min_size=1, max_size=60) for shape in SHAPES),
        st.lists(VALUES, max_size=30),
    ),
    st.sampled_from([1, 4]),
)
@settings(max_examples=120, deadline=None)
def test_values_become_json_by_shapes_as_they_do_one_by_one(values: list[Any], few: int) -> None:
    pack = msgpack.Packer(datetime=True).pack
    texts = texts_of([pack(value) for value in values])
    with mock.patch.object(event_json, "ROWS_MIN", few):
        found = CODEC.json_array(texts)
    assert found.to_pylist() == [shown(value) for value in values]
    assert json_texts(values) == [None if v is None else json_text(v) for v in values]


def test_values_that_are_alike_are_not_decoded_one_by_one() -> None:
    pack = msgpack.Packer(datetime=True).pack
    values = [
        {"n": n, "at": datetime(2026, 1, 1, tzinfo=UTC), "to": {"x": [n / 7, None]}, "s": "é" * n}
        for n in range(40)
    ] + [{"n": -n, "ok": n > 3} for n in range(40)]
    with mock.patch.object(event_json, "_one_by_one", side_effect=AssertionError):
        found = CODEC.json_array(texts_of([pack(value) for value in values]))
    assert found.to_pylist() == [shown(value) for value in values]


EDGES = [
    None, True, False, 0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1, 2**32, 2**63 - 1,
    2**63, 2**64 - 1, -1, -32, -33, -127, -128, -129, -(2**15), -(2**15) - 1, -(2**31), -(2**63),
    0.0, -0.0, 1e16, 1.5e300, 5e-324, math.nan, math.inf, -math.inf, 1 / 3,
    "", "a", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 65_535, "x" * 65_536,
    "é\U0001f600\x7f", '"', "\\", "\x00", "\x1f", "\n", "\u2028", "/", "null",
    *(
        datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second, microseconds=micro)
        for second in (0, 1, 2**31, 2**32 - 1, 2**32, 2**33, 2**33 + 1, 2**34 - 1)
        for micro in (0, 1, 120_000, 999_999)
    ),
]  # fmt: skip


def test_every_kind_of_leaf_is_converted_by_columns() -> None:
    pack = msgpack.Packer(datetime=True).pack
    for values in (EDGES, [{"a": [edge], "b": n} for n, edge in enumerate(EDGES)]):
        with (
            mock.patch.object(event_json, "ROWS_MIN", 1),
            mock.patch.object(event_json, "_one_by_one", side_effect=AssertionError),
        ):
            found = CODEC.json_array(texts_of([pack(value) for value in values]))
        assert found.to_pylist() == [shown(value) for value in values]
        for edge, value in zip(EDGES, values, strict=True):  # A column of one kind alone.
            found = CODEC.json_array(texts_of([pack(value)] * event_json.ROWS_MIN))
            assert found.to_pylist() == [shown(value)] * event_json.ROWS_MIN, edge


def test_one_odd_value_does_not_keep_the_others_from_their_columns() -> None:
    pack = msgpack.Packer(datetime=True).pack
    large = [[[7] * 64] * 64]
    odd = [large, [1] * 65, {"n" * 5_000: 1}, {"raw": b"x"}]
    values = [{"a": n, "b": ["x"]} for n in range(100)]
    for other in odd:
        with mock.patch.object(event_json, "_one_by_one", wraps=event_json._one_by_one) as seen:
            found = CODEC.json_array(texts_of(map(pack, [other, *values])))
        assert found.to_pylist() == [shown(other), *map(shown, values)]
        assert [len(call.args[0]) for call in seen.call_args_list] == [1]


def test_a_name_that_is_no_text_becomes_one_in_json() -> None:
    """No writer makes one; msgpack reads it."""
    nan = b"\xcb\x7f\xf8" + bytes(6)
    stored = [b"\x81\xc4\x01a\x07", b"\x81\xc4\x01a" + nan, b"\x91\x81\xc4\x01a\xc4\x01b"]
    wanted = ['{"\\\\x61": 7}', '{"\\\\x61": "NaN"}', '[{"\\\\x61": "\\\\x62"}]']
    assert CODEC.json_array(texts_of(stored)).to_pylist() == wanted
    values = [CODEC.decode(b"\x92\xc0" + value)[1] for value in stored]
    assert [json_line(json_value(value)) for value in values] == wanted


def test_of_equal_names_the_last_one_counts() -> None:
    found = CODEC.json_array(texts_of([b"\x82\xa1a\x01\xa1a\x02"] * 40))
    assert found.to_pylist() == ['{"a": 2}'] * 40


@pytest.mark.parametrize(
    "record",
    [
        b"", b"\x92", b"\x92\xc0", b"\x92\xa1k", b"\x92\xa3k\x01", b"\x92\xd9", b"\x92\xd9\x01k",
        b"\x92\xda\x00", b"\x92\xdb\xff\xff\xff\xff\x01", b"\x92\x01\x01", b"\x92\xc4\x01k\x01",
        b"\x93\xa1k\x01\x01", b"\xdc\x00\x02\xa1k\x01", b"\x82\xa1k\x01",
    ],
)  # fmt: skip
def test_a_record_of_another_form_is_told_from_events(record: bytes) -> None:
    good = [CODEC.encoder().one("k", 1), CODEC.encoder().one(None, "é"), b"\x92\xa1k\xc0"]
    for place in range(4):
        records = [*good[:place], record, *good[place:]]
        ends = np.cumsum([len(each) for each in records])
        data = np.frombuffer(b"".join(records), np.uint8)
        found = split_events(data, ends - [len(each) for each in records], ends)
        assert np.flatnonzero(found.odd).tolist() == [place]
        others = np.flatnonzero(~found.odd)
        assert found.keys.take(others).to_list() == [b"k", None, b"k"]
        assert found.values.take(others).to_list() == [b"\x01", b"\xa2\xc3\xa9", b"\xc0"]
        assert found.tombstone[others].tolist() == [False, False, True]


DAMAGED = [
    b"\x92\xa1k\xc1", b"\x92\xa1k\xa1\xff", b"\x92\xa1\xff\x01", b"\x92\xa1k\x81\x01\x01",
    b"\x92\xa1k\x01\x01", b"\x92\xa1k\x92\x01", b"\x92\x01", b"\x92\xa1k\x81\xa1a\xa1\xff",
    b"\x92\xa1k\x81\xa1a\xa1x\x01", b"\x92\xa1k\x81\xa1a\xa2x", b"\x92\xa1k\xc0\x01",
    b"\x92\xa1k\xd7\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00",
    b"\x92\xa1k\xd6\x05abcd", b"\x92\xa1k\x81\xa1a\xc7\x01\x07x",
    b"\x92\xa1k\x92\xcb\x7f\xf8" + bytes(6) + b"\xd4\x01x",
]  # fmt: skip


@pytest.mark.parametrize("record", DAMAGED)
def test_a_damaged_event_is_named_or_passed_over_by_whole_columns(
    tmp_path: Path, record: bytes
) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        clicks = log.stream("clicks", create=True)
        records = [CODEC.encoder().one(f"k{n}", {"a": "x"}) for n in range(80)]
        records[50] = record
        batch = batch_of(CODEC.id, records, Transactions.one(time_us=0))
        log.engine.commit(Plan(appends=[Append(stream="clicks", batches=[batch])]))
        for read in (lambda: clicks.read().to_arrow(), lambda: list(clicks.read())):
            with pytest.raises(DamagedLog, match=r"offset 50 of stream 'clicks'"):
                read()
        skipping = clicks.read(damaged="skip")
        assert skipping.to_arrow()["_offset"].to_pylist() == [n for n in range(80) if n != 50]
        assert [damage[:2] for damage in skipping.damaged] == [(50, 51)]
        assert clicks.read(0, 50).to_arrow().num_rows == 50
        with pytest.raises(DamagedLog, match=r"offset 50 of stream 'clicks'"):
            log.snapshot("clicks").table().to_arrow()


def test_records_at_some_places_are_decoded_all_at_once_or_not_at_all() -> None:
    records = [CODEC.encoder().one(str(n), [n]) for n in range(6)]
    ends = np.cumsum([len(each) for each in records]).astype(np.uint32)
    payload = Payload(codec=CODEC.id, ends=ends, data=b"".join(records))
    assert CODEC.pairs(payload, np.array([], np.int64)) == []
    assert CODEC.pairs(payload, np.array([1, 4])) == [("1", [1]), ("4", [4])]
    assert CODEC.pairs(payload, np.arange(6)) == [CODEC.decode(record) for record in records]
    shifted = Payload(codec=CODEC.id, ends=ends - np.uint32([0, 1, 0, 0, 0, 0]), data=payload.data)
    assert CODEC.pairs(shifted, np.arange(6)) is None


def test_an_event_table_is_what_it_was_though_the_log_grows_until_its_events_are_dropped(
    log: eventlog.Log,
) -> None:
    clicks = log.stream("clicks", create=True)
    clicks.append_many([1, 2, None], keys=["a", "b", "a"])
    with limited(Limits(keep_bytes=0)):
        table = log.snapshot("clicks").table()
    clicks.append_many([3, None], keys=["c", "b"])
    assert table.to_arrow(["key", "value"]).to_pylist() == [{"key": "b", "value": "2"}]
    clicks.append_many(range(5000))
    clicks.retain(below=5000)
    with pytest.raises(OffsetsDropped):
        table.to_arrow()


LARGE_EVENTS, LARGE_BYTES = 6_000, 8_000

EXPORT = """
import sys
import eventlog
from eventlog.cli.export_files import write_pieces
from eventlog.snapshots.state import table_state

def sampled(pieces):
    for piece in pieces:
        peaks.append(anonymous())
        yield piece

table_state.KEEP_BYTES = table_state.BATCH_BYTES = 4 << 20
with eventlog.open(sys.argv[1]) as log:
    for at, peaks in ((1, []), ("end", [])):
        snapshot = log.snapshot("clicks", at=at)
        table = snapshot.table()
        rows = write_pieces(sampled(table.to_batches()), Path(sys.argv[2]))
        assert rows == table.num_rows
        for _ in sampled(table.texts()):
            pass
        snapshot.save(Path(sys.argv[2]).with_suffix(f".{at}.json"))
        peaks.append(anonymous())
        if at == 1:
            begun = anonymous()
    print(rows, len(peaks), max(peaks) - begun)
"""


def test_events_that_are_larger_than_what_may_be_held_are_exported_by_pieces(
    tmp_path: Path,
) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        clicks = log.stream("clicks", create=True)
        clicks.append("first", key="first")
        for first in range(0, LARGE_EVENTS, 500):
            keys = range(first, first + 500)
            values = [{"x": Random(n).randbytes(LARGE_BYTES // 2).hex()} for n in keys]
            clicks.append_many(values, keys=keys)
    done = measured(EXPORT, str(tmp_path / "log"), str(tmp_path / "big.parquet"))
    rows, pieces, grown = map(int, done.stdout.split())
    assert rows == LARGE_EVENTS + 1 and pieces > 10
    assert grown < LARGE_EVENTS * LARGE_BYTES * 3 // 4  # held whole, it would be twice its size
