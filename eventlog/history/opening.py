"""Which kind of history is asked for: of a row of a table, or of a key of events."""

from __future__ import annotations

from typing import Any

from eventlog.changes.cut import At, offset_of
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine
from eventlog.errors import UsageError
from eventlog.history.event_history import EventHistory
from eventlog.history.key_index import Progress
from eventlog.history.row_history import RowHistory


def history_of(
    engine: Engine,
    history: SchemaHistory,
    table: str | None,
    key: Any,
    *,
    start: At | None = None,
    stop: At | None = None,
    progress: Progress | None = None,
) -> RowHistory | EventHistory:
    """The history of a key in `[start, stop)`.

    Raises UsageError where the table is missing, or named for an event stream.
    """
    stream = history.stream
    first, last = engine.checked_range(
        stream,
        None if start is None else offset_of(engine, stream, start),
        None if stop is None else offset_of(engine, stream, stop),
    )
    if key is None:
        raise UsageError("a history is that of a key", hint="name it with key=")
    if engine.stream(stream).kind == "events":
        if table is not None:
            raise UsageError(
                f"stream {stream!r} holds events, which have no tables",
                hint="leave out the table: its keys are those of the events",
            )
        return EventHistory(engine, history, key, first, last, progress=progress)
    if table is None:
        known = sorted(schema.table for schema in history.in_force(last).values())
        raise UsageError(
            f"stream {stream!r} holds tables, and a key is that of one of them",
            hint=f"name it: {', '.join(known[:5]) or 'there is none yet'}",
        )
    return RowHistory(engine, history, table, key, first, last, progress=progress)
