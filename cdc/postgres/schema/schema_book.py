"""Which schema version each relation has now, and which versions are still to be stored (D11).

A version whose columns cannot be told apart, or with a new column of which older rows may have
anything, is marked as unseen: what the log has of the older rows is not certain until the table
has been copied again (`take_doubts`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from cdc.postgres.protocol.messages import Relation
from cdc.postgres.schema.column_identity import KnownColumns, identified
from cdc.postgres.schema.observation import same_text
from cdc.postgres.schema.relation import CatalogColumn, CatalogRelation
from eventlog.changes.schema import Column, Schema, SourceType
from eventlog.changes.schemas import places

Describe = Callable[[int], CatalogRelation | None]
"""Looks a relation up in the catalog on a second connection; None where it is gone."""

NOT_COPIED = "the rows that it had are not copied yet"

Settled = Callable[[int, int], bool]
"""Whether a transaction (`xmin`) is known to have ended before the one that commits at a position.

False where that is not known."""


class Gate(Protocol):
    """Says how a version is stored."""

    def stored(self, schema: Schema, known: Schema | None) -> Schema: ...


class SchemaBook:
    """The schema versions of one captured stream, as its single writer sees them.

    Versions get their number at once and are stored by the commit that publishes their first
    records (`take_pending`).
    """

    def __init__(
        self,
        stored: Iterable[Schema],
        describe: Describe,
        *,
        inserts_only: bool = False,
        settled: Settled = lambda xmin, position: False,
        known_good: Callable[[int], int] = lambda relation: 0,
        gate: Gate | None = None,
    ) -> None:
        """`inserts_only`: the source sends no updates or deletes, of any table.

        `known_good`: the stream's end when the rows of a relation were last known to be as the log
        has them. `gate` is applied to every version before it is adopted.
        """
        self._describe = describe
        self._inserts_only = inserts_only
        self._settled = settled
        self._known_good = known_good
        self._gate = gate
        self._current: dict[int, Schema] = {}
        self._certain: dict[int, KnownColumns] = {}
        self._storage: dict[int, Mapping[int, int]] = {}
        self._next_id = 0
        self._pending: list[Schema] = []
        self._doubts: dict[int, str] = {}
        self._awaited: set[int] = set()
        for schema in stored:
            self._learn(schema)
            self._next_id = schema.id + 1

    def version_of(self, message: Relation, *, xid: int = 0, position: int = 0) -> int:
        """The number of the version that a Relation message announces; a new one if need be.

        `xid` is the transaction that the message came in, `position` where that commits. Attribute
        numbers and fast defaults come from the catalog where the message's columns are certain;
        else the version is `inferred`, and its columns go by name.
        """
        relation = self._describe(message.relation)
        numbers = None
        if relation is not None:
            numbers = identified(
                message.columns,
                relation,
                self._certain.get(message.relation),
                # What the message's own transaction wrote may have come before it or after.
                lambda xmin: xmin != xid and self._settled(xmin, position),
            )
        known = self._current.get(message.relation)
        schema = self._stored_form(_announced(message, relation, numbers), known)
        if known is not None and _same(schema, known):
            self._stands_on(relation)
            return known.id
        reason = self._doubt(schema, known, relation)
        self._stands_on(relation)
        if reason is not None and known is not None:
            since = max(known.offset, self._known_good(schema.relation))
            schema = replace(schema, unseen_since=since, unseen_reason=reason)
            self._doubts[schema.relation] = reason
        return self._append(schema)

    def adopt(self, schema: Schema) -> int:
        """The number of the version with this content; `id` and `offset` of it do not matter.

        For a copy, whose columns come from the catalog.
        """
        known = self._current.get(schema.relation)
        schema = self._stored_form(schema, known)
        self._storage.pop(schema.relation, None)
        if known is not None and _same(schema, known):
            return known.id
        return self._append(schema)

    def mark_unseen(self, relation: int, *, since: int, reason: str) -> int | None:
        """Note that rows of a relation changed without a record; returns the new version's number.

        `since` is the stream's end when they were last known to be as the log has them. None where
        the relation has no version: the log holds nothing of it.
        """
        known = self._current.get(relation)
        if known is None:
            return None
        return self._append(replace(known, unseen_since=since, unseen_reason=reason))

    def rename(self, relation: int, *, namespace: str, name: str) -> int | None:
        """Note that the catalog has another name for a relation; returns the new version's number.

        None where the relation has no version, or has that name. REQUIRES: what the relation
        changed under its earlier name is stored; a record of the new version comes next.
        """
        known = self._current.get(relation)
        if known is None or (known.namespace, known.name) == (namespace, name):
            return None
        # What is in doubt stays so by the version before: told again here, a copy that is under
        # way would not mend it.
        renamed = replace(
            known,
            namespace=namespace,
            name=name,
            renamed=True,
            unseen_since=None,
            unseen_reason="",
        )
        return self._append(renamed)

    def await_copy(self, relation: int) -> None:
        """Note that the rows that a relation has are still to be copied for the first time.

        Until `copy_begins`, its versions say so: a snapshot of what came since would lack them.
        """
        self._awaited.add(relation)
        known = self._current.get(relation)
        if known is not None and known.unseen_since is None:
            self._append(known)

    def copy_begins(self, relation: int) -> None:
        """Note that a `copy_begin` of a relation comes next."""
        self._awaited.discard(relation)

    def stood_on(self, relation: int, storage: Mapping[int, int]) -> None:
        """Tell which files a relation was seen to have, by leaf, with its present version."""
        self._storage[relation] = storage

    def take_doubts(self) -> list[tuple[int, str]]:
        """The relations that must be copied again, each with the reason; told once."""
        doubts, self._doubts = self._doubts, {}
        return list(doubts.items())

    def schema(self, relation: int) -> Schema | None:
        """The version in force of a relation, if any was seen."""
        return self._current.get(relation)

    def take_pending(self) -> list[tuple[int, Mapping[str, Any]]]:
        """The versions not stored yet, for the next commit."""
        pending, self._pending = self._pending, []
        return [(schema.id, schema.to_map()) for schema in pending]

    def _stored_form(self, schema: Schema, known: Schema | None) -> Schema:
        """The version as the log keeps it."""
        if self._gate is not None:
            schema = self._gate.stored(schema, known)
        columns = schema.columns
        types = dict(schema.types)
        if known is not None:
            # The fast default of a column is that of its first version: a rewrite clears it.
            kept = {c.attribute: c.missing for c in known.columns if c.attribute is not None}
            columns = tuple(
                replace(column, missing=kept[column.attribute])
                if column.attribute in kept
                else column
                for column in columns
            )
            types = {**known.types, **types}
        flag = self._inserts_only or _inserts_only(schema.identity, columns)
        return replace(
            schema, columns=columns, types=_used(columns, types), inserts_only=flag, offset=0
        )

    def _doubt(
        self, schema: Schema, known: Schema | None, relation: CatalogRelation | None
    ) -> str | None:
        """Why rows that the log has may not be what the new version makes of them."""
        if known is None:
            return None
        if schema.inferred or relation is None:
            return "columns were dropped and added, and which is which cannot be told"
        if not _is_certain(known):
            # Where it was marked, the copy that mends it is still to come.
            told = known.unseen_since is not None
            return None if told else "its earlier columns are known by name only"
        before = self._storage.get(relation.oid)
        rewritten = None if before is None else _differ(before, relation.storage)
        by_number = {column.attribute: column for column in relation.columns}
        newest = self._certain[relation.oid].newest
        for column, place in zip(schema.columns, places(known, schema), strict=True):
            assert column.attribute is not None
            now = by_number.get(column.attribute)
            if place is not None:
                old = known.columns[place]
                if _retyped(old, column) and not (
                    rewritten is False and same_text(_base(old, known), _base(column, schema))
                ):
                    return f"column {column.name!r} was given another type"
            elif column.attribute <= newest:
                return f"column {column.name!r}, which was not sent before, is sent now"
            elif column.missing is None and not _null_before(column, now, rewritten):
                return f"column {column.name!r} was added, and the rows before it may have values"
        return None

    def _stands_on(self, relation: CatalogRelation | None) -> None:
        if relation is not None:
            self._storage[relation.oid] = relation.storage

    def _append(self, schema: Schema) -> int:
        if schema.relation in self._awaited and schema.unseen_since is None:
            schema = replace(schema, unseen_since=-1, unseen_reason=NOT_COPIED)
        numbered = replace(schema, id=self._next_id, offset=0)
        self._next_id += 1
        self._learn(numbered)
        self._pending.append(numbered)
        return numbered.id

    def _learn(self, schema: Schema) -> None:
        self._current[schema.relation] = schema
        if not _is_certain(schema):
            return
        numbers = [c.attribute for c in schema.columns if c.attribute is not None]
        before = self._certain.get(schema.relation)
        self._certain[schema.relation] = KnownColumns(
            present=frozenset(numbers),
            newest=max([*numbers, 0 if before is None else before.newest]),
        )


def schema_of(relation: CatalogRelation, names: Collection[str] | None = None) -> Schema:
    """A relation of the catalog as a schema version; `names` are the columns that are sent."""
    full = relation.identity == "f"
    if names is None:
        names = {c.name for c in relation.columns if not c.generated or relation.generated_sent}
    sent = [c for c in relation.columns if c.name in names and not c.virtual]
    primary = _primary(relation if full else None, [c.attribute for c in sent])
    return Schema(
        id=0,
        offset=0,
        relation=relation.oid,
        namespace=relation.schema,
        name=relation.name,
        identity=relation.identity,
        columns=tuple(
            Column(
                name=column.name,
                type=column.type,
                typmod=column.typmod,
                # The server flags every column under REPLICA IDENTITY FULL.
                key=full or column.key,
                attribute=column.attribute,
                missing=column.missing,
                primary=column.attribute in primary,
            )
            for column in sent
        ),
        types=relation.types,
    )


def _announced(
    message: Relation, relation: CatalogRelation | None, numbers: tuple[int, ...] | None
) -> Schema:
    columns = {} if relation is None else {c.attribute: c for c in relation.columns}
    if numbers is None:
        found = tuple(
            Column(name=c.name, type=c.type, typmod=c.typmod, key=c.key) for c in message.columns
        )
    else:
        primary = _primary(relation if message.identity == "f" else None, numbers)
        found = tuple(
            Column(
                name=sent.name,
                type=sent.type,
                typmod=sent.typmod,
                key=sent.key,
                attribute=number,
                missing=columns[number].missing if number in columns else None,
                primary=number in primary,
            )
            for sent, number in zip(message.columns, numbers, strict=True)
        )
    return Schema(
        id=0,
        offset=0,
        relation=message.relation,
        namespace=message.namespace,
        name=message.name,
        identity=message.identity,
        columns=found,
        types={} if relation is None else relation.types,
        inferred=numbers is None,
    )


def _primary(relation: CatalogRelation | None, sent: Collection[int]) -> frozenset[int]:
    """The attributes of the primary key, where all of them are sent."""
    columns = () if relation is None else relation.columns
    found = frozenset(c.attribute for c in columns if c.primary)
    return found if found.issubset(sent) else frozenset()


def _same(one: Schema, other: Schema) -> bool:
    """Whether both have the same content, whatever is told of unseen changes and renames."""
    return (
        replace(
            one,
            id=other.id,
            offset=other.offset,
            unseen_since=other.unseen_since,
            unseen_reason=other.unseen_reason,
            renamed=other.renamed,
        )
        == other
    )


def _used(columns: Iterable[Column], types: Mapping[int, SourceType]) -> dict[int, SourceType]:
    """Of `types` those of the columns, with all that they rest on."""
    found: dict[int, SourceType] = {}
    waiting = [column.type for column in columns]
    while waiting:
        kind = types.get(waiting.pop())
        if kind is not None and kind.id not in found:
            found[kind.id] = kind
            waiting += [kind.base, kind.element]
    return dict(sorted(found.items()))


def _inserts_only(identity: str, columns: Iterable[Column]) -> bool:
    return identity == "n" or (identity == "d" and not any(column.key for column in columns))


def _is_certain(schema: Schema) -> bool:
    return not schema.inferred and all(c.attribute is not None for c in schema.columns)


def _differ(before: Mapping[int, int], now: Mapping[int, int]) -> bool:
    """Whether some leaf has another file; what happens to whole leaves is judged elsewhere."""
    return any(before.get(leaf, file) != file for leaf, file in now.items())


def _retyped(one: Column, other: Column) -> bool:
    return (one.type, one.typmod) != (other.type, other.typmod)


def _base(column: Column, schema: Schema) -> int:
    """The type that a column's text is of: a domain's lowest base."""
    found = column.type
    while (kind := schema.types.get(found)) is not None and kind.kind == "d":
        found = kind.base
    return found


def _null_before(column: Column, now: CatalogColumn | None, rewritten: bool | None) -> bool:
    """Whether rows older than a new column without a fast default have NULL in it.

    `now` is the column in the catalog; `rewritten` None: whether the rows were is not known.
    """
    if (
        now is None
        or not now.missing_known
        or (now.type, now.typmod)
        != (
            column.type,
            column.typmod,
        )
    ):
        return False  # what cleared its fast default may have happened since
    return not rewritten if rewritten is not None else not (now.has_default or now.generated)
