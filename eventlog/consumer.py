"""Named consumers: a place in a stream, moved together with what was made of it (I2, I3, D8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from eventlog.changes.cut import At, offset_of
from eventlog.changes.records import Batch
from eventlog.changes.table_name import TableName
from eventlog.engine import Advance, Engine, Plan
from eventlog.errors import NotCommitted, OffsetsDropped, UsageError
from eventlog.following import MAX_ROWS, WAIT_S, Following
from eventlog.names import checked_name
from eventlog.transaction import Transaction

if TYPE_CHECKING:
    from eventlog.stream import Stream, Until

EVERYTHING = "*.*"
"""The stored filter of a consumer that takes all tables."""


class Consumer:
    """One process's hold on a named consumer. Everything below `offset` is done.

    ::

        for batch in consumer.follow(table="public.orders"):
            with consumer.commit(batch) as tx:
                tx.append("mails", [make_mail(change) for change in batch])

    Outputs and offset commit together, by compare-and-set on (offset, epoch): where another process
    committed or rewound in the meantime, ConsumerFenced is raised and nothing is stored. Belongs to
    one thread.
    """

    def __init__(self, engine: Engine, stream: Stream, name: str, *, start: At) -> None:
        self.name = checked_name(name, kind="consumer")
        self._engine = engine
        self._stream = stream
        first = offset_of(engine, stream.name, start)
        if all((s, n) != (stream.name, name) for s, n, _ in engine.consumers()):
            engine.checked_range(stream.name, first, None)
        row = engine.consumer(stream.name, name, start=first)
        self.offset = row.offset
        self.epoch = row.epoch
        self._filter = row.filter

    def follow(
        self,
        *,
        table: str | None = None,
        max_rows: int = MAX_ROWS,
        until: Until = None,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[Batch[Any, Any]]:
        """Batches from the committed offset on; each must be committed before the next is taken.

        Stretches without a record of the table are committed by this iterator before it waits.
        Other arguments as in `Stream.follow`. Raises NotCommitted, OffsetsDropped, and UsageError
        for another table than this consumer was used with before.
        """
        digest = EVERYTHING if table is None else str(TableName.parse(table))
        self._require_filter(digest)
        view = self._stream.followed_view(table)
        limit = self._stream.end if until == "current" else until
        return self._batches(digest, view, limit, max_rows, stop)

    def commit(self, batch: Batch[Any, Any]) -> Transaction:
        """A transaction that moves this consumer to the batch's end along with its outputs.

        To be used as `with consumer.commit(batch) as tx: tx.append(...)`. Raises ConsumerFenced at
        its end, and UsageError for a batch that does not begin at this consumer's offset.
        """
        if batch.stream != self._stream.name or batch.start != self.offset:
            raise UsageError(
                f"the batch [{batch.start}, {batch.stop}) of stream {batch.stream!r} does not "
                f"begin at {self.offset} of {self._stream.name!r}, where consumer {self.name!r} is",
                hint="a batch is committed once, by the consumer that it was given to",
            )
        return _Commit(self._engine, self, self._advance(batch.stop, self._filter))

    def rewind(self, to: At) -> None:
        """Go back, or ahead, to another offset or time: a new epoch, on purpose.

        Outputs made since are made again. Another table may be followed from here. Raises
        ConsumerFenced, OffsetOutOfRange.
        """
        offset = offset_of(self._engine, self._stream.name, to)
        self._engine.commit(Plan(advances=[self._advance(offset, "", rewind=True)]))
        self.offset, self.epoch, self._filter = offset, self.epoch + 1, ""

    def _batches(
        self,
        digest: str,
        view: Any,
        until: int | None,
        max_rows: int,
        stop: Callable[[], bool] | None,
    ) -> Iterator[Batch[Any, Any]]:
        while True:
            epoch = self.epoch
            following = Following(
                self._engine,
                view,
                self._stream.name,
                start=self.offset,
                until=until,
                max_rows=max_rows,
                stop=stop,
            )
            for step in self._steps(following):
                if not isinstance(step, Batch):
                    self._engine.wait(step, timeout_s=WAIT_S)
                    continue
                if len(step) == 0:
                    self._engine.commit(Plan(advances=[self._advance(step.stop, digest)]))
                    self.offset, self._filter = step.stop, digest
                    continue
                self._filter = digest
                yield step
                if self.epoch != epoch:
                    break
                if self.offset != step.stop:
                    raise NotCommitted(
                        f"consumer {self.name!r} did not commit the batch "
                        f"[{step.start}, {step.stop})",
                        hint="end each turn with `with consumer.commit(batch): ...`; "
                        "a new follow() gives the batch again",
                    )
            else:
                return

    def _steps(self, following: Following) -> Iterator[Batch[Any, Any] | int]:
        try:
            yield from following.steps()
        except OffsetsDropped as error:
            low = self._stream.start
            raise OffsetsDropped(
                f"consumer {self.name!r} stands at {self.offset}, but stream "
                f"{self._stream.name!r} begins at {low}",
                hint=f"what lies between is gone; go on with rewind(to={low})",
            ) from error

    def _advance(self, offset: int, digest: str, *, rewind: bool = False) -> Advance:
        return Advance(
            stream=self._stream.name,
            consumer=self.name,
            offset=offset,
            expected_offset=self.offset,
            expected_epoch=self.epoch,
            filter=digest,
            rewind=rewind,
        )

    def _require_filter(self, digest: str) -> None:
        if self._filter not in ("", digest):
            raise UsageError(
                f"consumer {self.name!r} follows table {self._filter}, not {digest}: "
                "what it passed over would be missing",
                hint="take another name for another table, or rewind() this one",
            )

    def __repr__(self) -> str:
        return f"<Consumer {self.name!r} of {self._stream.name!r} at {self.offset}>"


class _Commit(Transaction):
    """Moves its consumer once it is committed."""

    def __init__(self, engine: Engine, consumer: Consumer, advance: Advance) -> None:
        super().__init__(engine, advance)
        self._consumer = consumer
        self._to = advance.offset

    def _committed(self) -> None:
        self._consumer.offset = self._to
