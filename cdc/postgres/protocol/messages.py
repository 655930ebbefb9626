"""The messages of logical replication as values, one class for each tag that `pgoutput` sends.

::

    protocol 1   B Begin    C Commit   O Origin   R Relation   Y TypeMessage
                 I Insert   U Update   D Delete   T Truncate   M LogicalMessage
    protocol 2   S StreamStart   E StreamStop   c StreamCommit   A StreamAbort
    protocol 3   b BeginPrepare   P Prepare   K CommitPrepared   r RollbackPrepared
                 p StreamPrepare

Times are in microseconds since 1970-01-01 UTC. A row is one `Text` per column: the value's text as
bytes, None for NULL, UNCHANGED for a TOAST value that the server left out. NamedTuples of two
classes compare equal when their fields do, so tell messages apart by class.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from cdc.postgres.protocol.lsn import Lsn
from eventlog.changes.change import Text

Row: TypeAlias = tuple[Text, ...]


class Begin(NamedTuple):
    """A transaction follows; `final_lsn` is its commit record's position."""

    final_lsn: Lsn
    commit_time_us: int
    xid: int


class Commit(NamedTuple):
    """The transaction is complete; `end_lsn` is the position to acknowledge."""

    flags: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int


class Origin(NamedTuple):
    """The transaction came from another server, where it had position `lsn`."""

    lsn: Lsn
    name: str


class LogicalMessage(NamedTuple):
    """What `pg_logical_emit_message` wrote; outside of Begin and Commit when not transactional."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes | memoryview


class RelationColumn(NamedTuple):
    """One published column; `key` tells that it belongs to the replica identity."""

    name: str
    type: int
    typmod: int
    key: bool


class Relation(NamedTuple):
    """The schema of the changes of `relation` from here on.

    `identity` is pg_class.relreplident: d primary key, n nothing, f full, i index.
    """

    relation: int
    namespace: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


class TypeMessage(NamedTuple):
    """The name of a type that is not built in."""

    id: int
    namespace: str
    name: str


class Insert(NamedTuple):
    """A row came."""

    relation: int
    new: Row


class Update(NamedTuple):
    """A row changed.

    `old` is the whole old row under REPLICA IDENTITY FULL. With `old_is_key` it holds only the key,
    and its other columns are absent, though they look NULL here. None: the key stayed the same.
    """

    relation: int
    old: Row | None
    old_is_key: bool
    new: Row


class Delete(NamedTuple):
    """A row went; `old` and `old_is_key` as in Update."""

    relation: int
    old: Row
    old_is_key: bool


class Truncate(NamedTuple):
    """All rows of `relations` went; `options`: 1 CASCADE, 2 RESTART IDENTITY."""

    relations: tuple[int, ...]
    options: int


class StreamStart(NamedTuple):
    """A part of the unfinished transaction `xid` follows; `first` marks its first part."""

    xid: int
    first: bool


class StreamStop(NamedTuple):
    """The part of an unfinished transaction ends."""


class StreamCommit(NamedTuple):
    """The streamed transaction `xid` is complete."""

    xid: int
    flags: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int


class StreamAbort(NamedTuple):
    """The streamed `subxid` is rolled back, the whole transaction where it equals `xid`.

    Position and time are sent under `streaming 'parallel'` only.
    """

    xid: int
    subxid: int
    abort_lsn: Lsn | None
    abort_time_us: int | None


class BeginPrepare(NamedTuple):
    """A transaction that ends with PREPARE TRANSACTION follows."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    xid: int
    gid: str


class Prepare(NamedTuple):
    """The prepared transaction is complete, and must be durable once acknowledged."""

    flags: int
    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    xid: int
    gid: str


class CommitPrepared(NamedTuple):
    """COMMIT PREPARED of an earlier Prepare."""

    flags: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int
    xid: int
    gid: str


class RollbackPrepared(NamedTuple):
    """ROLLBACK PREPARED; may name a `gid` never seen."""

    flags: int
    prepare_end_lsn: Lsn
    rollback_end_lsn: Lsn
    prepare_time_us: int
    rollback_time_us: int
    xid: int
    gid: str


class StreamPrepare(NamedTuple):
    """As Prepare, for a streamed transaction."""

    flags: int
    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    xid: int
    gid: str


Message: TypeAlias = (
    Begin
    | Commit
    | Origin
    | LogicalMessage
    | Relation
    | TypeMessage
    | Insert
    | Update
    | Delete
    | Truncate
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | StreamPrepare
)
