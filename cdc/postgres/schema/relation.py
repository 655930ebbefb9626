"""One relation as the catalog has it now: columns, the dropped ones too, types and storage.

Every row of `pg_attribute` carries the transaction that wrote it last (`xmin`): what a column was
before is not kept, but when it came to be as it is can be told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import pq

from cdc.errors import MissingTable
from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated
from cdc.postgres.schema import catalog_queries as queries
from eventlog.changes.schema import SourceType

_LISTS_VERSION = 150_000
_GENERATED_VERSION = 180_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogColumn:
    """A column in the catalog.

    `missing` is the text of its fast default, which rows older than the column have; None if it has
    none, and then `missing_known` tells whether that is true of all partitions. `has_default`: new
    rows get a value by themselves. `virtual`: generated when read, and never sent. `primary`: it is
    of the primary key, one that holds at every moment.
    """

    attribute: int
    name: str
    type: int
    typmod: int
    key: bool
    generated: bool
    missing: str | None
    virtual: bool = False
    has_default: bool = False
    missing_known: bool = True
    xmin: int = 0
    primary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRelation:
    """A relation as it stands in the catalog now, and every type that its columns use.

    `dropped`: the attribute numbers of dropped columns, with the transaction that dropped each.
    `storage`: the file of each leaf, which a rewrite replaces. `published`: the attributes that the
    publications send, None where they list none; `generated_sent`: whether stored generated
    columns are sent then, None where that is not known.
    """

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[CatalogColumn, ...]
    types: Mapping[int, SourceType]
    dropped: Mapping[int, int] = field(default_factory=dict)
    storage: Mapping[int, int] = field(default_factory=dict)
    published: frozenset[int] | None = None
    generated_sent: bool | None = None


@contextlib.contextmanager
def one_view(conn: Connection) -> Iterator[None]:
    """Let all statements inside see one state of the catalog; a transaction under way stays."""
    if conn.info.transaction_status != pq.TransactionStatus.IDLE:
        yield
        return
    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("ROLLBACK")


def describe_relation(
    conn: Connection, oid: int, publications: Sequence[str] = ()
) -> CatalogRelation:
    """A relation, its columns with their catalog identity, and their types with all they rest on.

    `publications` are those that send it. Raises MissingTable if it was dropped.
    """
    names = list(publications)
    with translated(f"reading the catalog about relation {oid}"), one_view(conn):
        head = conn.execute(queries.RELATION, [oid]).fetchone()
        columns = conn.execute(queries.COLUMNS, {"oid": oid}).fetchall()
        types = conn.execute(queries.TYPES, [[row[2] for row in columns]]).fetchall()
        storage = conn.execute(queries.STORAGE, {"oid": oid}).fetchall()
        query = _sent(conn.info.server_version)
        sent = conn.execute(query, {"names": names, "oid": oid}).fetchall() if names else []
    if head is None:
        raise MissingTable(
            f"the relation with id {oid} is not in the catalog any more",
            hint="the table was dropped; stop naming it",
        )
    # A table that none of them names comes by its schema, or with all tables.
    naming = [row for row in sent if row[0]] or sent
    lists = [row[1] for row in naming]
    return CatalogRelation(
        oid=oid,
        schema=head[0],
        name=head[1],
        identity=head[2],
        columns=tuple(_column(row) for row in columns if not row[6]),
        types={row[0]: _type(row) for row in types},
        dropped={row[0]: row[10] for row in columns if row[6]},
        storage=dict(storage),
        published=frozenset(n for one in lists for n in one) if lists and all(lists) else None,
        generated_sent=any(row[2] for row in naming) if names else None,
    )


def find_relation(
    conn: Connection, oid: int, publications: Sequence[str] = ()
) -> CatalogRelation | None:
    """What `describe_relation` gives; None where the relation is gone."""
    try:
        return describe_relation(conn, oid, publications)
    except MissingTable:
        return None


def _sent(version: int) -> str:
    if version >= _GENERATED_VERSION:
        return queries.SENT.format(list="r.prattrs::int2[]", generated="p.pubgencols = 's'")
    listed = "r.prattrs::int2[]" if version >= _LISTS_VERSION else "null::int2[]"
    return queries.SENT.format(list=listed, generated="false")


def _column(row: Sequence[object]) -> CatalogColumn:
    attribute, name, type_id, typmod, key, generated, _, has_default = row[:8]
    texts, all_leaves, xmin, primary = row[8:]
    assert isinstance(texts, list)
    one = len(texts) == 1 and bool(all_leaves)
    return CatalogColumn(
        attribute=attribute,  # type: ignore[arg-type]
        name=name,  # type: ignore[arg-type]
        type=type_id,  # type: ignore[arg-type]
        typmod=typmod,  # type: ignore[arg-type]
        key=bool(key),
        generated=generated != "",
        virtual=generated == "v",
        has_default=bool(has_default),
        missing=_only_element(texts[0]) if one else None,
        missing_known=one or not texts,
        xmin=xmin,  # type: ignore[arg-type]
        primary=bool(primary),
    )


def _type(row: Sequence[object]) -> SourceType:
    names = ("id", "namespace", "name", "kind", "base", "base_typmod", "element", "delimiter")
    return SourceType(**dict(zip(names, row, strict=True)))  # type: ignore[arg-type]


def _only_element(array: str) -> str:
    """The one element of an array's text: `{7}`, `{"a b"}`; quotes and backslashes undone."""
    inner = array[1:-1]
    if not inner.startswith('"'):
        return inner
    result, escaped = [], False
    for character in inner[1:-1]:
        if character == "\\" and not escaped:
            escaped = True
            continue
        result.append(character)
        escaped = False
    return "".join(result)
