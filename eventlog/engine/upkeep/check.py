"""The integrity check: walk the whole log, and report every violated invariant by its name.

::

    survey      all small rows in one read transaction: bounds, I2, I4, schemas, owners, counters
    streams     each stream up to its end at the survey: entries and payloads, I1, I6
    staged      the payloads of what is staged
    payloads    every stored payload is named by one entry

It goes on past damage, in short read transactions, beside living writers: what they add lies above
the bounds of the survey and is left to the next check.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from eventlog.engine import index, rows
from eventlog.engine.payload_store import get_body, stored_keys
from eventlog.engine.store import Store
from eventlog.engine.upkeep.check_rows import StagedKey, Survey, survey
from eventlog.engine.upkeep.check_stream import check_payload, shape_faults, walk_stream
from eventlog.engine.upkeep.violation import Report, Violation
from eventlog.errors import DamagedLog

if TYPE_CHECKING:
    from eventlog.engine.engine import Engine

__all__ = ["Progress", "Violation", "check"]

_BROKEN = (DamagedLog, struct.error)
"""The store itself is damaged: pages that cannot be read, keys that no version writes."""

Progress = Callable[[int, int], None]
"""Told of the records checked so far, and of all that will be."""


def check(engine: Engine, *, progress: Progress | None = None) -> list[Violation]:
    """Return every violated invariant; an empty list is a sound log.

    Reads the whole log once. A log whose format row cannot be read is not opened at all.
    """
    return check_store(engine.store, progress=progress)


def check_store(store: Store, *, progress: Progress | None = None) -> list[Violation]:
    """The same of an environment that is no open log (yet)."""
    report = Report()
    try:
        found = survey(store, report)
    except _BROKEN as error:
        report.add("store", "rows", f"{error}")
        return report.violations
    total = sum(state.end - state.row.start for state in found.streams.values())
    done = 0

    def step(records: int) -> None:
        nonlocal done
        done += records
        if progress is not None:
            progress(done, total)

    for state in found.streams.values():
        try:
            walk_stream(store, state, report, found.references, step)
        except _BROKEN as error:
            report.add("store", "index", f"{error}", stream=state.row.name)
    try:
        _staged(store, found.staged, report)
        _census(store, found, report)
    except _BROKEN as error:
        report.add("store", "payloads", f"{error}")
    return report.violations


def _staged(store: Store, staged: list[StagedKey], report: Report) -> None:
    for item in staged:
        with store.read() as txn:
            value = txn.get(item.key, db=store.staging)
            if value is None:
                continue  # Published or dropped since.
            entry = index.unpack(0, value, under=item.key)
            if index.UNFINISHED in entry.more:
                continue  # Its owner is about to store the rest; or died, and it will be dropped.
            body = get_body(store, txn, entry)
        for what in shape_faults(entry, value):
            report.add("staging", item.where, what, stream=item.stream)
        check_payload(entry, body, report, stream=item.stream, where=item.where)


def _census(store: Store, found: Survey, report: Report) -> None:
    ids = np.array(found.references.ids, np.uint64)
    order = np.argsort(ids, kind="stable")
    named = ids[order]
    parts = np.array(found.references.parts, np.uint64)[order]
    for payload_id in np.unique(named[1:][named[1:] == named[:-1]]).tolist():
        report.add("payload", f"payload {payload_id}", "more than one entry names it")
    given = found.payloads_below
    with suppress(DamagedLog), store.read() as txn:
        # Entries that were merged since the survey name payloads above its counter.
        given = max(given, int(rows.counters(store, txn).get("payload", 1)))
    for payload_id in named[named >= given].tolist():
        report.add("counters", f"payload {payload_id}", "an entry names it, above the counter")
    orphan = 0
    for keys in stored_keys(store, stop=found.payloads_below):
        stored = np.array(keys, np.uint64).reshape(-1, 2)
        places = np.searchsorted(named, stored[:, 0])
        for (payload_id, part), place in zip(keys, places.tolist(), strict=True):
            if place == len(named) or named[place] != payload_id:
                if payload_id != orphan:
                    report.add("payload", f"payload {payload_id}", "no readable entry names it")
                orphan = payload_id
            elif part >= parts[place]:
                report.add("payload", f"payload {payload_id}", f"part {part} is beyond its end")
