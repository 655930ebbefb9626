"""`eventlog demo`: flights of 2013 through an embedded Postgres into a log, with a model."""

from __future__ import annotations

from pathlib import Path

import click

from eventlog.cli.options import json_option

DEFAULT_LOG = "./eventlog-demo"
_DAYS = 59  # of January and February


@click.command(epilog="Example: eventlog demo --log /tmp/flights")
@click.option("--full", is_flag=True, help="The whole year instead of January and February.")
@click.option(
    "--days",
    metavar="N",
    type=click.IntRange(2, 365),
    help="Only the first N days, for a quick look; the model is trained on half of them.",
)
@click.option(
    "--log",
    "log_dir",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    default=DEFAULT_LOG,
    show_default=True,
    help="Where the log is left; an old demo log is replaced, anything else refused.",
)
@json_option
def demo(full: bool, days: int | None, log_dir: Path, as_json: bool) -> None:
    """Capture a Postgres that an application is writing to, and prove that nothing is missing.

    Starts a Postgres of its own, replays flights out of New York into it, kills the capture once
    meanwhile, rebuilds the tables from the log as of two offsets, and has a model predict delays.
    The server is removed at the end, the log stays. With --json the summary is printed as JSON and
    the course goes to stderr.
    """
    from cdc.commands.demo_narrator import narrator
    from cdc.demo.plan import Plan
    from cdc.demo.scenario import run
    from eventlog.cli.printing import write_json
    from eventlog.errors import SourceError

    plan = Plan.year() if full else Plan()
    if days is not None:
        if not full and days > _DAYS:
            raise click.UsageError(
                f"January and February have no {days} days; add --full for the year"
            )
        plan = Plan(months=plan.months, days=days)
    with narrator(aside=as_json) as tell:
        summary = run(log_dir, plan, tell)
        tell.end(summary.seconds["all"], summary.next)
    if as_json:
        write_json(summary.as_json())
    if not summary.equal:
        raise SourceError(
            f"the log in {log_dir} differs from what Postgres had",
            hint="keep that log, and report what the demo said",
        )
