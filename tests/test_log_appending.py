"""Event streams: what can be appended, and that it comes whole or not at all."""

from __future__ import annotations

import datetime as dt
import enum
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from eventlog.codecs.events import CODEC, DEPTH_MAX
from eventlog.engine import Append, Batch, Engine, Owner, Plan, Transactions, batch_of, writer
from eventlog.errors import (
    ClosedLog,
    DamagedLog,
    DiskFull,
    NotALog,
    StreamExists,
    UnknownStream,
    UsageError,
)
from eventlog.outbox import COMMIT_BYTES
from tests.fix_log import MadeSource

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(dt.UTC)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(key=st.none() | st.text(), value=VALUES)
def test_an_event_reads_back_as_it_was_written(key: str | None, value: Any) -> None:
    assert CODEC.decode(CODEC.encoder().one(key, value)) == (key, value)


@given(value=VALUES)
@settings(max_examples=50)
def test_a_cut_record_is_damage_and_not_a_value(value: Any) -> None:
    record = CODEC.encoder().one("k", value)
    for end in range(len(record)):
        with pytest.raises(DamagedLog):
            CODEC.decode(record[:end])
    with pytest.raises(DamagedLog):
        CODEC.decode(record + b"\x00")


def test_times_of_other_zones_come_back_as_the_same_moment_in_utc(log: eventlog.Log) -> None:
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
    moment = dt.datetime(2026, 1, 31, 12, tzinfo=zone)
    stream = log.stream("clicks", create=True)
    stream.append({"at": moment})
    (event,) = stream.read()
    assert event.value["at"] == moment and event.value["at"].utcoffset() == dt.timedelta(0)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {1, 2}}, "value['a'] is a set"),
        ({"a": [0, (1, 2)]}, "value['a'][1] is a tuple"),
        (Colour.RED, "value is a Colour"),
        ({"x": np.int64(7)}, "value['x'] is a int64"),
        ({"x": np.zeros(2)}, "value['x'] is a ndarray"),
        ({"x": {7: "seven"}}, "value['x'] has the name 7"),
        ({"t": dt.datetime(2026, 1, 1)}, "value['t'] is a datetime without a time zone"),
        ({"t": dt.date(2026, 1, 1)}, "value['t'] is a date"),
        ([1, 2**64], "value[1] is an integer of more than 64 bits"),
        ({"s": "\ud800"}, "value['s'] is text with lone surrogates"),
        ({"\ud800": 1}, "value is text with lone surrogates"),
        (bytearray(b"x"), "value is a bytearray"),
        (
            {"t": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))},
            "value['t'] is outside the years 1 to 9999 in UTC",
        ),
        (
            dt.datetime(9999, 12, 31, 23, 59, tzinfo=dt.timezone(dt.timedelta(hours=-1))),
            "value is outside the years 1 to 9999 in UTC",
        ),
    ],
)
def test_what_an_event_cannot_hold_is_a_type_error_that_names_the_path(
    log: eventlog.Log, value: Any, where: str
) -> None:
    stream = log.stream("clicks", create=True)
    with pytest.raises(TypeError) as caught:
        stream.append(value)
    assert where in str(caught.value) and caught.value.hint  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="value"):
        stream.append_many([1, value])
    assert stream.end == 0


