"""Prepare a source on the server: tables, publications, slot; and check it before going on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from cdc.errors import CaptureError, PermissionMissing, SlotExists, SlotMissing, TableLocked
from cdc.options import Event, Options, Report
from cdc.postgres import locks
from cdc.postgres.connection import Connection, connect
from cdc.postgres.copy.watermark import emit
from cdc.postgres.privacy import hashing
from cdc.postgres.privacy.hash_key import HashKey
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.publishing import publication, slot
from cdc.postgres.publishing.slot import CreatedSlot
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.table_spec import TableSpec
from cdc.postgres.state import (
    Phase,
    SourceState,
    require_not_behind,
    require_same_history,
    require_untouched,
)
from eventlog.changes.table_name import quoted
from eventlog.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A source that is ready for its slot: `created` where the slot is new.

    `row_filters` are SQL conditions by relation id, of a publication that the user gave.
    """

    state: SourceState
    tables: tuple[Table, ...]
    row_filters: dict[int, str]


def plan_source(
    conn: Connection,
    replication: Connection,
    name: str,
    options: Options,
    report: Report,
    *,
    hashes: Sequence[str] = (),
    take_key: Callable[[], HashKey | None] = lambda: None,
) -> Prepared:
    """Check the server, resolve the tables and make the publications of a new source.

    `hashes` are the columns to hash; `take_key` gives their key, once they are known to be there.
    """
    catalog.require_capturable(conn)
    server = catalog.identify(replication)
    filters: dict[int, str] = {}
    partial = False
    if options.publication is not None:
        given = publication.read(conn, options.publication)
        tables = _of_publication(conn, given, options)
        filters = dict(given.row_filters)
        names: tuple[str, ...] = (given.name,)
        partial = not given.operations >= {"insert", "update", "delete", "truncate"}
        if partial:
            left_out = {"insert", "update", "delete", "truncate"} - given.operations
            text = (
                f"publication {given.name!r} leaves out {', '.join(sorted(left_out))}: its tables "
                "are captured as a history, without a state"
            )
            report(Event(kind="warning", text=text))
    else:
        patterns = _patterns(options)
        tables = tuple(catalog.resolve_tables(conn, patterns))
        for left in catalog.passed_over(conn, patterns):
            text = f"{left.schema}.{left.name} is left out: it {left.reason}"
            report(Event(kind="warning", text=text))
        names = publication.names_of(name)
    hashing.require_present(hashes, tables)
    slot_name = options.slot or slot.slot_name(name)
    found = slot.inspect(conn, slot_name)
    if found is not None and options.copy:
        raise SlotExists(
            f"a replication slot {slot_name!r} is there already, and a copy of the rows needs a "
            "new one",
            hint="capture its backlog without a copy with --no-copy, choose another name with "
            "--slot, or remove it with `eventlog drop-source`",
        )
    key = take_key()
    if options.publication is None:
        try:
            publication.ensure_both(conn, name, tables)
        except TableLocked as error:
            raise locks.explained(conn, error, [table.oid for table in tables]) from error
    warn_inserts_only(tables, report)
    state = SourceState(
        phase=Phase.CREATING,
        slot=slot_name,
        slot_ours=found is None,
        temporary=options.temporary,
        publications=names,
        publications_ours=options.publication is None,
        partial=partial,
        tables=tuple(options.tables),
        asked=tuple(options.tables),
        relations=tuple(table.oid for table in tables),
        copies={str(table.oid): {} for table in tables} if options.copy else {},
        copied=options.copy,
        system_id=server.system_id,
        timeline=server.timeline,
        position=Lsn(0),
        hashes=tuple(hashes),
        hash_check=None if key is None else key.check,
    )
    return Prepared(state=state, tables=tables, row_filters=filters)


def make_slot(
    conn: Connection, replication: Connection, state: SourceState
) -> tuple[SourceState, CreatedSlot | None]:
    """Make the slot, or take the one that is there; returns the state at its starting point."""
    if not state.slot_ours:
        present = slot.require_usable(conn, state.slot)
        start = present.confirmed_flush_lsn or Lsn(0)
        return replace(state, phase=Phase.STREAMING, position=start), None
    created = slot.create(replication, state.slot, temporary=state.temporary, export=state.copied)
    phase = Phase.COPYING if state.copied else Phase.STREAMING
    return replace(state, phase=phase, position=created.consistent_point), created


def drop_unfinished(conn: Connection, state: SourceState) -> None:
    """Remove the slot that a capture made which was killed before it streamed."""
    if state.slot_ours and slot.inspect(conn, state.slot) is not None:
        slot.drop(conn, state.slot)


def remove_trial(dsn: str, stored: Mapping[str, Any] | None, report: Report) -> None:
    """Drop the publications of a temporary capture that ended; its slot went with its connection.

    `stored` is the source's state, if there is one. Where they cannot be dropped it is reported:
    `drop-source` removes them later.
    """
    state = None if stored is None else SourceState.from_map(stored)
    if state is None or not (state.temporary and state.publications_ours):
        return
    try:
        with closing(connect(dsn)) as conn:
            for name in state.publications:
                publication.drop(conn, name)
    except CaptureError as error:
        text = (
            f"the publications {' and '.join(state.publications)} stay at the server: {error}; "
            "remove them with `eventlog drop-source`"
        )
        report(Event(kind="warning", text=text))


