"""Make the golden bundle: a manifest and its tables, at fixed times, of a log with a fixed id.

    python -m tests.golden.make_bundle        writes `bundle` beside this file

Every version must verify it, whatever its pyarrow and numpy are, and save the same manifest of the
log that `write` makes. It was made with pyarrow 26.0 and numpy 2.4.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from unittest import mock

import eventlog
from eventlog.snapshots.manifests.bundle import write_bundle
from tests.fix_log import (
    BOOL,
    BYTEA,
    FLOAT,
    INT,
    NUMERIC,
    TIMESTAMPTZ,
    MadeSource,
    column,
    delete,
    insert,
    update,
)
from tests.golden.make import HERE, NOW_US, frozen

BUNDLE = HERE / "bundle"
CUTS = {"shop": "end", "clicks": 4}


def write(log: eventlog.Log) -> None:
    """A keyed table of many types, a heap, and events with and without keys."""
    source = MadeSource(log, "shop")
    orders = source.table(
        "orders",
        column("id", INT, key=True),
        column("amount", NUMERIC, typmod=(12 << 16) + 2 + 4),
        column("note"),
        column("paid", BOOL),
        column("raw", BYTEA),
        column("at", TIMESTAMPTZ),
        column("weight", FLOAT),
    )
    heap = source.table('Odd "name"', column("a"), relation=16_500, identity="f")
    when = "2026-01-31 12:00:00.123456+00"
    source.commit(
        insert(orders, 1, "12.50", "one", "t", r"\x00ff", when, "1.5"),
        insert(orders, 2, None, None, None, None, None, None),
        insert(orders, 3, "0.00", "", "f", r"\x", when, "-0"),
        insert(heap, "twice"),
        insert(heap, "twice"),
    )
    source.commit(
        update(orders, 1, "13.00", "Ünïcode ✓", "f", r"\x01", when, "NaN"),
        delete(orders, 3, *[None] * 6),
    )
    source.close()
    clicks = log.stream("clicks", create=True)
    with mock.patch("eventlog.outbox.now_us", return_value=NOW_US):
        clicks.append_many(
            [{"user": 7, "list": [1, None, 2.5]}, "text", True, {"user": 8}, "beyond the cut"],
            keys=["7", None, "8", "7", "9"],
        )


def save(log: eventlog.Log, path: Path) -> None:
    """The golden manifest."""
    log.snapshot(CUTS).save(path)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, frozen():
        manifest = Path(scratch) / "manifest.json"
        with eventlog.open(Path(scratch) / "log", create=True) as log:
            write(log)
            save(log, manifest)
            shutil.rmtree(BUNDLE, ignore_errors=True)
            write_bundle(log.load_snapshot(manifest), BUNDLE)


if __name__ == "__main__":
    main()
