"""Requests about the tables of a source, and what became of them, in an event stream of the log.

::

    stream <source>-tables

    key            value
    table          {"ask": add | remove | recopy, "table", "hash": [...]}    written by whoever asks
    table          {"fact": see below, "table", "relation", "rows", "why", "hint",
                    "request": offset | null, "at": offset | null}           written by the capture
    relation/<id>  {"fact": "observed", "relation", "facts": {...}}          written by the capture

    fact      what happened
    joined    changes of the table are captured from here on
    copying   a copy of its rows began
    copied    the copy ended: every row below `at` is in the log
    left      it is captured no more, because that was asked for
    dropped   it is gone at the source
    refused   what was asked cannot be done, and why

A request is stored whether or not a capture runs, and carried out by the one that runs, or by the
next. A capture writes its facts in the commits that make them true, and keeps in its state, as
`requests`, the offset below which requests are handled. An observation is what a source remembers
about a relation between two looks at its catalog; None under its key ends it. The stream is an
event stream like any other: what is none of the above is passed over, retention may shorten it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal, get_args

from eventlog import Log
from eventlog.changes.event import Event
from eventlog.codecs.events import CODEC
from eventlog.engine import Append, StreamKind, batches_of, now_us
from eventlog.errors import UnknownStream, UsageError

Verb = Literal["add", "remove", "recopy"]
FactKind = Literal["joined", "copying", "copied", "left", "dropped", "refused"]

_OBSERVED = "observed"
_RELATION = "relation/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked about a table or a pattern, and where in the stream it stands.

    `hash` names columns whose values are replaced by a keyed hash, where a table is added.
    """

    offset: int
    verb: Verb
    table: str
    hash: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What happened to a table. `request` is the offset of the request that led to it.

    `at` is the end of the source's own stream when it happened; `relation` is the source's number
    of the table, None where there is no such table. `rows` counts those of a copy. `why` is the
    reason, `hint` the remedy of what was refused.
    """

    fact: FactKind
    table: str
    relation: int | None = None
    rows: int | None = None
    why: str = ""
    hint: str = ""
    request: int | None = None
    at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A fact with its place in the stream, and the time of its commit, in UTC."""

    offset: int
    time: datetime
    fact: Fact


def tables_stream(source: str) -> str:
    """The name of the event stream that holds requests and facts of a source."""
    return f"{source}-tables"


def require_captured(log: Log, source: str) -> dict[str, Any]:
    """The stored state of a source. Raises UsageError where this log never captured it."""
    state = log.source(source)
    if state is None:
        known = [
            row.name
            for row in log.engine.streams()
            if row.kind == "captured" and log.source(row.name) is not None
        ]
        there = f"the sources in it: {', '.join(known)}" if known else "it holds no source yet"
        raise UsageError(
            f"the source {source!r} was never captured into this log",
            hint=f"{there}; `eventlog capture --source {source}` begins one",
        )
    return state


def ask(
    log: Log,
    source: str,
    verb: Verb,
    table: str,
    *,
    hash: Sequence[str] = (),  # noqa: A002
) -> int:
    """Store a request durably; returns its offset in the source's stream of requests.

    Raises UsageError where the source was never captured into this log.
    """
    require_captured(log, source)
    value: dict[str, Any] = {"ask": verb, "table": table}
    if hash:
        value["hash"] = list(hash)
    return log.stream(tables_stream(source), create=True).append(value, key=table)


def pending(log: Log, source: str, start: int) -> list[Request]:
    """The requests at or above the offset `start`, in order."""
    found = (_request(event) for event in _events(log, source, start))
    return [request for request in found if request is not None]


class NewRequests:
    """Tells whether requests came since it was last asked, and reads only what is new."""

    def __init__(self, log: Log, source: str) -> None:
        self._log = log
        self._source = source
        self._seen = self._end()

    def came(self) -> bool:
        """Whether there are requests that the last call, or the beginning, did not know."""
        start, self._seen = self._seen, self._end()
        return self._seen > start and bool(pending(self._log, self._source, start))

    def _end(self) -> int:
        try:
            return self._log.engine.bounds(tables_stream(self._source))[1]
        except UnknownStream:
            return 0


def facts(log: Log, source: str, start: int = 0) -> list[Told]:
    """The facts at or above the offset `start`, in order, without observations."""
    found = (_told(event) for event in _events(log, source, start))
    return [told for told in found if told is not None]


def observations(log: Log, source: str) -> dict[int, dict[str, Any]]:
    """The latest observation of each relation that has one, by the relation's number."""
    latest: dict[int, dict[str, Any]] = {}
    for event in _events(log, source, 0):
        relation = _observed(event.key)
        if relation is None:
            continue
        latest.pop(relation, None)
        value = event.value
        seen = value.get("facts") if isinstance(value, dict) else None
        if isinstance(seen, dict) and value.get("fact") == _OBSERVED:
            latest[relation] = seen
    return latest


def creation(source: str) -> dict[str, StreamKind]:
    """What the plan of a commit that tells something has to create, if it is not there."""
    return {tables_stream(source): "events"}


def tell(
    source: str,
    said: Sequence[Fact] = (),
    observed: Mapping[int, Mapping[str, Any] | None] | None = None,
) -> Append:
    """Facts, and observations by relation, as an append for the commit that makes them true.

    The plan needs `creation(source)`, too. Raises UnsuitableValue for an observation that an event
    cannot hold; None instead of one ends that relation's.
    """
    encoder = CODEC.encoder()
    records = [encoder.one(fact.table, asdict(fact)) for fact in said]
    for relation, seen in (observed or {}).items():
        value = None
        if seen is not None:
            value = {"fact": _OBSERVED, "relation": relation, "facts": dict(seen)}
        records.append(encoder.one(f"{_RELATION}{relation}", value))
    batches = list(batches_of(CODEC.id, records, time_us=now_us()))
    return Append(stream=tables_stream(source), batches=batches)


def _events(log: Log, source: str, start: int) -> Iterator[Event]:
    """The events at or above `start` that retention left; nothing where there is no stream."""
    try:
        stream = log.stream(tables_stream(source))
    except UnknownStream:
        return
    if stream.kind == "events":
        end = stream.end
        yield from stream.read(min(max(start, stream.start), end), end)


def _request(event: Event) -> Request | None:
    """The request in an event. What asks for hashes that cannot be read is none: never copied."""
    value = event.value
    if not isinstance(value, dict) or value.get("ask") not in get_args(Verb):
        return None
    table, hashed = value.get("table"), value.get("hash", [])
    if not isinstance(table, str) or not isinstance(hashed, list):
        return None
    if not all(isinstance(column, str) for column in hashed):
        return None
    return Request(offset=event.offset, verb=value["ask"], table=table, hash=tuple(hashed))


def _told(event: Event) -> Told | None:
    value = event.value
    if not isinstance(value, dict) or value.get("fact") not in get_args(FactKind):
        return None
    if not isinstance(value.get("table"), str):
        return None
    known = {name: value[name] for name in _FIELDS if name in value}
    return Told(offset=event.offset, time=event.time, fact=Fact(**known))


def _observed(key: str | None) -> int | None:
    if key is None or not key.startswith(_RELATION):
        return None
    number = key.removeprefix(_RELATION)
    return int(number) if number.isdecimal() else None


_FIELDS = tuple(field.name for field in fields(Fact))
