"""The bytes of logical replication, read into messages and written as status updates.

::

    CopyData  = XLogData | Keepalive | Status
    XLogData  = 'w' start:u64 end:u64 sent:i64 payload            server to client
    Keepalive = 'k' end:u64 sent:i64 reply:u8                     server to client
    Status    = 'r' written:u64 flushed:u64 applied:u64 now:i64 reply:u8

    payload   = tag:u8 fields                                     one `pgoutput` message
    row       = count:u16 value*
    value     = 'n' | 'u' | 't' length:i32 text
    string    = UTF-8 bytes, NUL

All numbers are big-endian; times on the wire count microseconds since 2000-01-01 UTC, and leave
here as microseconds since 1970. Every read is bounds-checked and every message must end where its
fields do, else WireError. No IO, no state, safe from any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from cdc.postgres.protocol import messages as m
from cdc.postgres.protocol.lsn import Lsn
from eventlog.changes.change import UNCHANGED, Text
from eventlog.errors import SourceError

EPOCH_US = 946_684_800_000_000
"""2000-01-01 UTC, where Postgres counts from, in microseconds since 1970-01-01."""

_STRING_BYTES = 256
"""A string is looked for in so much at a time: a message may be large, and strings are short."""

_TIME_MAX = 2**63 - 1 - EPOCH_US

_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_I32 = struct.Struct(">i")
_XLOG = struct.Struct(">QQq")
_KEEPALIVE = struct.Struct(">QqB")
_STATUS = struct.Struct(">cQQQqB")
_BEGIN = struct.Struct(">QqI")
_COMMIT = struct.Struct(">BQQq")
_ORIGIN = struct.Struct(">Q")
_MESSAGE = struct.Struct(">BQ")
_COLUMN = struct.Struct(">Ii")
_TRUNCATE = struct.Struct(">IB")
_STREAM_START = struct.Struct(">IB")
_STREAM_COMMIT = struct.Struct(">IBQQq")
_STREAM_ABORT = struct.Struct(">II")
_ABORT_PLACE = struct.Struct(">Qq")
_BEGIN_PREPARE = struct.Struct(">QQqI")
_PREPARE = struct.Struct(">BQQqI")
_ROLLBACK_PREPARED = struct.Struct(">BQQqqI")


class WireError(SourceError):
    """The server sent bytes that are no message of the protocol."""


def unix_us(time: int) -> int:
    """A time on the wire in microseconds since 1970. Raises WireError where no log can hold it."""
    if time > _TIME_MAX:
        raise WireError(f"a message of the replication stream has the impossible time {time}")
    return time + EPOCH_US


class XLogData(NamedTuple):
    """One message of the output plugin. `start` and `end` order nothing (both may be 0/0)."""

    start: Lsn
    end: Lsn
    sent_us: int
    payload: bytes


class Keepalive(NamedTuple):
    """The server is alive and has sent everything below `end`; `reply`: it wants a status now."""

    end: Lsn
    sent_us: int
    reply: bool


class Reader:
    """Takes fields off the front of one message; never reads past its end."""

    __slots__ = ("at", "data", "what")

    def __init__(self, data: bytes | memoryview, what: str, at: int = 0) -> None:
        self.data = data
        self.what = what
        self.at = at

    def error(self, problem: str) -> WireError:
        """A WireError that names the message and the position in bytes from its start."""
        return WireError(f"{self.what}: {problem} at byte {self.at}")

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Take a group of fixed fields."""
        stop = self.at + layout.size
        if stop > len(self.data):
            raise self.error(f"{layout.size} bytes expected, {len(self.data) - self.at} left")
        taken = layout.unpack_from(self.data, self.at)
        self.at = stop
        return taken

    def one(self, layout: struct.Struct) -> int:
        """Take one fixed field."""
        value: int = self.fields(layout)[0]
        return value

    def take(self, length: int) -> bytes:
        """Take `length` bytes."""
        start = self.at
        self.skip(length)
        return bytes(self.data[start : self.at])

    def skip(self, length: int) -> None:
        """Pass over `length` bytes."""
        stop = self.at + length
        if length < 0 or stop > len(self.data):
            raise self.error(f"{length} bytes expected, {len(self.data) - self.at} left")
        self.at = stop

    def string(self) -> str:
        """Take a NUL-terminated string."""
        found = self._string()
        try:
            text = found.decode()
        except UnicodeDecodeError as error:
            raise self.error("a string that is not UTF-8") from error
        self.at += len(found) + 1
        return text

    def words(self) -> str:
        """Take a string that names nothing here: bytes that are not UTF-8 become `\\xff`."""
        found = self._string()
        self.at += len(found) + 1
        return found.decode("utf-8", "backslashreplace")

    def _string(self) -> bytes:
        taken = b""
        for start in range(self.at, len(self.data), _STRING_BYTES):
            taken += self.data[start : start + _STRING_BYTES]
            stop = taken.find(b"\0", start - self.at)
            if stop >= 0:
                return taken[:stop]
        raise self.error("a string without end")

    def row(self) -> tuple[Text, ...]:
        """Take a row of values."""
        values: list[Text] = []
        for _ in range(self.one(_U16)):
            kind = self.take(1)
            if kind == b"t":
                values.append(self.take(self.one(_I32)))
            elif kind == b"n":
                values.append(None)
            elif kind == b"u":
                values.append(UNCHANGED)
            else:
                self.at -= 1
                raise self.error(f"a value of unknown kind {_quoted(kind)}")
        return tuple(values)

    def expect(self, byte: bytes) -> None:
        """Take one byte that must be `byte`."""
        found = self.take(1)
        if found != byte:
            self.at -= 1
            raise self.error(f"{_quoted(byte)} expected, {_quoted(found)} found")

    def expect_end(self) -> None:
        """Raise unless everything was taken."""
        if self.at != len(self.data):
            raise self.error(f"{len(self.data) - self.at} bytes too many")


