"""Random histories of several tables, and their rows' histories in plain Python: an oracle.

The oracle hears of every change as it is made, by the keys of the row before and after it, and
never looks at the log. What it keeps of a row while it lives is a list of versions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

from eventlog.changes.change import UNCHANGED, Op
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

Key = tuple[str, ...]
Values = dict[str, Any]


class Heard(NamedTuple):
    """A version as the oracle has it: what `Version` says, without transaction and time."""

    offset: int
    op: Op
    table: str | None
    row: Values | None
    changed: dict[str, tuple[Any, Any]] | None


@dataclass
class Row:
    """A row while it lives, and afterwards."""

    versions: list[Heard] = field(default_factory=list)
    keys: set[Key] = field(default_factory=set)
    values: Values | None = None


@dataclass
class Table:
    """A table: its version, its rows by key, and every row that it ever had."""

    schema: Schema
    key: tuple[str, ...]
    living: dict[Key, Row] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def hear(self, offset: int, op: Op, before: Key | None, after: Key | None, new: Any) -> None:
        """Take in a change of one row; `new` is what was sent of it."""
        row = None if op is Op.INSERT else self.living.pop(before or after or (), None)
        if row is None:
            row = Row()
            self.rows.append(row)
        row.keys |= {key for key in (before, after) if key is not None}
        filled = None if new is None else dict(new)
        changed = None
        if filled is not None:
            had = row.values or {}
            for name, value in filled.items():
                if value is UNCHANGED and name in had:
                    filled[name] = had[name]
            if row.values is not None:
                changed = {
                    name: (had[name], value)
                    for name, value in filled.items()
                    if had[name] != value and UNCHANGED not in (had[name], value)
                }
            row.values = filled
        row.versions.append(Heard(offset, op, self.schema.table, filled, changed))
        if after is not None:
            self.living[after] = row

    def hear_all(self, offset: int, op: Op) -> None:
        """Take in what concerns every row."""
        for row in self.living.values():
            table = None if op is Op.DATA_LOSS else self.schema.table
            row.versions.append(Heard(offset, op, table, None, None))
        if op is not Op.DATA_LOSS:
            self.living.clear()

    def history(self, key: Key) -> list[tuple[int, Heard]]:
        """The versions of all rows that ever bore the key, with the numbers of their lives."""
        found = [row for row in self.rows if key in row.keys]
        found.sort(key=lambda row: row.versions[0].offset)
        told = [(life, heard) for life, row in enumerate(found, 1) for heard in row.versions]
        return sorted(told, key=lambda version: (version[1].offset, version[0]))


class World:
    """Makes changes of tables `one` (a key of one column) and `two` (of two), and of `loose`."""

    def __init__(self, source: MadeSource, seed: int) -> None:
        self.draw = random.Random(seed)
        self.source = source
        self.count = 0
        one = source.table(
            "one", column("id", key=True, attribute=1), *_columns("a", "b"), relation=1
        )
        two = source.table(
            "two",
            column("x", key=True, attribute=1),
            column("a", attribute=2),
            column("y", key=True, attribute=4),
            column("b", attribute=3),
            relation=2,
        )
        self.loose = source.table("loose", column("v"), relation=3, identity="f")
        self.tables = [Table(schema=one, key=("id",)), Table(schema=two, key=("x", "y"))]

    def keys(self, table: Table) -> Iterator[Key]:
        """Every key that a row may have had, and some that none had."""
        for row in table.rows:
            yield from row.keys
        yield tuple("never" for _ in table.key)

    def run(self, transactions: int) -> None:
        for _ in range(transactions):
            self.transaction()

    def transaction(self) -> None:
        records: list[Record] = []
        heard: list[tuple[Any, ...]] = []
        for _ in range(self.draw.choice((1, 1, 2, 5))):
            table = self.draw.choice(self.tables)
            chance = self.draw.random()
            if chance < 0.03:
                records.append(truncate(table.schema))
                heard.append((table, Op.TRUNCATE))
            elif chance < 0.05:
                records.append(control(Op.COPY_BEGIN, table.schema))
                heard.append((table, Op.COPY_BEGIN))
            elif chance < 0.06:
                records.append(control(Op.DATA_LOSS, **{"from": "0/1", "to": "0/2"}))
                heard.append((None, Op.DATA_LOSS))
            elif chance < 0.10:
                records.append(insert(self.loose, self.number()))
                heard.append(())
            elif chance < 0.14:
                # What was said under the version before is written before the next one.
                self.write(records, heard)
                records, heard = [], []
                self.alter(table)
            else:
                record, told = self.change(table)
                records.append(record)
                heard.append((table, *told))
        self.write(records, heard)

    def write(self, records: list[Record], heard: list[tuple[Any, ...]]) -> None:
        """Commit them; copied rows are of no transaction."""
        for _, group in groupby(zip(records, heard, strict=True), lambda pair: pair[0][0]):
            pairs = list(group)
            self._write([record for record, _ in pairs], [told for _, told in pairs])

    def _write(self, records: list[Record], heard: list[tuple[Any, ...]]) -> None:
        offsets = self.source.commit(*records, split=self.draw.random() < 0.2)
        for offset, told in zip(offsets, heard, strict=True):
            if not told:
                continue
            table, op, *more = told
            if table is None:
                for each in self.tables:
                    each.hear_all(offset, op)
            elif more:
                table.hear(offset, op, *more)
            else:
                table.hear_all(offset, op)

    def change(self, table: Table) -> tuple[Record, tuple[Any, ...]]:
        """A change of a row; most of the time one that a database would have made."""
        schema, draw = table.schema, self.draw
        key = self.key(table)
        fits = draw.random() < 0.95
        lives = key in table.living
        if draw.random() < 0.1:
            row = self.row(table, key)
            return copied(schema, *row.values()), (Op.READ, None, key, row)
        if lives != fits or (not lives and draw.random() < 0.5):
            row = self.row(table, key)
            return insert(schema, *row.values()), (Op.INSERT, None, key, row)
        full = schema.identity == "f"
        old = [dict(zip(table.key, key, strict=True)).get(n) for n in schema.names]
        if draw.random() < 0.2:
            return delete(schema, *old), (Op.DELETE, key, None, None)
        after = self.key(table) if draw.random() < 0.4 else key
        row = self.row(table, after)
        if draw.random() < 0.3 and not full:
            row["b"] = UNCHANGED
        sends_old = after != key or full
        if full:
            record = update(schema, *row.values(), old=old)
        else:
            record = update(schema, *row.values(), key=old if sends_old else ())
        return record, (Op.UPDATE, key if sends_old else None, after, row)

    def alter(self, table: Table) -> None:
        """A new schema version: renamed, with a column more, or under another identity."""
        schema = table.schema
        names, more = schema.columns, {"relation": schema.relation, "identity": schema.identity}
        name = schema.name
        kind = self.draw.choice(("rename", "add", "drop", "identity"))
        if kind == "rename":
            name = f"{name.partition('_')[0]}_{self.number()}"
        elif kind == "add":
            attribute = 10 + self.count
            names = (*names, column(f"c{self.number()}", attribute=attribute, missing="d"))
        elif kind == "drop" and names[-1].name.startswith("c"):
            names = names[:-1]
        elif kind == "identity":
            names, more["identity"] = self.identified(table, known=self.draw.random() < 0.5)
        table.schema = self.source.table(name, *names, **more)
        kept = {column.name for column in names}
        for row in table.living.values():
            values = row.values
            if values is not None:
                row.values = {
                    c.name: values.get(c.name, c.missing) for c in names if c.name in kept
                }

    def identified(self, table: Table, *, known: bool) -> tuple[tuple[Column, ...], str]:
        """The columns under the other identity; whether the primary key is known under FULL."""
        columns = table.schema.columns
        if table.schema.identity == "f":
            return tuple(replace(c, key=c.name in table.key, primary=False) for c in columns), "d"
        full = (replace(c, key=True, primary=known and c.name in table.key) for c in columns)
        return tuple(full), "f"

    def settle(self) -> None:
        """Give every table an identity again by which its rows are asked for, or another one."""
        for table in self.tables:
            schema = table.schema
            if not schema.row_key or self.draw.random() < 0.4:
                columns, identity = self.identified(table, known=True)
                table.schema = self.source.table(
                    schema.name, *columns, relation=schema.relation, identity=identity
                )
                record, told = self.change(table)
                self.write([record], [(table, *told)])

    def key(self, table: Table) -> Key:
        return tuple(
            f"{self.draw.choice(('', 'a key above eight bytes '))}{self.draw.randrange(4)}"
            for _ in table.key
        )

    def row(self, table: Table, key: Key) -> Values:
        named = dict(zip(table.key, key, strict=True))
        return {
            c.name: named.get(c.name, self.draw.choice((None, "v", f"v{self.number()}")))
            for c in table.schema.columns
        }

    def number(self) -> int:
        self.count += 1
        return self.count


def _columns(*names: str) -> list[Any]:
    return [column(name, attribute=place) for place, name in enumerate(names, 2)]
