"""The demo's model, seen from outside: a process that follows the log, and the streams it writes.

::

    flights ──▶ python -m inference.flights ──▶ late-predictions    made at departure
                                            ──▶ late-labels         joined when the flight landed
                                            ──▶ late-metrics        by the hour, in event time
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import eventlog

MODULE = "inference.flights"
PREDICTIONS = "late-predictions"
LABELS = "late-labels"
METRICS = "late-metrics"
LATE_MINUTES = 15

_LEAST = 1e-15
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A prediction beside what came true. Delays in minutes."""

    departed: datetime
    name: str
    route: str
    dep_delay: int
    proba: float
    arr_delay: int

    @property
    def right(self) -> bool:
        return (self.proba >= 0.5) == (self.arr_delay > LATE_MINUTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """The score of the labels of one hour that begins at `start`."""

    start: datetime
    labels: int
    log_loss: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """All labels. `base_log_loss` is that of always saying the share of late flights."""

    predictions: int
    labels: int
    late: float
    log_loss: float
    base_log_loss: float
    bias: float
    right: float


def followed(log: eventlog.Log) -> int:
    """The offset that the model's consumer has come to; 0 where it has not begun."""
    return next((info.offset for info in log.consumers() if info.name == PREDICTIONS), 0)


def score_of(log: eventlog.Log) -> Score | None:
    """Score every label; None where there are none."""
    labels = [event.value for event in log.stream(LABELS).read()]
    if not labels:
        return None
    truth = np.array([label["value"] for label in labels], np.float64)
    proba = np.array([label["proba"] for label in labels], np.float64)
    share = float(truth.mean())
    return Score(
        predictions=log.stream(PREDICTIONS).end,
        labels=len(labels),
        late=share,
        log_loss=_log_loss(truth, proba),
        base_log_loss=_log_loss(truth, np.full(len(truth), share)),
        bias=float(proba.mean()) - share,
        right=float(np.mean((proba >= 0.5) == (truth == 1))),
    )


def hours_of(log: eventlog.Log, last: int) -> list[Hour]:
    """The `last` hours of the metrics stream, oldest first."""
    hours: dict[int, dict[str, Any]] = {}
    for event in log.stream(METRICS).read():
        metric = event.value
        found = hours.setdefault(metric["window"][0], {"n": metric["n"]})
        found[metric["name"]] = metric["value"]
    return [
        Hour(start=_utc(start), labels=h["n"], log_loss=h["log_loss"], bias=h["bias"])
        for start, h in sorted(hours.items())[-last:]
    ]


def flights_of(log: eventlog.Log, source: str, count: int) -> list[Flight]:
    """`count` predictions whose truth came, evenly spaced over all of them."""
    labels = log.stream(LABELS)
    places = np.linspace(labels.start, labels.end - 1, min(count, labels.end), dtype=int)
    stream = log.stream(source)
    chosen = {}
    for place in places.tolist():
        (label,) = labels.read(place, place + 1)
        offset = label.value["instance"]["offset"]
        (departure,) = stream.read(offset, offset + 1)
        chosen[departure.key] = (label.value["proba"], departure.row)
    rows = log.snapshot(source).table("public.flights").to_arrow(["id", "arr_delay"])
    delays = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    return [
        Flight(
            departed=row["dep_time"],
            name=f"{row['carrier']} {row['flight']}",
            route=f"{row['origin']}-{row['dest']}",
            dep_delay=row["dep_delay"],
            proba=proba,
            arr_delay=delays[key],
        )
        for key, (proba, row) in chosen.items()
    ]


def _log_loss(truth: Any, proba: Any) -> float:
    p = np.clip(proba, _LEAST, 1 - _LEAST)
    return -math.fsum(truth * np.log(p) + (1 - truth) * np.log(1 - p)) / len(truth)


def _utc(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / _MICROSECONDS, UTC)
