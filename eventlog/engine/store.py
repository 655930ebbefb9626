"""The LMDB environment: the one module that imports `lmdb`.

Opened the same way everywhere (LMDB.md): a map of 1 TiB (address space, not disk), durable commits,
no writemap. A commit is two disk flushes. Errors of the store are translated here.

Thread safety: a Store may be shared among threads; a transaction belongs to the thread that began
it. A read transaction must be short: it pins every page freed since.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from contextlib import AbstractContextManager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from weakref import ref

import lmdb
from lmdb.verify import VerifyError, verify

from eventlog.engine.failpoint import reach
from eventlog.engine.locks import OpenLock, hint_about
from eventlog.errors import (
    ClosedLog,
    DamagedLog,
    DiskFull,
    EventLogError,
    ForkedLog,
    LogUnreadable,
    NotALog,
)

DATABASES = ("payload", "index", "staging", "schema", "consumer", "meta", "ids")
_ADDED = frozenset({"ids"})
"""Databases that logs of an earlier version lack."""

_MAP_BYTES = (1 << 40, 64 << 30, 8 << 30)
_READERS_MAX = 2048
_LOCK_BYTES = 192 + 64 * (_READERS_MAX - 1)
"""Of LMDB's lock file: a header, and a slot for each reader."""

_DATABASES_MAX = 1024
_NO_ROOM = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, -30772)
"""Codes of a write that ran out of room: short writes (EIO, MDB_SHORT_WRITE), quotas, limits."""

_CLEAR_EVERY_S = 60.0
"""A reader that was killed keeps pages from being reused until its slot is cleared: by a writer,
whose commits they would be."""

_FOREIGN = (lmdb.Error, struct.error, UnicodeDecodeError)
"""What a transaction's block may raise. Keys are taken apart in it, and a damaged page may show one
that no version writes."""

_CLOSE_WAIT_S = 30.0
"""For other threads' transactions. What hangs then keeps the environment until the process ends."""

_NUMBERS = count()

Txn = Any
"""An lmdb transaction. Its cursors and values must not be used after it ends."""


