"""`eventlog checkpoint`: store the state of tables, so that snapshots of them cost less."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from eventlog.changes.quantities import counted
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import write_json
from eventlog.cli.progress import bar


@click.command(epilog="Example: eventlog checkpoint shop --table public.orders")
@click.argument("stream")
@click.option("--table", metavar="T", help="Of this table alone; of all without it.")
@click.option("--drop", is_flag=True, help="Remove the checkpoints instead.")
@log_option
@json_option
def checkpoint(stream: str, table: str | None, drop: bool, log_dir: Path, as_json: bool) -> None:
    """Store the state of the tables of STREAM as of its end.

    A snapshot at or behind a checkpoint starts from it, and so costs what the table holds, not what
    the log does; its rows are the same with and without. Snapshots whose fold was dear write one by
    themselves. Of each table the newest three are kept, spread over its history; they may be
    dropped at any time. What the stream's checkpoints take is told.
    """
    with open_log(log_dir) as log, bar("reading offsets") as progress:
        found = log.stream(stream)
        if drop:
            done = found.drop_checkpoints(table=table)
        else:
            done = found.checkpoint(table=table, progress=progress)
    if as_json:
        for each in done.checkpoints:
            write_json({**dataclasses.asdict(each), "dropped": drop})
        for name, reason in done.refused.items():
            write_json({"stream": stream, "table": name, "refused": reason})
        return
    for each in done.checkpoints:
        name = each.table or "a table that is gone"
        verb = "dropped: " if drop else ""
        click.echo(f"{verb}{name} as of offset {each.offset}: {counted(each.bytes, 'byte')}")
    for name, reason in done.refused.items():
        click.echo(f"{name} has none: {reason}")
    count = len(done.checkpoints)
    verb = "dropped" if drop else "there is" if count == 1 else "there are"
    size = counted(done.bytes, "byte")
    click.echo(f"{verb} {counted(count, 'checkpoint')} of {stream!r}, {size}")
