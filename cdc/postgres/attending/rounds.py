"""One round of the attendant: what was asked for, what the catalog shows, and what follows from it.

::

    requests ─────▶ tables join, leave, or are copied again
    membership ───▶ new tables that a pattern means, dropped ones, identities that came or went
    observation ──▶ rows that changed in a way the stream does not show: marked, and copied again
    names ────────▶ a renamed table is known by its new name once the stream has passed the
                    renaming; a record tells where, so that the cuts before it keep the earlier one

What waits for a lock that somebody else holds on a table is left for a later round, which is told
at the end; the rest is done. A round begins with a sample of what the server has seen. If nothing
was wrong, that is the last moment at which everything was well, and the next trouble came after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cdc.errors import PermissionMissing, TableLocked
from cdc.options import Event, Options, Report
from cdc.postgres import locks
from cdc.postgres.attending import samples
from cdc.postgres.attending.answering import Answering
from cdc.postgres.attending.link import Link
from cdc.postgres.attending.tables import Tables
from cdc.postgres.connection import Connection
from cdc.postgres.copy.snapshot_reader import server_time_us
from cdc.postgres.copy.watermark import emit
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.publishing import membership
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.observation import TableFacts, judge, observe
from cdc.postgres.schema.table_spec import TableSpec
from cdc.requests import observations, pending
from eventlog import Log
from eventlog.changes.table_name import TableName
from eventlog.errors import EventLogError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Renamed:
    """A name that the log does not know yet, and which position the stream must have reached."""

    was: tuple[str, str]
    name: tuple[str, str]
    behind: Lsn


class Rounds:
    """What is known between two rounds, and the round itself."""

    def __init__(
        self,
        log: Log,
        name: str,
        link: Link,
        options: Options,
        tables: Tables,
        report: Report,
    ) -> None:
        self._log = log
        self._name = name
        self._link = link
        self._streamer = link.streamer
        self._tables = tables
        self._answering = Answering(log, name, link, tables, options, report)
        self._report = report
        self._begun = False
        self._told: set[str] = set()
        self._locked: TableLocked | None = None
        self._renamed: dict[int, _Renamed] = {}

    @property
    def unsettled(self) -> bool:
        """Whether a table's new name waits for the stream: another round should come soon."""
        return bool(self._renamed)

    def make(self, conn: Connection) -> None:
        """Make a round. Raises Stopped, and CaptureError where the connection is lost.

        Raises TableLocked, naming who holds the lock, where something is left for a later round.
        """
        self._locked = None
        self._make(conn)
        if self._locked is not None:
            raise self._locked

    def _make(self, conn: Connection) -> None:
        sample = samples.take(conn, self._streamer.end)
        if not self._begun:
            self._begun = True
            for oid, facts in observations(self._log, self._name).items():
                self._tables.known[oid] = TableFacts.from_map(facts)
        if self._streamer.state.relations is None:
            self._know_relations(conn)
        for request in pending(self._log, self._name, self._streamer.state.requests):
            try:
                self._answering.answer(conn, request)
            except TableLocked as error:
                # Requests are handled in their order: the ones behind it wait as well.
                meant = catalog.tables_now(conn, [TableSpec.parse(request.table)])
                self._left(conn, error, meant)
                break
        found = membership.look(conn, self._streamer.state)
        if found.gone:
            reason = "it was dropped at the source"
            self._tables.leave(found.gone, sample, fact="dropped", reason=reason)
        if found.withdrawn:
            reason = "the publication sends it no more, or as a part of another table"
            self._tables.leave(found.withdrawn, sample, fact="left", reason=reason)
        captured = self._streamer.state.relations or ()
        for relation, reason in self._link.ask(self._take_doubts):
            if relation in captured:
                self._tables.copy(relation, reason)
        # The stream may tell of a table that is not captured any more.
        self._tables.drop_copies_but_of(captured)
        for table in found.joining:
            self._guarded(conn, table, partial(self._tables.join, conn, [table]))
        for table in found.moving:
            self._guarded(conn, table, partial(self._tables.move, conn, table, sample))
        for table in found.lost:
            self._guarded(conn, table, partial(self._tables.take_back, conn, table))
        self._rename(conn, self._observe(conn))
        self._tables.samples.add(sample)
        self._link.ask(lambda: self._streamer.remember(looked=sample.offset))

    def _take_doubts(self) -> list[tuple[int, str]]:
        assembler = self._streamer.assembler
        doubts, assembler.doubts = assembler.doubts, []
        return doubts

    def _guarded(self, conn: Connection, table: Table, work: Callable[[], None]) -> None:
        """Do something about one table; a fault of it is told once, and is no fault of others."""
        try:
            work()
        except TableLocked as error:
            self._left(conn, error, [table])
        except EventLogError as error:
            if conn.closed:
                raise
            text = f"{table.table} is not captured as it should be: {error}"
            if text not in self._told:
                self._told.add(text)
                self._report(Event(kind="warning", text=text, table=str(table.table)))

    def _left(self, conn: Connection, error: TableLocked, tables: Sequence[Table]) -> None:
        """Leave something for a later round."""
        self._locked = locks.explained(conn, error, [table.oid for table in tables])

    def _know_relations(self, conn: Connection) -> None:
        """A log of the first version does not say which tables it captures: all that are sent."""
        members = membership.publications_of(conn, self._streamer.state)
        oids = tuple(table.oid for group in members for table in group.tables)
        self._tables.store(lambda state: replace(state, relations=oids))

    def _observe(self, conn: Connection) -> Mapping[int, TableFacts]:
        """Find rows that changed unseen; returns what the catalog shows."""
        state = self._streamer.state
        found = observe(conn, state.relations or (), state.publications, before=self._tables.known)
        fresh = {oid: facts for oid, facts in found.items() if self._tables.known.get(oid) != facts}
        for oid, facts in fresh.items():
            before = self._tables.known.get(oid)
            reason = None if before is None else judge(before, facts)
            if reason is not None:
                self._tables.renew(oid, self._tables.samples.offset, reason)
        self._tables.known.update(fresh)
        if fresh:
            self._tables.store(None, observed={oid: facts.to_map() for oid, facts in fresh.items()})
        return found

    def _rename(self, conn: Connection, found: Mapping[int, TableFacts]) -> None:
        """Let tables be known by the names that the catalog has, without waiting for a change.

        What is in the stream below the WAL's end behind the look may still bear the earlier name.
        """
        names = {oid: (facts.namespace, facts.name) for oid, facts in found.items()}
        stale = self._link.ask(partial(self._other_names, names))
        self._renamed = {
            oid: seen
            for oid, seen in self._renamed.items()
            if (seen.was, seen.name) == stale.get(oid)
        }
        fresh = stale.keys() - self._renamed.keys()
        if fresh:
            behind = _passed_soon(conn)
            for oid in fresh:
                was, name = stale[oid]
                self._renamed[oid] = _Renamed(was=was, name=name, behind=behind)
        if not self._renamed:
            return
        reached = self._link.ask(lambda: self._streamer.assembler.reached)
        due = {oid: seen for oid, seen in self._renamed.items() if seen.behind <= reached}
        if not due:
            return
        self._tables.store()  # What came under the earlier names, and the position behind it.
        # In one commit: tables that swapped their names have no cut between.
        time_us, add = server_time_us(conn), self._streamer.renaming.add
        told = self._link.ask(
            lambda: [
                seen.name for oid, seen in due.items() if add(oid, seen.was, seen.name, time_us)
            ]
        )
        self._tables.store()
        self._renamed = {oid: seen for oid, seen in self._renamed.items() if oid not in due}
        for name in told:
            self._report_name(*name)

    def _other_names(
        self, names: Mapping[int, tuple[str, str]]
    ) -> dict[int, tuple[tuple[str, str], tuple[str, str]]]:
        """By relation, the name that the log knows and the one of now, where they differ."""
        found = {}
        for oid, name in names.items():
            known = self._streamer.book.schema(oid)
            if known is not None and (known.namespace, known.name) != name:
                found[oid] = (known.namespace, known.name), name
        return found

    def _report_name(self, namespace: str, name: str) -> None:
        table = str(TableName(schema=namespace, name=name))
        text = f"{table} is the name of a captured table now"
        self._report(Event(kind="renamed", text=text, table=table))


def _passed_soon(conn: Connection) -> Lsn:
    """A position behind all that was committed by now, which the stream comes to, if all idles too.

    A message of our own leads it there, which has no offset; who may not write one waits for others
    to write.
    """
    try:
        return emit(conn, "renamed")
    except PermissionMissing:
        return samples.take(conn, lambda: 0).end
