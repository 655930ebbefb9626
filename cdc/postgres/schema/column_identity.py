"""Which columns of the catalog a Relation message means (D11).

The message names columns without their attribute numbers, and tells how the table was when its
transaction ran; the catalog tells how it is now. In between, columns may have been added, dropped,
renamed and retyped. What is certain:

::

    attributes                      1   2   3   4   5   6
    the catalog now                 a   ✗   c   d   ✗   f
    the message                    (a,      c,  d,  e)

    columns come in the order of their numbers, which are never used twice
    a column that is there now was there then, or was not added yet, nor was any behind it
    a column that is dropped now was there or not, unless it is known to have been dropped before
    what was written before the message (`settled`) was then as it is now, name and type included

The columns are certain where exactly one choice of attributes agrees with all that. Names prove
nothing by themselves: a column may have been renamed, dropped, and added anew. Pure; no IO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cdc.postgres.protocol.messages import RelationColumn
from cdc.postgres.schema.relation import CatalogColumn, CatalogRelation


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownColumns:
    """What an earlier version of the relation, whose columns are certain, tells.

    Up to attribute `newest` all were added by then, and only `present` were not dropped yet.
    """

    present: frozenset[int]
    newest: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An attribute that the message may mean; `column` None: dropped since."""

    attribute: int
    column: CatalogColumn | None
    settled: bool

    def may_be(self, sent: RelationColumn) -> bool:
        column = self.column
        if column is None or not self.settled:
            return True
        return (column.name, column.type, column.typmod) == (sent.name, sent.type, sent.typmod)


def identified(
    sent: Sequence[RelationColumn],
    relation: CatalogRelation,
    known: KnownColumns | None,
    settled: Callable[[int], bool],
) -> tuple[int, ...] | None:
    """The attribute numbers of the message's columns; None where they are not certain.

    `settled` tells of a transaction whether it had ended, for the table, before the message's.
    """
    found = set()
    for sendable in _sendable(relation):
        candidates = _candidates(relation, sendable, known, settled)
        ways = _ways(sent, candidates, _added(relation, candidates, known, settled))
        if ways is None:
            return None
        found |= ways
    return found.pop() if len(found) == 1 else None


def _sendable(relation: CatalogRelation) -> Iterable[list[CatalogColumn]]:
    """The columns that are sent; two answers where it is not known whether generated ones are."""
    if relation.published is not None:
        return [[c for c in relation.columns if c.attribute in relation.published]]
    plain = [c for c in relation.columns if not c.generated]
    stored = [c for c in relation.columns if not c.virtual]
    if relation.generated_sent is not None:
        return [stored if relation.generated_sent else plain]
    return [plain] if len(plain) == len(stored) else [plain, stored]


def _candidates(
    relation: CatalogRelation,
    sendable: Iterable[CatalogColumn],
    known: KnownColumns | None,
    settled: Callable[[int], bool],
) -> list[_Candidate]:
    found = [_Candidate(c.attribute, c, settled(c.xmin)) for c in sendable]
    for attribute, xmin in relation.dropped.items():
        dead = known is not None and attribute <= known.newest and attribute not in known.present
        if not dead and not settled(xmin):
            found.append(_Candidate(attribute, None, settled=False))
    return sorted(found, key=lambda candidate: candidate.attribute)


def _added(
    relation: CatalogRelation,
    candidates: Iterable[_Candidate],
    known: KnownColumns | None,
    settled: Callable[[int], bool],
) -> int:
    """The attribute up to which all were added by the time of the message."""
    numbers = [candidate.attribute for candidate in candidates if candidate.settled]
    numbers += [attribute for attribute, xmin in relation.dropped.items() if settled(xmin)]
    return max(numbers, default=0) if known is None else max([known.newest, *numbers])


def _ways(
    sent: Sequence[RelationColumn], candidates: list[_Candidate], added: int
) -> set[tuple[int, ...]] | None:
    """The choices that agree, none or one; None where there are several."""
    count, width = len(candidates), len(sent)
    if all(candidate.column is not None for candidate in candidates):
        return _prefix(sent, candidates, added)
    # ways[i][j]: in how many ways, two at most, the columns from j on are found from i on.
    ways = [[0] * (width + 1) for _ in range(count + 1)]
    ways[count][width] = 1
    for i in range(count - 1, -1, -1):
        candidate, row, after = candidates[i], ways[i], ways[i + 1]
        left_out = candidate.column is None
        for j in range(width + 1):
            total = after[j] if left_out else int(candidate.attribute > added and j == width)
            if j < width and after[j + 1] and candidate.may_be(sent[j]):
                total += after[j + 1]
            row[j] = min(total, 2)
    if ways[0][0] != 1:
        return set() if ways[0][0] == 0 else None
    return {_walked(ways, candidates, sent)}


def _prefix(
    sent: Sequence[RelationColumn], candidates: list[_Candidate], added: int
) -> set[tuple[int, ...]]:
    """Where none may have been dropped, the message has the first ones."""
    taken, later = candidates[: len(sent)], candidates[len(sent) :]
    if len(taken) < len(sent) or any(candidate.attribute <= added for candidate in later):
        return set()
    if not all(candidate.may_be(column) for candidate, column in zip(taken, sent, strict=True)):
        return set()
    return {tuple(candidate.attribute for candidate in taken)}


def _walked(
    ways: list[list[int]], candidates: list[_Candidate], sent: Sequence[RelationColumn]
) -> tuple[int, ...]:
    found: list[int] = []
    for i, candidate in enumerate(candidates):
        j = len(found)
        if j < len(sent) and ways[i + 1][j + 1] and candidate.may_be(sent[j]):
            found.append(candidate.attribute)
        elif candidate.column is not None:
            break
    return tuple(found)
