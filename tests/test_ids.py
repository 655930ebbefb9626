"""Ids of events: the same id again stores nothing, in whatever process, within the window."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from eventlog import outbox
from eventlog.engine import ids as engine_ids
from eventlog.errors import DamagedLog, UsageError
from eventlog.outbox import IDS_BYTES_MAX
from tests.fix_postgres import RunCli, assert_explained


@pytest.fixture
def clicks(log: eventlog.Log) -> eventlog.Stream:
    return log.stream("clicks", create=True)


def test_the_same_id_has_the_same_offset_and_stores_nothing(clicks: eventlog.Stream) -> None:
    assert clicks.append("a", id="req-1") == 0
    assert clicks.append("b", id="req-2") == 1
    assert clicks.append("other", id="req-1") == 0
    assert clicks.append("without") == 2
    assert clicks.append("c", key=7, id=3) == 3
    assert clicks.append("c", id="3") == 3, "a number is its decimal form"
    assert [event.value for event in clicks.read()] == ["a", "b", "without", "c"]


def test_ids_are_those_of_their_stream(log: eventlog.Log) -> None:
    for name in ("a", "b"):
        log.stream(name, create=True).append("filler")
        assert log.stream(name).append(name, id="x") == 1


def test_many_at_once_may_hold_known_ones_and_repeat_themselves(clicks: eventlog.Stream) -> None:
    clicks.append("a", id="a")
    offsets = clicks.append_many(["a", "b", "c", "b", "d", "e"], ids=["a", "b", None, "b", "d", 5])
    assert offsets == [0, 1, 2, 1, 3, 4]
    assert [event.value for event in clicks.read()] == ["a", "b", "c", "d", "e"]
    assert clicks.append_many(["x", "y"], ids=["d", "b"]) == [3, 1]
    assert clicks.end == 5
    assert clicks.append_many([], ids=[]) == []


def test_a_transaction_knows_ids_too(log: eventlog.Log, clicks: eventlog.Stream) -> None:
    other = log.stream("other", create=True)
    clicks.append("a", id="a")
    with log.transaction() as tx:
        tx.append("clicks", "again", id="a")
        tx.append("clicks", ["b", "c"], ids=["b", None])
        tx.append("other", 1)
    assert tx.offsets == {"clicks": [0, 1, 2], "other": range(1)}
    with log.transaction() as tx:
        tx.append("clicks", "again", id="b")
    assert tx.offsets == {"clicks": [1]} and (clicks.end, other.end) == (3, 1)


def test_a_failed_transaction_remembers_no_id(log: eventlog.Log, clicks: eventlog.Stream) -> None:
    tx = log.transaction()
    with tx:
        tx.append("clicks", "b", id="b")
    with pytest.raises(TypeError), log.transaction() as tx:
        tx.append("clicks", ["a", object()], ids=["a", "c"])
    assert clicks.append("a", id="a") == 1
    assert clicks.end == 2


APPENDS = """
import sys
import eventlog
with eventlog.open(sys.argv[1]) as log:
    clicks = log.stream("clicks")
    print(*(clicks.append({"by": sys.argv[2], "n": n}, id=f"req-{n}") for n in range(200)))
