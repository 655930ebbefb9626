"""Arrow values as JSON has them: the same text as `read --json` shows of the same row."""

from __future__ import annotations

import datetime as dt
import json
import random
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

import eventlog
from eventlog.changes.plain import plain_array, plain_rows, plain_value
from tests.fix_log import BOOL, BYTEA, FLOAT, INT, NUMERIC, TIMESTAMPTZ, MadeSource, column, insert

DATE, TIME, TIMESTAMP, UUID, INTS = 1082, 1083, 1114, 2950, 1007


def test_a_snapshot_says_what_a_read_says(log: eventlog.Log, shop: MadeSource) -> None:
    kinds = shop.table(
        "kinds",
        column("id", INT, key=True),
        column("money", NUMERIC, typmod=(30 << 16 | 9) + 4),
        column("flag", BOOL),
        column("raw", BYTEA),
        column("at", TIMESTAMPTZ),
        column("plain_at", TIMESTAMP),
        column("day", DATE),
        column("hour", TIME),
        column("f", FLOAT),
        column("text"),
    )
    rows = [
        (1, "0.000000000", "t", "\\x00ff", "2026-01-31 12:00:00.5+00", "2026-01-31 12:00:00",
         "2026-01-31", "12:30:00.25", "0.1", "ü\n"),
        (2, "-12.500000001", "f", "\\x", "1969-12-31 23:59:59.999999+00", "0001-01-01 00:00:00.1",
         "0001-01-01", "00:00:00", "-Infinity", ""),
        (3, None, None, None, None, None, None, None, None, None),
        (4, "1e-9", "t", "\\x5c", "2026-01-31 12:00:00+00", "2026-01-31 12:00:00.000001",
         "9999-12-31", "23:59:59.999999", "NaN", "NaN"),
    ]  # fmt: skip
    rows[3] = (4, "0.000000001", *rows[3][2:])
    shop.commit(*(insert(kinds, *row) for row in rows))
    read = [json.loads(line)["row"] for line in log.stream("shop").read().json_lines()]
    found = plain_rows(log.snapshot("shop").table("kinds").to_arrow())
    assert found == read
    assert json.loads(json.dumps(found, allow_nan=False)) == read


def test_nested_and_foreign_values() -> None:
    table = pa.table(
        {
            "l": [[1.5, float("nan")], None],
            "s": [{"a": Decimal("1.10"), "b": dt.date(2026, 1, 2)}, None],
            "m": pa.array([[("k", b"\x01")], None], pa.map_(pa.string(), pa.binary())),
            "n": pa.nulls(2),
        }
    )
    assert plain_rows(table)[0] == {
        "l": [1.5, "NaN"],
        "s": {"a": "1.10", "b": "2026-01-02"},
        "m": [["k", "\\x01"]],
        "n": None,
    }
    assert plain_rows(table.select([])) == [{}, {}]
    berlin = dt.timezone(dt.timedelta(hours=5, minutes=30))
    assert plain_value(dt.datetime(2026, 1, 2, 3, 4, tzinfo=berlin)) == "2026-01-02 03:04:00+05:30"
    assert plain_value(dt.timedelta(days=1)) == "1 day, 0:00:00"


@pytest.mark.parametrize("values", [[1.0, None], [None, None], [], [float("inf"), 2.0]])
def test_floats(values: list[float | None]) -> None:
    found = plain_rows(pa.table({"x": pa.array(values, pa.float64())}))
    wanted = ["Infinity" if value == float("inf") else value for value in values]
    assert [row["x"] for row in found] == wanted


def oracle(micro: int, *, zoned: bool) -> str:
    """A timestamp of Python's range as Postgres writes it, by Python."""
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=micro)
    text = moment.isoformat(" ")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text + ("+00" if zoned else "")


