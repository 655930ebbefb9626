"""Arrow values as JSON has them: the same text as `read --json` shows of the same row."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import pyarrow as pa
import pytest

import eventlog
from eventlog.changes.plain import plain_rows, plain_value
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
