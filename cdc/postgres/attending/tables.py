"""What is done to the captured tables: they join, move, leave, and are copied again.

Each step is done by the streaming thread, which owns batches, versions and state, and returns once
it is durable. What must not be forgotten is stored before the source is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from cdc.options import Event, Report
from cdc.postgres import locks
from cdc.postgres.attending.link import Link
from cdc.postgres.attending.samples import Sample, Samples
from cdc.postgres.connection import Connection
from cdc.postgres.copy.copies import AGAIN
from cdc.postgres.publishing import column_list, publication
from cdc.postgres.schema.catalog import Table
from cdc.postgres.schema.observation import TableFacts, observe
from cdc.postgres.setup import warn_inserts_only
from cdc.postgres.state import SourceState
from cdc.requests import Fact, FactKind, tell
from eventlog.changes.schema import Schema
from eventlog.changes.table_name import TableName
from eventlog.errors import EventLogError


class Copy(Protocol):
    """Has a table copied from the start."""

    def __call__(self, relation: int, why: str, request: int | None = None) -> None: ...


class Tables:
    """The captured tables, as the attendant handles them.

    `known` is what was last seen of each in the catalog, by relation.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        samples: Samples,
        *,
        copy: Copy,
        drop_copy: Callable[[int], None],
        report: Report,
    ) -> None:
        """`name`: the source's. `copy` and `drop_copy` add and remove a copy to be done."""
        self.known: dict[int, TableFacts] = {}
        self.samples = samples
        self._name = name
        self._link = link
        self._streamer = link.streamer
        self.copy = copy
        self._drop_copy = drop_copy
        self._report = report

    @property
    def state(self) -> SourceState:
        """The source's state as it is now."""
        return self._streamer.state

    def join(self, conn: Connection, tables: Sequence[Table], request: int | None = None) -> None:
        """Capture these tables from now on, and copy their rows.

        That they are to be copied is stored first: a table in the publication is never forgotten.
        """
        if not tables:
            return
        column_list.require_publishable(conn, tables)
        oids = [table.oid for table in tables]
        if self._streamer.state.publications_ours:
            # Before anything is stored that would have to be taken back.
            locks.require_open(conn, oids)
        facts = observe(conn, oids, self._streamer.state.publications)
        self.known.update(facts)

        def joined(state: SourceState) -> SourceState:
            assert state.relations is not None
            return replace(state, relations=tuple(dict.fromkeys((*state.relations, *oids))))

        def put() -> None:
            for oid in oids:
                self._streamer.copies.put(oid, {})

        self._link.ask(put)
        self.store(joined, observed={oid: facts[oid].to_map() for oid in oids if oid in facts})
        if self._streamer.state.publications_ours:
            try:
                publication.add(conn, self._streamer.state.publications, tables)
            except EventLogError:
                self._forget(oids)
                raise
        said = []
        for table in tables:
            name = str(table.table)
            said.append(joined_fact(name, table.oid, request, at=self._streamer.end()))
            self._report(Event(kind="joined", text=f"{name} is captured now", table=name))
            if not table.updatable:
                warn_inserts_only((table,), self._report)
            self.copy(table.oid, "it joined", request)
        self.store(None, said)

    def _forget(self, oids: Sequence[int]) -> None:
        """Take back that tables are captured: they could not be added to the publication."""

        def forgotten(state: SourceState) -> SourceState:
            kept = tuple(oid for oid in state.relations or () if oid not in oids)
            return replace(state, relations=kept)

        def drop() -> None:
            for oid in oids:
                self._streamer.copies.drop(oid)

        self._link.ask(drop)
        self.store(forgotten, observed=dict.fromkeys(oids))

    def move(self, conn: Connection, table: Table, sample: Sample) -> None:
        """Capture a table through the other publication: its replica identity came or went."""
        publication.add(conn, self._streamer.state.publications, [table])
        if table.updatable:
            self.renew(table.oid, sample.offset, "its updates and deletes were not seen before")
        else:
            self.mark([table.oid], sample.offset, "it lost its replica identity")
            warn_inserts_only((table,), self._report)

    def take_back(self, conn: Connection, table: Table) -> None:
        """Capture a table again that somebody took out of our publications."""
        publication.add(conn, self._streamer.state.publications, [table])
        reason = "it was taken out of the publication for a while"
        self.renew(table.oid, self.samples.offset, reason)

    def leave(
        self,
        oids: Sequence[int],
        sample: Sample,
        *,
        fact: FactKind,
        reason: str,
        request: int | None = None,
        also: Callable[[SourceState], SourceState] = lambda state: state,
    ) -> None:
        """Capture these relations no more."""
        book, copies = self._streamer.book, self._streamer.copies
        gone = set(oids)

        def left(state: SourceState) -> SourceState:
            kept = tuple(oid for oid in state.relations or () if oid not in gone)
            return also(replace(state, relations=kept))

        def drop() -> None:
            for oid in oids:
                copies.drop(oid)

        names = {oid: self._link.ask(partial(book.schema, oid)) for oid in oids}
        self.mark(oids, sample.offset, reason)
        self._link.ask(drop)
        said = []
        for oid in oids:
            self.known.pop(oid, None)
            self._drop_copy(oid)
            known = names[oid]
            name = f"relation {oid}" if known is None else str(_name(known))
            said.append(
                Fact(
                    fact=fact,
                    table=name,
                    relation=oid,
                    why=reason,
                    request=request,
                    at=self._streamer.end(),
                )
            )
            self._report(Event(kind=fact, text=f"{name} is not captured any more: {reason}"))
        self.store(left, said, observed=dict.fromkeys(oids))

    def drop_copies_but_of(self, captured: Collection[int]) -> None:
        """Give up the copies of tables that are not captured any more."""
        copies = self._streamer.copies
        for relation in self._link.ask(lambda: [r for r in copies.cursors if r not in captured]):
            self._link.ask(partial(copies.drop, relation))
            self._drop_copy(relation)

    def renew(self, relation: int, since: int, reason: str) -> None:
        """Note that rows of a table changed unseen, and copy it again."""
        self.mark([relation], since, reason, again=True)
        if self._streamer.state.copied:
            self.copy(relation, reason)

    def mark(self, oids: Sequence[int], since: int, reason: str, *, again: bool = False) -> None:
        """Note that the rows of tables changed unseen, after the stream's offset `since`.

        With `again` the same commit stores that they are to be copied again.
        """
        book, copies = self._streamer.book, self._streamer.copies

        def mark() -> None:
            for oid in oids:
                book.mark_unseen(oid, since=since, reason=reason)
                if again:
                    copies.again(oid)

        self._link.ask(mark)
        self.store()

    def copy_again(self, relation: int, reason: str, request: int) -> None:
        """Copy a table from the start because that was asked for."""
        self._link.ask(partial(self._streamer.copies.put, relation, AGAIN))
        self.store()
        self.copy(relation, reason, request)

    def store(
        self,
        new: Callable[[SourceState], SourceState] | None = None,
        said: Sequence[Fact] = (),
        *,
        observed: Mapping[int, Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Change the state and say facts, in one commit; returns when that is durable."""
        appends = [tell(self._name, said, observed)] if said or observed else []
        self._link.wait(self._link.ask(lambda: self._streamer.change(new, *appends)))


def joined_fact(name: str, relation: int | None, request: int | None, *, at: int | None) -> Fact:
    """That a table joined, or, without a relation, had joined before."""
    why = "" if relation is not None else "it was captured already"
    return Fact(fact="joined", table=name, relation=relation, why=why, request=request, at=at)


def _name(schema: Schema) -> TableName:
    return TableName(schema=schema.namespace, name=schema.name)
