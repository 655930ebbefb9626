"""What the catalog shows of captured tables, and whether rows changed without a record.

Two observations of a table are compared (`judge`). What each kind of change looks like:

======================================  ====================================================
ADD COLUMN, nothing to rewrite          a new attribute, the same file
ADD COLUMN with a value for each row    a new attribute without missing value, another file
ALTER COLUMN TYPE, rows rewritten       the attribute's row and the file are others
ALTER COLUMN TYPE, nothing rewritten    another type, the same file: the text may be another
DROP, RENAME, SET DEFAULT               the attribute's row is another, the same file
VACUUM FULL, CLUSTER, TRUNCATE, move    another file alone; missing values may be cleared
a partition that was made in place      attached by the transaction that made it, with no row of it
a partition attached, detached, gone    attached by another one; not there any more
a partition truncated or rewritten      another file: the stream does not tell of it
======================================  ====================================================

The first, the fifth and the sixth change nothing that the stream does not tell; of an enumeration
a renamed label, of a composite type every attribute changes the text of rows that nobody touched.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import psycopg
from psycopg import sql

from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated
from cdc.postgres.schema import observation_queries as queries
from cdc.postgres.schema.relation import one_view

_TEXTS = frozenset((25, 1043))
"""text and varchar: one is taken for the other as it is."""

_LISTS_VERSION = 150_000


class Attribute(NamedTuple):
    """One column's row in the catalog; `base` is its type without domains.

    `generated`: '' not, s stored, v virtual. `default` is the entry of its default, 0 without one.
    """

    number: int
    name: str
    type: int
    typmod: int
    dropped: bool
    xmin: int
    has_missing: bool
    generated: str
    default: int
    base: int


class Part(NamedTuple):
    """A partition at any depth, and which transactions made and attached it.

    `founded`: it had rows of the transaction that made it when it was first seen, or that could
    not be told.
    """

    oid: int
    parent: int
    kind: str
    file: int
    attached: int
    created: int
    founded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """A table as one look at the catalog shows it.

    `kind`: r table, p partitioned. `persistence`: p permanent, u unlogged. `updatable`: its updates
    and deletes can be published (D13). `enums`: by type, each label's entry and the label.
    `composites`: by type, number, type and typmod of each attribute. `condition` stands for the
    publication's row filter, `listed` are the columns that it lists, None for all.
    """

    oid: int
    kind: str
    namespace: str
    name: str
    persistence: str
    identity: str
    has_key: bool
    updatable: bool
    file: int
    attributes: tuple[Attribute, ...]
    parts: tuple[Part, ...]
    enums: Mapping[int, Mapping[int, str]]
    composites: Mapping[int, tuple[tuple[int, int, int], ...]]
    condition: str | None
    listed: tuple[int, ...] | None

    @property
    def storage(self) -> dict[int, int]:
        """The file of each leaf that holds rows."""
        if self.kind == "r":
            return {self.oid: self.file}
        return {part.oid: part.file for part in self.parts if part.kind == "r"}

    def to_map(self) -> dict[str, Any]:
        """The stored form."""
        stored = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        stored["attributes"] = [list(attribute) for attribute in self.attributes]
        stored["parts"] = [list(part) for part in self.parts]
        stored["enums"] = [[kind, *map(list, found.items())] for kind, found in self.enums.items()]
        stored["composites"] = [
            [kind, *map(list, found)] for kind, found in self.composites.items()
        ]
        stored["listed"] = None if self.listed is None else list(self.listed)
        return stored

    @classmethod
    def from_map(cls, stored: Mapping[str, Any]) -> Self:
        """Read the stored form; names that a later version added are passed over."""
        names = {f.name for f in dataclasses.fields(cls)}
        fields = {name: value for name, value in stored.items() if name in names}
        fields["attributes"] = tuple(Attribute(*row) for row in stored["attributes"])
        fields["parts"] = tuple(Part(*row) for row in stored["parts"])
        fields["enums"] = {kind: dict(labels) for kind, *labels in stored["enums"]}
        fields["composites"] = {
            kind: tuple(tuple(row) for row in rows) for kind, *rows in stored["composites"]
        }
        if stored["listed"] is not None:
            fields["listed"] = tuple(stored["listed"])
        return cls(**fields)


def observe(
    conn: Connection,
    oids: Collection[int],
    publications: Sequence[str] = (),
    *,
    before: Mapping[int, TableFacts] | None = None,
) -> dict[int, TableFacts]:
    """Look at tables; those that are gone are left out.

    `publications` are those that send them. Partitions that are new since `before` are looked into
    for rows of the transaction that made them.
    """
    with translated("observing the captured tables"), one_view(conn):
        wanted = {"oids": list(oids), "names": list(publications)}
        tree = conn.execute(queries.TREE, wanted).fetchall()
        attributes = conn.execute(queries.ATTRIBUTES, wanted).fetchall()
        types = _Types.read(conn, {row[3] for row in attributes if not row[5]})
        sent = []
        if publications and conn.info.server_version >= _LISTS_VERSION:
            sent = conn.execute(queries.SENT, wanted).fetchall()
        rows_of = _grouped(tree)
        parts = {
            root: tuple(
                _part(conn, row, None if before is None else before.get(root))
                for row in rows
                if row[1] != root
            )
            for root, rows in rows_of.items()
        }
    attributes_of, sent_of = _grouped(attributes), _grouped(sent)
    found = {}
    for root, rows in rows_of.items():
        own = next(row for row in rows if row[1] == root)
        leaves = [row for row in rows if row[3] == "r"]
        columns = tuple(
            Attribute._make((*row[1:], types.base(row[3]))) for row in attributes_of.get(root, [])
        )
        used = types.closure(c.type for c in columns if not c.dropped)
        conditions = [row[1] for row in sent_of.get(root, []) if row[1] is not None]
        lists = [row[2] for row in sent_of.get(root, [])]
        found[root] = TableFacts(
            oid=root,
            kind=own[3],
            namespace=own[7],
            name=own[8],
            persistence=own[9],
            identity=own[10],
            has_key=own[11],
            updatable=all(row[11] or row[10] == "f" for row in [own, *leaves]),
            file=own[4],
            attributes=columns,
            parts=parts[root],
            enums={kind: types.enums[kind] for kind in used if kind in types.enums},
            composites={kind: types.composites[kind] for kind in used if kind in types.composites},
            condition=" ".join(conditions) or None,
            listed=tuple(sorted({n for one in lists for n in one}))
            if lists and all(one is not None for one in lists)
            else None,
        )
    return found


def judge(before: TableFacts, now: TableFacts) -> str | None:
    """Why rows may have changed without a record between two looks at a table; None if none did.

    REQUIRES: both are of the same relation.
    """
    assert before.oid == now.oid
    if before.persistence != now.persistence:
        return "it became unlogged, or had been"
    if before.condition != now.condition:
        return "the publication's row filter changed"
    return (
        _sent_anew(before, now)
        or _parts_changed(before, now)
        or _rows_rewritten(before, now)
        or _types_changed(before, now)
    )


def same_text(one: int, other: int) -> bool:
    """Whether a value that changed its type, but not its bytes, has the same text.

    Types without domains.
    """
    return one == other or {one, other} <= _TEXTS


def _sent_anew(before: TableFacts, now: TableFacts) -> str | None:
    """A column that was there already and is sent only now."""
    if before.listed is None:
        return None
    were = {a.number for a in before.attributes if not a.dropped} - set(before.listed)
    sent = were if now.listed is None else were & set(now.listed)
    for attribute in now.attributes:
        if attribute.number in sent and not attribute.dropped and not attribute.generated:
            return f"column {attribute.name!r}, which was not sent before, is sent now"
    return None


def _parts_changed(before: TableFacts, now: TableFacts) -> str | None:
    known = {part.oid: part for part in before.parts}
    if any(part.oid not in {p.oid for p in now.parts} for part in before.parts):
        return "a partition was detached or dropped"
    for part in now.parts:
        old = known.get(part.oid)
        if old is None:
            if part.founded or part.attached != part.created:
                return "a partition was attached"
        elif old.attached != part.attached:
            return "a partition was detached and attached"
        elif part.kind == "r" and old.file != part.file:
            return "a partition was truncated, or its rows were rewritten"
    return None


def _rows_rewritten(before: TableFacts, now: TableFacts) -> str | None:
    known = {attribute.number: attribute for attribute in before.attributes}
    for attribute in now.attributes:
        if attribute.dropped:
            continue
        old = known.get(attribute.number)
        if before.file != now.file:
            new_values = old is None and not attribute.has_missing
            altered = old is not None and _altered(old, attribute)
            if new_values or altered:
                return "its rows were rewritten by ALTER TABLE"
        if old is None:
            continue
        if old.generated != attribute.generated:
            return f"column {attribute.name!r} is not generated any more, or is now"
        if not same_text(old.base, attribute.base):
            return f"column {attribute.name!r} was given another type"
    return None


def _altered(old: Attribute, new: Attribute) -> bool:
    """Whether a rewrite may have given a column other values.

    What rewrites rows without changing them clears missing values, and writes just that: the entry
    of the default stays, which ALTER COLUMN TYPE makes anew.
    """
    if old.xmin == new.xmin:
        return False
    cleared = old.has_missing and not new.has_missing
    kept = old._replace(xmin=new.xmin, has_missing=False) == new
    return not (cleared and kept and old.default)


def _types_changed(before: TableFacts, now: TableFacts) -> str | None:
    for kind, labels in now.enums.items():
        old = before.enums.get(kind, {})
        if any(old.get(entry, label) != label for entry, label in labels.items()):
            return "a label of an enumeration was renamed"
    for kind, attributes in now.composites.items():
        if before.composites.get(kind, attributes) != attributes:
            return "a composite type was altered"
    return None


@dataclass(frozen=True, slots=True)
class _Types:
    """The types that some columns use, and what each rests on."""

    kinds: Mapping[int, tuple[str, int, list[int]]]
    enums: Mapping[int, Mapping[int, str]]
    composites: Mapping[int, tuple[tuple[int, int, int], ...]]

    @classmethod
    def read(cls, conn: Connection, types: Collection[int]) -> _Types:
        rows = conn.execute(queries.TYPES, {"types": list(types)}).fetchall()
        kinds = {row[0]: (row[1], row[2], row[3]) for row in rows}
        enums: dict[int, dict[int, str]] = {kind: {} for kind in _of(kinds, "e")}
        composites: dict[int, list[tuple[int, int, int]]] = {kind: [] for kind in _of(kinds, "c")}
        if enums:
            wanted = {"types": list(enums)}
            for kind, entry, label in conn.execute(queries.ENUMS, wanted).fetchall():
                enums[kind][entry] = label
        if composites:
            wanted = {"types": list(composites)}
            for kind, *attribute in conn.execute(queries.COMPOSITES, wanted).fetchall():
                composites[kind].append(tuple(attribute))
        return cls(kinds, enums, {kind: tuple(rows) for kind, rows in composites.items()})

    def base(self, kind: int) -> int:
        while (found := self.kinds.get(kind)) is not None and found[0] == "d":
            kind = found[1]
        return kind

    def closure(self, kinds: Iterable[int]) -> list[int]:
        found: set[int] = set()
        waiting = list(kinds)
        while waiting:
            kind = waiting.pop()
            if kind not in found:
                found.add(kind)
                waiting += self.kinds[kind][2] if kind in self.kinds else []
        return sorted(found)


def _of(kinds: Mapping[int, tuple[str, int, list[int]]], wanted: str) -> list[int]:
    return [kind for kind, (found, _, _) in kinds.items() if found == wanted]


def _grouped(rows: Iterable[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
    found: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        found[row[0]].append(row)
    return found


def _part(conn: Connection, row: tuple[Any, ...], before: TableFacts | None) -> Part:
    part = Part._make((*row[1:7], False))
    if before is None:
        return part
    known = next((old for old in before.parts if old.oid == part.oid), None)
    if known is not None:
        return part._replace(founded=known.founded)
    if part.kind != "r" or part.attached != part.created:
        return part
    return part._replace(founded=_has_rows_of(conn, part.oid, row[7], row[8], part.created))


def _has_rows_of(conn: Connection, oid: int, namespace: str, name: str, xid: int) -> bool:
    """Whether a table has rows of that transaction; true where that cannot be told.

    It has that name in the snapshot. By now another may bear it: then too.
    """
    query = sql.SQL("select exists (select from only {} where xmin = {}::text::xid)").format(
        sql.Identifier(namespace, name), sql.Literal(xid)
    )
    try:
        with conn.transaction():
            conn.execute("set local lock_timeout = '2s'")
            row = conn.execute(query).fetchone()
            # The query has locked what it read, which so bears its name still.
            named = conn.execute(queries.NAME, [oid]).fetchone()
    except psycopg.Error:
        if conn.broken:
            raise
        return True
    return row is None or bool(row[0]) or named != (namespace, name)
