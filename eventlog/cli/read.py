"""`eventlog read`: the records of a range of offsets or of time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import Columns, one_line, write_lines
from eventlog.cli.records import headings, rows


@click.command(epilog="Example: eventlog read shop --start 2026-01-31 --table public.orders")
@click.argument("stream")
@click.option("--start", metavar="A", help="`begin`, an offset or a time (ISO 8601; UTC).")
@click.option("--stop", metavar="B", help="Offset or time to stop before; default: the end.")
@click.option("--table", metavar="T", help="Only this table, or tables such as 'public.*'.")
@click.option("--fill", is_flag=True, help="Take unchanged values from the row's history.")
@click.option(
    "--skip-damaged",
    "skip_damaged",
    is_flag=True,
    help="Read on past damaged batches, and exit with 1 after naming them.",
)
@log_option
@json_option
@click.pass_context
def read(
    ctx: click.Context,
    stream: str,
    start: str | None,
    stop: str | None,
    table: str | None,
    fill: bool,
    skip_damaged: bool,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Print the records of STREAM from A up to, and without, B.

    The end is that at the call; `eventlog tail` waits for more.
    """
    with open_log(log_dir) as log:
        source = log.stream(stream)
        damaged: Literal["raise", "skip"] = "skip" if skip_damaged else "raise"
        found = source.read(start, stop, table=table, fill=fill, damaged=damaged)
        if as_json:
            write_lines(found.json_lines())
        else:
            Columns(*headings(source.kind)).write(rows(source.kind, found.as_json()))
    for first, end, why in found.damaged:
        click.echo(one_line(f"offsets [{first}, {end}) were passed over: {why}"), err=True)
    if found.damaged:
        ctx.exit(1)
