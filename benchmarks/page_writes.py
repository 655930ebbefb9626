"""The pages of the log's file that each of many tiny commits writes.

The file is compared before and after each commit: LMDB never writes a live page again, so what it
wrote differs. What the file system writes beside (its journal) is not in it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

import eventlog
from benchmarks.load import Case, load_of

PAGES = "written a commit"
BEFORE = 1_000
"""Events in the log already, one by one as well: an empty file says nothing of the usual commit."""


def page_writes(directory: Path, *, commits: int) -> list[int]:
    """How many pages each of so many single appends wrote, in order."""
    load = load_of(Case(call=1, calls=BEFORE + commits))
    values = [value for (value,) in load.values]
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    written = []
    with eventlog.open(directory / "log", create=True) as log:
        stream = log.stream("events", create=True)
        for value in values[:BEFORE]:
            stream.append(value)
        # Closed only after the log: closing any descriptor of its file drops LMDB's locks.
        file = os.open(directory / "log" / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
        pages = _pages(file, page_bytes)
        for value in values[BEFORE:]:
            stream.append(value)
            before, pages = pages, _pages(file, page_bytes)
            both = min(len(before), len(pages))
            changed = (before[:both] != pages[:both]).any(axis=1)
            written.append(int(changed.sum()) + len(pages) - both)
    os.close(file)
    return written


def _pages(file: int, page_bytes: int) -> npt.NDArray[np.uint64]:
    data = os.pread(file, os.fstat(file).st_size, 0)
    whole = len(data) // page_bytes * page_bytes
    return np.frombuffer(data[:whole], np.uint64).reshape(-1, page_bytes // 8)
