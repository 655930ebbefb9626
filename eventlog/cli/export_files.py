"""Arrow tables as files: whole or not at all, readable by their owner.

::

    .parquet   Parquet, with the source's type names in each field's metadata
    .arrow     the Arrow IPC file format, as well with them
    .csv       a line of names; null is an empty field, an empty text is ""; what CSV has no form
               for is text: bytes as \\x…, lists as JSON
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from eventlog.errors import EnvironmentFault

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".arrow")


def write_table(table: pa.Table, out: Path) -> None:
    """Write a table in the format of the file's suffix, replacing what was there.

    Raises EnvironmentFault, and leaves what was there.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        with os.fdopen(descriptor, "wb") as file:
            _write(table, file, out.suffix)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    except BaseException as error:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise EnvironmentFault(
                f"{out} cannot be written: {error.strerror or error}",
                hint="name a file with --out in a directory that is there, writable, and has room",
            ) from error
        raise


def _write(table: pa.Table, file: IO[bytes], suffix: str) -> None:
    if suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(table, file)
    elif suffix == ".arrow":
        from pyarrow import ipc

        with ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        from pyarrow import csv

        csv.write_csv(_as_text(table), file)


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
