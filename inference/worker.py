"""Predict as instances come, join the truth when it comes, score by the hour: one consumer.

A micro-batch's predictions, labels and scores and the consumer's offset commit together (I3), so a
worker that was killed leaves one prediction per instance. What it holds in memory (latest rows,
predictions that wait for their truth, the open hour) is rebuilt by folding the source once more up
to its offset, with the stored predictions in the model's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from inference.dataset import READ_ROWS, evaluator_of, matrix
from inference.expressions import Evaluated
from inference.score import HourlyScore
from inference.seen import RowsAsSeen
from inference.task import Task
from inference.waiting import Waiting

if TYPE_CHECKING:
    from eventlog import Log


class Model(Protocol):
    """A fitted scikit-learn classifier of two classes."""

    def predict_proba(self, X: npt.NDArray[np.object_]) -> Any:  # noqa: N803
        """Probabilities, of shape (rows, 2)."""
        ...


@dataclass(slots=True)
class _Outputs:
    predictions: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What a run did."""

    predictions: int
    labels: int
    metrics: int
    offset: int


class Worker:
    """Runs one model over a task's source, from `start` on."""

    def __init__(self, log: Log, task: Task, model: Model, *, version: int, start: int) -> None:
        """`version` is the model's; instances below offset `start` are not predicted."""
        self._log = log
        self._task = task
        self._model = model
        self._version = version
        self._start = start
        self._evaluator = evaluator_of(log, task)
        for stream in (task.predictions, task.labels, task.metrics):
            log.stream(stream, create=True)

    def run(self, *, until: Any = None, stop: Callable[[], bool] | None = None) -> Worked:
        """Work until the offset `until` (`current`: the end now), until `stop()`, or for ever.

        Raises ConsumerFenced where another worker of this task commits.
        """
        task = self._task
        stream = self._log.stream(task.source)
        consumer = stream.consumer(task.predictions, start=self._start)
        self._rebuild(consumer.offset)
        counts = [0, 0, 0]
        for batch in consumer.follow(table=task.table, max_rows=READ_ROWS, until=until, stop=stop):
            outputs = self._work(batch, self._predict)
            with consumer.commit(batch) as tx:
                made = (outputs.predictions, outputs.labels, outputs.metrics)
                names = (task.predictions, task.labels, task.metrics)
                for i, (name, events) in enumerate(zip(names, made, strict=True)):
                    if events:
                        tx.append(name, events)
                        counts[i] += len(events)
        return Worked(
            predictions=counts[0], labels=counts[1], metrics=counts[2], offset=consumer.offset
        )

    def _rebuild(self, offset: int) -> None:
        self._rows = RowsAsSeen()
        self._waiting: Waiting[tuple[Evaluated, float]] = Waiting()
        self._score = HourlyScore()
        stored = {
            event.value["instance"]["offset"]: event.value["proba"]
            for event in self._log.stream(self._task.predictions).read()
        }

        def remembered(instances: list[Evaluated]) -> list[float]:
            return [stored[instance.offset] for instance in instances]

        stream = self._log.stream(self._task.source)
        records = stream.read(stream.start, offset, table=self._task.table)
        for batch in records.batches(READ_ROWS):
            self._work(batch, remembered)

    def _predict(self, instances: list[Evaluated]) -> list[float]:
        features = matrix([i.features for i in instances], len(self._task.features))
        probabilities: list[float] = self._model.predict_proba(features)[:, 1].tolist()
        return probabilities

    def _work(self, changes: Any, predict: Callable[[list[Evaluated]], list[float]]) -> _Outputs:
        outputs = _Outputs()
        found = self._evaluator.evaluate(self._rows.fold(changes))
        instances = [f for f in found if f.instance and f.offset >= self._start]
        probabilities = dict(
            zip(
                (i.offset for i in instances),
                predict(instances) if instances else [],
                strict=True,
            )
        )
        for seen in found:
            for instance, proba in self._waiting.meet(seen):
                self._join(instance, proba, seen, outputs)
            if seen.offset in probabilities:
                proba = probabilities[seen.offset]
                self._waiting.add(seen, (seen, proba))
                outputs.predictions.append(self._prediction(seen, proba))
        return outputs

    def _join(self, instance: Evaluated, proba: float, seen: Evaluated, outputs: _Outputs) -> None:
        truth = seen.target
        assert truth is not None
        reference = {"stream": self._task.source, "offset": instance.offset}
        outputs.labels.append(
            {
                "v": 1,
                "instance": reference,
                "key": _plain(seen.key),
                "value": truth,
                "event_us": seen.label_us,
                "proba": proba,
                "source": "captured",
            }
        )
        if seen.label_us is None:
            return
        for metric in self._score.add(seen.label_us, proba, truth):
            cut = {self._task.source: seen.offset}
            identity = {"model": self._task.name, "version": self._version, "cut": cut}
            outputs.metrics.append({**metric, **identity})

    def _prediction(self, seen: Evaluated, proba: float) -> dict[str, Any]:
        return {
            "v": 1,
            "instance": {"stream": self._task.source, "offset": seen.offset},
            "key": _plain(seen.key),
            "event_us": seen.event_us,
            "model": self._task.name,
            "version": self._version,
            "value": proba >= 0.5,
            "proba": proba,
        }


def _plain(key: Any) -> Any:
    return dict(key) if isinstance(key, tuple) else key
