"""What users write to choose tables and columns: `--table` and `--hash`.

::

    table spec  = table [ '(' column *( ',' column ) ')' ]     public.customers(id, tier)
    column name = [ table '.' ] column                         public.customers.email
    table       = [ schema '.' ] name                          without schema: public
    part        = [a-z_][a-z0-9_$]* | '"' anything '"'         quoted as in SQL
                | '*'                                          any schema, any table; never a column

A column list makes the source send these columns and no others, later ones neither.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from eventlog.changes.table_name import ANY, TableName, name_parts, quoted
from eventlog.errors import UsageError

_HEAD = re.compile(r'(?:[^"(]|"(?:[^"]|"")*")*')
_COLUMN = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([a-z_][a-z0-9_$]*))\s*([,)])')


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """A table, or a pattern of tables; `columns` are those that may leave it, None for all."""

    table: TableName
    columns: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `schema.table`, `schema.*` or `schema.table(column, column)`. Raises UsageError."""
        head = _HEAD.match(text)
        assert head is not None
        listed = text[head.end() :].startswith("(")
        parts = name_parts(head.group() if listed else text)
        if len(parts) > 2:
            raise UsageError(
                f"{text!r} is not a table of a source",
                hint="write schema.table; the source's name does not belong there",
            )
        table = TableName(schema=parts[0] if len(parts) == 2 else "public", name=parts[-1])
        if not listed:
            return cls(table=table)
        if table.is_pattern:
            raise UsageError(
                f"{text!r} gives columns for a pattern of tables",
                hint="give columns table by table; a pattern may stand beside them: "
                "--table 'public.*' --table 'public.customers(id,tier)'",
            )
        return cls(table=table, columns=_columns(text, head.end() + 1))

    def __str__(self) -> str:
        if self.columns is None:
            return str(self.table)
        return f"{self.table}({','.join(map(quoted, self.columns))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnName:
    """A column of one table, or of every table that the pattern matches."""

    table: TableName
    column: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `table.column` or `schema.table.column`. Raises UsageError."""
        try:
            parts = name_parts(text)
        except UsageError:
            parts = []
        if len(parts) not in (2, 3) or parts[-1] is ANY:
            raise UsageError(
                f"{text!r} is not a column's name",
                hint="write schema.table.column; parts with capitals or signs in double quotes",
            )
        schema = parts[0] if len(parts) == 3 else "public"
        return cls(table=TableName(schema=schema, name=parts[-2]), column=parts[-1])

    def __str__(self) -> str:
        return f"{self.table}.{quoted(self.column)}"


def as_spec(pattern: TableName | TableSpec) -> TableSpec:
    """A name by itself means all columns."""
    return pattern if isinstance(pattern, TableSpec) else TableSpec(table=pattern)


def _columns(text: str, at: int) -> tuple[str, ...]:
    columns: list[str] = []
    while True:
        found = _COLUMN.match(text, at)
        if found is None:
            raise _bad(text, "has no readable list of columns")
        name, plain, closing = found.groups()
        column = name.replace('""', '"') if name else plain
        if column in columns:
            raise _bad(text, f"names column {column} twice")
        columns.append(column)
        at = found.end()
        if closing == ")":
            if text[at:].strip():
                raise _bad(text, "goes on after its list of columns")
            return tuple(columns)


def _bad(text: str, problem: str) -> UsageError:
    return UsageError(
        f"{text!r} {problem}",
        hint="write schema.table(column,column); names with capitals or signs in double quotes",
    )
