"""`eventlog capture`: copy tables into the log, then follow their changes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdc.commands.source_option import (
    DSN_VARIABLE,
    dsn_option,
    warn_of_dsn,
    was_typed,
)
from eventlog.cli.options import json_option, log_option

if TYPE_CHECKING:
    from cdc.options import Outcome


@click.command(
    epilog="Example: eventlog capture --source shop --dsn service=shop --table 'public.*' "
    "--table 'public.customers(id,tier)' --hash public.orders.email"
)
@click.option(
    "--source", metavar="NAME", required=True, help="The source's name, and the stream's."
)
@dsn_option(required=True)
@click.option(
    "--table",
    "tables",
    metavar="T",
    multiple=True,
    help="A table, or tables such as 'public.*'; may be repeated. Of 'public.customers(id,tier)' "
    "no other column leaves the server, later ones neither.",
)
@click.option(
    "--hash",
    "hashes",
    metavar="C",
    multiple=True,
    help="A column, such as public.customers.email, of which only a keyed hash is stored; equal "
    "values have equal hashes in all tables. May be repeated.",
)
@click.option(
    "--hash-key",
    metavar="KEY",
    help="The hashes' key: a file, or env:VAR; else <log>.hash-key beside the log, made at need.",
)
@click.option("--until", metavar="WHERE", help="End at the server's `current` position, or an LSN.")
@click.option("--no-copy", is_flag=True, help="Leave out the rows that are there already.")
@click.option(
    "--copy-workers",
    metavar="N",
    type=click.IntRange(min=1, max=64),
    default=2,
    show_default=True,
    help="How many connections read the rows that are there.",
)
@click.option(
    "--copy-rate",
    metavar="MB",
    type=click.FloatRange(min=0, min_open=True),
    help="Read at most so many megabytes a second of them, to spare a busy server.",
)
@click.option(
    "--temporary", is_flag=True, help="A trial: nothing stays at the server when it ends."
)
@click.option("--slot", metavar="S", help="The slot's name, instead of one made from the source's.")
@click.option("--publication", metavar="P", help="A publication that is there; it is not altered.")
@log_option
@json_option
@click.pass_context
def capture(
    ctx: click.Context,
    source: str,
    dsn: str,
    tables: tuple[str, ...],
    hashes: tuple[str, ...],
    hash_key: str | None,
    until: str | None,
    no_copy: bool,
    copy_workers: int,
    copy_rate: float | None,
    temporary: bool,
    slot: str | None,
    publication: str | None,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Capture tables of a source into the log's stream of the same name.

    The rows that are there are copied first, unless the source was captured before: then it goes on
    where it ended. SIGINT or SIGTERM ends the capture in order, with everything stored that was
    acknowledged.
    """
    from cdc.commands.capture_report import JsonReport, TextReport
    from cdc.commands.new_log import opened_or_made
    from cdc.source import Source
    from eventlog.cli.stopping import stopped_by_signals
    from eventlog.names import checked_name

    checked_name(source, kind="source")
    warn_of_dsn(ctx, dsn)
    report = JsonReport() if as_json else TextReport()
    with opened_or_made(log_dir, dsn, tables) as opened:
        running = opened.running = Source(source, dsn, tables).start(
            opened.log,
            report=report,
            until=until,
            copy=not no_copy,
            hash=hashes,
            hash_key=hash_key,
            copy_workers=copy_workers,
            copy_rate=copy_rate,
            temporary=temporary,
            slot=slot,
            publication=publication,
        )
        with stopped_by_signals(running.stop), report:
            outcome = running.run()
    report.end(source, outcome, _drop_command(ctx, source, dsn, log_dir, outcome))


def _drop_command(
    ctx: click.Context, source: str, dsn: str, log_dir: Path, outcome: Outcome
) -> str | None:
    """What removes the slot that stays: our command, or SQL; without any secret."""
    from cdc.driver import driver_of

    if outcome.slot is None or outcome.slot_drop is not None:
        return outcome.slot_drop
    words = ["eventlog", "drop-source", source, "--dsn"]
    if was_typed(ctx, "dsn") and not driver_of(dsn).warnings(dsn):
        words.append(dsn)
    else:
        words.append(f"env:{DSN_VARIABLE}")
    if was_typed(ctx, "log_dir"):
        words += ["--log", str(log_dir)]
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """A word for a shell; a connection string's own quotes stay readable between double ones."""
    if "'" in word and not set(word) & set('"$`\\!'):
        return f'"{word}"'
    return shlex.quote(word)
