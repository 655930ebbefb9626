"""Parts of a table that are copied one at a time: ranges of its pages, and how far a copy is.

::

    table ──▶ leaves, by oid          the table itself, or the partitions that hold its rows
    leaf  ──▶ [(page, item), ...)     ranges of row positions (ctid), each read by a TID range scan
    range ──▶ Run                     its rows as COPY lines, held in memory

    leaf 0                       leaf 1
    +--------+--------+-----     +--------+-----
    | range  | range  | ...      | range  | ...      the last range of a leaf is open at its end
    +--------+--------+-----     +--------+-----
             ^ CopyCursor: everything before is in the log

A row keeps its position for as long as its version lives and the leaf's file stays the same. So
ranges mean something under one snapshot, or where changes since are known from elsewhere; and the
leaf must be locked in ACCESS SHARE MODE, which keeps others from rewriting it, while its filenode
is compared and its rows are read. No function here keeps a thread or a transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from psycopg import sql

from cdc.errors import PermissionMissing
from cdc.postgres.connection import Connection
from cdc.postgres.copy import copy_out
from cdc.postgres.copy.ranges import Leaf, Range, Tid
from cdc.postgres.faults import translated
from cdc.postgres.protocol.frames import Run
from cdc.postgres.schema.catalog import Table

CHUNK_BYTES = 8 << 20
"""About how much text a chunk has: enough to make a commit's flushes cheap, small in memory."""

BYTES_MAX = 2 * CHUNK_BYTES
"""A range with more text is read anew in parts, unless it is a single row."""

PAGES_FIRST = 256
"""The pages of a table's first chunk, before anything is known about its rows."""

PAGES_MAX = 1 << 16
"""512 MB at most are scanned for one chunk, however few rows pass a filter or are left alive."""

GROWTH_MAX = 4
"""A chunk has at most so many times the pages of the one before: the next rows may be wider."""

SILENCE_S = 1.0
DOING = "copying a part of a table"

# Rows of pg_class are the snapshot's, but a statement finds a table by its name of now: so does the
# function. It quotes, and knows nothing of a table that is gone.
LEAVES = """
select c.oid::int8, coalesce((parse_ident(now.schema))[1], n.nspname),
       coalesce((parse_ident(now.name))[1], c.relname),
       coalesce(pg_relation_filenode(c.oid), 0)::int8,
       coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int8,
       coalesce(has_table_privilege(c.oid, 'select'), true),
       coalesce(has_column_privilege(c.oid, 'ctid', 'select'), true)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  cross join lateral pg_identify_object('pg_class'::regclass, c.oid, 0) now
 where c.relkind = 'r' and (c.oid = %(oid)s
       or c.oid in (select relid from pg_partition_tree(%(oid)s::regclass) where isleaf))
 order by c.oid
"""

NAME = """
select (parse_ident(schema))[1], (parse_ident(name))[1]
  from pg_identify_object('pg_class'::regclass, %s::oid, 0)
"""

# The row of pg_class is the snapshot's, the function looks at the catalog as it is now.
REWRITTEN = """
select count(*) from pg_class
 where oid = any(%s) and relfilenode is distinct from pg_relation_filenode(oid)
"""

STEER = """
select set_config('enable_tidscan', 'on', false), set_config('jit', 'off', false),
       set_config('enable_seqscan', 'off', false), set_config('enable_indexscan', 'off', false),
       set_config('enable_indexonlyscan', 'off', false),
       set_config('enable_bitmapscan', 'off', false)
"""


