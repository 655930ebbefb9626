"""Arrow tables out of stored texts: types follow from the declared type alone (API.md).

Each field's metadata holds the source's own type name (`postgres_type`), and with `unfit="null"`
how many values were dropped there (`unfit`). pyarrow is imported where it is used.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from eventlog.changes.change import Marker, Text
from eventlog.changes.schema import Column, Schema
from eventlog.changes.split import IS_UNCHANGED, Texts
from eventlog.errors import EnvironmentFault, UnknownColumn, UsageError, ValueDoesNotFit

if TYPE_CHECKING:
    import pyarrow as pa

TYPE_NAME = b"postgres_type"
UNFIT = b"unfit"

Unfit: TypeAlias = Literal["raise", "null"]
_DECIMAL = re.compile(r"decimal\(\s*(\d+)\s*,\s*(\d+)\s*\)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How texts become Arrow: which columns, other types for some, what a misfit does.

    `cast` maps names to `text`, `float64` or `decimal(p,s)`. `unfit`: `raise`, or make it `null`
    and count it.
    """

    columns: Sequence[str] | None = None
    cast: Mapping[str, str] = field(default_factory=dict)
    unfit: Unfit = "raise"

    def __post_init__(self) -> None:
        if self.unfit not in ("raise", "null"):
            raise UsageError(f"unfit={self.unfit!r} is unknown", hint="it is 'raise' or 'null'")
        require_cast(self.cast)


def require_cast(cast: object) -> None:
    """Raise UsageError for what maps no names to types; whether there are such is not looked at."""
    if not isinstance(cast, Mapping) or not all(
        isinstance(text, str) for pair in cast.items() for text in pair
    ):
        raise UsageError(
            f"cast={cast!r} does not map names of columns to types",
            hint="write cast={'amount': 'text'}",
        )


def chosen_columns(schema: Schema, names: Iterable[str] | None) -> list[tuple[int, Column]]:
    """The named columns with their places, in the order asked for; all of them for None.

    Raises UnknownColumn.
    """
    if names is None:
        return list(enumerate(schema.columns))
    require_columns(schema, names)
    return [(place, schema.columns[place]) for place in map(schema.names.index, names)]


def require_columns(schema: Schema, names: Iterable[str]) -> None:
    """Raise UnknownColumn for the first name that the table does not have; see `require_names`."""
    require_names(names)
    for name in names:
        if name not in schema.names:
            near = difflib.get_close_matches(name, schema.names, n=3) or schema.names
            raise UnknownColumn(
                f"table {schema.table} has no column {name!r}", hint=f"it has {', '.join(near)}"
            )


def require_names(names: Iterable[str], *, where: str = "columns=") -> None:
    """Raise UsageError for one name in place of several: its letters would be taken for names."""
    if isinstance(names, str):
        raise UsageError(
            f"{where}{names!r} is one text, and a list of names was expected",
            hint=f"write {where}[{names!r}]",
        )


def change_table(
    codec: Any,
    schema: Schema,
    columns: Sequence[Texts | None],
    *,
    offsets: Sequence[int] | npt.NDArray[np.int64],
    conversion: Conversion,
    head: Iterable[tuple[str, pa.Array]] = (),
) -> pa.Table:
    """Convert the columns of rows of one schema version, one for each of the schema.

    A column that `conversion` does not choose may be None. `offsets` are the rows', for errors.
    Columns of `head` come first. Raises ValueDoesNotFit, UnknownColumn, UsageError.
    """
    import pyarrow as pa

    require_columns(schema, conversion.cast)
    fields, arrays = [], []
    for name, array in head:
        fields.append(pa.field(name, array.type))
        arrays.append(array)
    for place, column in chosen_columns(schema, conversion.columns):
        target = _target(codec, schema, column, conversion.cast.get(column.name))
        texts = columns[place]
        assert texts is not None
        array, bad = _converted(codec, schema, column, texts, target)
        if len(bad) and conversion.unfit == "raise":
            raise _misfit(schema, column, texts.text(int(bad[0])), int(offsets[bad[0]]), target)
        metadata = {TYPE_NAME: codec.type_name(schema, column).encode()}
        if len(bad):
            metadata[UNFIT] = str(len(bad)).encode()
        fields.append(pa.field(column.name, target, metadata=metadata))
        arrays.append(array)
    if not fields:
        return _bare(len(offsets))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _converted(
    codec: Any, schema: Schema, column: Column, texts: Texts, target: pa.DataType
) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """One column as Arrow, and the places that hold null for want of a value that fits."""
    array, found = codec.arrow_array(schema, column, texts, target)
    bad = np.asarray(found, np.int64)
    if texts.lengths.min(initial=0) > IS_UNCHANGED:
        return array, bad
    return array, np.union1d(bad, np.flatnonzero(texts.lengths == IS_UNCHANGED))