def parse(payload: bytes | memoryview) -> m.Message:
    """Read one `pgoutput` payload.

    Messages of a stream block must have lost their transaction id first (`take_xid`). Raises
    WireError, which names the tag and the position, when the payload is cut, too long, or unknown.
    A logical message's content is a view of `payload` if that is one.
    """
    tag = bytes(payload[:1])
    data = payload if tag == b"M" else bytes(payload)
    read = _READERS.get(tag)
    if read is None:
        found = f"begins with the unknown tag {_quoted(tag)}" if tag else "is empty"
        raise WireError(f"a message of the replication stream {found}")
    reader = Reader(data, f"message {_quoted(tag)} of the replication stream", 1)
    message = read(reader)
    reader.expect_end()
    return message


def take_xid(payload: bytes) -> tuple[int, bytes]:
    """Part a message of a stream block into its (sub)transaction id and its stored form (D2)."""
    reader = Reader(payload, f"message {_quoted(payload[:1])} of a stream block")
    tag = reader.take(1)
    xid = reader.one(_U32)
    return xid, tag + payload[reader.at :]


def split_truncate(payload: bytes) -> list[bytes]:
    """Turn a truncate of n tables into n of one, in the order that the server gave (D2)."""
    message = parse(payload)
    if not isinstance(message, m.Truncate):
        raise WireError(f"message {_quoted(payload[:1])} is no truncate")
    head = b"T" + _TRUNCATE.pack(1, message.options)
    return [head + _U32.pack(relation) for relation in message.relations]


def parse_frame(frame: bytes | memoryview) -> XLogData | Keepalive:
    """Read what one CopyData message of the walsender holds. Raises WireError."""
    data = bytes(frame)
    tag = data[:1]
    reader = Reader(data, f"frame {_quoted(tag)} of the replication stream", 1)
    if tag == b"w":
        start, end, sent = reader.fields(_XLOG)
        return XLogData(Lsn(start), Lsn(end), unix_us(sent), data[reader.at :])
    if tag == b"k":
        end, sent, reply = reader.fields(_KEEPALIVE)
        reader.expect_end()
        return Keepalive(Lsn(end), unix_us(sent), bool(reply))
    found = f"begins with the unknown tag {_quoted(tag)}" if tag else "is empty"
    raise WireError(f"a frame of the replication stream {found}")


def status_update(
    written: int, flushed: int, applied: int, now_us: int, reply: bool = False
) -> bytes:
    """Write the standby status update; the slot moves to `flushed`.

    Positions are LSNs, `now_us` is in microseconds since 1970; `reply` asks for a keepalive at
    once.
    """
    return _STATUS.pack(b"r", written, flushed, applied, now_us - EPOCH_US, reply)


def _quoted(tag: bytes) -> str:
    return repr(tag.decode("latin-1"))


def _begin(r: Reader) -> m.Begin:
    final, time, xid = r.fields(_BEGIN)
    return m.Begin(Lsn(final), unix_us(time), xid)


def _commit(r: Reader) -> m.Commit:
    flags, commit, end, time = r.fields(_COMMIT)
    return m.Commit(flags, Lsn(commit), Lsn(end), unix_us(time))


def _origin(r: Reader) -> m.Origin:
    return m.Origin(Lsn(r.one(_ORIGIN)), r.string())