def require_resumable(
    conn: Connection, replication: Connection, state: SourceState, *, held: bool
) -> SourceState:
    """Check by D7 that the stream can go on at the stored position; returns the state to keep.

    `held`: this process streamed from the slot a moment ago, the server may not have noticed its
    end yet.
    """
    catalog.require_capturable(conn)
    server = catalog.identify(replication)
    history = catalog.timeline_history(replication, server.timeline)
    require_same_history(state, server, history)
    if held and slot.inspect(conn, state.slot) is None:
        raise SlotMissing(
            f"the replication slot {state.slot!r} was dropped while it was streamed from",
            hint="capture the source anew under another name",
        )
    present = slot.require_usable(conn, state.slot)
    require_not_behind(state, present.confirmed_flush_lsn)
    return replace(state, timeline=server.timeline)


def require_nothing_captured_since(
    conn: Connection, state: SourceState, *, generation: int
) -> None:
    """Check that a stream which came out of a backup may go on in this log (D8).

    Raises RestoredFromBackup.
    """
    require_untouched(state, slot.inspect(conn, state.slot), generation=generation)


def current_end(conn: Connection, replication: Connection) -> Lsn:
    """A position that everything committed by now ends below, and that a stream will reach.

    Where the WAL was flushed to may lie inside a record whose rest is flushed much later, if the
    server idles: a message of our own, which gets no offset, ends with a commit instead. Without
    the right to write one it is the flushed position.
    """
    try:
        return emit(conn, "until")
    except PermissionMissing:
        return catalog.identify(replication).wal_position


def require_same_request(name: str, state: SourceState, options: Options) -> None:
    """Raise UsageError where a source that is captured already is asked for differently."""
    for what, stored, asked in (
        ("tables", sorted(state.tables), _same_tables(state, options)),
        ("slot", state.slot, options.slot or state.slot),
        ("publication", state.publications[0], options.publication or state.publications[0]),
    ):
        if stored != asked:
            raise UsageError(
                f"source {name!r} is captured with {what} {stored}, not {asked}",
                hint="leave the option out, or as it was when the capture began; "
                "`eventlog tables add` and `remove` change the tables of a source",
            )
    if state.temporary:
        raise UsageError(
            f"source {name!r} was captured with a temporary slot, which cannot be resumed",
            hint="capture into a new log, or under another source name",
        )


def _same_tables(state: SourceState, options: Options) -> list[str]:
    """What is asked for, in the words of now: what the capture was begun with still means it."""
    asked = sorted(options.tables)
    return sorted(state.tables) if asked in ([], sorted(state.asked)) else asked


def _patterns(options: Options) -> list[TableSpec]:
    if not options.tables:
        raise UsageError(
            "no table was named", hint="name tables with --table schema.table, or 'public.*'"
        )
    return [TableSpec.parse(text) for text in options.tables]


def _of_publication(
    conn: Connection, given: publication.Publication, options: Options
) -> tuple[Table, ...]:
    if not options.tables:
        return given.tables
    wanted = catalog.resolve_tables(conn, _patterns(options))
    published = {table.oid: table for table in given.tables}
    absent = [str(table.table) for table in wanted if table.oid not in published]
    if absent:
        raise UsageError(
            f"publication {given.name!r} does not send {', '.join(absent)}",
            hint="it is never altered; add the tables to it, or leave --publication out",
        )
    for table in wanted:
        too_many = set(published[table.oid].columns) - set(table.columns) if table.listed else set()
        if too_many:
            names = ", ".join(map(quoted, sorted(too_many)))
            raise UsageError(
                f"publication {given.name!r} sends {names} of {table.table} too, which --table "
                "leaves out",
                hint="it is never altered: give its table a column list there, leave --publication "
                "out, or hash these columns with --hash",
            )
    return tuple(published[table.oid] for table in wanted)


def warn_inserts_only(tables: Sequence[Table], report: Report) -> None:
    """Tell of tables of which only the inserts are captured."""
    for table in tables:
        if not table.updatable:
            report(
                Event(
                    kind="warning",
                    table=str(table.table),
                    text=f"{table.table} {_why_inserts_only(table)}: only its inserts are "
                    "captured, updates and deletes are not seen",
                )
            )


def _why_inserts_only(table: Table) -> str:
    """Publishing its updates would make them fail at the source; and what mends that."""
    if table.identity == "f":
        return (
            "has REPLICA IDENTITY FULL, which goes neither with a list of columns nor with a "
            "virtual generated column (a primary key or REPLICA IDENTITY USING INDEX does)"
        )
    if table.listed and table.has_key:
        return "has a replica identity with columns that its list leaves out"
    return (
        "has no replica identity (a primary key gives it one, or "
        f"ALTER TABLE {table.table} REPLICA IDENTITY FULL)"
    )
