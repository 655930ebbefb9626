"""`eventlog snapshot create|show|verify|bundle|pins`: snapshots written down, and proven later."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eventlog.changes.quantities import counted
from eventlog.cli.manifest_diff import diff
from eventlog.cli.options import (
    conversion_options,
    json_option,
    log_option,
    open_log,
    saved_conversion_options,
)
from eventlog.cli.printing import Columns, one_line, write_json, write_lines
from eventlog.cli.progress import bar

if TYPE_CHECKING:
    from eventlog.changes.arrow import Unfit
    from eventlog.engine.pins import PinRow
    from eventlog.snapshots.manifests.manifest import Manifest, SavedConversion
    from eventlog.snapshots.manifests.transformed import Transform

_TABLE = re.compile(r"(.+?)\(([^()]*)\)")

_FILE = click.Path(path_type=Path, readable=False)

_CREATE = """\b
Examples:
  eventlog snapshot create --at shop=2026-01-31 --table public.orders --out train.json --pin
  eventlog snapshot create --at shop=1200000 --at crm=end --table 'shop.public.*' \\
    --table 'crm.public.customers(id,tier)' --out train.json
"""


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        stream, equals, at = value.partition("=")
        if not (stream and equals and at):
            raise click.BadParameter(f"{value!r} is not of the form STREAM=OFFSET|TIME|end")
        if stream in found:
            raise click.BadParameter(f"stream {stream!r} is named twice")
        found[stream] = at
    return found


def _tables(
    ctx: click.Context, param: click.Parameter, values: Sequence[str]
) -> dict[str, list[str] | None]:
    found: dict[str, list[str] | None] = {}
    for value in values:
        chosen = _TABLE.fullmatch(value)
        name = value if chosen is None else chosen[1]
        columns = None if chosen is None else [c.strip() for c in chosen[2].split(",")]
        if name in found or (columns is not None and not all(columns)):
            raise click.BadParameter(f"{value!r} is named twice, or lists no columns")
        found[name] = columns
    return found


def transform_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--transform FILE.py:NAME`, passed on as text."""
    return click.option(
        "--transform",
        metavar="FILE.py:NAME",
        help="The transform that the rows go through; the file is run.",
    )(function)


def _loaded(transform: str | None) -> Transform | None:
    if transform is None:
        return None
    from eventlog.cli.python_files import load_object
    from eventlog.errors import UsageError

    found = load_object(transform)
    if not all(hasattr(found, name) for name in ("name", "version", "digest", "apply")):
        raise UsageError(
            f"{transform} is a {type(found).__name__}, and no transform",
            hint="make it one: @eventlog.transform(NAME, version=1)",
        )
    return found  # type: ignore[no-any-return]


