"""Rewriting: a log copied, record by record, into a new data file, as it was at one moment.

::

    catching up   each stream up to its tail, which is still being merged      short read
                  again, until little came meanwhile                           transactions
    the cut       what came since, the tails, and all small rows but owners'   one read transaction
    the end       what retention dropped meanwhile; then the rows of `meta`    one commit

The target is a log by its last commit: without the row of the format it is none. Every body is held
against its checksum on the way. Payloads get new ids, in order; what is staged stays behind, it
belongs to whoever staged it. Rows are copied as they are, so that names which this version does not
know are kept. Memory is bounded by READ_BYTES, COMMIT_BYTES and the largest body.

The source may be written meanwhile: appends, merged tails and retention of other processes change
nothing below a tail but the stream's start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from eventlog.engine import index, payload_store, rows
from eventlog.engine.commit import require_stream
from eventlog.engine.index import IndexEntry
from eventlog.engine.merge import Run
from eventlog.engine.payload_store import delete_body
from eventlog.engine.rows import StreamRow
from eventlog.engine.scan import READ_BYTES, READ_ENTRIES, entries_from
from eventlog.engine.sealed import seal, unseal
from eventlog.engine.store import Store, Txn
from eventlog.errors import DamagedLog

COMMIT_BYTES = 16 << 20
"""Bodies in one commit of the target: its flushes must not rule."""

CATCH_UP_BYTES = 16 << 20
"""What may be left for the cut, whose read transaction keeps pages from being reused."""

CATCH_UPS_MAX = 8
"""A writer that is faster than the copy is not outrun by trying on."""

COMMIT_ENTRIES = 4_096
COMMIT_ROWS = 50_000
DROPPED_AT_ONCE = 64

Progress = Callable[[int, int], None]
"""Told of the records copied so far, and of all that will be."""

Identity = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_COPIED = ("schema", "consumer", "ids")


def rewrite(
    source: Store,
    target: Store,
    *,
    identity: Identity = lambda row: row,
    progress: Progress | None = None,
) -> int:
    """Copy all that is published in `source` into `target`, an empty environment, durably.

    Returns how many records that are. `identity` may change the row `log`. Raises DamagedLog,
    naming the stream and the offsets where a body or an entry is not what was written, and
    DiskFull.
    """
    copy = _Copy(source, target, progress)
    for _ in range(CATCH_UPS_MAX):
        if copy.catch_up() < CATCH_UP_BYTES:
            break
    return copy.cut(identity)


class _Copy:
    """How far a rewrite is: `_at` has, by stream number, the next offset to copy."""

    def __init__(self, source: Store, target: Store, progress: Progress | None) -> None:
        self._source = source
        self._target = Target(target)
        self._progress = progress
        self._at: dict[int, int] = {}
        self._done = 0
        self._total = 0

    def catch_up(self) -> int:
        """Copy each stream up to its tail as it is now; returns the bytes copied."""
        copied = 0
        for stream in self._streams():
            stop = Run(*stream.tail[0]).first_offset if stream.tail else stream.end
            with _naming(stream):
                while self._at.get(stream.id, stream.start) < stop:
                    with self._source.read() as txn:
                        found = self._gather(txn, stream.name, stop)
                    copied += self._take(found, stream)
                    self._report()
        return copied

    def cut(self, identity: Identity) -> int:
        """Copy what is left, and the small rows, all as they are in one read transaction.

        Returns the number of records that the log has there.
        """
        with self._source.read() as txn:
            streams = self._streams(txn)
            for stream in streams:
                with _naming(stream):
                    while self._at.get(stream.id, stream.start) < stream.end:
                        self._take(self._gather(txn, stream.name, stream.end), stream)
            for name in _COPIED:
                self._target.copy(name, iter(txn.cursor(db=getattr(self._source, name))))
            meta = dict(txn.cursor(db=self._source.meta))
        for stream in streams:
            self._target.drop_below(stream)
        self._target.finish(_meta(meta, identity, payloads_below=self._target.next_id))
        self._report()
        return sum(stream.end - stream.start for stream in streams)

    def _streams(self, txn: Txn | None = None) -> list[StreamRow]:
        """The streams by number, so that what is copied first comes in the order of its keys."""
        if txn is None:
            with self._source.read() as txn:
                return self._streams(txn)
        found = sorted(rows.stream_rows(self._source, txn), key=lambda row: row.id)
        left = (row.end - self._at.get(row.id, row.start) for row in found)
        self._total = self._done + sum(left)
        return found

    def _gather(self, txn: Txn, name: str, stop: int) -> list[tuple[IndexEntry, list[bytes]]]:
        """The next entries of a stream with the parts of their bodies, READ_BYTES or few more."""
        source = self._source
        row = require_stream(source, txn, name)
        # Retention may have moved the start past what was copied.
        at = max(self._at.get(row.id, 0), row.start)
        found: list[tuple[IndexEntry, list[bytes]]] = []
        size = 0
        for entry in entries_from(source, txn, row.id, at, stop):
            if entry.first_offset != at:
                raise _gap(name, at, entry.first_offset)
            parts = payload_store.get_parts(source, txn, entry)
            found.append((entry, parts))
            at = entry.stop
            size += entry.body_bytes
            if size >= READ_BYTES or len(found) >= READ_ENTRIES:
                break
        if not found and at < stop:
            raise _gap(name, at, stop)
        self._at[row.id] = at
        return found

    def _take(self, found: list[tuple[IndexEntry, list[bytes]]], stream: StreamRow) -> int:
        for entry, parts in found:
            body = b"".join(parts)[: entry.body_bytes]
            payload_store.load(body, entry, stream=stream.name)
            self._target.add(stream.id, entry, parts)
            self._done += entry.records
        return sum(entry.body_bytes for entry, _ in found)

    def _report(self) -> None:
        """Tell how far it is. Never amid the cut: no transaction is held in a caller's code."""
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total))


