"""Transactions: appends to several streams, published by one commit, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from eventlog.engine import Advance, Engine, Plan
from eventlog.errors import UsageError
from eventlog.outbox import Outbox, require_many


class Transaction:
    """Buffers appends until its `with` block ends, then commits them together (I3).

    An exception commits nothing. `offsets` maps each stream to the range that it got, afterwards,
    or where ids were given to a list with the offset of each event. The write lock is not held
    inside the block. Belongs to one thread, and is used once.
    """

    def __init__(self, engine: Engine, advance: Advance | None = None) -> None:
        self.offsets: dict[str, Sequence[int]] = {}
        self._engine = engine
        self._advance = advance
        self._outbox: Outbox | None = None
        self._done = False

    def append(
        self,
        stream: str,
        value: Any,
        key: str | int | None = None,
        *,
        keys: Iterable[str | int | None] | None = None,
        id: str | int | None = None,  # noqa: A002
        ids: Iterable[str | int | None] | None = None,
    ) -> None:
        """Append one event, or, for a list, each of its elements as an event of its own.

        `keys` and `ids` are those of a list, one each. Events whose id the stream knows (see
        `Stream.append`) are left out. The stream must be there: `log.stream(name,
        create=True)` makes it. Raises UnknownStream, and TypeError for what an event cannot hold.
        """
        if self._outbox is None:
            raise UsageError(
                "the transaction is not open", hint="append inside its `with` block, and once"
            )
        if not isinstance(value, list):
            if keys is not None or ids is not None:
                raise UsageError("keys= and ids= are those of a list", hint="one has key= and id=")
            if hasattr(value, "to_dict") and not isinstance(value, Mapping):
                require_many(value, "values")
            self._outbox.add(stream, value, key, id)
            return
        if key is not None or id is not None:
            raise UsageError(
                "a list is many events, which cannot share one key or id",
                hint="give keys=[...] and ids=[...], one each; to append a list as one event, wrap "
                "it in another",
            )
        self._outbox.extend(stream, value, keys, ids)

    def __enter__(self) -> Self:
        if self._done or self._outbox is not None:
            raise UsageError("a transaction is used once", hint="begin another one")
        self._outbox = Outbox(self._engine)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        outbox, self._outbox = self._outbox, None
        self._done = True
        assert outbox is not None
        with outbox:
            if kind is not None:
                return
            advances: Sequence[Advance] = [] if self._advance is None else [self._advance]
            plan = Plan(appends=outbox.appends(), advances=list(advances))
            if plan.appends or plan.advances:
                committed = self._engine.commit(plan)
                self.offsets = dict(zip(outbox.streams, committed.offsets, strict=True))
                self._committed()

    def _committed(self) -> None:
        """Called after the commit, for those that stand behind an advance."""
