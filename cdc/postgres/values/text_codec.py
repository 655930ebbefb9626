"""What both Postgres codecs share: one text format, so one meaning of values, types and positions.

Records differ (`pgoutput` messages, lines of COPY), the texts inside do not: both connections pin
the same session settings (D9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.values import loaders, type_names
from eventlog.changes.codec import Form, Loader
from eventlog.changes.schema import Column, Schema
from eventlog.changes.split import Texts

if TYPE_CHECKING:
    import pyarrow as pa


FEW_ROWS, FEW_BYTES = 16, 1 << 16


def is_worth_arrays(*, rows: int, size: int) -> bool:
    """Whether to split that many records across rows.

    Few of them are read one by one: arrays would take longer to set up. Large ones would be copied.
    """
    return rows >= FEW_ROWS or (rows > 0 and size >= FEW_BYTES)


class TextCodec:
    """The part of a ChangeCodec that does not depend on how records are split."""

    def loaders(self, schema: Schema, form: Form) -> tuple[Loader, ...]:
        """One function per column, from stored text to a value. Never raises for bad values."""
        return tuple(loaders.loader(schema, column.type, form) for column in schema.columns)

    def arrow_type(self, schema: Schema, column: Column) -> pa.DataType:
        """The Arrow type that follows from the declared type alone."""
        from cdc.postgres.values import arrow

        return arrow.arrow_type(schema, column.type, column.typmod)

    def arrow_array(
        self, schema: Schema, column: Column, texts: Texts, target: pa.DataType
    ) -> tuple[pa.Array, list[int]]:
        """Convert texts to `target`, and name the places whose value does not fit it."""
        from cdc.postgres.values import arrow

        return arrow.arrow_array(schema, column.type, texts, target)

    def type_name(self, schema: Schema, column: Column) -> str:
        """The type as Postgres names it, such as `numeric(12,2)`."""
        return type_names.type_name(schema, column.type, column.typmod)

    def transaction_text(self, word: int) -> str | None:
        """A transaction id, as `txid_current` prints it without its epoch; None for 0."""
        return str(word) if word else None

    def position_text(self, word: int) -> str | None:
        """A position in the write-ahead log, such as `16/B374D848`; None for 0."""
        return str(Lsn(word)) if word else None
