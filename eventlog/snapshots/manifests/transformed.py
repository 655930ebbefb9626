"""What a transform makes of a table's rows, piece by piece, and the digest of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from eventlog.changes.arrow import Conversion
from eventlog.changes.quantities import counted
from eventlog.errors import UsageError, ValueDoesNotFit
from eventlog.snapshots.manifests.digest import TableDigest
from eventlog.snapshots.manifests.manifest import SavedConversion, SavedRows, SavedTransform
from eventlog.snapshots.manifests.stored_rows import ColumnType, StoredRows, saved_rows
from eventlog.snapshots.manifests.typed_values import add_output, type_text
from eventlog.snapshots.shown_rows import stripped
from eventlog.snapshots.transform import Transform as Probed

if TYPE_CHECKING:
    import pyarrow as pa

DECODER = 1
"""Raised whenever stored text becomes another typed value than before: a transform sees those."""

DECLARED = Conversion()
"""Types as they are declared, and every value has to fit."""


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


def saved_transform(
    transform: Transform,
    conversion: Conversion = DECLARED,
    dropped: Mapping[str, int] | None = None,
) -> SavedTransform:
    """What a manifest says of a transform, and of how its input was typed."""
    used = conversion.cast or conversion.unfit != "raise"
    return SavedTransform(
        name=transform.name,
        version=transform.version,
        digest=transform.digest,
        decoder=DECODER,
        conversion=SavedConversion(
            cast=dict(sorted(conversion.cast.items())),
            unfit=conversion.unfit,
            dropped=dict(sorted((dropped or {}).items())),
        )
        if used
        else None,
    )


def conversion_of(saved: SavedTransform | None) -> Conversion:
    """How the input of a saved transform is typed; as declared for None."""
    found = None if saved is None else saved.conversion
    if found is None:
        return DECLARED
    return Conversion(cast=found.cast, unfit="null" if found.unfit == "null" else "raise")


def outputs(
    rows: StoredRows,
    transform: Transform,
    conversion: Conversion = DECLARED,
    dropped: Counter[str] | None = None,
) -> Iterator[tuple[pa.Array, pa.Table]]:
    """The output of each piece after the offsets of its rows; at least one piece.

    `dropped` is added to: by column, what did not fit and so was null. Raises UsageError where rows
    are added or left out, or the columns change on the way, and ValueDoesNotFit.
    """
    schema = None
    for piece in _given(rows, conversion, dropped):
        if schema is None and isinstance(transform, Probed):
            transform.probe(piece)
        made = transform.apply(piece.drop_columns(["_offset"]))
        if made.num_rows != piece.num_rows:
            raise UsageError(
                f"transform {transform.name!r} made {counted(made.num_rows, 'row')} of "
                f"{piece.num_rows:,}",
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


def saved_output(
    rows: StoredRows, transform: Transform, conversion: Conversion = DECLARED
) -> tuple[SavedRows, dict[str, int]]:
    """What a manifest says of a transform's output, and what its input lacks for want of a fit.

    A transform that can be probed is, first: what is not row-wise depends on how rows are batched.
    Raises UsageError, ValueDoesNotFit.
    """
    probe = getattr(transform, "probe", None)
    if probe is not None:
        probe(next(_given(rows, conversion, offsets=False)))
    digest = columns = None
    dropped: Counter[str] = Counter()
    for offsets, made in outputs(rows, transform, conversion, dropped):
        if digest is None:
            columns = [
                ColumnType(name=f.name, type=str(f.type), stored=type_text(f.type))
                for f in made.schema
            ]
            digest = TableDigest([(column.name, column.stored) for column in columns])
        add_output(digest, offsets.to_numpy().astype(np.int64), made)
    assert digest is not None and columns is not None, "there is at least one piece"
    return saved_rows(columns, digest.done()), dict(dropped)


def _given(
    rows: StoredRows,
    conversion: Conversion,
    dropped: Counter[str] | None = None,
    *,
    offsets: bool = True,
) -> Iterator[pa.Table]:
    """The rows for a transform, all of one schema."""
    try:
        for piece in rows.typed(cast=conversion.cast, unfit=conversion.unfit, offsets=offsets):
            plain, counts = stripped(piece)
            if dropped is not None:
                dropped.update(counts)
            yield plain
    except ValueDoesNotFit as error:
        raise ValueDoesNotFit(
            f"a transform is given typed values, and {error}",
            hint=f"{error.hint}; or leave the column out, where the transform can do without it: "
            "columns={'public.t': ['id', ...]}, --table 'public.t(id,...)'",
        ) from error


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
