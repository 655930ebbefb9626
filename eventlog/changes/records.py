"""Records: a range of a stream, read lazily, one by one or in batches.

Captured and event streams differ in what is read at once and how it is shown; a `View` knows that.
Batches are cut out of what was read, wherever they close (see `runs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from eventlog.changes.arrow import Conversion, Unfit, frame
from eventlog.changes.decoding import json_line
from eventlog.changes.runs import Run
from eventlog.errors import DamagedLog, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from eventlog.changes.schema import Schema

BATCH_ROWS = 10_000
"""Records in a batch where the caller names no number: some MB, whatever the range."""

R = TypeVar("R", bound=Run)
Record = TypeVar("Record", covariant=True)


class Damage(NamedTuple):
    """Offsets `[start, stop)` that could not be read, and why."""

    start: int
    stop: int
    why: str


class Damages:
    """What was found damaged and passed over, each stretch once."""

    def __init__(self) -> None:
        self.found: list[Damage] = []

    def __call__(self, start: int, stop: int, error: DamagedLog) -> None:
        damage = Damage(start, stop, str(error))
        if damage not in self.found:
            self.found.append(damage)


class View(Protocol[R, Record]):
    """How the records of one stream are selected and shown."""

    def runs(self, start: int, stop: int) -> Iterator[R]:
        """Walk the selected records of `[start, stop)`; a run has one version of each table."""
        ...

    def records(self, runs: Iterable[R]) -> Iterator[Record]:
        """The records as Changes or Events."""
        ...

    def json(self, runs: Iterable[R]) -> Iterator[dict[str, Any]]:
        """The records as lines of `read --json` have them."""
        ...

    def arrow(self, runs: Iterable[R], stop: int, conversion: Conversion, *, own: bool) -> pa.Table:
        """The records as an Arrow table, by their own schema version, else by that at `stop`."""
        ...


class Batch(Generic[R, Record]):
    """Some records of `[start, stop)` of a stream: all of that range that were asked for."""

    def __init__(
        self, view: View[R, Record], stream: str, start: int, stop: int, runs: Sequence[R]
    ) -> None:
        self.stream = stream
        self.start = start
        self.stop = stop
        self._view = view
        self._runs = runs
        self._rows = sum(map(len, runs))

    def __len__(self) -> int:
        return self._rows

    @property
    def runs(self) -> Sequence[R]:
        """What the batch is made of, in the order of offsets."""
        return self._runs

    def __iter__(self) -> Iterator[Record]:
        return self._view.records(self._runs)

    def as_json(self) -> Iterator[dict[str, Any]]:
        """The records as JSON values, the fields of `read --json`."""
        return self._view.json(self._runs)

    def json_lines(self) -> Iterator[str]:
        """The records as lines of JSON, without line ends."""
        return map(json_line, self.as_json())

    def to_arrow(
        self, *, cast: Mapping[str, str] | None = None, unfit: Unfit = "raise"
    ) -> pa.Table:
        """An Arrow table: `_offset`, `_op`, `_time`, then the table's columns.

        A delete shows what the source sent of the old row. An event stream's columns are
        `_offset`, `_time`, `key` and `value`, the latter as JSON text. Raises ValueDoesNotFit, and
        UsageError where the batch has records of several tables.
        """
        conversion = Conversion(cast=cast or {}, unfit=unfit)
        return self._view.arrow(self._runs, self.stop, conversion, own=True)

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow())

    def __repr__(self) -> str:
        return f"<Batch [{self.start}, {self.stop}) of {self.stream!r}, {len(self)} records>"


class Records(Generic[R, Record]):
    """The records of `[start, stop)`: nothing is read before it is iterated, which may be repeated.

    A range may hold fewer records than offsets. `damaged` lists what the iterations so far passed
    over as damaged, where that was asked for.
    """

    def __init__(
        self,
        view: View[R, Record],
        stream: str,
        start: int,
        stop: int,
        *,
        damages: Damages | None = None,
    ) -> None:
        self.damaged: list[Damage] = [] if damages is None else damages.found
        self.stream = stream
        self.start = start
        self.stop = stop
        self._view = view

    def __iter__(self) -> Iterator[Record]:
        return self._view.records(self._view.runs(self.start, self.stop))

    def batches(self, max_rows: int | None = None) -> Iterator[Batch[R, Record]]:
        """Batches of at most `max_rows` records, closed at a change of schema."""
        rows = BATCH_ROWS if max_rows is None else max_rows
        found = gather(self._view, self.stream, self.start, self.stop, max_rows=rows)
        return (batch for batch in found if len(batch))

    def as_json(self) -> Iterator[dict[str, Any]]:
        """The records as JSON values, the fields of `read --json`."""
        return self._view.json(self._view.runs(self.start, self.stop))

    def json_lines(self) -> Iterator[str]:
        """The records as lines of JSON, without line ends."""
        return map(json_line, self.as_json())

    def to_arrow(
        self, *, cast: Mapping[str, str] | None = None, unfit: Unfit = "raise"
    ) -> pa.Table:
        """All records as one Arrow table, with the table's schema as of `stop`.

        See `Batch.to_arrow`. Holds the whole range in memory.
        """
        conversion = Conversion(cast=cast or {}, unfit=unfit)
        runs = self._view.runs(self.start, self.stop)
        return self._view.arrow(runs, self.stop, conversion, own=False)

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow())

    def __repr__(self) -> str:
        return f"<Records [{self.start}, {self.stop}) of {self.stream!r}>"


def gather(
    view: View[R, Record], stream: str, start: int, stop: int, *, max_rows: int
) -> Iterator[Batch[R, Record]]:
    """Cut `[start, stop)` into batches that cover it without a gap; the last one may be empty."""
    if max_rows < 1:
        raise UsageError(f"max_rows is {max_rows}", hint="a batch holds at least one record")
    parts: list[R] = []
    rows = 0
    versions: dict[int, Schema] = {}
    for run in view.runs(start, stop):
        known = run.versions()
        at = 0
        while at < len(run):
            change = _change(known, versions, len(run))
            end = min(change, at + max_rows - rows)
            if end > at:
                part = run if end - at == len(run) else run.cut(at, end)
                parts.append(part)
                versions |= {schema.relation: schema for _, schema in part.versions()}
                rows, at = rows + end - at, end
            if rows == max_rows:
                closed = run.offset(at - 1) + 1
            elif at < len(run):
                closed = run.offset(at)
            else:
                break
            yield Batch(view, stream, start, closed, parts)
            start, parts, rows, versions = closed, [], 0, {}
    if start < stop:
        yield Batch(view, stream, start, stop, parts)


def _change(known: Sequence[tuple[int, Schema]], versions: Mapping[int, Schema], end: int) -> int:
    """The place of the first record of a table that the batch has under another version."""
    for place, schema in known:
        if versions.get(schema.relation, schema).id != schema.id:
            return place
    return end
