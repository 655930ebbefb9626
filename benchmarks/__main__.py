"""`python -m benchmarks [NAME ...]`: run programs, print tables, write results.

::

    python -m benchmarks                      every program
    python -m benchmarks append --quick       one, with little data
    python -m benchmarks capture --json FILE  results for machines

A missed target is shown, and is no failure: the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks.machine import fingerprint
from benchmarks.measure import SAMPLES_MIN, Result
from benchmarks.options import Options
from benchmarks.table import render
from eventlog.errors import EventLogError

PROGRAMS = (
    "append",
    "capture",
    "compression",
    "copy",
    "decode",
    "fair",
    "follow",
    "history",
    "read",
    "seen",
    "snapshot",
)
DESCRIPTION = "One program for each question, with peers and limits side by side in one run."


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; returns the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in PROGRAMS:
            parser.error(f"no benchmark is called {name!r}: there are {', '.join(PROGRAMS)}")
    if chosen.samples < SAMPLES_MIN:
        parser.error(f"--samples must be at least {SAMPLES_MIN}")
    if not chosen.directory.is_dir():
        parser.error(f"{chosen.directory} is no directory")
    options = Options(
        directory=chosen.directory,
        quick=chosen.quick,
        samples=chosen.samples,
        rows=chosen.rows,
        transaction_rows=chosen.transaction_rows,
        postgres=chosen.postgres,
        note=_note,
    )
    machine = fingerprint(options.directory)
    about = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "packages")
    print(about, flush=True)
    results = []
    for name in chosen.names or PROGRAMS:
        try:
            results.append(_program(name)(options))
        except EventLogError as error:
            print(f"Error: {name}: {error}", file=sys.stderr)
            if error.hint:
                print(f"Hint: {error.hint}", file=sys.stderr)
            return 1
        print(f"\n{render(results[-1])}", flush=True)
    if chosen.json is not None:
        found = {
            "date": datetime.now(UTC).date().isoformat(),
            "quick": options.quick,
            "machine": machine,
            "results": [result.to_map() for result in results],
        }
        text = json.dumps(found, indent=1, ensure_ascii=False)
        chosen.json.write_text(text + "\n", encoding="utf-8")
    return 0


def _program(name: str) -> Callable[[Options], Result]:
    run: Callable[[Options], Result] = import_module(f"benchmarks.{name}").run
    return run


def _note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=DESCRIPTION)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(PROGRAMS)} (all)")
    parser.add_argument("--quick", action="store_true", help="little data, for a first look")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")
    parser.add_argument(
        "--samples", metavar="N", type=int, default=SAMPLES_MIN, help="rounds, beside a warm-up"
    )
    parser.add_argument("--rows", metavar="N", type=int, help="rows or events of a sample")
    parser.add_argument(
        "--transaction-rows",
        metavar="N",
        type=int,
        default=1_000,
        help="capture, copy: rows of one",
    )
    parser.add_argument(
        "--postgres", metavar="MAJOR", type=int, default=18, help="capture, copy: 18 is the wheel's"
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where files are written; its disk is part of what is measured",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
