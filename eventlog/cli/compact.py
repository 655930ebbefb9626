"""`eventlog compact`: give the space of dropped records back to the disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from eventlog.changes.quantities import counted
from eventlog.cli.options import json_option, log_option
from eventlog.cli.printing import one_line, write_json
from eventlog.cli.progress import bar


@click.command(epilog="Example: eventlog compact --log ./eventlog-data")
@log_option
@json_option
def compact(log_dir: Path, as_json: bool) -> None:
    """Rewrite the log's data file without its free space. Nothing else may have the log open.

    A log reuses the space of what was dropped from it, so this is rarely needed: after much was
    dropped, or after a reader held on to an old state for long. Needs room for the new file beside
    the old one. Killed at any moment, the log is the old one or the new one.
    """
    from eventlog.engine.upkeep.compact import compact as compacted

    with bar("compacting") as progress:
        done = compacted(log_dir, progress=progress)
    if as_json:
        write_json(dataclasses.asdict(done))
        return
    gained = done.bytes_before - done.bytes_after
    said = (
        f"gave back {counted(gained, 'byte')}" if gained > 0 else "there was nothing to give back"
    )
    click.echo(
        one_line(f"{log_dir}: {said}; {done.bytes_before:,} before, {done.bytes_after:,} now")
    )
