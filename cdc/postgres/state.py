"""What the log keeps about a Postgres source, and whether a capture may go on from it (D7).

::

         capture starts             slot made              copy done
    (new) ─────────────▶ creating ────────────▶ copying ────────────▶ streaming ◀─┐ a restart
                            │  ▲                   │                   ▲  │       │ checks, and
                            └──┘ a restart drops   └── a restart ──────┘  └───────┘ goes on
                                 the slot              copies the rest beside the stream

`creating` is stored before the slot is made, so that a slot is never left behind unknown. All
states survive a crash; only the capture process that holds the stream's lock sets them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from cdc.errors import (
    OtherSystem,
    PositionBehindSlot,
    PositionBeyondServer,
    RestoredFromBackup,
    TimelineForked,
)
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.schema.catalog import ServerIdentity, TimelineSwitch

if TYPE_CHECKING:
    from cdc.postgres.publishing.slot import SlotState

PGOUTPUT = 3
"""The codec's number in docs/format.md."""


class Phase(StrEnum):
    """How far the source has come."""

    CREATING = "creating"
    COPYING = "copying"
    STREAMING = "streaming"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """A source's row in the log. `position`: everything that ends at or below it is stored.

    `tables` are the patterns that are captured now, `asked` those that the capture was begun with,
    `left_out` names that a pattern matches and that were removed. `relations` are the tables
    captured, by oid; None in a log of the first version, which did not know. `copies` holds how far
    each unfinished copy is, by the relation's oid as text: empty before its first row, `again`
    where it was copied before. Requests below the offset `requests` are handled. At offset
    `looked` no change was known that the stream does not show.

    `hashes` are the columns whose values are replaced, and `hash_check` tells their key from
    another.

    `codec` is that of its changes: it tells the types of a table without records.

    `partial`: the publication that the user gave leaves out updates, deletes or truncates, so that
    its tables have a history but no state (D13). `slot_ours` and `publications_ours` tell that the
    capture made them, so that it may drop them.
    """

    kind: str = "postgres"
    codec: int = PGOUTPUT
    phase: Phase
    slot: str
    slot_ours: bool
    temporary: bool
    publications: tuple[str, ...]
    publications_ours: bool
    partial: bool
    tables: tuple[str, ...]
    copied: bool
    system_id: int
    timeline: int
    position: Lsn
    asked: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    relations: tuple[int, ...] | None = None
    copies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    requests: int = 0
    looked: int = 0
    hashes: tuple[str, ...] = ()
    hash_check: str | None = None

    def to_map(self) -> dict[str, Any]:
        # Shallow, since this is made for every commit: what is nested is plain already.
        stored = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        stored["phase"] = str(self.phase)
        stored["position"] = int(self.position)
        return stored

    @classmethod
    def from_map(cls, stored: Mapping[str, Any]) -> Self:
        names = {f.name for f in dataclasses.fields(cls)}
        known = {name: value for name, value in stored.items() if name in names}
        known["phase"] = Phase(stored["phase"])
        known["position"] = Lsn(stored["position"])
        for name in ("publications", "tables", "asked", "left_out", "relations", "hashes"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        return cls(**known)


def require_same_history(
    state: SourceState, server: ServerIdentity, history: Sequence[TimelineSwitch]
) -> None:
    """Raise unless the server's WAL continues what the log holds (D7).

    Raises OtherSystem, PositionBeyondServer, TimelineForked.
    """
    require_same_system(state, server)
    if server.wal_position < state.position:
        raise PositionBeyondServer(
            f"the server's WAL ends at {server.wal_position}, below the log's position "
            f"{state.position}: the server was restored to an earlier time",
            hint=_ANEW,
        )
    if server.timeline == state.timeline:
        return
    switch = next((s for s in history if s.timeline == state.timeline), None)
    if switch is None or switch.end < state.position:
        where = "a timeline that is not in its history" if switch is None else str(switch.end)
        raise TimelineForked(
            f"the server is on timeline {server.timeline}, which left timeline {state.timeline} at "
            f"{where}, below the log's position {state.position}: it reuses positions that the "
            "log holds",
            hint=_ANEW,
        )


def require_same_system(state: SourceState, server: ServerIdentity) -> None:
    """Raise OtherSystem where another database cluster answers."""
    if server.system_id != state.system_id:
        raise OtherSystem(
            f"the server's system identifier is {server.system_id}, the log was captured from "
            f"{state.system_id}: this is another database cluster",
            hint="connect to the cluster that was captured, or capture this one under another "
            "source name",
        )


def require_not_behind(state: SourceState, confirmed: Lsn | None) -> None:
    """Raise PositionBehindSlot where the slot was moved beyond what the log holds (D7)."""
    if confirmed is not None and state.position < confirmed:
        raise PositionBehindSlot(
            f"slot {state.slot!r} was acknowledged up to {confirmed}, the log holds changes up to "
            f"{state.position}: what lies between is lost to this log",
            hint="if another copy of this log acknowledged them, use that one; else " + _ANEW,
        )


def require_untouched(state: SourceState, slot: SlotState | None, *, generation: int) -> None:
    """Raise RestoredFromBackup unless the slot stands exactly where the restored log does.

    `generation` is the one that began when the backup was opened. Only a slot that nobody uses, and
    that was acknowledged up to the log's position, shows that nothing was captured since.
    """
    if state.phase is not Phase.STREAMING:
        found = "the copy of its tables was not done yet"
    elif slot is None:
        found = f"its slot {state.slot!r} is not on the server any more"
    elif slot.active:
        found = f"its slot {slot.name!r} is in use by pid {slot.active_pid} of the server"
    elif slot.confirmed_flush_lsn == state.position:
        return
    else:
        found = (
            f"its slot {slot.name!r} was acknowledged up to {slot.confirmed_flush_lsn}, and the "
            f"backup ends at {state.position}"
        )
    raise RestoredFromBackup(
        f"this log is a backup, opened as generation {generation}, and {found}: the original log "
        "may have captured changes since, which it alone has, or may capture now",
        hint="go on with the original log if it is there; else capture the source into this log "
        "under another name, and when the original is gone for good remove its slot and "
        "publications with `eventlog drop-source`; what this log holds stays readable",
    )


_ANEW = (
    "remove slot and publications with `eventlog drop-source` and capture the source anew under "
    "another name; what this log holds stays readable"
)