def stacked(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of `change_table` with the same columns, one behind the other.

    What did not fit adds up. REQUIRES: there is a table.
    """
    import pyarrow as pa

    if len(tables) == 1:
        return tables[0]
    if not tables[0].num_columns:
        return _bare(sum(table.num_rows for table in tables))
    unfit: dict[str, int] = {}
    for table in tables:
        for name, count in unfit_counts(table).items():
            unfit[name] = unfit.get(name, 0) + count
    whole = pa.concat_tables(tables)
    fields = [
        known if known.name not in unfit else _with_unfit(known, unfit[known.name])
        for known in whole.schema
    ]
    return pa.Table.from_arrays(whole.columns, schema=pa.schema(fields))


def _bare(rows: int) -> pa.Table:
    """A table of no columns, whose number of rows only this way is kept."""
    import pyarrow as pa

    return pa.table({"": pa.nulls(rows)}).select([])


def _with_unfit(known: pa.Field, count: int) -> pa.Field:
    return known.with_metadata({**(known.metadata or {}), UNFIT: str(count).encode()})


def unfit_counts(table: pa.Table) -> dict[str, int]:
    """By column, how many values `unfit="null"` dropped; columns without any are left out."""
    counts = ((f.name, (f.metadata or {}).get(UNFIT)) for f in table.schema)
    return {name: int(count) for name, count in counts if count is not None}


def times_array(microseconds: Sequence[int] | npt.NDArray[np.int64]) -> pa.Array:
    """Times in µs since 1970 UTC as timestamps."""
    import pyarrow as pa

    return pa.array(microseconds, pa.int64()).cast(pa.timestamp("us", "UTC"))


def frame(table: pa.Table) -> Any:
    """The table as a pandas DataFrame. Raises EnvironmentFault where pandas is not installed."""
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise EnvironmentFault(
            "pandas is not installed",
            hint="pip install 'eventlog-cdc[pandas]', or use to_arrow()",
        ) from error
    return table.to_pandas()


def _target(codec: Any, schema: Schema, column: Column, cast: str | None) -> pa.DataType:
    import pyarrow as pa

    if cast is None:
        return codec.arrow_type(schema, column)
    if cast == "text":
        return pa.string()
    if cast == "float64":
        return pa.float64()
    decimal = _DECIMAL.fullmatch(cast)
    if decimal is not None:
        precision, scale = map(int, decimal.groups())
        if 1 <= precision <= 76 and scale <= precision:
            make = pa.decimal128 if precision <= 38 else pa.decimal256
            return make(precision, scale)
    raise UsageError(
        f"column {column.name!r} cannot be cast to {cast!r}",
        hint="a cast is text, float64, or decimal(p,s) with at most 76 digits",
    )


def _misfit(
    schema: Schema, column: Column, text: Text, offset: int, target: pa.DataType
) -> ValueDoesNotFit:
    where = f"column {column.name!r} of {schema.table} at offset {offset}"
    if text is Marker.UNCHANGED:
        return ValueDoesNotFit(
            f"{where} was left unchanged by its update, so its value is not in that record",
            hint="read with fill=True to take it from the row's history; where the history "
            "does not have it, unfit='null' makes it null and counts it",
        )
    shown = text if isinstance(text, bytes) else b""
    value = shown[:40].decode("utf-8", "backslashreplace") + ("…" if len(shown) > 40 else "")
    return ValueDoesNotFit(
        f"{where} holds {value!r}, which does not fit {target}",
        hint=f"cast={{{column.name!r}: 'text'}} (--cast {column.name}=text) keeps the text; "
        "unfit='null' (--unfit null) makes such values null and counts them",
    )
