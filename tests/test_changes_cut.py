"""Cuts: offsets, times, and the bounds of source transactions."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

import eventlog
from eventlog.changes.cut import cut_of, microseconds, offset_of
from eventlog.changes.schema import Schema
from eventlog.errors import CutInsideTransaction, OffsetOutOfRange, UsageError
from tests.fix_log import HOUR_US, INT, T0_US, MadeSource, column, insert


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    return shop.table("orders", column("id", INT, key=True))


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-01-01", T0_US),
        ("2026-01-01T01:00Z", T0_US + HOUR_US),
        ("2026-01-01 01:00", T0_US + HOUR_US),
        ("2026-01-01T02:30:00.000001+01:30", T0_US + HOUR_US + 1),
        (dt.date(2026, 1, 1), T0_US),
        (dt.datetime(2026, 1, 1, 1), T0_US + HOUR_US),
        (dt.datetime(2026, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))), T0_US),
        ("1969-12-31T23:59:59.999999Z", -1),
    ],
)
def test_times_without_a_zone_are_utc(time: Any, expected: int) -> None:
    assert microseconds(time) == expected


@pytest.mark.parametrize("time", ["yesterday", "2026-13-01", "", "12:00", True, 1.5, None])
def test_what_is_no_time_is_refused(log: eventlog.Log, time: Any) -> None:
    log.stream("clicks", create=True)
    with pytest.raises(UsageError, match="neither an offset nor a time"):
        cut_of(log.engine, "clicks", time)


def test_an_offset_of_numpy_is_an_offset(log: eventlog.Log) -> None:
    log.stream("clicks", create=True).append_many([1, 2])
    offset = offset_of(log.engine, "clicks", np.int64(1))
    assert (offset, type(offset)) == (1, int)
    with pytest.raises(UsageError):
        offset_of(log.engine, "clicks", np.bool_(True))


def test_a_cut_inside_a_transaction_moves_back_to_its_start(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1), insert(orders, 2))
    shop.commit(*(insert(orders, number) for number in range(3, 7)), split=True)
    engine = log.engine
    stops = [cut_of(engine, "shop", at).stop for at in range(7)]
    assert stops == [0, 0, 2, 2, 2, 2, 6]
    assert cut_of(engine, "shop", "4").stop == 2
    assert cut_of(engine, "shop", "end").stop == 6
    assert cut_of(engine, "shop", 2, strict=True).stop == 2
    with pytest.raises(CutInsideTransaction) as caught:
        cut_of(engine, "shop", 3, strict=True)
    assert "cut at 2" in caught.value.hint
    with pytest.raises(OffsetOutOfRange):
        cut_of(engine, "shop", 7)


def test_a_cut_tells_the_time_of_the_last_record_below_it(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1))
    shop.commit(insert(orders, 2))
    engine = log.engine
    assert cut_of(engine, "shop", 0).time is None
    assert cut_of(engine, "shop", 1).time == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert cut_of(engine, "shop", "end").time == dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC)


def test_a_time_is_the_first_offset_whose_running_greatest_time_reached_it(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    for number, hours in enumerate([0, 3, 1, 2, 4]):
        shop.commit(insert(orders, number), time_us=T0_US + hours * HOUR_US)
    stream = shop.stream
    hours = ["2025-01-01", *(f"2026-01-01T0{hour}:00Z" for hour in range(6))]
    assert [stream.offset_at(time) for time in hours] == [0, 0, 1, 1, 1, 4, 5]
    assert cut_of(log.engine, "shop", dt.datetime(2026, 1, 1, 4)).stop == 4


def test_events_have_no_source_transactions(log: eventlog.Log) -> None:
    log.stream("clicks", create=True).append_many(range(10))
    assert cut_of(log.engine, "clicks", 5, strict=True).stop == 5
