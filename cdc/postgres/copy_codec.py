"""The codec of the initial copy: raw lines of `COPY ... TO STDOUT` in the text format.

::

    record = field *(TAB field) LF       one row; the LF is part of the record
    field  = '\\N' | text                  '\\N' is NULL
    text   : \\b \\f \\n \\r \\t \\v \\\\ stand for the control characters and the backslash

A payload holds rows of one relation, the only one among its schemas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cdc.postgres.text_codec import TextCodec
from eventlog.changes.change import Op, RawChange, Text
from eventlog.changes.codec import ChangeCodec
from eventlog.changes.schema import Schema
from eventlog.errors import DamagedLog

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_CONTROL = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


class CopyCodec(TextCodec):
    """Reads copied rows."""

    id = 4
    name = "copy"

    def decode(
        self,
        records: Sequence[bytes],
        slots: Sequence[int],
        schemas: dict[int, Schema],
    ) -> Iterator[RawChange]:
        """Make a `read` of every line. Raises DamagedLog for a line that is no row of the table."""
        if len(schemas) != 1:
            raise DamagedLog(f"a batch of copied rows names {len(schemas)} relations instead of 1")
        ((relation, schema),) = schemas.items()
        width = len(schema.columns)
        for slot, line in zip(slots, records, strict=True):
            if line[-1:] != b"\n":
                raise DamagedLog(f"record {slot} of a batch of copied rows is cut")
            fields = line[:-1].split(b"\t") if width else [] if line == b"\n" else [line]
            if len(fields) != width:
                raise DamagedLog(
                    f"record {slot} of a batch of copied rows has {len(fields)} values, "
                    f"but {schema.table} has {width} columns"
                )
            row: tuple[Text, ...] = tuple(fields)
            if b"\\" in line:
                row = tuple([f if b"\\" not in f else _unescape(f) for f in fields])
            yield RawChange(slot, Op.READ, relation, None, row, None)


def _unescape(field: bytes) -> bytes | None:
    if field == b"\\N":
        return None
    return _ESCAPE.sub(lambda match: _CONTROL.get(match[1], match[1]), field)


CODEC: ChangeCodec = CopyCodec()
