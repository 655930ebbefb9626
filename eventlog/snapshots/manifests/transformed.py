"""What a transform makes of a table's rows, piece by piece, and the digest of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from eventlog.errors import UsageError, ValueDoesNotFit
from eventlog.snapshots.manifests.digest import TableDigest
from eventlog.snapshots.manifests.manifest import SavedRows, SavedTransform
from eventlog.snapshots.manifests.stored_rows import ColumnType, StoredRows, saved_rows
from eventlog.snapshots.manifests.typed_values import add_output, type_text
from eventlog.snapshots.transform import Transform as Probed

if TYPE_CHECKING:
    import pyarrow as pa

DECODER = 1
"""Raised whenever stored text becomes another typed value than before: a transform sees those."""


class Transform(Protocol):
    """A row-wise function under a name and a version; `digest` is that of its source."""

    name: str
    version: int

    @property
    def digest(self) -> str:
        """SHA-256 of what the transform is made of."""
        ...

    def apply(self, rows: pa.Table, /) -> pa.Table:
        """As many rows as it is given, in their order."""
        ...


def saved_transform(transform: Transform) -> SavedTransform:
    """What a manifest says of a transform."""
    return SavedTransform(
        name=transform.name,
        version=transform.version,
        digest=transform.digest,
        decoder=DECODER,
    )


def outputs(rows: StoredRows, transform: Transform) -> Iterator[tuple[pa.Array, pa.Table]]:
    """The output of each piece after the offsets of its rows; at least one piece.

    Raises UsageError where rows are added or left out, or the columns change on the way.
    """
    schema = None
    for piece in _given(rows):
        if schema is None and isinstance(transform, Probed):
            transform.probe(piece)
        made = transform.apply(piece.drop_columns(["_offset"]))
        if made.num_rows != piece.num_rows:
            raise UsageError(
                f"transform {transform.name!r} made {made.num_rows:,} rows of {piece.num_rows:,}",
                hint="a transform is row-wise: one row for each; choose rows afterwards",
            )
        made = made.replace_schema_metadata(None)
        if schema is not None and made.schema.remove_metadata() != schema:
            raise UsageError(
                f"transform {transform.name!r} returns other columns for other rows",
                hint=f"it returned {_shown(schema)}, then {_shown(made.schema)}: name its types",
            )
        schema = made.schema.remove_metadata()
        yield piece.column("_offset"), made


def saved_output(rows: StoredRows, transform: Transform) -> SavedRows:
    """What a manifest says of a transform's output. Raises UsageError.

    A transform that can be probed is, first: what is not row-wise depends on how rows are batched.
    """
    probe = getattr(transform, "probe", None)
    if probe is not None:
        probe(next(_given(rows, offsets=False)))
    digest = columns = None
    for offsets, made in outputs(rows, transform):
        if digest is None:
            columns = [
                ColumnType(name=f.name, type=str(f.type), stored=type_text(f.type))
                for f in made.schema
            ]
            digest = TableDigest([(column.name, column.stored) for column in columns])
        add_output(digest, offsets.to_numpy().astype(np.int64), made)
    assert digest is not None and columns is not None, "there is at least one piece"
    return saved_rows(columns, digest.done())


def _given(rows: StoredRows, *, offsets: bool = True) -> Iterator[pa.Table]:
    """The rows for a transform, which takes no cast: a misfit is left out with its column."""
    try:
        yield from rows.typed(offsets=offsets)
    except ValueDoesNotFit as error:
        raise ValueDoesNotFit(
            f"a transform is given typed values, and {error}",
            hint="where the transform can do without that column, name the others: "
            "save(..., columns={'public.t': ['id', ...]}), --table 'public.t(id,...)'",
        ) from error


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
