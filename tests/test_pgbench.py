"""pgbench as truth: at every transaction boundary of the log the bank's books agree.

TPC-B adds one amount to an account, its teller and its branch, and writes it down in a history: the
sums of all four are equal after every transaction, and only then. The benchmark runs while the
tables are copied and while they are followed.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import cdc
import eventlog
from cdc.postgres import streaming
from eventlog.changes.change import Change, Op
from tests.fix_capture import (
    assert_snapshot_equals_postgres,
    captured_in_background,
    wal_position,
)
from tests.fix_postgres import Database

CLIENTS = 8
TABLES = {
    "public.pgbench_accounts": ("aid", "abalance"),
    "public.pgbench_tellers": ("tid", "tbalance"),
    "public.pgbench_branches": ("bid", "bbalance"),
}
HISTORY = "public.pgbench_history"


@pytest.fixture(autouse=True)
def store_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The position of an idle source is stored sooner than every 10 s."""
    monkeypatch.setattr(streaming, "IDLE_STORE_S", 0.1)


def pgbench(database: Database, *arguments: str) -> subprocess.Popen[str]:
    program = database.server.bindir / "pgbench"
    if not program.exists():
        pytest.skip(f"{database.server.bindir} holds no pgbench")
    given = conninfo_to_dict(database.dsn)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    where = {names[name]: str(value) for name, value in given.items() if name in names}
    return subprocess.Popen(
        [program, *arguments],
        env={**os.environ, **where},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(running: subprocess.Popen[str]) -> str:
    said, _ = running.communicate(timeout=3_600)
    assert running.returncode == 0, said
    return said


class Boundary(NamedTuple):
    """The books at the end of a source transaction."""

    offset: int
    sums: tuple[int, int, int]
    history: int
    deltas: int


class Books:
    """The tables as the log tells them, in plain Python: balances by key, and their sums."""

    def __init__(self) -> None:
        self.balances: dict[str, dict[int, int]] = {table: {} for table in TABLES}
        self.sums = dict.fromkeys(TABLES, 0)
        self.history = 0
        self.deltas = 0
        self.copying: set[str | None] = {*TABLES, HISTORY}

    def apply(self, change: Change) -> None:
        if change.op is Op.COPY_BEGIN:
            self.copying.add(change.table)
        elif change.op is Op.COPY_END:
            self.copying.discard(change.table)
        elif change.table == HISTORY:
            assert change.op in (Op.READ, Op.INSERT) and change.row is not None
            self.history += 1
            self.deltas += change.row["delta"]
        elif change.table is not None:
            assert change.op in (Op.READ, Op.INSERT, Op.UPDATE) and change.row is not None
            key, balance = TABLES[change.table]
            held = self.balances[change.table]
            self.sums[change.table] += change.row[balance] - held.get(change.row[key], 0)
            held[change.row[key]] = change.row[balance]

    def at(self, offset: int) -> Boundary:
        accounts, tellers, branches = self.sums.values()
        return Boundary(offset, (accounts, tellers, branches), self.history, self.deltas)


def boundaries(log: eventlog.Log) -> list[Boundary]:
    """The books at each transaction boundary of the log from the end of the first copies on."""
    books = Books()
    found: list[Boundary] = []
    before: tuple[str | None, str | None] = (None, None)
    end = log.stream("shop").end
    for change in log.stream("shop").read():
        moment = (change.tx, change.position)
        if moment != before and not books.copying:
            found.append(books.at(change.offset))
        before = moment
        books.apply(change)
    return [*found, books.at(end)]


def even(found: list[Boundary], count: int) -> list[Boundary]:
    """The first and the last, and as many between as are asked for."""
    if len(found) <= count:
        return found
    return [found[i * (len(found) - 1) // (count - 1)] for i in range(count)]


def assert_snapshot_agrees(log: eventlog.Log, boundary: Boundary) -> None:
    """What the log's own snapshot says at a boundary."""
    snapshot = log.snapshot("shop", at=boundary.offset)
    sums = []
    for table, (_, balance) in TABLES.items():
        rows = snapshot.table(table).to_arrow()
        sums.append(sum(rows[balance].to_pylist()))
    assert tuple(sums) == boundary.sums
    history = snapshot.table(HISTORY, as_inserts=True).to_arrow()
    assert history.num_rows == boundary.history
    assert sum(history["delta"].to_pylist()) == boundary.deltas


def run_a_bank(
    database: Database, log: eventlog.Log, *, scale: int, transactions: int, seed: int
) -> list[Boundary]:
    """Capture a bank at work; returns the books at every boundary."""
    print(f"pgbench: random seed {seed}")
    finished(pgbench(database, "--initialize", "--quiet", f"--scale={scale}"))
    work = ("--no-vacuum", "--builtin=tpcb-like", f"--client={CLIENTS}", "--jobs=2")
    finished(pgbench(database, *work, "--transactions=5", f"--random-seed={seed + 1}"))
    each = f"--transactions={transactions // CLIENTS}"
    source = cdc.Source("shop", database.dsn, ["public.*"])
    at_work = pgbench(database, *work, each, f"--random-seed={seed}")
    try:
        with captured_in_background(log, source) as running:
            running.saw("streaming")
            said = finished(at_work)
            running.reached(wal_position(database))
    finally:
        at_work.kill()
        at_work.wait()
    assert f"number of transactions actually processed: {transactions}" in said
    return boundaries(log)


def assert_log_equals_postgres(log: eventlog.Log, database: Database, total: int) -> None:
    assert_snapshot_equals_postgres(
        log, database, "pgbench_accounts", "pgbench_tellers", "pgbench_branches"
    )
    rows = log.snapshot("shop").table(HISTORY, as_inserts=True).to_arrow(cast={"mtime": "text"})
    found = Counter(tuple(row.values()) for row in rows.to_pylist())
    with psycopg.connect(database.dsn) as conn:
        history = conn.execute("select tid, bid, aid, delta, mtime::text, filler from "
                               "pgbench_history").fetchall()  # fmt: skip
    assert found == Counter(history)
    assert found.total() == total


def test_the_books_of_a_bank_agree_at_every_transaction(
    database: Database, log: eventlog.Log
) -> None:
    found = run_a_bank(database, log, scale=1, transactions=2_400, seed=1)
    assert len(found) > 200, "it was copied while the bank was at work"
    for boundary in found:
        assert len({*boundary.sums, boundary.deltas}) == 1, boundary
    for boundary in even(found, 10):
        assert_snapshot_agrees(log, boundary)
    assert_log_equals_postgres(log, database, 2_400 + 5 * CLIENTS)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("seed", range(1, 4))
def test_snapshots_at_every_transaction_of_a_bank_agree(
    database: Database, log: eventlog.Log, seed: int
) -> None:
    found = run_a_bank(database, log, scale=2, transactions=40_000, seed=seed)
    for boundary in found:
        assert len({*boundary.sums, boundary.deltas}) == 1, boundary
    for boundary in even(found, 300):
        assert_snapshot_agrees(log, boundary)
    assert_log_equals_postgres(log, database, 40_000 + 5 * CLIENTS)