class LeafMark(NamedTuple):
    """What a cursor keeps of a leaf: which file it walks, and how many pages that had."""

    oid: int
    filenode: int
    pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCursor:
    """How far the copy of a table is: every row before (leaf, page, item) is in the log.

    `leaf` is a place among `leaves`. `rows` counts what the log holds of the copy. `begun`: a
    log offset at or below that of its `copy_begin`.
    """

    leaves: tuple[LeafMark, ...]
    leaf: int = 0
    page: int = 0
    item: int = 0
    rows: int = 0
    begun: int

    @classmethod
    def at_start(cls, leaves: Sequence[Leaf], *, begun: int) -> Self:
        """The cursor of a copy of which the log holds no row."""
        marks = tuple(LeafMark(leaf.oid, leaf.filenode, leaf.pages) for leaf in leaves)
        return cls(leaves=marks, begun=begun)

    @property
    def done(self) -> bool:
        """Whether all ranges of all leaves are in the log."""
        return self.leaf >= len(self.leaves)

    def continues(self, found: Sequence[Leaf]) -> bool:
        """Whether these are the files that the cursor walks: others hold their rows elsewhere."""
        walked = [(mark.oid, mark.filenode) for mark in self.leaves]
        return walked == [(leaf.oid, leaf.filenode) for leaf in found]

    def after(self, rng: Range, *, rows: int) -> Self:
        """The cursor once the log holds a range that begins here, with so many rows."""
        assert not self.done
        assert (rng.leaf.oid, rng.low) == (self.leaves[self.leaf].oid, Tid(self.page, self.item))
        total = self.rows + rows
        if rng.high is None:
            return replace(self, leaf=self.leaf + 1, page=0, item=0, rows=total)
        return replace(self, page=rng.high.page, item=rng.high.item, rows=total)

    def range(self, leaves: Sequence[Leaf], *, pages: int) -> Range:
        """The range that begins here. REQUIRES: not done, and `leaves` are those it walks.

        The last range of a leaf is open at its end, where rows may have come since.
        """
        leaf = leaves[self.leaf]
        assert leaf.oid == self.leaves[self.leaf].oid
        stop = self.page + max(pages, 1)
        # A short rest is no chunk of its own.
        high = Tid(stop, 0) if stop + pages // 4 < leaf.pages else None
        return Range(leaf=leaf, low=Tid(self.page, self.item), high=high)

    def to_map(self) -> dict[str, Any]:
        """Plain lists and numbers, for the source's row in the log."""
        return {
            "leaves": [list(mark) for mark in self.leaves],
            "leaf": self.leaf,
            "page": self.page,
            "item": self.item,
            "rows": self.rows,
            "begun": self.begun,
        }

    @classmethod
    def from_map(cls, stored: Mapping[str, Any]) -> Self:
        """Read a cursor back; what a newer version added is passed over."""
        return cls(
            leaves=tuple(LeafMark(*mark[:3]) for mark in stored["leaves"]),
            leaf=stored["leaf"],
            page=stored["page"],
            item=stored["item"],
            rows=stored["rows"],
            begun=stored["begun"],
        )


class Pace:
    """How many pages a chunk should have, learned from the chunks that came."""

    def __init__(self) -> None:
        self.pages = PAGES_FIRST

    def saw(self, pages: int, size: int) -> None:
        """Learn from a range of so many pages, whose text had at least so many bytes."""
        fitting = CHUNK_BYTES * pages // max(size, 1)
        self.pages = max(1, min(fitting, pages * GROWTH_MAX, PAGES_MAX))


def steer(conn: Connection) -> None:
    """Let the planner of this session read ranges by TID range scans, whatever it is set to."""
    with translated("preparing to copy"):
        conn.execute(STEER)


def leaves(conn: Connection, table: Table) -> tuple[Leaf, ...]:
    """The heaps that hold the table's rows, by oid, under their names of now.

    None of a table that is gone.
    """
    with translated(f"looking at the files of {table.table}"):
        rows = conn.execute(LEAVES, {"oid": table.oid}).fetchall()
    names = ("oid", "schema", "name", "filenode", "pages", "granted", "placed")
    return tuple(Leaf(**dict(zip(names, row, strict=True))) for row in rows)


def name_now(conn: Connection, oid: int) -> tuple[str | None, str | None]:
    """Schema and name that a table has now, whatever the snapshot shows; None where it is gone.

    A statement before it, in the same transaction, that named the table so has read this table and
    no other: its lock keeps both from being renamed since.
    """
    with translated("looking at the names of tables"):
        row = conn.execute(NAME, [oid]).fetchone()
    assert row is not None
    return row[0], row[1]


