"""A store double that forgets whatever was not synced: the data file before and after each commit.

The writing process commits one transaction at a time, and LMDB writes only in a commit, so the two
images hold all that a commit wrote.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from eventlog.engine.store import Store

PAGE, METAS = 4096, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit's two images, and what had been acknowledged before it began."""

    step: str
    before: bytes
    after: bytes
    safe: dict[str, int]

    def changed(self) -> tuple[list[int], list[int]]:
        """The numbers of the data pages and of the meta pages that it wrote."""
        pages = range(-(-len(self.after) // PAGE))
        changed = [n for n in pages if page(self.before, n) != page(self.after, n)]
        return [n for n in changed if n >= METAS], [n for n in changed if n < METAS]


@dataclass(slots=True)
class ForgetfulStore:
    """Stands around the store's commits, and keeps the images of those that `wanted` names."""

    data: Path
    wanted: Callable[[str, int], bool]
    step: str = ""
    counted: Counter[str] = field(default_factory=Counter)
    safe: dict[str, int] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch every commit until the end of the block."""
        descriptor = os.open(self.data, os.O_RDONLY)
        real = Store.write

        @contextmanager
        def write(store: Store) -> Iterator[Any]:
            self.counted[self.step] += 1
            wanted = self.wanted(self.step, self.counted[self.step])
            before = _image(descriptor) if wanted else b""
            safe = dict(self.safe)
            with real(store) as txn:
                yield txn
            if wanted:
                after = _image(descriptor)
                commit = Commit(step=self.step, before=before, after=after, safe=safe)
                if any(commit.changed()):  # LMDB writes nothing for what changed nothing.
                    self.commits.append(commit)

        # LMDB holds no lock on its data file: a descriptor beside its own may be closed.
        try:
            with mock.patch.object(Store, "write", write):
                yield
        finally:
            os.close(descriptor)

    def told(self, subject: str, number: int) -> None:
        self.safe[subject] = number


def _image(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def page(image: bytes, number: int) -> bytes:
    return image[number * PAGE : (number + 1) * PAGE]
