"""Whole transactions that wait to be committed, as few batches as they fit into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdc.postgres.builder import BatchBuilder
from cdc.postgres.protocol.lsn import Lsn
from eventlog.engine import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """What one commit shall publish. `staged_end`: the staged transaction comes first, with it.

    `cursors` are those of all unfinished copies, None where they stay as they are.
    """

    batches: Sequence[Batch]
    staged_end: Lsn | None
    schemas: Sequence[tuple[int, Mapping[str, Any]]]
    position: Lsn
    cursors: Mapping[int, Mapping[str, Any]] | None


class Gathered:
    """Batches in commit order; the small transactions at the end still share a builder.

    `staged_end` is the end of a transaction that was staged and comes before all of them.
    """

    def __init__(self) -> None:
        self.staged_end: Lsn | None = None
        self._batches: list[Batch] = []
        self._bytes = 0
        self._last: BatchBuilder | None = None

    @property
    def bytes(self) -> int:
        return self._bytes + (self._last.size if self._last else 0)

    def __bool__(self) -> bool:
        return bool(self._batches) or self._last is not None or self.staged_end is not None

    def add(self, builder: BatchBuilder) -> None:
        """Take whole transactions to the end, together with those before where they fit."""
        if self._last is None or not self._last.absorb(builder):
            self._close()
            self._last = builder

    def keep(self, batch: Batch) -> None:
        """Take a batch to the end, as it is."""
        self._close()
        self._batches.append(batch)
        self._bytes += batch.body.size

    def take(self) -> tuple[list[Batch], Lsn | None]:
        """Take all, and `staged_end`."""
        self._close()
        taken = self._batches, self.staged_end
        self._batches, self._bytes, self.staged_end = [], 0, None
        return taken

    def _close(self) -> None:
        if self._last is not None:
            last, self._last = self._last, None
            self.keep(last.batch())
