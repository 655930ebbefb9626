"""Which relations `table=` selects: by a name at a cut, or by the name that each record bore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eventlog.changes.arrow import require_columns
from eventlog.changes.reading import Selection
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.table_name import TableName
from eventlog.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class TableChoice:
    """A selection (None: everything), and the version at the cut where one table was named."""

    selection: Selection | None
    table: Schema | None


def named_at(
    history: SchemaHistory, table: str | None, columns: Sequence[str] | None, stop: int
) -> TableChoice:
    """Select the relations that bear the name at the cut `stop`, under whatever name before.

    Raises UnknownTable, UnknownColumn, UsageError.
    """
    if table is None:
        _refuse_columns(columns)
        return TableChoice(selection=None, table=None)
    name = TableName.parse(table)
    found = history.named(name, stop)
    _require_columns(found, columns)
    relations = frozenset(schema.relation for schema in found)
    return TableChoice(
        selection=lambda schema: schema.relation in relations,
        table=None if name.is_pattern else found[0],
    )


def selected_by_name(
    history: SchemaHistory, table: str | None, columns: Sequence[str] | None, stop: int
) -> Selection | None:
    """Select records by the name of their table when they were written.

    Raises UnknownTable where no table bears it at `stop`: a slip of the pen would wait for ever.
    """
    if table is None:
        _refuse_columns(columns)
        return None
    name = TableName.parse(table)
    _require_columns(history.named(name, stop), columns)
    return lambda schema: name.matches(schema.namespace, schema.name)


def _require_columns(tables: Sequence[Schema], columns: Sequence[str] | None) -> None:
    if columns is None:
        return
    if len(tables) > 1:
        raise UsageError(
            "columns= of several tables cannot be told apart", hint="name one table with table="
        )
    require_columns(tables[0], columns)


def _refuse_columns(columns: Sequence[str] | None) -> None:
    if columns is not None:
        raise UsageError("columns= needs a table", hint="name it with table=")
