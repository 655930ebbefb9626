"""Folding: the rows of one table, rebuilt by applying its changes in order (D12 to D15).

Rows stay the source's text. What identifies a row follows from the schema version:

===================  =============================================================
a key                the key's texts; the latest version counts
REPLICA IDENTITY     the whole row: a multiset, from which an update or a delete
FULL, no key         takes the equal row with the highest offset
neither              nothing: every row that came stays, until a truncate
===================  =============================================================

UNCHANGED values are filled from the row's own earlier version, or from the old row that the source
sent with the change. Under a new schema version every row moves to the new columns, a column that
it lacks taking the column's fast default, or NULL.

This goes record by record, and defines what a state is: reads that fill values use it, and
snapshots, which find the state by whole columns, are held to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any, Protocol, TypeAlias, TypeVar

from eventlog.changes.change import ABSENT, UNCHANGED, Op, RawChange, Text
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import places

Row: TypeAlias = tuple[Text, ...]
Placed: TypeAlias = tuple[int, Row]
"""A row, after the offset of its latest version."""

_Event = TypeVar("_Event", bound=tuple[Any, ...])


class _Rows(Protocol):
    def put(self, offset: int, row: Row) -> None: ...
    def update(self, offset: int, old: Row | None, new: Row) -> Row: ...
    def delete(self, old: Row) -> None: ...
    def placed(self) -> Iterable[Placed]: ...


class _Keyed:
    """The latest version of each key."""

    def __init__(self, key_of: Callable[[Row], Any]) -> None:
        self._key_of = key_of
        self._rows: dict[Any, Placed] = {}

    def put(self, offset: int, row: Row) -> None:
        self._rows[self._key_of(row)] = (offset, row)

    def update(self, offset: int, old: Row | None, new: Row) -> Row:
        if old is None:
            before = self._rows.get(self._key_of(new))
        else:
            before = self._rows.pop(self._key_of(old), None)
        if UNCHANGED in new:
            new = filled_row(new, None if before is None else before[1], old)
        self._rows[self._key_of(new)] = (offset, new)
        return new

    def delete(self, old: Row) -> None:
        self._rows.pop(self._key_of(old), None)

    def placed(self) -> Iterable[Placed]:
        return self._rows.values()


class _Multiset:
    """Equal rows under one entry, with their offsets in ascending order."""

    def __init__(self) -> None:
        self._rows: dict[Row, list[int]] = {}

    def put(self, offset: int, row: Row) -> None:
        self._rows.setdefault(row, []).append(offset)

    def update(self, offset: int, old: Row | None, new: Row) -> Row:
        if old is not None:
            self.delete(old)
            new = filled_row(new, None, old)
        self.put(offset, new)
        return new

    def delete(self, old: Row) -> None:
        offsets = self._rows.get(old)
        if offsets is not None:
            offsets.pop()
            if not offsets:
                del self._rows[old]

    def placed(self) -> Iterable[Placed]:
        return ((offset, row) for row, offsets in self._rows.items() for offset in offsets)


class _Inserted:
    """Every row that came."""

    def __init__(self) -> None:
        self._rows: list[Placed] = []

    def put(self, offset: int, row: Row) -> None:
        self._rows.append((offset, row))

    def update(self, offset: int, old: Row | None, new: Row) -> Row:
        return new

    def delete(self, old: Row) -> None:
        """Nothing: a row without an identity cannot be found again."""

    def placed(self) -> Iterable[Placed]:
        return self._rows


class TableFold:
    """The state of one relation; apply its records in offset order.

    `copying` is where a copy began that has not ended, `copied_from` where the last one began that
    has. `lost` holds the fields of a `data_loss` that no later copy has mended, `seen` whether any
    record of the table came.
    """

    def __init__(self, *, as_inserts: bool = False) -> None:
        self.copying: int | None = None
        self.copied_from: int | None = None
        self.lost: dict[str, Any] | None = None
        self.seen = False
        self._as_inserts = as_inserts
        self._schema: Schema | None = None
        self._rows: _Rows = _Inserted()

    def apply(self, offset: int, raw: RawChange, schema: Schema | None) -> Row | None:
        """Take one record in; returns its new row, filled where that could be done."""
        if schema is not None and schema is not self._schema:
            self.switch(schema)
        op = raw.op
        new = raw.new
        if op is Op.INSERT or op is Op.READ:
            assert new is not None
            self._rows.put(offset, new)
        elif op is Op.UPDATE:
            assert new is not None
            new = self._rows.update(offset, raw.old, new)
        elif op is Op.DELETE:
            assert raw.old is not None
            self._rows.delete(raw.old)
        else:
            self._apply_rare(offset, raw)
        if raw.relation is not None:
            self.seen = True
        return new

    def switch(self, schema: Schema) -> None:
        """Go on under another schema version, all rows moved to it."""
        before, self._schema = self._schema, schema
        if before is not None and _same_shape(before, schema):
            return
        moved = self.rows() if before is None else _moved(self.rows(), before, schema)
        self._rows = self._empty()
        for offset, row in moved:
            self._rows.put(offset, row)

    def rows(self) -> list[Placed]:
        """All rows, in the order of their offsets."""
        return sorted(self._rows.placed(), key=itemgetter(0))

    def _apply_rare(self, offset: int, raw: RawChange) -> None:
        if raw.op is Op.TRUNCATE:
            self._rows = self._empty()
        elif raw.op is Op.COPY_BEGIN:
            self._rows = self._empty()
            self.copying, self.lost = offset, None
        elif raw.op is Op.COPY_END:
            self.copied_from, self.copying = self.copying, None
        elif raw.op is Op.DATA_LOSS:
            self.lost = dict(raw.fields or {})

    def _empty(self) -> _Rows:
        schema = self._schema
        if self._as_inserts or schema is None:
            return _Inserted()
        if schema.key_indexes:
            return _Keyed(itemgetter(*schema.key_indexes))
        return _Multiset() if schema.identity == "f" else _Inserted()


class Filler:
    """Fills UNCHANGED values of many tables from each row's own history."""

    def __init__(self) -> None:
        self._tables: dict[int, TableFold] = {}

    def apply(self, offset: int, raw: RawChange, schema: Schema | None) -> RawChange:
        """Take one record in; returns it with its new row filled."""
        if raw.relation is None or schema is None or not _has_identity(schema):
            return raw
        table = self._tables.get(raw.relation)
        if table is None:
            table = self._tables[raw.relation] = TableFold()
        new = table.apply(offset, raw, schema)
        return raw if new is raw.new else raw._replace(new=new)


