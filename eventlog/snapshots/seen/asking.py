"""Rows as they were seen, joined by offset with what was known then and what came later (D17).

::

    snapshot.seen("public.orders", on={"insert"}, columns=["amount", "country"],
        lookups=[lookup("public.customers", by="customer_id", columns=["tier"])],
        counts=[count("public.orders", by="customer_id", over="90d", name="orders_90d")],
        label=later("delivered_at")).to_arrow()

What belongs to the instance at offset q:

===============  ======================================================================
the row          its new row; of a delete, the row that went. A value that the update
                 left unchanged is the one that stood before, through key changes
`old.COLUMN`     the row just before q; where the log has none, what the source sent of
                 it, else NULL
look-ups,        the other tables by the records strictly below q: earlier ones of the
counts           same transaction are visible, the instance itself is not (`lookup` and
                 `count` say more). They may look into the instance's own table
labels           later versions of the row, from q + 1 to the cut (`later` says more)
===============  ======================================================================

A table is what its records made of it: a copy that begins empties it, and its rows are unknown
until they come, so one that was copied behind q was not known at q. Copied rows are instances only
`on={"read"}`. Where changes were lost, what the log knew then is what is seen. Records that
retention dropped are not known at all.

Nothing but labels depends on records behind q, nor on the cut, but for the columns' names and
types, which are those at the cut: a column of a later version holds its fast default, or NULL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eventlog.changes.arrow import Unfit, frame, stacked
from eventlog.changes.change import RawChange
from eventlog.changes.change_view import source_codec
from eventlog.changes.reading import pieces
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.table_name import TableName
from eventlog.engine import Engine
from eventlog.errors import UsageError
from eventlog.snapshots.seen.answering import ROWS_MAX, Decoding, require_castable
from eventlog.snapshots.seen.clock import clock_of
from eventlog.snapshots.seen.definitions import Condition, Count, Later, Lookup
from eventlog.snapshots.seen.gathering import Progress, gather
from eventlog.snapshots.seen.joining import joined
from eventlog.snapshots.seen.linking import Walk
from eventlog.snapshots.seen.planning import Question, question
from eventlog.snapshots.shown_rows import Numbers, number_columns, numbers

if TYPE_CHECKING:
    import pyarrow as pa


def ask(
    engine: Engine,
    history: SchemaHistory,
    table: TableName | None,
    *,
    start: int | None,
    stop: int,
    on: str | Iterable[str],
    columns: Sequence[str] | None,
    old: Sequence[str],
    where: Condition | None,
    lookups: Lookup | Sequence[Lookup],
    counts: Count | Sequence[Count],
    label: Later | Sequence[Later],
    progress: Progress | None,
) -> Seen:
    """Check every name, and read nothing yet; see `Snapshot.seen`."""
    if table is None:
        raise UsageError(
            f"stream {history.stream!r} has events, which are seen as they are",
            hint="ask for a table of a captured stream",
        )
    (schema,) = history.named(table, stop)
    asked = question(
        history,
        schema,
        stop,
        on=on,
        columns=columns,
        old=old,
        where=where,
        lookups=lookups,
        counts=counts,
        labels=label,
    )
    return Seen(engine, history, asked, start=start, stop=stop, progress=progress)


class Seen:
    """Instances as they were seen, one row each, in the order of their offsets.

    Columns are `_offset`, `_op`, `_time` (the commit time), the table's, `old.COLUMN`,
    `LOOKUP.COLUMN`, the counts, and each label beside `_LABEL_offset`. Nothing is read before it is
    asked for, and each call reads again.

    Memory: about 400 bytes for each record of the tables below the cut, and for each column of
    theirs that is needed 16 bytes and its text. Tables without one key all along are walked row by
    row, which takes some µs a record. Thread safety: may be shared among threads.
    """

    def __init__(
        self,
        engine: Engine,
        history: SchemaHistory,
        question: Question,
        *,
        start: int | None,
        stop: int,
        progress: Progress | None,
    ) -> None:
        self._engine = engine
        self._history = history
        self._question = question
        self._start = start
        self._stop = stop
        self._progress = progress

    @property
    def column_names(self) -> list[str]:
        """The columns of the result."""
        return self._question.names

    def to_batches(
        self,
        *,
        cast: Mapping[str, str] | None = None,
        unfit: Unfit = "raise",
        max_rows: int = ROWS_MAX,
    ) -> Iterator[pa.Table]:
        """The instances as Arrow tables of at most `max_rows` rows, at least one, maybe empty.

        See `to_arrow`.
        """
        require_castable(self._question, cast or {})
        stream = self._history.stream
        low, _ = self._engine.bounds(stream)
        clock = clock_of(self._engine, stream, low, self._stop)
        decoding = Decoding(
            codec=source_codec(self._engine, self._history),
            clock=clock,
            cast=cast or {},
            unfit=unfit,
        )
        records = gather(
            self._engine,
            self._history,
            low,
            self._stop,
            wanted=self._question.wanted(),
            progress=self._progress,
        )
        found = joined(
            self._question,
            records,
            start=low if self._start is None else self._start,
            clock=clock,
            walks=lambda relation: self._walk(relation, low),
            holds=decoding.holds,
        )
        del records
        for first in range(0, max(len(found.instances), 1), max_rows):
            yield decoding.table(self._question, found, first, first + max_rows)

    def to_arrow(
        self, *, cast: Mapping[str, str] | None = None, unfit: Unfit = "raise"
    ) -> pa.Table:
        """The instances as one Arrow table; types as in `Table.to_arrow`.

        `cast` maps columns of the result to `text`, `float64` or `decimal(p,s)`; conditions see
        the table's columns under the same casts. A value that an update left unchanged, and that
        the log never saw, does not fit. Raises ValueDoesNotFit, UnknownColumn, UsageError.
        """
        return stacked(list(self.to_batches(cast=cast, unfit=unfit)))

    def to_pandas(self, *, cast: Mapping[str, str] | None = None, unfit: Unfit = "raise") -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow(cast=cast, unfit=unfit))

    def to_numpy(
        self, columns: Sequence[str] | None = None, *, target: str | None = None
    ) -> Numbers:
        """`X, y, ids`: features as float64, the target, and the offsets of the instances.

        The target is the first label unless named; the features are all other columns but labels
        and those that begin with `_`, unless named. See `Table.to_numpy`. Raises UsageError for a
        feature that is no number.
        """
        table = self.to_arrow()
        labels = [label.name for label in self._question.labels]
        target = target or next(iter(labels), None)
        if columns is None:
            no_feature = {target, *labels}
            names = [name for name in table.column_names if not name.startswith("_")]
            columns = [name for name in names if name not in no_feature]
        return numbers(table, number_columns(table.schema, columns, target), target)

    def _walk(self, relation: int, low: int) -> Walk:
        """The records of one relation, one by one."""

        def walk() -> Iterator[tuple[int, RawChange, Schema | None]]:
            for piece in pieces(
                self._engine,
                self._history,
                low,
                self._stop,
                selection=lambda schema: schema.relation == relation,
            ):
                for offset, raw in piece.changes():
                    schema = None if raw.relation is None else piece.schemas[raw.relation]
                    yield offset, raw, schema

        return walk

    def __repr__(self) -> str:
        table, stream = self._question.schema.table, self._history.stream
        return f"<Seen {table} of {stream!r} below {self._stop}>"
