"""Following: batches of a stream as it grows, for loops that wait and loops that are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Self

from eventlog.changes.records import Batch, View, gather
from eventlog.engine import Engine
from eventlog.engine.watch import Watch, looks
from eventlog.errors import UsageError

MAX_ROWS = 1_000
"""Records in a followed batch where the caller names no number."""

WAIT_S = 0.1
"""How long one wait lasts at most, so that `stop` is asked again."""

_TIMER_S = 0.001
"""What an event loop's timers can tell apart; a shorter wait is one turn of the loop."""

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
        if until is not None and not isinstance(until, int):
            raise UsageError(f"no end {until!r}", hint="until= is an offset or 'current'")
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
            if isinstance(step, Batch):
                if len(step):
                    yield step
            elif not await self._commit_after(step):
                return

    def steps(self) -> Iterator[Batch[Any, Any] | int]:
        """Batches, empty ones included; where there is none yet, the last commit's number."""
        at, seen = self.start, -1
        while not self._stop():
            newest = self._engine.wait(-1, timeout_s=0)
            if newest != seen:
                seen = newest
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
            yield seen

    async def _commit_after(self, seen: int) -> bool:
        """Wait for a commit after number `seen`; returns False where `stop()` ended that.

        No thread is held meanwhile, and nothing is left open by a cancellation.
        """
        with self._engine.watches.lent() as watch, _Bell(watch) as bell:
            while True:
                looking = looks(lambda: self._engine.wait(-1, timeout_s=0), seen, timeout_s=WAIT_S)
                try:
                    pause_s = next(looking)
                    while True:
                        pause_s = looking.send(await bell.wait(pause_s))
                except StopIteration as end:
                    if end.value != seen:
                        return True
                if self._stop():
                    return False


class _Bell:
    """Lets a coroutine wait for a watch's event as `Watch.wait` lets a thread."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._rung = False

    def __enter__(self) -> Self:
        descriptor = self._watch.fileno()
        if descriptor is not None:
            self._loop.add_reader(descriptor, self._ring)
        return self

    def __exit__(self, *exc: object) -> None:
        descriptor = self._watch.fileno()
        if descriptor is not None:
            self._loop.remove_reader(descriptor)

    async def wait(self, timeout_s: float) -> bool:
        timeout_s = min(timeout_s, self._watch.longest_s)
        if timeout_s < _TIMER_S and self._watch.fileno() is not None:
            await asyncio.sleep(0)
        else:
            timer = self._loop.call_later(timeout_s, self._ended.set)
            try:
                await self._ended.wait()
            finally:
                timer.cancel()
        rung, self._rung = self._rung, False
        self._ended.clear()
        return rung

    def _ring(self) -> None:
        self._watch.drain()
        self._rung = True
        self._ended.set()
