"""A first model: what it sees, what it says once, and what a kill cannot change."""

from __future__ import annotations

import math
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.changes.schema import Schema
from eventlog.errors import ConsumerFenced, UsageError
from inference import Worker, build
from tests.fix_log import (
    BIGINT,
    INT,
    TIMESTAMPTZ,
    MadeSource,
    column,
    delete,
    insert,
    truncate,
    update,
)
from tests.inference_worker import LATE, Steep, work

START = datetime(2013, 1, 1, tzinfo=UTC)
STREAMS = (LATE.predictions, LATE.labels, LATE.metrics)


@pytest.fixture
def air(log: eventlog.Log) -> Iterator[MadeSource]:
    source = MadeSource(log, "air")
    yield source
    source.close()


def flights(source: MadeSource) -> Schema:
    return source.table(
        "flights",
        column("id", BIGINT, key=True),
        column("carrier"),
        column("dep_delay", INT),
        column("dep_time", TIMESTAMPTZ),
        column("arr_delay", INT),
        column("arr_time", TIMESTAMPTZ),
    )


def stamp(minutes: int) -> str:
    return (START + timedelta(minutes=minutes)).strftime("%Y-%m-%d %H:%M:%S+00")


def fly(source: MadeSource, schema: Schema, count: int, seed: int) -> list[tuple[int, int, int]]:
    """Many flights' lives, interleaved; returns (key, dep_delay, arr_delay) of those that land."""
    chance = random.Random(seed)
    events: list[tuple[int, int, Any]] = []
    landed = []
    for key in range(count):
        at, delay, carrier = chance.randrange(3000), chance.randrange(-10, 60), chance.choice("AB")
        arrival, arr_delay = at + chance.randrange(40, 300), delay + chance.randrange(-30, 30)
        events.append((at - 200, key, insert(schema, key, carrier, None, None, None, None)))
        if chance.random() < 0.1:
            events.append((at, key, delete(schema, key, None, None, None, None, None)))
            continue
        left = (key, carrier, delay, stamp(at))
        events.append((at, key, update(schema, *left, None, None)))
        if chance.random() < 0.2:
            edited = (key, carrier, delay + 500, stamp(at))
            events.append((at + 20, key, update(schema, *edited, None, None)))
        events.append((arrival, key, update(schema, *left, arr_delay, stamp(arrival))))
        landed.append((key, delay, arr_delay))
    events.sort(key=lambda event: event[:2])
    at = 0
    while at < len(events):
        size = chance.randrange(1, 40)
        source.commit(*(record for _, _, record in events[at : at + size]))
        at += size
    return landed


def outputs(log: eventlog.Log) -> dict[str, list[Any]]:
    return {name: [event.value for event in log.stream(name).read()] for name in STREAMS}


def test_a_training_row_is_the_row_as_it_was_seen(log: eventlog.Log, air: MadeSource) -> None:
    schema = flights(air)
    air.commit(insert(schema, 1, "A", None, None, None, None))
    left = air.commit(update(schema, 1, "A", 7, stamp(0), None, None))
    air.commit(update(schema, 1, "B", 99, stamp(0), None, None))
    air.commit(update(schema, 1, "B", 99, stamp(0), 40, stamp(90)))
    X, y, ids = build(log, LATE, stop=air.stream.end)  # noqa: N806
    assert (X.tolist(), y.tolist(), ids.tolist()) == ([[7.0, "A"]], [1.0], [left.start])


def test_a_label_beyond_the_cut_is_not_known(log: eventlog.Log, air: MadeSource) -> None:
    schema = flights(air)
    air.commit(insert(schema, 1, "A", None, None, None, None))
    air.commit(update(schema, 1, "A", 7, stamp(0), None, None))
    landing = air.commit(update(schema, 1, "A", 7, stamp(0), 40, stamp(90)))
    assert len(build(log, LATE, stop=landing.start).y) == 0
    assert len(build(log, LATE, stop=landing.stop).y) == 1


def test_every_departure_is_predicted_once_and_joined_once(
    log: eventlog.Log, air: MadeSource
) -> None:
    seed = 20
    print("seed", seed)
    landed = fly(air, flights(air), 400, seed)
    work(log)
    made = outputs(log)
    keys = [p["key"] for p in made[LATE.predictions]]
    assert sorted(keys) == sorted(key for key, _, _ in landed)
    expected = {key: 1 / (1 + math.exp(-delay / 10)) for key, delay, _ in landed}
    assert {p["key"]: p["proba"] for p in made[LATE.predictions]} == pytest.approx(expected)
    truth = {key: float(arr_delay > 15) for key, _, arr_delay in landed}
    assert len(made[LATE.labels]) == len(landed)
    assert {label["key"]: label["value"] for label in made[LATE.labels]} == truth


