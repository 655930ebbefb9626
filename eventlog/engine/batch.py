"""Batches: encoded and described outside the write lock, placed in a stream inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eventlog.engine.index import BODY, DROPPED, RAW, U8, IndexEntry, Transactions
from eventlog.engine.payload import HEADER_BYTES, PART_BYTES, Body, compressed, encode, encode_one

BATCH_BYTES = PART_BYTES - HEADER_BYTES
"""Boundaries and records of a full batch: its body fills one part. A larger record goes alone."""

INLINE_BYTES_MAX = 1024
"""A body that takes no more, its transactions and relations included, is held by its index entry: a
tiny commit then writes two pages fewer. The whole entry stays below 2,020 bytes, which LMDB keeps
in a leaf."""

_TRANSACTION_BYTES, _RELATION_BYTES = 28, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A payload and everything its index entry will say, but for where it will stand."""

    body: Body
    transactions: Transactions
    relations: tuple[tuple[int, int], ...] = ()
    states: U8 | None = None
    erasure_epoch: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    def compressed(self) -> Batch:
        """The same batch with its body compressed, where that saves anything."""
        return dataclasses.replace(self, body=compressed(self.body))

    @property
    def fits_entry(self) -> bool:
        """Whether the body is so small that its index entry may hold it."""
        words = _TRANSACTION_BYTES * len(self.transactions) + _RELATION_BYTES * len(self.relations)
        return self.body.size + words <= INLINE_BYTES_MAX

    def entry(self, payload_id: int) -> IndexEntry:
        """The entry for this batch, to be moved to its place by the commit.

        Payload id 0 puts the body into the entry itself.
        """
        body = self.body
        more = self.more
        if body.compression:
            more = {**more, RAW: body.raw_bytes}
        if not payload_id:
            more = {**more, BODY: body.data}
        dropped = 0 if self.states is None else int((self.states == DROPPED).sum())
        return IndexEntry(
            first_offset=0,
            payload_id=payload_id,
            payload_checksum=body.checksum,
            body_bytes=body.size,
            slots=body.count,
            records=body.count - dropped,
            time_running_max=int(self.transactions.time.max()),
            relations=self.relations,
            transactions=self.transactions,
            states=self.states,
            erasure_epoch=self.erasure_epoch,
            more=more,
        )


def batch_of(
    codec: int,
    records: list[bytes],
    transactions: Transactions,
    *,
    relations: tuple[tuple[int, int], ...] = (),
) -> Batch:
    """Encode whole records as one batch."""
    lengths = np.fromiter(map(len, records), np.int64, len(records))
    ends = np.cumsum(lengths).astype(np.uint32)
    body = encode(codec, ends, b"".join(records))
    return Batch(body=body, transactions=transactions, relations=relations)


def batch_of_one(codec: int, record: bytes, *, time_us: int) -> Batch:
    """Encode a single record, of no source transaction."""
    body = encode_one(codec, record)
    return Batch(body=body, transactions=Transactions.one(time_us=time_us))


def batches_of(
    codec: int,
    records: Iterable[bytes],
    *,
    time_us: int,
    relations: tuple[tuple[int, int], ...] = (),
) -> Iterator[Batch]:
    """Cut the records of one transaction into full batches, in order."""
    gathered: list[bytes] = []
    size = 0
    back = 0

    def close() -> Batch:
        transaction = Transactions.one(time_us=time_us, back=back)
        return batch_of(codec, gathered, transaction, relations=relations)

    for record in records:
        cost = 4 + len(record)
        if gathered and size + cost > BATCH_BYTES:
            yield close()
            back += len(gathered)
            gathered, size = [], 0
        gathered.append(record)
        size += cost
    if gathered:
        yield close()
