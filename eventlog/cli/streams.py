"""`eventlog streams`: what the log holds, stream by stream."""

from __future__ import annotations

from pathlib import Path

import click

from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import Columns, write_json


@click.command(epilog="Example: eventlog streams --log ./eventlog-data")
@log_option
@json_option
def streams(log_dir: Path, as_json: bool) -> None:
    """List the streams: kind, offsets from start up to end, records and their bytes."""
    with open_log(log_dir) as log:
        found = log.streams()
    fields = ("name", "kind", "start", "end", "records", "bytes")
    rows = [[getattr(info, field) for field in fields] for info in found]
    if as_json:
        for row in rows:
            write_json(dict(zip(fields, row, strict=True)))
    else:
        Columns(*fields).write(rows)
