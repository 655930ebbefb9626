"""Histories of tables that no source would write, but any log may hold: made from a seed.

Keys collide, updates and deletes miss their rows, values are left unsent that nobody knows, copies
begin and never end, schema versions come one after the other. Whatever folds a log must say the
same of it as `eventlog.changes.fold.TableFold`, which goes record by record.
"""

from __future__ import annotations

from random import Random
from typing import Any

import eventlog
from eventlog import UNCHANGED, Op
from eventlog.changes.fold import Placed, TableFold
from eventlog.changes.reading import pieces
from eventlog.changes.schema import Column, Schema
from tests.fix_log import (
    MadeSource,
    Record,
    column,
    control,
    copied,
    delete,
    insert,
    truncate,
    update,
)

RELATION, OTHER = 16_400, 16_500
LONG = "a long value " * 10
NAMES = "abcdef"


class MadeHistory:
    """Writes a random life of table `t`, with one of `u` in between."""

    def __init__(self, log: eventlog.Log, random: Random, *, identities: str = "ddddiffn") -> None:
        self.source = MadeSource(log, "shop")
        self._random = random
        self._identities = identities
        self._attributes = 0
        self._columns: list[Column] = []
        for _ in range(random.randint(1, 3)):
            self._add_column()
        self._other = self.source.table("u", column("id", key=True), column("v"), relation=OTHER)
        self.table = self._version(random.choice(identities))
        self.source.announce()

    def write(self, transactions: int) -> None:
        """Commit so many transactions of a few records each."""
        for _ in range(transactions):
            if self._random.random() < 0.12:
                self._change_schema()
            records = [self._record() for _ in range(self._random.randint(1, 4))]
            self.source.commit(*records, split=self._random.random() < 0.3)

    def _record(self) -> Record:
        random, table = self._random, self.table
        roll = random.random()
        if roll < 0.1:
            return insert(self._other, random.randint(1, 3), "other")
        if roll < 0.4:
            return insert(table, *self._row())
        if roll < 0.5:
            return copied(table, *self._row())
        if roll < 0.78:
            return self._update()
        if roll < 0.92:
            return delete(table, *self._old()) if self._has_old() else insert(table, *self._row())
        if roll < 0.94:
            return truncate(table)
        if roll < 0.96:
            return control(Op.COPY_BEGIN, table)
        if roll < 0.98:
            return control(Op.COPY_END, table)
        if roll < 0.99:
            return control(Op.RENAME, table, was="public.before")
        return control(Op.DATA_LOSS, None, **{"from": "0/1", "to": "0/2"})

    def _update(self) -> Record:
        random, table = self._random, self.table
        new = [UNCHANGED if random.random() < 0.3 else value for value in self._row()]
        if random.random() < 0.4 and self._has_old():
            if table.identity == "f":
                return update(table, *new, old=self._old())
            return update(table, *new, key=self._old())
        for place in table.key_indexes:  # The source sends a key that it left out as an old one.
            if random.random() < 0.9 and new[place] is UNCHANGED:
                new[place] = self._value()
        return update(table, *new)

    def _has_old(self) -> bool:
        return bool(self.table.key_indexes) or self.table.identity == "f"

    def _old(self) -> list[Any]:
        keys = self.table.key_indexes
        full = self.table.identity == "f"
        return [value if full or place in keys else None for place, value in enumerate(self._row())]

    def _row(self) -> list[Any]:
        return [self._value() for _ in self.table.columns]

    def _value(self) -> Any:
        random = self._random
        if random.random() < 0.1:
            return random.choice([None, "", LONG, LONG + "x", "12345678", "123456789"])
        return random.choice("1122345")

    def _change_schema(self) -> None:
        random, columns = self._random, self._columns
        roll = random.random()
        if roll < 0.35 and len(columns) < 5:
            self._add_column()
        elif roll < 0.55 and len(columns) > 1:
            columns.pop(random.randrange(len(columns)))
        elif roll < 0.7:
            random.shuffle(columns)
        elif roll < 0.8:
            place = random.randrange(len(columns))
            old = columns[place]
            columns[place] = column(old.name + "x", attribute=old.attribute, missing=old.missing)
        identity = self.table.identity
        if random.random() < 0.4:
            identity = random.choice(self._identities)
        self.table = self._version(identity)

    def _version(self, identity: str) -> Schema:
        random = self._random
        count = random.choice([1, 1, 1, 2])
        keys = {each.name for each in self._columns[:count]}
        inferred = random.random() < 0.1
        columns = [
            column(
                each.name,
                key=identity == "f" or (identity in "di" and each.name in keys),
                attribute=None if inferred else each.attribute,
                missing=None if inferred else each.missing,
            )
            for each in self._columns
        ]
        return self.source.table("t", *columns, relation=RELATION, identity=identity)

    def _add_column(self) -> None:
        self._attributes += 1
        name = f"{NAMES[self._random.randrange(len(NAMES))]}{self._attributes}"
        missing = self._random.choice([None, "1", "default"])
        self._columns.append(column(name, attribute=self._attributes, missing=missing))


def folded(log: eventlog.Log, table: Schema, stop: int) -> tuple[TableFold, list[Placed]]:
    """The table as the definition has it, record by record."""
    history = log._history("shop")
    fold = TableFold()
    found = pieces(
        log.engine, history, 0, stop, selection=lambda other: other.relation == table.relation
    )
    for piece in found:
        for offset, raw in piece.changes():
            fold.apply(offset, raw, None if raw.relation is None else piece.schemas[raw.relation])
    fold.switch(table)
    return fold, fold.rows()
