"""Which columns are hashed: those that `--hash` names, however they are called by now.

::

    by name            as `--hash` says, and as a hashed column of the relation was ever called
    by number          the attribute of a column that was hashed once: a renamed one stays hashed
    in doubt           where a version leaves open whether a column is a hashed one that was renamed
    outside a list     a column that `--table` leaves out comes only if somebody alters the
                       publication

A column that was dropped and made anew is another one of the same name: it is hashed. What was
hashed in doubt alone is left to the next version whose columns have their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cdc.postgres.schema.table_spec import ColumnName, TableSpec
from eventlog.changes.schema import Column, Schema
from eventlog.changes.table_name import TableName


@dataclass(slots=True)
class _Seen:
    """What is known of one relation's hashed columns, in all its versions.

    `unnumbered` are names of columns that were never seen with their attribute number.
    """

    attributes: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    unnumbered: set[str] = field(default_factory=set)


class HashedColumns:
    """Remembers the versions of all relations, oldest first, and decides about the next ones."""

    def __init__(self) -> None:
        self._names: tuple[ColumnName, ...] = ()
        self._limits: dict[TableName, set[str]] = {}
        self._plain: dict[int, set[int]] = {}
        self._seen: dict[int, _Seen] = {}
        self.relations: frozenset[int] = frozenset()
        """The relations that have, or had, a hashed column."""

    def add(self, names: Iterable[ColumnName]) -> None:
        """Hash these columns too."""
        self._names = tuple(dict.fromkeys((*self._names, *names)))

    def limit(self, specs: Iterable[TableSpec]) -> None:
        """Take these lists of columns, instead of those before."""
        self._limits = {}
        for spec in specs:
            if spec.columns is not None:
                allowed = self._limits.setdefault(spec.table, set(spec.columns))
                allowed &= set(spec.columns)

    def hashes(self, schema: Schema, column: Column, known: Schema | None) -> bool:
        """Whether a column of a version is hashed; `known` is the version before, as stored."""
        if column.hashed or self._is_certain(schema, column) or self._is_outside(schema, column):
            return True
        seen = self._seen.get(schema.relation)
        if seen is None or known is None:
            return False
        before = next((c for c in known.columns if c.name == column.name), None)
        # Among columns with numbers there is doubt only where a hashed one was never seen with its.
        open_question = column.attribute is None or bool(seen.unnumbered)
        if before is not None:
            return before.hashed and before.attribute is None and open_question
        gone = [c for c in known.columns if c.hashed and c.name not in schema.names]
        return bool(gone) and open_question

    def _is_certain(self, schema: Schema, column: Column) -> bool:
        seen = self._seen.get(schema.relation)
        if seen and (column.attribute in seen.attributes or column.name in seen.names):
            return True
        return any(
            name.column == column.name and name.table.matches(schema.namespace, schema.name)
            for name in self._names
        )

    def _is_outside(self, schema: Schema, column: Column) -> bool:
        """Whether the column is none of the table's list, and none of it under another name."""
        allowed = self._limits.get(TableName(schema=schema.namespace, name=schema.name))
        if allowed is None or column.name in allowed:
            return False
        return column.attribute not in self._plain.get(schema.relation, ())

    def learn(self, schema: Schema) -> None:
        """Take in a version as it is stored."""
        for column in schema.columns:
            if not column.hashed:
                if column.attribute is not None:
                    self._plain.setdefault(schema.relation, set()).add(column.attribute)
                continue
            certain = self._is_certain(schema, column)
            seen = self._seen.setdefault(schema.relation, _Seen())
            if column.attribute is not None:
                seen.attributes.add(column.attribute)
                seen.names.add(column.name)
                seen.unnumbered.discard(column.name)
            elif certain:
                # What was hashed in doubt is left to the next version with numbers.
                if column.name not in seen.names:
                    seen.unnumbered.add(column.name)
                seen.names.add(column.name)
        self.relations = frozenset(self._seen)
