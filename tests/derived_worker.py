"""A process that derives a stream and may be killed: `python -m tests.derived_worker LOG`."""

from __future__ import annotations

import sys

import eventlog
from tests.transform_examples import taxed

OUTPUT = "features"


def main(path: str) -> None:
    """Derive in small batches, saying when it begins."""
    with eventlog.open(path) as log:
        derived = log.derive(taxed, source="shop", table="public.orders", output=OUTPUT)
        print("ready", flush=True)
        derived.run(until="current", max_rows=7)


if __name__ == "__main__":
    main(sys.argv[1])
