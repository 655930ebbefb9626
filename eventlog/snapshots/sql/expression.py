"""Expressions of a row: what one may be made of, found in DuckDB's own tree of it (API.md).

Row-wise and deterministic: an expression sees its row and nothing else. Refused are what looks at
other rows (aggregates, windows, subqueries, which would let the future into a training set), what
makes several rows or values of one, and all that a query may not use either (`parsing`).
"""

from __future__ import annotations

from typing import Any

from eventlog.errors import UsageError
from eventlog.snapshots.sql.parsing import nodes_of, refuse_node, tree_of

_SEVERAL = frozenset({"unnest", "unlist"})
_AGGREGATES = """
    SELECT lower(function_name) FROM duckdb_functions() GROUP BY ALL
    HAVING bool_and(function_type = 'aggregate')"""


def boolean_query(connection: Any, text: str, table: str, what: str) -> str:
    """A query for column `y`: of each row of `table`, whether the expression is true.

    `what` names the expression in errors. Raises as `require_row_wise` does.
    """
    require_row_wise(connection, text, what)
    return f"SELECT coalesce(({text}\n)::BOOLEAN, false) AS y FROM {table}"


def require_row_wise(connection: Any, text: str, what: str) -> None:
    """Raise UsageError for what is no expression of one row; DuckDB's own error for bad syntax."""
    # The line's end closes a comment.
    alone = f"SELECT ({text}\n)"
    one = bool(text.strip()) and len(connection.extract_statements(alone)) == 1
    root = tree_of(connection, alone) if one else None
    if root is None or not _is_one_value(root):
        raise UsageError(f"{what} is not one expression", hint="write what stands behind WHERE")
    aggregates = {name for (name,) in connection.execute(_AGGREGATES).fetchall()}
    for node in nodes_of(root):
        refuse_node(node)
        _refuse(node, aggregates, what)


def _is_one_value(root: dict[str, Any]) -> bool:
    clauses = ("modifiers", "where_clause", "group_expressions", "having", "qualify", "sample")
    return (
        root["type"] == "SELECT_NODE"
        and len(root["select_list"]) == 1
        and root["from_table"]["type"] == "EMPTY"
        and not any(root.get(name) for name in clauses)
    )


def _refuse(node: dict[str, Any], aggregates: set[str], what: str) -> None:
    kind = node.get("class")
    name = str(node.get("function_name", "")).lower()
    found = None
    if kind == "SUBQUERY":
        found = "a subquery"
    elif kind == "WINDOW":
        found = f"{name}() over a window"
    elif kind == "FUNCTION" and name in aggregates:
        found = f"{name}() over all rows"
    elif kind == "STAR":
        found = "several columns at once"
    elif kind == "FUNCTION" and name in _SEVERAL:
        found = f"{name}(), which makes several rows of one"
    elif kind == "PARAMETER":
        found = "a parameter"
    if found is not None:
        raise UsageError(
            f"{what} is not row by row: it has {found}",
            hint="an expression sees one row: its columns, and old.COLUMN",
        )
