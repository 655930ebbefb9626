"""The schema versions of one stream, and which relation a name means at a cut.

A name means the relation that bears it at the cut; the relation's history follows it across
renames, and is not that of a re-created table of the same name (API.md).

Thread safety: may be shared among threads.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from eventlog.changes.reading import uses
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
        self._last: dict[int, Schema] = {}
        self._reached: dict[int, int] = {}
        self.beside: dict[Any, Any] = {}  # What layers above keep for as long as this lives.
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

        A relation first seen at `stop` itself is known, without rows.
        """
        current: dict[int, Schema] = {}
        for schema in self._refreshed().values():
            before = current.get(schema.relation)
            if before is None:
                known = schema.offset <= stop
            else:
                known = schema.offset < stop and self._is_reached(schema, before, stop)
            if known:
                # A mark may concern a table that is gone, whose name another one bears by now.
                mark = schema.unseen_since is not None
                if before is not None and not (mark and before.table == schema.table):
                    del current[schema.relation]
                current[schema.relation] = schema
        return current

    def _is_reached(self, schema: Schema, before: Schema, stop: int) -> bool:
        """Whether a version's first record lies below the cut.

        Versions are stored with the end of the stream at their commit, which may hold records of
        several: of those in one commit the first records tell. A name that the source's catalog
        told needs no record.
        """
        shape = [(s.columns, s.table, s.identity) for s in (before, schema)]
        if shape[0] == shape[1] or schema.renamed:
            return True
        reached = self._reached.get(schema.id)
        if reached is not None and reached <= stop:
            return True
        if not uses(self._engine, self, schema, stop):
            return False
        self._reached[schema.id] = stop if reached is None else min(stop, reached)
        return True

    def unseen(self, relation: int, stop: int, *, copied_from: int | None) -> Schema | None:
        """The first version that tells of changes below `stop` that its records do not show.

        `copied_from` is where the last copy that ended below `stop` began: it mends what was known
        by then.
        """
        for schema in self._refreshed().values():
            if schema.relation != relation or schema.unseen_since is None:
                continue
            if schema.unseen_since < stop and (copied_from is None or copied_from < schema.offset):
                return schema
        return None

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
                fresh = {}
                for number, stored in found:
                    schema = Schema.from_map(number, stored)
                    before = self._last.get(schema.relation)
                    schema = schema if before is None else _keep(before, schema)
                    fresh[number] = self._last[schema.relation] = schema
                self._versions = {**self._versions, **fresh}
            return self._versions


def places(source: Schema, target: Schema) -> tuple[int | None, ...]:
    """For each column of `target`, where `source` has it; None where it has not.

    Columns are the same where their attribute numbers are; by name where either has none.
    """
    if source.columns == target.columns:
        return tuple(range(len(target.columns)))
    numbered = {column.attribute: place for place, column in enumerate(source.columns)}
    named = {column.name: place for place, column in enumerate(source.columns)}
    return tuple(_place(source, column, numbered, named) for column in target.columns)


def _place(
    source: Schema, column: Column, numbered: Mapping[int | None, int], named: Mapping[str, int]
) -> int | None:
    if column.attribute is not None and column.attribute in numbered:
        return numbered[column.attribute]
    place = named.get(column.name)
    if place is None or None in (column.attribute, source.columns[place].attribute):
        return place
    return None


def _keep(before: Schema, after: Schema) -> Schema:
    """`after`, with the fast defaults as they were when each column was first seen.

    A rewrite of the table makes the source forget them; rows older than the column still take them,
    however many versions later.
    """
    columns = tuple(
        replace(column, missing=before.columns[place].missing)
        if place is not None and before.columns[place].missing is not None
        else column
        for column, place in zip(after.columns, places(before, after), strict=True)
    )
    return after if columns == after.columns else replace(after, columns=columns)
