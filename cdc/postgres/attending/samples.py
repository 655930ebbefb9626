"""Moments of which it is known what the server had seen by then, and what the stream held.

A sample pairs a snapshot with the end of the write-ahead log just after it: a transaction that the
snapshot sees committed before that end. So whether a catalog row was written before a place in the
stream can often be told. And the stream's end just before it: what the stream held by then comes
before everything that the snapshot does not see.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.visibility import Visibility

SAMPLES_MAX = 64
"""Some minutes of looking every few seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a snapshot saw, the log's end after it, and the stream's end before it."""

    sees: Visibility
    end: Lsn
    offset: int


class Samples:
    """The latest samples at which nothing had changed that the stream does not show."""

    def __init__(self, offset: int) -> None:
        """`offset`: the stream's end at the last one of an earlier run."""
        self.offset = offset
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)

    def add(self, sample: Sample) -> None:
        """Keep a sample after which all was found well."""
        self._samples.append(sample)
        self.offset = sample.offset

    def settled(self, xmin: int, position: Lsn) -> bool:
        """Whether a transaction is known to have committed below a position of the stream.

        Any thread may ask.
        """
        return any(
            sample.end <= position and sample.sees.sees(xmin) for sample in list(self._samples)
        )


def take(conn: Connection, stream_end: Callable[[], int]) -> Sample:
    """Take a sample. REQUIRES: autocommit, so that the snapshot is a new one."""
    offset = stream_end()
    with translated("reading the server's snapshot"):
        row = conn.execute(
            "select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text"
        ).fetchone()
    assert row is not None
    return Sample(sees=Visibility.parse(row[0]), end=Lsn.parse(row[1]), offset=offset)
