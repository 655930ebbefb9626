"""The log itself: LMDB, payloads, index, transactions, consumers, integrity. Opaque bytes."""

from eventlog.engine.batch import Batch, batch_of, batch_of_one, batches_of
from eventlog.engine.engine import Engine, now_us
from eventlog.engine.index import IndexEntry, Transactions
from eventlog.engine.plan import Advance, Append, Committed, Plan, SourceUpdate
from eventlog.engine.rows import Compression, ConsumerRow, StreamKind, StreamRow
from eventlog.engine.scan import Stretch
from eventlog.engine.upkeep.check import check
from eventlog.engine.upkeep.violation import Violation
from eventlog.engine.writer import Owner, Writer

__all__ = [
    "Advance",
    "Append",
    "Batch",
    "Committed",
    "Compression",
    "ConsumerRow",
    "Engine",
    "IndexEntry",
    "Owner",
    "Plan",
    "SourceUpdate",
    "StreamKind",
    "StreamRow",
    "Stretch",
    "Transactions",
    "Violation",
    "Writer",
    "batch_of",
    "batch_of_one",
    "batches_of",
    "check",
    "now_us",
]
