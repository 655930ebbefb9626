"""Events on their way into streams: encoded in chunks, published by one commit (D6).

::

    values ──▶ records ──▶ full batches ──▶ one commit                            up to COMMIT_BYTES
                                 └────────▶ staged by a thread of its own, in commits that the disk
                                            takes well, and published by reference in one: beyond it

The write lock is held only while encoded batches are committed, never while a caller's code runs.
While the disk takes what is staged, the next values are encoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np

from eventlog.codecs.events import CODEC, UnsuitableValue, key_text
from eventlog.engine import Append, Batch, Engine, Owner, Transactions, now_us
from eventlog.engine.batch import BATCH_BYTES
from eventlog.engine.failpoint import reach
from eventlog.engine.index import I64
from eventlog.engine.payload import encode
from eventlog.engine.writer import COMMIT_BYTES
from eventlog.errors import EnvironmentFault, UsageError

IDS_BYTES_MAX = 16 << 20
"""Encoded bytes in an append with ids: not staged, since they are looked up by its commit."""

STAGING_PAUSE_S = 0.0002
"""Between two large commits, so that small ones of other processes get their turn."""

CHUNK = 1_000
"""Values that are encoded at once, and fewer where they are large: about CHUNK_BYTES."""

CHUNK_FIRST = 16
CHUNK_BYTES = 1 << 20

BOUNDARY_BYTES = 4
"""What a record costs in a body beside its own bytes."""

Key = str | int | None


class Outbox:
    """The events of one commit, by stream. A context manager: leaving drops what was not published.

    Raises UnknownStream, and UsageError for a stream that is captured.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._time_us = now_us()
        self._spools: dict[str, _Spool] = {}
        self._thread = _Thread()
        self._half = False
        self._fault: EnvironmentFault | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        spools, self._spools = self._spools, {}
        with ExitStack() as stack:  # Each is closed, whatever another raises.
            self._thread.join()
            for spool in spools.values():
                stack.callback(spool.close)

    def add(self, stream: str, value: Any, key: Key, event_id: Key = None) -> None:
        """Add one event; a value that is None is a tombstone and needs a key."""
        self.extend(stream, (value,), (key,), None if event_id is None else (event_id,))

    def extend(
        self,
        stream: str,
        values: Iterable[Any],
        keys: Iterable[Key] | None,
        ids: Iterable[Key] | None,
    ) -> None:
        """Add many events, with as many keys and ids, or without any.

        Raises UnsuitableValue, a TypeError, for a value that an event cannot hold, and UsageError
        for one thing, such as text or a DataFrame, in the place of many.
        """
        require_many(values, "values")
        for name, column in (("keys", keys), ("ids", ids)):
            if column is not None:
                require_many(column, name)
        spool = self._spools.get(stream)
        if spool is None:
            require_events(stream, self._engine.stream(stream).kind)
            spool = self._spools[stream] = _Spool(self._engine, stream, self._time_us, self._thread)
        done = 0
        try:
            for chunk in _chunks(values, keys, ids, spool.next_chunk):
                spool.extend(chunk)
                done += len(chunk.values)
            self._spill()
        except UnsuitableValue as error:
            # Nothing of the chunk that holds it was taken.
            error.place = done + (error.place or 0)
            self._half = self._half or done > 0
            raise
        except EnvironmentFault as error:
            self._fault = error
            raise
        except BaseException:
            self._half = True
            raise

    def appends(self) -> list[Append]:
        """What a plan has to publish, by stream in the order of first use."""
        if self._fault is not None:
            raise self._fault  # It was caught, and what could not be staged is missing.
        if self._half:
            raise UsageError(
                "an append of this transaction failed half way, so nothing is committed",
                hint="let the exception leave the `with` block, and try again without that value",
            )
        return [spool.append() for spool in self._spools.values()]

    @property
    def streams(self) -> list[str]:
        """The streams that got events, in the order of first use."""
        return list(self._spools)

    def _spill(self) -> None:
        if len(self._spools) > 1 and sum(s.bytes for s in self._spools.values()) > COMMIT_BYTES:
            for spool in self._spools.values():
                if not spool.has_ids:
                    spool.stage()


