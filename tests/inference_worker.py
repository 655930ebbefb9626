"""A worker to kill: `python -m tests.inference_worker LOG` works through the stream `air`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import eventlog
from inference import Task, Worker

LATE = Task(
    name="late",
    version=1,
    source="air",
    table="public.flights",
    when="dep_time is not null and old.dep_time is null",
    features={"dep_delay": "dep_delay::DOUBLE", "carrier": "carrier"},
    target="(arr_delay > 15)::INTEGER",
    time="dep_time",
    label_time="arr_time",
)


class Steep:
    """A model whose prediction follows from the departure's delay alone."""

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        delay = np.array([0.0 if value is None else value for value in X[:, 0]])
        p = 1 / (1 + np.exp(-delay / 10))
        return np.column_stack([1 - p, p])


def work(log: eventlog.Log, *, until: Any = "current") -> None:
    Worker(log, LATE, Steep(), version=1, start=0).run(until=until)


if __name__ == "__main__":
    with eventlog.open(sys.argv[1]) as opened:
        print("working", flush=True)
        work(opened)
        print("done", flush=True)
