"""The options that many commands share, and what they open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from eventlog.log import Log

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT_LOG = "./eventlog-data"


def log_option(function: Function) -> Function:
    """`--log DIR`, passed on as `log_dir`."""
    return click.option(
        "--log",
        "log_dir",
        metavar="DIR",
        # Whether it can be used is for whoever opens it to say, with a hint.
        type=click.Path(path_type=Path, readable=False),
        envvar="EVENTLOG_DIR",
        default=DEFAULT_LOG,
        show_default="$EVENTLOG_DIR, else " + DEFAULT_LOG,
        help="The log's directory.",
    )(function)


def json_option(function: Function) -> Function:
    """`--json`, passed on as `as_json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs."
    )(function)


def conversion_options(function: Function) -> Function:
    """`--cast` and `--unfit`, passed on as `casts`, a mapping, and `unfit`."""
    return _conversion(function, default="raise")


def saved_conversion_options(function: Function) -> Function:
    """The same, where a manifest may say it already: `unfit` is None unless given."""
    return _conversion(function, default=None)


def _conversion(function: Function, *, default: str | None) -> Function:
    cast = click.option(
        "--cast",
        "casts",
        multiple=True,
        metavar="COL=TYPE",
        callback=_parsed_casts,
        help="A column's type instead of its own: text, float64 or decimal(p,s).",
    )
    unfit = click.option(
        "--unfit",
        type=click.Choice(["raise", "null"]),
        default=default,
        show_default=default or "as saved",
        help="What a value does that does not fit its column's type.",
    )
    return cast(unfit(function))


def _parsed_casts(
    ctx: click.Context, param: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    """`COL=TYPE`, several times, as a mapping."""
    casts = {}
    for value in values:
        column, _, wanted = value.rpartition("=")
        if not column or not wanted:
            raise click.BadParameter(f"{value!r} is not of the form COL=TYPE")
        casts[column] = wanted
    return casts


def open_log(log_dir: Path, *, create: bool = False) -> Log:
    """The log in that directory, whose façade is imported now and not for `--help`."""
    from eventlog.log import open_log as opened

    return opened(log_dir, create=create)
