"""From names to relations and places: what can be wrong about a question is found early."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from eventlog.changes.arrow import require_columns, require_names
from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.split import OP_NUMBER
from eventlog.errors import SnapshotRefused, UsageError
from eventlog.snapshots.seen.definitions import Condition, Count, Later, Lookup
from eventlog.snapshots.seen.gathering import Wanted

ROW_OPS = (Op.READ, Op.INSERT, Op.UPDATE, Op.DELETE)
HEAD = ("_offset", "_op", "_time")

Definition = TypeVar("Definition", Lookup, Count)
Kind = TypeVar("Kind", Lookup, Count, Later)

_EXAMPLES = {
    Lookup: "lookups=[eventlog.lookup('public.customers', by='customer_id', columns=['tier'])]",
    Count: "counts=[eventlog.count('public.orders', by='customer_id', over='90d')]",
    Later: "label=eventlog.later('delivered_at')",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(Generic[Definition]):
    """A definition whose table and columns are known: `by` in the instances', `on` in its own."""

    asked: Definition
    schema: Schema
    by: tuple[int, ...]
    on: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which changes of a table are instances, and what is wanted of each.

    `columns` and `old` are names of the table's columns, `ops` numbers of OPS.
    """

    schema: Schema
    ops: tuple[int, ...]
    columns: tuple[str, ...]
    old: tuple[str, ...]
    where: Condition | None
    lookups: tuple[Reference[Lookup], ...]
    counts: tuple[Reference[Count], ...]
    labels: tuple[Later, ...]

    @property
    def names(self) -> list[str]:
        """The columns of the answer, in their order."""
        names = [*HEAD, *self.columns, *map(old_name, self.old)]
        for found in self.lookups:
            names += found.asked.names
        names += [found.asked.name for found in self.counts]
        for label in self.labels:
            names += label.names
        return names

    def wanted(self) -> dict[int, Wanted]:
        """By relation, which columns must be read."""
        places: dict[int, set[int]] = {}
        schemas = {self.schema.relation: self.schema}
        own = places.setdefault(self.schema.relation, set())
        index = self.schema.names.index
        own.update(map(index, (*self.columns, *self.old, *(x.column for x in self.labels))))
        if self.where is not None or any(label.when is not None for label in self.labels):
            own.update(range(len(self.schema.columns)))
        for looked in self.lookups:
            own.update(looked.by)
            other = places.setdefault(looked.schema.relation, set())
            other.update(looked.on, map(looked.schema.names.index, looked.asked.columns))
            schemas[looked.schema.relation] = looked.schema
        for counted in self.counts:
            own.update(counted.by)
            places.setdefault(counted.schema.relation, set()).update(counted.on)
            schemas[counted.schema.relation] = counted.schema
        return {
            relation: Wanted(schema=schemas[relation], columns=frozenset(found))
            for relation, found in places.items()
        }


def old_name(column: str) -> str:
    """What a column of the row before is called."""
    return f"old.{column}"


def question(
    history: SchemaHistory,
    schema: Schema,
    stop: int,
    *,
    on: str | Iterable[str],
    columns: Sequence[str] | None,
    old: Sequence[str],
    where: Condition | None,
    lookups: Lookup | Sequence[Lookup],
    counts: Count | Sequence[Count],
    labels: Later | Sequence[Later],
) -> Question:
    """Resolve every name at the cut `stop`.

    Raises UnknownTable, UnknownColumn, SnapshotRefused, UsageError.
    """
    own = schema.names if columns is None else _names(columns, "columns=")
    before = _names(old, "old=")
    labelled = _all(labels, Later, "label=")
    require_columns(schema, (*own, *before, *(label.column for label in labelled)))
    found = Question(
        schema=schema,
        ops=_ops(on),
        columns=own,
        old=before,
        where=where,
        lookups=tuple(
            _lookup(history, schema, stop, asked) for asked in _all(lookups, Lookup, "lookups=")
        ),
        counts=tuple(
            _count(history, schema, stop, asked) for asked in _all(counts, Count, "counts=")
        ),
        labels=labelled,
    )
    _refuse_doubles(found.names)
    return found


def _lookup(history: SchemaHistory, own: Schema, stop: int, asked: Lookup) -> Reference[Lookup]:
    (schema,) = history.named(asked.table, stop)
    if schema.inserts_only:
        raise SnapshotRefused(
            f"rows of {schema.table} cannot be looked up: it has no replica identity, so its "
            "updates and deletes are not captured",
            hint="give the table a primary key and copy it again",
        )
    on = asked.on
    if on is None:
        on = tuple(schema.names[place] for place in schema.key_indexes)
        if not on:
            raise UsageError(
                f"table {schema.table} has no key to look rows up by",
                hint="name the columns to compare with on=",
            )
        if len(on) != len(asked.by):
            raise UsageError(
                f"the key of {schema.table} has {len(on)} columns, by= names {len(asked.by)}",
                hint=f"it is ({', '.join(on)}); name other columns with on=",
            )
    require_columns(schema, asked.columns)
    return _reference(own, schema, asked, on)


def _count(history: SchemaHistory, own: Schema, stop: int, asked: Count) -> Reference[Count]:
    (schema,) = history.named(asked.table, stop)
    if schema.inserts_only and not asked.as_inserts:
        raise SnapshotRefused(
            f"rows of {schema.table} cannot be counted: it has no replica identity, so its "
            "updates and deletes are not captured",
            hint="as_inserts=True counts every row inserted",
        )
    return _reference(own, schema, asked, asked.on)


def _reference(
    own: Schema, schema: Schema, asked: Definition, on: tuple[str, ...]
) -> Reference[Definition]:
    require_columns(own, asked.by)
    require_columns(schema, on)
    return Reference(
        asked=asked,
        schema=schema,
        by=tuple(map(own.names.index, asked.by)),
        on=tuple(map(schema.names.index, on)),
    )


def _ops(on: str | Iterable[str]) -> tuple[int, ...]:
    given = {on} if isinstance(on, str) else set(on)
    wrong = sorted(str(op) for op in given if op not in ROW_OPS)
    if wrong or not given:
        what = f"{wrong[0]!r} is" if wrong else "on= names"
        raise UsageError(
            f"{what} no change of a row", hint=f"there are {', '.join(ROW_OPS)}: on={{'insert'}}"
        )
    return tuple(OP_NUMBER[op] for op in ROW_OPS if op in given)


def _names(given: Sequence[str], where: str) -> tuple[str, ...]:
    require_names(given, where=where)
    names = tuple(given)
    if len(set(names)) < len(names):
        raise UsageError(f"{where} names a column twice", hint="name each once")
    return names


def _all(given: Kind | Sequence[Kind], kind: type[Kind], where: str) -> tuple[Kind, ...]:
    """One definition, or several. Raises UsageError for what is none."""
    one = isinstance(given, str) or not isinstance(given, Iterable)
    several: tuple[Any, ...] = (given,) if one else tuple(given)  # type: ignore[arg-type]
    for found in several:
        if not isinstance(found, kind):
            raise UsageError(
                f"{where} was given {found!r}, which is no definition of it",
                hint=f"write {_EXAMPLES[kind]}",
            )
    return several


def _refuse_doubles(names: Sequence[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UsageError(
            f"two columns would be called {twice[0]!r}",
            hint="give the look-up, the count or the label another name with name=, or choose "
            "the table's columns with columns=",
        )
