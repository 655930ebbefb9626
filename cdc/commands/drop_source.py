"""`eventlog drop-source`: remove what capturing left at the server, and keep the log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cdc.commands.source_option import dsn_option, warn_of_dsn
from eventlog.changes.quantities import counted
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import write_json, write_lines


@click.command("drop-source", epilog="Example: eventlog drop-source shop --dsn service=shop")
@click.argument("name")
@dsn_option(required=True)
@log_option
@json_option
@click.pass_context
def drop_source(ctx: click.Context, name: str, dsn: str, log_dir: Path, as_json: bool) -> None:
    """Remove the slot and the publications of the source NAME from its server.

    The log keeps what was captured; the source cannot be resumed after that. Without a log, those
    whose names derive from the source's are removed. What the user made is left alone. A NAME that
    neither the log nor the server knows is an error.
    """
    from cdc.driver import driver_of
    from eventlog.names import checked_name

    checked_name(name, kind="source")
    warn_of_dsn(ctx, dsn)
    state, stays = _known(name, log_dir)
    dropped = driver_of(dsn).drop(dsn, name, state)
    if as_json:
        write_json({"source": name, "dropped": dropped, "stays": stays})
        return
    lines = [f"dropped {what}" for what in dropped]
    if not dropped:
        lines.append(f"the server holds no slot and no publication of source {name!r}")
    if stays is not None:
        where = f"{counted(stays['records'], 'record')} up to {stays['position']} in {log_dir}"
        lines.append(f"The log keeps what was captured, readable as before: {where}.")
        lines.append("To capture it again, choose another source name.")
    write_lines(lines, flush=True)


def _known(name: str, log_dir: Path) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """What the log knows about the source, and what it keeps; nothing where there is no log.

    Raises SlotInUse while a capture of it runs in this log: it would end by a lost slot, or keep
    streaming what nothing sends any more.
    """
    from cdc.errors import SlotInUse
    from eventlog.changes.codec import codec
    from eventlog.errors import NotALog

    try:
        log = open_log(log_dir)
    except NotALog:
        return None, None
    with log:
        state = log.source(name)
        if state is None:
            return None, None
        writer = log.engine.living_writer(name)
        if writer is not None:
            raise SlotInUse(
                f"the source {name!r} is being captured by process {writer} into {log_dir}",
                hint="stop that capture first",
            )
        position = codec(state["codec"]).position_text(state.get("position", 0))
        start, end = log.engine.bounds(name)
        return state, {"stream": name, "records": end - start, "position": position}
