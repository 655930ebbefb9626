"""The pages of an LMDB 0.9 data file, read without the C library, which a damaged one can abort.

::

    page      0          8   10    12    14    16
              +----------+---+-----+-----+-----+--------------------+------+-------+
              |number u64|pad|flags|lower|upper| node places u16 × n| free | nodes |
              +----------+---+-----+-----+-----+--------------------+------+-------+
    overflow  |number u64|pad|flags| pages u32 | one value, over all of its pages  |

    leaf node     value bytes u32   flags u16  key bytes u16  key  value
    branch node   child page (48 bits)         key bytes u16  key
    meta          16: magic u32  data format u32  address u64  map u64  free  main  last page u64
                  transaction u64
    tree          pad u32  flags u16  depth u16  branch u64  leaf u64  overflow u64  entries u64
                  root u64

Native byte order, 64 bits. A leaf node's flags: 1: the value is the number of its first overflow
page; 2: the value is a tree, a named database. The pad of the free tree holds the page size. Every
place and length is held against the page's bounds before it is used. What is wrong raises BadPage.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from eventlog.errors import LogUnreadable, NotALog

BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
DEPTH_MAX = 32
METAS = 2

_MAGIC = 0xBEEFC0DE
_DATA_FORMAT = 1
_NONE = 2**64 - 1
_PAGE_SIZES = tuple(1 << bits for bits in range(12, 16)) + tuple(1 << bits for bits in range(8, 12))
_BIG, _TREE = 1, 2

_HEAD = struct.Struct("=QHHHH")
_RUN = struct.Struct("=QHHI")
_NODE = struct.Struct("=HHHH")
_NUMBER = struct.Struct("=Q")
_META = struct.Struct("=IIQQ48s48sQQ")
_TREE_RECORD = struct.Struct("=IHHQQQQQ")


class BadPage(Exception):
    """What was read is no page of that kind; `str()` says why."""


class Tree(NamedTuple):
    """A database: the page of its root (None where it is empty) and its depth in pages."""

    root: int | None
    depth: int
    flags: int


class Meta(NamedTuple):
    """One state of the whole file: that of a transaction."""

    transaction: int
    last_page: int
    free: Tree
    main: Tree


class Node(NamedTuple):
    """A key, and where its value lies: inline, or from `overflow` on in pages of its own."""

    key: bytes
    at: int
    size: int
    overflow: int | None
    tree: bool


class DataFile:
    """A data file, read page by page. `metas` are its readable states, the newest first.

    Reads go through pread: a file that shrinks, or a sector that cannot be read, is a BadPage here
    and no signal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.meta_faults: list[tuple[int, str]] = []
        self.page_bytes, self.metas = self._read_metas()

    @property
    def pages(self) -> int:
        """Whole pages that the file holds."""
        return self.size // self.page_bytes

    def bytes_at(self, at: int, size: int) -> bytes:
        """Bytes of the file. Raises BadPage where they end early or cannot be read."""
        try:
            found = os.pread(self._descriptor, size, at)
            while found and len(found) < size and (more := self._more(at, size, found)):
                found += more
        except OSError as error:
            raise BadPage(f"it cannot be read: {error.strerror}") from error
        if len(found) != size:
            raise BadPage("it lies beyond the end of the file")
        return found

    def page(self, number: int, kinds: tuple[int, ...]) -> tuple[int, bytes]:
        """The page of that number, if it is of one of these kinds; returns its kind too."""
        if not METAS <= number < self.pages:
            raise BadPage("it lies beyond the end of the file")
        data = self.bytes_at(number * self.page_bytes, self.page_bytes)
        stored, _, flags, _, _ = _HEAD.unpack_from(data)
        if stored != number:
            raise BadPage(f"it says that it is page {stored}")
        if flags not in kinds:
            raise BadPage(f"it is of kind {flags:#x}")
        return flags, data

    def overflow(self, number: int, size: int) -> tuple[int, int]:
        """Where the value in pages of its own from `number` on lies, and how many pages it has."""
        if not METAS <= number < self.pages:
            raise BadPage(f"overflow page {number} lies beyond the end of the file")
        try:
            head = self.bytes_at(number * self.page_bytes, _RUN.size)
        except BadPage as error:
            raise BadPage(f"overflow page {number}: {error}") from error
        stored, _, flags, count = _RUN.unpack(head)
        if stored != number or flags != OVERFLOW:
            raise BadPage(f"page {number} is no overflow page of that number")
        # A shorter value may have been written over a longer one.
        if count * self.page_bytes < _RUN.size + size or number + count > self.pages:
            raise BadPage(f"overflow page {number} has {count} pages for {size} bytes")
        return number * self.page_bytes + _RUN.size, count

    def nodes(self, data: bytes) -> tuple[list[Node], list[str]]:
        """The nodes of a leaf page in their order, and why others had to be passed over.

        Positions of inline values count from the start of the page.
        """
        found: list[tuple[int, int, Node]] = []
        faults: list[str] = []
        for number, place in enumerate(_places(data)):
            try:
                found.append(_leaf_node(data, place))
            except BadPage as error:
                faults.append(f"node {number} {error}")
        overlapping = set()
        by_place = sorted(found, key=lambda item: item[:2])
        for (start, stop, _), (next_start, _, _) in pairwise(by_place):
            if stop > next_start:
                overlapping.add(start)
                faults.append(f"nodes at {start} and {next_start} overlap")
        return [node for start, _, node in found if start not in overlapping], faults

    def children(self, data: bytes) -> tuple[list[tuple[bytes, int]], list[str]]:
        """The least keys and numbers of a branch page's children, and why others are unknown."""
        found: list[tuple[bytes, int]] = []
        faults: list[str] = []
        for number, place in enumerate(_places(data)):
            try:
                low, middle, high, key_bytes = _NODE.unpack_from(data, _checked(data, place, 8))
                key_at = place + _NODE.size
                key = data[key_at : _checked(data, key_at, key_bytes) + key_bytes]
            except BadPage as error:
                faults.append(f"node {number} {error}")
            else:
                found.append((key, low | middle << 16 | high << 32))
        return found, faults

    def _more(self, at: int, size: int, found: bytes) -> bytes:
        # One pread returns at most 2 GiB.
        return os.pread(self._descriptor, size - len(found), at + len(found))

    def _read_metas(self) -> tuple[int, list[Meta]]:
        found: list[tuple[int, Meta]] = []
        for slot in range(METAS):
            sizes = {size for size, _ in found} or set(_PAGE_SIZES)
            for size in sorted(sizes, key=_PAGE_SIZES.index):
                try:
                    found.append((size, self._meta(slot, size)))
                    break
                except BadPage as error:
                    why = f"{error}"
            else:
                self.meta_faults.append((slot, why))
        if not found:
            raise NotALog(
                "both meta pages of this data.mdb are damaged, or it is no LMDB file",
                hint="restore the directory from a copy",
            )
        newest_first = sorted((meta for _, meta in found), reverse=True)
        return found[0][0], newest_first

    def _meta(self, slot: int, page_bytes: int) -> Meta:
        data = self.bytes_at(slot * page_bytes, _HEAD.size + _META.size)
        number, _, flags, _, _ = _HEAD.unpack_from(data)
        magic, version, _, _, free, main, last_page, transaction = _META.unpack_from(
            data, _HEAD.size
        )
        if magic != _MAGIC or version != _DATA_FORMAT or not flags & META or number != slot:
            raise BadPage("it is no meta page")
        if _TREE_RECORD.unpack(free)[0] != page_bytes:
            raise BadPage(f"it does not state the page size {page_bytes}")
        if transaction and transaction % METAS != slot:
            raise BadPage(f"transaction {transaction} is not written there")
        trees = tree_record(free), tree_record(main)
        if last_page < METAS - 1 or any(t.root and t.root > last_page for t in trees):
            raise BadPage(f"its roots lie beyond its last page {last_page}")
        return Meta(transaction, last_page, *trees)


