"""What the name of a table in a query means.

::

    shop.public.orders      the table of a stream, or of an alias, as of its cut
    public.orders, orders   the same where one captured stream only is asked; the first name of
                            a pair is a schema, and without one it is `public`
    clicks                  an event stream: the latest event of each key, as `snapshot.table` has
    clicks.events           all of its events below the cut, tombstones too

Quoted as in SQL where a name is not `[a-z_][a-z0-9_$]*`: `"late-predictions".events`. Letters count
as they are written; where no table has them so, and one only in other case, it is that.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eventlog.changes.schema import Schema
from eventlog.changes.table_name import ANY, TableName, quoted
from eventlog.errors import UnknownTable, UsageError
from eventlog.snapshots.snapshot import Part, Snapshot

EVERY = TableName(schema=ANY, name=ANY)
Kind = Literal["table", "latest", "events"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A stream's part of a snapshot under the name that the query gives it."""

    alias: str
    snapshot: Snapshot
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a path of the query means: a table of a place, or its events."""

    place: Place
    kind: Kind
    version: Schema | None

    @property
    def name(self) -> str:
        """What the snapshot calls it."""
        stream = quoted(self.place.part.stream)
        if self.version is None:
            return self.place.part.stream
        return f"{stream}.{quoted(self.version.namespace)}.{quoted(self.version.name)}"


def places(snapshot: Snapshot, others: Mapping[str, Snapshot]) -> dict[str, Place]:
    """Every part by its name in queries. Raises UsageError for a name that stands twice."""
    found = {
        name: Place(alias=name, snapshot=snapshot, part=part)
        for name, part in snapshot.parts.items()
    }
    for alias, other in others.items():
        if alias in found:
            raise UsageError(
                f"{alias!r} is a stream of this snapshot already", hint="take another alias"
            )
        if len(other.parts) != 1:
            raise UsageError(
                f"alias {alias!r} stands for {len(other.parts)} streams",
                hint="an alias names one stream at one cut: log.snapshot('shop', at=...)",
            )
        found[alias] = Place(alias=alias, snapshot=other, part=next(iter(other.parts.values())))
    return found


def resolve(path: Sequence[str], places: Mapping[str, Place], own: Sequence[str]) -> Source:
    """What a path means; `own` are the streams that stand under their own names.

    Raises UnknownTable, naming what is near.
    """
    first = places.get(path[0])
    if first is not None and first.part.kind == "events":
        if len(path) == 1:
            return Source(place=first, kind="latest", version=None)
        if len(path) == 2 and path[1] == "events":
            return Source(place=first, kind="events", version=None)
    if len(path) == 3 and first is not None and first.part.kind == "captured":
        return _table(first, path[1], path[2])
    if len(path) < 3:
        captured = [places[name] for name in own if places[name].part.kind == "captured"]
        if len(captured) == 1:
            return _table(captured[0], *(("public", path[0]) if len(path) == 1 else path))
    raise _unknown(path, places)


def _table(place: Place, schema: str, name: str) -> Source:
    stop, history = place.part.cut.stop, place.part.history
    try:
        (found,) = history.named(TableName(schema=schema, name=name), stop)
    except UnknownTable:
        wanted = (schema.lower(), name.lower())
        alike = [
            other
            for other in history.named(EVERY, stop)
            if (other.namespace.lower(), other.name.lower()) == wanted
        ]
        if len(alike) != 1:
            raise
        found = alike[0]
    return Source(place=place, kind="table", version=found)


def _unknown(path: Sequence[str], places: Mapping[str, Place]) -> UnknownTable:
    written = ".".join(map(quoted, path))
    known = _known(places)
    near = difflib.get_close_matches(written, known, n=3, cutoff=0.5)
    if len(path) == 3 and path[0] not in places:
        cause = f"{path[0]!r} is no stream of this query"
        streams = ", ".join(places) or "none"
        return UnknownTable(
            f"there is no table {written}: {cause}",
            hint=f"its streams are {streams}; give others a cut, too: --at {path[0]}=end"
            + (f". Near is {', '.join(near)}" if near else ""),
        )
    shown = near or known[:5]
    return UnknownTable(
        f"there is no table {written} in this query's streams",
        hint=f"there is {', '.join(shown)}" if shown else "its streams have no tables yet",
    )


def _known(places: Mapping[str, Place]) -> list[str]:
    """Every name that a query could write."""
    known = []
    for alias, place in places.items():
        if place.part.kind == "events":
            known += [quoted(alias), f"{quoted(alias)}.events"]
            continue
        try:
            tables = place.part.history.named(EVERY, place.part.cut.stop)
        except UnknownTable:
            continue
        known += [f"{quoted(alias)}.{quoted(t.namespace)}.{quoted(t.name)}" for t in tables]
    return known
