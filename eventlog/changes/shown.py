"""The columns that changes show: the new row of each, of a delete what was sent of the old one.

A record without a row, such as a truncate, shows NULL everywhere. Rows of another schema version
move to the columns of the one that is asked for, where a column that they lack takes its fast
default, or NULL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from eventlog.changes.arrow import Conversion, change_table, chosen_columns, times_array
from eventlog.changes.change import Op
from eventlog.changes.decoding import Located
from eventlog.changes.fold import moved_row
from eventlog.changes.runs import ChangeRun, ItemRun
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import places
from eventlog.changes.split import (
    OP_NUMBER,
    OPS,
    Places,
    Split,
    Texts,
    columns_of,
    joined_columns,
    mended,
    repeated,
)
from eventlog.changes.together import TOGETHER_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

CONTROL = 1
"""The codec of the log's own records, which know no types."""

GROUP_BYTES = TOGETHER_BYTES
"""Payloads that become columns together: much more than the cost of a call, and near the caches."""


AnyRun: TypeAlias = ChangeRun | ItemRun[Located]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Changes as columns of one schema version, those that were asked for; `ops` as in Split."""

    offsets: Places
    ops: npt.NDArray[np.uint8]
    times: Places
    columns: Sequence[Texts | None]


class ArrowTables:
    """Makes Arrow tables of groups of runs, all with the columns of one schema version.

    `codec_of` gives the source's codec, where no record says it. Belongs to one thread.
    """

    def __init__(
        self, target: Schema, conversion: Conversion, *, codec_of: Callable[[], Any]
    ) -> None:
        self._target = target
        self._conversion = conversion
        self._codec_of = codec_of
        self._codec: Any = None

    def of(self, group: Sequence[AnyRun]) -> pa.Table:
        """The table of one group: `_offset`, `_op`, `_time`, then the table's columns."""
        import pyarrow as pa

        if self._codec is None or self._codec.id == CONTROL:
            self._codec = _source_codec(group) or self._codec_of()
        target = self._target
        wanted = [place for place, _ in chosen_columns(target, self._conversion.columns)]
        found = shown(group, target, wanted) if group else _nothing(target)
        names = pa.array([str(op) for op in OPS], pa.string())
        head = [
            ("_offset", pa.array(found.offsets, pa.int64())),
            ("_op", names.take(pa.array(found.ops))),
            ("_time", times_array(found.times)),
        ]
        return change_table(
            self._codec,
            target,
            found.columns,
            offsets=found.offsets,
            conversion=self._conversion,
            head=head,
        )


def _source_codec(group: Iterable[AnyRun]) -> Any:
    """The codec of the first record that is not the log's own, if there is one."""
    for run in group:
        codecs = [run.piece.codec] if isinstance(run, ChangeRun) else [i.codec for i in run.items]
        for codec in codecs:
            if codec.id != CONTROL:
                return codec
    return None


def groups(runs: Iterable[AnyRun]) -> Iterator[list[AnyRun]]:
    """Runs one behind the other, as many together as have GROUP_BYTES.

    What was split together becomes columns together: its texts need not be joined again.
    """
    group: list[AnyRun] = []
    size = 0
    for run in runs:
        if size >= GROUP_BYTES and not _split_together(group[-1], run):
            yield group
            group, size = [], 0
        group.append(run)
        size += len(run.piece.payload.data) if isinstance(run, ChangeRun) else GROUP_BYTES // 16
    if group:
        yield group


def _split_together(one: AnyRun, other: AnyRun) -> bool:
    if not (isinstance(one, ChangeRun) and isinstance(other, ChangeRun)):
        return False
    known = {id(split.data) for split in one.found.rows}
    return any(id(split.data) in known for split in other.found.rows)


