"""Evaluate a task's expressions on rows as seen, in a DuckDB that cannot reach anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eventlog.changes.duck import locked_connection
from eventlog.errors import UsageError
from eventlog.snapshots.sql.expression import require_row_wise
from inference.seen import Seen
from inference.task import Task

if TYPE_CHECKING:
    import pyarrow as pa


class Evaluated(NamedTuple):
    """What a task says of one row as seen. Times are µs since 1970 UTC."""

    offset: int
    key: Any
    before: Any
    gone: bool
    instance: bool
    target: float | None
    event_us: int | None
    label_us: int | None
    features: tuple[Any, ...]


class Evaluator:
    """The expressions of one task over the columns of one table. Not shared among threads."""

    def __init__(self, task: Task, schema: pa.Schema) -> None:
        """`schema` gives the columns' types. Raises UsageError for a wrong expression."""
        import pyarrow as pa

        self._task = task
        # Expressions compare times with plain ones: here all are plain UTC.
        self._schema = pa.schema([pa.field(f.name, _without_zone(f.type)) for f in schema])
        self._duckdb = locked_connection(threads=1)
        self._require_row_wise()
        features = [f"({text}\n) AS f{i}" for i, text in enumerate(task.features.values())]
        self._query = " ".join(
            (
                f"SELECT coalesce(({task.when}\n), false) AS is_instance,",
                f"({task.target}\n)::DOUBLE AS target,",
                f"epoch_us(({task.time}\n)::TIMESTAMP) AS event_us,",
                f"epoch_us(({task.label_time}\n)::TIMESTAMP) AS label_us,",
                ", ".join(features),
                "FROM seen",
            )
        )
        self.evaluate([])

    def _require_row_wise(self) -> None:
        """Refuse an expression that looks at other rows: live, those would be of another batch."""
        import duckdb

        task = self._task
        named = {"when": task.when, "target": task.target, "time": task.time}
        named |= {"label_time": task.label_time, **task.features}
        for name, text in named.items():
            try:
                require_row_wise(self._duckdb, text, f"{name!r} of task {task.name!r}")
            except duckdb.Error as error:
                raise _failed(task, error) from error

    def evaluate(self, seen: Sequence[Seen]) -> list[Evaluated]:
        """Evaluate a batch; one result a row, in order."""
        import duckdb

        table = self._table([s.row for s in seen], [s.old for s in seen])
        self._duckdb.register("seen", table)
        try:
            found = self._duckdb.execute(self._query).fetchall()
        except duckdb.Error as error:
            raise _failed(self._task, error) from error
        finally:
            self._duckdb.unregister("seen")
        on = self._task.on
        return [
            Evaluated(
                s.offset,
                s.key,
                s.before,
                s.row is None,
                bool(values[0]) and s.row is not None and s.op in on,
                values[1] if s.row is not None else None,
                values[2],
                values[3],
                values[4:],
            )
            for s, values in zip(seen, found, strict=True)
        ]

    def _table(self, rows: Sequence[Any], olds: Sequence[Any]) -> pa.Table:
        import pyarrow as pa

        arrays = [_column(rows, f) for f in self._schema]
        old_arrays = [_column(olds, f) for f in self._schema]
        mask = pa.array([old is None for old in olds], pa.bool_())
        fields = [pa.field(f.name, f.type) for f in self._schema]
        old = pa.StructArray.from_arrays(old_arrays, fields=fields, mask=mask)
        return pa.table([*arrays, old], names=[*self._schema.names, "old"])


def _failed(task: Task, error: Exception) -> UsageError:
    return UsageError(
        f"an expression of task {task.name!r} fails: {str(error).splitlines()[0]}",
        hint="expressions are DuckDB SQL over the row's columns and old.COLUMN",
    )


def _column(rows: Sequence[Any], field: pa.Field) -> pa.Array:
    import pyarrow as pa

    values = [None if row is None else row.get(field.name) for row in rows]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        # What Python cannot hold (infinity, BC) came as text: no value for an expression.
        return pa.array([_fitting(value, field.type) for value in values], field.type)


def _without_zone(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return pa.timestamp("us") if pa.types.is_timestamp(kind) else kind


def _fitting(value: Any, kind: pa.DataType) -> Any:
    import pyarrow as pa

    try:
        pa.array([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None
    return value
