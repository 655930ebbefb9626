"""The gate of one capture: which columns it hashes, with which key, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cdc.options import Options
from cdc.postgres.privacy import hash_key
from cdc.postgres.privacy.gate import Gate
from cdc.postgres.privacy.hash_key import HashKey
from cdc.postgres.schema.catalog import Table, missing_column
from cdc.postgres.schema.table_spec import ColumnName, TableSpec
from cdc.postgres.state import Phase, SourceState
from eventlog import Log
from eventlog.changes.schema import Schema
from eventlog.errors import UsageError


def spelled(options: Options) -> tuple[str, ...]:
    """The columns to hash that the options name, each once, in the form that the state keeps."""
    return tuple(sorted({str(ColumnName.parse(text)) for text in options.hash}))


def wanted(name: str, state: SourceState | None, options: Options) -> tuple[str, ...]:
    """The columns of a source to hash: those it was begun with, for a new one the options'.

    `state` is the stored one. Raises UsageError where the options name others.
    """
    asked = spelled(options)
    if state is None:
        return asked
    if state.phase is Phase.CREATING:
        return tuple(sorted({*asked, *state.hashes}))
    clear = [column for column in asked if column not in state.hashes]
    if clear:
        raise UsageError(
            f"source {name!r} was begun without hashing {', '.join(clear)}: the log may hold its "
            "values",
            hint="leave the option as it was, or capture under another source name",
        )
    return state.hashes


def take_key(
    log: Log, name: str, state: SourceState | None, options: Options, *, asked: Sequence[str] = ()
) -> HashKey | None:
    """The key of a source's hashed columns; None where it has none and none are `asked` for.

    `state` is the stored one, None for a new source, whose key is made at need. Raises HashKeyFault
    and what `wanted` raises.
    """
    if not (wanted(name, state, options) or asked):
        return None
    check = None if state is None else state.hash_check
    return hash_key.take(
        options.hash_key, log.path, check=check, used_before=_used_before(log, name)
    )


def gate(state: SourceState, key: HashKey | None, stored: Iterable[Schema]) -> Gate:
    """The gate of a source; `stored` are the versions that the log holds."""
    names = [ColumnName.parse(text) for text in state.hashes]
    specs = [TableSpec.parse(text) for text in state.tables]
    return Gate(names, None if key is None else key.value, stored, specs)


def require_present(columns: Iterable[str], tables: Sequence[Table]) -> None:
    """Raise MissingTable for a name that means no column that is captured: it would hash nothing.

    A partition's column is none: its rows are captured as the partitioned table's.
    """
    for text in columns:
        name = ColumnName.parse(text)
        matching = [t for t in tables if name.table.matches(t.schema, t.name)]
        if any(name.column in table.columns for table in matching):
            continue
        if matching and not name.table.is_pattern:
            raise missing_column(matching[0], name.column)
        raise UsageError(
            f"--hash {name} means no column of a captured table",
            hint="name a column as schema.table.column, of a table named with --table; a "
            "partition's columns are those of its partitioned table",
        )


def require_not_clear(columns: Iterable[str], captured: Iterable[Table]) -> None:
    """Raise UsageError where a name means a column of a table that is captured already."""
    names = [ColumnName.parse(text) for text in columns]
    for table in captured:
        for name in names:
            if name.table.matches(table.schema, table.name) and name.column in table.columns:
                raise UsageError(
                    f"{table.table} is captured already, and --hash {name} means a column of it: "
                    "the log may hold its values",
                    hint="name the column of the new table alone; or capture under another source "
                    "name",
                )


def _used_before(log: Log, name: str) -> bool:
    """Whether the log holds hashes of another source."""
    for info in log.streams():
        other = log.source(info.name) if info.kind == "captured" and info.name != name else None
        if other and other.get("hash_check"):
            return True
    return False
