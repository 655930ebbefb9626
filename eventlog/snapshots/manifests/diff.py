"""The difference between two manifests of one log: rows that went, came, or have other values.

A version of a row is known by its offset, so what has the same offset in both is passed over; only
the rest is held in memory, and matched: by the key where both have the same one, else whole rows,
as a multiset. Columns are compared that both have; those of one alone are named. A row that was
written again with the same values is no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eventlog.changes.change_view import source_codec
from eventlog.changes.codec import codec
from eventlog.changes.cut import utc
from eventlog.changes.decoding import json_value
from eventlog.changes.quantities import counted
from eventlog.changes.schemas import places
from eventlog.engine import Engine
from eventlog.errors import UnknownTable, UsageError
from eventlog.snapshots.manifests.manifest import SavedTable
from eventlog.snapshots.manifests.matching import Matched, by_key, by_values
from eventlog.snapshots.manifests.progress_shares import Progress, share
from eventlog.snapshots.manifests.saved import Saved
from eventlog.snapshots.manifests.stored_rows import StoredRows
from eventlog.snapshots.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

LIMIT = 20
"""Rows of each kind that are listed, unless told otherwise."""

_MSGPACK = 2

Loader = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDiff:
    """One row: `kind` is removed, added or changed; its offset is that of its newer version.

    `before` and `after` are its values as JSON has them, `columns` those that changed.
    """

    kind: str
    offset: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    columns: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDiff:
    """What differs in one table. Counts are whole; of each kind at most `limit` rows are listed.

    `key` names the columns that rows were matched by; empty where whole rows were.
    `changed_columns` counts the changed rows by column. `columns_added` and `columns_dropped` are
    in one alone; of those in `columns_renamed` rows have the newer name. `only_in` is `A` or `B`
    for a table that only one manifest has, else None.
    """

    table: str
    key: list[str] = field(default_factory=list)
    removed: int = 0
    added: int = 0
    changed: int = 0
    changed_columns: dict[str, int] = field(default_factory=dict)
    columns_added: list[str] = field(default_factory=list)
    columns_dropped: list[str] = field(default_factory=list)
    columns_renamed: dict[str, str] = field(default_factory=dict)
    rows: list[RowDiff] = field(default_factory=list)
    limit: int = LIMIT
    only_in: str | None = None

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        columns = self.columns_added or self.columns_dropped or self.columns_renamed
        return not (self.removed or self.added or self.changed or columns or self.only_in)


def diff(
    engine: Engine,
    a: Saved,
    b: Saved,
    *,
    table: str | None = None,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> list[TableDiff]:
    """Compare the tables of two manifests of this log, or one of them.

    Raises UsageError where either is not of this log, or has other rows than were saved; and what
    reading the tables raises.
    """
    for saved, name in ((a, "first"), (b, "second")):
        if saved.manifest.log.id != engine.identity()["id"].hex():
            raise UsageError(
                f"the {name} manifest is of another log, {saved.manifest.log.id}",
                hint="name that log with --log; manifests of two logs cannot be compared",
            )
    names = list(dict.fromkeys([*a.tables, *b.tables]))
    if table is not None:
        names = list(dict.fromkeys(_full_name(saved, table) for saved in _having(table, a, b)))
    found = []
    for place, name in enumerate(names):
        sides = [next((t for t in s.manifest.tables if t.name == name), None) for s in (a, b)]
        old, new = sides
        if old is None or new is None:
            found.append(TableDiff(table=name, only_in="A" if new is None else "B"))
            continue
        if old.stored == new.stored and old.relation == new.relation:
            found.append(TableDiff(table=name, limit=limit))
            continue
        steps = [share(progress, 2 * place + side, 2 * len(names)) for side in (0, 1)]
        left, right = _Side(engine, a, old, steps[0]), _Side(engine, b, new, steps[1])
        found.append(_compared(name, left, right, limit))
    return found


def _having(table: str, *both: Saved) -> Iterator[Saved]:
    """Those that have a table. Raises UnknownTable where none has."""
    unknown = []
    for saved in both:
        try:
            saved.saved_table(table)
        except UnknownTable as error:
            unknown.append(error)
        else:
            yield saved
    if len(unknown) == len(both):
        raise unknown[0]


def _full_name(saved: Saved, table: str) -> str:
    return saved.saved_table(table).name


class _Side:
    """One state of a table: its rows, and how their texts are shown."""

    def __init__(
        self, engine: Engine, saved: Saved, table: SavedTable, progress: Progress | None
    ) -> None:
        self.rows: StoredRows = saved.rows(table, progress=progress)
        if self.rows.num_rows != table.stored.rows:
            raise UsageError(
                f"table {table.name} has {counted(self.rows.num_rows, 'row')}, and was saved with "
                f"{table.stored.rows:,}",
                hint="`eventlog snapshot verify` says what differs from the manifest",
            )
        self.names = [column.name for column in self.rows.columns]
        if isinstance(self.rows.table, Table):
            version = self.rows.table.version
            history = saved.snapshot.parts[table.stream].history
            loaders = source_codec(engine, history).loaders(version, "json")
            self.loaders: list[Loader] = [loaders[version.names.index(name)] for name in self.names]
        else:
            self.loaders = [_event_time, bytes.decode, _event_value]

    def beside(self, others: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], pa.Table]:
        """The rows whose offsets are not among others, with these."""
        import pyarrow as pa

        schema = pa.schema([(str(place), pa.large_binary()) for place in range(len(self.names))])
        kept, pieces = [], [schema.empty_table()]
        for offsets, columns in self.rows.texts():
            places = np.flatnonzero(~np.isin(offsets, others))
            if len(places):
                arrays = [
                    column.take(pa.array(places)).cast(pa.large_binary()) for column in columns
                ]
                kept.append(offsets[places])
                pieces.append(pa.table(arrays, schema=schema))
        return _joined(kept), pa.concat_tables(pieces)

    def shown(self, table: pa.Table, place: int) -> dict[str, Any]:
        texts = [column[place].as_py() for column in table.columns]
        pairs = zip(self.names, self.loaders, texts, strict=True)
        return {name: None if text is None else load(text) for name, load, text in pairs}


def _compared(name: str, a: _Side, b: _Side, limit: int) -> TableDiff:
    taken = _pairs(a.rows, b.rows)
    # An offset is that of one version of one row, whatever columns it is shown with.
    same_b = b.rows.offsets()
    offsets_a, rows_a = a.beside(same_b)
    offsets_b, rows_b = b.beside(a.rows.offsets())
    left, right = rows_a.select([i for i, _ in taken]), rows_b.select([j for _, j in taken])
    key = _key(a.rows, b.rows, taken)
    events = not isinstance(a.rows.table, Table)
    compared = [2] if events else [i for i in range(len(taken)) if i not in key]
    if key:
        found = by_key(left, right, key=key, compared=compared)
    else:
        found, compared = by_values(left, right), []
    names = [b.names[j] for _, j in taken]
    renamed = {a.names[i]: b.names[j] for i, j in taken if a.names[i] != b.names[j]}
    a.names = [renamed.get(name, name) for name in a.names]
    both_a, both_b = {i for i, _ in taken}, {j for _, j in taken}
    return TableDiff(
        table=name,
        key=[names[i] for i in key],
        removed=len(found.removed),
        added=len(found.added),
        changed=len(found.changed[0]),
        changed_columns={
            names[i]: int(mask.sum())
            for i, mask in zip(compared, found.differs, strict=True)
            if mask.any()
        },
        columns_added=[name for j, name in enumerate(b.names) if j not in both_b],
        columns_renamed=renamed,
        columns_dropped=[name for i, name in enumerate(a.names) if i not in both_a],
        rows=_listed(
            found,
            (a, offsets_a, rows_a),
            (b, offsets_b, rows_b),
            [names[i] for i in compared],
            limit,
        ),
        limit=limit,
    )


def _listed(
    found: Matched,
    old: tuple[_Side, npt.NDArray[np.int64], pa.Table],
    new: tuple[_Side, npt.NDArray[np.int64], pa.Table],
    compared: Sequence[str],
    limit: int,
) -> list[RowDiff]:
    (a, offsets_a, rows_a), (b, offsets_b, rows_b) = old, new
    listed = [
        RowDiff(kind="removed", offset=int(offsets_a[i]), before=a.shown(rows_a, i), after=None)
        for i in found.removed[:limit].tolist()
    ]
    pairs = zip(found.changed[0][:limit].tolist(), found.changed[1][:limit].tolist(), strict=True)
    for place, (i, j) in enumerate(pairs):
        columns = zip(compared, found.differs, strict=True)
        listed.append(
            RowDiff(
                kind="changed",
                offset=int(offsets_b[j]),
                before=a.shown(rows_a, i),
                after=b.shown(rows_b, j),
                columns=[name for name, mask in columns if mask[place]],
            )
        )
    return listed + [
        RowDiff(kind="added", offset=int(offsets_b[j]), before=None, after=b.shown(rows_b, j))
        for j in found.added[:limit].tolist()
    ]


def _pairs(a: StoredRows, b: StoredRows) -> list[tuple[int, int]]:
    """The places of each column that both have, in the order of `b`.

    Of one relation columns are the same by the source's numbers, across renames; else by name.
    """
    names_a = [column.name for column in a.columns]
    names_b = [column.name for column in b.columns]
    same: dict[str, str | None] = {name: name for name in names_b}
    if isinstance(a.table, Table) and isinstance(b.table, Table):
        one, other = a.table.version, b.table.version
        if one.relation == other.relation:
            at = zip(other.names, places(one, other), strict=True)
            same = {name: None if place is None else one.names[place] for name, place in at}
    before = [same[name] for name in names_b]
    return [(names_a.index(name), j) for j, name in enumerate(before) if name and name in names_a]


def _key(a: StoredRows, b: StoredRows, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Where the key is among the pairs; empty where the two have not the same one."""
    of_a = [place for place, (i, _) in enumerate(pairs) if i in a.key]
    of_b = [place for place, (_, j) in enumerate(pairs) if j in b.key]
    whole = len(of_a) == len(a.key) and len(of_b) == len(b.key)
    return of_a if whole and of_a == of_b else []


def _joined(arrays: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def _event_time(text: bytes) -> str:
    return utc(int.from_bytes(text, "little", signed=True)).isoformat()


def _event_value(text: bytes) -> Any:
    _, value = codec(_MSGPACK).decode(b"\x92\xc0" + text)
    return json_value(value)
