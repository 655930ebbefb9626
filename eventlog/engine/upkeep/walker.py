"""A walk over all trees of a data file that goes on past damage and tells what it passed over.

A page is either reached from a root of the newest state or listed as free in it: nothing else is in
a sound file. So a page that is neither belongs to a tree of that state whose way to it is damaged.
`strays` finds such leaf pages, and the first pages of such values; that holds only where the tree
of free pages could be read whole (`free_known`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Self

import numpy as np

from eventlog.engine.upkeep.pages import (
    BRANCH,
    DEPTH_MAX,
    LEAF,
    METAS,
    OVERFLOW,
    BadPage,
    DataFile,
    Meta,
    Node,
    Tree,
    page_list,
    tree_record,
)

MAIN, FREE = "(main)", "(free)"

_CHUNK_PAGES = 1024
_HEADS = np.dtype([("number", "=u8"), ("pad", "=u2"), ("flags", "=u2"), ("count", "=u4")])


class Fault(NamedTuple):
    """A page, or a node of it, that had to be passed over."""

    page: int
    database: str
    why: str

    def __str__(self) -> str:
        return f"page {self.page} of {self.database}: {self.why}"


class Stored(NamedTuple):
    """A key, and where the bytes of its value lie in the file."""

    key: bytes
    at: int
    size: int


class Walker:
    """Walks one state of a data file, the newest unless told. `faults` grows with each walk."""

    def __init__(self, file: DataFile, meta: Meta | None = None) -> None:
        self.file = file
        self.faults = [Fault(slot, "(meta)", why) for slot, why in file.meta_faults]
        self.meta = meta or file.metas[0]
        self._pages = min(self.meta.last_page + 1, file.pages)
        self._reached = np.zeros(self._pages, np.bool_)
        self._free = np.zeros(self._pages, np.bool_)
        self.free_known = self._read_free()
        self._trees: dict[str, Tree] = {}
        self._plain: list[Stored] = []
        self._read_main()

    @classmethod
    def of_best_state(cls, file: DataFile) -> Self:
        """Walk the newest state, or the one before where nothing can be reached from it."""
        newest, *older = (cls(file, meta) for meta in file.metas)
        if newest._trees or newest.free_known:
            return newest
        return next((walker for walker in older if walker._trees), newest)

    @property
    def databases(self) -> list[str]:
        """Names of the databases whose roots could be read."""
        return list(self._trees)

    def plain(self) -> list[Stored]:
        """What lies in the main database itself, beside the named ones."""
        return self._plain

    def items(self, name: str) -> Iterator[Stored]:
        """Every reachable key of a database, in the tree's order."""
        for base, node in self._walk(self._trees.get(name, Tree(None, 0, 0)), name):
            stored = self._stored(base, node, name)
            if stored is not None:
                yield stored

    def value(self, stored: Stored) -> bytes:
        """Raises BadPage where the bytes cannot be read."""
        return self.file.bytes_at(stored.at, stored.size)

    def strays(self, *, free_too: bool = False) -> Iterator[tuple[int, bool]]:
        """Pages that look like a leaf (False) or like the first of an overflow value (True).

        Only those that no walk reached; those listed as free, which hold former versions, are left
        out unless `free_too`. REQUIRES: all databases were walked.
        """
        at = METAS
        for first in range(METAS, self._pages, _CHUNK_PAGES):
            for number, flags, count in self._heads(first, min(_CHUNK_PAGES, self._pages - first)):
                # What lies inside a value of several pages is no page.
                passed = self._reached[number] or (self._free[number] and not free_too)
                if number < at or passed:
                    continue
                if flags == OVERFLOW and 1 <= count <= self._pages - number:
                    yield number, True
                    at = number + count
                elif flags == LEAF:
                    yield number, False

    def leaf(self, number: int) -> list[Stored]:
        """The keys of a stray leaf page, those of it that can be read."""
        found = []
        try:
            nodes, _ = self.file.nodes(self.file.page(number, (LEAF,))[1])
        except BadPage:
            return []
        for node in nodes:
            with suppress(BadPage):
                found.append(self._located(number * self.file.page_bytes, node)[0])
        return found

    def _heads(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        size = self.file.page_bytes
        try:
            data = self.file.bytes_at(first * size, count * size)
        except BadPage:
            if count > 1:
                yield from self._heads(first, count // 2)
                yield from self._heads(first + count // 2, count - count // 2)
            return
        heads = np.ndarray(count, _HEADS, data, strides=(size,))
        numbers = np.arange(first, first + count, dtype=np.uint64)
        right = heads["number"] == numbers
        for place in np.flatnonzero(right).tolist():
            yield first + place, int(heads["flags"][place]), int(heads["count"][place])

    def _read_free(self) -> bool:
        before = len(self.faults)
        for base, node in self._walk(self.meta.free, FREE):
            stored = self._stored(base, node, FREE)
            if stored is None:
                continue
            try:
                numbers = page_list(self.value(stored))
            except BadPage as error:
                self._fault(base // self.file.page_bytes, FREE, f"{error}")
                continue
            listed = np.array(numbers, np.uint64)
            self._free[listed[listed < self._pages].astype(np.intp)] = True
        return len(self.faults) == before

    def _read_main(self) -> None:
        for base, node in self._walk(self.meta.main, MAIN):
            stored = self._stored(base, node, MAIN)
            if stored is None:
                continue
            if not node.tree:
                self._plain.append(stored)
                continue
            try:
                tree = tree_record(self.value(stored))
                if tree.flags:
                    raise BadPage(f"its order {tree.flags:#x} is not known here")
            except BadPage as error:
                self._fault(base // self.file.page_bytes, MAIN, f"database {node.key!r}: {error}")
            else:
                self._trees[node.key.decode("utf-8", "backslashreplace")] = tree

    def _walk(self, tree: Tree, name: str) -> Iterator[tuple[int, Node]]:
        if tree.root is not None:
            yield from self._page(tree.root, tree, name, 1, set(), _Order())

    def _page(
        self, number: int, tree: Tree, name: str, depth: int, seen: set[int], order: _Order
    ) -> Iterator[tuple[int, Node]]:
        try:
            if number in seen:
                raise BadPage("the tree comes to it a second time")
            if depth > DEPTH_MAX:
                raise BadPage(f"the tree is deeper than {DEPTH_MAX} pages")
            seen.add(number)
            kind, data = self.file.page(number, (BRANCH, LEAF))
            nodes: list[Node] = []
            children: list[tuple[bytes, int]] = []
            if kind == LEAF:
                nodes, faults = self.file.nodes(data)
            else:
                children, faults = self.file.children(data)
        except BadPage as error:
            self._fault(number, name, f"{error}")
            return
        self._reached[number : number + 1] = True
        if (kind == LEAF) != (depth == tree.depth):
            faults.append(f"it is of kind {kind} at depth {depth} of {tree.depth}")
        for why in faults:
            self._fault(number, name, why)
        if name != FREE:
            for node in nodes:
                if not order.take(node.key):
                    self._fault(number, name, f"key {node.key!r} is out of order")
        for node in nodes:
            yield number * self.file.page_bytes, node
        for _, child in children:
            yield from self._page(child, tree, name, depth + 1, seen, order)

    def _stored(self, base: int, node: Node, name: str) -> Stored | None:
        try:
            stored, run = self._located(base, node)
        except BadPage as error:
            self._fault(base // self.file.page_bytes, name, f"key {node.key!r}: {error}")
            return None
        self._reached[run.start : run.stop] = True
        return stored

    def _located(self, base: int, node: Node) -> tuple[Stored, range]:
        """Where a node's value lies, and the pages of its own that it has."""
        if node.overflow is None:
            return Stored(node.key, base + node.at, node.size), range(0)
        at, pages = self.file.overflow(node.overflow, node.size)
        return Stored(node.key, at, node.size), range(node.overflow, node.overflow + pages)

    def _fault(self, page: int, name: str, why: str) -> None:
        self.faults.append(Fault(page, name, why))


class _Order:
    """Keys of one tree ascend; `take` tells whether the next one does."""

    def __init__(self) -> None:
        self._last = b""
        self._any = False

    def take(self, key: bytes) -> bool:
        ascends = not self._any or key > self._last
        if ascends:
            self._last, self._any = key, True
        return ascends