def test_texts_of_any_time_are_python_s() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    first, last = -62_135_596_800 * 10**6, 253_402_300_800 * 10**6
    micros = [chance.randrange(first, last) for _ in range(300)]
    micros += [first, last - 1, -1, 0, 1, 500_000, 10**6, -(10**6), 86_400 * 10**6 - 1]
    values: list[int | None] = [*micros, None]
    for zone in (None, "UTC"):
        array = pa.array(values, pa.timestamp("us", zone))
        wanted = [None if v is None else oracle(v, zoned=bool(zone)) for v in values]
        for start in (0, 5):
            assert plain_array(array.slice(start)) == wanted[start:]
    days = [micro // (86_400 * 10**6) for micro in micros]
    wanted_days = [(dt.date(1970, 1, 1) + dt.timedelta(days=d)).isoformat() for d in days]
    assert plain_array(pa.array(days, pa.date32())) == wanted_days
    assert plain_array(pa.array([d * 86_400_000 for d in days], pa.date64())) == wanted_days
    clock = [micro % (86_400 * 10**6) for micro in micros]
    wanted_clock = [oracle(micro, zoned=False)[11:] for micro in clock]
    assert plain_array(pa.array(clock, pa.time64("us"))) == wanted_clock


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (pa.array([2**63 - 1, -(2**63 - 1)], pa.timestamp("us")), ["infinity", "-infinity"]),
        (pa.array([2**31 - 1, -(2**31 - 1)], pa.date32()), ["infinity", "-infinity"]),
        (pa.array([-719_163, -719_162], pa.date32()), ["0001-12-31 BC", "0001-01-01"]),
        (pa.array([-719_528, 2_932_897], pa.date32()), ["0001-01-01 BC", "10000-01-01"]),
        (
            pa.array([-62_135_596_800_000_001], pa.timestamp("us", "UTC")),
            ["0001-12-31 23:59:59.999999+00 BC"],
        ),
        (pa.array([1_500, None], pa.timestamp("ms")), ["1970-01-01 00:00:01.5", None]),
        (pa.array([1], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001"]),
        (pa.array([5], pa.timestamp("s")), ["1970-01-01 00:00:05"]),
        (pa.array([86_400_000_000, 0], pa.time64("us")), ["24:00:00", "00:00:00"]),
        (pa.array([1_001], pa.time32("ms")), ["00:00:01.001"]),
        (
            pa.array(
                [Decimal("1E-9"), Decimal("0E-9"), Decimal("-123.000000001"), None],
                pa.decimal128(38, 9),
            ),
            ["0.000000001", "0.000000000", "-123.000000001", None],
        ),
        (pa.array([(0, 0, 0), (-14, 3, -90_061_000_001_000), (12, 0, 0), None],
                  pa.month_day_nano_interval()),
         ["PT0S", "P-1Y-2M3DT-25H-1M-1.000001S", "P1Y", None]),
        (pa.array([0.1, None, 1e30, float("-inf")], pa.float32()), [0.1, None, 1e30, "-Infinity"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array([b"\x00", None], pa.large_binary()), ["\\x00", None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_values_that_python_or_arrow_would_write_otherwise(
    array: pa.Array, wanted: list[str | None]
) -> None:
    assert plain_array(array) == wanted
    assert plain_array(pa.array([wanted[:1]])) == [wanted[:1]]


def test_nested_values_of_any_slice() -> None:
    single = pa.float32()
    arrays = [
        pa.array([[("k", 1.5)], None, [], [("a", 2.0), ("b", None)]], pa.map_(pa.string(), single)),
        pa.array([[0.1, None], None, [], [2.5]] * 2, pa.list_(single)),
        pa.array([[0.1, 2], None, [3, 4], [5, None]], pa.list_(single, 2)),
        pa.array([["a"], None, ["b", "c"]], pa.large_list(pa.string())),
        pa.array([{"a": [1], "b": 0.1}, None, {"a": None, "b": None}],
                 pa.struct([("a", pa.list_(pa.int64())), ("b", single)])),
    ]  # fmt: skip
    wholes: list[list[Any]] = [
        [[["k", 1.5]], None, [], [["a", 2.0], ["b", None]]],
        [[0.1, None], None, [], [2.5]] * 2,
        [[0.1, 2.0], None, [3.0, 4.0], [5.0, None]],
        [["a"], None, ["b", "c"]],
        [{"a": [1], "b": 0.1}, None, {"a": None, "b": None}],
    ]
    for array, whole in zip(arrays, wholes, strict=True):
        for start in range(len(array) + 1):
            for stop in range(start, len(array) + 1):
                assert plain_array(array.slice(start, stop - start)) == whole[start:stop]
