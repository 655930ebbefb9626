"""Files written whole or not at all, readable by their owner alone."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from eventlog.engine.directory import sync_directory
from eventlog.errors import EnvironmentFault


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, durably, in place of what was there. Raises EnvironmentFault, leaving that."""
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
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
                f"{path} cannot be written: {error.strerror or error}",
                hint="name a file in a directory that is there, writable, and has room",
            ) from error
        raise
