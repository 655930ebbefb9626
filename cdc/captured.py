"""The tables of a source, as the log alone tells: what is captured of each, and how far it is.

::

    schema versions      columns, and where the history of a table begins
    facts                when it joined, was copied, left, was dropped, and why
    observations         the names of tables that have no record yet
    state                patterns, relations, copies at work, up to where requests are handled
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from cdc.answers import copies
from cdc.driver import SourceDriver
from cdc.requests import Request, Told, facts, observations, pending, require_captured
from eventlog import Log
from eventlog.changes.schema import Schema
from eventlog.changes.table_name import TableName


class TableState(StrEnum):
    """Where a table stands between joining and leaving."""

    JOINING = "joining"
    COPYING = "copying"
    STREAMING = "streaming"
    LEFT = "left"
    DROPPED = "dropped at the source"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedTable:
    """One relation. `since` is the offset of the source's stream where its history begins.

    `rows` counts those of the copy at work, of which `share` (0 to 1) is done, else those of the
    last one, which ended at `copied_at`. `why` is the reason of what was told last. Of `hashed`
    columns the log holds a hash.
    """

    relation: int
    table: str
    state: TableState
    share: float | None = None
    rows: int | None = None
    columns: tuple[str, ...] = ()
    hashed: tuple[str, ...] = ()
    inserts_only: bool = False
    since: int | None = None
    copied_at: datetime | None = None
    why: str | None = None

    @property
    def at_work(self) -> bool:
        """Whether its rows are being copied, or are about to be."""
        return self.state in (TableState.JOINING, TableState.COPYING)

    @property
    def stands(self) -> str:
        """Its state in words, with how much of a copy is done."""
        if self.state is TableState.COPYING and self.share is not None:
            return f"copying {percent(self.share)}"
        partly = self.inserts_only and self.state is TableState.STREAMING
        return str(self.state) + (", inserts only" if partly else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedTables:
    """All relations of a source by name, and what was asked for.

    `writer` is the process that captures now, None where none does. `patterns` are the tables that
    were asked for, `left_out` those that were removed although a pattern means them. `waiting` are
    the requests that no capture has handled yet.
    """

    writer: str | None
    patterns: tuple[str, ...]
    left_out: tuple[str, ...]
    waiting: tuple[Request, ...]
    tables: tuple[CapturedTable, ...]


def percent(share: float) -> str:
    """A share as people read it: `45 %`."""
    return f"{share * 100:.0f} %"


def captured_tables(log: Log, source: str, driver: SourceDriver) -> CapturedTables:
    """Read what the log tells of a source's tables.

    Raises UsageError where the source was never captured into this log.
    """
    state = require_captured(log, source)
    at_work = copies(state)
    told: dict[int, list[Told]] = {}
    for item in facts(log, source):
        if item.fact.relation is not None:
            told.setdefault(item.fact.relation, []).append(item)
    versions: dict[int, list[Schema]] = {}
    for number, stored in log.engine.schemas(source):
        schema = Schema.from_map(number, stored)
        versions.setdefault(schema.relation, []).append(schema)
    seen = observations(log, source)
    captured = state.get("relations")
    tables = [
        _table(
            relation,
            versions.get(relation, []),
            told.get(relation, []),
            seen.get(relation, {}),
            at_work.get(relation),
            driver,
            captured=captured is None or relation in captured,
        )
        for relation in {**versions, **told, **at_work, **dict.fromkeys(captured or ())}
    ]
    return CapturedTables(
        writer=log.engine.living_writer(source),
        patterns=tuple(state.get("tables") or ()),
        left_out=tuple(state.get("left_out") or ()),
        waiting=tuple(waiting(log, source, state)),
        tables=tuple(sorted(tables, key=lambda found: (found.table, found.relation))),
    )


def waiting(log: Log, source: str, state: Mapping[str, Any]) -> list[Request]:
    """The requests that no capture has handled yet."""
    return pending(log, source, int(state.get("requests") or 0))


def _table(
    relation: int,
    versions: list[Schema],
    told: list[Told],
    seen: Mapping[str, Any],
    cursor: Mapping[str, Any] | None,
    driver: SourceDriver,
    *,
    captured: bool,
) -> CapturedTable:
    newest = versions[-1] if versions else None
    last = told[-1].fact if told else None
    copied = _latest(told, "copied")
    joined = _latest(told, "joined")
    if cursor is not None:
        state = TableState.COPYING if cursor else TableState.JOINING
    elif last is not None and last.fact in _ENDS:
        state = _ENDS[last.fact]
    elif not captured:
        state = TableState.LEFT
    else:
        state = TableState.STREAMING
    if newest is not None:
        name = str(TableName(schema=newest.namespace, name=newest.name))
    elif last is not None:
        name = last.table
    elif "namespace" in seen and "name" in seen:
        name = str(TableName(schema=seen["namespace"], name=seen["name"]))
    else:
        name = f"relation {relation}"
    since = None if joined is None else joined.fact.at
    if since is None and versions:
        since = versions[0].offset
    rows = None if copied is None else copied.fact.rows
    return CapturedTable(
        relation=relation,
        table=name,
        state=state,
        share=None if cursor is None else driver.copied_share(cursor),
        rows=rows if cursor is None else cursor.get("rows"),
        columns=() if newest is None else newest.names,
        hashed=() if newest is None else tuple(c.name for c in newest.columns if c.hashed),
        inserts_only=newest is not None and newest.inserts_only,
        since=since,
        copied_at=None if copied is None else copied.time,
        why=(last.why if last is not None else None) or None,
    )


def _latest(told: Iterable[Told], kind: str) -> Told | None:
    found = [item for item in told if item.fact.fact == kind]
    return found[-1] if found else None


_ENDS = {"left": TableState.LEFT, "dropped": TableState.DROPPED}
