"""Arrow tables as files: whole or not at all, readable by their owner, a piece at a time.

::

    .parquet   Parquet, with the source's type names in each field's metadata
    .arrow     the Arrow IPC file format, as well with them
    .csv       a line of names; null is an empty field, an empty text is ""; what CSV has no form
               for is text: bytes as \\x…, lists as JSON
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".arrow")


def write_table(table: pa.Table, out: Path) -> None:
    """Write a table in the format of the file's suffix; see `write_pieces`."""
    write_pieces(iter([table]), out)


def write_pieces(pieces: Iterator[pa.Table], out: Path) -> int:
    """Write tables of one schema, one behind the other, in the format of the file's suffix.

    At least one, be it empty. What was there is replaced once all is written and durable. Returns
    the number of rows. Raises EnvironmentFault, and whatever the pieces raise, and leaves what was
    there.
    """
    from eventlog.snapshots.whole_file import whole_file

    hint = "name a file with --out in a directory that is there, writable, and has room"
    with whole_file(out, hint=hint) as file:
        return _write(pieces, file, out.suffix)


def _write(pieces: Iterator[pa.Table], file: IO[bytes], suffix: str) -> int:
    if suffix == ".csv":
        pieces = map(_as_text, pieces)
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
    from pyarrow import csv

    return csv.CSVWriter(file, schema)


def _as_text(table: pa.Table) -> pa.Table:
    """The table with text in place of what CSV has no form for."""
    import pyarrow as pa
    from pyarrow import types

    for place, field in enumerate(table.schema):
        if types.is_binary(field.type) or types.is_list(field.type):
            texts = [_text(value) for value in table.column(place).to_pylist()]
            table = table.set_column(place, field.name, pa.array(texts, pa.string()))
    return table


def _text(value: bytes | list[Any] | None) -> str | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return json.dumps(value, ensure_ascii=False, default=_item)


def _item(value: Any) -> str:
    """An item of a list that JSON has no form for."""
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