def test_the_first_and_the_last_moment_that_an_event_can_hold_come_back(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    ends = [moment.replace(tzinfo=dt.UTC) for moment in (dt.datetime.min, dt.datetime.max)]
    stream.append_many(ends)
    assert [event.value for event in stream.read()] == ends


POISON = {
    "no msgpack": b"\xc1",
    "one value too few": msgpack.packb(("key",)),
    "one byte too many": CODEC.encoder().one(None, 1) + b"\0",
    "no text": b"\x92\xc0\xa1\xff",
    "a moment after the year 9999": msgpack.packb((None, msgpack.Timestamp(1 << 40, 0))),
    "a moment before the year 1": msgpack.packb((None, msgpack.Timestamp(-(1 << 40), 0))),
    "deeper than any value": b"\x92\xc0" + b"\x91" * 5_000 + b"\xc0",
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_a_stored_record_that_is_no_event_is_named_by_its_offset_and_may_be_skipped(
    log: eventlog.Log, poison: bytes
) -> None:
    stream = log.stream("clicks", create=True)
    stream.append("before")
    records = [CODEC.encoder().one("k", 1), poison, CODEC.encoder().one("k", 3)]
    batch = batch_of(CODEC.id, records, Transactions.one(time_us=0))
    log.engine.commit(Plan(appends=[Append(stream="clicks", batches=[batch])]))
    stream.append("after")
    for read in (lambda: list(stream.read()), lambda: list(stream.read().as_json())):
        with pytest.raises(DamagedLog, match="record at offset 2 of stream 'clicks'") as caught:
            read()
        assert "damaged='skip'" in caught.value.hint
    found = stream.read(damaged="skip")
    assert [(event.offset, event.value) for event in found] == [
        (0, "before"),
        (1, 1),
        (3, 3),
        (4, "after"),
    ]
    assert [(damage.start, damage.stop) for damage in found.damaged] == [(2, 3)]
    assert "is no event" in found.damaged[0].why
    assert [event.value for event in stream.read(3)] == [3, "after"], "the rest can be read"


def test_floats_of_numpy_are_floats(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    stream.append({"p": np.float64(0.25), "nan": float("nan")})
    (line,) = stream.read().as_json()
    assert line["value"] == {"p": 0.25, "nan": "NaN"}


def test_nesting_has_a_limit_that_is_named(log: eventlog.Log) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TypeError, match=f"deeper than {DEPTH_MAX}"):
        log.stream("clicks", create=True).append(value)


def test_keys_are_text_and_integers_their_decimal_form(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    for key in (7, "7", np.int64(-3), None):
        stream.append({}, key=key)
    assert [event.key for event in stream.read()] == ["7", "7", "-3", None]
    for bad in (True, 1.5, b"7"):
        with pytest.raises(TypeError, match="a key is text or an integer"):
            stream.append({}, key=bad)  # type: ignore[arg-type]


def test_none_under_a_key_is_a_tombstone_and_nothing_without_one(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    stream.append({"n": 1}, key=7)
    stream.append(None, key=7)
    assert [(e.key, e.value) for e in stream.read()] == [("7", {"n": 1}), ("7", None)]
    with pytest.raises(UsageError, match="without a key"):
        stream.append(None)
    with pytest.raises(UsageError, match="without a key"):
        stream.append_many([{"n": 2}, None])
    assert stream.end == 2


def test_append_gives_dense_offsets(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    assert (stream.start, stream.end) == (0, 0)
    assert stream.append("a") == 0
    assert stream.append_many(["b", "c"], keys=["x", None]) == range(1, 3)
    assert stream.append_many([]) == range(3, 3)
    assert [(e.offset, e.key, e.value) for e in stream.read()] == [
        (0, None, "a"),
        (1, "x", "b"),
        (2, None, "c"),
    ]


@pytest.mark.parametrize("keys", [["x"], ["x", "y", "z"]])
def test_keys_and_values_must_be_equally_many(log: eventlog.Log, keys: list[str]) -> None:
    stream = log.stream("clicks", create=True)
    with pytest.raises(UsageError, match="not as many keys"):
        stream.append_many(["a", "b"], keys=keys)
    assert stream.end == 0


BLOB = b"x" * 100_000
MANY = 8 * COMMIT_BYTES // len(BLOB) + 7


class Frame:
    """Iterates as a DataFrame does: over the names of its columns."""

    def __iter__(self) -> Iterator[str]:
        return iter(["user", "page"])

    def to_dict(self, orient: str) -> list[dict[str, int]]:
        return [{"user": 7, "page": 8}]


class Column(Frame):
    def to_list(self) -> list[str]:
        return list(self)


ONES = ["a word", b"bytes", bytearray(b"bytes"), {"user": 7}, Frame(), 7]


@pytest.mark.parametrize("one", ONES, ids=lambda one: type(one).__name__)
def test_one_thing_in_the_place_of_many_is_refused(log: eventlog.Log, one: Any) -> None:
    stream = log.stream("s", create=True)
    with pytest.raises(UsageError, match=f"values is a {type(one).__name__}") as caught:
        stream.append_many(one)
    assert 'df.to_dict("records")' in caught.value.hint
    for name in ("keys", "ids"):
        with pytest.raises(UsageError, match=f"{name} is a {type(one).__name__}") as caught:
            stream.append_many(["a", "b"], **{name: one})
        assert caught.value.hint
        with pytest.raises(UsageError, match=f"{name} is a"), log.transaction() as tx:
            tx.append("s", ["a", "b"], **{name: one})
    assert stream.end == 0


def test_a_transaction_takes_a_mapping_for_one_event_and_refuses_a_frame(
    log: eventlog.Log,
) -> None:
    stream = log.stream("s", create=True)
    with log.transaction() as tx:
        tx.append("s", {"user": 7})
    with pytest.raises(UsageError, match="values is a Frame"), log.transaction() as tx:
        tx.append("s", Frame())
    assert stream.append_many(Column(), keys=Column()) == range(1, 3)
    assert stream.append_many(word for word in ("generators", "too")) == range(3, 5)


def test_more_than_one_commit_is_staged_and_published_as_one(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    other = log.stream("other", create=True)
    seen = []

    def values() -> Iterator[Any]:
        for number in range(MANY):
            if number % 50 == 0:
                seen.append(stream.end)
                other.append(number)
            yield {"n": number, "blob": BLOB}

    assert stream.append_many(values()) == range(MANY)
    assert set(seen) == {0}, "nothing is in the stream before the end"
    assert [event.value["n"] for event in stream.read()] == list(range(MANY))
    assert log.engine.owners() == []


def test_a_generator_that_raises_leaves_nothing(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    stream.append("before")

    def values() -> Iterator[Any]:
        for number in range(MANY):
            yield {"n": number, "blob": BLOB}
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        stream.append_many(values())
    assert [event.value for event in stream.read()] == ["before"]
    assert log.engine.owners() == []


def test_many_large_values_are_appended_in_bounded_memory(
    log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the size of a commit would depend on how fast the disk is.
    monkeypatch.setattr(writer, "COMMIT_BYTES_MAX", writer.COMMIT_BYTES)
    stream = log.stream("clicks", create=True)
    size, count = 300_000, 300
    stream.append_many(b"%d" % n + bytes(size) for n in range(20))
    tracemalloc.start()
    try:
        offsets = stream.append_many(b"%d" % n + bytes(size) for n in range(count))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert offsets == range(20, 20 + count)
    assert peak < size * count / 4, f"{peak:,} bytes of {size * count:,}"


def fail_once(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the commit of staged batches fail, where it is number `at`; each is of a mebibyte."""
    monkeypatch.setattr(writer, "COMMIT_BYTES_MAX", writer.COMMIT_BYTES)
    real, commits = Owner.stage, 0

    def stage(owner: Owner, batches: Sequence[Batch]) -> None:
        nonlocal commits
        commits += 1
        if commits == at:
            raise DiskFull("the disk is full", hint="free some space")
        real(owner, batches)

    monkeypatch.setattr(Owner, "stage", stage)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_what_could_not_be_staged_is_not_committed_by_a_caller_who_caught_the_error(
    log: eventlog.Log, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    stream = log.stream("clicks", create=True)
    stream.append("before")
    fail_once(monkeypatch, at)
    caught = 0

    def send() -> None:
        nonlocal caught
        with log.transaction() as tx:
            for number in range(20):
                try:
                    tx.append("clicks", [f"{number}" + "." * 10_000] * 100)
                except DiskFull:
                    caught += 1

    with pytest.raises(DiskFull):
        send()
    assert caught, "it is told inside the block, too"
    assert stream.end == 1 and log.engine.owners() == []
    monkeypatch.undo()
    with log.transaction() as tx:
        tx.append("clicks", ["." * 10_000] * 300)
    assert tx.offsets == {"clicks": range(1, 301)}


def test_a_writer_that_could_not_be_registered_for_staging_is_no_hole_in_the_commit(
    log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = log.stream("clicks", create=True)
    real, asked = Engine.appender, 0

    def appender(engine: Engine, name: str) -> Owner:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise DiskFull("the disk is full", hint="free some space")
        return real(engine, name)

    monkeypatch.setattr(Engine, "appender", appender)

    def send() -> None:
        with log.transaction() as tx:
            for number in range(4):
                with suppress(DiskFull):
                    tx.append("clicks", [f"{number}" + "." * 50_000] * 30)

    with pytest.raises(DiskFull):
        send()
    assert asked and stream.end == 0 and log.engine.owners() == []


def test_what_failed_to_be_staged_last_is_not_committed_either(
    log: eventlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = log.stream("clicks", create=True)
    fail_once(monkeypatch, 1)
    with pytest.raises(DiskFull), log.transaction() as tx:
        tx.append("clicks", ["." * 10_000] * 150)
    fail_once(monkeypatch, 1)
    with pytest.raises(DiskFull):
        stream.append_many("." * 10_000 for _ in range(150))
    assert stream.end == 0 and log.engine.owners() == []


Tx = eventlog.Transaction


def bad_value(tx: Tx) -> None:
    tx.append("clicks", [*range(1_500), object()])


def bad_key(tx: Tx) -> None:
    tx.append("clicks", list(range(1_500)), keys=[*range(1_499), 1.5])  # type: ignore[list-item]


def bad_id(tx: Tx) -> None:
    tx.append("clicks", list(range(1_500)), ids=[*range(1_499), ""])


def no_value_without_a_key(tx: Tx) -> None:
    tx.append("clicks", [*range(1_500), None])


def too_few_keys(tx: Tx) -> None:
    tx.append("clicks", list(range(1_500)), keys=range(1_499))


def too_many_ids(tx: Tx) -> None:
    tx.append("clicks", list(range(1_500)), ids=range(1_501))


HALVES = [bad_value, bad_key, bad_id, no_value_without_a_key, too_few_keys, too_many_ids]


@pytest.mark.parametrize("append", HALVES)
def test_half_an_append_that_was_caught_is_not_committed(
    log: eventlog.Log, append: Callable[[Tx], None]
) -> None:
    stream = log.stream("clicks", create=True)
    other = log.stream("other", create=True)

    def send() -> None:
        with log.transaction() as tx:
            tx.append("other", "whole")
            with pytest.raises(UsageError):
                append(tx)
            with pytest.raises(TypeError):
                tx.append("clicks", object())
            tx.append("clicks", "another")

    with pytest.raises(UsageError, match="failed half way, so nothing is committed") as caught:
        send()
    assert caught.value.hint and (stream.end, other.end) == (0, 0)


def test_an_append_that_was_refused_whole_leaves_its_transaction_as_it_was(
    log: eventlog.Log,
) -> None:
    stream = log.stream("clicks", create=True)
    with log.transaction() as tx:
        tx.append("clicks", "one")
        with pytest.raises(TypeError):
            tx.append("clicks", ["two", object()])
        tx.append("clicks", "three")
    assert [event.value for event in stream.read()] == ["one", "three"]


def test_a_transaction_appends_to_several_streams_or_to_none(log: eventlog.Log) -> None:
    for name in ("a", "b"):
        log.stream(name, create=True)
    with log.transaction() as tx:
        tx.append("a", {"x": 1}, key=7)
        tx.append("b", ["one", "two"])
        tx.append("b", ["three"], keys=["k"])
        assert log.stream("a").end == 0
    assert tx.offsets == {"a": range(1), "b": range(3)}

    def failing() -> None:
        with log.transaction() as tx:
            tx.append("a", 1)
            tx.append("b", 2)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        failing()
    assert (log.stream("a").end, log.stream("b").end) == (1, 3)


def test_a_large_transaction_is_staged_and_published_whole(log: eventlog.Log) -> None:
    for name in ("a", "b"):
        log.stream(name, create=True)
    with log.transaction() as tx:
        for number in range(MANY):
            tx.append("ab"[number % 2], {"n": number, "blob": BLOB})
        assert log.stream("a").end == log.stream("b").end == 0
    assert len(tx.offsets["a"]) + len(tx.offsets["b"]) == MANY
    assert [e.value["n"] for e in log.stream("b").read()] == list(range(1, MANY, 2))
    assert log.engine.owners() == []


def test_a_transaction_is_used_once_and_inside_its_block(log: eventlog.Log) -> None:
    log.stream("a", create=True)
    tx = log.transaction()
    with pytest.raises(UsageError, match="not open"):
        tx.append("a", 1)
    with tx:
        tx.append("a", 1)
        with pytest.raises(UsageError, match="cannot share one key"):
            tx.append("a", [1, 2], key=7)
    with pytest.raises(UsageError, match="used once"), tx:
        pass


def test_a_transaction_refuses_unknown_and_captured_streams(
    log: eventlog.Log, shop: MadeSource
) -> None:
    with pytest.raises(UnknownStream), log.transaction() as tx:
        tx.append("nowhere", 1)
    with pytest.raises(UsageError, match="captured"), log.transaction() as tx:
        tx.append("shop", 1)
    with pytest.raises(UsageError, match="captured"):
        shop.stream.append(1)
    with pytest.raises(StreamExists):
        log.stream("shop", create=True)


def test_streams_tell_what_they_hold(log: eventlog.Log) -> None:
    log.stream("quiet", create=True)
    log.stream("clicks", create=True).append_many(range(10))
    clicks, quiet = log.streams()
    assert (clicks.name, clicks.kind, clicks.start, clicks.end) == ("clicks", "events", 0, 10)
    assert clicks.records == 10 and clicks.bytes > 0
    assert (quiet.name, quiet.end, quiet.records, quiet.bytes) == ("quiet", 0, 0, 0)


@pytest.mark.parametrize("name", ["", "Clicks", "7up", "a/b", "a b", "-x", "é", "x" * 201])
def test_a_bad_name_is_refused_with_the_rule(log: eventlog.Log, name: str) -> None:
    for create in (False, True):
        with pytest.raises(UsageError) as caught:
            log.stream(name, create=create)
        assert "a-z" in caught.value.hint


def test_an_unknown_stream_is_refused_with_those_there_are(log: eventlog.Log) -> None:
    log.stream("clicks", create=True)
    with pytest.raises(UnknownStream) as caught:
        log.stream("click")
    assert "clicks" in caught.value.hint


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotALog):
        eventlog.open(tmp_path / "nothing")


def test_opening_twice_shares_and_closing_one_keeps_the_other(tmp_path: Path) -> None:
    one = eventlog.open(tmp_path / "log", create=True)
    two = eventlog.open(tmp_path / "log", create=True)
    stream = one.stream("clicks", create=True)
    two.stream("clicks").append(1)
    assert stream.end == 1
    one.close()
    with pytest.raises(ClosedLog):
        stream.append(2)
    with pytest.raises(ClosedLog):
        list(one.streams())
    assert two.stream("clicks").append(2) == 1
    assert two.check() == []
    two.close()


def test_every_public_name_is_there() -> None:
    assert [name for name in eventlog.__all__ if getattr(eventlog, name, None) is None] == []
    with pytest.raises(AttributeError):
        eventlog.nothing  # noqa: B018
