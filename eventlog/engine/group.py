"""Group commit: plans of several threads that wait for the disk at once become one commit.

::

    thread A   leads: applies A ─── two flushes ──▶ done, wakes B to lead
    thread B      waits ··························· leads: applies B, C, D ─ two flushes ─▶ done
    thread C         waits ······························································▶ woken

Who comes while a commit is under way waits; its leader then wakes the first who waits, and that one
commits for all that wait by then. Nobody waits for more to come, so a single thread is as fast as
without. Each waits for a wake-up of its own: who is done need not queue to learn it.

A plan that is refused (a stale consumer, say) must not fail its neighbours: the transaction is then
given up and each plan commits alone. The main thread always commits alone: it is the one that
signals interrupt, and it may then not know the outcome.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from eventlog.engine import commit
from eventlog.engine.plan import Committed, Plan
from eventlog.engine.store import Store
from eventlog.errors import DiskFull

GROUP_BYTES_MAX = 1 << 20
"""Bodies in one group: its commit should not keep other processes waiting for long."""

LARGE_BYTES = 1 << 20
PAUSE_S = 0.0002
"""After a large commit, so that small ones of other processes get the write lock: it is unfair."""


class _Request:
    """A plan on its way. `wake` is held until it is done, or its thread shall lead."""

    __slots__ = ("bytes", "committed", "error", "plan", "wake")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bytes = sum(append.bytes for append in plan.appends)
        self.committed: Committed | None = None
        self.error: BaseException | None = None
        self.wake = threading.Lock()
        self.wake.acquire()

    @property
    def done(self) -> bool:
        return self.committed is not None or self.error is not None


class GroupCommitter:
    """Commits plans to one store. Shared by all threads of a process."""

    def __init__(self, store: Store, clock_us: Callable[[], int]) -> None:
        self._store = store
        self._clock_us = clock_us
        self._queue = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._led = False

    def commit(self, plan: Plan) -> Committed:
        """Apply a plan, durably and whole, or raise with nothing done.

        Only an interrupt (KeyboardInterrupt) leaves the outcome unknown.
        """
        request = _Request(plan)
        if threading.current_thread() is threading.main_thread():
            self._run([request])
        else:
            self._gather(request)
        if request.bytes >= LARGE_BYTES:
            time.sleep(PAUSE_S)
        if request.error is not None:
            raise request.error
        assert request.committed is not None
        return request.committed

    def _gather(self, request: _Request) -> None:
        """Have a plan committed, by this thread or by the one that leads."""
        with self._queue:
            self._waiting.append(request)
            leads, self._led = not self._led, True
        if not leads:
            request.wake.acquire()
            leads = not request.done
        if leads:
            try:
                group = self._take()
                self._run(group)
            finally:
                self._hand_over()
            for other in group:
                if other is not request:
                    other.wake.release()

    def _hand_over(self) -> None:
        """Wake the first who waits, to lead; or nobody leads."""
        with self._queue:
            following = self._waiting[0] if self._waiting else None
            self._led = following is not None
        if following is not None:
            following.wake.release()

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
        """The plans to commit at once, this thread's the first: it came first, or was woken so."""
        with self._queue:
            group = [self._waiting.popleft()]
            size = group[0].bytes
            while self._waiting and size + self._waiting[0].bytes <= GROUP_BYTES_MAX:
                group.append(self._waiting.popleft())
                size += group[-1].bytes
            return group