class Store:
    """An open environment and its sub-databases, as attributes: `payload`, `index`, ...

    `decoded` keeps rows beside the bytes that they were decoded from, by key.
    """

    payload: Any
    index: Any
    staging: Any
    schema: Any
    consumer: Any
    meta: Any
    ids: Any

    def __init__(
        self,
        directory: Path,
        *,
        create: bool,
        lock: OpenLock | None = None,
        complete: bool = True,
    ) -> None:
        """Open `directory/data.mdb`; with `create`, make it, or finish one that was cut off.

        Databases that an earlier version did not have are made, unless `complete` is false: they
        are None then.
        `lock` is the open lock of the directory, held as long as this is open: closing releases it.
        Raises NotALog where the file is no LMDB file or has other databases, DamagedLog, or
        LogUnreadable where it cannot be opened.
        """
        self.decoded: dict[bytes, tuple[bytes, Any]] = {}
        self._directory = directory
        self._lock = lock
        self._pid = os.getpid()
        # Weakly: a read that an interrupt cut off before its exit ends with its traceback.
        self.under_way: dict[int, ref[_Transaction]] = {}
        self._env = _open(directory, create=create and not holds_data(directory / "data.mdb"))
        try:
            _reach_last_page(self._env, directory / "data.mdb")
            finish = create and self._holds_nothing_else()
            for name in DATABASES:
                found = self._open_database(name, create=finish, complete=complete)
                setattr(self, name, found)
        except (lmdb.NotFoundError, lmdb.IncompatibleError) as error:
            self._env.close()
            raise NotALog(
                f"{directory} holds an LMDB file that is no event log",
                hint="name the directory of a log, or create one elsewhere",
            ) from error
        except lmdb.Error as error:
            self._env.close()
            raise _translate(error, directory) from error
        self.clear_stale_readers()

    def _open_database(self, name: str, *, create: bool, complete: bool) -> Any:
        try:
            return self._env.open_db(name.encode(), create=create)
        except lmdb.NotFoundError:
            if name not in _ADDED:
                raise
            return self._env.open_db(name.encode(), create=True) if complete else None

    def _holds_nothing_else(self) -> bool:
        # Each sub-database is made in a commit of its own: a creation that was cut off has some.
        with self._env.begin() as txn:
            names = txn.cursor().iternext(keys=True, values=False)
            return all(name.decode("latin-1") in DATABASES for name in names)

    def close(self) -> None:
        """Close the environment; every later call raises ClosedLog."""
        env, self._env = self._env, None
        if self.forked:
            return  # The parent's. Its lock was let go when the child began.
        self.end_left(reads=True)
        # The binding would abort what other threads are in the middle of: free a transaction
        # twice, or wait for ever. They see that the log is closed when they begin the next.
        deadline = time.monotonic() + _CLOSE_WAIT_S
        while self.under_way and time.monotonic() < deadline:
            time.sleep(0.0005)
            self.end_left(reads=True)
        if env is not None and not self.under_way:
            env.close()
        if self._lock is not None:
            self._lock.release()

    def read(self) -> AbstractContextManager[Txn]:
        """A read transaction: one state of the whole log."""
        return _Transaction(self, write=False)

    def write(self) -> AbstractContextManager[Txn]:
        """A write transaction: committed durably at the end, or not at all on an exception.

        Raises DiskFull where the disk has no room; nothing of the transaction is stored then.
        """
        return _Transaction(self, write=True)

    def last_transaction(self) -> int:
        """The number of the last commit that a read would see, by whatever process."""
        # Not that of info(): there a commit shows a moment before readers see it, and whoever
        # waited for it would read too early, and then wait for one more.
        with self.read() as txn:
            return int(txn.id())

    def clear_stale_readers(self) -> int:
        """Free the slots of readers that died; returns how many. `write` does it each minute."""
        self._cleared_s = time.monotonic()
        try:
            return int(self._environment().reader_check())
        except lmdb.Error as error:
            raise self.translated(error) from error

    def live_bytes(self) -> int:
        """The pages that hold something now, in bytes; the rest of the file waits to be reused."""
        with self.read() as txn:
            stats = [txn.stat(db=getattr(self, name)) for name in DATABASES]
        pages = ("branch_pages", "leaf_pages", "overflow_pages")
        return sum(stat[kind] * stat["psize"] for stat in stats for kind in pages)

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that opened the store."""
        return os.getpid() != self._pid

    def closed_error(self) -> ClosedLog:
        return ClosedLog(
            f"the log {self._directory} was closed", hint="open it again with eventlog.open()"
        )

    def forked_error(self) -> ForkedLog:
        return ForkedLog(
            f"the log {self._directory} was opened before this process was forked",
            hint="start the child with the 'spawn' method, or have the parent open the log only "
            "after the fork",
        )

    def _environment(self) -> Any:
        if self._env is None:
            raise self.closed_error()
        if self.forked:
            raise self.forked_error()
        return self._env

    def begin(self, *, write: bool, under_way: _Transaction | None = None) -> Txn:
        """Begin a transaction, which the caller ends; `read` and `write` do that by themselves."""
        if write:
            if self.under_way:
                self.end_left()
            if time.monotonic() - self._cleared_s >= _CLEAR_EVERY_S:
                self.clear_stale_readers()
        if under_way is not None:
            # Before the look at whether the log is closed.
            self.under_way[under_way.number] = ref(under_way)
        env = self._environment()
        try:
            return env.begin(write=write)
        except lmdb.MapResizedError:
            env.set_mapsize(0)
            return env.begin(write=write)

    def end_left(self, *, reads: bool = False) -> None:
        """Abort the writes of this thread that an interrupt cut off before their block's exit.

        With `reads`, those, too. REQUIRES: this thread is inside none. What was interrupted would
        stay open, and the write lock held, as long as somebody (a notebook, say) keeps the
        traceback.
        """
        for number, known in list(self.under_way.items()):
            transaction = known()
            if transaction is None:
                self.under_way.pop(number, None)
            elif (reads or transaction.write) and transaction.thread == threading.get_ident():
                transaction.end()

    def translated(self, error: Any) -> EventLogError:
        """The error of this package for a foreign one."""
        return _translate(error, self._directory)


class _Transaction:
    """A transaction for a `with` block. Written out, as a generator would take twice as long."""

    __slots__ = ("__weakref__", "_store", "_txn", "number", "thread", "write")

    def __init__(self, store: Store, *, write: bool) -> None:
        self._store = store
        self._txn: Txn = None
        self.number = next(_NUMBERS)
        self.thread = threading.get_ident()
        self.write = write

    def __enter__(self) -> Txn:
        store = self._store
        try:
            self._txn = store.begin(write=self.write, under_way=self)
        except BaseException as error:
            self.end()
            if isinstance(error, lmdb.Error):
                raise store.translated(error) from error
            raise
        return self._txn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            if error is None and self.write:
                try:
                    reach("commit.before")
                    self._txn.commit()
                except lmdb.Error as failed:
                    raise self._store.translated(failed) from failed
                reach("commit.after")
        finally:
            self.end()
        if isinstance(error, _FOREIGN):
            raise self._store.translated(error) from error

    def end(self) -> None:
        """Abort what has not ended. An interrupt may come before `__exit__` has begun."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None
        self._store.under_way.pop(self.number, None)


