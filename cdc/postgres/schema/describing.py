"""A published table as the catalog has it now: its schema for the log, and which rows are sent.

What the publications say is what the stream will send, so a copy reads just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc.errors import MissingTable
from cdc.postgres.connection import Connection
from cdc.postgres.schema.relation import describe_relation
from cdc.postgres.schema.schema_book import schema_of
from cdc.postgres.schema.sent import sent_of
from eventlog.changes.schema import Schema

_GENERATED_VERSION = 180_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A table's present schema, of the columns that are sent; `where` limits the rows."""

    schema: Schema
    where: str | None


def describe(conn: Connection, oid: int, publications: Sequence[str]) -> Described:
    """Look a table up. Raises MissingTable where it is gone, or is not published any more."""
    relation = describe_relation(conn, oid, publications)
    sent = sent_of(conn, publications, oid)
    if not sent:
        raise MissingTable(
            f"table {relation.schema}.{relation.name} is in none of the publications "
            f"{', '.join(publications)} any more",
            hint="add it again with `eventlog tables add`, or remove it with "
            "`eventlog tables remove`",
        )
    names = None if sent[0].columns is None else set(sent[0].columns)
    if names is not None and conn.info.server_version < _GENERATED_VERSION:
        # The server's view names generated columns too, which are never sent before 18.
        names -= {column.name for column in relation.columns if column.generated}
    return Described(schema=schema_of(relation, names), where=sent[0].where)
