"""Arrow tables as files: whole or not at all, readable by their owner, a piece at a time.

::

    .parquet   Parquet, with the source's type names in each field's metadata
    .arrow     the Arrow IPC file format, as well with them
    .csv       a line of names, then the values as `csv_lines` writes them
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".arrow")


def write_pieces(pieces: Iterator[pa.Table], out: Path) -> int:
    """Write tables of one schema, one behind the other, in the format of the file's suffix.

    At least one, be it empty. What was there is replaced once all is written and durable. Returns
    the number of rows. Raises EnvironmentFault, and whatever the pieces raise, and leaves what was
    there.
    """
    from eventlog.snapshots.whole_file import whole_file

    hint = "name a file with --out in a directory that you may write, on a disk that has room"
    with whole_file(out, hint=hint) as file:
        return _write(pieces, file, out.suffix)


def _write(pieces: Iterator[pa.Table], file: IO[bytes], suffix: str) -> int:
    first = next(pieces)
    rows = 0
    with _writer(first.schema, file, suffix) as writer:
        for table in chain([first], pieces):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _writer(schema: pa.Schema, file: IO[bytes], suffix: str) -> Any:
    if suffix == ".parquet":
        from pyarrow import parquet

        return parquet.ParquetWriter(file, schema)
    if suffix == ".arrow":
        from pyarrow import ipc

        return ipc.new_file(file, schema)
    from eventlog.cli.csv_lines import CsvLines

    return CsvLines(schema, file)
