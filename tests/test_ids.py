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
        assert {violation.invariant for violation in log.check()} == {"ids"}


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
