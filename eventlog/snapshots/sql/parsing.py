"""What a query asks for, found in the tree that DuckDB's own parser makes of it.

A query is one statement that reads::

    SELECT, WITH ... SELECT, FROM, VALUES, TABLE, DESCRIBE, SUMMARIZE, set operations, and
    PIVOT where it lists its values

Refused before anything runs: other statements, also inside WITH; table functions beyond
TABLE_FUNCTIONS (the others read files, settings or addresses of memory); what gives another answer
tomorrow (the clock, chance, a sample that is not repeatable), because equal cuts give equal results
(I7).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eventlog.errors import UsageError

TABLE_FUNCTIONS = frozenset(
    {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
)
"""Table functions that make rows of their arguments alone."""

_CLOCK_WORDS = frozenset(
    {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
)
"""What DuckDB takes for the clock without parentheses; a column of that name is `t.localtime`."""

_UNSTEADY = _CLOCK_WORDS | frozenset(
    {
        "ago",
        "current_connection_id",
        "current_localtime",
        "current_localtimestamp",
        "current_query",
        "current_query_id",
        "current_setting",
        "current_transaction_id",
        "currval",
        "gen_random_uuid",
        "get_current_time",
        "get_current_timestamp",
        "getvariable",
        "nextval",
        "now",
        "pg_conf_load_time",
        "pg_postmaster_start_time",
        "pg_sleep",
        "random",
        "setseed",
        "setval",
        "sleep_ms",
        "stats",
        "today",
        "transaction_timestamp",
        "txid_current",
        "uuid",
        "uuidv4",
        "uuidv7",
        "write_log",
    }
)

_LOCKED = frozenset({"json_serialize_plan"})
"""Functions that read a query of their own, which nobody looked at."""

_QUERIES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_WHOLE_ROW = frozenset({"STAR", "POSITIONAL_REFERENCE", "PIVOT", "SHOW_REF"})
_Node = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A query's tables by their paths as written, and the names that it mentions.

    `names` holds, in lower case, every name and text of the query, so all columns that it can mean;
    None where it asks for whole rows.
    """

    paths: tuple[tuple[str, ...], ...]
    names: frozenset[str] | None


def parse(connection: Any, query: str) -> Parsed:
    """Read a query without running it. Raises UsageError, and DuckDB's own error for bad syntax."""
    kinds = [str(s.type).rpartition(".")[2] for s in connection.extract_statements(query)]
    if len(kinds) != 1:
        raise UsageError(f"this is {len(kinds)} statements", hint="give one SELECT")
    root = tree_of(connection, query)
    if root is None:
        if kinds[0] == "MULTI":
            raise UsageError(
                "PIVOT has to know its values before the rows are read",
                hint="list them: PIVOT t ON col IN (1, 2) USING sum(x)",
            )
        raise UsageError(
            f"a query that only reads is expected, and this is {kinds[0]}", hint="give one SELECT"
        )
    nodes = list(nodes_of(root))
    for node in nodes:
        refuse_node(node)
    paths = tuple(dict.fromkeys(_paths(root, frozenset())))
    return Parsed(paths=paths, names=_names(nodes, root))


def tree_of(connection: Any, query: str) -> _Node | None:
    """The tree of one statement; None where it is none that only reads."""
    ((told,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    tree = json.loads(told)
    return None if tree["error"] else tree["statements"][0]["node"]


def nodes_of(tree: Any) -> Iterator[_Node]:
    """Every mapping of a tree."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def refuse_node(node: _Node) -> None:
    """Raise UsageError for a part that reaches beyond the tables, or is another one each time."""
    kind = node.get("type")
    if "cte_map" in node and kind not in _QUERIES:
        raise UsageError(
            "a query that only reads is expected, and this one writes", hint="give one SELECT"
        )
    if kind == "TABLE_FUNCTION":
        name = node["function"].get("function_name", "").lower()
        if name not in TABLE_FUNCTIONS:
            raise UsageError(
                f"the table function {name!r} is locked: a query sees the log's tables alone",
                hint="there are " + ", ".join(sorted(TABLE_FUNCTIONS)),
            )
    elif kind == "SHOW_REF" and node.get("query") is None:
        raise UsageError(
            "SHOW has no list of the log's tables",
            hint="`eventlog streams` lists the streams; DESCRIBE shop.public.orders shows columns",
        )
    elif kind == "FUNCTION":
        name = node.get("function_name", "").lower()
        if name in _LOCKED:
            raise UsageError(f"the function {name!r} is locked", hint="give the query itself")
        alone = name == "age" and len(node.get("arguments", ())) == 1
        if name in _UNSTEADY or alone:
            raise _unsteady(f"{name}()")
    elif kind == "COLUMN_REF" and len(node["column_names"]) == 1:
        word = node["column_names"][0].lower()
        if word in _CLOCK_WORDS:
            raise _unsteady(word)
    sample = node.get("sample")
    if isinstance(sample, dict) and not sample.get("repeatable"):
        raise UsageError(
            "a sample without a seed is another one each time",
            hint="write TABLESAMPLE reservoir(100 ROWS) REPEATABLE (7)",
        )


def _unsteady(name: str) -> UsageError:
    return UsageError(
        f"{name} gives another answer each time, so the result could not be had again",
        hint="write the value itself, such as TIMESTAMP '2026-01-31 12:00:00'",
    )


def _paths(node: Any, hidden: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Paths of the tables, without names that a WITH in reach gives to a query."""
    if isinstance(node, list):
        for item in node:
            yield from _paths(item, hidden)
        return
    if not isinstance(node, dict):
        return
    if node.get("type") == "BASE_TABLE":
        path = tuple(node["qualified_name"]["path"])
        if len(path) != 1 or path[0].lower() not in hidden:
            yield path
    if node.get("type") == "RECURSIVE_CTE_NODE":
        hidden |= {node["cte_name"].lower()}
    for entry in node.get("cte_map", {}).get("map", ()):
        yield from _paths(entry["value"], hidden)
        hidden |= {entry["key"].lower()}
    for name, value in node.items():
        if name != "cte_map":
            yield from _paths(value, hidden)


def _names(nodes: list[_Node], root: _Node) -> frozenset[str] | None:
    tables, above = set(), {"main", "memory"}
    for node in nodes:
        if node.get("type") == "BASE_TABLE":
            tables |= {node["table_name"].lower(), node["alias"].lower()}
            above |= {part.lower() for part in node["qualified_name"]["path"][:-1]}
    for node in nodes:
        kind = str(node.get("type"))
        whole = kind in _WHOLE_ROW or bool(node.get("column_name_alias"))
        whole = whole or node.get("ref_type") in ("NATURAL", "POSITIONAL")
        # A table's name in the place of a column is its whole row.
        if kind == "COLUMN_REF":
            whole = whole or _is_whole(node["column_names"], tables, above)
        elif kind == "FUNCTION":
            whole = whole or any(part.lower() in tables for part in _path(node)[:-1])
        if whole:
            return None
    return frozenset(text.lower() for text in _texts(root))


def _is_whole(written: list[str], tables: set[str], above: set[str]) -> bool:
    """Whether `orders`, `public.orders` or `shop.public.orders` can be a table's rows.

    `above` are the schemas and streams of the query: `o.orders` is a column of `o`.
    """
    *before, last = (part.lower() for part in written)
    return last in tables and (not before or before[-1] in above)


def _path(node: _Node) -> list[str]:
    path: list[str] = node.get("qualified_name", {}).get("path", [])
    return path


def _texts(tree: Any) -> Iterator[str]:
    for node in nodes_of(tree):
        for value in node.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (item for item in value if isinstance(item, str))
