"""Commands by name: each is imported when it is used, and none for `eventlog --help`.

A summary is read from the first paragraph of the command's module, without running the module::

    `eventlog NAME`: the summary.
"""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from eventlog.errors import EnvironmentFault

GROUP = "eventlog.commands"

_OWN = {
    name: EntryPoint(name=name, value=f"eventlog.cli.{name}:{name}", group=GROUP)
    for name in (
        "append",
        "backup",
        "check",
        "checkpoint",
        "compact",
        "history",
        "index",
        "read",
        "repair",
        "retain",
        "snapshot",
        "sql",
        "streams",
        "tail",
    )
}


class Commands(click.Group):
    """The group of all commands, the log's own ones and those of installed packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names; loads no command."""
        return sorted(_known())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command. Raises EnvironmentFault where its package cannot be imported."""
        point = _known().get(cmd_name)
        if point is None:
            return None
        try:
            command: click.Command = getattr(import_module(point.module), point.attr)
        except ImportError as error:
            raise EnvironmentFault(
                f"the command {cmd_name!r} cannot be loaded: {error}",
                hint="install the package again: pip install --force-reinstall eventlog-cdc",
            ) from error
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader of stdout that went away is left to `main`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosed from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names and summaries of all commands."""
        rows = [(name, _summary(point)) for name, point in sorted(_known().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class PipeClosed(Exception):
    """Nobody reads stdout any more. (click answers a BrokenPipeError by an exit of its own.)"""


def _known() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)} | _OWN


def _summary(point: EntryPoint) -> str:
    """What the command's module says of itself; empty where its source cannot be read."""
    package, *rest = point.module.split(".")
    try:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            return ""
        source = Path(spec.origin).parent.joinpath(*rest).with_suffix(".py").read_bytes()
        text = ast.get_docstring(ast.parse(source)) or ""
    except (ImportError, OSError, SyntaxError, ValueError):
        return ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    summary = paragraph.partition("`: ")[2] or paragraph
    return summary[:1].upper() + summary[1:].removesuffix(".")
