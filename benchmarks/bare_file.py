"""The limit of `append`: the same bytes into a bare file, flushed after each call."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from benchmarks.appender import Appender
from benchmarks.load import EVENT_BYTES, Load


def growing(load: Load, directory: Path, end: ExitStack) -> Appender:
    """At the end of a file, as a log grows."""
    path = directory / "growing"
    file = _opened(path, end)
    blocks = _blocks(load)

    def append_all() -> None:
        _write_all(file, blocks)

    return Appender(append_all=append_all, stored=lambda: path.stat().st_size // EVENT_BYTES)


def allotted(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Over and over into a file that has its blocks: no metadata is flushed."""
    file = _opened(directory / "allotted", end)
    blocks = _blocks(load)
    _write_all(file, [bytes(len(block)) for block in blocks])
    os.fsync(file)

    def append_all() -> None:
        os.lseek(file, 0, os.SEEK_SET)
        _write_all(file, blocks)

    return Appender(append_all=append_all, stored=None)


def _opened(path: Path, end: ExitStack) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    end.callback(os.close, file)
    return file


def _blocks(load: Load) -> list[bytes]:
    return [b"".join(call) for call in load.records]


def _write_all(file: int, blocks: list[bytes]) -> None:
    for block in blocks:
        view = memoryview(block)
        while view:
            view = view[os.write(file, view) :]
        os.fdatasync(file)
