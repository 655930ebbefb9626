"""A plan: everything one atomic commit shall do, prepared outside the write lock (D6, I3, I4).

A plan is plain data. `Engine.commit` checks and applies it in one LMDB transaction; the lock is
held only for that, never in user code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventlog.engine.batch import Batch
from eventlog.engine.rows import StreamKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Publish batches at the stream's end: first those `staged` by an owner, then `batches`.

    `staged_position` is written into the staged batches' one transaction, where they have none: a
    source may tell a transaction's end only after it sent the rest. `ids` has one id, or None, for
    each record of `batches`: a record whose id the stream knows is not stored again. An append with
    ids has nothing staged.
    """

    stream: str
    batches: Sequence[Batch] = ()
    staged: int | None = None
    staged_position: int | None = None
    ids: Sequence[str | None] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the bodies to be stored."""
        return sum(batch.body.size for batch in self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Move a consumer, if it stands where `expected_offset` and `expected_epoch` say.

    With `rewind` the epoch rises and any offset of the stream is allowed.
    """

    stream: str
    consumer: str
    offset: int
    expected_offset: int
    expected_epoch: int
    filter: str = ""
    rewind: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUpdate:
    """Store a source's state beside the changes that it covers.

    `writer_epoch` must still be the stream's: a writer that was replaced is refused.
    """

    stream: str
    writer_epoch: int
    state: Mapping[str, Any] | None = None
    schemas: Sequence[tuple[int, Mapping[str, Any]]] = ()


@dataclass(slots=True, kw_only=True)
class Plan:
    """What one commit does: create streams, append, move consumers, store sources' states."""

    create: dict[str, StreamKind] = field(default_factory=dict)
    appends: list[Append] = field(default_factory=list)
    advances: list[Advance] = field(default_factory=list)
    sources: list[SourceUpdate] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a commit did: for each append of the plan, in order, the offsets it got.

    A range, or with ids a list with the offset of each record, those known before included;
    `stored` counts the records that were stored, and so not known.
    """

    offsets: tuple[Sequence[int], ...]
    stored: tuple[int, ...]
