"""The option that tells where a source is, and what is unwise about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

DSN_VARIABLE = "EVENTLOG_DSN"


def dsn_option(*, required: bool) -> Callable[[Function], Function]:
    """`--dsn`, with its default from the environment."""
    return click.option(
        "--dsn",
        required=required,
        envvar=DSN_VARIABLE,
        show_envvar=True,
        help="A connection string or URI, service=NAME, or env:VAR.",
    )


def was_typed(ctx: click.Context, name: str) -> bool:
    """Whether an option stands on the command line, for all users of the machine to see."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def warn_of_dsn(ctx: click.Context, dsn: str) -> None:
    """Warn on stderr of what is unwise about a connection string that was typed."""
    from cdc.driver import driver_of

    if was_typed(ctx, "dsn"):
        for text in driver_of(dsn).warnings(dsn):
            click.echo(f"Warning: {text}", err=True)
