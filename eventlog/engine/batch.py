"""Batches: encoded and described outside the write lock, placed in a stream inside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eventlog.engine.index import U8, IndexEntry, Transactions
from eventlog.engine.payload import HEADER_BYTES, PART_BYTES, Body, encode

BATCH_BYTES = PART_BYTES - HEADER_BYTES
"""Boundaries and records of a full batch: its body fills one part. A larger record goes alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A payload and everything its index entry will say, but for where it will stand."""

    body: Body
    transactions: Transactions
    relations: tuple[tuple[int, int], ...] = ()
    states: U8 | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, payload_id: int) -> IndexEntry:
        """The entry for this batch, to be moved to its place by the commit."""
        slots = self.body.count
        dropped = 0 if self.states is None else int((self.states == 1).sum())
        return IndexEntry(
            first_offset=0,
            payload_id=payload_id,
            payload_checksum=self.body.checksum,
            body_bytes=len(self.body.data),
            slots=slots,
            records=slots - dropped,
            time_running_max=int(self.transactions.time.max()),
            relations=self.relations,
            transactions=self.transactions,
            states=self.states,
            more=self.more,
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
