"""New names that the catalog told of, on their way into the stream: a record of each.

A name that no change of the table brought would be known only behind the next record of any kind,
and cuts by number must mean the same for ever. So the log writes a record of its own, `rename`: the
cuts up to it know the earlier name, those behind it the new one, and there is one at once.

One thread, the streaming one.
"""

from __future__ import annotations

from cdc.postgres.copy.placing import control_batch
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.schema.schema_book import SchemaBook
from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.changes.table_name import TableName
from eventlog.engine import Batch


class Renaming:
    """The new names that the next commit tells of."""

    def __init__(self, book: SchemaBook) -> None:
        self._book = book
        self._told: list[tuple[Schema, str, int]] = []

    def add(self, relation: int, was: tuple[str, str], now: tuple[str, str], time_us: int) -> bool:
        """Let a relation be known by another name from the next commit on.

        False where it is known by another than it `was`: the stream told of a later name. REQUIRES:
        it was renamed below the stored position. So what comes next was changed under the new name.
        """
        known = self._book.schema(relation)
        if known is None or (known.namespace, known.name) != was:
            return False
        if self._book.rename(relation, namespace=now[0], name=now[1]) is None:
            return False
        renamed = self._book.schema(relation)
        assert renamed is not None
        self._told.append((renamed, str(TableName(schema=was[0], name=was[1])), time_us))
        return True

    def take(self, position: Lsn) -> list[Batch]:
        """The records, which come before all else in the commit; `position` is the stored one."""
        told, self._told = self._told, []
        return [
            control_batch(Op.RENAME, schema, position=position, time_us=time_us, was=was)
            for schema, was, time_us in told
        ]
