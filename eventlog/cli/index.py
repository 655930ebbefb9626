"""`eventlog index`: build what `eventlog history` looks keys up in, and keep it fresh.

The index lies in the log's `derived/keys`, and may be deleted at any time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eventlog.changes.quantities import counted
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import write_json, write_lines
from eventlog.cli.progress import bar
from eventlog.cli.stopping import stopped_by_signals

if TYPE_CHECKING:
    from eventlog.history.key_index import KeyIndex
    from eventlog.log import Log

WAIT_S = 1.0
"""Between two runs written while following: so few records stay behind that they cost no time."""


@click.command(epilog="Example: eventlog index shop --follow")
@click.argument("stream")
@click.option("--follow", is_flag=True, help="Go on until SIGINT or SIGTERM.")
@click.option("--drop", is_flag=True, help="Remove the index; it is built again when needed.")
@log_option
@json_option
def index(stream: str, follow: bool, drop: bool, log_dir: Path, as_json: bool) -> None:
    """Index the keys of STREAM up to its end, or on and on with --follow.

    `eventlog history` does it by itself where much is missing; this does it beforehand, beside a
    capture, which it does not slow down. Prints what the index holds.
    """
    if follow and drop:
        raise click.UsageError("--follow and --drop cannot be asked for at once")
    from threading import Event

    with open_log(log_dir) as log:
        keys = log.stream(stream).key_index()
        if drop:
            removed = keys.drop()
            if as_json:
                write_json({"stream": stream, "removed": removed})
            else:
                write_lines([f"removed {counted(removed, 'file')}"])
            return
        told = Event()
        with bar("indexing keys") as progress:
            keys.update(log.stream(stream).end, progress=progress)
        _show(log, stream, keys, as_json=as_json)
        if follow:
            with stopped_by_signals(told.set):
                _follow(log, stream, keys, told.is_set)


def _follow(log: Log, stream: str, keys: KeyIndex, told: Any) -> None:
    seen = log.engine.wait(-1, timeout_s=0)
    while not told():
        begun = time.monotonic()
        keys.update(log.stream(stream).end)
        newest = seen
        while not told() and newest == seen:
            newest = log.engine.wait(seen, timeout_s=WAIT_S)
        seen = newest
        while not told() and time.monotonic() < begun + WAIT_S:
            time.sleep(0.05)


def _show(log: Log, stream: str, keys: KeyIndex, *, as_json: bool) -> None:
    runs = keys.runs()
    found: dict[str, Any] = {
        "stream": stream,
        "start": runs[0].start if runs else log.stream(stream).start,
        "stop": runs[-1].stop if runs else log.stream(stream).start,
        "entries": sum(run.count for run in runs),
        "runs": len(runs),
        "bytes": sum(run.bytes for run in runs),
    }
    if as_json:
        write_json(found)
    else:
        write_lines(
            [
                f"offsets [{found['start']}, {found['stop']}) of {stream}: "
                f"{counted(found['entries'], 'entry')} in {counted(found['runs'], 'file')} of "
                f"{counted(found['bytes'], 'byte')}"
            ]
        )
