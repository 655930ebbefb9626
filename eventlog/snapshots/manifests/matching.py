"""Matching the rows of two states of a table: which went, which came, which have other values.

Rows are given as Arrow tables of binary columns, in the same order of columns on both sides,
without those that are one and the same version in both. All of it is joins and sorts of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Places of rows on either side, ascending: `removed` of the first, `added` of the second.

    `changed` are pairs of places whose values differ, by the second; `differs` has, for each column
    that was compared, which of the pairs differ in it.
    """

    removed: Places
    added: Places
    changed: tuple[Places, Places]
    differs: list[npt.NDArray[np.bool_]]


def by_key(a: pa.Table, b: pa.Table, *, key: Sequence[int], compared: Sequence[int]) -> Matched:
    """Match by the columns of a key. A row whose key holds a null is matched by nothing."""
    import pyarrow as pa

    names = [f"k{place}" for place in range(len(key))]

    def keyed(table: pa.Table, place: str) -> pa.Table:
        columns = [table.column(i) for i in key]
        rows = pa.array(np.arange(table.num_rows))
        return pa.table([*columns, rows], names=[*names, place])

    pairs = keyed(a, "a").join(keyed(b, "b"), keys=names, join_type="inner")
    left = pairs.column("a").to_numpy().astype(np.int64)
    right = pairs.column("b").to_numpy().astype(np.int64)
    order = np.argsort(right, kind="stable")
    left, right = left[order], right[order]
    differs = [_differs(a.column(i).take(left), b.column(i).take(right)) for i in compared]
    changed = np.any(differs, axis=0) if differs else np.zeros(len(left), bool)
    return Matched(
        removed=np.setdiff1d(np.arange(a.num_rows), left),
        added=np.setdiff1d(np.arange(b.num_rows), right),
        changed=(left[changed], right[changed]),
        differs=[column[changed] for column in differs],
    )


def by_values(a: pa.Table, b: pa.Table) -> Matched:
    """Match whole rows, as multisets: of equal ones as many as both have, the first ones."""
    import pyarrow as pa

    names = [f"c{place}" for place in range(a.num_columns)]
    both = pa.concat_tables([a.rename_columns(names), b.rename_columns(names)])
    sides = np.repeat(np.array([0, 1]), [a.num_rows, b.num_rows])
    same = _groups(both, names)
    # Row i of its kind on one side is matched by row i of its kind on the other.
    order = np.lexsort((np.arange(len(sides)), sides, same))
    kinds, halves = same[order], sides[order]
    begins = np.flatnonzero(np.r_[True, (kinds[1:] != kinds[:-1]) | (halves[1:] != halves[:-1])])
    if not len(order):
        begins = begins[:0]
    sizes = np.diff(np.append(begins, len(order)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(begins, sizes)
    counts = np.zeros((int(same.max(initial=-1)) + 1, 2), np.int64)
    np.add.at(counts, (same, sides), 1)
    alone = rank >= counts[same, 1 - sides]
    none = np.zeros(0, np.int64)
    return Matched(
        removed=np.flatnonzero(alone & (sides == 0)),
        added=np.flatnonzero(alone & (sides == 1)) - a.num_rows,
        changed=(none, none),
        differs=[],
    )


def _groups(table: pa.Table, names: Sequence[str]) -> Places:
    """A number for each row, equal for equal rows; nulls are equal."""
    import pyarrow as pa

    found = np.zeros(table.num_rows, np.int64)
    for name in names:
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # Of no rows, or of more than one array holds.
            column = column.combine_chunks() if column.num_chunks else pa.array([], pa.binary())
        codes = column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
        wide = found * (int(codes.max(initial=-1)) + 2) + codes.astype(np.int64) + 1
        found = np.unique(wide, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return found


def _differs(a: pa.ChunkedArray, b: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    import pyarrow.compute as pc

    unequal = pc.fill_null(pc.not_equal(a, b), False)
    one_null = pc.xor(pc.is_null(a), pc.is_null(b))
    found: npt.NDArray[np.bool_] = pc.or_(unequal, one_null).to_numpy().astype(bool)
    return found