def latest_events(events: Iterable[_Event]) -> list[_Event]:
    """The latest event of each key, in the order of their offsets; a tombstone removes its key.

    Events begin with (offset, time, key, value). One without a key is never superseded.
    """
    keyed: dict[str, _Event] = {}
    keyless = []
    for event in events:
        key, value = event[2], event[3]
        if key is None:
            keyless.append(event)
        elif value is None:
            keyed.pop(key, None)
        else:
            keyed[key] = event
    return sorted(chain(keyless, keyed.values()), key=itemgetter(0))


def moved_row(row: Row, source: Schema, target: Schema) -> Row:
    """One row under the columns of another schema version."""
    ((_, found),) = _moved([(0, row)], source, target)
    return found


def filled_row(new: Row, before: Row | None, old: Row | None) -> Row:
    """`new` with its UNCHANGED values from the row before, else from what the source sent of it."""
    values = list(new)
    for place, value in enumerate(new):
        if value is UNCHANGED:
            for source in (before, old):
                if source is not None and source[place] is not ABSENT:
                    values[place] = source[place]
                    break
    return tuple(values)


def _moved(rows: Iterable[Placed], source: Schema, target: Schema) -> Iterator[Placed]:
    at = places(source, target)
    defaults = [
        None if column.missing is None else column.missing.encode() for column in target.columns
    ]
    for offset, row in rows:
        yield (
            offset,
            tuple(
                default if place is None else row[place]
                for place, default in zip(at, defaults, strict=True)
            ),
        )


def _same_shape(one: Schema, other: Schema) -> bool:
    return (
        one.key_indexes == other.key_indexes
        and (one.identity == "f") == (other.identity == "f")
        and len(one.columns) == len(other.columns)
        and places(one, other) == tuple(range(len(one.columns)))
    )


def _has_identity(schema: Schema) -> bool:
    return bool(schema.key_indexes) or schema.identity == "f"
