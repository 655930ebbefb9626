"""An embedded event log with Postgres change data capture.

::

    log = eventlog.open("eventlog-data")
    for change in log.stream("shop").read(table="public.orders"): ...
    log.snapshot("shop", at="2026-01-31").table("public.orders").to_pandas()

`Log` and `Stream` may be shared among threads; consumers, iterators and transactions may not.
Names load on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventlog.changes.change import ABSENT, UNCHANGED, Change, Op
    from eventlog.changes.event import Event
    from eventlog.changes.records import Batch, Records
    from eventlog.consumer import Consumer
    from eventlog.errors import EventLogError
    from eventlog.log import ConsumerInfo, Log, StreamInfo
    from eventlog.log import open_log as open  # noqa: A004
    from eventlog.snapshots.manifests.opened_bundle import open_bundle
    from eventlog.snapshots.seen.definitions import count, later, lookup
    from eventlog.snapshots.snapshot import Snapshot
    from eventlog.snapshots.table import Table
    from eventlog.snapshots.transform import Transform, transform
    from eventlog.stream import Stream
    from eventlog.transaction import Transaction

__all__ = [
    "ABSENT",
    "UNCHANGED",
    "Batch",
    "Change",
    "Consumer",
    "ConsumerInfo",
    "Event",
    "EventLogError",
    "Log",
    "Op",
    "Records",
    "Snapshot",
    "Stream",
    "StreamInfo",
    "Table",
    "Transaction",
    "Transform",
    "count",
    "later",
    "lookup",
    "open",
    "open_bundle",
    "transform",
]

_HOMES = {
    "ABSENT": "eventlog.changes.change",
    "UNCHANGED": "eventlog.changes.change",
    "Batch": "eventlog.changes.records",
    "Change": "eventlog.changes.change",
    "Consumer": "eventlog.consumer",
    "ConsumerInfo": "eventlog.log",
    "Event": "eventlog.changes.event",
    "EventLogError": "eventlog.errors",
    "Log": "eventlog.log",
    "Op": "eventlog.changes.change",
    "Records": "eventlog.changes.records",
    "Snapshot": "eventlog.snapshots.snapshot",
    "Stream": "eventlog.stream",
    "StreamInfo": "eventlog.log",
    "Table": "eventlog.snapshots.table",
    "Transaction": "eventlog.transaction",
    "Transform": "eventlog.snapshots.transform",
    "count": "eventlog.snapshots.seen.definitions",
    "later": "eventlog.snapshots.seen.definitions",
    "lookup": "eventlog.snapshots.seen.definitions",
    "open": "eventlog.log",
    "open_bundle": "eventlog.snapshots.manifests.opened_bundle",
    "transform": "eventlog.snapshots.transform",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(home), "open_log" if name == "open" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    # Without what this module imports for itself: a notebook completes names from these.
    private = {"Any", "TYPE_CHECKING", "annotations", "import_module"}
    return sorted({*globals(), *__all__} - private)
