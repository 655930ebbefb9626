"""`eventlog status`: how far sources and consumers have come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdc.commands.source_option import dsn_option, warn_of_dsn
from eventlog.changes.quantities import counted
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import Columns, one_line, write_json, write_lines

if TYPE_CHECKING:
    from cdc.driver import Lag
    from eventlog.log import Log

_SOURCE = (
    "source",
    "phase",
    "writer",
    "position",
    "slot",
    "lag_bytes",
    "lag_seconds",
    "retained_bytes",
    "tables",
)
_CONSUMER = ("consumer", "stream", "offset", "lag", "filter", "updated")


@click.command(epilog="Example: eventlog status --dsn service=shop")
@dsn_option(required=False)
@log_option
@json_option
@click.pass_context
def status(ctx: click.Context, dsn: str | None, log_dir: Path, as_json: bool) -> None:
    """Show the sources, and the consumers with the records that they have yet to see.

    `writer` is the process that captures a source now. With --dsn also how far the log is behind
    that server, and how much WAL the server keeps for it.
    """
    if dsn is not None:
        warn_of_dsn(ctx, dsn)
    with open_log(log_dir) as log:
        if log.generation > 1:
            text = f"Note: this log was a backup; it was opened as generation {log.generation}"
            click.echo(text, err=True)
        sources = list(_sources(log, dsn))
        consumers = list(_consumers(log))
    if as_json:
        for record in (*sources, *consumers):
            write_json(record)
        return
    Columns(*_SOURCE).write(_cells(source) for source in sources)
    write_lines([*_at_work(sources), ""])
    Columns(*_CONSUMER).write(list(consumer.values()) for consumer in consumers)


def _sources(log: Log, dsn: str | None) -> Iterator[dict[str, Any]]:
    from cdc.captured import captured_tables
    from cdc.driver import driver_of_state
    from eventlog.changes.codec import codec

    for info in log.engine.streams():
        state = log.source(info.name) if info.kind == "captured" else None
        if state is None:
            continue
        lag = _lag(info.name, state, dsn)
        found = captured_tables(log, info.name, driver_of_state(state))
        values = (
            info.name,
            state.get("phase"),
            found.writer,
            codec(state["codec"]).position_text(state.get("position", 0)),
            state.get("slot"),
            None if lag is None else lag.bytes,
            None if lag is None else lag.seconds,
            None if lag is None else lag.retained_bytes,
            list(found.patterns),
        )
        yield {
            **dict(zip(_SOURCE, values, strict=True)),
            "copying": [
                {"table": table.table, "rows": table.rows, "share": table.share}
                for table in found.tables
                if table.at_work
            ],
            "waiting": [{"ask": request.verb, "table": request.table} for request in found.waiting],
        }


def _lag(name: str, state: Mapping[str, Any], dsn: str | None) -> Lag | None:
    """How far the source is behind the server at `dsn`, where it is that source's."""
    from cdc.driver import driver_of
    from cdc.errors import PositionConflict

    if dsn is None or "position" not in state:
        return None
    try:
        found = driver_of(dsn).lag(dsn, state)
    except PositionConflict as error:
        click.echo(f"Warning: source {name!r}: {error}", err=True)
        return None
    if found.warning is not None:
        click.echo(f"Warning: source {name!r}: {found.warning}", err=True)
    return found


def _at_work(sources: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each copy that has not ended, and for each request that waits for a capture."""
    from cdc.captured import percent

    for source in sources:
        for copy in source["copying"]:
            share = "" if copy["share"] is None else f", {percent(copy['share'])}"
            rows = counted(copy["rows"] or 0, "row")
            yield one_line(f"{source['source']}: copying {copy['table']}: {rows}{share}")
        for request in source["waiting"]:
            waits = f"{request['ask']} {request['table']}"
            yield one_line(f"{source['source']}: not carried out yet: {waits}")


def _consumers(log: Log) -> Iterator[dict[str, Any]]:
    for info in log.consumers():
        values = (
            info.name,
            info.stream,
            info.offset,
            info.lag,
            info.filter,
            info.updated.isoformat(),
        )
        yield dict(zip(_CONSUMER, values, strict=True))


def _cells(source: Mapping[str, Any]) -> list[Any]:
    cells = [source[heading] for heading in _SOURCE]
    return [" ".join(cell) if isinstance(cell, list) else cell for cell in cells]
