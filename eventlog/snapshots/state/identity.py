"""What identifies a row under a schema version, and when that changes.

As `eventlog.changes.fold` has it: a key, the whole row (REPLICA IDENTITY FULL), or nothing. Events
have a key or, each for itself, none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from eventlog.changes.schema import Schema
from eventlog.changes.schemas import places

Kind: TypeAlias = Literal["keyed", "rows", "inserted"]


LOOSE = "e"
"""`Schema.identity` of events, which may have a key or none; no source has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """How rows are told apart; `columns` are the places of what is compared.

    `loose`: a row whose key is NULL is told apart from all others.
    """

    kind: Kind
    columns: tuple[int, ...]
    loose: bool = False


def identity_of(schema: Schema | None, *, as_inserts: bool) -> Identity:
    """The identity under a version; without one, or `as_inserts`, there is none."""
    if as_inserts or schema is None:
        return Identity(kind="inserted", columns=())
    if schema.key_indexes:
        return Identity(kind="keyed", columns=schema.key_indexes, loose=schema.identity == LOOSE)
    if schema.identity == "f":
        return Identity(kind="rows", columns=tuple(range(len(schema.columns))))
    return Identity(kind="inserted", columns=())


def is_kept(source: Schema | None, target: Schema, *, as_inserts: bool) -> bool:
    """Whether rows are told apart by the same values before and after a change of version."""
    before = identity_of(source, as_inserts=as_inserts)
    after = identity_of(target, as_inserts=as_inserts)
    if before.kind != after.kind:
        return False
    if after.kind == "inserted":
        return True
    assert source is not None
    at = places(source, target)
    if after.kind == "rows" and len(source.columns) != len(target.columns):
        return False
    return tuple(at[column] for column in after.columns) == before.columns