class Target:
    """The new data file: gathers entries until they are worth a commit.

    `next_id` is that of the next payload.
    """

    def __init__(self, store: Store) -> None:
        self.next_id = 1
        self._store = store
        self._pending: list[tuple[int, IndexEntry, list[bytes]]] = []
        self._bytes = 0
        self._greatest = b""

    def add(self, stream_id: int, entry: IndexEntry, parts: list[bytes]) -> None:
        """Add an entry, under a new payload id unless it holds its body itself."""
        if entry.body is None:
            entry = replace(entry, payload_id=self.next_id)
            self.next_id += 1
        self._pending.append((stream_id, entry, parts))
        self._bytes += entry.body_bytes
        if self._bytes >= COMMIT_BYTES or len(self._pending) >= COMMIT_ENTRIES:
            self._flush()

    def copy(self, name: str, pairs: Iterator[tuple[bytes, bytes]]) -> None:
        """Copy a database as it is."""
        while chunk := list(islice(pairs, COMMIT_ROWS)):
            with self._store.write() as txn:
                for key, value in chunk:
                    stored = txn.put(key, value, db=getattr(self._store, name), append=True)
                    assert stored, "a cursor walks in the order of keys"

    def drop_below(self, stream: StreamRow) -> None:
        """Drop the entries that were copied before retention dropped them."""
        self._flush()
        store = self._store
        while True:
            with store.write() as txn:
                old = entries_from(store, txn, stream.id, 0, stream.start)
                dropped = list(islice(old, DROPPED_AT_ONCE))
                for entry in dropped:
                    txn.delete(index.key(stream.id, entry.first_offset), db=store.index)
                    delete_body(store, txn, entry)
            if not dropped:
                return

    def finish(self, meta: Mapping[bytes, bytes]) -> None:
        """Make it a log."""
        self._flush()
        with self._store.write() as txn:
            for key, value in meta.items():
                txn.put(key, value, db=self._store.meta)

    def _flush(self) -> None:
        store = self._store
        with store.write() as txn:
            for stream_id, entry, parts in self._pending:
                if entry.body is None:
                    payload_store.put_parts(store, txn, entry.payload_id, parts)
                key = index.key(stream_id, entry.first_offset)
                # In the order of keys, pages are filled; else they are split in halves.
                in_order = key > self._greatest
                self._greatest = max(key, self._greatest)
                value = index.pack(entry, under=key)
                stored = txn.put(key, value, db=store.index, append=in_order, overwrite=False)
                assert stored, "each entry is added once"
        self._pending, self._bytes = [], 0


def _meta(
    meta: Mapping[bytes, bytes], identity: Identity, *, payloads_below: int
) -> dict[bytes, bytes]:
    """The rows of `meta` for the target: without owners, whose staging stays behind."""
    kept = {key: value for key, value in meta.items() if not key.startswith(rows.OWNER_KEYS)}
    numbers = unseal(rows.COUNTERS_KEY, kept[rows.COUNTERS_KEY])
    kept[rows.COUNTERS_KEY] = seal(rows.COUNTERS_KEY, {**numbers, "payload": payloads_below})
    log = identity(unseal(rows.LOG_KEY, kept[rows.LOG_KEY]))
    kept[rows.LOG_KEY] = seal(rows.LOG_KEY, log)
    return kept


def _gap(stream: str, start: int, stop: int) -> DamagedLog:
    return DamagedLog(f"no entry of stream {stream!r} begins at offset {start}, below {stop}")


@contextmanager
def _naming(stream: StreamRow) -> Iterator[None]:
    """Have the error for what is damaged name the stream, and a remedy."""
    try:
        yield
    except DamagedLog as error:
        what, name = str(error), f"stream {stream.name!r}"
        raise DamagedLog(
            what if name in what else f"{name}: {what}",
            hint="drop what is damaged, and nothing else, with `eventlog repair`; then try again",
        ) from error
