"""`eventlog sql`: ask tables of any streams, each as of an offset or a time, in SQL."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from eventlog.changes.quantities import counted
from eventlog.cli.export_files import SUFFIXES, write_pieces
from eventlog.cli.options import conversion_options, json_option, log_option, open_log
from eventlog.cli.printing import Columns, one_line, write_json, write_lines
from eventlog.cli.progress import bar
from eventlog.errors import UsageError

if TYPE_CHECKING:
    from eventlog.changes.arrow import Unfit
    from eventlog.changes.cut import Cut
    from eventlog.log import Log
    from eventlog.snapshots.sql.result import Result

_EXAMPLES = """\b
Examples:
  eventlog sql "select country, avg(amount) from shop.public.orders group by all"
  eventlog sql --at shop=2026-01-31 --at crm=end "select o.id, c.tier
    from shop.public.orders o join crm.public.customers c on c.id = o.customer_id"
  eventlog sql --at shop=end --at before=shop@2026-01-31 "select a.id
    from shop.public.orders a anti join before.public.orders b using (id)"
  eventlog sql "select value.proba from \\"late-predictions\\".events" --format ndjson
"""


class Asked:
    """One `--at`: a stream, the cut wanted, and the name that it has in the query."""

    def __init__(self, text: str) -> None:
        self.name, equals, wanted = text.partition("=")
        stream, at, cut = wanted.rpartition("@")
        self.stream = stream if at else self.name
        self.cut = cut
        self.alias = bool(at)
        if not (self.name and equals and self.stream and self.cut):
            raise click.BadParameter(
                f"{text!r} is neither STREAM=OFFSET|TIME|end nor ALIAS=STREAM@OFFSET|TIME|end"
            )


def _asked(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> list[Asked]:
    found = [Asked(value) for value in values]
    names = [asked.name for asked in found]
    if len(set(names)) != len(names):
        raise click.BadParameter("a name has two cuts; write ALIAS=STREAM@CUT for the second")
    return found


@click.command(epilog=_EXAMPLES)
@click.argument("query")
@click.option(
    "--at",
    "cuts",
    metavar="STREAM=A",
    multiple=True,
    callback=_asked,
    help="A stream's cut: an offset, a time (ISO 8601; UTC), or `end`; ALIAS=STREAM@A names a "
    "second cut of a stream. Only these streams are asked; without any, all at their ends.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "ndjson", "csv", "arrow"]),
    help="How to print rows; default: table. `arrow` is an IPC stream.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, readable=False),
    help=f"Write the rows to a file instead: {', '.join(SUFFIXES)}.",
)
@conversion_options
@click.option("--as-is", is_flag=True, help="Take what the log holds of tables without a state.")
@click.option("--as-inserts", is_flag=True, help="Take every insert of tables known by inserts.")
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="More are faster, and may order rows and round sums of floats otherwise each time.",
)
@click.option(
    "--memory-limit",
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="What the query may take, as in 4GB; what outgrows it lies on disk meanwhile, in $TMPDIR.",
)
@log_option
@json_option
def sql(
    query: str,
    cuts: list[Asked],
    form: str | None,
    out: Path | None,
    casts: dict[str, str],
    unfit: Unfit,
    as_is: bool,
    as_inserts: bool,
    threads: int,
    memory_limit: str,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Answer QUERY, one SELECT of DuckDB's SQL, over tables as they were at their cuts.

    Tables are STREAM.SCHEMA.TABLE; with one captured stream, SCHEMA.TABLE or a table of `public`.
    An event stream is STREAM (the latest event of each key) or STREAM.events (all), with
    columns _offset, _time, key and value. Names with signs such as `-` stand in double quotes. The
    query reaches no files, no network and no settings. What each cut became is printed on stderr;
    with --json all comes as one object: cuts, columns, rows.
    """
    _require_one_form(form, out, as_json=as_json)
    with open_log(log_dir) as log, bar("reading offsets") as progress:
        snapshot, others = _snapshots(log, cuts)
        result = snapshot.sql(
            query,
            cast=casts,
            unfit=unfit,
            as_is=as_is,
            as_inserts=as_inserts,
            threads=threads,
            memory_limit=memory_limit,
            progress=progress,
            **others,
        )
    if out is not None:
        _write_file(result, out)
    if as_json:
        _print_object(result, out)
        return
    _say(result)
    if out is not None:
        click.echo(f"{counted(result.num_rows, 'row')} in {out}")
    else:
        _print(result, form or "table")


