"""What does a table as of an offset cost, beside reading it from the database?

A table of orders is filled in Postgres and copied into a log. `COPY TO STDOUT`, taken by psycopg
and thrown away, is what any way out of the database costs at least; pandas makes a frame of a
query, as people do. The log makes an Arrow table: from its records alone, from a checkpoint, and
after the whole table was updated until the log is ten times as long, from the checkpoint that the
first dear fold left. All run in one process, one after the other; the log lies in the page cache.

DuckDB's Postgres reader is an extension that is fetched from the network, and is left out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

import cdc
import eventlog
from benchmarks.capture import server_of
from benchmarks.copy import COPIED, FILL, TABLE
from benchmarks.measure import Contender, Ratio, Result, figures_of, in_turn, ratio_samples
from benchmarks.options import Options
from eventlog.snapshots.state import finding

QUESTION = "what does a table as of an offset cost, beside reading it from the database?"
TIME = "time"
TIMES = 10
"""How long the log is in the end, in tables."""

COPY = "COPY TO STDOUT"
PANDAS = "pandas read_sql"
ADBC = "ADBC"
COLD = "eventlog, cold"
CHECKPOINT = "eventlog, from a checkpoint"
LONG = f"eventlog, the log {TIMES} times as long"
ROLES = {COPY: "peer", PANDAS: "peer", ADBC: "peer"}
ROLES |= {COLD: "subject", CHECKPOINT: "subject", LONG: "subject"}
TARGETS = {COLD: 1.0, CHECKPOINT: 0.3}
LONG_TARGET = 1.2


def run(options: Options) -> Result:
    """Fill, capture, measure; update, capture, measure again."""
    rows = options.rows or (50_000 if options.quick else 1_000_000)
    with (
        server_of(options) as server,
        TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made,
        eventlog.open(Path(made) / "log", create=True) as log,
    ):
        options.note(f"snapshot: filling and capturing {rows:,} rows")
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(TABLE)
            conn.execute(FILL)
            conn.execute("call fill(%s, %s)", (rows, options.transaction_rows))
            conn.execute("vacuum analyze orders")
        source = cdc.Source("shop", server.dsn, tables=[COPIED])
        source.capture(log, until="current")
        shop = log.stream("shop")
        taken = in_turn(
            {
                COPY: _timed(lambda: _copy(server.dsn), rows),
                **_peers(server.dsn, rows),
                COLD: _timed(lambda: _snapshot(log), rows, before=shop.drop_checkpoints),
                CHECKPOINT: _timed(lambda: _snapshot(log), rows, before=shop.checkpoint),
            },
            samples=options.samples,
            note=lambda text: options.note(f"snapshot: {text}"),
        )
        shop.drop_checkpoints()
        options.note(f"snapshot: updating until the log is {TIMES} times as long")
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            for _ in range(TIMES - 1):
                conn.execute("update orders set id = id")
                conn.execute("vacuum orders")
        source.capture(log, until="current")
        _require_checkpoint(log, rows)
        taken |= in_turn(
            {LONG: _timed(lambda: _snapshot(log), rows)},
            samples=options.samples,
            note=lambda text: options.note(f"snapshot: {text}"),
        )
        about: dict[str, Any] = {
            "postgres": server.version,
            "rows": rows,
            "records": shop.end,
            "checkpoint_bytes": sum(each.bytes for each in shop.checkpoints()),
            "left_out": _left_out(),
        }
    case = f"{rows:,} rows"
    return Result(
        name="snapshot",
        question=QUESTION,
        about=about,
        figures=tuple(figures_of(taken, case, roles=ROLES, units={TIME: "s"})),
        ratios=(
            *(
                Ratio(
                    case=case,
                    quantity=TIME,
                    of=subject,
                    to=peer,
                    samples=ratio_samples(taken, TIME, of=subject, to=peer),
                    at_most=TARGETS.get(subject) if peer == COPY else None,
                )
                for peer in (COPY, PANDAS, ADBC)
                if peer in taken
                for subject in (COLD, CHECKPOINT)
            ),
            Ratio(
                case=case,
                quantity=TIME,
                of=LONG,
                to=COLD,
                samples=ratio_samples(taken, TIME, of=LONG, to=COLD),
                at_most=LONG_TARGET,
            ),
        ),
    )


def _peers(dsn: str, rows: int) -> dict[str, Contender]:
    """What else is installed."""
    peers: dict[str, Contender] = {}
    if find_spec("pandas") is not None:
        peers[PANDAS] = _timed(lambda: _pandas(dsn), rows)
    if find_spec("adbc_driver_postgresql") is not None:
        peers[ADBC] = _timed(lambda: _adbc(dsn), rows)
    return peers


def _left_out() -> dict[str, str]:
    found = {"DuckDB's Postgres reader": "an extension that is fetched from the network"}
    for name, module in ((PANDAS, "pandas"), (ADBC, "adbc_driver_postgresql")):
        if find_spec(module) is None:
            found[name] = "not installed"
    return found


def _copy(dsn: str) -> int:
    with psycopg.connect(dsn) as conn, conn.cursor().copy(f"copy {COPIED} to stdout") as lines:
        return sum(bytes(block).count(b"\n") for block in lines)


def _pandas(dsn: str) -> int:
    import pandas

    with psycopg.connect(dsn) as conn, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It knows psycopg's connections no more than sqlite's.
        return len(pandas.read_sql(f"select * from {COPIED}", conn))


def _adbc(dsn: str) -> int:
    from adbc_driver_postgresql import dbapi

    info = psycopg.conninfo.conninfo_to_dict(dsn)
    uri = "postgresql:///?" + "&".join(f"{name}={value}" for name, value in info.items())
    with dbapi.connect(uri) as conn, conn.cursor() as cursor:
        cursor.execute(f"select * from {COPIED}")
        return int(cursor.fetch_arrow_table().num_rows)


def _snapshot(log: eventlog.Log) -> int:
    table = log.snapshot("shop").table(COPIED)
    return int(table.to_arrow().num_rows)


def _require_checkpoint(log: eventlog.Log, rows: int) -> None:
    """The first snapshot is dear, and leaves a checkpoint; with few rows it takes a command."""
    if _snapshot(log) != rows:
        raise RuntimeError("the snapshot does not have the table's rows")
    if TIMES * rows < finding.DEAR_RECORDS:
        log.stream("shop").checkpoint()
    if not log.stream("shop").checkpoints():
        raise RuntimeError("a dear fold left no checkpoint")


def _timed(
    read: Callable[[], int], rows: int, *, before: Callable[[], object] | None = None
) -> Contender:
    def sample() -> dict[str, float]:
        if before is not None:
            before()
        start = time.perf_counter()
        found = read()
        took = time.perf_counter() - start
        if found != rows:
            raise RuntimeError(f"{found:,} rows were read of {rows:,}")
        return {TIME: took}

    return sample
