"""Ranges and their edges, times, transactions, and what becomes of a handle."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from eventlog.engine import Append, Engine, Plan, Transactions, batch_of, index, rows, scan
from eventlog.engine.payload import PART_BYTES
from eventlog.errors import (
    ClosedLog,
    DamagedLog,
    ForkedLog,
    OffsetOutOfRange,
    OffsetsDropped,
    StreamExists,
    UnknownStream,
)


def append(engine: Engine, stream: str, *records: bytes, time_us: int = 0) -> range:
    batch = batch_of(2, list(records), Transactions.one(time_us=time_us))
    return engine.commit(Plan(appends=[Append(stream=stream, batches=[batch])])).offsets[0]


def read(engine: Engine, stream: str, start: int, stop: int) -> list[bytes]:
    found: list[bytes] = []
    for stretch in engine.scan(stream, start, stop, lambda entry: True):
        assert stretch.payload is not None
        slots, _ = stretch.readable_slots()
        found += stretch.payload.records(slots)
    return found


@pytest.fixture
def clicks(engine: Engine) -> Engine:
    """Offsets 0 to 9 in entries of 3, 1 and 6 records."""
    engine.create_stream("clicks", "events")
    for stretch in (range(3), range(3, 4), range(4, 10)):
        append(engine, "clicks", *[b"%d" % offset for offset in stretch])
    return engine


def test_every_range_holds_its_own_offsets(clicks: Engine) -> None:
    for start in range(11):
        for stop in range(start, 11):
            assert clicks.checked_range("clicks", start, stop) == (start, stop)
            assert read(clicks, "clicks", start, stop) == [b"%d" % o for o in range(start, stop)]
    assert clicks.checked_range("clicks", None, None) == (0, 10)


@pytest.mark.parametrize(("start", "stop"), [(11, None), (-1, None), (None, 11), (5, 4), (0, -1)])
def test_what_is_no_range_of_the_stream_is_refused(
    clicks: Engine, start: int | None, stop: int | None
) -> None:
    with pytest.raises(OffsetOutOfRange) as error:
        clicks.checked_range("clicks", start, stop)
    assert error.value.hint == "its valid range is [0, 10], from `begin` to `end`"


def test_an_empty_stream_has_its_one_range(engine: Engine) -> None:
    engine.create_stream("clicks", "events")
    assert engine.checked_range("clicks", None, None) == (0, 0)
    assert read(engine, "clicks", 0, 0) == []
    assert engine.offset_at("clicks", 5) == 0
    assert engine.transaction_start("clicks", 0) == 0
    with pytest.raises(OffsetOutOfRange):
        engine.checked_range("clicks", 0, 1)
    with pytest.raises(OffsetOutOfRange):
        engine.transaction_time("clicks", 0)


def test_dropped_offsets_are_told_apart_from_wrong_ones(fragile: Engine) -> None:
    fragile.create_stream("clicks", "events")
    append(fragile, "clicks", *[b"x"] * 8)
    append(fragile, "clicks", b"y")
    with fragile.store.write() as txn:
        rows.write_stream(fragile.store, txn, replace(fragile.stream("clicks"), start=8))
        txn.delete(index.key(1, 0), db=fragile.store.index)
    assert fragile.checked_range("clicks", None, None) == (8, 9)
    with pytest.raises(OffsetsDropped, match=r"offset 7 .* the first retained one is 8"):
        fragile.checked_range("clicks", 7, 9)
    with pytest.raises(OffsetOutOfRange):
        fragile.checked_range("clicks", -1, 9)


def test_an_unknown_stream_names_those_there_are(clicks: Engine) -> None:
    with pytest.raises(UnknownStream, match="'click'") as error:
        clicks.bounds("click")
    assert error.value.hint.endswith("clicks")
    with pytest.raises(StreamExists, match="of kind 'events', not 'captured'"):
        clicks.create_stream("clicks", "captured")
    assert clicks.create_stream("clicks", "events").id == 1


def test_payloads_that_are_not_wanted_are_not_read(clicks: Engine) -> None:
    found = list(clicks.scan("clicks", 0, 10, lambda entry: entry.records == 1))
    assert [s.payload is None for s in found] == [True, False, True]


def test_a_walk_goes_on_across_read_transactions(
    clicks: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "READ_ENTRIES", 1)
    walk = clicks.scan("clicks", 2, 10, lambda entry: True)
    assert next(walk).entry.stop == 3
    append(clicks, "clicks", b"later")
    assert [stretch.entry.stop for stretch in walk] == [4, 10]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=8),
    asked=st.integers(-1, 10),
)
def test_offset_at_is_the_first_offset_that_reached_the_time(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], asked: int
) -> None:
    with Engine.open(tmp_path_factory.mktemp("log"), create=True) as engine:
        engine.create_stream("s", "events")
        plan = Plan(appends=[Append(stream="s", batches=[_timed(part) for part in batches])])
        engine.commit(plan)
        times = [time for part in batches for time in part]
        found = engine.offset_at("s", asked)
        assert found == next((o for o, time in enumerate(times) if time >= asked), len(times))
        assert [engine.transaction_time("s", o) for o in range(len(times))] == times


def _timed(times: list[int]) -> Any:
    count = len(times)
    words = Transactions(
        first=np.arange(count, dtype=np.uint32),
        time=np.array(times, np.int64),
        tx=np.zeros(count, np.uint64),
        position=np.zeros(count, np.uint64),
    )
    return batch_of(2, [b"."] * count, words)


def test_a_transaction_begins_where_its_first_batch_did(engine: Engine) -> None:
    engine.create_stream("s", "events")
    first = Transactions.one(time_us=5, tx=7)
    batches = [
        batch_of(2, [b"a"], Transactions.one(time_us=4, tx=6)),
        batch_of(2, [b"b", b"c"], first),
        batch_of(2, [b"d", b"e", b"f"], replace(first, back=2)),
        batch_of(2, [b"g"], replace(first, back=5)),
        batch_of(2, [b"h", b"i"], Transactions.one(time_us=6)),
    ]
    engine.commit(Plan(appends=[Append(stream="s", batches=batches)]))
    found = [engine.transaction_start("s", offset) for offset in range(10)]
    assert found == [0, 1, 1, 1, 1, 1, 1, 7, 8, 9], "events belong to no transaction"


# Damage


def spoil(engine: Engine, payload_id: int, part: int = 0) -> None:
    key = payload_id.to_bytes(8, "big") + part.to_bytes(4, "big")
    with engine.store.write() as txn:
        stored = txn.get(key, db=engine.store.payload)
        txn.put(key, stored[:-1] + bytes([stored[-1] ^ 1]), db=engine.store.payload)


@pytest.mark.usefixtures("apart")
def test_a_damaged_payload_is_named_and_the_rest_is_read(fragile: Engine) -> None:
    fragile.create_stream("clicks", "events")
    for record in (b"a", b"b", b"c"):
        append(fragile, "clicks", record, record)
    spoil(fragile, 2)
    with pytest.raises(
        DamagedLog, match=r"payload 2 of stream 'clicks', offsets \[2, 4\)"
    ) as error:
        read(fragile, "clicks", 0, 6)
    assert "records outside it can still be read" in error.value.hint
    assert read(fragile, "clicks", 0, 2) + read(fragile, "clicks", 4, 6) == [b"a"] * 2 + [b"c"] * 2
    assert append(fragile, "clicks", b"d") == range(6, 7)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_of_a_large_payload_that_is_damaged_or_missing_is_noticed(
    fragile: Engine, part: int
) -> None:
    fragile.create_stream("clicks", "events")
    for _ in range(2):
        append(fragile, "clicks", b"x" * (2 * PART_BYTES + 5))
    spoil(fragile, 1, part)
    with fragile.store.write() as txn:
        key = (2).to_bytes(8, "big") + part.to_bytes(4, "big")
        assert txn.delete(key, db=fragile.store.payload)
    for start in (0, 1):
        with pytest.raises(DamagedLog):
            read(fragile, "clicks", start, start + 1)


@pytest.mark.parametrize("lost", [0, 3, 4])
def test_a_lost_index_entry_is_no_silent_gap(fragile: Engine, lost: int) -> None:
    fragile.create_stream("clicks", "events")
    for count in (3, 1, 2, 1):
        append(fragile, "clicks", *[b"x"] * count)
    with fragile.store.write() as txn:
        assert txn.delete(index.key(1, lost), db=fragile.store.index)
    with pytest.raises(DamagedLog, match="no index entry of stream 'clicks'"):
        read(fragile, "clicks", 0, 7)
    with pytest.raises(DamagedLog, match=rf"covers offsets \[{lost}, {lost + 1}\)"):
        read(fragile, "clicks", lost, lost + 1)
    assert len(read(fragile, "clicks", 6, 7)) == 1


def test_a_data_file_that_was_cut_is_damage_and_kills_no_process(log_dir: Path) -> None:
    with Engine.open(log_dir, create=True) as engine:
        engine.create_stream("clicks", "events")
        for _ in range(20):
            append(engine, "clicks", b"x" * 5000)
    data = log_dir / "data.mdb"
    whole = data.read_bytes()
    program = (
        "import sys; from pathlib import Path; from eventlog.engine import Engine, check\n"
        "from eventlog.errors import DamagedLog, NotALog\n"
        "try:\n"
        "    with Engine.open(Path(sys.argv[1])) as engine:\n"
        "        print('damaged' if check(engine) else 'sound')\n"
        "except (DamagedLog, NotALog): print('damaged')\n"
    )
    for pages in (1, 2, 3, 5, 10, 30):
        data.write_bytes(whole[: pages * 4096])
        done = subprocess.run(
            [sys.executable, "-c", program, str(log_dir)], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout.strip()) == (0, "damaged"), (pages, done)


# Handles


def test_a_closed_log_says_so(clicks: Engine) -> None:
    walk = clicks.scan("clicks", 0, 10, lambda entry: True)
    owner = clicks.appender("clicks")
    owner.close()
    clicks.close()
    clicks.close()
    for use in (
        clicks.streams,
        lambda: append(clicks, "clicks", b""),
        lambda: clicks.wait(0, timeout_s=0),
        lambda: next(walk),
        owner.discard,
    ):
        with pytest.raises(ClosedLog, match="was closed") as error:
            use()
        assert "eventlog.open" in error.value.hint


def test_opening_twice_in_a_process_shares_the_log(clicks: Engine) -> None:
    again = Engine.open(clicks.path / ".." / clicks.path.name)
    assert again.store is clicks.store
    append(again, "clicks", b"more")
    assert clicks.bounds("clicks") == (0, 11)
    again.close()
    assert clicks.bounds("clicks") == (0, 11)
    with pytest.raises(ClosedLog):
        again.bounds("clicks")


def forked(work: Any) -> list[str]:
    """Run `work` in a forked child; returns the classes of the errors of its calls."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        names = []
        for use in work:
            try:
                use()
                names.append("nothing")
            except BaseException as error:
                names.append(f"{type(error).__name__} {getattr(error, 'hint', '')}")
        os.write(writer, "\n".join(names).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read().split("\n")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused_and_its_parent_goes_on(clicks: Engine) -> None:
    uses = [
        clicks.streams,
        lambda: append(clicks, "clicks", b"x"),
        lambda: Engine.open(clicks.path),
        clicks.close,
    ]
    *refused, closed = forked(uses)
    assert all(text.startswith(ForkedLog.__name__) and "spawn" in text for text in refused)
    assert closed == "nothing"
    assert append(clicks, "clicks", b"y") == range(10, 11)


def _end_in_child(path: Path) -> tuple[int, int]:
    with Engine.open(path) as engine:
        append(engine, "clicks", b"child")
        return engine.bounds("clicks")


def test_a_spawned_child_opens_the_log_anew(clicks: Engine) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_end_in_child, (clicks.path,)) == (0, 11)
    assert read(clicks, "clicks", 10, 11) == [b"child"]


def test_waiting_ends_with_the_next_commit_or_in_time(clicks: Engine) -> None:
    seen = clicks.wait(0, timeout_s=0)
    assert clicks.wait(seen, timeout_s=0.01) == seen
    append(clicks, "clicks", b"x")
    assert clicks.wait(seen, timeout_s=60) == seen + 1


def test_a_tree_that_hands_out_other_entries_ends_a_search_and_a_walk(
    clicks: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged page may lead anywhere: neither may go round for ever."""
    real = scan.entry_before

    def elsewhere(store: Any, txn: Any, stream_id: int, offset: int) -> Any:
        return real(store, txn, stream_id, 9)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "entry_before", elsewhere)
        with pytest.raises(DamagedLog, match="no index entry of stream 'clicks' covers"):
            clicks.offset_at("clicks", 0)
    walk = scan._walk

    def disordered(*arguments: Any) -> Any:
        found = list(walk(*arguments))
        return iter([*found, *found])

    with monkeypatch.context() as patch:
        patch.setattr(scan, "_walk", disordered)
        patch.setattr(scan, "READ_ENTRIES", 4)
        assert read(clicks, "clicks", 0, 10) == [b"%d" % offset for offset in range(10)]
