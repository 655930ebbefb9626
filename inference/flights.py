"""The demo's model: will a flight arrive more than 15 minutes late, asked when it departs?

    python -m inference.flights --log DIR [--source flights] [--train-until TIME] [--until current]

Trains on the instances of the stream up to where the event time passes TIME, as they were seen,
then predicts the rest as it comes. A model is refitted from its recorded range after a restart.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from eventlog.errors import EventLogError, UsageError
from inference.dataset import READ_ROWS, build
from inference.task import Task
from inference.worker import Worker

if TYPE_CHECKING:
    from eventlog import Log

SEED = 7
_CATEGORIES = (3, 4)


def late_task(source: str) -> Task:
    """Arrival more than 15 minutes late, from what is known at departure."""
    return Task(
        name="late",
        version=1,
        source=source,
        table="public.flights",
        when="dep_time is not null and old.dep_time is null",
        features={
            "dep_delay": "dep_delay::DOUBLE",
            "distance": "distance::DOUBLE",
            "hour": "hour(sched_dep)::DOUBLE",
            "origin": "origin",
            "carrier": "carrier",
        },
        target="(arr_delay > 15)::INTEGER",
        time="dep_time",
        label_time="arr_time",
    )


def estimator() -> Any:
    """Gradient boosting over ordinal codes; the same bytes whatever the batch (MODELS, 6)."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer(
        [("codes", codes, list(_CATEGORIES))], remainder="passthrough", sparse_threshold=0
    )
    return make_pipeline(columns, HistGradientBoostingClassifier(max_iter=80, random_state=SEED))


def training_stop(log: Log, task: Task, boundary: datetime, until: Any, stopped: Any) -> int | None:
    """The offset of the first departure at `boundary` or later; None if none came.

    Waits for it, unless `until` is `current`.
    """
    following = log.stream(task.source).follow(
        "begin", table=task.table, max_rows=READ_ROWS, until=until, stop=stopped
    )
    for batch in following:
        for change in batch:
            departure = (change.row or {}).get("dep_time")
            if isinstance(departure, datetime) and departure >= boundary:
                return int(change.offset)
    return None


def trained(
    log: Log, task: Task, boundary: datetime, until: Any, stopped: Any
) -> tuple[Any, int] | None:
    """The model and where its training ends; recorded at the first call, refitted later."""
    models = log.stream(task.models, create=True)
    known = next(iter(models.read()), None)
    if known is None:
        stop = training_stop(log, task, boundary, until, stopped)
        if stop is None:
            return None
    else:
        stop = int(known.value["training"]["stop"])
    data = build(log, task, stop=stop)
    if len(set(data.y.tolist())) < 2:
        raise UsageError(
            f"{len(data.y)} labelled instances before offset {stop} do not show both outcomes",
            hint="train on more: choose a later --train-until",
        )
    model = estimator().fit(data.X, data.y)
    if known is None:
        training = {"stream": task.source, "start": data.start, "stop": stop, "rows": len(data.y)}
        models.append(
            {"v": 1, "model": task.name, "version": 1, "seed": SEED, "training": training}
        )
    return model, stop


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m inference.flights",
        description="Train at departure, then predict, join labels and score by the hour.",
        epilog="Example: python -m inference.flights --log eventlog-demo --until current",
    )
    parser.add_argument("--log", required=True, help="the log's directory")
    parser.add_argument("--source", default="flights", help="the captured stream (flights)")
    parser.add_argument(
        "--train-until", default="2013-02-01", help="event time, ISO 8601, UTC (2013-02-01)"
    )
    parser.add_argument("--until", choices=["current"], help="end at the stream's end now")
    return parser.parse_args()


def main() -> None:
    """Run the model on a log; exits with 1 on a failure that it explains."""
    import eventlog

    told = arguments()

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    boundary = datetime.fromisoformat(told.train_until)
    boundary = boundary if boundary.tzinfo else boundary.replace(tzinfo=UTC)
    try:
        with eventlog.open(told.log) as log:
            task = late_task(told.source)
            began = time.monotonic()
            found = trained(log, task, boundary, told.until, lambda: stopping)
            if found is None:
                if stopping:
                    return
                raise UsageError(
                    f"no flight departs at {boundary:%Y-%m-%d %H:%M} UTC or later in this stream",
                    hint="choose an earlier --train-until, or leave --until out to wait for one",
                )
            model, start = found
            fitted = time.monotonic()
            worker = Worker(log, task, model, version=1, start=start)
            worked = worker.run(until=told.until, stop=lambda: stopping)
    except EventLogError as error:
        print(f"Error: {error}\nHint: {error.hint}", file=sys.stderr)
        sys.exit(1)
    seconds = {"training": fitted - began, "predicting": time.monotonic() - fitted}
    print(
        json.dumps(
            {
                "trained_to": start,
                "predictions": worked.predictions,
                "labels": worked.labels,
                "metrics": worked.metrics,
                "offset": worked.offset,
                "seconds": {name: round(value, 2) for name, value in seconds.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
