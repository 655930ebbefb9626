"""What a first capture made at the server before it failed, and how that is removed.

::

    publications ──▶ state `creating` in the log ──▶ slot ──▶ state behind it
                                                       │
    a failure up to here leaves nothing: slot, then    │  from here on the log knows the slot,
    publications, then the state are removed           │  and the next start goes on from it

Where the server cannot be asked any more whether it made the slot, the state stays in the log: the
next start, or `drop-source`, finds out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Self

from cdc.errors import CaptureError, SlotExists
from cdc.options import Event, Options, Report
from cdc.postgres.connection import Connection, connect
from cdc.postgres.publishing import publication, slot

LOOK_S = 0.02
HELD_S = 2.0
"""How long the server may take to let a slot go after it answered that it could not make it."""


@dataclass(slots=True, kw_only=True)
class Traces:
    """The publications that were not there before, and the slot once it was asked for.

    A temporary slot goes with its connection. `slot_was_there`: before all this. `asker` is the
    process of the server that is asked for the slot.
    """

    dsn: str
    report: Report
    publications: Sequence[str]
    slot: str
    slot_was_there: bool
    asker: int
    slot_asked: bool = False

    @classmethod
    def before(
        cls,
        conn: Connection,
        replication: Connection,
        dsn: str,
        name: str,
        options: Options,
        report: Report,
    ) -> Self:
        """Look at what is there before the source `name` is begun.

        `replication` is the connection that makes its slot.
        """
        names = () if options.publication is not None else publication.names_of(name)
        slot_name = options.slot or slot.slot_name(name)
        return cls(
            dsn=dsn,
            report=report,
            publications=[n for n in names if not publication.is_there(conn, n)],
            slot=slot_name,
            slot_was_there=slot.inspect(conn, slot_name) is not None,
            asker=replication.info.backend_pid,
        )

    def removed(self, error: BaseException) -> bool:
        """Remove them; False where the slot may be there still. `error` is what went wrong.

        A slot that somebody else made meanwhile stays, and so do the publications that it needs.
        """
        if isinstance(error, SlotExists):
            return True
        try:
            with closing(connect(self.dsn)) as conn:
                self._remove(conn)
        except CaptureError as fault:
            text = (
                f"what was made at the server may stay there: {fault}; remove it with "
                "`eventlog drop-source`"
            )
            self.report(Event(kind="warning", text=text))
        return not self.slot_asked

    def _remove(self, conn: Connection) -> None:
        found = self._is_there(conn)
        if found and self.slot_asked:
            slot.drop(conn, self.slot)
            found = False
        self.slot_asked = False
        if not found or self.slot_was_there:
            for name in self.publications:
                publication.drop(conn, name)

    def _is_there(self, conn: Connection) -> bool:
        """Whether there is a slot, once the server let go the one that it could not make."""
        deadline = time.monotonic() + HELD_S
        while (found := slot.inspect(conn, self.slot)) is not None:
            if found.active_pid != self.asker or time.monotonic() > deadline:
                return True
            time.sleep(LOOK_S)
        return False
