"""The daemon is killed at random moments, and the log is as if nothing had happened."""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

import cdc
import eventlog
from cdc.demo.flights import load_schedule
from cdc.demo.replay import create_tables, replay
from cdc.postgres.protocol.lsn import Lsn
from eventlog.engine.batch import BATCH_BYTES
from tests.fix_capture import assert_snapshot_equals_postgres, state_of, wal_position
from tests.fix_postgres import Database
from tests.forked import Nursery

KILLS = 50
STEP = 600  # events applied at a time
LIFE_S_MAX = 0.6
TABLES = ["flights", "weather"]
SLOTS = {"killed": "mine_killed", "undisturbed": "mine_undisturbed"}


class Replay:
    """Replays the flights on a thread, slowly, until told to stop; then to a window's end."""

    def __init__(self, dsn: str) -> None:
        self.done = 0
        self.error: BaseException | None = None
        self._dsn = dsn
        self._schedule = load_schedule([1])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as conn:
                while not self._stop.is_set() and self.done < len(self._schedule):
                    start, self.done = self.done, min(self.done + STEP, len(self._schedule))
                    replay(self._dsn, self._schedule, start=start, stop=self.done)
                    # A transaction that is staged, one that is rolled back, and messages.
                    conn.execute("update flights set dest = dest where id <= 4000")
                    conn.execute(
                        "begin; delete from flights where id <= 500;"
                        "select pg_logical_emit_message(false, 'demo', 'aside'); rollback"
                    )
                    conn.execute("select pg_logical_emit_message(true, 'demo', 'step')")
                    time.sleep(0.1)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Replay:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is not None and exc == (None, None, None):
            raise self.error


class Daemon:
    """The capture as a process of its own."""

    def __init__(self, nursery: Nursery, log_dir: Path, database: Database) -> None:
        arguments = [str(log_dir), database.dsn, "shop", SLOTS["killed"], "mine"]
        self._process = nursery.spawn("tests.captured_for_ever", arguments)

    def first_word(self) -> str:
        """What it tells first; empty where it ended instead."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 60)
        assert ready, "it says nothing"
        return os.read(self._process.stdout.fileno(), 100).decode()

    def kill(self) -> None:
        """SIGKILL; it must have been alive."""
        self._process.kill()
        _, errors = self._process.communicate()
        assert self._process.returncode == -signal.SIGKILL, errors


@pytest.mark.kill
def test_killed_at_random_moments_it_loses_doubles_and_reorders_nothing(
    database18: Database, tmp_path: Path, nursery: Nursery
) -> None:
    database = database18
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    create_tables(database.dsn)
    database.execute("create publication mine for table flights, weather")
    for slot in SLOTS.values():
        database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    log_dir = tmp_path / "killed"
    streamed, ends = 0, set()
    with Replay(database.dsn) as replaying:
        for _ in range(KILLS):
            assert replaying.error is None
            daemon = Daemon(nursery, log_dir, database)
            if chance.random() < 0.1:
                time.sleep(chance.uniform(0, 0.6))  # in its start
            else:
                streamed += "streaming" in daemon.first_word()
                time.sleep(chance.uniform(0, LIFE_S_MAX))
            daemon.kill()
            ends.add(_end(log_dir))
    assert streamed > KILLS * 0.6, "most were killed while they streamed"
    assert len(ends) > KILLS * 0.1, "several of them captured something"
    position = wal_position(database)
    found = {}
    for name, path in (("killed", log_dir), ("undisturbed", tmp_path / "undisturbed")):
        with eventlog.open(path, create=name == "undisturbed") as log:
            cdc.Source("shop", database.dsn).capture(
                log, copy=False, slot=SLOTS[name], publication="mine", until=str(position)
            )
            assert state_of(log).position >= position
            assert log.check() == []
            found[name] = records(log)
            assert_snapshot_equals_postgres(log, database, *TABLES)
    assert len(found["killed"]) == len(found["undisturbed"]) > replaying.done
    sizes: Counter[int] = Counter()
    for _, record, _, tx, *_ in found["undisturbed"]:
        sizes[tx] += len(record)
    assert max(sizes.values()) > 2 * BATCH_BYTES, "some transactions were staged"
    assert [record[0] for record in found["killed"]] == list(range(len(found["killed"])))
    for killed, undisturbed in zip(found["killed"], found["undisturbed"], strict=True):
        assert killed == undisturbed


def _end(log_dir: Path) -> int:
    if not (log_dir / "data.mdb").exists():
        return 0
    with eventlog.open(log_dir) as log:
        return log.stream("shop").end if log.streams() else 0


def records(log: eventlog.Log) -> list[tuple[Any, ...]]:
    """Every record with its offset, bytes, columns, transaction, its end and its time."""
    columns = {
        number: tuple(column["name"] for column in stored["columns"])
        for number, stored in log.engine.schemas("shop")
    }
    found: list[tuple[Any, ...]] = []
    stream = log.stream("shop")
    for stretch in log.engine.scan("shop", stream.start, stream.end, lambda entry: True):
        entry, payload = stretch.entry, stretch.payload
        assert payload is not None
        named = tuple(sorted((oid, columns[number]) for oid, number in entry.relations))
        marks = entry.transactions
        places = entry.slot_transactions().tolist()
        for slot, record in enumerate(payload.records(range(entry.slots))):
            oid = int.from_bytes(record[1:5], "big")
            mark = places[slot]
            found.append(
                (
                    entry.first_offset + slot,
                    record,
                    dict(named).get(oid),
                    int(marks.tx[mark]),
                    str(Lsn(int(marks.position[mark]))),
                    # A message outside of transactions has the time at which it was sent.
                    int(marks.time[mark]) if marks.tx[mark] else None,
                )
            )
    return found
