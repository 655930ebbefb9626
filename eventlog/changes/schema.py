"""One version of a table's schema, as it was when its records were written (D11)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its declared type as the source numbers it, and its identity in the catalog.

    `attribute` and `missing` (the fast default of rows older than the column, as text) come from
    the catalog; they are None where the schema version is `inferred`. `hashed`: the log holds a
    keyed hash instead of each value, as text, and of `missing` too. `primary`, under REPLICA
    IDENTITY FULL alone: it is of the primary key, as the catalog told when the version came; the
    stream does not tell.
    """

    name: str
    type: int
    typmod: int
    key: bool
    attribute: int | None = None
    missing: str | None = None
    hashed: bool = False
    primary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceType:
    """One type that the columns use.

    `kind`: b base, d domain, e enum, c composite, r range, m multirange, p pseudo, a array. `base`
    is a domain's underlying type, `element` an array's; 0 where there is none. `delimiter` parts
    the elements in the text of an array of this type.
    """

    id: int
    namespace: str
    name: str
    kind: str
    base: int = 0
    base_typmod: int = -1
    element: int = 0
    delimiter: str = ","


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A relation's name, columns and types at one version.

    `id` numbers the versions of a stream, densely, in the order they came. `offset` is the
    stream's end when the version was stored: no record below it has this version. `identity`: d
    primary key, n nothing, f full, i index. `inserts_only`: the source sends no updates or deletes
    of this table (D13). `inferred`: the catalog had moved on when the version was first seen.

    `unseen_since`: rows that existed changed at the source in a way that the stream does not show,
    somewhere at or after that offset, and before the version was stored; None where nothing of
    that kind is known. `unseen_reason` says what happened. A later version does not repeat it:
    a copy of the table that begins at or after `offset` mends it.

    `renamed`: the table was seen to bear this name at the source when the stream had come to
    `offset`, whether or not a record follows: every cut behind it knows the name.
    """

    id: int
    offset: int
    relation: int
    namespace: str
    name: str
    identity: str
    columns: tuple[Column, ...]
    types: Mapping[int, SourceType] = field(default_factory=dict)
    inserts_only: bool = False
    inferred: bool = False
    unseen_since: int | None = None
    unseen_reason: str = ""
    renamed: bool = False

    @property
    def table(self) -> str:
        """`schema.table`, unquoted."""
        return f"{self.namespace}.{self.name}"

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def key_indexes(self) -> tuple[int, ...]:
        """Places of the key's columns; empty where the table has no key.

        Under REPLICA IDENTITY FULL the source flags every column, which is no key (PROTOCOL).
        """
        if self.identity in ("f", "n"):
            return ()
        return tuple(i for i, column in enumerate(self.columns) if column.key)

    @cached_property
    def row_key(self) -> tuple[int, ...]:
        """Places of the columns that name a row in its history; empty where none do.

        Those of the key; under REPLICA IDENTITY FULL those of the primary key. What a state is
        does not rest on the latter, as the catalog may have been ahead of the stream.
        """
        if self.identity == "f":
            return tuple(i for i, column in enumerate(self.columns) if column.primary)
        return self.key_indexes

    def to_map(self) -> dict[str, Any]:
        """The stored form, without `id`, which is its key."""
        stored = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "id"}
        stored["columns"] = [dataclasses.asdict(column) for column in self.columns]
        stored["types"] = [dataclasses.asdict(kind) for kind in self.types.values()]
        return stored

    @classmethod
    def from_map(cls, schema_id: int, stored: Mapping[str, Any]) -> Schema:
        """Read the stored form; names that a later version added are passed over."""
        known = {f.name for f in dataclasses.fields(cls)}
        fields = {name: value for name, value in stored.items() if name in known}
        columns = tuple(Column(**_known(Column, column)) for column in stored["columns"])
        types = (SourceType(**_known(SourceType, kind)) for kind in stored["types"])
        fields |= {"columns": columns, "types": {kind.id: kind for kind in types}}
        return cls(id=schema_id, **fields)


def _known(cls: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    return {name: value for name, value in stored.items() if name in names}
