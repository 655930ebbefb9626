"""Every error of a source, split by who must act.

::

    SourceError (eventlog.errors)
    └── CaptureError                  has .hint, and .retry: may the same attempt succeed later?
        ├── BadDsn                    the connection string cannot be read
        ├── ConnectionRefused    (r)  no server answers at that address
        ├── ConnectionLost       (r)  the server closed an open connection
        ├── ServerStarting       (r)  the server is starting up, shutting down, or recovering
        ├── TooManyConnections   (r)  no free connection or walsender
        ├── AuthenticationFailed      wrong password, unknown role, no entry in pg_hba.conf
        ├── DatabaseMissing           the server has no database of that name
        ├── EncryptionFailed          TLS was asked for and cannot be had, or the reverse
        ├── PermissionMissing         the role may not do that; the hint is SQL for a DBA
        ├── UnsupportedServer         a version, or a kind of server, that cannot be captured
        ├── ServerNotReady            a setting of the server must change (wal_level, slots)
        ├── MissingTable              no table of that name, or none that can be captured
        ├── MissingPublication        the publication given is not there
        ├── HashKeyFault              the key of hashed columns is missing, unreadable, or another
        ├── SlotExists                a slot of that name is there already
        ├── SlotInUse            (r)  another process streams from the slot
        ├── SlotBlocked          (r)  the slot waits for a transaction that is still running
        ├── TableLocked          (r)  a transaction holds a lock on a table for too long
        ├── SlotMissing               the slot is gone
        ├── SlotLost                  the server removed WAL that the slot needed
        ├── ServerError               anything else that the server answered
        └── PositionConflict          the log's position contradicts the server (D7)
            ├── PositionBehindSlot    the slot moved on without this log
            ├── RestoredFromBackup    the log was a backup, and its original may capture on
            ├── OtherSystem           another database cluster answers at that address
            ├── PositionBeyondServer  the server's WAL ends below the position
            └── TimelineForked        a new timeline began below the position

`(r)` marks what is tried again with back-off; the others end a capture.
"""

from __future__ import annotations

from typing import ClassVar

from eventlog.errors import EnvironmentFault, SourceError


class CaptureError(SourceError):
    """Root of the tree; `retry` tells whether the same attempt may succeed later."""

    retry: ClassVar[bool] = False


class BadDsn(CaptureError):
    """The connection string, or what it refers to, cannot be read."""


class ConnectionRefused(CaptureError):
    """No server answers at that address."""

    retry = True


class ConnectionLost(CaptureError):
    """The server closed an open connection, or the network did."""

    retry = True


class ServerStarting(CaptureError):
    """The server is starting up, shutting down, or recovering."""

    retry = True


class TooManyConnections(CaptureError):
    """The server has no free connection, or no free walsender."""

    retry = True


class AuthenticationFailed(CaptureError):
    """Wrong password, unknown role, or no entry in pg_hba.conf."""


class DatabaseMissing(CaptureError):
    """The server has no database of that name."""


class EncryptionFailed(CaptureError):
    """TLS was asked for and cannot be had, or its certificate is not trusted."""


class PermissionMissing(CaptureError):
    """The role may not do what was asked; the hint is SQL that a DBA would run."""


class UnsupportedServer(CaptureError):
    """A version, or a kind of server, that cannot be captured."""


class ServerNotReady(CaptureError):
    """A setting of the server must change first."""


class MissingTable(CaptureError):
    """No table of that name, or none that can be captured."""


class MissingPublication(CaptureError):
    """The publication given is not there."""


class HashKeyFault(CaptureError):
    """The key of hashed columns is missing, cannot be used, or is not the one used before."""


class SlotExists(CaptureError):
    """A replication slot of that name is there already."""


class SlotInUse(CaptureError):
    """Another process streams from the slot."""

    retry = True


class SlotBlocked(CaptureError):
    """Creating the slot waits for a transaction that is still running."""

    retry = True


class TableLocked(CaptureError):
    """A transaction holds a lock on a table for longer than is waited for it, or waits for us."""

    retry = True


class SlotMissing(CaptureError):
    """The replication slot is gone."""


class SlotLost(CaptureError):
    """The server removed WAL that the slot needed."""


class ServerError(CaptureError):
    """Anything else that the server answered; `sqlstate` is its code, empty if it had none."""

    def __init__(self, message: str, *, hint: str = "", sqlstate: str = "") -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate


class PositionConflict(CaptureError):
    """The position that the log holds contradicts the server (D7)."""


class PositionBehindSlot(PositionConflict):
    """The slot was moved beyond the log's position by something else."""


class RestoredFromBackup(PositionConflict):
    """The log was opened from a backup: its original may have captured on, or does so now."""


class OtherSystem(PositionConflict):
    """Another database cluster answers at that address."""


class PositionBeyondServer(PositionConflict):
    """The server's WAL ends below the position: it was restored to an earlier time."""


class TimelineForked(PositionConflict):
    """A new timeline began below the position: what lies between may not exist there."""


class EmbeddedServerFault(EnvironmentFault):
    """The throw-away server could not be made, started or stopped."""