def require_events(stream: str, kind: str) -> None:
    """Raise UsageError for a stream of another kind."""
    if kind != "events":
        raise UsageError(
            f"stream {stream!r} is captured, and nothing else is appended to it",
            hint="append to an event stream of another name",
        )


def require_many(given: object, name: str) -> None:
    """Raise UsageError for what is one event, key or id, or would be iterated as something else.

    Text and mappings can be iterated, too: over their characters and names. So can a DataFrame,
    over the names of its columns; a Series has its values.
    """
    one = isinstance(given, str | bytes | bytearray | memoryview | Mapping)
    framed = hasattr(given, "to_dict") and not hasattr(given, "to_list")
    if one or framed or not isinstance(given, Iterable):
        what = "events" if name == "values" else name
        raise UsageError(
            f"{name} is a {type(given).__name__}, and not a list of {what}",
            hint='give a list; for a DataFrame, df.to_dict("records")'
            if name == "values"
            else f"give a list of {name}, one for each value",
        )


def tombstone_without_key(place: int = 0) -> UnsuitableValue:
    """The error for None that is appended without a key."""
    error = UnsuitableValue(
        "an event without a key cannot be None",
        hint="None under a key is a tombstone: append(None, key=...)",
    )
    error.place = place
    return error


def id_text(event_id: Key) -> str | None:
    """The text of an id: like a key's, and not empty."""
    try:
        found = key_text(event_id)
    except UnsuitableValue as error:
        raise UnsuitableValue(
            f"an id is text or an integer, not {type(event_id).__name__}", hint="write it as text"
        ) from error
    if found is not None:
        try:
            found.encode()
        except UnicodeEncodeError as error:
            raise UnsuitableValue(
                "an id has lone surrogates, which are not Unicode", hint="give it as other text"
            ) from error
    if found == "":
        raise UnsuitableValue("an id is empty", hint="leave it out, or give each event its own")
    return found