def holds_data(data: Path) -> bool:
    """Whether the data file has content. One that was just made, by a creation cut off, has none.

    Raises OSError where the directory cannot be looked into.
    """
    return data.is_file() and data.stat().st_size > 0


def structure_faults(data: Path) -> list[str]:
    """What is wrong with the pages of a data file that nobody has open, without LMDB itself.

    Reads the pages of the trees, not the values. A file with faults must not be opened: LMDB may
    abort the process over it.
    """
    try:
        return [str(fault) for fault in verify(str(data))]  # type: ignore[no-untyped-call]
    except (VerifyError, OSError, LookupError, ValueError, struct.error) as error:
        return [f"{error}"]


def _allocate_lock_file(path: Path) -> None:
    # LMDB maps it, and makes it sparse: on a full disk the first touch of a page would kill the
    # process (SIGBUS). Nobody here has it open: closing it would drop the locks of whoever has.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_blocks * 512 < _LOCK_BYTES:
            os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
    finally:
        os.close(descriptor)


def _open(directory: Path, *, create: bool) -> Any:
    try:
        _allocate_lock_file(directory / "lock.mdb")
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(
                f"the disk that holds {directory} has no room for the lock file of a log",
                hint="free some 128 KiB and try again; nothing is lost",
            ) from error
        raise LogUnreadable(
            f"cannot use {directory / 'lock.mdb'}: {error.strerror}", hint=hint_about(error)
        ) from error
    options: dict[str, Any] = {"lib_version": 0} if create else {}
    for map_bytes in _MAP_BYTES:
        try:
            return lmdb.open(
                str(directory),
                map_size=map_bytes,
                max_dbs=_DATABASES_MAX,
                max_readers=_READERS_MAX,
                mode=0o600,
                create=create,
                max_spare_txns=0,
                **options,
            )
        except lmdb.MemoryError as error:
            last: Exception = error
        except lmdb.Error as error:
            raise _translate(error, directory) from error
    raise LogUnreadable(
        f"cannot map {directory} into memory: {last}",
        hint="raise the address space limit of this process (ulimit -v)",
    )


def _reach_last_page(env: Any, data: Path) -> None:
    # A page beyond the file's end kills whoever reads it (SIGBUS). LMDB itself leaves free pages
    # there unwritten; a copy that was cut lacks live ones. Reached, they read as zeros: damage that
    # is noticed. posix_fallocate never shrinks, so a commit in another process loses nothing.
    size = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if data.stat().st_size >= size:
        return
    descriptor = os.open(data, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # No room: then nothing is worse than before.
            os.posix_fallocate(descriptor, size - 1, 1)
    finally:
        os.close(descriptor)


def _translate(error: Any, directory: Path) -> EventLogError:
    if isinstance(error, struct.error | UnicodeDecodeError):
        return DamagedLog(
            f"the store in {directory} is damaged: a key has another form ({error})",
            hint="restore the directory from a copy, or run `eventlog repair`",
        )
    code = getattr(error, "code", None)
    if isinstance(error, lmdb.DiskError | lmdb.MapFullError) or code in _NO_ROOM:
        return DiskFull(
            f"the disk that holds {directory} is full: {error}",
            hint="free some space and try again; nothing of this commit was stored, none is lost",
        )
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError):
        return NotALog(
            f"{directory} holds a data.mdb that is no LMDB file",
            hint="name the directory of a log, or restore the directory from a copy",
        )
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.PanicError):
        return DamagedLog(
            f"the store in {directory} is damaged: {error}",
            hint="restore the directory from a copy, or drop what is damaged: `eventlog repair`",
        )
    return LogUnreadable(
        f"cannot use the log in {directory}: {error}",
        hint="look at the permissions of the directory and its files",
    )