def same_files(found: Sequence[Leaf], others: Sequence[Leaf]) -> bool:
    """Whether both are the same leaves with the same files, under the same names."""
    one, two = (
        [(leaf.oid, leaf.filenode, leaf.schema, leaf.name) for leaf in each]
        for each in (found, others)
    )
    return one == two


def lock(conn: Connection, found: Sequence[Leaf]) -> None:
    """Keep these leaves from being rewritten, truncated or dropped until the transaction ends.

    Raises PermissionMissing, also for leaves whose ranges could not be read.
    """
    _require_readable(conn, found)
    names = [sql.SQL("ONLY {}").format(leaf.identifier) for leaf in found if leaf.granted]
    with translated("locking the tables that are copied against being rewritten"):
        if names:
            joined = sql.SQL(", ").join(names)
            conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(joined))
        for leaf in found:
            # Who may read some columns only may not lock; reading no row takes the same lock.
            if not leaf.granted:
                conn.execute(sql.SQL("SELECT FROM ONLY {} LIMIT 0").format(leaf.identifier))


def _require_readable(conn: Connection, found: Sequence[Leaf]) -> None:
    closed = [leaf for leaf in found if not leaf.placed]
    if closed:
        leaf, user = closed[0], conn.info.user
        name = leaf.identifier.as_string(conn)
        more = f", and {len(closed) - 1} more partitions" if len(closed) > 1 else ""
        raise PermissionMissing(
            f"user {user!r} may not read the places of rows (ctid) of {name}{more}, by which a "
            "table is copied in parts",
            hint=f"a DBA runs: GRANT SELECT ON {name} TO {sql.Identifier(user).as_string(conn)}; "
            "where some columns only are granted, of these and ctid; of a partitioned table on "
            "each partition",
        )


def rewritten(conn: Connection, found: Sequence[Leaf]) -> bool:
    """Whether a leaf got another file after this transaction's snapshot, which then shows no row.

    REQUIRES: the leaves are locked. Neither ALTER TABLE nor TRUNCATE respects older snapshots.
    """
    with translated("looking for tables that were rewritten"):
        row = conn.execute(REWRITTEN, [[leaf.oid for leaf in found]]).fetchone()
    assert row is not None
    return bool(row[0])


def statement(rng: Range, columns: Sequence[str], where: str | None) -> sql.Composed:
    """The COPY of a range: these columns, in this order, of the rows for which `where` is true."""
    leaf = rng.leaf
    parts: list[sql.Composable] = [
        sql.SQL("COPY (SELECT {} FROM ONLY {} WHERE ctid >= {}::tid").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            leaf.identifier,
            sql.Literal(str(rng.low)),
        )
    ]
    if rng.high is not None:
        parts.append(sql.SQL(" AND ctid < {}::tid").format(sql.Literal(str(rng.high))))
    if where is not None:
        parts.append(sql.SQL(f" AND ({where})"))
    return sql.Composed([*parts, sql.SQL(") TO STDOUT")])


def fetch(
    conn: Connection, copy: sql.Composed, *, bytes_max: int | None, doing: str = DOING
) -> Run | None:
    """Run a COPY to its end and hold its lines in memory.

    None where they came to more than `bytes_max`: then the COPY was cancelled, and a transaction
    that it was in is aborted, up to the last savepoint. The connection stays usable. Other threads
    may cancel it, too (`conn.cancel_safe`). Raises what the server answers; `doing` tells what was
    tried.
    """
    found: list[Run] = []
    size = 0
    with closing(copy_out.start(conn, copy, doing)) as reader:
        while not reader.ended:
            run = reader.read(timeout_s=SILENCE_S)
            if run is not None:
                found.append(run)
                size += len(run.data)
            if bytes_max is not None and size + reader.arriving > bytes_max:
                found.clear()
                reader.cancel()
                return None
        reader.finish(doing)
    return Run.joined(found)
