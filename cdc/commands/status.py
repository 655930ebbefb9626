"""`eventlog status`: how far sources and consumers have come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdc.commands.source_option import dsn_option, warn_of_dsn
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import Columns, write_json

if TYPE_CHECKING:
    from eventlog.log import Log

_SOURCE = ("source", "phase", "position", "slot", "tables", "lag_bytes", "lag_seconds")
_CONSUMER = ("consumer", "stream", "offset", "lag", "filter", "updated")


@click.command(epilog="Example: eventlog status --dsn service=shop")
@dsn_option(required=False)
@log_option
@json_option
@click.pass_context
def status(ctx: click.Context, dsn: str | None, log_dir: Path, as_json: bool) -> None:
    """Show the sources, and the consumers with the records that they have yet to see.

    With --dsn also how far the log is behind that server.
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
    click.echo()
    Columns(*_CONSUMER).write(_cells(consumer) for consumer in consumers)


def _sources(log: Log, dsn: str | None) -> Iterator[dict[str, Any]]:
    from cdc.driver import driver_of
    from cdc.errors import PositionConflict
    from eventlog.changes.codec import codec

    for info in log.engine.streams():
        state = log.source(info.name) if info.kind == "captured" else None
        if state is None:
            continue
        lag: tuple[int | None, float | None] = (None, None)
        if dsn is not None and "position" in state:
            try:
                lag = driver_of(dsn).lag(dsn, state)
            except PositionConflict as error:
                click.echo(f"Warning: source {info.name!r}: {error}", err=True)
        position = state.get("position", 0)
        values = (
            info.name,
            state.get("phase"),
            codec(state["codec"]).position_text(position),
            state.get("slot"),
            list(state.get("tables", ())),
            *lag,
        )
        yield dict(zip(_SOURCE, values, strict=True))


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


def _cells(record: dict[str, Any]) -> list[Any]:
    return [" ".join(v) if isinstance(v, list) else v for v in record.values()]
