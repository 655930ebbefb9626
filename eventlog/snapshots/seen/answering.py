"""Decoding what was joined: rows as seen, and what was found beside them, as Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.changes.arrow import Conversion, Unfit, change_table, times_array
from eventlog.changes.schema import Schema
from eventlog.changes.split import OPS, Texts
from eventlog.errors import UnknownColumn
from eventlog.snapshots.seen.clock import Clock
from eventlog.snapshots.seen.compacting import taken
from eventlog.snapshots.seen.conditions import holds
from eventlog.snapshots.seen.definitions import Condition
from eventlog.snapshots.seen.joining import Joined
from eventlog.snapshots.seen.lives import Rows
from eventlog.snapshots.seen.planning import HEAD, Question, old_name

if TYPE_CHECKING:
    import pyarrow as pa

I64 = npt.NDArray[np.int64]
ROWS_MAX = 65_536
"""Rows decoded at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How places become Arrow. `cast` maps the names of the answer's columns."""

    codec: Any
    clock: Clock
    cast: Mapping[str, str]
    unfit: Unfit

    def holds(
        self, condition: Condition, rows: Rows, places: I64, what: str
    ) -> npt.NDArray[np.bool_]:
        """Whether a condition is true of whole rows, the ones before included."""
        names = rows.records.schema.names
        found = [np.zeros(0, np.bool_)]
        for part in parts(places):
            columns = [*self._head(rows, part), *self._own(rows, part, names, names)]
            found.append(holds(condition, _table(columns), what))
        return np.concatenate(found)

    def table(self, question: Question, joined: Joined, low: int, high: int) -> pa.Table:
        """The answer for instances[low:high]."""
        import pyarrow as pa

        part, rows = joined.instances[low:high], joined.rows
        columns = [*self._head(rows, part)]
        columns += self._own(rows, part, question.columns, question.old)
        for asked, (other, found) in zip(question.lookups, joined.lookups, strict=True):
            places, schema = found[low:high], asked.schema
            names = dict(zip(asked.asked.columns, asked.asked.names, strict=True))
            texts = {name: taken(other.values(schema.names.index(name)), places) for name in names}
            columns += self._decoded(schema, texts, _offsets(other, places), names)
        for counted, numbers in zip(question.counts, joined.counts, strict=True):
            columns.append((pa.field(counted.asked.name, pa.int64()), pa.array(numbers[low:high])))
        for label, found in zip(question.labels, joined.labels, strict=True):
            places, schema = found[low:high], question.schema
            value, where = label.names
            texts = {label.column: taken(rows.values(schema.names.index(label.column)), places)}
            offsets = _offsets(rows, places)
            columns += self._decoded(schema, texts, offsets, {label.column: value})
            known = pa.array(offsets, pa.int64(), mask=places < 0)
            columns.append((pa.field(where, pa.int64()), known))
        return _table(columns)

    def _head(self, rows: Rows, places: I64) -> Iterator[tuple[pa.Field, pa.Array]]:
        import pyarrow as pa

        offsets = rows.records.offsets[places]
        ops = pa.array(list(map(str, OPS)), pa.string()).take(pa.array(rows.records.ops[places]))
        arrays = (pa.array(offsets), ops, times_array(self.clock.times(offsets)))
        for name, array in zip(HEAD, arrays, strict=True):
            yield pa.field(name, array.type), array

    def _own(
        self, rows: Rows, places: I64, columns: Sequence[str], old: Sequence[str]
    ) -> Iterator[tuple[pa.Field, pa.Array]]:
        """The instances' own columns, and those before."""
        schema, offsets = rows.records.schema, rows.records.offsets[places]
        index = schema.names.index
        texts = {name: rows.values(index(name)).take(places) for name in columns}
        yield from self._decoded(schema, texts, offsets, {name: name for name in columns})
        texts = {name: rows.values_before(index(name), places) for name in old}
        yield from self._decoded(schema, texts, offsets, {name: old_name(name) for name in old})

    def _decoded(
        self, schema: Schema, texts: Mapping[str, Texts], offsets: I64, names: Mapping[str, str]
    ) -> Iterator[tuple[pa.Field, pa.Array]]:
        """Columns of one table, under the names of the answer."""
        if not texts:
            return
        cast = {name: self.cast[names[name]] for name in texts if names[name] in self.cast}
        table = change_table(
            self.codec,
            schema,
            [texts.get(name) for name in schema.names],
            offsets=offsets,
            conversion=Conversion(columns=list(texts), cast=cast, unfit=self.unfit),
        )
        for field in table.schema:
            yield field.with_name(names[field.name]), table.column(field.name)


def parts(places: I64) -> Iterator[I64]:
    """Places in parts of at most ROWS_MAX; one empty part where there are none."""
    for low in range(0, max(len(places), 1), ROWS_MAX):
        yield places[low : low + ROWS_MAX]


def require_castable(question: Question, cast: Mapping[str, str]) -> None:
    """Raise UnknownColumn for a name that is no column of the answer with a declared type."""
    typed = [*question.columns, *map(old_name, question.old)]
    for looked in question.lookups:
        typed += looked.asked.names
    typed += [label.name for label in question.labels]
    for name in cast:
        if name not in typed:
            raise UnknownColumn(
                f"there is no column {name!r} to cast", hint=f"there is {', '.join(typed)}"
            )


def _offsets(rows: Rows, places: I64) -> I64:
    """The offsets of records; -1 where the place is."""
    if not len(rows):
        return places
    return np.where(places < 0, -1, rows.records.offsets[places])


def _table(columns: Sequence[tuple[pa.Field, pa.Array]]) -> pa.Table:
    import pyarrow as pa

    fields = [field for field, _ in columns]
    return pa.Table.from_arrays([array for _, array in columns], schema=pa.schema(fields))
