"""How fast training rows are joined by offset with what was known then.

Every order of a year is an instance: two look-ups (its customer's tier and country, its product's
price, as known then) and one count (orders of that customer in 90 days, deletions taken away). The
log lies in the page cache. The peer is DuckDB, given the same changes decoded and in memory, with
one thread: as-of joins by offset and a window, deletions taken away by a join. Both must answer the
same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa

import eventlog
from benchmarks import seen_log
from benchmarks.measure import Contender, Ratio, Result, Sample, figures_of, in_turn, ratio_samples
from benchmarks.options import Options
from eventlog import count, lookup

QUESTION = "how many instances a second get two look-ups and a count, as known then?"

RATE, COST = "instances", "CPU an instance"
UNITS = {RATE: "1/s", COST: "ns"}
SEEN, READ, DUCKDB = "Snapshot.seen", "Stream.read, its tables", "DuckDB"
TEN_SECONDS = "1M in 10 s"
TARGET = 1.0

WHAT = {
    SEEN: "snapshot.seen(...).to_arrow(), from the log to typed columns",
    READ: "Stream.read(...).to_arrow() of the columns that are needed: no join at all",
    DUCKDB: "ASOF JOIN and a window over what Stream.read gave, which is not counted; one thread",
}
ROLES = {SEEN: "subject", READ: "limit", DUCKDB: "peer"}

COLUMNS = {
    "customers": ["id", "tier", "country"],
    "products": ["id", "price"],
    "orders": ["id", "customer_id", "product_id", "amount"],
}

QUERY = """
WITH placed AS (FROM orders WHERE _op = 'insert'),
gone AS (
    SELECT p.customer_id, p._time AS born, d._offset AS at
    FROM orders d JOIN placed p ON p.id = d.id WHERE d._op = 'delete'
),
gone_then AS (
    SELECT p._offset, count(*) AS n FROM placed p JOIN gone g ON g.customer_id = p.customer_id
    WHERE g.at < p._offset AND g.born > p._time - INTERVAL 90 DAY GROUP BY p._offset
),
counted AS (
    SELECT *, count(*) OVER (
        PARTITION BY customer_id ORDER BY _time
        RANGE BETWEEN INTERVAL '7775999.999999 seconds' PRECEDING AND CURRENT ROW
    ) - 1 AS n FROM placed
)
SELECT o._offset, o.amount, c.tier, c.country, p.price, o.n - coalesce(g.n, 0) AS orders_90d
FROM counted o
ASOF LEFT JOIN customers c ON c.id = o.customer_id AND c._offset < o._offset
ASOF LEFT JOIN products p ON p.id = o.product_id AND p._offset < o._offset
LEFT JOIN gone_then g ON g._offset = o._offset
"""


class Unequal(Exception):
    """The contenders do not answer the same."""


def run(options: Options) -> Result:
    """Write the log, then let all answer; rows are the orders."""
    orders = options.rows or (20_000 if options.quick else 1_000_000)
    with TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made, ExitStack() as end:
        log = end.enter_context(eventlog.open(Path(made) / "log", create=True))
        options.note("seen: writing the log")
        seen_log.write(log, orders)
        records = log.stream(seen_log.STREAM).end
        connection = end.enter_context(closing(_database(_tables(log))))
        _expect_equal(_seen(log), connection.sql(QUERY).to_arrow_table())
        contenders = {
            SEEN: lambda: _seen(log),
            READ: lambda: _tables(log),
            DUCKDB: lambda: connection.sql(QUERY).to_arrow_table(),
        }
        taken = in_turn(
            {name: _timed(answer, orders) for name, answer in contenders.items()},
            samples=options.samples,
            note=lambda text: options.note(f"seen: {text}"),
        )
    case = f"{orders:,} instances"
    return Result(
        name="seen",
        question=QUESTION,
        about={"records": records, "seed": seen_log.SEED, "contenders": WHAT},
        figures=tuple(figures_of(taken, case, roles=ROLES, units=UNITS)),
        ratios=_ratios(case, taken),
    )


def _seen(log: eventlog.Log) -> pa.Table:
    return (
        log.snapshot(seen_log.STREAM)
        .seen(
            "orders",
            columns=["amount"],
            lookups=[
                lookup("customers", by="customer_id", columns=["tier", "country"]),
                lookup("products", by="product_id", columns=["price"]),
            ],
            counts=[count("orders", by="customer_id", over="90d")],
        )
        .to_arrow()
    )


def _tables(log: eventlog.Log) -> dict[str, pa.Table]:
    stream = log.stream(seen_log.STREAM)
    return {
        name: stream.read(table=name, columns=columns).to_arrow(unfit="null")
        for name, columns in COLUMNS.items()
    }


def _database(tables: dict[str, pa.Table]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": "1"})
    for name, table in tables.items():
        # Times with a zone would need an extension.
        at = table.schema.get_field_index("_time")
        table = table.set_column(at, "_time", table["_time"].cast(pa.timestamp("us")))
        connection.register("changes", table)
        connection.execute(f"CREATE TABLE {name} AS FROM changes")
    return connection


def _expect_equal(ours: pa.Table, theirs: pa.Table) -> None:
    theirs = theirs.sort_by("_offset")
    names = {"customers.tier": "tier", "customers.country": "country", "products.price": "price"}
    for name in ("_offset", "amount", *names, "orders_90d"):
        one, other = ours[name].combine_chunks(), theirs[names.get(name, name)].combine_chunks()
        if not one.equals(other.cast(one.type)):
            raise Unequal(f"column {name} differs between {SEEN} and {DUCKDB}")


def _timed(answer: Callable[[], Any], orders: int) -> Contender:
    def sample() -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        answer()
        took, used = time.perf_counter() - wall, time.process_time() - cpu
        return {RATE: orders / took, COST: 1e9 * used / orders}

    return sample


def _ratios(case: str, taken: dict[str, list[Sample]]) -> tuple[Ratio, ...]:
    def ratio(quantity: str, of: str, to: str) -> Ratio:
        samples = ratio_samples(taken, quantity, of=of, to=to)
        return Ratio(case=case, quantity=quantity, of=of, to=to, samples=samples)

    per_target = tuple(sample[RATE] / 1e5 for sample in taken[SEEN])
    return (
        Ratio(
            case=case,
            quantity=RATE,
            of=SEEN,
            to=TEN_SECONDS,
            samples=per_target,
            at_least=TARGET,
        ),
        ratio(COST, SEEN, READ),
        ratio(COST, SEEN, DUCKDB),
    )
