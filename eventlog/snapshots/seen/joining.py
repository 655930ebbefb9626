"""Joining instances by offset with what was known then, and with what came later.

Everything is found as places of records, for all instances at once; values are decoded afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventlog.changes.split import IS_ABSENT, IS_NULL
from eventlog.snapshots.seen.clock import Clock
from eventlog.snapshots.seen.codes import coded
from eventlog.snapshots.seen.counting import counted, stays_of
from eventlog.snapshots.seen.definitions import Condition, Count, Later, Lookup
from eventlog.snapshots.seen.gathering import TableRecords
from eventlog.snapshots.seen.linking import Walk, as_inserts, linked, linked_through_copies
from eventlog.snapshots.seen.lives import Lives, Rows, lives_of
from eventlog.snapshots.seen.planning import Question, Reference
from eventlog.snapshots.seen.standing import standing

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Holds = Callable[[Condition, Rows, I64, str], Mask]
"""Whether a condition is true of the rows that these records left; named in errors."""

BEGIN = -(2**63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Instances, and for each what belongs to it.

    `instances` are places of records in `rows`, ascending; `labels` too, and `lookups` in the
    rows that stand beside them; -1 is nothing.
    """

    rows: Rows
    instances: I64
    lookups: tuple[tuple[Rows, I64], ...]
    counts: tuple[I64, ...]
    labels: tuple[I64, ...]


def joined(
    question: Question,
    records: Mapping[int, TableRecords],
    *,
    start: int,
    clock: Clock,
    walks: Callable[[int], Walk],
    holds: Holds,
) -> Joined:
    """Find the instances at `start` and behind, and all that is asked of them."""
    tables = {
        relation: Rows(found, linked(found, walks(relation))) for relation, found in records.items()
    }
    rows = tables[question.schema.relation]
    own = rows.records
    instances = np.flatnonzero(np.isin(own.ops, question.ops) & (own.offsets >= start))
    if question.where is not None:
        instances = instances[holds(question.where, rows, instances, "where=")]
    lookups = []
    for looked in question.lookups:
        other = tables[looked.schema.relation]
        lookups.append((other, _looked_up(looked, rows, instances, other)))
    counts = [
        _counts(found, rows, instances, tables[found.schema.relation], clock)
        for found in question.counts
    ]
    labels: list[I64] = []
    if question.labels:
        links = linked_through_copies(own)
        lives = rows.lives if links is None else lives_of(links)
        labels = [_label(label, rows, instances, lives, holds) for label in question.labels]
    return Joined(
        rows=rows,
        instances=instances,
        lookups=tuple(lookups),
        counts=tuple(counts),
        labels=tuple(labels),
    )


def _looked_up(looked: Reference[Lookup], rows: Rows, instances: I64, other: Rows) -> I64:
    asked = [rows.values(place).take(instances) for place in looked.by]
    codes, asked_codes = coded([[other.values(place) for place in looked.on], asked])
    offsets = rows.records.offsets[instances]
    starts, ends = other.records.offsets, other.links.ends
    return standing(codes, starts, ends, asked=asked_codes, offsets=offsets)


def _counts(asked: Reference[Count], rows: Rows, instances: I64, other: Rows, clock: Clock) -> I64:
    definition = asked.asked
    by = [rows.values(place).take(instances) for place in asked.by]
    codes, asked_codes = coded([[other.values(place) for place in asked.on], by])
    links, lives = other.links, other.lives
    if definition.as_inserts:
        links = as_inserts(other.records)
        lives = lives_of(links)
    stays = stays_of(codes, other.records.offsets, links.ends, lives)
    offsets = rows.records.offsets[instances]
    born_from = np.full(len(offsets), BEGIN)
    if definition.over_us is not None:
        born_from = clock.later_than(clock.event_times(offsets) - definition.over_us)
    return counted(stays, other.records.offsets, asked=asked_codes, born_from=born_from, at=offsets)


def _label(label: Later, rows: Rows, instances: I64, lives: Lives, holds: Holds) -> I64:
    records = rows.records
    known = ~records.deletes
    if label.when is None:
        lengths = rows.values(records.schema.names.index(label.column)).lengths
        known &= (lengths != IS_NULL) & (lengths != IS_ABSENT)
    else:
        places = np.flatnonzero(known)
        known[places] = holds(label.when, rows, places, f"when= of {label.name!r}")
    return lives.next_with(known)[instances]
