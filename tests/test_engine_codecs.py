"""Bodies, index entries and sealed maps: read back as written, or refused; never a wrong value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.engine import IndexEntry, Transactions, batch_of, batches_of, index, payload, sealed
from eventlog.engine.batch import BATCH_BYTES
from eventlog.errors import DamagedLog, LogVersionError

BODY = batch_of(2, [b"one", b"", b"three"], Transactions.one(time_us=1)).body
KEY = index.key(7, 40)


def entry(**changes: Any) -> IndexEntry:
    made = IndexEntry(
        first_offset=40,
        payload_id=9,
        payload_checksum=2**64 - 1,
        body_bytes=1000,
        slots=5,
        records=4,
        time_running_max=99,
        relations=((16400, 0), (16410, 3)),
        transactions=Transactions(
            first=np.array([0, 2], np.uint32),
            time=np.array([50, -7], np.int64),
            tx=np.array([1, 2], np.uint64),
            position=np.array([2**63, 2**64 - 1], np.uint64),
            back=3,
        ),
        states=np.array([0, 1, 0, 2, 3], np.uint8),
        erasure_epoch=6,
        more={"later": [1, "x"]},
    )
    return replace(made, **changes)


def plain(found: IndexEntry) -> dict[str, Any]:
    """An entry as values that compare."""
    fields = {name: getattr(found, name) for name in IndexEntry.__slots__}
    transactions = fields.pop("transactions")
    words = {name: getattr(transactions, name) for name in Transactions.__slots__}
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in {**fields, **words}.items()
    }


def flipped(stored: bytes) -> list[bytes]:
    """Each bit of the bytes changed, one at a time."""
    return [
        stored[:at] + bytes([stored[at] ^ 1 << bit]) + stored[at + 1 :]
        for at in range(len(stored))
        for bit in range(8)
    ]


# Bodies


@given(codec=st.integers(0, 65535), records=st.lists(st.binary(max_size=40), max_size=30))
def test_a_body_reads_back_as_written(codec: int, records: list[bytes]) -> None:
    ends = np.cumsum([len(record) for record in records]).astype(np.uint32)
    body = payload.encode(codec, ends, b"".join(records))
    found = payload.decode(body.data, where="it")
    assert found.codec == codec and found.records(range(len(records))) == records
    assert (body.count, body.checksum) == (len(records), payload.stored_checksum(body.data))


@pytest.mark.parametrize("cut", range(len(BODY.data)))
def test_a_body_cut_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(DamagedLog, match=r"^it is damaged: it has"):
        payload.decode(BODY.data[:cut], where="it")


def test_a_body_with_a_byte_too_many_is_refused() -> None:
    with pytest.raises(DamagedLog):
        payload.decode(BODY.data + b"\0", where="it")


def test_a_body_with_any_bit_flipped_is_refused() -> None:
    for damaged in flipped(BODY.data):
        with pytest.raises(DamagedLog) as error:
            payload.decode(damaged, where="it")
        assert error.value.hint


@pytest.mark.parametrize(
    ("at", "what"), [(4, "version 7 and compression 0"), (5, "version 1 and compression 7")]
)
def test_a_body_of_a_later_version_is_refused_as_such(at: int, what: str) -> None:
    data = bytearray(BODY.data)
    data[at] = 7
    data[32:40] = xxhash.xxh3_64_intdigest(bytes(data[:32] + data[40:])).to_bytes(8, "little")
    with pytest.raises(LogVersionError, match=what):
        payload.decode(bytes(data), where="it")


@pytest.mark.parametrize(
    ("ends", "data"), [([], b"surplus"), ([3], b"four"), ([5], b"four"), ([3, 2], b"x" * 5)]
)
def test_boundaries_that_contradict_the_length_are_refused(ends: list[int], data: bytes) -> None:
    body = payload.encode(2, np.array(ends, np.uint32), data)
    with pytest.raises(DamagedLog, match="boundaries"):
        payload.decode(body.data, where="it")


@pytest.mark.parametrize("size", [payload.PART_BYTES + more for more in (-1, 0, 1)])
def test_parts_hold_the_body_in_one_size_class(size: int) -> None:
    body = payload.encode(2, np.array([size - 44], np.uint32), b"x" * (size - 44))
    parts = list(body.parts())
    assert b"".join(parts) == body.data and len(parts) == payload.part_count(size)
    assert all(len(part) == payload.PART_BYTES for part in parts[:-1])
    assert payload.fits_one_part(records=1, records_bytes=size - 44) == (len(parts) == 1)


def test_a_body_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "BODY_BYTES_MAX", 100)
    payload.encode(2, np.array([96], np.uint32), b"x" * 96)
    with pytest.raises(ValueError, match="passes the limit"):
        payload.encode(2, np.array([97], np.uint32), b"x" * 97)


@given(st.lists(st.integers(0, BATCH_BYTES + 9), max_size=6))
@settings(deadline=None)
def test_batches_are_full_or_alone_and_say_what_lies_before(sizes: list[int]) -> None:
    records = [bytes([i]) * size for i, size in enumerate(sizes)]
    batches = list(batches_of(2, records, time_us=5))
    found: list[bytes] = []
    for batch in batches:
        assert batch.transactions.back == len(found)
        assert batch.body.count == 1 or len(batch.body.data) <= payload.PART_BYTES
        found += payload.decode(batch.body.data, where="it").records(range(batch.body.count))
    assert found == records


# Index entries

numbers = st.integers(0, 2**64 - 1)
times = st.integers(-(2**63), 2**63 - 1)


@st.composite
def entries(draw: st.DrawFn) -> IndexEntry:
    count = draw(st.integers(1, 5))
    states = draw(st.none() | st.lists(st.integers(0, 3), min_size=count, max_size=count + 5))
    words = st.lists(numbers, min_size=count, max_size=count)
    transactions = Transactions(
        first=np.arange(count, dtype=np.uint32),
        time=np.array(draw(st.lists(times, min_size=count, max_size=count)), np.int64),
        tx=np.array(draw(words), np.uint64),
        position=np.array(draw(words), np.uint64),
        back=draw(numbers),
    )
    u32 = st.integers(0, 2**32 - 1)
    return entry(
        payload_id=draw(numbers),
        slots=draw(u32) if states is None else len(states),
        records=draw(u32),
        relations=tuple(draw(st.lists(st.tuples(u32, u32), max_size=4))),
        transactions=transactions,
        states=None if states is None else np.array(states, np.uint8),
        more=draw(st.dictionaries(st.text(max_size=5), times | st.text(max_size=9), max_size=3)),
    )


@given(entries())
def test_an_entry_reads_back_as_written(written: IndexEntry) -> None:
    stored = index.pack(written, under=KEY)
    assert plain(index.unpack(40, stored, under=KEY)) == plain(written)
    assert index.stored_times(stored) == (written.time_min, written.time_max)


STORED = index.pack(entry(), under=KEY)


@pytest.mark.parametrize("cut", range(len(STORED)))
def test_an_entry_cut_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(DamagedLog):
        index.unpack(40, STORED[:cut], under=KEY)


def test_an_entry_with_a_byte_too_many_is_refused() -> None:
    with pytest.raises(DamagedLog):
        index.unpack(40, STORED + b"\0", under=KEY)


def test_an_entry_with_any_bit_flipped_is_refused() -> None:
    for damaged in flipped(STORED):
        with pytest.raises(DamagedLog):
            index.unpack(40, damaged, under=KEY)


def test_an_entry_under_another_key_is_refused() -> None:
    with pytest.raises(DamagedLog, match="checksum"):
        index.unpack(40, STORED, under=index.key(7, 41))


def resealed(stored: bytes) -> bytes:
    checksum = xxhash.xxh3_64_intdigest(KEY + stored[:-8])
    return stored[:-8] + checksum.to_bytes(8, "little")


def test_an_entry_of_a_later_version_is_refused_as_such() -> None:
    with pytest.raises(LogVersionError, match="version 2"):
        index.unpack(40, resealed(STORED[:4] + b"\2" + STORED[5:]), under=KEY)


def test_an_entry_with_unknown_flags_is_refused_and_not_misread() -> None:
    with pytest.raises(LogVersionError, match="flags 0x9, of which 0x8 are unknown"):
        index.unpack(40, resealed(STORED[:5] + b"\x09" + STORED[6:]), under=KEY)


@pytest.mark.parametrize("at", [5, 6, 32, 44, len(STORED) - 23])
def test_counts_that_contradict_the_length_are_refused(at: int) -> None:
    for count in (0, 1, 2 if at == 5 else 200):
        damaged = STORED[:at] + bytes([count]) + STORED[at + 1 :]
        if damaged != STORED:
            with pytest.raises(DamagedLog, match="counts"):
                index.unpack(40, resealed(damaged), under=KEY)


def test_slots_map_to_offsets_past_dropped_ones() -> None:
    made = entry()
    assert made.slot_offsets().tolist() == [40, 41, 41, 42, 43]
    assert made.readable_slots(0, 99) == ([0, 2], [40, 41])
    assert made.readable_slots(41, 42) == ([2], [41])
    assert made.readable_slots(42, 99) == ([], []), "erased and compacted slots have no record"
    assert made.slot_transactions().tolist() == [0, 0, 1, 1, 1]
    whole = entry(states=None, records=5)
    assert whole.readable_slots(0, 42) == (range(2), range(40, 42))
    assert whole.readable_slots(44, 99) == (range(4, 5), range(44, 45))
    assert whole.readable_slots(50, 99) == (range(0), range(0))


# Sealed maps

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.binary(min_size=1, max_size=20), st.dictionaries(st.text(max_size=9), values))
def test_a_sealed_map_reads_back_under_its_key_alone(key: bytes, value: dict[str, Any]) -> None:
    stored = sealed.seal(key, value)
    assert sealed.unseal(key, stored) == value
    with pytest.raises(DamagedLog):
        sealed.unseal(key + b"x", stored)


SEALED = sealed.seal(b"key", {"offset": 7, "later": {"a": [1]}})


@pytest.mark.parametrize("cut", range(len(SEALED)))
def test_a_sealed_map_cut_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(DamagedLog):
        sealed.unseal(b"key", SEALED[:cut])


def test_a_sealed_map_with_a_byte_too_many_or_a_bit_flipped_is_refused() -> None:
    for damaged in [SEALED + b"\0", *flipped(SEALED)]:
        with pytest.raises(DamagedLog) as error:
            sealed.unseal(b"key", damaged)
        assert error.value.hint


def test_a_sealed_map_of_a_later_version_is_refused_as_such() -> None:
    packed = SEALED[11:]
    checksum = xxhash.xxh3_64_digest(b"key" + b"EV\2" + packed)
    with pytest.raises(LogVersionError, match="version 2"):
        sealed.unseal(b"key", b"EV\2" + checksum + packed)


def test_a_sealed_value_that_is_no_map_is_refused() -> None:
    checksum = xxhash.xxh3_64_digest(b"key" + b"EV\1" + b"\x90")
    with pytest.raises(DamagedLog, match="no map"):
        sealed.unseal(b"key", b"EV\1" + checksum + b"\x90")
