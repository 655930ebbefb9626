"""`eventlog repair`: rebuild what is derived, drop what is damaged, and name what is lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from eventlog.cli.options import json_option, log_option
from eventlog.cli.printing import one_line, write_json, write_lines
from eventlog.cli.progress import bar

if TYPE_CHECKING:
    from eventlog.engine.upkeep.repair import Repaired


@click.command(epilog="Example: eventlog repair --log ./eventlog-data --dry-run")
@log_option
@click.option(
    "--dry-run", is_flag=True, help="Only tell what would be lost; exits with 1 if anything would."
)
@json_option
@click.pass_context
def repair(ctx: click.Context, log_dir: Path, dry_run: bool, as_json: bool) -> None:
    """Make a sound log of what can still be read of a damaged one. Nothing else may have it open.

    Lost records keep their offsets: an event stream passes over them, a captured one tells of them
    by a record `data_loss`, behind which no snapshot is given until the table is copied again. The
    damaged file stays beside the repaired one. Needs room for both. A sound log is left alone.

    Exits with 0 once the log is repaired, whatever was lost, and from --dry-run with 1 if anything
    would be.
    """
    from eventlog.engine.upkeep.repair import repair as repaired

    with bar("repairing") as progress:
        done = repaired(log_dir, dry_run=dry_run, progress=progress)
    if as_json:
        write_json(_as_map(done))
    else:
        write_lines(map(one_line, _lines(done, dry_run=dry_run)))
    if dry_run and (done.lost or done.dropped):
        ctx.exit(1)


def _as_map(done: Repaired) -> dict[str, object]:
    lost = [
        {"stream": gone.stream, "start": gone.start, "stop": gone.stop, "why": gone.why}
        for gone in done.lost
    ]
    return {
        "sound": done.sound,
        "damages": list(done.damages),
        "lost": lost,
        "dropped": list(done.dropped),
        "rebuilt": list(done.rebuilt),
        "kept": None if done.kept is None else str(done.kept),
    }


def _lines(done: Repaired, *, dry_run: bool) -> list[str]:
    if done.sound:
        return ["the log is sound, and was left alone"]
    lines = [str(gone) for gone in done.lost]
    lines += [f"dropped: {what}" for what in done.dropped]
    lines += [f"rebuilt: {what}" for what in done.rebuilt]
    if not done.lost and not done.dropped:
        lines.append("nothing is lost")
    if dry_run:
        lines.append("nothing was changed: this is what a repair would do")
    else:
        lines.append(f"the log is repaired; the damaged file is kept as {done.kept}")
    return lines