def _require_one_form(form: str | None, out: Path | None, *, as_json: bool) -> None:
    if form is not None and (as_json or out is not None):
        other = "--json" if as_json else "--out"
        raise click.UsageError(f"--format is for rows that are printed; leave out {other}")
    if out is not None and out.suffix not in SUFFIXES:
        raise click.BadParameter(
            f"{out.name!r} ends in none of {', '.join(SUFFIXES)}", param_hint="'--out'"
        )
    if form == "arrow" and sys.stdout.isatty():
        raise click.UsageError("--format arrow is no text; send it to a file or a program")


def _snapshots(log: Log, cuts: Sequence[Asked]) -> tuple[Any, dict[str, Any]]:
    """The streams under their own names, and the others by their aliases."""
    from eventlog.snapshots.snapshot import Snapshot

    own: dict[str, Any] = {a.name: a.cut for a in cuts if not a.alias}
    if not cuts:
        own = {row.name: "end" for row in log.engine.streams()}
    others = {a.name: log.snapshot(a.stream, at=a.cut) for a in cuts if a.alias}
    if not own:  # Only aliases are named, or nothing is there: both can be asked.
        return Snapshot(log.engine, []), others
    return log.snapshot(own), others


def _print_object(result: Result, out: Path | None) -> None:
    """Print all as one object; its rows as they are read."""
    found: dict[str, Any] = {"cuts": {n: _cut(c) for n, c in result.cuts.items()}}
    found["columns"] = result.columns
    if result.unfit:
        found["unfit"] = result.unfit
    if out is not None:
        write_json({**found, "rows": result.num_rows, "out": str(out)})
        return
    write = sys.stdout.write
    write(json.dumps(found, ensure_ascii=False)[:-1] + ', "rows": [')
    for place, line in enumerate(result.json_lines()):
        write(line if place == 0 else ", " + line)
    write("]}\n")
    sys.stdout.flush()


def _cut(cut: Cut) -> dict[str, Any]:
    time = None if cut.time is None else cut.time.isoformat()
    return {"stream": cut.stream, "stop": cut.stop, "time": time}


def _say(result: Result) -> None:
    """Tell on stderr what the cuts became, and what was dropped."""
    for name, cut in result.cuts.items():
        stream = "" if name == cut.stream else f" is {cut.stream}"
        time = "" if cut.time is None else f" ({cut.time.isoformat()})"
        click.echo(one_line(f"{name}{stream} as of offset {cut.stop}{time}"), err=True)
    for column, count in result.unfit.items():
        dropped = f"{column}: null for {counted(count, 'value')} that did not fit"
        click.echo(one_line(dropped), err=True)


def _print(result: Result, form: str) -> None:
    if form == "table":
        # Bare, without the commas that counts have elsewhere: a number may be an id or a year.
        columns = Columns(*map(one_line, result.columns), bare=True)
        columns.write(list(row.values()) for row in result.as_json())
    elif form == "ndjson":
        write_lines(result.json_lines())
    else:
        sys.stdout.flush()
        with _writer(result, form, sys.stdout.buffer) as writer:
            for piece in result.to_batches():
                writer.write_table(piece)
        sys.stdout.buffer.flush()


def _writer(result: Result, form: str, file: IO[bytes]) -> Any:
    if form == "csv":
        from eventlog.cli.csv_lines import CsvLines

        return CsvLines(result.schema, file)
    from pyarrow import ipc

    return ipc.new_stream(file, result.schema)


def _write_file(result: Result, out: Path) -> None:
    import pyarrow as pa

    try:
        write_pieces(result.to_batches(), out)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise UsageError(
            f"a file of that kind, {out.suffix}, cannot hold the result: "
            f"{str(error).splitlines()[0]}",
            hint="cast such columns to text in the query: col::VARCHAR",
        ) from error
