"""Files written whole or not at all, readable by their owner alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from eventlog.engine.directory import sync_directory
from eventlog.errors import EnvironmentFault

IN_A_DIRECTORY = "name a file in a directory that is there, writable, and has room"


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
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise EnvironmentFault(
                f"{path} cannot be written: {error.strerror or error}", hint=hint
            ) from error
        raise