@contextmanager
def open_data(path: Path) -> Iterator[DataFile]:
    """Open a data file for reading. Raises LogUnreadable, or NotALog where no meta page is left."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LogUnreadable(
            f"cannot read {path}: {error.strerror}",
            hint="look at the permissions of the directory and its files",
        ) from error
    try:
        yield DataFile(descriptor)
    finally:
        os.close(descriptor)


def tree_record(stored: bytes) -> Tree:
    """The tree that 48 bytes describe. Raises BadPage for other lengths or depths."""
    if len(stored) != _TREE_RECORD.size:
        raise BadPage(f"a tree is described by {len(stored)} bytes")
    _, flags, depth, _, _, _, _, root = _TREE_RECORD.unpack(stored)
    if depth > DEPTH_MAX:
        raise BadPage(f"a tree is said to be {depth} pages deep")
    return Tree(None if root == _NONE else root, depth, flags)


def page_list(stored: bytes) -> list[int]:
    """The page numbers of one record of the free tree. Raises BadPage."""
    if len(stored) < _NUMBER.size or len(stored) % _NUMBER.size:
        raise BadPage("a list of free pages is cut short")
    count, *numbers = struct.unpack(f"={len(stored) // _NUMBER.size}Q", stored)
    if count != len(numbers) or any(a <= b for a, b in pairwise(numbers)):
        raise BadPage("a list of free pages contradicts itself")
    return numbers


def _places(data: bytes) -> list[int]:
    _, _, _, lower, upper = _HEAD.unpack_from(data)
    if not _HEAD.size <= lower <= upper <= len(data) or (lower - _HEAD.size) % 2:
        raise BadPage(f"its bounds {lower} and {upper} contradict each other")
    places = struct.unpack_from(f"={(lower - _HEAD.size) // 2}H", data, _HEAD.size)
    return [place if place >= upper else len(data) for place in places]


def _leaf_node(data: bytes, place: int) -> tuple[int, int, Node]:
    low, high, flags, key_bytes = _NODE.unpack_from(data, _checked(data, place, _NODE.size))
    size = low | high << 16
    key_at = place + _NODE.size
    key = data[key_at : _checked(data, key_at, key_bytes) + key_bytes]
    at = key_at + key_bytes
    if flags & ~(_BIG | _TREE):
        raise BadPage(f"has unknown flags {flags:#x}")
    if flags & _BIG:
        (page,) = _NUMBER.unpack_from(data, _checked(data, at, _NUMBER.size))
        return place, at + _NUMBER.size, Node(key, 0, size, page, False)
    return place, _checked(data, at, size) + size, Node(key, at, size, None, bool(flags & _TREE))


def _checked(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise BadPage("passes the end of the page")
    return at
