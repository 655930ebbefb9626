"""The history of one row of a table: every version of the lives that bore a key.

See `eventlog.history.lives` for what a life is. Each version is shown under the schema version and
the name that the table had then, its UNCHANGED values filled from the version before it. What
changed compares texts, so that 1.0 and 1.00 differ; columns that are new count by their default.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eventlog.changes.arrow import Conversion, Unfit, frame
from eventlog.changes.change import ABSENT, UNCHANGED, Change
from eventlog.changes.codec import Form, Loader
from eventlog.changes.decoding import Decoder, Located, json_line
from eventlog.changes.fold import Row, moved_row
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.table_name import TableName
from eventlog.engine import Engine
from eventlog.errors import UsageError
from eventlog.history.key_index import UNWRITABLE, Progress, key_index
from eventlog.history.keys import key_names, key_texts
from eventlog.history.lives import Life, Lives, Stretch, Trail
from eventlog.history.picking import Picker
from eventlog.history.row_keys import RowKeys
from eventlog.history.view import View

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a row: the change, and what it changed.

    `life` counts the rows that bore the key, from 1: after a delete an insert is another row's.
    `changed` has, by column, the value before and the value after; None for the first version of a
    life, and where there is no row after. A column whose value before is not known is not in it.
    """

    change: Change
    life: int
    changed: Mapping[str, tuple[Any, Any]] | None


