"""Which schema version each relation has now, and which versions are still to be stored (D11)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from cdc.postgres.messages import Relation
from eventlog.changes.schema import Column, Schema, SourceType


class CatalogView(Protocol):
    """What the catalog says of a relation at the moment."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def types(self) -> Mapping[int, SourceType]: ...


Describe = Callable[[int], CatalogView | None]
"""Looks a relation up in the catalog on a second connection; None where it is gone."""


class SchemaBook:
    """The schema versions of one captured stream, as its single writer sees them.

    Versions get their number at once and are stored by the commit that publishes their first
    records (`take_pending`).
    """

    def __init__(
        self, stored: Iterable[Schema], describe: Describe, *, inserts_only: bool = False
    ) -> None:
        """`inserts_only`: the source sends no updates or deletes, of any table."""
        self._describe = describe
        self._inserts_only = inserts_only
        self._current: dict[int, Schema] = {}
        self._next_id = 0
        self._pending: list[Schema] = []
        for schema in stored:
            self._current[schema.relation] = schema
            self._next_id = schema.id + 1

    def version_of(self, message: Relation) -> int:
        """The number of the version that a Relation message announces; a new one if need be.

        Attribute numbers and fast defaults come from the catalog where it shows the very columns
        of the message. Where it has moved on, a version known already is kept, a new one is marked
        `inferred`.
        """
        known = self._current.get(message.relation)
        catalog = self._describe(message.relation)
        inferred = catalog is None or not _same_columns(message, catalog.columns)
        if inferred and known is not None and _announces(message, known):
            return known.id
        if inferred or catalog is None:
            columns = tuple(
                Column(name=c.name, type=c.type, typmod=c.typmod, key=c.key)
                for c in message.columns
            )
            types = {} if catalog is None else catalog.types
        else:
            columns, types = _as_sent(message, catalog.columns), catalog.types
        return self._adopt(
            Schema(
                id=self._next_id,
                offset=0,
                relation=message.relation,
                namespace=message.namespace,
                name=message.name,
                identity=message.identity,
                columns=columns,
                types=dict(types),
                inserts_only=self._inserts_only or _inserts_only(message.identity, columns),
                inferred=inferred,
            )
        )

    def adopt(self, schema: Schema) -> int:
        """The number of the version with this content; `id` and `offset` of it do not matter."""
        flag = self._inserts_only or _inserts_only(schema.identity, schema.columns)
        return self._adopt(replace(schema, inserts_only=flag))

    def schema(self, relation: int) -> Schema | None:
        """The version in force of a relation, if any was seen."""
        return self._current.get(relation)

    def take_pending(self) -> list[tuple[int, Mapping[str, Any]]]:
        """The versions not stored yet, for the next commit."""
        pending, self._pending = self._pending, []
        return [(schema.id, schema.to_map()) for schema in pending]

    def _adopt(self, schema: Schema) -> int:
        known = self._current.get(schema.relation)
        if known is not None and replace(schema, id=known.id, offset=known.offset) == known:
            return known.id
        numbered = replace(schema, id=self._next_id, offset=0)
        self._next_id += 1
        self._current[schema.relation] = numbered
        self._pending.append(numbered)
        return numbered.id


def _inserts_only(identity: str, columns: Iterable[Column]) -> bool:
    return identity == "n" or (identity == "d" and not any(column.key for column in columns))


def _same_columns(message: Relation, columns: tuple[Column, ...]) -> bool:
    by_name = {column.name: column for column in columns}
    for sent in message.columns:
        found = by_name.get(sent.name)
        if found is None or (found.type, found.typmod) != (sent.type, sent.typmod):
            return False
    return True


def _as_sent(message: Relation, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    by_name = {column.name: column for column in columns}
    return tuple(replace(by_name[sent.name], key=sent.key) for sent in message.columns)


def _announces(message: Relation, known: Schema) -> bool:
    columns = tuple((c.name, c.type, c.typmod, c.key) for c in known.columns)
    sent = tuple(tuple(c) for c in message.columns)
    named = (known.namespace, known.name, known.identity)
    return sent == columns and named == (message.namespace, message.name, message.identity)
