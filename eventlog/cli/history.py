"""`eventlog history`: every version of one row, with what changed from one to the next."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import Columns, one_line, write_lines
from eventlog.cli.progress import bar

if TYPE_CHECKING:
    from eventlog.history.event_history import EventHistory
    from eventlog.history.row_history import RowHistory

_EXAMPLES = """\b
Examples:
  eventlog history shop public.orders 7
  eventlog history shop public.order_items order_id=7,line=2 --start 2026-01-31
  eventlog history shop public.order_items '{"order_id": 7, "line": 2}' --json
  eventlog history late-predictions 4711
"""

_COLUMN = re.compile(r"([A-Za-z_]\w*)=")

_CHANGES = ("offset", "time", "op", "tx", "life", "change")
_EVENTS = ("offset", "time", "life", "change")


@click.command(epilog=_EXAMPLES)
@click.argument("stream")
@click.argument("words", metavar="[TABLE] KEY", nargs=-1, required=True)
@click.option("--start", metavar="A", help="`begin`, an offset or a time (ISO 8601; UTC).")
@click.option("--stop", metavar="B", help="Offset or time to stop before; default: the end.")
@log_option
@json_option
def history(
    stream: str,
    words: tuple[str, ...],
    start: str | None,
    stop: str | None,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Print every version of the rows of TABLE that ever bore KEY, an event stream's without TABLE.

    KEY is a value, `column=value,column=value`, or a JSON object; compared as the source's text.

    A row is followed across key changes, renames and schema changes. `life` counts the rows that
    bore the key: after a delete or a truncate, the next one begins. The first call reads the log
    once to index its keys; `eventlog index` does that beforehand.

    A key that was never seen prints nothing, says so, and is no failure.
    """
    if len(words) > 2:
        raise click.UsageError(f"a table and a key were expected, not {len(words)} words")
    from eventlog.history.keys import WrittenKey

    table, key = words if len(words) == 2 else (None, words[0])
    with open_log(log_dir) as log, bar("indexing keys") as progress:
        source = log.stream(stream)
        if table is None and source.kind != "events":
            raise click.UsageError(f"stream {stream!r} holds tables: name one before the key")
        found = source.history(table, WrittenKey(key), start, stop, progress=progress)
        printed = _print(found, as_json=as_json)
    for note in found.notes:
        click.echo(one_line(f"Note: {note}"), err=True)
    if not printed:
        click.echo(one_line(f"no version of {found} in [{found.start}, {found.stop})"), err=True)
        named = _COLUMN.match(key)
        if named and isinstance(found.key, dict) and key in found.key.values():
            click.echo(one_line(_hint(named[1], *found.key)), err=True)


def _hint(word: str, column: str) -> str:
    return f"Hint: the key is the column {column!r}, not {word!r}, so all of that was its value"


def _print(found: RowHistory | EventHistory, *, as_json: bool) -> int:
    """Print the versions as they come; returns how many there were."""
    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        for record in found.as_json():
            count += 1
            yield record

    records = counted()
    if as_json:
        write_lines(json.dumps(r, ensure_ascii=False, allow_nan=False) for r in records)
        return count
    first = next(records, None)
    if first is not None:
        columns = Columns(*(_CHANGES if "op" in first else _EVENTS))
        columns.write(map(_cells, chain([first], records)))
    return count


def _cells(record: Mapping[str, Any]) -> list[Any]:
    # As text, without the commas that other numbers have: they are to be copied.
    offset, life = str(record["offset"]), str(record["life"])
    if "op" in record:
        return [offset, record["time"], record["op"], record["tx"], life, _told(record)]
    return [offset, record["time"], life, _told(record)]


def _told(record: Mapping[str, Any]) -> str:
    """What changed, or all that is there where nothing was before."""
    changed = record["changed"]
    if changed is not None:
        told = (f"{name}: {_value(old)} → {_value(new)}" for name, (old, new) in changed.items())
        return ", ".join(told) or "(nothing)"
    row = record["row"] if "op" in record else record["value"]
    if row is None and "op" in record:
        row = record["old"]
    if not isinstance(row, dict):
        return "" if row is None else _value(row)
    return " ".join(f"{name}={_value(value)}" for name, value in row.items())


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