class _Thread:
    """Stages for all streams of an outbox, one commit at a time; begins with the first."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="staging")
        return self._pool.submit(work, *arguments)

    def join(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)


class _Chunk(NamedTuple):
    values: list[Any]
    keys: list[Key] | None
    ids: list[Key] | None


class _Spool:
    """The events for one stream: records, full batches, and what had to be staged."""

    def __init__(self, engine: Engine, stream: str, time_us: int, thread: _Thread) -> None:
        self.bytes = 0
        self._thread = thread
        self._engine = engine
        self._stream = stream
        self._time_us = time_us
        self._encoder = CODEC.encoder()
        self._owner: Owner | None = None
        self._staging: Future[None] | None = None
        self._batches: list[Batch] = []
        self._records: list[bytes] = []
        self._lengths: list[I64] = []
        self._ids: list[str | None] = []
        self._count = 0
        self._size = 0
        self._back = 0
        self._chunk = CHUNK_FIRST

    def next_chunk(self) -> int:
        """How many values to encode at once, by the size of the last."""
        return self._chunk

    def extend(self, chunk: _Chunk) -> None:
        values, keys, ids = chunk
        texts = None if keys is None else _texts(keys)
        if type(None) in map(type, values):
            for place, value in enumerate(values):
                if value is None and (texts is None or texts[place] is None):
                    raise tombstone_without_key(place)
        records = self._encoder.many(texts, values)
        if ids is not None and self._owner is not None:
            raise UsageError(
                f"events with ids come after {COMMIT_BYTES >> 20} MiB of others in one append",
                hint="append those with ids first, or in a transaction of their own",
            )
        if ids is not None or self._ids:
            named = [None] * len(values) if ids is None else list(map(id_text, ids))
            self._ids += [None] * (self._count - len(self._ids)) + named
        self._count += len(values)
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        size = int(lengths.sum()) + 1
        self._chunk = max(1, min(CHUNK, CHUNK_BYTES * len(records) // size))
        self._take(records, lengths)

    def append(self) -> Append:
        self._close_batch()
        self._settle()
        staged = None if self._owner is None else self._owner.id
        if staged is not None:
            reach("outbox.staged")
        return Append(stream=self._stream, batches=self._batches, staged=staged, ids=self._ids)

    @property
    def has_ids(self) -> bool:
        """Whether events with ids are among them, which cannot be staged."""
        return bool(self._ids)

    def stage(self) -> None:
        """Store the full batches durably, in no stream yet."""
        if not self._batches:
            return
        if self._ids:
            raise UsageError(
                f"events with ids pass {IDS_BYTES_MAX >> 20} MiB in one append",
                hint="append them in smaller calls: those stored before are known by their ids",
            )
        self._settle()
        if self._owner is None:
            self._owner = self._engine.appender(self._stream)
        self._staging = self._thread.submit(self._stage, self._owner, self._batches)
        self._batches, self.bytes = [], 0

    def close(self) -> None:
        if self._owner is not None:
            reach("outbox.published")
            self._owner.close()

    @staticmethod
    def _stage(owner: Owner, batches: list[Batch]) -> None:
        owner.stage(batches)
        time.sleep(STAGING_PAUSE_S)

    def _settle(self) -> None:
        """Wait for what is being staged. Raises what that raised."""
        if self._staging is not None:
            self._staging.result()  # What failed stays, and is raised again: nothing is published.
            self._staging = None

    def _take(self, records: list[bytes], lengths: I64) -> None:
        """Gather records into batches, each closed before it passes BATCH_BYTES."""
        costs = int(lengths.sum()) + BOUNDARY_BYTES * len(records)
        while self._size + costs > BATCH_BYTES:
            until = self._size + np.cumsum(lengths + BOUNDARY_BYTES)
            fitting = int(np.searchsorted(until, BATCH_BYTES, side="right"))
            if not fitting and not self._records:
                fitting = 1  # A record that is larger than a batch goes alone.
            self._records += records[:fitting]
            self._lengths.append(lengths[:fitting])
            records, lengths = records[fitting:], lengths[fitting:]
            self._close_batch()
            costs = int(lengths.sum()) + BOUNDARY_BYTES * len(records)
            if not records:
                return
        self._records += records
        self._lengths.append(lengths)
        self._size += costs

    def _close_batch(self) -> None:
        if not self._records:
            return
        transaction = Transactions.one(time_us=self._time_us, back=self._back)
        ends = np.cumsum(np.concatenate(self._lengths)).astype(np.uint32)
        body = encode(CODEC.id, ends, b"".join(self._records))
        batch = Batch(body=body, transactions=transaction)
        most = COMMIT_BYTES if self._owner is None else self._owner.commit_bytes
        most = IDS_BYTES_MAX if self._ids else most
        if self.bytes + batch.body.size > most:
            self.stage()
        self._batches.append(batch)
        self.bytes += batch.body.size
        self._back += len(self._records)
        self._records, self._lengths, self._size = [], [], 0


def _texts(keys: Sequence[Key]) -> list[str | None]:
    if set(map(type, keys)) <= {str, type(None)}:
        return list(keys)  # type: ignore[arg-type]
    return [key_text(key) for key in keys]


def _chunks(
    values: Iterable[Any],
    keys: Iterable[Key] | None,
    ids: Iterable[Key] | None,
    size: Callable[[], int],
) -> Iterator[_Chunk]:
    """Values, `size()` at once, with keys and ids. Raises UsageError unless as many of each."""
    values = iter(values)
    others = {name: iter(c) for name, c in (("keys", keys), ("ids", ids)) if c is not None}
    while chunk := list(islice(values, size())):
        taken = {name: list(islice(column, len(chunk))) for name, column in others.items()}
        for name, column in taken.items():
            if len(column) < len(chunk):
                raise _uneven(name)
        yield _Chunk(chunk, taken.get("keys"), taken.get("ids"))
    for name, rest in others.items():
        if next(rest, _END) is not _END:
            raise _uneven(name)


_END = object()


def _uneven(name: str) -> UsageError:
    return UsageError(
        f"there are not as many {name} as values",
        hint=f"give one of the {name} for each value, or none at all",
    )
