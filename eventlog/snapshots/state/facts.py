"""What a fold knows of a table beside its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from eventlog.changes.change import Op
from eventlog.snapshots.state.steps import Rare


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a fold knows beside the rows; see `eventlog.changes.fold.TableFold`."""

    seen: bool = False
    copying: int | None = None
    copied_from: int | None = None
    lost: dict[str, Any] | None = None

    def after(self, found: Rare) -> Facts:
        """The same once a rare record is applied."""
        op = found.raw.op
        if op is Op.COPY_BEGIN:
            return replace(self, copying=found.offset, lost=None)
        if op is Op.COPY_END:
            return replace(self, copied_from=self.copying, copying=None)
        if op is Op.DATA_LOSS:
            return replace(self, lost=dict(found.raw.fields or {}))
        return self
