"""The live pass: which records hold the latest version of a row at the cut, and what is known.

The log is walked in spans, in each of which rows are told apart by the same columns. Where a schema
version changes that, the rows that live are read once, and told apart anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from eventlog.changes.change import RESETS
from eventlog.changes.schema import Schema
from eventlog.changes.split import Places
from eventlog.snapshots.state.facts import Facts
from eventlog.snapshots.state.hashing import KeyHasher
from eventlog.snapshots.state.identity import identity_of, is_kept
from eventlog.snapshots.state.moves import Segments
from eventlog.snapshots.state.offset_set import OffsetSet
from eventlog.snapshots.state.row_pass import RowPass, Source
from eventlog.snapshots.state.span import Budget, Pass, Share, TooManyKeys
from eventlog.snapshots.state.steps import Rare, Step
from eventlog.snapshots.state.unsent import Unsent, merged, without_aliases

Progress = Callable[[int, int], None]
"""Called with how many offsets are done, and how many there are in all."""

_SHARES = 4
"""How many shares a share is parted into whose keys are too many."""


class LivePass:
    """Folds one relation over `[source.start, stop)`; `begin` where the source has a base.

    `version` is then the one of the last record, `records` how many were read.
    """

    def __init__(
        self,
        source: Source,
        *,
        low: int,
        stop: int,
        as_inserts: bool,
        budget: Budget,
        progress: Progress | None = None,
    ) -> None:
        self.facts = Facts()
        self.segments = Segments()
        self.live = OffsetSet(low, stop)
        self.unsent = Unsent.none()
        self.records = 0
        self.version: Schema | None = None
        self._source = source
        self._low = low
        self._stop = stop
        self._as_inserts = as_inserts
        self._budget = budget
        self._progress = progress
        self._hasher = KeyHasher()

    def begin(self, schema: Schema, facts: Facts, offsets: Iterable[Places]) -> None:
        """Take over what a base knows, and its rows."""
        self.segments.add(self._low, schema)
        self.facts = facts
        for some in offsets:
            self.live.add(some)

    def run(self, target: Schema) -> None:
        """Walk to the stop, and move what lives to the version `target`."""
        start, schema = self._source.start, self.segments.last
        if schema is not None and not self._is_touched():
            start = self._stop  # What the base has is the state.
        while start < self._stop:
            start, following = self._span(start, schema)
            if following is not None:
                self._cross(start, following)
                schema = following
        self.version = self.segments.last
        if self.segments.last is not target:
            kept = is_kept(self.segments.last, target, as_inserts=self._as_inserts)
            self._cross(self._stop, target)
            if not kept:
                self._span(self._stop, target)

    def _is_touched(self) -> bool:
        """Whether any record concerns the relation."""
        found = self._source.steps.walk(self._source.start, self._stop, keep=True)
        return any(part.steps for part in found)

    def _cross(self, offset: int, schema: Schema) -> None:
        """Go on under another version."""
        before = self.segments.last
        if before is not None:
            self.unsent = self.unsent.moved(before, schema)
        self.segments.add(offset, schema)

    def _span(self, start: int, schema: Schema | None) -> tuple[int, Schema | None]:
        """Fold from `start` until rows are told apart otherwise, or to the stop."""
        shares = 1
        facts, segments, records = self.facts, self.segments.copy(), self.records
        while True:
            try:
                return self._in_shares(start, schema, shares)
            except TooManyKeys:
                shares *= _SHARES
                self.facts, self.segments, self.records = facts, segments.copy(), records

    def _in_shares(
        self, start: int, schema: Schema | None, shares: int
    ) -> tuple[int, Schema | None]:
        identity = identity_of(schema, as_inserts=self._as_inserts)
        begun, unsent, segments = self.live, self.unsent, self.segments.copy()
        live = begun if identity.kind == "inserted" else OffsetSet(self._low, self._stop)
        stop, following = self._stop, None
        found, crossed = [], []
        for index in range(shares):
            one = Pass(
                schema,
                identity,
                share=Share(number=index, of=shares),
                hasher=self._hasher,
                budget=self._budget,
                live=live,
                unsent=unsent,
            )
            if identity.kind != "inserted":
                self._seed(one, begun, unsent, segments, identity.columns, start)
            ended = self._walk(one, start, stop, schema, share=(index, shares))
            if index == 0:
                stop, following = ended  # The others end there, too, before they come to it.
            one.finish()
            found.append(one.unsent)
            crossed.append(one.crossed)
        self.live = live
        last = self.segments.last
        width = 0 if last is None else len(last.columns)
        self.unsent = without_aliases(merged(found), merged(crossed), width=width)
        return stop, following

    def _seed(
        self,
        one: Pass,
        begun: OffsetSet,
        unsent: Unsent,
        segments: Segments,
        columns: tuple[int, ...],
        stop: int,
    ) -> None:
        """Read what tells the rows apart that live already."""
        if not len(begun):
            return
        rows = RowPass(self._source, segments, begun, unsent, stop=stop, columns=columns)
        for part in rows:
            pairs = zip(part.starts, part.lengths, strict=True)
            one.seed(part.offsets, self._hasher.hashes(part.data, pairs, len(part)))

    def _walk(
        self,
        one: Pass,
        start: int,
        stop: int,
        schema: Schema | None,
        *,
        share: tuple[int, int],
    ) -> tuple[int, Schema | None]:
        """Apply the steps of `[start, stop)`; only the first share notes what is known."""
        index, shares = share
        notes = index == 0
        for part in self._source.steps.walk(start, stop, keep=notes):
            for step in part.steps:
                found = _schema_of(step)
                if found is not None and found is not schema:
                    offset = _first(step)
                    if not is_kept(schema, found, as_inserts=self._as_inserts):
                        return offset, found
                    one.switch(found)
                    schema = found
                    if notes:
                        self.segments.add(offset, found)
                self._apply(one, step, notes=notes)
            if notes:
                self.records += part.records
            self._tell(part.stop, index, shares)
        return stop, None

    def _apply(self, one: Pass, step: Step, *, notes: bool) -> None:
        if not isinstance(step, Rare):
            one.apply(step)
            if notes and not self.facts.seen:
                self.facts = replace(self.facts, seen=True)
            return
        if step.raw.op in RESETS:
            one.reset()
        if notes:
            seen = self.facts.seen or step.raw.relation is not None
            self.facts = replace(self.facts.after(step), seen=seen)

    def _tell(self, reached: int, index: int, shares: int) -> None:
        if self._progress is not None:
            begin = self._low
            done = index * (self._stop - begin) + min(reached, self._stop) - begin
            self._progress(done // shares, self._stop - begin)


def _schema_of(step: Step) -> Schema | None:
    return step.schema


def _first(step: Step) -> int:
    return step.offset if isinstance(step, Rare) else int(step.offsets[0])
