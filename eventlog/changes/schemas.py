"""The schema versions of one stream, and which relation a name means at a cut.

A name means the relation that bears it at the cut; the relation's history follows it across
renames, and is not that of a re-created table of the same name (API.md).

Thread safety: may be shared among threads.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable
from dataclasses import replace

from eventlog.changes.schema import Column, Schema
from eventlog.changes.table_name import TableName
from eventlog.engine import Engine
from eventlog.errors import DamagedLog, UnknownTable, UsageError


class SchemaHistory:
    """All schema versions that the log has of a stream, read once each."""

    def __init__(self, engine: Engine, stream: str) -> None:
        self.stream = stream
        self._engine = engine
        self._versions: dict[int, Schema] = {}
        self._lock = threading.Lock()

    def version(self, schema_id: int) -> Schema:
        """The version of that number. Raises DamagedLog where the log has none."""
        found = self._versions.get(schema_id)
        if found is None:
            found = self._refreshed().get(schema_id)
        if found is None:
            raise DamagedLog(
                f"stream {self.stream!r} has no schema version {schema_id}, which a batch names",
                hint="run `eventlog check` to see what else is missing",
            )
        return found

    def in_force(self, stop: int) -> dict[int, Schema]:
        """By relation, the version at the cut `stop`, in the order that they came.

        A relation first seen at `stop` itself is known, without rows. Fast defaults of columns
        stand as they were first seen: a rewrite of the table makes the source forget them.
        """
        current: dict[int, Schema] = {}
        for schema in self._refreshed().values():
            before = current.get(schema.relation)
            if schema.offset < stop or (schema.offset == stop and before is None):
                current.pop(schema.relation, None)
                current[schema.relation] = schema if before is None else _keep(before, schema)
        return current

    def named(self, name: TableName, stop: int) -> list[Schema]:
        """The relations that `name` means at the cut: one, or all that a pattern matches.

        Raises UnknownTable.
        """
        if name.stream not in (None, self.stream):
            raise UsageError(
                f"table {name.stream}.{name} is asked of stream {self.stream!r}",
                hint=f"leave out the stream, or open stream {name.stream!r}",
            )
        # A later bearer of a name takes it from an earlier one, which may be gone at the source;
        # one that is first seen at the cut itself has no record below it, and does not.
        bearers: dict[str, Schema] = {}
        for schema in self.in_force(stop).values():
            if schema.offset < stop or schema.table not in bearers:
                bearers[schema.table] = schema
        found = [s for s in bearers.values() if name.matches(s.namespace, s.name)]
        if not found:
            raise self._unknown(name, stop, bearers)
        return found

    def _unknown(self, name: TableName, stop: int, bearers: Iterable[str]) -> UnknownTable:
        later = [
            schema.offset
            for schema in self._versions.values()
            if schema.offset >= stop and name.matches(schema.namespace, schema.name)
        ]
        known = sorted(bearers)
        near = difflib.get_close_matches(str(name), known, n=3) or known[:5]
        if later:
            hint = f"it comes with the record at offset {min(later)}"
        else:
            hint = f"there is {', '.join(near)}" if near else "the stream has no tables yet"
        return UnknownTable(
            f"stream {self.stream!r} has no table {name} at offset {stop}", hint=hint
        )

    def _refreshed(self) -> dict[int, Schema]:
        with self._lock:
            first = max(self._versions, default=-1) + 1
            found = self._engine.schemas(self.stream, first=first)
            if found:
                fresh = {number: Schema.from_map(number, stored) for number, stored in found}
                self._versions = {**self._versions, **fresh}
            return self._versions


def places(source: Schema, target: Schema) -> tuple[int | None, ...]:
    """For each column of `target`, where `source` has it; None where it has not.

    Columns are the same where their attribute numbers are; by name where either has none.
    """
    return tuple(_place(source, column) for column in target.columns)


def _place(source: Schema, column: Column) -> int | None:
    for place, other in enumerate(source.columns):
        if column.attribute is not None and other.attribute is not None:
            if column.attribute == other.attribute:
                return place
        elif column.name == other.name:
            return place
    return None


def _keep(before: Schema, after: Schema) -> Schema:
    """`after`, with the fast defaults that only `before` knows."""
    columns = tuple(
        replace(column, missing=before.columns[place].missing)
        if place is not None and column.missing is None and before.columns[place].missing
        else column
        for column, place in zip(after.columns, places(before, after), strict=True)
    )
    return after if columns == after.columns else replace(after, columns=columns)