def test_the_hourly_score_is_that_of_a_plain_model(log: eventlog.Log, air: MadeSource) -> None:
    seed = 21
    print("seed", seed)
    fly(air, flights(air), 300, seed)
    work(log)
    made = outputs(log)
    hours: dict[int, list[tuple[float, float]]] = {}
    latest = -1
    for label in made[LATE.labels]:
        latest = max(latest, label["event_us"] // 3_600_000_000)
        hours.setdefault(latest, []).append((label["proba"], label["value"]))
    closed = sorted(hours)[:-1]
    losses = [m for m in made[LATE.metrics] if m["name"] == "log_loss"]
    assert [m["window"][0] // 3_600_000_000 for m in losses] == closed
    for metric, hour in zip(losses, closed, strict=True):
        pairs = hours[hour]
        loss = sum(-math.log(p if y else 1 - p) for p, y in pairs) / len(pairs)
        assert (metric["n"], metric["value"]) == (len(pairs), pytest.approx(loss))
    biases = [m["value"] for m in made[LATE.metrics] if m["name"] == "bias"]
    means = [sum(p - y for p, y in hours[hour]) / len(hours[hour]) for hour in closed]
    assert biases == pytest.approx(means)


def test_a_run_in_pieces_gives_what_a_whole_run_gives(
    log: eventlog.Log, air: MadeSource, tmp_path: Path
) -> None:
    seed = 22
    print("seed", seed)
    fly(air, flights(air), 200, seed)
    shutil.copytree(log.path, tmp_path / "whole")
    with eventlog.open(tmp_path / "whole") as whole:
        work(whole)
        expected = outputs(whole)
    chance, end = random.Random(seed), air.stream.end
    for until in sorted(chance.randrange(1, end) for _ in range(8)):
        work(log, until=until)
    work(log)
    assert outputs(log) == expected


def test_a_worker_killed_at_random_moments_predicts_everything_once(
    log: eventlog.Log, air: MadeSource, tmp_path: Path
) -> None:
    seed = 23
    print("seed", seed)
    fly(air, flights(air), 12_000, seed)
    shutil.copytree(log.path, tmp_path / "whole")
    with eventlog.open(tmp_path / "whole") as whole:
        work(whole)
        expected = outputs(whole)
    chance = random.Random(seed)
    command = [sys.executable, "-m", "tests.inference_worker", str(log.path)]
    killed = 0
    for _ in range(12):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "working\n"
            try:
                worker.wait(chance.uniform(0.05, 1.0))
            except subprocess.TimeoutExpired:
                worker.kill()
                killed += 1
    assert killed >= 5
    work(log)
    assert outputs(log) == expected


def test_a_second_worker_of_a_task_is_fenced(log: eventlog.Log, air: MadeSource) -> None:
    schema = flights(air)
    air.commit(insert(schema, 1, "A", None, None, None, None))
    air.commit(update(schema, 1, "A", 7, stamp(0), None, None))
    model = Steep()

    class Overtaken(Steep):
        def predict_proba(self, X: Any) -> Any:  # noqa: N803
            Worker(log, LATE, model, version=1, start=0).run(until="current")
            return super().predict_proba(X)

    with pytest.raises(ConsumerFenced):
        Worker(log, LATE, Overtaken(), version=1, start=0).run(until="current")
    assert len(outputs(log)[LATE.predictions]) == 1


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("no_such_column > 1", "an expression of task 'late' fails"),
        ("1 +", "an expression of task 'late' fails"),
        ("(select 1 from read_csv('/x'))", "'when' of task 'late' is not row by row"),
        ("max(arr_delay) over () > 1", "'when' of task 'late' is not row by row"),
        ("true), (false", "'when' of task 'late' is not one expression"),
    ],
)
def test_a_wrong_expression_is_refused(
    log: eventlog.Log, air: MadeSource, when: str, said: str
) -> None:
    import dataclasses

    schema = flights(air)
    air.commit(insert(schema, 1, "A", None, None, None, None))
    with pytest.raises(UsageError, match=said):
        build(log, dataclasses.replace(LATE, when=when), stop=air.stream.end)


def test_an_instance_that_labels_another_is_predicted_too(
    log: eventlog.Log, air: MadeSource
) -> None:
    schema = flights(air)
    air.commit(insert(schema, 1, "A", None, None, None, None))
    first = air.commit(update(schema, 1, "A", 7, stamp(0), None, None))
    air.commit(update(schema, 1, "A", None, None, None, None))
    second = air.commit(update(schema, 1, "A", 9, stamp(60), 40, stamp(50)))
    work(log)
    made = outputs(log)
    assert [p["instance"]["offset"] for p in made[LATE.predictions]] == [first.start, second.start]
    assert [label["instance"]["offset"] for label in made[LATE.labels]] == [first.start]


def test_a_label_finds_its_instance_under_a_changed_key(log: eventlog.Log, air: MadeSource) -> None:
    schema = flights(air)
    air.commit(insert(schema, 1, "A", None, None, None, None))
    air.commit(update(schema, 1, "A", 7, stamp(0), None, None))
    renamed = (1, None, None, None, None, None)
    air.commit(update(schema, 2, "A", 7, stamp(0), None, None, key=renamed))
    air.commit(update(schema, 2, "A", 7, stamp(0), 40, stamp(90)))
    work(log)
    assert [label["key"] for label in outputs(log)[LATE.labels]] == [2]


def test_a_truncate_ends_the_waiting(log: eventlog.Log, air: MadeSource) -> None:
    schema = flights(air)
    air.commit(insert(schema, 1, "A", None, None, None, None))
    air.commit(update(schema, 1, "A", 7, stamp(0), None, None))
    air.commit(truncate(schema))
    air.commit(insert(schema, 1, "A", 7, stamp(0), 40, stamp(90)))
    work(log)
    assert outputs(log)[LATE.labels] == []


def test_a_worker_may_run_again(log: eventlog.Log, air: MadeSource) -> None:
    schema = flights(air)
    worker = None
    for key in range(3):
        air.commit(insert(schema, key, "A", None, None, None, None))
        air.commit(update(schema, key, "A", 7, stamp(key), None, None))
        air.commit(update(schema, key, "A", 7, stamp(key), 40, stamp(90 * (key + 1))))
        worker = worker or Worker(log, LATE, Steep(), version=1, start=0)
        worker.run(until="current")
    assert [label["key"] for label in outputs(log)[LATE.labels]] == [0, 1, 2]
