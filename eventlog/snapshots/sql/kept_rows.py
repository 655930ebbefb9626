"""The rows of a result, kept: few of them in memory, more in a file that goes with the process.

The file has no name once it is written: nobody else can open it, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventlog.errors import EnvironmentFault

if TYPE_CHECKING:
    import pyarrow as pa

IN_MEMORY_BYTES = 64 << 20
"""Rows of less than that are not worth a file."""


class KeptRows:
    """Rows of one schema, to be read any number of times. May be shared among threads."""

    def __init__(
        self, schema: pa.Schema, num_rows: int, batches: list[pa.RecordBatch], file: Any
    ) -> None:
        self.schema = schema
        self.num_rows = num_rows
        self._batches = batches
        self._file = file

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in their order; those of a file are read when they are come to."""
        from pyarrow import ipc

        return iter(self._batches if self._file is None else ipc.open_stream(self._file))


def keep(schema: pa.Schema, batches: Iterator[pa.RecordBatch], path: Path) -> KeptRows:
    """Keep what comes; `path` is for a file, in a directory of this process alone.

    Raises EnvironmentFault where the disk has no room, and whatever the batches raise.
    """
    held: list[pa.RecordBatch] = []
    size = rows = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        rows += batch.num_rows
        if size > IN_MEMORY_BYTES:
            return _filed(schema, chain(held, batches), path)
    return KeptRows(schema, rows, held, None)


def _filed(schema: pa.Schema, batches: Iterator[pa.RecordBatch], path: Path) -> KeptRows:
    import pyarrow as pa
    from pyarrow import ipc

    rows = 0
    with _writing():
        writer = ipc.new_stream(str(path), schema)
    try:
        for batch in batches:
            rows += batch.num_rows
            with _writing():
                writer.write_batch(batch)
    finally:
        with _writing():
            writer.close()
    with _writing():
        file = pa.memory_map(str(path)).read_buffer()
        path.unlink()
    return KeptRows(schema, rows, [], file)


@contextmanager
def _writing() -> Iterator[None]:
    """Tells a full disk from what the query itself raises."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"the result cannot be kept: {error}",
            hint="TMPDIR names where: a directory that is there, writable, and has room",
        ) from error