def shown(runs: Iterable[AnyRun], target: Schema, wanted: Iterable[int]) -> Shown:
    """The changes of some runs under `target`, in the order of their offsets.

    `wanted` are the places of the columns that are asked for. REQUIRES: there is a record.
    """
    parts = [part for run in runs for part in _parts(run, target)]
    columns = joined_columns(list(_columns_of(parts, target, frozenset(wanted))))
    if len(parts) == 1:
        offsets, ops, times, _ = parts[0]
        return Shown(offsets=offsets, ops=ops, times=times, columns=columns)
    offsets = np.concatenate([part.offsets for part in parts])
    ops = np.concatenate([part.ops for part in parts])
    times = np.concatenate([part.times for part in parts])
    if (np.diff(offsets) > 0).all():
        return Shown(offsets=offsets, ops=ops, times=times, columns=columns)
    order = np.argsort(offsets)
    return Shown(
        offsets=offsets[order],
        ops=ops[order],
        times=times[order],
        columns=[None if texts is None else texts.take(order) for texts in columns],
    )


def _nothing(target: Schema) -> Shown:
    none = np.zeros(0, np.int64)
    return Shown(
        offsets=none,
        ops=none.astype(np.uint8),
        times=none,
        columns=columns_of([], len(target.columns)),
    )


class _Part(NamedTuple):
    """Records that were found together; `rows` are split, or columns of `target` already."""

    offsets: Places
    ops: npt.NDArray[np.uint8]
    times: Places
    rows: Split | Sequence[Texts]


def _parts(run: AnyRun, target: Schema) -> Iterator[_Part]:
    """The rows of each relation, then the records without a row."""
    if not isinstance(run, ChangeRun):
        yield _items_part(run.items, target)
        return
    piece = run.piece
    for split in run.splits():
        yield _Part(run.offsets_of(split.slots), split.ops, piece.times(split.slots), split)
    rare = run.rare()
    if rare:
        slots = np.array([raw.slot for raw in rare], np.int64)
        ops = np.array([OP_NUMBER[raw.op] for raw in rare], np.uint8)
        nulls = [repeated(None, len(rare))] * len(target.columns)
        yield _Part(run.offsets_of(slots), ops, piece.times(slots), nulls)


def _items_part(items: Sequence[Located], target: Schema) -> _Part:
    """Records that are at hand one by one."""
    rows = []
    for item in items:
        row = item.raw.old if item.raw.op is Op.DELETE else item.raw.new
        if row is not None and item.schema is not None and item.schema is not target:
            row = moved_row(row, item.schema, target)
        rows.append(row)
    return _Part(
        np.array([item.offset for item in items], np.int64),
        np.array([OP_NUMBER[item.raw.op] for item in items], np.uint8),
        np.array([item.moment.time_us for item in items], np.int64),
        columns_of(rows, len(target.columns)),
    )


def _columns_of(
    parts: Iterable[_Part], target: Schema, wanted: frozenset[int]
) -> Iterator[list[Texts | None]]:
    """The columns of the parts, in order; parts that were split together come as one."""
    for are_split, some in groupby(parts, lambda part: isinstance(part.rows, Split)):
        if are_split:
            for split in mended(part.rows for part in some if isinstance(part.rows, Split)):
                yield _columns(split, target, wanted)
        else:
            for part in some:
                if not isinstance(part.rows, Split):
                    yield [texts if at in wanted else None for at, texts in enumerate(part.rows)]


def _columns(split: Split, target: Schema, wanted: frozenset[int]) -> list[Texts | None]:
    """The shown rows of one relation, moved to `target`."""
    is_delete = split.ops == OP_NUMBER[Op.DELETE]
    deletes = is_delete if is_delete.any() else None
    found: list[Texts | None] = []
    for place, (column, at) in enumerate(
        zip(target.columns, places(split.schema, target), strict=True)
    ):
        if place not in wanted:
            found.append(None)
        elif at is not None:
            found.append(_shown_texts(split, at, deletes))
        else:
            default = None if column.missing is None else column.missing.encode()
            found.append(repeated(default, len(split)))
    return found


def _shown_texts(split: Split, column: int, deletes: npt.NDArray[np.bool_] | None) -> Texts:
    new, old = split.new, split.old
    if deletes is None or old is None:
        return split.new_texts(column)
    return Texts(
        data=split.data,
        starts=np.where(deletes, old.starts[column], new.starts[column]),
        lengths=np.where(deletes, old.lengths[column], new.lengths[column]),
    )
