"""Applies a schedule of flights to a Postgres database, as the airlines' application would.

::

    schedule   ·· · ··· │ ··  ···· │ · ··  │ ····    events in the order of their time
    windows             │ 10 min   │       │         one transaction each, where any event fell in
    chunks     ├────────┴──────────┼───────┴─────    sent in one pipeline; progress after each

Every event is a statement of its own, on one row. Windows are counted from midnight UTC, whatever
part of the schedule is replayed; inside one, the statements go by kind in the order of `Event`.
That is each row's own order, for no flight has two events so close: three hours lie between
schedule and departure (no flight leaves an hour early), 33 minutes or more between departure
and arrival. The same schedule makes the same transactions every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg

from cdc.demo.flights import Event, Schedule
from eventlog.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WINDOW_MINUTES = 10
WINDOW_MINUTES_MAX = 30  # a longer one could hold a departure and its arrival
BATCH_TRANSACTIONS = 32

TABLES = """
create table flights (
    id bigint primary key,
    carrier text not null,
    flight int not null,
    tailnum text,
    origin text not null,
    dest text not null,
    distance int not null,
    sched_dep timestamptz not null,
    sched_arr timestamptz not null,
    dep_time timestamptz,
    dep_delay int,
    arr_time timestamptz,
    arr_delay int,
    air_time int
);
create table weather (
    origin text not null,
    time_hour timestamptz not null,
    temp float8,
    dewp float8,
    humid float8,
    wind_dir int,
    wind_speed float8,
    wind_gust float8,
    precip float8,
    pressure float8,
    visib float8,
    primary key (origin, time_hour)
);
"""

# Per kind of event the statement, and the columns of the schedule's table that it takes.
_STATEMENTS: dict[Event, tuple[str, str]] = {
    Event.OBSERVED: (
        "insert into weather (origin, time_hour, temp, dewp, humid, wind_dir, wind_speed,"
        " wind_gust, precip, pressure, visib) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        "origin time_hour temp dewp humid wind_dir wind_speed wind_gust precip pressure visib",
    ),
    Event.SCHEDULED: (
        "insert into flights (id, carrier, flight, tailnum, origin, dest, distance, sched_dep,"
        " sched_arr) values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        "id carrier flight tailnum origin dest distance sched_dep sched_arr",
    ),
    Event.DEPARTED: (
        "update flights set dep_time = %s, dep_delay = %s where id = %s",
        "dep_time dep_delay id",
    ),
    Event.LANDED: (
        "update flights set arr_time = %s, arr_delay = %s, air_time = %s where id = %s",
        "arr_time arr_delay air_time id",
    ),
    Event.CANCELLED: ("delete from flights where id = %s", "id"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What was done: rows by operation, as the server counted them, and transactions."""

    inserted: int
    updated: int
    deleted: int
    transactions: int


def create_tables(dsn: str) -> None:
    """Create the empty tables `flights` and `weather`. Raises `SourceError`."""
    try:
        with psycopg.connect(dsn) as connection:
            connection.execute(TABLES)
    except psycopg.Error as error:
        raise _fault("the demo's tables cannot be created", error) from error


def replay(
    dsn: str,
    schedule: Schedule,
    *,
    start: int = 0,
    stop: int | None = None,
    window_minutes: int = WINDOW_MINUTES,
    batch_transactions: int = BATCH_TRANSACTIONS,
    progress: Callable[[int, np.datetime64], None] | None = None,
) -> Replayed:
    """Apply the events `[start, stop)` of the schedule, all of them without `stop`.

    A transaction takes the events of `window_minutes` (1 to 30) of their time. After every
    `batch_transactions` the server's answers are awaited and `progress(done, at)` is called: the
    index of the next event, and the time (UTC) of the last one committed. A `start` or `stop`
    inside a window splits its transaction. Raises `SourceError` when the database refuses, or holds
    other rows than the events before `start` left; what was committed by then stays.
    """
    stop = len(schedule) if stop is None else stop
    if not 0 <= start <= stop <= len(schedule):
        raise UsageError(
            f"events [{start}, {stop}) lie outside the schedule of {len(schedule)}",
            hint="choose 0 <= start <= stop <= len(schedule)",
        )
    if not 1 <= window_minutes <= WINDOW_MINUTES_MAX:
        raise UsageError(
            f"a window of {window_minutes} minutes cannot be replayed",
            hint=f"choose 1 to {WINDOW_MINUTES_MAX} minutes",
        )
    if batch_transactions < 1:
        raise UsageError(
            f"a batch of {batch_transactions} transactions cannot be sent",
            hint="choose 1 or more",
        )
    edges = _edges(schedule, start, stop, window_minutes)
    counts = dict.fromkeys(Event, 0)
    try:
        with psycopg.connect(dsn) as connection:
            connection.execute("set time zone 'UTC'")  # the schedule's times come without a zone
            connection.commit()
            for first in range(0, len(edges) - 1, batch_transactions):
                batch = edges[first : first + batch_transactions + 1]
                _apply(connection, schedule, batch, counts)
                if progress:
                    progress(batch[-1], schedule.at[batch[-1] - 1])
    except psycopg.Error as error:
        raise _fault("the replay of the flights stopped", error) from error
    return Replayed(
        inserted=counts[Event.OBSERVED] + counts[Event.SCHEDULED],
        updated=counts[Event.DEPARTED] + counts[Event.LANDED],
        deleted=counts[Event.CANCELLED],
        transactions=len(edges) - 1,
    )


def _edges(schedule: Schedule, start: int, stop: int, window_minutes: int) -> list[int]:
    """Return where transactions begin in `[start, stop)`, and `stop`."""
    if start == stop:
        return [stop]
    window = schedule.at[start:stop].astype("datetime64[m]").astype(np.int64) // window_minutes
    inner = np.flatnonzero(np.diff(window)) + 1 + start
    return [start, *inner.tolist(), stop]


def _apply(
    connection: psycopg.Connection[Any],
    schedule: Schedule,
    edges: list[int],
    counts: dict[Event, int],
) -> None:
    sent = []
    with connection.pipeline():
        for start, stop in pairwise(edges):
            for event, rows in _statements(schedule, start, stop):
                cursor = connection.cursor()
                cursor.executemany(_STATEMENTS[event][0], rows)
                sent.append((event, len(rows), cursor))
            connection.commit()
    for event, expected, cursor in sent:
        if cursor.rowcount != expected:
            raise SourceError(
                f"the replay met {cursor.rowcount} of {expected} rows for the event {event.name}",
                hint="replay into tables that create_tables made, from the event reached last",
            )
        counts[event] += expected


def _statements(
    schedule: Schedule, start: int, stop: int
) -> Iterator[tuple[Event, list[tuple[Any, ...]]]]:
    kinds = schedule.event[start:stop]
    rows = schedule.row[start:stop]
    for kind in np.unique(kinds).tolist():
        event = Event(kind)
        chosen = rows[kinds == kind]
        table = schedule.weather if event is Event.OBSERVED else schedule.flights
        columns = [table[name][chosen].tolist() for name in _STATEMENTS[event][1].split()]
        yield event, list(zip(*columns, strict=True))


def _fault(what: str, error: psycopg.Error) -> SourceError:
    said = (error.diag.message_primary or str(error)).strip().splitlines()
    return SourceError(
        f"{what}: {said[0] if said else type(error).__name__}",
        hint="the demo needs a database of its own, with a role that may create tables there",
    )
