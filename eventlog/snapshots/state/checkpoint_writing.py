"""Writing a checkpoint: by batches into a temporary file, which is renamed once it is whole."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from eventlog.changes.arrow import Conversion, change_table, unfit_counts
from eventlog.changes.split import IS_UNCHANGED
from eventlog.engine.directory import sync_directory
from eventlog.snapshots.state.checkpoint import MAGIC, SUM, TAIL, VERSION, Head, Origin, made_by
from eventlog.snapshots.state.state_rows import StateRows
from eventlog.snapshots.state.table_state import TableState

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536
TEMPORARY = ".writing-"


class _NotWhole(Exception):
    """A value of the state is not known: there is no checkpoint of it."""


def write(state: TableState, codec: Any, origin: Origin, path: Path) -> bool:
    """Write the whole state to `path`; false where a value of it is not known. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(state, codec, origin, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, _NotWhole):
            return False
        raise
    sync_directory(path.parent)
    return True


class _Summed:
    """A file that sums up what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sum = xxhash.xxh3_64()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self.sum.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing: whoever has the file does."""


def _write(state: TableState, codec: Any, origin: Origin, file: IO[bytes]) -> None:
    import pyarrow as pa

    out = _Summed(file)
    version = state.version
    kinds = [codec.arrow_type(version, column) for column in version.columns]
    typed = [place for place, kind in enumerate(kinds) if kind != pa.string()]
    schema = pa.schema(
        [
            pa.field("_offset", pa.int64()),
            *(pa.field(f"s{place}", pa.binary()) for place in range(len(kinds))),
            *(pa.field(f"t{place}", kinds[place]) for place in typed),
        ]
    )
    unfit: set[int] = set()
    sink = pa.PythonFile(out, mode="w")
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        for rows in state.rows(range(len(kinds)), max_rows=BATCH_ROWS):
            arrays, bad = _arrays(state, codec, rows, typed)
            unfit |= bad
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    ipc_bytes = out.size
    head = Head(
        origin=origin,
        schema_id=version.id,
        rows=state.num_rows,
        facts=state.facts,
        typed=tuple(place for place in range(len(kinds)) if place not in unfit),
        made_by=made_by(),
    ).packed()
    out.write(head)
    out.write(TAIL.pack(ipc_bytes, len(head), MAGIC, VERSION))
    file.write(SUM.pack(out.sum.intdigest()))


def _arrays(
    state: TableState, codec: Any, rows: StateRows, typed: list[int]
) -> tuple[list[pa.Array], set[int]]:
    """A batch's columns, and the places of those in which a value does not fit its type."""
    import pyarrow as pa

    from eventlog.changes.arrow_texts import binary_array

    if (rows.lengths == IS_UNCHANGED).any():
        raise _NotWhole
    version = state.version
    texts = [rows.texts(place) for place in range(len(version.columns))]
    table = change_table(
        codec, version, texts, offsets=rows.offsets, conversion=Conversion(unfit="null")
    )
    stored = [binary_array(text) for text in texts]
    values = [table.column(place).combine_chunks() for place in typed]
    offsets: npt.NDArray[np.int64] = np.ascontiguousarray(rows.offsets)
    counts = unfit_counts(table)
    bad = {place for place, name in enumerate(version.names) if name in counts}
    return [pa.array(offsets, pa.int64()), *stored, *values], bad
