"""Random histories of a small shop, written as a capture would, and told to a `World`."""

from __future__ import annotations

import random
from typing import Any

from eventlog import UNCHANGED, Op
from eventlog.changes.change import ABSENT
from eventlog.changes.schema import Schema
from tests.fix_log import (
    HOUR_US,
    T0_US,
    Column,
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
from tests.seen_world import Texts, World

LONG = ("body", "owner", "page")
"""Columns whose values may be left out as unchanged."""

Told = tuple[str, Op, Texts | None, Texts | None]
"""Table, what happened, the old row as it was sent, the new one."""

UNSEEN = ("u1", "u2")
"""Keys of rows that were there before the capture, and never copied."""


class History:
    """Writes random transactions; the same for one seed."""

    def __init__(self, shop: MadeSource, seed: int) -> None:
        self.world = World()
        self._shop = shop
        self._draw = random.Random(seed)
        self._fresh = 0
        self._customers = [
            shop.table("customers", *_columns("id*", "tier", "body"), relation=1),
            shop.table("customers", *_columns("id*", "tier", "body", "vip=no"), relation=1),
        ]
        self._orders = shop.table(
            "orders",
            *_columns("region*", "number*", "customer", "amount", "body", "done"),
            relation=2,
        )
        self._accounts = [
            shop.table("accounts", *_columns("id*", "code", "owner"), relation=3),
            shop.table("accounts", *_columns("id", "code*", "owner"), relation=3, identity="i"),
        ]
        self._visits = shop.table(
            "visits", *_columns("customer*", "page*"), relation=4, identity="f"
        )
        self._hits = shop.table("hits", *_columns("customer"), relation=5, inserts_only=True)
        shop.announce()
        self._truth: dict[str, list[list[Any]]] = {
            "customers": [[key, "old", "long", "no"] for key in UNSEEN],
            "orders": [["u", key, "c1", "1", "long", None] for key in UNSEEN],
            "accounts": [],
            "visits": [["c1", "unseen"]],
            "hits": [],
        }
        self._copying: dict[str, list[list[Any]]] = {}

    def run(self, transactions: int) -> None:
        """Write so many more."""
        for _ in range(transactions):
            records: list[Record] = []
            told: list[Told] = []
            for _ in range(self._draw.choice((1, 1, 2, 4))):
                table = self._draw.choice(("customers", "orders", "orders", "accounts", "visits"))
                table = "hits" if self._draw.random() < 0.1 else table
                record, tale = self._change(table)
                records.append(record)
                told.append(tale)
            self._commit(records, told)
            if self._draw.random() < 0.15:
                self._copy()

    def age(self) -> None:
        """From here on customers have a column more, and accounts another key."""
        self._customers.pop(0)
        self._accounts.pop(0)
        table = self.world.tables["accounts"]
        seen: dict[Any, list[Any]] = {}
        for row in self._truth["accounts"]:
            seen[row[1]] = row
        self._truth["accounts"] = list(seen.values())
        record, told = self._insert("customers")
        another, more = self._insert("accounts")
        table.rekey((1,))
        self._commit([record, another], [told, more])

    def _commit(self, records: list[Record], told: list[Told]) -> None:
        time_us = self._shop.now_us + self._draw.randint(-3, 1) * HOUR_US
        assert time_us > T0_US - 10 * HOUR_US
        split = self._draw.random() < 0.3
        offsets = self._shop.commit(*records, time_us=time_us, split=split)
        for offset, tale in zip(offsets, told, strict=True):
            self.world.tell(offset, time_us, *tale)

    def _change(self, table: str) -> tuple[Record, Told]:
        rows = self._truth[table]
        kind = self._draw.random()
        if table == "hits" or not rows or kind < 0.35:
            return self._insert(table)
        if kind < 0.37:
            rows.clear()
            self._copying.pop(table, None)
            return truncate(self._schema(table)), (table, Op.TRUNCATE, None, None)
        row = self._draw.choice(rows)
        if kind < 0.4:  # a deletion was lost: another row has the key
            fresh = self._new_row(table)
            for place in self._key_places(table):
                fresh[place] = row[place]
            row[:] = fresh
            return insert(self._schema(table), *self._cut(table, row)), (
                table, Op.INSERT, None, tuple(row),
            )  # fmt: skip
        if kind < 0.5:
            rows.remove(row)
            old = self._old(table, row)
            sent = [None if value is ABSENT else value for value in old]
            return delete(self._schema(table), *self._cut(table, sent)), (
                table, Op.DELETE, tuple(old), None,
            )  # fmt: skip
        return self._update(table, row, moves=kind > 0.85)

    def _insert(self, table: str) -> tuple[Record, Told]:
        self._fresh += 1
        row = self._new_row(table)
        if table in ("orders", "accounts", "customers"):
            key = self._key(table, row)
            for other in self._truth[table]:
                if self._key(table, other) == key:  # taken: let it be another
                    row[0] = f"{row[0]}-{self._fresh}"
                    if table == "accounts":
                        row[1] = f"a{self._fresh}"
        self._truth[table].append(row)
        return insert(self._schema(table), *self._cut(table, row)), (
            table, Op.INSERT, None, tuple(row),
        )  # fmt: skip

    def _update(self, table: str, row: list[Any], *, moves: bool) -> tuple[Record, Told]:
        before = self._old(table, row)
        whole = table == "visits"
        after = self._new_row(table)
        changed = list(row)
        for place in range(len(row)):
            if place not in self._key_places(table) and self._draw.random() < 0.4:
                changed[place] = after[place]
        if moves or whole:
            for place in self._key_places(table):
                changed[place] = f"{after[place]}.{self._fresh}" if not whole else after[place]
            self._fresh += 1
        sent = list(changed)
        for place, name in enumerate(self._names(table)):
            if name in LONG and changed[place] == row[place] and row[place] is not None:
                sent[place] = UNCHANGED if self._draw.random() < 0.8 else sent[place]
        row[:] = changed
        schema, new = self._schema(table), self._cut(table, sent)
        if whole:
            record = update(schema, *new, old=before)
        elif moves:
            key = [None if value is ABSENT else value for value in before]
            record = update(schema, *new, key=self._cut(table, key))
        else:
            return update(schema, *new), (table, Op.UPDATE, None, tuple(sent))
        return record, (table, Op.UPDATE, tuple(before), tuple(sent))

    def _copy(self) -> None:
        """Begin a copy, or bring some of its rows, or end it."""
        table = self._draw.choice(("customers", "orders", "accounts", "visits"))
        schema = self._schema(table)
        if table not in self._copying:
            self._copying[table] = list(self._truth[table])
            record, told = control(Op.COPY_BEGIN, schema), (table, Op.COPY_BEGIN, None, None)
            self._commit([record], [told])
            return
        left = self._copying[table]
        for _ in range(min(len(left), 3)):
            row = left.pop()
            if any(row is other for other in self._truth[table]):
                self._commit(
                    [copied(schema, *self._cut(table, row))],
                    [(table, Op.READ, None, tuple(row))],
                )
        if not left:
            del self._copying[table]
            self._commit([control(Op.COPY_END, schema)], [(table, Op.COPY_END, None, None)])

    def _new_row(self, table: str) -> list[Any]:
        draw = self._draw
        customer = draw.choice(["c1", "c2", "c3", "a1", "a2", None])
        self._fresh += 1
        if table == "customers":
            name = draw.choice(["c1", "c2", "c3", f"c{self._fresh}"])
            return [name, draw.choice("123"), "toast" * draw.randint(1, 9), self._vip()]
        if table == "orders":
            number = draw.choice(["1", "2", "3", str(self._fresh)])
            done = draw.choice([None, None, f"day {self._fresh}"])
            body = draw.choice([None, f"body {self._fresh}"])
            return [draw.choice("NS"), number, customer, draw.choice("1239"), body, done]
        if table == "accounts":
            code = draw.choice(["a1", "a2", f"a{self._fresh}"])
            return [f"id{self._fresh}", code, f"owner {self._fresh}"]
        if table == "visits":
            return [customer, draw.choice(["/", "/cart"])]
        return [customer]

    def _vip(self) -> str:
        return "no" if len(self._customers) > 1 else self._draw.choice(["yes", "no"])

    def _schema(self, table: str) -> Schema:
        found: Schema | list[Schema] = getattr(self, f"_{table}")
        return found[0] if isinstance(found, list) else found

    def _names(self, table: str) -> tuple[str, ...]:
        return self._schema(table).names

    def _key_places(self, table: str) -> tuple[int, ...]:
        return self._schema(table).key_indexes or tuple(range(len(self._names(table))))

    def _key(self, table: str, row: list[Any]) -> list[Any]:
        return [row[place] for place in self._key_places(table)]

    def _old(self, table: str, row: list[Any]) -> list[Any]:
        """What is sent of the old row: its key, or all of it."""
        keys = self._key_places(table)
        return [value if place in keys else ABSENT for place, value in enumerate(row)]

    def _cut(self, table: str, row: list[Any]) -> list[Any]:
        """The columns that the table has today."""
        return row[: len(self._names(table))]


def _columns(*names: str) -> list[Column]:
    """Columns of text: `name*` is of the key, `name=x` has the fast default x."""
    found = []
    for attribute, name in enumerate(names, 1):
        plain, _, missing = name.rstrip("*").partition("=")
        found.append(
            column(plain, key=name.endswith("*"), attribute=attribute, missing=missing or None)
        )
    return found
