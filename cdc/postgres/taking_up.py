"""What a connection starts with: schema versions, gate and unfinished copies, from the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdc.options import Options
from cdc.postgres.attending.samples import Samples
from cdc.postgres.connection import Connection
from cdc.postgres.copy.chunks import CopyCursor
from cdc.postgres.copy.copies import AGAIN, Copies, is_begun, is_whole
from cdc.postgres.copy.window import Window
from cdc.postgres.privacy import hashing
from cdc.postgres.privacy.gate import Gate
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.schema.relation import find_relation
from cdc.postgres.schema.schema_book import SchemaBook
from cdc.postgres.state import SourceState
from eventlog import Log
from eventlog.changes.reading import pieces
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine


def gate_and_book(
    log: Log,
    name: str,
    options: Options,
    state: SourceState,
    describer: Connection,
    known: Samples,
) -> tuple[Gate, SchemaBook]:
    """The gate of the source's hashed columns, and the book of its schema versions.

    Raises HashKeyFault.
    """
    stored = [Schema.from_map(number, fields) for number, fields in log.engine.schemas(name)]
    key = hashing.take_key(log, name, state, options)
    gate = hashing.gate(state, key, stored)
    book = SchemaBook(
        stored,
        describe=lambda oid: find_relation(describer, oid, state.publications),
        inserts_only=state.partial,
        settled=lambda xmin, position: known.settled(xmin, Lsn(position)),
        known_good=lambda relation: known.offset,
        gate=gate,
    )
    return gate, book


def taken_up(engine: Engine, name: str, state: SourceState, book: SchemaBook, gate: Gate) -> Copies:
    """The copies that were cut off, with the windows that they need from the first change on.

    A copy whose key is hashed begins anew: its rows cannot be asked for by what the log has.
    """
    copies = Copies(book, {}, gate=gate, keeps=state.copied)
    for text, cursor in state.copies.items():
        relation = int(text)
        schema = book.schema(relation)
        if not is_begun(cursor):
            if not cursor.get("again"):
                book.await_copy(relation)
        elif schema is not None:
            if any(schema.columns[place].hashed for place in schema.key_indexes):
                cursor = AGAIN
            else:
                copies.track(schema)
                _fill(engine, name, copies.windows[relation], schema, cursor)
                copies.windows[relation].whole = is_whole(cursor)
        copies.cursors[relation] = cursor
    return copies


def _fill(
    engine: Engine, name: str, window: Window, schema: Schema, cursor: Mapping[str, Any]
) -> None:
    """Find the rows that lack values by what the log has since the copy began."""
    begun = max(CopyCursor.from_map(cursor).begun, engine.bounds(name)[0])
    history = SchemaHistory(engine, name)
    found = pieces(
        engine,
        history,
        begun,
        engine.bounds(name)[1],
        selection=lambda other: other.relation == schema.relation,
    )
    for piece in found:
        for _, change in piece.changes():
            if change.relation == schema.relation:
                window.fill(change)
