"""What does a table as of an offset cost, beside reading it from the database?

A table of orders is filled in Postgres and copied into a log. `COPY TO STDOUT`, taken by psycopg
and thrown away, is what any way out of the database costs at least; pandas makes a frame of a
query, as people do. The log makes an Arrow table, from its records alone and from a checkpoint.

Then the whole table is updated, again and again. When the log is nearly ten times as long, the
first snapshot has no checkpoint, is dear, and leaves one behind; then more rows are updated. What a
snapshot of the end costs now, from that earlier checkpoint, is compared with what it costs to cut
the same log where it was short, from its records alone: in the same rounds.

All run in one process, one after the other; the log lies in the page cache.

DuckDB's Postgres reader is an extension that is fetched from the network, and is left out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import psycopg

import cdc
import eventlog
from benchmarks.capture import server_of
from benchmarks.copy import COPIED, FILL, TABLE
from benchmarks.measure import (
    Contender,
    Ratio,
    Result,
    Sample,
    figures_of,
    in_turn,
    ratio_samples,
)
from benchmarks.options import Options
from eventlog.snapshots.state import finding

QUESTION = "what does a table as of an offset cost, beside reading it from the database?"
TIME = "time"
TIMES = 10
"""How long the log is in the end, in tables."""

BEHIND = 0.5
"""How much of it lies behind the checkpoint, in tables."""

COPY = "COPY TO STDOUT"
PANDAS = "pandas read_sql"
ADBC = "ADBC"
COLD = "eventlog, cold"
CHECKPOINT = "eventlog, from a checkpoint"
FIRST = f"eventlog, cold, the log {TIMES - BEHIND:g} times as long"
SHORT = "eventlog, cold, cut where the log was short"
LONG = f"eventlog, the log {TIMES} times as long"
ROLES = {COPY: "peer", PANDAS: "peer", ADBC: "peer"}
ROLES |= dict.fromkeys((COLD, CHECKPOINT, FIRST, SHORT, LONG), "subject")
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
        short = shop.end
        taken |= _long(options, server.dsn, source, log, rows)
        about: dict[str, Any] = {
            "postgres": server.version,
            "rows": rows,
            "records": {"short": short, "long": shop.end},
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
                to=SHORT,
                samples=ratio_samples(taken, TIME, of=LONG, to=SHORT),
                at_most=LONG_TARGET,
            ),
        ),
    )


def _long(
    options: Options, dsn: str, source: cdc.Source, log: eventlog.Log, rows: int
) -> dict[str, list[Sample]]:
    """Make the log long, and measure before and behind the checkpoint that it has in the end."""

    def note(text: str) -> None:
        options.note(f"snapshot: {text}")

    shop = log.stream("shop")
    short = shop.end
    shop.drop_checkpoints()
    note(f"updating until the log is {TIMES} times as long")
    middle = round(rows * (1 - BEHIND))
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in range(TIMES - 2):
            conn.execute("update orders set id = id")
            conn.execute("vacuum orders")
        conn.execute("update orders set id = id where id <= %s", (middle,))
        source.capture(log, until="current")
        first = _timed(lambda: _snapshot(log), rows, before=shop.drop_checkpoints)
        taken = in_turn({FIRST: first}, samples=options.samples, note=note, warm_ups=0)
        if shop.end < finding.DEAR_RECORDS:
            shop.checkpoint()  # So few records are not dear.
        conn.execute("update orders set id = id where id > %s", (middle,))
    source.capture(log, until="current")
    known = shop.checkpoints()
    taken |= in_turn(
        {
            SHORT: _timed(lambda: _snapshot(log, at=short), rows),
            LONG: _timed(lambda: _snapshot(log), rows),
        },
        samples=options.samples,
        note=note,
    )
    if len(known) != 1 or shop.checkpoints() != known or not short < known[0].offset < shop.end:
        raise RuntimeError(f"the snapshots did not begin with one checkpoint: {known}")
    return taken


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


def _snapshot(log: eventlog.Log, *, at: int | Literal["end"] = "end") -> int:
    table = log.snapshot("shop", at=at).table(COPIED)
    return int(table.to_arrow().num_rows)


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
