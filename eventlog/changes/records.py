"""Records: a range of a stream, read lazily, one by one or in batches.

Captured and event streams differ in what an item is and how it is shown; a `View` knows that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from eventlog.changes.arrow import Conversion, Unfit, frame
from eventlog.changes.decoding import json_line
from eventlog.errors import DamagedLog, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from eventlog.changes.schema import Schema

BATCH_ROWS = 10_000
"""Records in a batch where the caller names no number: some MB, whatever the range."""

Item = TypeVar("Item", bound=tuple[Any, ...])
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


class View(Protocol[Item, Record]):
    """How the records of one stream are selected and shown. An item begins with its offset."""

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Walk the selected records of `[start, stop)`."""
        ...

    def version(self, item: Item) -> Schema | None:
        """The schema version whose change closes a batch; None for records of no table."""
        ...

    def record(self, item: Item) -> Record:
        """The item as a Change or an Event."""
        ...

    def json(self, item: Item) -> dict[str, Any]:
        """The item as one line of `read --json` has it."""
        ...

    def arrow(self, items: list[Item], stop: int, conversion: Conversion, *, own: bool) -> pa.Table:
        """The items as an Arrow table, by their own schema version, else by that at `stop`."""
        ...


class Batch(Generic[Item, Record]):
    """Some records of `[start, stop)` of a stream: all of that range that were asked for."""

    def __init__(
        self, view: View[Item, Record], stream: str, start: int, stop: int, items: list[Item]
    ) -> None:
        self.stream = stream
        self.start = start
        self.stop = stop
        self._view = view
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Record]:
        return map(self._view.record, self._items)

    def as_json(self) -> Iterator[dict[str, Any]]:
        """The records as JSON values, the fields of `read --json`."""
        return map(self._view.json, self._items)

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
        return self._view.arrow(self._items, self.stop, conversion, own=True)

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow())

    def __repr__(self) -> str:
        return f"<Batch [{self.start}, {self.stop}) of {self.stream!r}, {len(self)} records>"


class Records(Generic[Item, Record]):
    """The records of `[start, stop)`: nothing is read before it is iterated, which may be repeated.

    A range may hold fewer records than offsets. `damaged` lists what the iterations so far passed
    over as damaged, where that was asked for.
    """

    def __init__(
        self,
        view: View[Item, Record],
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
        return map(self._view.record, self._view.items(self.start, self.stop))

    def batches(self, max_rows: int | None = None) -> Iterator[Batch[Item, Record]]:
        """Batches of at most `max_rows` records, closed at a change of schema."""
        rows = BATCH_ROWS if max_rows is None else max_rows
        found = gather(self._view, self.stream, self.start, self.stop, max_rows=rows)
        return (batch for batch in found if len(batch))

    def as_json(self) -> Iterator[dict[str, Any]]:
        """The records as JSON values, the fields of `read --json`."""
        return map(self._view.json, self._view.items(self.start, self.stop))

    def json_lines(self) -> Iterator[str]:
        """The records as lines of JSON, without line ends."""
        return map(json_line, self.as_json())

    def to_arrow(
        self, *, cast: Mapping[str, str] | None = None, unfit: Unfit = "raise"
    ) -> pa.Table:
        """All records as one Arrow table, with the table's schema as of `stop`.

        See `Batch.to_arrow`. Holds the whole range in memory.
        """
        items = list(self._view.items(self.start, self.stop))
        conversion = Conversion(cast=cast or {}, unfit=unfit)
        return self._view.arrow(items, self.stop, conversion, own=False)

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow())

    def __repr__(self) -> str:
        return f"<Records [{self.start}, {self.stop}) of {self.stream!r}>"


def gather(
    view: View[Item, Record], stream: str, start: int, stop: int, *, max_rows: int
) -> Iterator[Batch[Item, Record]]:
    """Cut `[start, stop)` into batches that cover it without a gap; the last one may be empty."""
    if max_rows < 1:
        raise UsageError(f"max_rows is {max_rows}", hint="a batch holds at least one record")
    items: list[Item] = []
    versions: dict[int, Schema] = {}
    last: Schema | None = None
    for item in view.items(start, stop):
        version = view.version(item)
        if version is not None and version is not last:
            last = version
            if versions.setdefault(version.relation, version).id != version.id:
                versions = {version.relation: version}
                if items:
                    yield Batch(view, stream, start, item[0], items)
                    start, items = item[0], []
        items.append(item)
        if len(items) >= max_rows:
            yield Batch(view, stream, start, item[0] + 1, items)
            start, items, versions, last = item[0] + 1, [], {}, None
    if start < stop:
        yield Batch(view, stream, start, stop, items)
