"""Which digest a transform's name and version stand for, once and for all, in the log itself.

The event stream `transforms` has one event per version, under the key `name@version`::

    {"v": 1, "name", "version", "digest", "kind": "function" | "estimator", "source"}

`source` is what the digest was taken over, so that years later the log can still say what was run.
An event's id is its key, so that two processes that register at once store one of the two.

Nothing of the stream is dropped: without its event a version could be given another source. Earlier
releases let retention drop some. Of these versions the ids still tell that they were there, and
they are refused, as what they were is not known any more.
"""

from __future__ import annotations

import difflib
from typing import Any

from eventlog.changes.event_view import EventView
from eventlog.codecs.events import CODEC
from eventlog.engine import Append, Engine, Plan, batch_of_one, now_us
from eventlog.errors import TransformRefused, UnknownStream, UsageError
from eventlog.snapshots.transform.definition import Transform

STREAM = "transforms"
SHOWN_LINES = 3


def register(engine: Engine, transform: Transform, *, only_check: bool = False) -> None:
    """Compare the transform's digest with the one that is stored; where none is, store it.

    With `only_check` none is stored: a transform that fails must not take its version with it.
    Raises TransformRefused where its source is another one than that of the same version.
    """
    value = {
        "v": 1,
        "name": transform.name,
        "version": transform.version,
        "digest": transform.digest,
        "kind": transform.kind,
        "source": transform.source,
    }
    stored = stored_once(engine, transform.identity, value, fresh=not only_check)
    if stored is not None and stored["digest"] != transform.digest:
        raise TransformRefused(
            f"transform {transform.identity} is not what this log knows under that version"
            + _change(stored["source"], transform.source),
            hint=f"raise its version to {transform.version + 1}, or restore its source",
        )


def stored_once(
    engine: Engine, key: str, value: dict[str, Any], *, fresh: bool = True
) -> dict[str, Any] | None:
    """The event of stream `transforms` under that key; where there is none, it is stored now.

    Without `fresh` none is stored, and None returned. Raises TransformRefused where there was one
    that retention has dropped.
    """
    found = _stored(engine, key)
    if found is None and fresh:
        engine.create_stream(STREAM, "events")
        record = CODEC.encoder().one(key, value)
        batch = batch_of_one(CODEC.id, record, time_us=now_us())
        engine.commit(Plan(appends=[Append(stream=STREAM, batches=[batch], ids=(key,))]))
        found = _stored(engine, key)
        if found is None:
            raise TransformRefused(
                f"this log knew {key!r}, and what it was has been dropped from stream {STREAM!r}",
                hint="take another version of the transform, and for a derived stream another name",
            )
    return found


def require_no_registry(stream: str) -> None:
    """Raise UsageError for the stream of which nothing may be dropped."""
    if stream == STREAM:
        raise UsageError(
            f"stream {STREAM!r} says which source each version of a transform had, for good",
            hint="it is small; retention is for the streams beside it",
        )


def _stored(engine: Engine, key: str) -> dict[str, Any] | None:
    """The first event under the key: what was registered stays."""
    try:
        low, end = engine.bounds(STREAM)
    except UnknownStream:
        return None
    events = EventView(engine, STREAM).items(low, end)
    return next((event.value for event in events if event.key == key and event.value), None)


def _change(before: str, after: str) -> str:
    """The first lines that differ."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    changed = [line.strip() for line in lines if line[:3] not in ("---", "+++", "@@ ")]
    shown = [line for line in changed if line.strip("+- ")][:SHOWN_LINES]
    return f": {' | '.join(line[:80] for line in shown)}" if shown else ""
