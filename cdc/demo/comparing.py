"""Whether the log tells what Postgres holds: counted by operation, and row for row.

Rows are compared as text, all columns of them: what `copy … to stdout` writes in one session
against what the log stored, so that no conversion can hide a difference.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg

from eventlog.changes.change import Op
from eventlog.errors import SourceError

if TYPE_CHECKING:
    import eventlog

KEYS = {"public.flights": ("id",), "public.weather": ("origin", "time_hour")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The tables as Postgres had them at `time`, which lies between two of its commits."""

    time: datetime
    tables: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Row changes by operation."""

    inserts: int
    updates: int
    deletes: int

    @property
    def total(self) -> int:
        return self.inserts + self.updates + self.deletes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A table out of the log as of `offset`, beside Postgres: `differing` rows are in one alone."""

    table: str
    offset: int
    rows: int
    postgres_rows: int
    differing: int

    @property
    def equal(self) -> bool:
        return self.differing == 0 and self.rows == self.postgres_rows


def moment_of(dsn: str) -> Moment:
    """Read both tables while nobody writes. Raises SourceError."""
    try:
        with psycopg.connect(dsn) as connection:
            connection.execute("set time zone 'UTC'")
            tables = {name: _read(connection, name) for name in KEYS}
            row = connection.execute("select clock_timestamp()").fetchone()
    except psycopg.Error as error:
        raise SourceError(
            f"the tables cannot be read from Postgres: {error}", hint="run the demo again"
        ) from error
    assert row is not None
    return Moment(time=row[0], tables=tables)


def counts_of(log: eventlog.Log, stream: str) -> Counts:
    """Count what the log holds of both tables, copied rows as inserts."""
    found = dict.fromkeys(Op, 0)
    for table, key in KEYS.items():
        for change in log.stream(stream).read(table=table, columns=key[:1]):
            found[change.op] += 1
    return Counts(
        inserts=found[Op.INSERT] + found[Op.READ],
        updates=found[Op.UPDATE],
        deletes=found[Op.DELETE],
    )


def rebuilt(log: eventlog.Log, stream: str, table: str, moment: Moment) -> Rebuilt:
    """Rebuild a table as of a moment, and compare it with what Postgres had then."""
    snapshot = log.snapshot(stream, at=moment.time)
    there = moment.tables[table]
    found = snapshot.table(table)
    ours = found.to_arrow(cast=dict.fromkeys(there.column_names, "text"))
    return Rebuilt(
        table=table,
        offset=snapshot.stop,
        rows=ours.num_rows,
        postgres_rows=there.num_rows,
        differing=_differing(ours, there, KEYS[table]),
    )


def _read(connection: psycopg.Connection[Any], table: str) -> Any:
    """A table as Arrow, every column as Postgres's text."""
    from pyarrow import csv, string

    with connection.cursor() as cursor:
        with cursor.copy(f"copy {table} to stdout (format csv, header)") as copy:  # a name of ours
            text = b"".join(copy)
        names = text.partition(b"\n")[0].decode().split(",")
    # Postgres writes NULL as nothing, and an empty text as two quotes.
    options = csv.ConvertOptions(
        column_types=dict.fromkeys(names, string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return csv.read_csv(io.BytesIO(text), convert_options=options)


def _differing(ours: Any, theirs: Any, key: tuple[str, ...]) -> int:
    order = [(name, "ascending") for name in key]
    ours = ours.select(theirs.column_names).sort_by(order).replace_schema_metadata(None)
    theirs = theirs.sort_by(order)
    if ours.num_rows == theirs.num_rows and all(
        a.equals(b) for a, b in zip(ours.columns, theirs.columns, strict=True)
    ):
        return 0
    rows = [set(zip(*(c.to_pylist() for c in t.columns), strict=True)) for t in (ours, theirs)]
    return max(len(rows[0] ^ rows[1]), 1)
