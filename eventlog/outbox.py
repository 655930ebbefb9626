"""Events on their way into streams: encoded as they come, published by one commit (D6).

What passes COMMIT_BYTES_MAX is staged, durably and in no stream yet, and published by reference.
The write lock is held only while encoded batches are committed, never while a caller's code runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import repeat
from typing import Any, Self

from eventlog.codecs.events import CODEC, key_text
from eventlog.engine import Append, Batch, Engine, Owner, Transactions, batch_of, now_us
from eventlog.engine.batch import BATCH_BYTES
from eventlog.errors import UsageError

COMMIT_BYTES_MAX = 16 << 20
"""Encoded bytes in one commit: a flush of more keeps other writers waiting (LMDB.md)."""

STAGING_PAUSE_S = 0.0002
"""Between two large commits, so that small ones of other processes get their turn."""

BOUNDARY_BYTES = 4
"""What a record costs in a body beside its own bytes."""


class Outbox:
    """The events of one commit, by stream. A context manager: leaving drops what was not published.

    Raises UnknownStream, and UsageError for a stream that is captured.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._time_us = now_us()
        self._spools: dict[str, _Spool] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        spools, self._spools = self._spools, {}
        for spool in spools.values():
            spool.close()

    def add(self, stream: str, value: Any, key: str | int | None) -> None:
        """Add one event; a value that is None is a tombstone and needs a key."""
        self.extend(stream, (value,), (key,))

    def extend(
        self, stream: str, values: Iterable[Any], keys: Iterable[str | int | None] | None
    ) -> None:
        """Add many events, with as many keys, or without any.

        Raises UnsuitableValue, a TypeError, for a value that an event cannot hold.
        """
        spool = self._spools.get(stream)
        if spool is None:
            if self._engine.stream(stream).kind != "events":
                raise UsageError(
                    f"stream {stream!r} is captured, and nothing else is appended to it",
                    hint="append to an event stream of another name",
                )
            spool = self._spools[stream] = _Spool(self._engine, stream, self._time_us)
        if keys is None:
            pairs: Iterable[tuple[Any, Any]] = zip(values, repeat(None), strict=False)
        else:
            pairs = _equally_long(values, keys)
        for value, key in pairs:
            if value is None and key is None:
                raise UsageError(
                    "an event without a key cannot be None",
                    hint="None under a key is a tombstone: append(None, key=...)",
                )
            spool.put(key if key is None else key_text(key), value)
        self._spill()

    def appends(self) -> list[Append]:
        """What a plan has to publish, by stream in the order of first use."""
        return [spool.append() for spool in self._spools.values()]

    @property
    def streams(self) -> list[str]:
        """The streams that got events, in the order of first use."""
        return list(self._spools)

    def _spill(self) -> None:
        if len(self._spools) > 1 and sum(s.bytes for s in self._spools.values()) > COMMIT_BYTES_MAX:
            for spool in self._spools.values():
                spool.stage()


class _Spool:
    """The events for one stream: records, full batches, and what had to be staged."""

    def __init__(self, engine: Engine, stream: str, time_us: int) -> None:
        self.bytes = 0
        self._engine = engine
        self._stream = stream
        self._time_us = time_us
        self._encode = CODEC.encoder()
        self._owner: Owner | None = None
        self._batches: list[Batch] = []
        self._records: list[bytes] = []
        self._size = 0
        self._back = 0

    def put(self, key: str | None, value: Any) -> None:
        record = self._encode(key, value)
        cost = len(record) + BOUNDARY_BYTES
        if self._size + cost > BATCH_BYTES:
            self._close_batch()
        self._records.append(record)
        self._size += cost

    def append(self) -> Append:
        self._close_batch()
        staged = None if self._owner is None else self._owner.id
        return Append(stream=self._stream, batches=self._batches, staged=staged)

    def stage(self) -> None:
        """Store the full batches durably, in no stream yet."""
        if not self._batches:
            return
        if self._owner is None:
            self._owner = self._engine.appender(self._stream)
        self._owner.stage(self._batches)
        self._batches, self.bytes = [], 0
        time.sleep(STAGING_PAUSE_S)

    def close(self) -> None:
        if self._owner is not None:
            self._owner.close()

    def _close_batch(self) -> None:
        if not self._records:
            return
        transaction = Transactions.one(time_us=self._time_us, back=self._back)
        batch = batch_of(CODEC.id, self._records, transaction)
        if self.bytes + len(batch.body.data) > COMMIT_BYTES_MAX:
            self.stage()
        self._batches.append(batch)
        self.bytes += len(batch.body.data)
        self._back += len(self._records)
        self._records, self._size = [], 0


def _equally_long(values: Iterable[Any], keys: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    ended = object()
    keys = iter(keys)
    for value in values:
        key = next(keys, ended)
        if key is ended:
            break
        yield value, key
    else:
        if next(keys, ended) is ended:
            return
    raise UsageError(
        "there are not as many keys as values", hint="give one key for each value, or none at all"
    )
