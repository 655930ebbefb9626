"""`eventlog snapshot diff`: which rows differ between two manifests of one log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import one_line, write_json, write_lines
from eventlog.cli.progress import bar

if TYPE_CHECKING:
    from eventlog.snapshots.manifests.diff import RowDiff, TableDiff

_FILE = click.Path(path_type=Path, readable=False)
_SIGNS = {"removed": "-", "changed": "~", "added": "+"}


@click.command(
    epilog="Example: eventlog snapshot diff january.json february.json --table public.orders"
)
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option("--table", metavar="T", help="Compare one table alone.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Rows to list of each table and kind; counts are whole.",
)
@log_option
@json_option
def diff(a: Path, b: Path, table: str | None, limit: int, log_dir: Path, as_json: bool) -> None:
    """Print the rows that B lacks, that it has besides, and those with other values than in A.

    Rows are matched by the table's key, or whole where it has none. Both manifests must be of this
    log. With --json each table is a line, its rows inside.
    """
    from eventlog.snapshots.manifests.diff import diff as compared

    with open_log(log_dir) as log, bar("comparing") as progress:
        found = compared(
            log.engine,
            log.load_snapshot(a),
            log.load_snapshot(b),
            table=table,
            limit=limit,
            progress=progress,
        )
    for one in found:
        if as_json:
            write_json(_fields(one))
        else:
            write_lines(one_line(line) for line in _lines(one))


def _fields(one: TableDiff) -> dict[str, Any]:
    from eventlog.snapshots.manifests.strict_json import plain

    return {**plain(one), "equal": one.equal}


def _lines(one: TableDiff) -> list[str]:
    if one.only_in is not None:
        return [f"{one.table}: only in {one.only_in}"]
    if one.equal:
        return [f"{one.table}: equal"]
    lines = [
        f"{one.table}: {one.removed:,} removed, {one.added:,} added, {one.changed:,} changed"
        f"{'' if one.key else ' (no key: whole rows are matched)'}"
    ]
    for words, names in (("added", one.columns_added), ("dropped", one.columns_dropped)):
        if names:
            lines.append(f"  columns {words}: {', '.join(names)}")
    if one.columns_renamed:
        renamed = (f"{old} → {new}" for old, new in one.columns_renamed.items())
        lines.append(f"  columns renamed: {', '.join(renamed)}")
    if one.changed_columns:
        counts = (f"{name} {count:,}" for name, count in one.changed_columns.items())
        lines.append(f"  changed columns: {', '.join(counts)}")
    lines += [f"  {_row(one, row)}" for row in one.rows]
    for kind, count in (("removed", one.removed), ("changed", one.changed), ("added", one.added)):
        left = count - sum(row.kind == kind for row in one.rows)
        if left:
            lines.append(f"  {left:,} more {kind}: --limit lists them")
    return lines


def _row(one: TableDiff, row: RowDiff) -> str:
    shown = row.before if row.after is None else row.after
    assert shown is not None, "a row was there before, or is there after"
    sign = _SIGNS[row.kind]
    if row.kind != "changed" or row.before is None or row.after is None:
        return f"{sign} {_values(shown)}"
    key = _values({name: row.after[name] for name in one.key})
    return f"{sign} {key}: " + ", ".join(
        f"{name} {_value(row.before[name])} → {_value(row.after[name])}" for name in row.columns
    )


def _values(row: dict[str, Any]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in row.items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
