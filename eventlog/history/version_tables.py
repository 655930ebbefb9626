"""The versions of a row, or the events of a key, as Arrow tables: one row each, with its life."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from eventlog.changes.arrow import Conversion
from eventlog.changes.change_view import ChangeView
from eventlog.changes.decoding import Located, json_text
from eventlog.changes.event import Event
from eventlog.changes.runs import ItemRun
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine

if TYPE_CHECKING:
    import pyarrow as pa


def row_versions(
    engine: Engine,
    history: SchemaHistory,
    table: Schema,
    found: Iterable[tuple[Located, int]],
    stop: int,
    conversion: Conversion,
) -> pa.Table:
    """Columns `_offset`, `_op`, `_time`, `_life`, then those of the table's version `table`.

    Raises ValueDoesNotFit, UnknownColumn, UsageError.
    """
    import pyarrow as pa

    items, lives = [], []
    for located, life in found:
        items.append(located)
        lives.append(life)
    run = ItemRun(items=items, version=lambda item: item.schema)
    view = ChangeView(engine, history, table=table)
    shown = view.arrow([run] if items else [], stop, conversion, own=False)
    return shown.add_column(3, "_life", pa.array(lives, pa.int64()))


def event_versions(found: Iterable[tuple[Event, int]]) -> pa.Table:
    """Columns `_offset`, `_time`, `_life`, `key`, and `value` as JSON text; null: a tombstone."""
    import pyarrow as pa

    pairs = list(found)
    events = [event for event, _ in pairs]
    values = [None if event.value is None else json_text(event.value) for event in events]
    return pa.table(
        {
            "_offset": pa.array([event.offset for event in events], pa.int64()),
            "_time": pa.array([event.time for event in events], pa.timestamp("us", "UTC")),
            "_life": pa.array([life for _, life in pairs], pa.int64()),
            "key": pa.array([event.key for event in events], pa.string()),
            "value": pa.array(values, pa.string()),
        }
    )
