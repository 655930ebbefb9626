"""DuckDB, locked: no files, no network, no extensions, no Python variables, no settings.

::

    enable_external_access=false    read_csv, COPY, ATTACH of a file, httpfs, secrets: refused
    auto(load|install)=false        INSTALL and LOAD find nothing
    python_enable_replacements=false    a table's name never means a Python variable
    lock_configuration=true         SET cannot take any of this back

What is left open are table functions that take raw addresses (`arrow_scan`): who runs a text that
somebody else wrote must look at its parse tree first (`eventlog.snapshots.sql.parsing`). Times
with a zone are shown in UTC, wherever the process runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


def locked_connection(
    *, threads: int, spill_dir: str = "", memory_bytes: int | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory database that reaches nothing but what is registered with it.

    What outgrows `memory_bytes` (most of the machine's, where it is not named) goes to `spill_dir`,
    the one directory that it may write to; without one, such a query fails. With one thread, equal
    queries over equal rows give equal results, the order of rows and the last digit of a sum
    included. A connection belongs to one thread.
    """
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "allow_community_extensions": "false",
        "python_enable_replacements": "false",
        "temp_directory": spill_dir,
        "threads": str(threads),
    }
    if memory_bytes is not None:
        config["memory_limit"] = f"{memory_bytes}B"
    connection = duckdb.connect(config=config)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    return connection
