"""Which tables come, go or change their publication: a decision, and what it is made from.

::

    wanted    what the patterns mean now, but for what was left out
    captured  what the state says        ──▶  joining, gone, moving
    present   what the catalog has

A table that no pattern means any more, because it was renamed, goes on being captured.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from cdc.errors import MissingTable
from cdc.postgres.connection import Connection
from cdc.postgres.publishing import column_list, publication
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.table_spec import TableSpec
from cdc.postgres.state import SourceState
from eventlog.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a look found: tables to join, relations that are gone, tables whose identity changed.

    `lost` are captured tables that none of our publications sends any more: dropping a column of
    a list with CASCADE takes its table out. `withdrawn` are sent no more, and not wanted either:
    taken out of the publication after a rename, or attached to a table that is sent as a whole.
    """

    joining: tuple[Table, ...]
    gone: tuple[int, ...]
    moving: tuple[Table, ...]
    lost: tuple[Table, ...] = ()
    withdrawn: tuple[int, ...] = ()


def look(conn: Connection, state: SourceState) -> Membership:
    """Compare what is captured with what is there."""
    assert state.relations is not None
    members = publications_of(conn, state)
    wanted = wanted_tables(conn, state, members)
    present = catalog.tables_by_oid(conn, state.relations)
    for member in (table for group in members for table in group.tables):
        if member.oid in present:
            sent = replace(present[member.oid], columns=member.columns, listed=member.listed)
            present[member.oid] = sent
    present = column_list.sendable(conn, present)
    return decide(
        wanted=wanted,
        captured=state.relations,
        present=present,
        members=members,
        ours=state.publications_ours,
    )


def decide(
    *,
    wanted: Sequence[Table],
    captured: Collection[int],
    present: Mapping[int, Table],
    members: Sequence[publication.Publication],
    ours: bool,
) -> Membership:
    """`members`: our two publications, the first one for tables whose updates pass; or the user's.

    `present` has each table with the columns that its publication sends: a table that moves is
    never widened.
    """
    moving = []
    for place, group in enumerate(members if ours else ()):
        for member in group.tables:
            table = present.get(member.oid)
            if table is not None and table.updatable == bool(place):
                moving.append(table)
    sent = {member.oid for group in members for member in group.tables}
    # Ours are put right, with the columns that the patterns list; what no pattern means cannot be.
    lost = [t for t in wanted if ours and t.oid in captured and t.oid not in sent]
    kept = sent | {table.oid for table in lost}
    return Membership(
        joining=tuple(table for table in wanted if table.oid not in captured),
        gone=tuple(oid for oid in captured if oid not in present),
        moving=tuple(moving),
        lost=tuple(lost),
        withdrawn=tuple(oid for oid in present if oid not in kept),
    )


def to_add(conn: Connection, state: SourceState, spec: TableSpec) -> list[Table]:
    """The tables that a request to add one means; those that are captured already included.

    Raises MissingTable, UsageError where they are captured with other columns, and the refusals of
    `column_list.require_publishable`.
    """
    others = [TableSpec.parse(text) for text in state.tables]
    captured = state.relations or ()
    named = catalog.resolve_tables(conn, [spec])
    alike = [other for other in others if other.table == spec.table]
    whole = any(table.oid in captured for table in named) and not alike
    if (alike and spec not in alike) or (whole and spec.columns is not None):
        as_what = "with all its columns" if whole else f"as {alike[0]}"
        raise UsageError(
            f"{spec.table} is captured already, {as_what}",
            hint="remove it first with `eventlog tables remove`; the log keeps what it holds",
        )
    now = catalog.tables_now(conn, [*others, spec])
    found = [table for table in now if spec.table.matches(table.schema, table.name)]
    column_list.require_publishable(conn, [t for t in found if t.oid not in captured])
    return found


def require_member(conn: Connection, state: SourceState, table: Table) -> None:
    """Raise MissingTable unless the publication that the table's identity wants sends it.

    Until the next round has moved it, the stream lacks its updates, or has them for a moment only.
    """
    members = publications_of(conn, state)
    for place, group in enumerate(members):
        for member in group.tables:
            if member.oid != table.oid:
                continue
            sent = {table.oid: replace(table, columns=member.columns, listed=member.listed)}
            if column_list.sendable(conn, sent)[table.oid].updatable == (place == 0):
                return
    raise MissingTable(
        f"table {table.table} is not sent by {' or '.join(state.publications)} as it should be",
        hint="the next look at the tables sees to that; it is within seconds",
    )


def publications_of(conn: Connection, state: SourceState) -> tuple[publication.Publication, ...]:
    """The publications that the source is captured through."""
    return tuple(publication.read(conn, name) for name in state.publications)


def wanted_tables(
    conn: Connection, state: SourceState, members: Sequence[publication.Publication]
) -> list[Table]:
    """The tables that are to be captured; names that mean nothing at present are passed over."""
    specs = [TableSpec.parse(text) for text in state.tables]
    if state.publications_ours:
        found = catalog.tables_now(conn, specs)
    else:
        found = [table for group in members for table in group.tables]
        if specs:
            found = [
                table
                for table in found
                if any(spec.table.matches(table.schema, table.name) for spec in specs)
            ]
    left_out = set(state.left_out)
    return [table for table in found if str(table.table) not in left_out]
