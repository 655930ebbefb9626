"""`eventlog check`: walk the whole log, and name every violated invariant."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from eventlog.cli.options import json_option, log_option
from eventlog.cli.printing import one_line, write_json, write_lines
from eventlog.cli.progress import bar


@click.command(epilog="Example: eventlog check --log ./eventlog-data && echo sound")
@log_option
@json_option
@click.pass_context
def check(ctx: click.Context, log_dir: Path, as_json: bool) -> None:
    """Walk the whole log and print every violated invariant; exits with 1 if there is any.

    Others may use the log meanwhile. One that nobody has open is looked at page by page first, so
    that a log too damaged to be opened is checked too, as far as it can be read. Nothing is
    changed. With --json each violation is a line: a sound log prints none.
    """
    from eventlog.engine.upkeep.examining import check_directory

    with bar("checking") as progress:
        violations = check_directory(log_dir, progress=progress)
    for violation in violations:
        if as_json:
            write_json(dataclasses.asdict(violation))
        else:
            write_lines([one_line(str(violation))])
    sys.stdout.flush()
    if not as_json:
        click.echo(f"violations: {len(violations)}" if violations else "the log is sound")
    if violations:
        ctx.exit(1)
