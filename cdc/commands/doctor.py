"""`eventlog doctor`: what stands in the way of capturing a Postgres, and how to mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cdc.postgres.doctor import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command(
    epilog="Example: eventlog doctor --dsn service=shop --table 'public.*' "
    "--table 'public.customers(id,tier)' --hash public.orders.email"
)
@click.option("--dsn", required=True, envvar="EVENTLOG_DSN", help="The Postgres to look at.")
@click.option(
    "--table",
    "tables",
    metavar="T",
    multiple=True,
    help="A table to capture; 'public.*' for all, 'public.customers(id,tier)' for two columns.",
)
@click.option(
    "--hash",
    "hashes",
    metavar="C",
    multiple=True,
    help="A column to hash, such as public.customers.email.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    ctx: click.Context,
    dsn: str,
    tables: tuple[str, ...],
    hashes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a Postgres before it is captured, and say how to mend what is wrong.

    Of each table it shows which columns would be stored, hashed and left out. Changes nothing.
    Exits with 1 if anything would keep a capture from working.
    """
    from cdc.postgres.connection import has_password_in_text
    from cdc.postgres.doctor import Severity, examine
    from cdc.postgres.schema.table_spec import ColumnName, TableSpec

    typed = ctx.get_parameter_source("dsn") == click.core.ParameterSource.COMMANDLINE
    if typed and has_password_in_text(dsn):
        click.echo(
            "Warning: the list of processes shows the password to every user; "
            "use --dsn env:VAR or ~/.pgpass",
            err=True,
        )
    columns = [str(ColumnName.parse(text)) for text in hashes]
    findings = examine(dsn, [TableSpec.parse(text) for text in tables], columns)
    if as_json:
        _print_json(findings)
    else:
        _print_table(findings)
    if any(finding.severity is Severity.ERROR for finding in findings):
        ctx.exit(1)


def _print_json(findings: list[Finding]) -> None:
    import dataclasses
    import json

    for finding in findings:
        shown = dataclasses.asdict(finding)
        if finding.columns is None:
            del shown["columns"]
        click.echo(json.dumps(shown, ensure_ascii=False))


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "subject", "finding"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        severity = Text(finding.severity.value, style=_COLOURS[finding.severity.value])
        table.add_row(severity, Text(finding.subject), Text(finding.finding))
    console.print(table)
    mendable = [finding for finding in findings if finding.remedy]
    if mendable:
        click.echo("\nTo mend:")
    for finding in mendable:  # unwrapped, so that SQL can be copied
        click.echo(f"  {finding.subject}: {finding.remedy}")
    counts = {level: sum(f.severity.value == level for f in findings) for level in _COLOURS}
    click.echo(f"\nerrors: {counts['error']}, warnings: {counts['warning']}, ok: {counts['ok']}")
