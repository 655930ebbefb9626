"""Group commit: plans of several threads that wait for the disk at once become one commit.

::

    thread A   commit ─▶ leader: apply A ─────── two flushes ──────▶ done
    thread B      commit ─▶ waits ················ leader: apply B, C, D ── two flushes ─▶ done
    thread C         commit ─▶ waits ·························································▶ done

Who comes while a commit is under way waits for its end; the first to wake commits for all that wait
then. Nobody waits for more to come, so a single thread is as fast as without.

A plan that is refused (a stale consumer, say) must not fail its neighbours: the transaction is then
given up and each plan commits alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from eventlog.engine import commit
from eventlog.engine.plan import Committed, Plan
from eventlog.engine.store import Store
from eventlog.errors import DiskFull

GROUP_BYTES_MAX = 1 << 20
"""Bodies in one group: its commit should not keep other processes waiting for long."""

LARGE_BYTES = 1 << 20
PAUSE_S = 0.0002
"""After a large commit, so that small ones of other processes get the write lock: it is unfair."""


@dataclass(slots=True)
class _Request:
    plan: Plan
    bytes: int
    committed: Committed | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.committed is not None or self.error is not None


class GroupCommitter:
    """Commits plans to one store. Shared by all threads of a process."""

    def __init__(self, store: Store, clock_us: Callable[[], int]) -> None:
        self._store = store
        self._clock_us = clock_us
        self._waiting: deque[_Request] = deque()
        self._leading = threading.Lock()

    def commit(self, plan: Plan) -> Committed:
        """Apply a plan, durably and whole, or raise with nothing done.

        Only an interrupt (KeyboardInterrupt) leaves the outcome unknown.
        """
        request = _Request(plan, sum(append.bytes for append in plan.appends))
        if threading.current_thread() is threading.main_thread():
            # Signals interrupt this thread: it may not know the outcome of its own plan, so alone.
            with self._leading:
                self._run([request])
        else:
            self._waiting.append(request)
            with self._leading:
                while not request.done:
                    self._run(self._take())
        if request.bytes >= LARGE_BYTES:
            time.sleep(PAUSE_S)
        if request.error is not None:
            raise request.error
        assert request.committed is not None
        return request.committed

    def _run(self, group: list[_Request], *, merge: bool = True) -> None:
        store = self._store
        try:
            with store.write() as txn:
                now_us = self._clock_us()
                done = [commit.apply(store, txn, r.plan, now_us, merge=merge) for r in group]
        except DiskFull as error:
            if merge:
                # A merged batch wants free pages in a row; a small record alone may still fit.
                self._run(group, merge=False)
                return
            for request in group:
                request.error = error
        except BaseException as error:
            self._store.end_left()
            if len(group) > 1 and isinstance(error, Exception):
                for request in group:
                    self._run([request])
                return
            for request in group:
                request.error = error
        else:
            for request, committed in zip(group, done, strict=True):
                request.committed = committed

    def _take(self) -> list[_Request]:
        group = [self._waiting.popleft()]
        size = group[0].bytes
        while self._waiting and size + self._waiting[0].bytes <= GROUP_BYTES_MAX:
            group.append(self._waiting.popleft())
            size += group[-1].bytes
        return group
