"""Fitted scikit-learn transformers and pipelines, known by what they can do.

Nothing is imported for them. They are given the columns that they were fitted on, numbers as
float64 (as in a training set), and what they make is float64, under the names of
`get_feature_names_out()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from eventlog.changes.arrow import frame
from eventlog.errors import TransformRefused, UnknownColumn

if TYPE_CHECKING:
    import pyarrow as pa


def is_one(maker: Any) -> bool:
    """Whether it looks like a scikit-learn transformer."""
    return not isinstance(maker, type) and all(
        hasattr(maker, name) for name in ("fit", "get_params")
    )


def require_fitted(name: str, maker: Any) -> None:
    """Raise TransformRefused for one that cannot transform, or was not fitted on named columns."""
    if not callable(getattr(maker, "transform", None)):
        raise TransformRefused(
            f"transform {name!r} is a {type(maker).__name__}, which has no transform()",
            hint="give a transformer, or a pipeline that ends in one",
        )
    if getattr(maker, "feature_names_in_", None) is None:
        raise TransformRefused(
            f"transform {name!r} was not fitted on named columns",
            hint="fit it on a pandas DataFrame first, whose columns are those of the table",
        )


def columns(maker: Any) -> list[str]:
    """The columns that it was fitted on, in order."""
    return [str(name) for name in maker.feature_names_in_]


def transformed(name: str, maker: Any, rows: pa.Table) -> pa.Table:
    """What the transformer makes of the rows.

    Raises UnknownColumn where the table lacks a column that it was fitted on, and
    TransformRefused where it makes something else than numbers.
    """
    import pyarrow as pa

    wanted = columns(maker)
    for column in wanted:
        if column not in rows.column_names:
            raise UnknownColumn(
                f"transform {name} was fitted on column {column!r}, which is not there",
                hint=f"there is {', '.join(rows.column_names)}",
            )
    names = [str(name) for name in maker.get_feature_names_out()]
    if rows.num_rows == 0:  # which scikit-learn refuses
        return pa.table({name: pa.array([], pa.float64()) for name in names})
    made = maker.transform(frame(_numbers_as_floats(rows.select(wanted))))
    made = made.toarray() if hasattr(made, "toarray") else made
    try:
        matrix = np.asarray(made, np.float64)
    except (TypeError, ValueError) as error:
        raise TransformRefused(
            f"transform {name} makes what is no number: {error}",
            hint="end the pipeline in numbers, encoding texts",
        ) from error
    if matrix.ndim != 2 or matrix.shape[1] != len(names):
        raise TransformRefused(
            f"transform {name} makes an array of shape {matrix.shape} for {len(names)} names",
            hint="its get_feature_names_out() must name each column that transform() makes",
        )
    return pa.table({name: pa.array(matrix[:, i].copy()) for i, name in enumerate(names)})


def _numbers_as_floats(rows: pa.Table) -> pa.Table:
    # A column's type must not depend on whether a null is among the rows at hand.
    import pyarrow as pa

    t = pa.types
    fields = [
        pa.field(f.name, pa.float64())
        if t.is_integer(f.type) or t.is_decimal(f.type) or t.is_floating(f.type)
        else f
        for f in rows.schema
    ]
    return rows.cast(pa.schema(fields))
