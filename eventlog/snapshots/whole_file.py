"""Files written whole or not at all, readable by their owner alone.

Folders that are missing above an output are made, as those above a log or a backup are, and go
again where nothing came of it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from eventlog.engine.directory import sync_directory
from eventlog.errors import EnvironmentFault

IN_A_DIRECTORY = "name a file in a directory that you may write, on a disk that has room"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, durably, in place of what was there. Raises EnvironmentFault, leaving that."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, *, hint: str = IN_A_DIRECTORY) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path`, durably, once the block ends well.

    Raises EnvironmentFault with the hint where it cannot be written. Whatever the block raises,
    what was there stays.
    """
    try:
        with made_parents(path), _temporary(path) as temporary:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be written: {error.strerror or error}", hint=hint
        ) from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file beside `path`, which is gone at the end."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


@contextmanager
def made_parents(path: Path) -> Iterator[None]:
    """Within it the folders above `path` are there; those that were not go where the block fails.

    Raises OSError.
    """
    made: list[Path] = []
    try:
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.append(folder)
                sync_directory(folder.parent)
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):  # Somebody else put something there meanwhile.
                folder.rmdir()
        raise
