"""A training set: instances as they were seen, labelled by what came later, up to a cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from inference.expressions import Evaluated, Evaluator
from inference.seen import RowsAsSeen
from inference.task import Task
from inference.waiting import Waiting

if TYPE_CHECKING:
    from eventlog import Log

READ_ROWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """`X` has a row per labelled instance and a column per feature; `ids` are their offsets.

    Unpacks as `X, y, ids`. Instances without a label before `stop` are not in it.
    """

    X: npt.NDArray[np.object_]
    y: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    start: int
    stop: int

    def __iter__(self) -> Any:
        return iter((self.X, self.y, self.ids))


def matrix(rows: list[tuple[Any, ...]], columns: int) -> npt.NDArray[np.object_]:
    """Feature tuples as the matrix that models are given, live and in training: (rows, columns)."""
    filled = np.empty((len(rows), columns), dtype=object)
    for i, row in enumerate(rows):
        filled[i, :] = row
    return filled


def build(log: Log, task: Task, *, stop: int) -> Dataset:
    """The labelled instances of `[start of the stream, stop)`.

    A label is the target's value in the first later version of the row that has one.
    """
    waiting: Waiting[Evaluated] = Waiting()
    labelled: list[tuple[Evaluated, float]] = []
    evaluator = evaluator_of(log, task)
    rows = RowsAsSeen()
    stream = log.stream(task.source)
    start = stream.start
    for batch in stream.read(start, stop, table=task.table).batches(READ_ROWS):
        for found in evaluator.evaluate(rows.fold(batch)):
            for instance in waiting.meet(found):
                assert found.target is not None
                labelled.append((instance, found.target))
            if found.instance:
                waiting.add(found, found)
    labelled.sort(key=lambda pair: pair[0].offset)
    return Dataset(
        X=matrix([instance.features for instance, _ in labelled], len(task.features)),
        y=np.array([value for _, value in labelled], np.float64),
        ids=np.array([instance.offset for instance, _ in labelled], np.int64),
        start=start,
        stop=stop,
    )


def evaluator_of(log: Log, task: Task) -> Evaluator:
    """The task's expressions over the table's columns as the stream's end has them."""
    end = log.stream(task.source).end
    empty = log.stream(task.source).read(end, end, table=task.table).to_arrow()
    schema = empty.schema
    for name in ("_offset", "_op", "_time"):
        schema = schema.remove(schema.get_field_index(name))
    return Evaluator(task, schema)
