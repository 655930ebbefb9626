"""A transform: rows in, as many rows out, in the same order.

Row-wise means that a row's output depends on that row alone. So the function is given the columns
of the table and nothing else (no offsets, operations or times), must return one row for each, in
order, and may not drop any: a filter belongs into whoever reads the result. It must be pure: no
clock, no chance, nothing from outside but what its digest covers (`sources`). `apply` checks the
number of rows and the names at each call; `probe` whether parts of a sample give what the whole
gives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from eventlog.errors import EventLogError, TransformRefused, UsageError
from eventlog.snapshots.transform import estimator, sources
from eventlog.snapshots.transform.failing import failed
from eventlog.snapshots.transform.probing import difference

if TYPE_CHECKING:
    import pyarrow as pa

OFFSET = "_offset"
PROBE_ROWS = 1_000

NAME_CHARACTERS_MAX = 100
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class Transform:
    """A function, or a fitted scikit-learn transformer, under a name and a version.

    Thread safety: as that of the function.
    """

    def __init__(self, name: str, version: int, maker: Any) -> None:
        self.name = _checked_name(name)
        self.version = _checked_version(version)
        self.maker = maker
        self._is_estimator = estimator.is_one(maker)
        if not self._is_estimator and not inspect.isfunction(maker):
            raise UsageError(
                f"transform {name!r} is a {type(maker).__name__}",
                hint="give a function of a pyarrow.Table, or a fitted scikit-learn transformer",
            )
        if self._is_estimator:
            estimator.require_fitted(name, maker)
        self.__doc__ = maker.__doc__ if not self._is_estimator else None

    @property
    def identity(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def kind(self) -> Literal["function", "estimator"]:
        """What the transform is made of."""
        return "estimator" if self._is_estimator else "function"

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over the source, or the parameters and fitted arrays.

        Taken at the first use, so that all that the function refers to is there. Raises
        TransformRefused where the source, or a value that it uses, cannot be told.
        """
        return self._told.hexdigest()

    @property
    def source(self) -> str:
        """What the digest is over, as text: sources and values that the function uses."""
        return self._told.text()

    @cached_property
    def _told(self) -> sources.Told:
        told = sources.Told(self.name)
        if self._is_estimator:
            told.value("estimator", self.maker)
        else:
            told.function(self.maker)
        return told

    @property
    def columns(self) -> list[str] | None:
        """The columns that are read, where the transform tells: those that it was fitted on."""
        return estimator.columns(self.maker) if self._is_estimator else None

    def apply(self, rows: pa.Table) -> pa.Table:
        """Transform rows. A first column `_offset` is set aside, and put before the output.

        Raises TransformRefused where the output is not one row for each, and where the function
        raises: from that error, which is its cause.
        """
        import pyarrow as pa

        ids = rows.column(OFFSET) if OFFSET in rows.column_names else None
        given = rows if ids is None else rows.drop_columns([OFFSET])
        try:
            made = (
                estimator.transformed(self.identity, self.maker, given)
                if self._is_estimator
                else self.maker(given)
            )
        except EventLogError:
            raise
        except Exception as error:
            raise failed(self.identity, self.maker, error) from error
        if not isinstance(made, pa.Table):
            raise self._refused(
                f"returned a {type(made).__name__}", "return a pyarrow.Table, one row for each"
            )
        if made.num_rows != rows.num_rows:
            raise self._refused(
                f"made {made.num_rows} rows of {rows.num_rows}",
                "a transform is row-wise: one row out for each row in, in the same order; filter "
                "what it makes where that is read",
            )
        names = made.column_names
        if OFFSET in names or len(set(names)) != len(names):
            raise self._refused(
                f"returned the columns {', '.join(names)}",
                f"columns have different names, and none of them is {OFFSET}",
            )
        return made if ids is None else made.add_column(0, OFFSET, ids)

    def probe(self, rows: pa.Table) -> None:
        """Try on up to 1,000 of the rows whether the transform is row-wise and pure.

        The sample is applied whole, whole again, in halves, its first and last row alone, and
        backwards, which tells what sorts rows that are sorted already.
        Raises TransformRefused, naming the column that differs.
        """
        import pyarrow as pa

        sample = rows.slice(0, PROBE_ROWS)
        count = sample.num_rows
        if count < 2:
            return
        whole = self.apply(sample)
        trials = {
            "applied twice": [(0, count)],
            "applied to two halves": [(0, count // 2), (count // 2, count)],
            "applied to the first row alone": [(0, 1)],
            "applied to the last row alone": [(count - 1, count)],
        }
        for how, ranges in trials.items():
            pieces = [self.apply(sample.slice(a, b - a)) for a, b in ranges]
            try:
                made = pa.concat_tables(pieces)
            except pa.ArrowInvalid:
                made = pieces[-1]
            expected = whole.slice(ranges[0][0], ranges[-1][1] - ranges[0][0])
            self._require_same(expected, made, how)
        backwards = list(range(count - 1, -1, -1))
        made = self.apply(sample.take(backwards))
        self._require_same(whole.take(backwards), made, "applied to the rows from last to first")

    def _require_same(self, expected: pa.Table, made: pa.Table, how: str) -> None:
        column = difference(expected, made)
        if column is not None:
            raise self._refused(
                f"gives another column {column!r} when {how}",
                "a row's output may depend on that row alone: no sums or ranks over the "
                "table, no clock, no chance, and types that are fixed (cast them)",
            )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The same as `apply`."""
        return self.apply(rows)

    def _refused(self, what: str, hint: str) -> TransformRefused:
        return TransformRefused(f"transform {self.identity} {what}", hint=hint)

    def __repr__(self) -> str:
        return f"<Transform {self.identity}>"


def transform(name: str, *, version: int) -> Callable[[Any], Transform]:
    """Make a transform of a function, or of a fitted scikit-learn transformer.

    To be used as a decorator, or as `transform("scale", version=1)(pipeline)`. Raises UsageError
    for what is neither, and TransformRefused for one that is not fitted on named columns.
    """
    return lambda maker: Transform(name, version, maker)


def _checked_name(name: str) -> str:
    if len(name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:NAME_CHARACTERS_MAX]!r} cannot be the name of a transform",
            hint="a name is a-z, then any of a-z, 0-9, _ and -, up to 100 characters",
        )
    return name


def _checked_version(version: int) -> int:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise UsageError(f"no version {version!r}", hint="versions count from 1")
    return version
