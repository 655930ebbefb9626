"""`eventlog backup`: copy a live log, whole and consistent, while others write."""

from __future__ import annotations

from pathlib import Path

import click

from eventlog.changes.quantities import counted
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import one_line, write_json
from eventlog.cli.progress import bar


@click.command(
    epilog='Example: eventlog backup "/mnt/backup/log-$(date +%F)" --log ./eventlog-data'
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, readable=False))
@log_option
@json_option
def backup(directory: Path, log_dir: Path, as_json: bool) -> None:
    """Copy the log as it is now into DIR, which must be new or empty. Nothing has to stop.

    DIR is a log of its own, and appears only when it is whole. Opening it begins the log's next
    generation: event streams go on from there; a capture goes on only if nothing was captured
    since, and else says what to do.

    A backup that is killed leaves a hidden `.NAME.partial` beside DIR, which the next backup to DIR
    replaces.
    """
    with open_log(log_dir) as log, bar("backing up") as progress:
        done = log.backup(directory, progress=progress)
    if as_json:
        write_json({"backup": str(directory), "records": done.records, "bytes": done.bytes})
    else:
        held = f"{counted(done.records, 'record')}, {counted(done.bytes, 'byte')}"
        click.echo(one_line(f"{directory} holds {held}"))
