"""`eventlog drop-source`: remove what capturing left at the server, and keep the log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cdc.commands.source_option import dsn_option, warn_of_dsn
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import write_json


@click.command("drop-source", epilog="Example: eventlog drop-source shop --dsn service=shop")
@click.argument("name")
@dsn_option(required=True)
@log_option
@json_option
@click.pass_context
def drop_source(ctx: click.Context, name: str, dsn: str, log_dir: Path, as_json: bool) -> None:
    """Remove the slot and the publications of the source NAME from its server.

    The log keeps what was captured; the source cannot be resumed after that. Without a log, those
    whose names derive from the source's are removed. What the user made is left alone.
    """
    from cdc.driver import driver_of
    from eventlog.names import checked_name

    checked_name(name, kind="source")
    warn_of_dsn(ctx, dsn)
    dropped = driver_of(dsn).drop(dsn, name, _state(name, log_dir))
    if as_json:
        write_json({"source": name, "dropped": dropped})
    elif dropped:
        for what in dropped:
            click.echo(f"dropped {what}")
    else:
        click.echo(f"the server holds no slot and no publication of source {name!r}")


def _state(name: str, log_dir: Path) -> Mapping[str, Any] | None:
    """What the log knows about the source; nothing where there is no log, or it knows nothing."""
    from eventlog.errors import NotALog, UnknownStream

    try:
        with open_log(log_dir) as log:
            return log.source(name)
    except (NotALog, UnknownStream):
        return None