class RowHistory:
    """The versions of `[start, stop)`: read as it is iterated, which may be repeated.

    `notes` says, after that, what a reader should know: that the index could not be written, or
    where the history begins late.
    """

    def __init__(
        self,
        engine: Engine,
        history: SchemaHistory,
        table: str,
        key: Any,
        start: int,
        stop: int,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Resolve table and key at the cut. Raises UnknownTable, UnknownColumn, UsageError."""
        name = TableName.parse(table)
        if name.is_pattern:
            raise UsageError(f"{table} names several tables", hint="name one, without `*`")
        (self._schema,) = history.named(name, stop)
        self._key = key_texts(self._schema, key)
        self.stream = history.stream
        self.table = self._schema.table
        self.start = start
        self.stop = stop
        self.notes: list[str] = []
        self._engine = engine
        self._history = history
        self._progress = progress

    @property
    def key(self) -> dict[str, str]:
        """The key that is asked for, as texts."""
        names = key_names(self._schema)
        texts = ("" if text is None else text.decode(errors="replace") for text in self._key)
        return dict(zip(names, texts, strict=True))

    def __iter__(self) -> Iterator[Change]:
        return (version.change for version in self.versions())

    def versions(self) -> Iterator[Version]:
        """The versions, each with its life and what it changed. Raises DamagedLog."""
        decoder, values = Decoder(), _Values("python")
        for located, life, before in self._found():
            yield Version(
                change=decoder.change(located),
                life=life,
                changed=values.changed(located, before),
            )

    def as_json(self) -> Iterator[dict[str, Any]]:
        """The versions as JSON values: the fields of `read --json`, `life` and `changed`."""
        decoder, values = Decoder(), _Values("json")
        for located, life, before in self._found():
            changed = values.changed(located, before)
            pairs = None if changed is None else {n: list(pair) for n, pair in changed.items()}
            yield {**decoder.json(located), "life": life, "changed": pairs}

    def json_lines(self) -> Iterator[str]:
        """The versions as lines of JSON, without line ends."""
        return map(json_line, self.as_json())

    def to_arrow(
        self, *, cast: Mapping[str, str] | None = None, unfit: Unfit = "raise"
    ) -> pa.Table:
        """The versions as an Arrow table: `_offset`, `_op`, `_time`, `_life`, then the columns.

        The columns are the table's as of `stop`; a delete shows what the source sent of the old
        row. For `cast` and `unfit` see `Table.to_arrow`. Raises ValueDoesNotFit.
        """
        from eventlog.history.version_tables import row_versions

        conversion = Conversion(cast=cast or {}, unfit=unfit)
        found = ((located, life) for located, life, _ in self._found())
        return row_versions(self._engine, self._history, self._schema, found, self.stop, conversion)

    def to_pandas(self, *, cast: Mapping[str, str] | None = None, unfit: Unfit = "raise") -> Any:
        """A pandas DataFrame of `to_arrow()`."""
        return frame(self.to_arrow(cast=cast, unfit=unfit))

    def _found(self) -> Iterator[tuple[Located, int, Row | None]]:
        """Each version, filled, with the number of its life and the row before."""
        keys, low, view = self._looked_up()
        picker = Picker(self._engine, self._history, self._schema.relation)
        trail = Trail(view, picker, keys, low=low, stop=self.stop)
        stretches = trail.stretches(self._key)
        lives = Lives(keys, stretches)
        for located in picker.at(_with_rare(trail, stretches)):
            for life in lives.of(located):
                before, filled = _grow(life, located)
                if located.offset >= self.start:
                    yield filled, life.number, before

    def _looked_up(self) -> tuple[RowKeys, int, View]:
        """How keys are found, from where on, and in what."""
        self.notes.clear()
        relation = self._schema.relation
        known = (self._history.version(n) for n, _ in self._engine.schemas(self.stream))
        versions = [v for v in known if v.relation == relation and v.offset < self.stop]
        keys = RowKeys(self._schema, versions)
        index = key_index(self._engine, self._history)
        view = index.view(self.stop, progress=self._progress)
        if index.unwritable:
            self.notes.append(UNWRITABLE + index.unwritable)
        # A mark below 0 tells of rows from before the capture: the copy of the table has them.
        self.notes += [
            f"from offset {version.unseen_since} on rows changed in a way that the stream does not "
            f"show ({version.unseen_reason}), until the table was copied again"
            for version in versions
            if version.unseen_since is not None and 0 <= version.unseen_since < self.stop
        ]
        if keys.scanned:
            view = view.beside(index.scanned(self.stop, keys.scanned, progress=self._progress))
        low, _ = self._engine.bounds(self.stream)
        if keys.strangers:
            low = self._end_of(keys.strangers, low)
            self.notes.append(
                f"below offset {low} the table had another key, by which its rows cannot be "
                "followed; their history begins there"
            )
        return keys, low, view

    def _end_of(self, versions: list[Schema], low: int) -> int:
        """The first offset behind the last batch that holds one of these schema versions."""
        ids = {version.id for version in versions}
        start = max(low, min(version.offset for version in versions))
        for stretch in self._engine.scan(self.stream, start, self.stop, lambda entry: False):
            if any(schema_id in ids for _, schema_id in stretch.entry.relations):
                low = stretch.stop
        return low

    def __str__(self) -> str:
        pairs = ", ".join(f"{name}={value}" for name, value in self.key.items())
        return f"{pairs} in {self.table}"

    def __repr__(self) -> str:
        return f"<RowHistory of {self}, stream {self.stream!r}>"


class _Values:
    """Decodes the values of single columns; loaders are made once per schema version."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._loaders: dict[tuple[int, int], Any] = {}

    def changed(self, located: Located, before: Row | None) -> dict[str, tuple[Any, Any]] | None:
        """By column, the values before and after, where their texts differ."""
        schema, after = located.schema, located.raw.new
        if schema is None or after is None or before is None:
            return None
        cached = located.codec.id, schema.id
        loaders = self._loaders.get(cached)
        if loaders is None:
            loaders = self._loaders[cached] = located.codec.loaders(schema, self._form)
        return {
            name: (_loaded(load, old), _loaded(load, new))
            for name, load, old, new in zip(schema.names, loaders, before, after, strict=True)
            if old != new and not {old, new} & {UNCHANGED, ABSENT}
        }


def _loaded(load: Loader, text: Any) -> Any:
    return None if text is None else load(text)


def _with_rare(trail: Trail, stretches: list[Stretch]) -> Iterator[int]:
    """The offsets to look at, ascending: of the stretches, and of what may concern their rows.

    Behind a record only the next reset matters, and the losses up to it.
    """
    resets, losses, stop = trail.resets, trail.losses, trail.stop
    last = -1
    for offset in heapq.merge(*trail.offsets(stretches), [stop]):
        if offset == last:
            continue
        if last >= 0 and (len(resets) or len(losses)):
            place = int(np.searchsorted(resets, last, side="right"))
            reset = int(resets[place]) if place < len(resets) else stop
            low, high = np.searchsorted(losses, [last + 1, min(offset, reset)])
            yield from losses[low:high].tolist()
            if reset < offset:
                yield reset
        if offset < stop:
            yield offset
        last = offset


def _grow(life: Life, located: Located) -> tuple[Row | None, Located]:
    """Take a version into its life; returns the row before it, and the version filled."""
    raw, schema = located.raw, located.schema
    before = life.row
    if schema is None or raw.new is None:
        return before, located
    if before is not None and life.schema is not None and life.schema.id != schema.id:
        before = moved_row(before, life.schema, schema)
    row = raw.new
    if UNCHANGED in row:
        row = tuple(
            _known(place, before, raw.old) if text is UNCHANGED else text
            for place, text in enumerate(row)
        )
        located = located._replace(raw=raw._replace(new=row))
    life.row, life.schema = row, schema
    return before, located


def _known(place: int, before: Row | None, old: Row | None) -> Any:
    """A value that an update left out: from the version before, or from the old row as sent."""
    for row in (before, old):
        if row is not None and row[place] is not ABSENT:
            return row[place]
    return UNCHANGED