def _message(r: Reader) -> m.LogicalMessage:
    flags, lsn = r.fields(_MESSAGE)
    prefix = r.words()  # an SQL_ASCII database lets anything through
    length = r.one(_I32)
    start = r.at
    r.skip(length)
    return m.LogicalMessage(bool(flags & 1), Lsn(lsn), prefix, r.data[start : r.at])


def _relation(r: Reader) -> m.Relation:
    relation, namespace, name = r.one(_U32), r.string(), r.string()
    identity = r.take(1).decode("latin-1")
    columns = tuple(_column(r) for _ in range(r.one(_U16)))
    return m.Relation(relation, namespace or "pg_catalog", name, identity, columns)


def _column(r: Reader) -> m.RelationColumn:
    flags, name = r.one(_U8), r.string()
    oid, typmod = r.fields(_COLUMN)
    return m.RelationColumn(name, oid, typmod, bool(flags & 1))


def _type(r: Reader) -> m.TypeMessage:
    return m.TypeMessage(r.one(_U32), r.string() or "pg_catalog", r.string())


def _insert(r: Reader) -> m.Insert:
    relation = r.one(_U32)
    r.expect(b"N")
    return m.Insert(relation, r.row())


def _update(r: Reader) -> m.Update:
    relation, kind, old = r.one(_U32), r.take(1), None
    if kind in (b"K", b"O"):
        old = r.row()
    else:
        r.at -= 1
    r.expect(b"N")
    return m.Update(relation, old, kind == b"K", r.row())


def _delete(r: Reader) -> m.Delete:
    relation, kind = r.one(_U32), r.take(1)
    if kind not in (b"K", b"O"):
        r.at -= 1
        raise r.error(f"'K' or 'O' expected, {_quoted(kind)} found")
    return m.Delete(relation, r.row(), kind == b"K")


def _truncate(r: Reader) -> m.Truncate:
    count, options = r.fields(_TRUNCATE)
    return m.Truncate(tuple(r.one(_U32) for _ in range(count)), options)


def _stream_start(r: Reader) -> m.StreamStart:
    xid, first = r.fields(_STREAM_START)
    return m.StreamStart(xid, bool(first))


def _stream_stop(_: Reader) -> m.StreamStop:
    return m.StreamStop()


def _stream_commit(r: Reader) -> m.StreamCommit:
    xid, flags, commit, end, time = r.fields(_STREAM_COMMIT)
    return m.StreamCommit(xid, flags, Lsn(commit), Lsn(end), unix_us(time))


def _stream_abort(r: Reader) -> m.StreamAbort:
    xid, subxid = r.fields(_STREAM_ABORT)
    if r.at == len(r.data):
        return m.StreamAbort(xid, subxid, None, None)
    lsn, time = r.fields(_ABORT_PLACE)
    return m.StreamAbort(xid, subxid, Lsn(lsn), unix_us(time))


def _begin_prepare(r: Reader) -> m.BeginPrepare:
    prepare, end, time, xid = r.fields(_BEGIN_PREPARE)
    return m.BeginPrepare(Lsn(prepare), Lsn(end), unix_us(time), xid, r.string())


def _prepare(r: Reader) -> m.Prepare:
    flags, prepare, end, time, xid = r.fields(_PREPARE)
    return m.Prepare(flags, Lsn(prepare), Lsn(end), unix_us(time), xid, r.string())


def _stream_prepare(r: Reader) -> m.StreamPrepare:
    return m.StreamPrepare(*_prepare(r))


def _commit_prepared(r: Reader) -> m.CommitPrepared:
    return m.CommitPrepared(*_prepare(r))


def _rollback_prepared(r: Reader) -> m.RollbackPrepared:
    flags, prepare, rollback, prepared, rolled, xid = r.fields(_ROLLBACK_PREPARED)
    times = unix_us(prepared), unix_us(rolled)
    return m.RollbackPrepared(flags, Lsn(prepare), Lsn(rollback), *times, xid, r.string())


_READERS: dict[bytes, Callable[[Reader], m.Message]] = {
    b"B": _begin,
    b"C": _commit,
    b"O": _origin,
    b"M": _message,
    b"R": _relation,
    b"Y": _type,
    b"I": _insert,
    b"U": _update,
    b"D": _delete,
    b"T": _truncate,
    b"S": _stream_start,
    b"E": _stream_stop,
    b"c": _stream_commit,
    b"A": _stream_abort,
    b"b": _begin_prepare,
    b"P": _prepare,
    b"K": _commit_prepared,
    b"r": _rollback_prepared,
    b"p": _stream_prepare,
}
