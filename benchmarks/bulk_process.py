"""A greedy writer as a process of its own: `python -m benchmarks.bulk_process LOG STREAM`.

Appends calls of CALL_EVENTS without a pause, and prints a line for each, until it is ended.
"""

from __future__ import annotations

import sys

import eventlog
from benchmarks.load import Case, load_of

CALL_EVENTS = 100_000


def main(directory: str, stream: str) -> None:
    """Append for ever."""
    (values,) = load_of(Case(call=CALL_EVENTS, calls=1)).values
    with eventlog.open(directory) as log:
        while True:
            log.stream(stream).append_many(values)
            print(CALL_EVENTS, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
