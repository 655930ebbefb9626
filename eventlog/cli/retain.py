"""`eventlog retain`: drop the oldest events of a stream, by age, size or offset."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from eventlog.changes.quantities import counted
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import write_json
from eventlog.cli.progress import bar


@click.command(epilog="Example: eventlog retain clicks --older-than 30d --max-bytes 10GB")
@click.argument("stream")
@click.option("--older-than", "older_than", metavar="AGE", help="Drop what is older, as in 30d.")
@click.option(
    "--max-bytes",
    "max_bytes",
    metavar="SIZE",
    help="Keep at most this much, as in 10GB; whole batches go.",
)
@click.option("--below", metavar="OFFSET|TIME", help="Drop what lies below; `end` drops all.")
@click.option(
    "--force", is_flag=True, help="Drop also what a consumer has not read yet, or a pin needs."
)
@click.option("--dry-run", "dry_run", is_flag=True, help="Only tell what would be dropped.")
@log_option
@json_option
def retain(
    stream: str,
    older_than: str | None,
    max_bytes: str | None,
    below: str | None,
    force: bool,
    dry_run: bool,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Drop the oldest events of STREAM: whatever one of the options names.

    An age is counted back from the newest event, in event time. Whole batches are dropped, never
    more than asked; what a consumer has yet to read stays, and what a pinned snapshot is made of.
    Their space is used again by what is appended next; `eventlog compact` gives it back.
    """
    if below is None and older_than is None and max_bytes is None:
        raise click.UsageError("give at least one of --below, --older-than and --max-bytes")
    with open_log(log_dir) as log, bar("dropping") as progress:
        done = log.stream(stream).retain(
            below=below,
            older_than=older_than,
            max_bytes=max_bytes,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        write_json({**dataclasses.asdict(done), "dry_run": dry_run})
        return
    verb = "would drop" if dry_run else "dropped"
    click.echo(
        f"{verb} {counted(done.offsets, 'offset')}, {counted(done.bytes, 'byte')} of {stream!r}; "
        f"it holds [{done.start}, {done.end})"
    )
    if done.held_by:
        click.echo(
            f"kept for {', '.join(done.held_by)}: up to {done.asked} was asked for (--force drops "
            'it all the same; rewind(to="end") moves a consumer that is not needed any more out of '
            "the way)"
        )
    if done.pinned_by:
        click.echo(
            f"kept for pinned snapshots {', '.join(done.pinned_by)}: up to {done.asked} was asked "
            "for (--force drops it all the same; eventlog snapshot pins --drop ID lets one go)"
        )
    elif not done.held_by and not done.offsets and done.asked > done.start:
        click.echo(
            f"the batch at {done.start} reaches past {done.asked}, and whole batches go, never "
            "more than asked"
        )