"""


def test_processes_that_send_the_same_ids_store_each_once(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", APPENDS, str(log.path), name], stdout=subprocess.PIPE, text=True
        )
        for name in "abc"
    ]
    outputs = [child.communicate(timeout=120)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert outputs[0] == outputs[1] == outputs[2]
    assert [event.value["n"] for event in clicks.read()] == list(range(200))
    log.close()
    with eventlog.open(log.path) as again:
        assert again.stream("clicks").append("x", id="req-150") == int(outputs[0][150])


def test_threads_that_share_a_commit_find_each_others_ids(clicks: eventlog.Stream) -> None:
    found: list[list[int]] = []

    def send() -> None:
        found.append([clicks.append(n, id=f"{n}") for n in range(100)])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(offsets == found[0] for offsets in found)
    assert [event.value for event in clicks.read()] == list(range(100))


def test_beyond_the_window_an_id_is_new_again(
    clicks: eventlog.Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_ids, "IDS_KEPT", 10)
    for number in range(30):
        clicks.append(number, id=number)
    assert clicks.append("known", id=20) == 20
    assert clicks.append("forgotten", id=19) == 30
    assert clicks.append("its turn to be forgotten", id=20) == 31
    with clicks._engine.store.read() as txn:
        assert txn.stat(db=clicks._engine.store.ids)["entries"] == 21, "and where the ids begin"


@given(sent=st.lists(st.lists(st.integers(0, 12) | st.none(), max_size=8), max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_order_of_ids_equals_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, sent: list[list[int | None]]
) -> None:
    with eventlog.open(tmp_path_factory.mktemp("log") / "log", create=True) as log:
        clicks = log.stream("clicks", create=True)
        known: dict[int, int] = {}
        stored: list[int | None] = []
        for ids in sent:
            expected = []
            for event_id in ids:
                if event_id is None or event_id not in known:
                    if event_id is not None:
                        known[event_id] = len(stored)
                    expected.append(len(stored))
                    stored.append(event_id)
                else:
                    expected.append(known[event_id])
            assert clicks.append_many(ids, keys=["k"] * len(ids), ids=ids) == expected
        assert [event.value for event in clicks.read()] == stored
        assert log.check() == []


def test_what_is_no_id_is_refused(clicks: eventlog.Stream) -> None:
    for bad in ("", 1.5, b"x", True):
        with pytest.raises(TypeError, match="an id is"):
            clicks.append("a", id=bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not as many ids as values"):
        clicks.append_many(["a", "b"], ids=["x"])
    with pytest.raises(UsageError, match="not as many ids as values"):
        clicks.append_many(["a"], ids=["x", "y"])
    assert clicks.end == 0


def test_too_much_for_one_append_with_ids_is_refused_whole(clicks: eventlog.Stream) -> None:
    values = ["x" * 100_000] * (IDS_BYTES_MAX // 100_000 + 10)
    with pytest.raises(UsageError, match="events with ids pass 16 MiB") as error:
        clicks.append_many(values, ids=range(len(values)))
    assert "smaller calls" in error.value.hint
    assert clicks.end == 0
    assert clicks.append_many(values[:5], ids=range(5)) == list(range(5))


@pytest.mark.parametrize("known", [range(10), range(30), range(3, 17), range(0, 60, 2)])
def test_ids_over_several_batches_keep_times_and_transactions(
    log: eventlog.Log, clicks: eventlog.Stream, monkeypatch: pytest.MonkeyPatch, known: range
) -> None:
    # Of some 9 records each, so that known ones fill whole batches, and parts of others.
    monkeypatch.setattr(outbox, "BATCH_BYTES", 1_000)
    values = [f"{number}" + "." * 100 for number in range(60)]
    moments: list[int] = []

    def send(moment: int, numbers: range) -> None:
        monkeypatch.setattr(outbox, "now_us", lambda: moment)
        clicks.append_many([values[n] for n in numbers], ids=numbers)
        moments.extend([moment] * (clicks.end - len(moments)))

    send(1_000, known)
    send(2_000, range(60))

    def require_whole() -> None:
        assert log.check() == []
        found = [log.engine.transaction_time("clicks", at) for at in range(60)]
        assert found == moments == [1_000] * len(known) + [2_000] * (60 - len(known))
        begins = set()
        for stretch in log.engine.scan("clicks", 0, 60, lambda entry: False):
            entry, words = stretch.entry, stretch.entry.transactions
            at = entry.slot_offsets()[words.first]
            begins |= {entry.first_offset - words.back, *map(int, at[1:])}
        assert {begin for begin in begins if begin < 60} == {0, len(known)}, "two transactions"
        sent = sorted(range(60), key=lambda number: (number not in known, number))
        assert [event.value for event in clicks.read(0, 60)] == [values[n] for n in sent]

    require_whole()
    before = log.stream_info("clicks")
    monkeypatch.setattr(outbox, "BATCH_BYTES", 500_000)
    for number in range(70):  # What stands at the end is merged with these.
        clicks.append(number)
    require_whole()
    assert before.records == 60


def test_a_retry_of_a_whole_call_over_several_batches_stores_no_record_again(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    values = [f"{number}" + "." * 1_000 for number in range(1_200)]
    first = clicks.append_many(values, ids=range(1_200))
    stored = log.stream_info("clicks")
    assert first == list(range(1_200)) and stored.bytes > 1_200_000
    assert clicks.append_many(values, ids=range(1_200)) == first
    assert log.stream_info("clicks") == stored, "not a batch more"
    # One more comes alone: what its batch holds besides is not in the stream again.
    assert clicks.append_many([*values, "new"], ids=range(1_201)) == [*first, 1_200]
    assert log.stream_info("clicks").records == 1_201
    assert [event.value for event in clicks.read()] == [*values, "new"]


def test_events_with_ids_after_others_that_were_staged_are_refused_whole(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    clicks.append("first", id="x")

    def send() -> None:
        with log.transaction() as tx:
            tx.append("clicks", ["y" * 100_000] * 30)
            tx.append("clicks", ["again", "new"], ids=["x", "z"])

    with pytest.raises(UsageError, match="come after 1 MiB of others") as caught:
        send()
    assert "a transaction of their own" in caught.value.hint
    assert clicks.end == 1 and log.engine.owners() == []
    assert clicks.append("new", id="z") == 1, "its id is not known"


def test_of_two_streams_in_a_transaction_one_may_have_ids_and_the_other_be_large(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    other = log.stream("other", create=True)
    values = [f"{number}" + "." * 1_000 for number in range(600)]
    for _ in range(2):
        with log.transaction() as tx:
            tx.append("clicks", values, ids=range(600))
            tx.append("other", ["y" * 10_000] * 300)
    assert tx.offsets == {"clicks": list(range(600)), "other": range(300, 600)}
    assert [event.value for event in clicks.read()] == values
    assert (clicks.end, other.end, log.engine.owners()) == (600, 600, [])


def test_an_id_with_lone_surrogates_is_refused(log: eventlog.Log, clicks: eventlog.Stream) -> None:
    for append in (
        lambda: clicks.append("a", id="\ud800"),
        lambda: clicks.append_many(["a", "b"], ids=["x", "\udfff"]),
    ):
        with pytest.raises(TypeError, match="an id has lone surrogates") as caught:
            append()
        assert isinstance(caught.value, UsageError) and caught.value.hint
    with pytest.raises(UsageError, match="lone surrogates"), log.transaction() as tx:
        tx.append("clicks", "a", id="\ud800")
    assert clicks.end == 0 and clicks.append("a", id="x") == 0


def test_ids_that_were_refused_leave_no_trace_in_their_transaction(
    log: eventlog.Log, clicks: eventlog.Stream
) -> None:
    assert clicks.append_many(["a", "b"], ids=["a", "b"]) == [0, 1]
    with log.transaction() as tx:
        with pytest.raises(TypeError):
            tx.append("clicks", ["x", "y"], ids=["a", ""])
        tx.append("clicks", "c", id="c")
        tx.append("clicks", "again", id="b")
        tx.append("clicks", "d")
    assert tx.offsets == {"clicks": [2, 1, 3]}
    assert [event.value for event in clicks.read()] == ["a", "b", "c", "d"]


def test_damaged_and_vanished_ids_are_found_by_check(tmp_path: Path) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        clicks = log.stream("clicks", create=True)
        for number in range(3):
            clicks.append(number, id=number)
        store = log.engine.store
        with store.write() as txn:
            keys = [key for key, _ in txn.cursor(db=store.ids)]
            value = txn.get(keys[1], db=store.ids)
            txn.put(keys[1], value[:-1] + bytes([value[-1] ^ 1]), db=store.ids)
            txn.delete(keys[5], db=store.ids)
        found = log.check()
        assert {violation.invariant for violation in found} == {"ids"}
        assert all("b'" not in str(violation) for violation in found)


def test_an_id_that_vanished_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        clicks = log.stream("clicks", create=True)
        for number in range(40):
            clicks.append(number, id=number)
        key = engine_ids._DIGEST.pack(1, 0, engine_ids.digest_of("7"))
        with log.engine.store.write() as txn:
            assert txn.delete(key, db=log.engine.store.ids)
        with pytest.raises(DamagedLog, match="is gone"):
            clicks.append("again", id=7)
        assert clicks.append("another", id=6) == 6
        assert clicks.end == 40


def test_ids_whose_places_vanished_stay_known_and_no_place_is_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with eventlog.open(tmp_path / "log", create=True) as log:
        clicks = log.stream("clicks", create=True)
        for number in range(5):
            clicks.append(number, id=number)
        store = log.engine.store

        def places() -> list[int]:
            with store.read() as txn:
                keys = [key for key, _ in txn.cursor(db=store.ids)]
            stored = [engine_ids._PLACE.unpack(key) for key in keys if len(key) == 13]
            return [sequence for _, kind, sequence in stored if kind]

        assert places() == [0, 1, 2, 3, 4]
        with store.write() as txn:
            for sequence in range(5):
                assert txn.delete(engine_ids._PLACE.pack(1, 1, sequence), db=store.ids)
        assert {(found.invariant, found.what) for found in log.check()} == {
            ("ids", f"place {sequence} does not name it") for sequence in range(5)
        }
        assert [clicks.append("again", id=number) for number in range(5)] == [0, 1, 2, 3, 4]
        assert clicks.append("new", id="new") == 5
        assert places() == [5], "not the place of another"
        assert clicks.append("again", id="new") == 5
        # Amid others one is missed as soon as its turn to be forgotten comes.
        clicks.append_many(["a", "b", "c"], ids=["a", "b", "c"])
        with store.write() as txn:
            assert txn.delete(engine_ids._PLACE.pack(1, 1, 6), db=store.ids)
        monkeypatch.setattr(engine_ids, "IDS_KEPT", 3)
        with pytest.raises(DamagedLog, match="damaged") as caught:
            clicks.append("d", id="d")
        assert "repair" in caught.value.hint and clicks.end == 9, "and nothing was stored"


def test_the_same_lines_sent_again_are_left_out(log: eventlog.Log, run_cli: RunCli) -> None:
    args = ("append", "clicks", "--create", "--id", "req", "--log", str(log.path))
    lines = "".join(f'{{"req": "r{n}", "n": {n}}}\n' for n in range(50))
    done = run_cli(*args, input=lines)
    assert done.stdout == (
        "stored 50 events in 'clicks', the last at offset 49, 0 were there already\n"
    )
    done = run_cli(*args, "--json", input=lines + '{"req": "r50", "n": 50}\n')
    assert json.loads(done.stdout) == {
        "stream": "clicks",
        "stored": 1,
        "last_offset": 50,
        "known": 50,
    }
    done = run_cli(*args, input='{"n": 1}\n')
    assert_explained(done)
    assert "it has no id in the field 'req'" in done.stderr


def test_what_two_processes_say_that_they_stored_adds_up(log: eventlog.Log) -> None:
    log.stream("clicks", create=True)
    lines = "".join(f'{{"request": {number % 4_000}}}\n' for number in range(5_000)).encode()
    command = [sys.executable, "-m", "eventlog.cli", "append", "clicks", "--id", "request"]
    senders = [
        subprocess.Popen(
            [*command, "--json", "--log", str(log.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for start in range(0, len(lines), 4_096):  # Turn by turn, so that their commits alternate.
        for sender in senders:
            assert sender.stdin is not None
            sender.stdin.write(lines[start : start + 4_096])
            sender.stdin.flush()
    told = [json.loads(sender.communicate(timeout=60)[0]) for sender in senders]
    assert [sender.returncode for sender in senders] == [0, 0]
    assert sum(each["stored"] for each in told) == log.stream("clicks").end == 4_000
    assert [each["stored"] + each["known"] for each in told] == [5_000, 5_000]
