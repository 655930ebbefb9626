"""`eventlog tables`: let tables of a source join, leave or be copied again, and list them.

A request is stored in the log. The capture that runs carries it out within seconds; where none
runs, the next one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdc.commands.source_option import dsn_option, warn_of_dsn
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import Columns, one_line, write_json, write_lines

if TYPE_CHECKING:
    from cdc.captured import CapturedTable, CapturedTables
    from cdc.driver import SourceDriver
    from cdc.requests import Verb
    from eventlog.log import Log

Function = TypeVar("Function", bound=Callable[..., Any])

_HEADINGS = ("table", "state", "rows", "since", "copied", "why", "columns")


@click.group()
def tables() -> None:
    """Let tables of a captured source join or leave, copy one again, or list them."""


def _asking(function: Function) -> Function:
    """The arguments and options that every request has."""
    for option in (
        json_option,
        log_option,
        click.option(
            "--wait/--no-wait",
            default=True,
            show_default=True,
            help="Wait, while a capture runs, until it is done.",
        ),
        click.argument("names", metavar="TABLE...", nargs=-1, required=True),
        click.argument("source"),
    ):
        function = option(function)
    return function


@tables.command(epilog="Example: eventlog tables add shop public.orders 'crm.*'")
@_asking
@click.option(
    "--hash",
    "hashed",
    metavar="COLUMN",
    multiple=True,
    help="Store a keyed hash instead of this column's values; may be repeated.",
)
@dsn_option(required=False)
@click.pass_context
def add(
    ctx: click.Context,
    source: str,
    names: tuple[str, ...],
    wait: bool,
    log_dir: Path,
    as_json: bool,
    hashed: tuple[str, ...],
    dsn: str | None,
) -> None:
    """Capture more tables of SOURCE. Their rows are copied while the stream goes on.

    TABLE is a table, a pattern such as 'crm.*', or a table with the columns that may leave it:
    'public.customers(id,tier)'. With --dsn the server is asked first whether it is there.
    """
    from cdc.driver import driver_of

    if dsn is not None:
        warn_of_dsn(ctx, dsn)
    with open_log(log_dir) as log:
        driver, spelled = _spelled(log, source, names)
        if dsn is not None:
            driver_of(dsn).tables(dsn, spelled)
        columns = [driver.spelled_column(column) for column in hashed]
        _request(ctx, log, driver, source, "add", spelled, columns, wait=wait, as_json=as_json)


@tables.command(epilog="Example: eventlog tables remove shop public.orders")
@_asking
@click.pass_context
def remove(
    ctx: click.Context,
    source: str,
    names: tuple[str, ...],
    wait: bool,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Capture tables of SOURCE no more. What the log has of them stays readable."""
    with open_log(log_dir) as log:
        driver, spelled = _spelled(log, source, names)
        _request(ctx, log, driver, source, "remove", spelled, (), wait=wait, as_json=as_json)


@tables.command(epilog="Example: eventlog tables recopy shop public.orders")
@_asking
@click.pass_context
def recopy(
    ctx: click.Context,
    source: str,
    names: tuple[str, ...],
    wait: bool,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Copy the rows of captured tables of SOURCE again. The stream goes on meanwhile."""
    with open_log(log_dir) as log:
        driver, spelled = _spelled(log, source, names)
        _request(ctx, log, driver, source, "recopy", spelled, (), wait=wait, as_json=as_json)


@tables.command("list", epilog="Example: eventlog tables list shop")
@click.argument("source")
@log_option
@json_option
def list_tables(source: str, log_dir: Path, as_json: bool) -> None:
    """List the tables of SOURCE. Tells how far each is, and what is stored of it."""
    from cdc.captured import captured_tables
    from cdc.driver import driver_of_state
    from cdc.requests import require_captured

    with open_log(log_dir) as log:
        driver = driver_of_state(require_captured(log, source))
        found = captured_tables(log, source, driver)
    if as_json:
        _write_json(source, found)
    else:
        _write_text(source, found)


def _spelled(log: Log, source: str, names: Sequence[str]) -> tuple[SourceDriver, list[str]]:
    from cdc.driver import driver_of_state
    from cdc.requests import require_captured

    driver = driver_of_state(require_captured(log, source))
    return driver, [driver.spelled(name) for name in names]


def _request(
    ctx: click.Context,
    log: Log,
    driver: SourceDriver,
    source: str,
    verb: Verb,
    names: Sequence[str],
    hashed: Sequence[str],
    *,
    wait: bool,
    as_json: bool,
) -> None:
    """Store the requests, tell who carries them out, and wait for that."""
    from cdc.commands.tables_report import JsonAnswers, TextAnswers, wait_for
    from cdc.requests import Request, ask

    requests = [
        Request(
            offset=ask(log, source, verb, name, hash=hashed),
            verb=verb,
            table=name,
            hash=tuple(hashed),
        )
        for name in names
    ]
    writer = log.engine.living_writer(source)
    report = JsonAnswers(source) if as_json else TextAnswers(source, driver)
    report.stored(requests, writer, waits=wait)
    if writer is None or not wait:
        return
    if not wait_for(log, source, requests, report):
        ctx.exit(1)


def _write_json(source: str, found: CapturedTables) -> None:
    import dataclasses

    write_json(
        {
            "source": source,
            "writer": found.writer,
            "patterns": list(found.patterns),
            "left_out": list(found.left_out),
            "waiting": [dataclasses.asdict(request) for request in found.waiting],
        }
    )
    for table in found.tables:
        record = dataclasses.asdict(table)
        record["copied_at"] = None if table.copied_at is None else table.copied_at.isoformat()
        write_json({"source": source, **record})


def _write_text(source: str, found: CapturedTables) -> None:
    lines = [f"tables of {source}: {'  '.join(found.patterns) or 'those of its publication'}"]
    if found.left_out:
        lines.append(f"left out: {'  '.join(found.left_out)}")
    if found.writer is None:
        lines.append("no capture of it runs in this log")
    else:
        lines.append(f"process {found.writer} captures it")
    lines += [f"not carried out yet: {request.verb} {request.table}" for request in found.waiting]
    write_lines([*map(one_line, lines), ""])
    Columns(*_HEADINGS).write(_cells(table) for table in found.tables)


def _cells(table: CapturedTable) -> list[Any]:
    return [
        table.table,
        table.stands,
        table.rows,
        table.since,
        None if table.copied_at is None else f"{table.copied_at:%Y-%m-%d %H:%M:%S}",
        table.why,
        ", ".join(_shown(name, table) for name in table.columns) or None,
    ]


def _shown(column: str, table: CapturedTable) -> str:
    return f"{column} (hashed)" if column in table.hashed else column
