"""`eventlog streams`: what the log holds, stream by stream."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import Columns, one_line, write_json
from eventlog.errors import DamagedLog, EventLogError, UnknownStream

_FIELDS = ("name", "kind", "start", "end", "records", "bytes")


@click.command(epilog="Example: eventlog streams --log ./eventlog-data")
@log_option
@json_option
@click.pass_context
def streams(ctx: click.Context, log_dir: Path, as_json: bool) -> None:
    """List the streams: kind, offsets from start up to end, records and their bytes.

    What cannot be read of a stream is `?` (null with --json), and the command exits with 1.
    """
    rows: list[list[Any]] = []
    faults: list[EventLogError] = []
    with open_log(log_dir) as log:
        for name in log.engine.stream_names():
            held: dict[str, Any] = {"name": name}
            try:
                stream = log.engine.stream(name)
                held |= {"kind": stream.kind, "start": stream.start, "end": stream.end}
                held |= dataclasses.asdict(log.stream_info(name))
            except (DamagedLog, UnknownStream) as error:
                faults.append(error)
            rows.append([held.get(field) for field in _FIELDS])
        try:
            log.engine.streams()
        except DamagedLog as error:
            # A row that is gone has no name to be listed under.
            faults = faults or [error]
    if as_json:
        for row in rows:
            write_json(dict(zip(_FIELDS, row, strict=True)))
    else:
        Columns(*_FIELDS).write([["?" if cell is None else cell for cell in row] for row in rows])
    sys.stdout.flush()
    for fault in faults:
        click.echo(f"Error: {one_line(str(fault))}", err=True)
        click.echo(f"Hint: {one_line(fault.hint)}", err=True)
    if faults:
        ctx.exit(1)
