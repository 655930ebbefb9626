"""Following: batches of a stream as it grows, for loops that wait and loops that are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from eventlog.changes.records import Batch, View, gather
from eventlog.engine import Engine

MAX_ROWS = 1_000
"""Records in a followed batch where the caller names no number."""

WAIT_S = 0.1
"""How long one wait lasts at most, so that `stop` is asked again."""

POLL_S = 0.002
"""Between two looks at the log of an awaited loop."""

_END: Final = object()


class Following:
    """Iterates over a stream's batches and waits for more; `async for` works, too.

    Every iteration begins at `start` anew. It ends at `until`, an offset, or when `stop()` says so,
    which is asked between batches and at least every 0.1 s of waiting.
    """

    def __init__(
        self,
        engine: Engine,
        view: View[Any, Any],
        stream: str,
        *,
        start: int,
        until: int | None = None,
        max_rows: int = MAX_ROWS,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self.start = start
        self.until = until
        self._engine = engine
        self._view = view
        self._stream = stream
        self._max_rows = max_rows
        self._stop = stop or (lambda: False)

    def __iter__(self) -> Iterator[Batch[Any, Any]]:
        for step in self.steps():
            if isinstance(step, Batch):
                if len(step):
                    yield step
            else:
                self._engine.wait(step, timeout_s=WAIT_S)

    async def __aiter__(self) -> AsyncIterator[Batch[Any, Any]]:
        steps = self.steps()
        while True:
            # A thread reads, so that a long way through a log does not hold up the event loop.
            step: Any = await asyncio.to_thread(next, steps, _END)
            if step is _END:
                return
            if not isinstance(step, Batch):
                await asyncio.sleep(POLL_S)
            elif len(step):
                yield step

    def steps(self) -> Iterator[Batch[Any, Any] | int]:
        """Batches, empty ones included; where there is none yet, the last commit's number."""
        at = self.start
        while not self._stop():
            seen = self._engine.wait(-1, timeout_s=0)
            _, end = self._engine.checked_range(self._stream, at, None)
            limit = end if self.until is None else min(end, self.until)
            if at < limit:
                found = gather(self._view, self._stream, at, limit, max_rows=self._max_rows)
                for batch in found:
                    at = batch.stop
                    yield batch
                    if self._stop():
                        return
            if self.until is not None and at >= self.until:
                return
            if at >= limit:
                yield seen
