"""The command `eventlog`: finds commands without loading them, and ends every one of them alike.

::

    end                                          exit code    what is said
    the command did what it was asked            0
    an EventLogError                             1            Error: the cause / Hint: the remedy
    wrong usage                                  2            click's usage line and error
    SIGINT, SIGTERM                              130, 143     nothing; `tail` and `capture` end by 0
    the reader of stdout went away               141          nothing

A warning about the log itself is a line of stderr, `Warning: what`, and changes no exit code.
One module here is one command. Other packages bring theirs as entry points of the group
`eventlog.commands`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from typing import Any, NoReturn

import click

from eventlog.cli.commands import Commands, PipeClosed
from eventlog.cli.printing import one_line
from eventlog.errors import EventLogError, NetworkFileSystemWarning

__all__ = ["cli", "main"]

_EXAMPLES = """\b
Examples:
  eventlog capture --source shop --dsn service=shop --table 'public.*'
  eventlog read shop --start 2026-01-31 --table public.orders
  eventlog snapshot export shop --table public.orders --out orders.parquet
"""


class Terminated(BaseException):
    """SIGTERM arrived: unwinds like KeyboardInterrupt, so that everything is closed."""


@click.group(cls=Commands, epilog=_EXAMPLES, context_settings={"help_option_names": ["--help"]})
@click.version_option(package_name="eventlog-cdc", prog_name="eventlog")
def cli() -> None:
    """An embedded event log with Postgres change data capture."""


def main() -> NoReturn:
    """Run the command of `sys.argv` and exit with its code."""
    _open_what_is_closed()
    signal.signal(signal.SIGTERM, _terminate)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        code = _run()
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    sys.exit(code)


def _run() -> int:
    try:
        code = cli.main(prog_name="eventlog", standalone_mode=False)
        sys.stdout.flush()
    except EventLogError as error:
        click.echo(f"Error: {one_line(str(error))}", err=True)
        if error.hint:
            click.echo(f"Hint: {one_line(error.hint)}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except Terminated:
        return 128 + signal.SIGTERM
    except (BrokenPipeError, PipeClosed):
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        click.echo(f"Error: {one_line(str(error))}", err=True)
        click.echo(f"Hint: {_hint_about(error)}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _open_what_is_closed() -> None:
    # A file of the log must not take the place of a closed stdout or stderr: what is printed, by
    # whatever library, would go into it. A closed stdin stays None, which `append` refuses.
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        descriptor = os.dup(descriptor)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _drop_output() -> None:
    # What is still buffered can go nowhere; the interpreter would complain about it at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _hint_about(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space there, or send the output elsewhere"
    return "look at the file that it names, or at where the output goes, and its permissions"


_show_others = warnings.showwarning


def _show_warning(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    """Show a warning that is meant for the user, who has no use for the place in our code."""
    if issubclass(category, NetworkFileSystemWarning):
        click.echo(f"Warning: {one_line(str(message))}", err=True)
    else:
        _show_others(message, category, *where, **more)


def _terminate(signum: int, frame: object) -> NoReturn:
    raise Terminated
