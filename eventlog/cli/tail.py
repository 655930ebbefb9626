"""`eventlog tail`: the records of a stream as they come."""

from __future__ import annotations

from pathlib import Path

import click

from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import Columns, write_lines
from eventlog.cli.records import headings, rows
from eventlog.cli.stopping import stopped_by_signals


@click.command(epilog="Example: eventlog tail shop --start begin --json")
@click.argument("stream")
@click.option(
    "--start",
    metavar="A",
    default="end",
    show_default=True,
    help="`begin`, `end`, an offset or a time.",
)
@log_option
@json_option
def tail(stream: str, start: str, log_dir: Path, as_json: bool) -> None:
    """Print the records of STREAM from A on, and wait for more until SIGINT or SIGTERM."""
    from threading import Event

    told = Event()
    with open_log(log_dir) as log, stopped_by_signals(told.set):
        source = log.stream(stream)
        following = source.follow(start, stop=told.is_set)
        columns = Columns(*headings(source.kind))
        for batch in following:
            if as_json:
                write_lines(batch.json_lines(), flush=True)
            else:
                columns.write(rows(source.kind, batch.as_json()), flush=True)