@click.command(epilog=_CREATE)
@click.option(
    "--at",
    "cuts",
    metavar="STREAM=A",
    multiple=True,
    required=True,
    callback=_pairs,
    help="A stream's cut: an offset, a time (ISO 8601; UTC), or `end`.",
)
@click.option(
    "--start",
    "starts",
    metavar="STREAM=A",
    multiple=True,
    callback=_pairs,
    help="Leave out rows of the stream whose latest version lies below.",
)
@click.option(
    "--table",
    "tables",
    metavar="T",
    multiple=True,
    callback=_tables,
    help="A table, a pattern such as 'public.*', T(COL,COL) for some of its columns, or the name "
    "of an event stream; without any, all that the streams have.",
)
@click.option("--out", required=True, type=_FILE, help="The manifest to write.")
@click.option("--pin", is_flag=True, help="Have the log keep what the manifest needs.")
@click.option(
    "--as-inserts", is_flag=True, help="Take every row inserted, where updates are not captured."
)
@click.option(
    "--as-is",
    is_flag=True,
    help="Take what the log holds even where it is known not to be the table's state.",
)
@transform_option
@conversion_options
@log_option
@json_option
def create(
    cuts: dict[str, str],
    starts: dict[str, str],
    tables: dict[str, list[str] | None],
    out: Path,
    pin: bool,
    as_inserts: bool,
    as_is: bool,
    transform: str | None,
    casts: dict[str, str],
    unfit: Unfit,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Write down a snapshot: a small file that names streams, cuts and tables, and their digests.

    With it the same rows can be made again, and proven equal to the byte, as long as the log has
    them. A cut inside a transaction is moved back to where that starts. --cast and --unfit are of
    what the transform is given, and are written down with it.
    """
    unknown = starts.keys() - cuts.keys()
    if unknown:
        raise click.UsageError(f"--start of {min(unknown)!r}, which has no --at")
    with open_log(log_dir) as log:
        streams: dict[str, Any] = {
            name: (starts[name], at) if name in starts else at for name, at in cuts.items()
        }
        with bar("reading") as progress:
            manifest = log.snapshot(streams).save(
                out,
                tables=list(tables) or None,
                columns={name: chosen for name, chosen in tables.items() if chosen is not None},
                transform=_loaded(transform),
                pin=pin,
                as_inserts=as_inserts,
                as_is=as_is,
                cast=casts,
                unfit=unfit,
                progress=progress,
            )
    _print_manifest(manifest, as_json=as_json, out=str(out), pinned=pin)


@click.command(epilog="Example: eventlog snapshot show train.json --json")
@click.argument("manifest", type=_FILE)
@json_option
def show(manifest: Path, as_json: bool) -> None:
    """Print what a manifest says: streams, cuts, tables, rows and digests. Needs no log."""
    from eventlog.snapshots.manifests.manifest import read_manifest

    path = manifest / "manifest.json" if manifest.is_dir() else manifest
    _print_manifest(read_manifest(path), as_json=as_json)


@click.command(epilog="Example: eventlog snapshot verify train.json && python train.py")
@click.argument("manifest", metavar="MANIFEST|BUNDLE", type=_FILE)
@transform_option
@log_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context, manifest: Path, transform: str | None, log_dir: Path, as_json: bool
) -> None:
    """Make a manifest's tables again, and prove them equal to the byte; exits with 1 if not.

    What differs is printed, and why, as far as the log can tell. A bundle is verified by itself,
    without a log, by its folder or by the manifest in it.
    """
    from eventlog.snapshots.manifests.bundle import SUMS
    from eventlog.snapshots.manifests.manifest import read_manifest
    from eventlog.snapshots.manifests.opened_bundle import open_bundle

    if not manifest.exists():
        read_manifest(manifest)  # Says so, before it is asked whether there is a log.
    with bar("verifying") as progress:
        if manifest.is_dir() or (manifest.parent / SUMS).is_file():
            found = open_bundle(manifest).verify(progress=progress)
        else:
            given = _loaded(transform)
            with open_log(log_dir) as log:
                saved = log.load_snapshot(manifest)
                found = saved.verify(transform=given, progress=progress)
    if as_json:
        write_json({"equal": found.equal, "rows": found.rows, "reasons": found.reasons})
    else:
        for reason in found.reasons:
            click.echo(one_line(reason))
        word = "equal" if found else "not proven whole" if found.unproven else "not equal"
        click.echo(f"{word}: {counted(found.rows, 'row')} proven")
        if found.hint:
            click.echo(one_line(f"Hint: {found.hint}"), err=True)
    if not found:
        ctx.exit(1)


@click.command(epilog="Example: eventlog snapshot bundle train.json --out train-data")
@click.argument("manifest", type=_FILE)
@click.option("--out", required=True, type=_FILE, help="The folder to make: new, or empty.")
@saved_conversion_options
@transform_option
@log_option
@json_option
def bundle(
    manifest: Path,
    out: Path,
    casts: dict[str, str],
    unfit: Unfit | None,
    transform: str | None,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Put a manifest and its rows into one folder: Parquet to use, and what proves it, no log.

    `eventlog snapshot verify DIR` and eventlog.open_bundle(DIR) need nothing else.
    """
    from eventlog.snapshots.manifests.bundle import write_bundle

    given = _loaded(transform)
    with open_log(log_dir) as log, bar("reading") as progress:
        saved = log.load_snapshot(manifest)
        done = write_bundle(
            saved, out, transform=given, cast=casts or None, unfit=unfit, progress=progress
        )
    if as_json:
        write_json(
            {
                "bundle": str(out),
                "tables": done.tables,
                "rows": done.rows,
                "bytes": done.bytes,
                "unfit": done.unfit,
            }
        )
        return
    held = (counted(done.tables, "table"), counted(done.rows, "row"), counted(done.bytes, "byte"))
    click.echo(one_line(f"{out}: {', '.join(held)}"))
    for column, count in done.unfit.items():
        click.echo(one_line(f"{column}: null for {counted(count, 'value')} that did not fit"))


@click.command(name="pins", epilog="Example: eventlog snapshot pins --drop 37a89edcf1fa133a")
@click.option("--drop", metavar="ID", help="Let one go: retention may drop what it needs.")
@log_option
@json_option
def pins(drop: str | None, log_dir: Path, as_json: bool) -> None:
    """List the pinned snapshots, whose offsets retention keeps, or let one of them go."""
    from eventlog.engine import pins as stored

    with open_log(log_dir) as log:
        if drop is not None:
            gone = stored.drop(log.engine.store, drop)
            if as_json:
                write_json({"dropped": gone.id, "name": gone.name})
            else:
                click.echo(one_line(f"{gone.name} ({gone.id}) is pinned no more"))
            return
        found = stored.pins(log.engine.store)
    if as_json:
        for row in found:
            write_json(_pin_fields(row))
        return
    columns = Columns("id", "name", "created", "keeps")
    columns.write([row.id, row.name, _pin_fields(row)["created"], _kept(row)] for row in found)


def _pin_fields(row: PinRow) -> dict[str, Any]:
    from eventlog.changes.cut import utc

    return {
        "id": row.id,
        "name": row.name,
        "digest": row.digest,
        "created": utc(row.created_us).isoformat(timespec="seconds"),
        "streams": {name: list(pair) for name, pair in row.ranges.items()},
    }


def _kept(row: PinRow) -> str:
    return ", ".join(f"{name} [{start}, {stop})" for name, (start, stop) in row.ranges.items())


def _print_manifest(manifest: Manifest, *, as_json: bool, **more: Any) -> None:
    from eventlog.snapshots.manifests.strict_json import plain

    if as_json:
        write_json({**more, "digest": manifest.digest, **plain(manifest)})
        return
    if more:
        pinned = ", pinned" if more["pinned"] else ""
        click.echo(one_line(f"{more['out']}: manifest {manifest.digest}{pinned}"))
    else:
        click.echo(f"manifest {manifest.digest}, made {manifest.created}")
        click.echo(f"log {manifest.log.id}, generation {manifest.log.generation}")
    for stream in manifest.streams:
        start = "" if stream.start is None else f" from {stream.start}"
        time = f" ({stream.time})" if stream.time else ""
        click.echo(one_line(f"{stream.name}{start} as of offset {stream.stop}{time}"))
    if manifest.transform is not None:
        made = manifest.transform
        click.echo(one_line(f"transform {made.name}, version {made.version}, {made.digest}"))
        if made.conversion is not None:
            write_lines(map(one_line, _converted(made.conversion)))
    columns = Columns("table", "rows", "columns", "bytes", "digest")
    columns.write(
        [
            table.name,
            table.stored.rows,
            len(table.stored.columns),
            table.stored.bytes,
            table.stored.digest,
        ]
        for table in manifest.tables
    )


def _converted(conversion: SavedConversion) -> list[str]:
    """What the transform was given."""
    lines = [f"cast {column} to {kind}" for column, kind in conversion.cast.items()]
    return lines + [
        f"{column}: null for {counted(count, 'value')} that did not fit"
        for column, count in conversion.dropped.items()
    ]


COMMANDS = (create, show, verify, diff, bundle, pins)
"""For the group `eventlog snapshot`."""
