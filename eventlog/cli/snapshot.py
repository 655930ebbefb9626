"""`eventlog snapshot`: a table as of an offset or a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eventlog.changes.quantities import counted
from eventlog.cli.export_files import SUFFIXES, write_pieces
from eventlog.cli.manifests import COMMANDS
from eventlog.cli.options import conversion_options, json_option, log_option, open_log
from eventlog.cli.printing import write_json
from eventlog.cli.progress import bar
from eventlog.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from eventlog.changes.arrow import Unfit
    from eventlog.log import Log

_HOW = ", ".join(SUFFIXES)
ROWS_AT_ONCE = 1 << 17
"""Rows in memory at a time, and in a row group of Parquet; fewer where values are long."""


def _out(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    if value.suffix not in SUFFIXES:
        raise click.BadParameter(f"{value.name!r} ends in none of {_HOW}")
    return value


@click.group()
def snapshot() -> None:
    """Rebuild tables as of an offset or a time."""


for _command in COMMANDS:
    snapshot.add_command(_command)


@snapshot.command(
    epilog="Example: eventlog snapshot export shop --table public.orders --at 2026-01-31 "
    "--out orders.parquet"
)
@click.argument("stream")
@click.option("--table", metavar="T", help="The table; an event stream needs none.")
@click.option(
    "--at",
    metavar="A",
    default="end",
    show_default=True,
    help="The cut: an offset, a time (ISO 8601; UTC), or `end`.",
)
@click.option(
    "--out",
    required=True,
    callback=_out,
    type=click.Path(path_type=Path, readable=False),
    help=f"The file to write: {_HOW}.",
)
@conversion_options
@click.option(
    "--as-inserts", is_flag=True, help="Write every row inserted, where updates are not captured."
)
@click.option(
    "--as-is",
    is_flag=True,
    help="Write what the log holds even where it is known not to be the table's state.",
)
@log_option
@json_option
def export(
    stream: str,
    table: str | None,
    at: str,
    out: Path,
    casts: dict[str, str],
    unfit: Unfit,
    as_inserts: bool,
    as_is: bool,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Write the rows of a table of STREAM, as they were at the cut, to a file.

    A cut inside a transaction is moved back to where that starts; what it became is printed. Of an
    event stream the latest event of each key is written.
    """
    with open_log(log_dir) as log:
        done = _export(log, stream, table, at, out, casts, unfit, as_inserts, as_is)
    if as_json:
        write_json(done)
        return
    time = f" ({done['time']})" if done["time"] else ""
    name = table or stream
    click.echo(f"{name} as of offset {done['at']}{time}: {counted(done['rows'], 'row')} in {out}")
    for column, count in done["unfit"].items():
        click.echo(f"{column}: null for {counted(count, 'value')} that did not fit")


def _export(
    log: Log,
    stream: str,
    table: str | None,
    at: str,
    out: Path,
    casts: dict[str, str],
    unfit: Unfit,
    as_inserts: bool,
    as_is: bool,
) -> dict[str, Any]:
    from eventlog.snapshots.shown_rows import stripped

    if table is None and log.stream(stream).kind != "events":
        raise UsageError(f"stream {stream!r} has tables", hint="name one: --table public.orders")
    taken = log.snapshot(stream, at=at)
    with bar("reading offsets") as progress:
        found = taken.table(table, as_inserts=as_inserts, as_is=as_is, progress=progress)
    counts: dict[str, int] = {}

    def pieces() -> Iterator[pa.Table]:
        done = 0
        with bar("writing rows") as progress:
            for piece in found.to_batches(cast=casts, unfit=unfit, max_rows=ROWS_AT_ONCE):
                plain, unfit_here = stripped(piece)
                for name, count in unfit_here.items():
                    counts[name] = counts.get(name, 0) + count
                yield plain
                done += plain.num_rows
                progress(done, found.num_rows)

    rows = write_pieces(pieces(), out)
    return {
        "stream": stream,
        "table": table,
        "at": taken.stop,
        "time": None if taken.time is None else taken.time.isoformat(),
        "rows": rows,
        "unfit": counts,
        "out": str(out),
    }
