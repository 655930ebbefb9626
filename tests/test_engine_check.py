"""The integrity check: it names every violated invariant, and a sound log has none."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eventlog.engine import (
    Append,
    Engine,
    IndexEntry,
    Plan,
    SourceUpdate,
    Transactions,
    batch,
    batch_of,
    batches_of,
    check,
    index,
    payload,
    rows,
)
from eventlog.engine.sealed import seal
from eventlog.engine.upkeep import check_stream
from eventlog.engine.upkeep.retain import retain
from tests.golden import make

pytestmark = pytest.mark.usefixtures("apart")

Damage = Callable[[Engine], None]


@pytest.fixture
def sound(log_dir: Path) -> Iterator[Engine]:
    """The golden log: two streams, a consumer, schemas, a source, a staged batch."""
    with make.frozen(), Engine.open(log_dir, create=True) as engine:
        make.write(engine)
        yield engine


def put(engine: Engine, database: str, key: bytes, value: bytes) -> None:
    with engine.store.write() as txn:
        txn.put(key, value, db=getattr(engine.store, database))


def get(engine: Engine, database: str, key: bytes) -> bytes:
    with engine.store.read() as txn:
        return bytes(txn.get(key, db=getattr(engine.store, database)))


def delete(engine: Engine, database: str, key: bytes) -> None:
    with engine.store.write() as txn:
        assert txn.delete(key, db=getattr(engine.store, database))


def flip(engine: Engine, database: str, key: bytes) -> None:
    stored = get(engine, database, key)
    put(engine, database, key, stored[:-1] + bytes([stored[-1] ^ 1]))


def payload_key(payload_id: int, part: int = 0) -> bytes:
    return struct.pack(">QI", payload_id, part)


def change_entry(engine: Engine, stream_id: int, offset: int, /, **changes: Any) -> None:
    """Write an entry again, with other content under a right checksum."""
    key = index.key(stream_id, offset)
    entry = index.unpack(offset, get(engine, "index", key), under=key)
    words = {n: changes.pop(n) for n in list(changes) if n in Transactions.__slots__}
    changed: IndexEntry = replace(
        entry, transactions=replace(entry.transactions, **words), **changes
    )
    put(engine, "index", key, index.pack(changed, under=key))


def change_row(engine: Engine, key: bytes, **changes: Any) -> None:
    with engine.store.write() as txn:
        found = rows.read_map(engine.store, txn, key)
        assert found is not None
        rows.write_map(engine.store, txn, key, {**found, **changes})


def change_sealed(engine: Engine, database: str, key: bytes, value: dict[str, Any]) -> None:
    put(engine, database, key, seal(key, value))


def move_entry(engine: Engine) -> None:
    key, moved = index.key(1, 3), index.key(1, 5)
    entry = index.unpack(3, get(engine, "index", key), under=key)
    delete(engine, "index", key)
    put(engine, "index", moved, index.pack(entry.moved(5, entry.time_running_max), under=moved))


def wrong_times(engine: Engine) -> None:
    key = index.key(1, 2)
    value = get(engine, "index", key)
    value = value[:48] + struct.pack("<q", 7) + value[56:-8]
    put(engine, "index", key, value + struct.pack("<Q", index._checksum(key, value)))


def other_body(engine: Engine) -> None:
    body = payload.encode(2, np.array([1], np.uint32), b"!")
    put(engine, "payload", payload_key(2), body.data)


def descending_boundaries(engine: Engine) -> None:
    ends = np.array([9, 1, 10], np.uint32)
    batch = batch_of(2, [b"x"] * 3, Transactions.one(time_us=make.NOW_US))
    batch = replace(batch, body=payload.encode(2, ends, b"x" * 10))
    engine.commit(Plan(appends=[Append(stream="clicks", batches=[batch])]))


def orphan_payload(engine: Engine) -> None:
    body = payload.encode(2, np.array([1], np.uint32), b"!")
    with engine.store.write() as txn:
        number = rows.take_number(engine.store, txn, "payload")
        txn.put(payload_key(number), body.data, db=engine.store.payload)


SHOP, NOBODY = b"stream/shop", b"stream/nobody"
SCHEMA_0, SCHEMA_1 = struct.pack(">II", 2, 0), struct.pack(">II", 2, 1)
READER = struct.pack(">I", 1) + b"reader"
STAGED = struct.pack(">QQ", 1, 0)
OWNER = b"owner/" + struct.pack(">Q", 1)

DAMAGES: dict[str, tuple[Damage, list[tuple[str, str | None, str]]]] = {
    "an entry is gone": (
        lambda e: delete(e, "index", index.key(1, 2)),
        [
            ("I1", "clicks", r"\[2, 3\) are in no entry"),
            ("payload", None, "no readable entry"),
            ("head", "clicks", "a run of 3 entries of its tail is not at 0"),
        ],
    ),
    "the first entry is gone": (
        lambda e: delete(e, "index", index.key(1, 0)),
        [
            ("I1", "clicks", r"\[0, 2\) are in no entry"),
            ("payload", None, "no readable entry"),
            ("head", "clicks", "a run of 3 entries of its tail is not at 0"),
        ],
    ),
    "the last entry is gone": (
        lambda e: delete(e, "index", index.key(1, 3)),
        [
            ("I1", "clicks", "its last entry ends at 3, not at the end 4"),
            ("I1", "clicks", r"\[3, 4\) are in no entry"),
            ("payload", None, "no readable entry"),
            ("head", "clicks", "a run of 3 entries of its tail is not at 0"),
        ],
    ),
    "an entry stands too high": (
        move_entry,
        [
            ("I1", "clicks", r"\[3, 4\) are in no entry"),
            ("I1", "clicks", "its last entry ends at 6, not at the end 4"),
            ("payload", None, "no readable entry"),
        ],
    ),
    "an entry holds nothing": (
        lambda e: change_entry(e, 1, 3, slots=1, records=0, states=np.ones(1, np.uint8)),
        [
            ("I1", "clicks", "holds no offset"),
            ("I1", "clicks", "its last entry ends at 3, not at the end 4"),
            ("I1", "clicks", r"\[3, 4\) are in no entry"),
        ],
    ),
    "entries overlap": (
        lambda e: change_entry(e, 1, 0, records=3, slots=3),
        [
            ("payload", "clicks", "not the body that the index names"),
            ("I1", "clicks", "begins below the offset 3"),
        ],
    ),
    "an entry is flipped": (
        lambda e: flip(e, "index", index.key(2, 0)),
        [("index", "shop", "checksum"), ("payload", None, "no readable entry")],
    ),
    "records miscounted": (
        lambda e: change_entry(e, 2, 0, records=4),
        [("index", "shop", "4 records in 4 slots, 1 dropped"), ("I1", "shop", "begins below")],
    ),
    "an unknown state": (
        lambda e: change_entry(e, 2, 0, states=np.array([0, 1, 0, 9], np.uint8)),
        [("index", "shop", "state 9")],
    ),
    "transactions out of order": (
        lambda e: change_entry(e, 2, 0, first=np.array([2, 2], np.uint32)),
        [("index", "shop", "do not ascend")],
    ),
    "a transaction beyond the slots": (
        lambda e: change_entry(e, 2, 0, first=np.array([0, 4], np.uint32)),
        [("index", "shop", "below 4 slots")],
    ),
    "times misstated": (wrong_times, [("index", "clicks", "least and greatest")]),
    "the running greatest time falls": (
        lambda e: change_entry(e, 1, 2, time_running_max=make.NOW_US - 5),
        [("index", "clicks", "running greatest time")],
    ),
    "the running greatest time is too great": (
        lambda e: change_entry(e, 1, 0, time_running_max=make.NOW_US + 1),
        [("index", "clicks", f"{make.NOW_US + 1} is not {make.NOW_US}")]
        + 2 * [("index", "clicks", f"{make.NOW_US} is not {make.NOW_US + 1}")],
    ),
    "a transaction loses its records": (
        lambda e: change_entry(e, 2, 3, back=1),
        [("I6", "shop", "after 1 records, but before it are 2")],
    ),
    "a transaction goes on as another": (
        lambda e: change_entry(e, 2, 3, tx=np.array([9], np.uint64)),
        [("I6", "shop", "goes on with transaction 9")],
    ),
    "a stream begins inside a transaction": (
        lambda e: change_entry(e, 1, 0, back=1),
        [("I6", "clicks", "began before the stream")],
    ),
    "positions go back": (
        lambda e: change_entry(e, 2, 0, position=np.array([9, 8], np.uint64)),
        [("I6", "shop", "position 8 comes after 9"), ("I6", "shop", "it goes on with")],
    ),
    "a payload is gone": (
        lambda e: delete(e, "payload", payload_key(1)),
        [("payload", "clicks", "payload 1 is missing")],
    ),
    "a payload is flipped": (
        lambda e: flip(e, "payload", payload_key(5)),
        [("payload", "shop", "checksum is wrong")],
    ),
    "a payload is another": (other_body, [("payload", "clicks", "instead of 45")]),
    "boundaries descend": (descending_boundaries, [("payload", "clicks", "do not ascend")]),
    "a payload of no entry": (orphan_payload, [("payload", None, "no readable entry")]),
    "a part too many": (
        lambda e: put(e, "payload", payload_key(1, 1), b"more"),
        [("payload", None, "part 1 is beyond its end")],
    ),
    "a payload of two entries": (
        lambda e: change_entry(e, 1, 3, payload_id=2),
        [
            ("payload", "clicks", "not the body"),
            ("payload", None, "more than one entry"),
            ("payload", None, "no readable entry"),
        ],
    ),
    "a schema is gone": (
        lambda e: delete(e, "schema", SCHEMA_1),
        [
            ("schema", "shop", "version 1, which is not stored"),
            ("head", "shop", "2 schema versions were stored, 1 rows"),
        ],
    ),
    "schemas are not dense": (
        lambda e: change_sealed(e, "schema", struct.pack(">II", 2, 4), {"offset": 0}),
        [
            ("schema", "shop", "follows version 1"),
            ("head", "shop", "2 schema versions were stored, 3 rows"),
        ],
    ),
    "schema offsets fall": (
        lambda e: change_sealed(e, "schema", struct.pack(">II", 2, 2), {"offset": -1}),
        [
            ("schema", "shop", "below 0"),
            ("schema", "shop", "passes 4"),
            ("head", "shop", "2 schema versions were stored, 3 rows"),
        ],
    ),
    "a schema of another relation": (
        lambda e: change_sealed(e, "schema", SCHEMA_1, {"offset": 0, "relation": 5}),
        [("schema", "shop", "is one of relation 5, not of 16410")],
    ),
    "a schema younger than its records": (
        lambda e: change_sealed(e, "schema", SCHEMA_1, {"offset": 4, "relation": 16410}),
        [("schema", "shop", "younger")],
    ),
    "a schema of no stream": (
        lambda e: change_sealed(e, "schema", struct.pack(">II", 9, 0), {"offset": 0}),
        [("schema", None, "no stream has number 9")],
    ),
    "a schema is flipped": (
        lambda e: flip(e, "schema", SCHEMA_1),
        [
            ("schema", None, "checksum"),
            ("schema", "shop", "which is not stored"),
            ("head", "shop", "2 schema versions were stored, 1 rows"),
        ],
    ),
    "a relation named twice": (
        lambda e: change_entry(e, 2, 0, relations=((16400, 0), (16400, 0))),
        [("schema", "shop", "names a relation twice")],
    ),
    "a consumer beyond the end": (
        lambda e: change_sealed(
            e,
            "consumer",
            READER,
            {"offset": 5, "epoch": 0, "filter": "", "updated_us": 0},
        ),
        [("I2", "clicks", r"offset 5 is outside \[0, 4\]"), ("I2", "clicks", "epoch is 0")],
    ),
    "a consumer of no stream": (
        lambda e: change_sealed(e, "consumer", struct.pack(">I", 9) + b"x", {"offset": 0}),
        [("consumer", None, "no stream has number 9")],
    ),
    "a consumer is flipped": (
        lambda e: flip(e, "consumer", READER),
        [("consumer", None, "checksum"), ("head", "clicks", "1 consumers were made, 0 rows")],
    ),
    "a position behind its changes": (
        lambda e: change_row(e, b"source/shop", position=7),
        [("I4", "shop", "position 7 does not cover")],
    ),
    "a consumer is gone": (
        lambda e: delete(e, "consumer", READER),
        [("head", "clicks", "1 consumers were made, 0 rows")],
    ),
    "a source without state": (
        lambda e: delete(e, "meta", b"source/shop"),
        [("I4", "shop", "position 0 does not cover"), ("I4", "shop", "was stored, and cannot be")],
    ),
    "a source of no stream": (
        lambda e: change_sealed(e, "meta", b"source/gone", {"position": 0}),
        [("I4", None, "stream is not there")],
    ),
    "an owner is gone": (
        lambda e: delete(e, "meta", OWNER),
        [("staging", None, "no such owner")],
    ),
    "an owner of no stream": (
        lambda e: change_row(e, OWNER, stream=9, id=3),
        [("staging", None, "names owner 3"), ("staging", None, "no stream has number 9")],
    ),
    "a staged entry is flipped": (
        lambda e: flip(e, "staging", STAGED),
        [("staging", "shop", "checksum"), ("payload", None, "no readable entry")],
    ),
    "a staged batch is gone": (
        lambda e: delete(e, "staging", STAGED),
        [("staging", None, "staged 1 batches, and 0"), ("payload", None, "no readable entry")],
    ),
    "a staged payload is gone": (
        lambda e: delete(e, "payload", payload_key(6)),
        [("payload", "shop", "payload 6 is missing")],
    ),
    "a stream is gone": (
        lambda e: delete(e, "meta", b"stream/clicks"),
        [
            ("index", None, "stream with no row"),
            ("consumer", None, "no stream has number 1"),
            *3 * [("payload", None, "no readable entry")],
            ("meta", None, "2 streams were made, and the rows of 1"),
        ],
    ),
    "a stream under another name": (
        lambda e: put(e, "meta", NOBODY, seal(NOBODY, {**_row(e), "id": 1, "kind": "events"})),
        [("meta", None, "names stream 'shop'"), ("meta", None, "also that of stream 'clicks'")],
    ),
    "counters fell": (
        lambda e: change_row(e, b"counters", stream=2, payload=6, owner=1),
        [
            ("counters", None, "number 2 was never given"),
            ("counters", None, "number 1 was never given"),
            ("counters", None, "number 6 was never given"),
            ("counters", None, "above the counter"),
        ],
    ),
    "the counters are gone": (
        lambda e: delete(e, "meta", b"counters"),
        [("counters", None, "it is not there")],
    ),
    "the head ends too early": (
        lambda e: change_row(e, b"stream/clicks", end=3, tail=[]),
        [
            ("I1", "clicks", "its last entry ends at 4, not at the end 3"),
            ("payload", None, "no readable entry"),
        ],
    ),
    "the head begins after its end": (
        lambda e: change_row(e, b"stream/clicks", start=5, tail=[]),
        [
            ("I1", "clicks", "begins at 5 and ends at 4"),
            ("I1", "clicks", "begins below the offset 5"),
        ],
    ),
    "the head's time is another": (
        lambda e: change_row(e, b"stream/clicks", time_running_max=7),
        [("I1", "clicks", "its running greatest time 7")],
    ),
    "a tail ends too early": (
        lambda e: change_row(e, b"stream/clicks", tail=[[0, 0, 1, 1, 9]]),
        [("head", "clicks", "the runs of its tail end at 2, not at its end")],
    ),
    "counters flipped": (
        lambda e: flip(e, "meta", b"counters"),
        [("meta", None, "checksum")],
    ),
    "another format": (
        lambda e: change_row(e, b"format", number=2, must_know=["x"]),
        [("format", None, "number 2 is not 1"), ("format", None, "unknown here")],
    ),
    "the format is flipped": (
        lambda e: flip(e, "meta", b"format"),
        [("format", None, "checksum")],
    ),
    "no identity": (
        lambda e: delete(e, "meta", b"log"),
        [("meta", None, "no identity")],
    ),
    "a key that no version writes": (
        lambda e: change_sealed(e, "schema", b"odd", {"offset": 0}),
        [("store", None, "unpack")],
    ),
}


def _row(engine: Engine) -> dict[str, Any]:
    with engine.store.read() as txn:
        found = rows.read_map(engine.store, txn, SHOP)
    assert found is not None
    return found


@pytest.mark.parametrize("name", DAMAGES)
def test_every_violated_invariant_is_named(sound: Engine, name: str) -> None:
    damage, expected = DAMAGES[name]
    assert check(sound) == []
    damage(sound)
    found = check(sound)
    missing = list(found)
    for invariant, stream, what in expected:
        hit = next(
            (
                v
                for v in missing
                if (v.invariant, v.stream) == (invariant, stream) and re.search(what, str(v))
            ),
            None,
        )
        assert hit is not None, (invariant, stream, what, [str(v) for v in found])
        missing.remove(hit)
    assert missing == [], [str(v) for v in missing]


def test_a_body_inside_its_entry_that_is_another_is_found(
    log_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "INLINE_BYTES_MAX", 1024)
    with make.frozen(), Engine.open(log_dir, create=True) as engine:
        make.write(engine)
        assert check(engine) == []
        other = payload.encode(2, np.array([1], np.uint32), b"!")
        change_entry(engine, 1, 2, more={index.BODY: other.data}, body_bytes=len(other.data))
        (found,) = check(engine)
        assert (found.invariant, found.stream) == ("payload", "clicks")
        assert "not the body that the index names" in found.what


def test_one_damage_hides_no_other(sound: Engine) -> None:
    flip(sound, "index", index.key(1, 0))
    flip(sound, "payload", payload_key(5))
    flip(sound, "consumer", READER)
    delete(sound, "meta", OWNER)
    names = [violation.invariant for violation in check(sound)]
    assert sorted(names) == ["consumer", "head", "index", "payload", "payload", "staging"]


def test_progress_counts_records_up_to_all_of_them(sound: Engine) -> None:
    seen: list[tuple[int, int]] = []
    assert check(sound, progress=lambda done, total: seen.append((done, total))) == []
    assert [done for done, _ in seen] == [2, 3, 4, 7, 8]
    assert {total for _, total in seen} == {8}


def test_a_violation_reads_as_a_line(sound: Engine) -> None:
    flip(sound, "payload", payload_key(5))
    delete(sound, "meta", b"log")
    first, second = sorted(map(str, check(sound)))
    assert first == "meta: row b'log': the log has no identity"
    assert second.startswith("payload: stream 'shop', offsets [3, 4): payload 5 of stream 'shop'")


@pytest.mark.parametrize("read_entries", [1, 3, 8, 11])
def test_a_check_beside_a_captured_stream_that_merges_raises_no_alarm(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, read_entries: int
) -> None:
    engine.create_stream("shop", "captured")
    shop = engine.writer("shop")
    position = 0

    def capture(transactions: int) -> None:
        nonlocal position
        for _ in range(transactions):
            position += 10
            words = Transactions.one(time_us=position, tx=position, position=position)
            state = {"position": position}
            source = SourceUpdate(stream="shop", writer_epoch=shop.epoch, state=state)
            append = Append(stream="shop", batches=[batch_of(3, [b"row"], words)])
            engine.commit(Plan(appends=[append], sources=[source]))

    def entries() -> int:
        return len(list(engine.scan("shop", *engine.bounds("shop"), lambda entry: False)))

    capture(12)
    assert entries() == 12
    monkeypatch.setattr(check_stream, "READ_ENTRIES", read_entries)
    merged = 0

    def progress(done: int, total: int) -> None:
        nonlocal merged
        if not merged:
            capture(10)  # The walk has read some of what is now one entry.
            merged = entries()

    assert check(engine, progress=progress) == []
    assert 0 < merged < 12 and check(engine) == []
    shop.close()


@pytest.mark.parametrize("when", [0, 1, 3])
@pytest.mark.parametrize("below", [2, 5, 9, 10])
def test_a_check_beside_retention_raises_no_alarm(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, when: int, below: int
) -> None:
    for name in ("first", "s"):
        engine.create_stream(name, "events")
    for name, count in (("first", 1), ("s", 10)):
        for _ in range(count):
            append = Append(stream=name, batches=list(batches_of(2, [b"x"], time_us=1)))
            engine.commit(Plan(appends=[append]))
    monkeypatch.setattr(check_stream, "READ_ENTRIES", 2)

    def progress(done: int, total: int) -> None:
        if done == 1 + when:  # Of the other stream, and of this one.
            assert retain(engine.store, "s", below=below).start == below

    assert check(engine, progress=progress) == []
    assert engine.bounds("s") == (below, 10) and check(engine) == []


WRITER = """
import sys
from pathlib import Path
from eventlog.engine import *
with Engine.open(Path(sys.argv[1])) as engine:
    engine.create_stream("s", "events")
    print("ready", flush=True)
    number = 0
    while True:
        batches = list(batches_of(2, [b"x" * 300_000, b"y"], time_us=number))
        owner = engine.appender("s")
        engine.stage(owner, batches)
        if number % 3:
            more = list(batches_of(2, [b"more"], time_us=0))
            engine.commit(Plan(appends=[Append(stream="s", staged=owner.id, batches=more)]))
        owner.close()
        row = engine.consumer("s", "c", start=0)
        end = engine.bounds("s")[1]
        engine.commit(Plan(advances=[Advance(stream="s", consumer="c", offset=end,
            expected_offset=row.offset, expected_epoch=row.epoch)]))
        number += 1
"""


def test_a_check_beside_writers_reports_nothing_that_is_not_so(engine: Engine) -> None:
    engine.create_stream("s", "events")
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(engine.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        stop = threading.Event()

        def append() -> None:
            while not stop.is_set():
                batches = list(batches_of(2, [b"z"] * 5, time_us=1))
                engine.commit(Plan(appends=[Append(stream="s", batches=batches)]))

        thread = threading.Thread(target=append)
        thread.start()
        try:
            while engine.bounds("s")[1] < 1000:
                assert check(engine) == []
        finally:
            stop.set()
            thread.join()
        assert child.poll() is None, "it wrote all the while"
    finally:
        child.kill()
        child.communicate()
