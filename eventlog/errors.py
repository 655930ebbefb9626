"""Every error of the log, split by who must act.

::

    EventLogError                     has .hint, a remedy in one sentence
    ├── UsageError                    the caller asked for something that cannot be
    │   ├── UnknownStream   UnknownTable   StreamExists   UnknownColumn
    │   ├── OffsetOutOfRange          outside [start, end] of the stream
    │   ├── OffsetsDropped            below the stream's first retained offset
    │   ├── CutInsideTransaction      strict=True and the offset lies inside one
    │   ├── SnapshotRefused           the table has no state at that cut, and why
    │   ├── BadManifest               a manifest or bundle is not whole, or was changed
    │   ├── TransformRefused          fails, not row-wise, no source, or changed in its version
    │   ├── ConsumerFenced            another process committed, or rewound, this consumer
    │   ├── NotCommitted              iterating on after a failed commit
    │   ├── ValueDoesNotFit           a stored value has no place in the Arrow type
    │   ├── UnsuitableValue           an event holds what no event can (eventlog.codecs.events)
    │   └── ClosedLog   ForkedLog
    ├── EnvironmentFault              the machine must change
    │   ├── NotALog   LogExists   LogVersionError   CodecNotInstalled
    │   ├── DiskFull  LogUnreadable
    │   ├── WriterActive              another process writes this captured stream
    │   └── LogInUse                  the log is open elsewhere, or a process has it for itself
    ├── DamagedLog                    stored bytes are not what was written
    └── SourceError                   a source refused, failed, or contradicts the log
"""

from __future__ import annotations


class EventLogError(Exception):
    """Root of the tree; `str()` is the cause, `.hint` the remedy."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(EventLogError):
    """The caller asked for something that cannot be."""


class UnknownStream(UsageError):
    """No stream of that name is in the log."""


class StreamExists(UsageError):
    """A stream of that name is there, of another kind."""


class UnknownTable(UsageError):
    """No relation bore that name at the cut."""


class UnknownColumn(UsageError):
    """The table has no such column."""


class OffsetOutOfRange(UsageError):
    """An offset outside `[start, end]` of the stream."""


class OffsetsDropped(UsageError):
    """An offset below the stream's first retained one."""


class CutInsideTransaction(UsageError):
    """With `strict=True`: the offset lies inside a source transaction."""


class SnapshotRefused(UsageError):
    """The table has no state at that cut; the message says why."""


class BadManifest(UsageError):
    """A manifest or a bundle that cannot be read, is not whole, or was changed."""


class TransformRefused(UsageError):
    """A transform that fails, is not row-wise, hides its source, or changed in its version."""


class ConsumerFenced(UsageError):
    """Another process committed or rewound this consumer since it was read."""


class NotCommitted(UsageError):
    """The iteration went on although the last batch was not committed."""


class ValueDoesNotFit(UsageError):
    """A stored value has no place in the Arrow type of its column."""


class ClosedLog(UsageError):
    """The log was closed."""


class ForkedLog(UsageError):
    """The log was opened before a fork; start the child by `spawn` and open it there."""


class EnvironmentFault(EventLogError):
    """The machine, the disk or the installation must change."""


class NotALog(EnvironmentFault):
    """The directory holds no log."""


class LogExists(EnvironmentFault):
    """The directory holds something that is in the way."""


class LogVersionError(EnvironmentFault):
    """The log was written in another format, or needs an unknown feature."""


class CodecNotInstalled(EnvironmentFault):
    """A payload names a codec that no installed package brings."""


class DiskFull(EnvironmentFault):
    """The disk has no room for a commit; nothing of it was stored."""


class LogUnreadable(EnvironmentFault):
    """The operating system or the store refused to open or to map the log."""


class WriterActive(EnvironmentFault):
    """Another process holds the lock of this stream's single writer."""


class LogInUse(EnvironmentFault):
    """Something needs the log alone: it is open elsewhere, or another process has it alone."""


class DamagedLog(EventLogError):
    """Stored bytes are not what was written."""


class SourceError(EventLogError):
    """A source refused, failed, or contradicts what the log holds."""


class NetworkFileSystemWarning(UserWarning):
    """A log is opened on a file system that other machines share: its locks do not reach them."""
