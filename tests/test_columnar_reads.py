"""Arrow tables of reads: whole columns at once, and what they hold is what was written.

A model keeps what each record shows, by the attribute numbers of its columns; the logs are made
without a server, with enough records in a commit that none is read alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from eventlog import UNCHANGED, Op
from eventlog.changes import change_view, shown
from eventlog.changes.arrow import unfit_counts
from eventlog.changes.schema import Schema
from eventlog.errors import UnknownColumn, ValueDoesNotFit
from tests.fix_log import (
    INT,
    MadeSource,
    Record,
    column,
    control,
    copied,
    delete,
    insert,
    message,
    truncate,
    update,
)

ORDERS, USERS = 16_400, 16_500


@dataclass
class Shown:
    """What a record shows: `values` by attribute number, None where it has no row."""

    schema: Schema | None
    op: Op
    values: dict[int, Any] | None

    def under(self, target: Schema, number: int) -> Any:
        """Its value in that column of `target`."""
        wanted = target.columns[number]
        if self.values is None:
            return None
        assert wanted.attribute is not None
        return self.values.get(wanted.attribute, wanted.missing)


@dataclass
class Model:
    """A stream of two tables, the first of which changes its columns on the way."""

    rng: random.Random
    source: MadeSource
    written: list[Shown] = field(default_factory=list)

    def fill(self) -> Schema:
        """Write everything; returns the last version of orders."""
        orders = self.source.table(
            "orders",
            column("id", key=True, attribute=1),
            column("x", attribute=2),
            column("y", attribute=3),
            relation=ORDERS,
        )
        users = self.source.table("users", column("id", key=True, attribute=1), relation=USERS)
        self.copy(orders)
        self.commits(orders, users)
        orders = self.source.table(
            "orders",
            column("more", attribute=4, missing="as it was"),
            column("renamed", attribute=2),
            column("id", key=True, attribute=1),
            relation=ORDERS,
        )
        self.source.commit(self.record(orders, "i"))
        self.commits(orders, users)
        self.written.append(Shown(None, Op.DATA_LOSS, None))
        self.source.commit(control(Op.DATA_LOSS, None, **{"from": "0/1", "to": "0/2"}))
        return orders

    def copy(self, orders: Schema) -> None:
        rows = [self.row(orders, nothings=(None,)) for _ in range(self.rng.choice([1, 40]))]
        self.written += [Shown(orders, Op.READ, self.numbered(orders, row)) for row in rows]
        self.source.commit(*(copied(orders, *row) for row in rows))

    def commits(self, orders: Schema, users: Schema) -> None:
        kinds = self.rng.choice(["i", "iiiiiu", "iudKtm"])
        tables = self.rng.choice([[orders], [orders, users]])
        for _ in range(self.rng.randrange(1, 4)):
            count = self.rng.choice([1, 5, 60])
            records = [self.record(self.rng.choice(tables), kinds) for _ in range(count)]
            self.source.commit(*records, split=self.rng.random() < 0.1)

    def record(self, schema: Schema, kinds: str) -> Record:
        new = self.row(schema, nothings=(None,))
        match self.rng.choice(kinds):
            case "i":
                self.written.append(Shown(schema, Op.INSERT, self.numbered(schema, new)))
                return insert(schema, *new)
            case "u":
                new = self.row(schema, nothings=(None, UNCHANGED))
                self.written.append(Shown(schema, Op.UPDATE, self.numbered(schema, new)))
                return update(schema, *new)
            case "K":
                self.written.append(Shown(schema, Op.UPDATE, self.numbered(schema, new)))
                return update(schema, *new, key=[c.name if c.key else None for c in schema.columns])
            case "d":
                old = [v if c.key else None for v, c in zip(new, schema.columns, strict=True)]
                self.written.append(Shown(schema, Op.DELETE, self.numbered(schema, old)))
                return delete(schema, *old)
            case "t":
                self.written.append(Shown(schema, Op.TRUNCATE, None))
                return truncate(schema)
        self.written.append(Shown(None, Op.MESSAGE, None))
        return message("mine", b"x")

    def row(self, schema: Schema, nothings: tuple[Any, ...]) -> list[Any]:
        return [
            self.rng.choice(nothings)
            if self.rng.random() < 0.1 and not found.key
            else self.rng.choice(["", "plain", "é" * 300, str(self.rng.randrange(10**9))])
            for found in schema.columns
        ]

    def numbered(self, schema: Schema, row: list[Any]) -> dict[int, Any]:
        return {c.attribute or 0: value for c, value in zip(schema.columns, row, strict=True)}

    def selected(self, start: int, stop: int) -> list[tuple[int, Shown]]:
        """What a read of orders gives."""
        return [
            (offset, found)
            for offset, found in enumerate(self.written)
            if start <= offset < stop
            and (found.op is Op.DATA_LOSS or (found.schema and found.schema.relation == ORDERS))
        ]


def expect_shown(
    table: pa.Table, expected: list[tuple[int, Shown]], target: Schema, names: list[str]
) -> None:
    assert table.column_names == ["_offset", "_op", "_time", *names]
    assert table["_offset"].to_pylist() == [offset for offset, _ in expected]
    assert table["_op"].to_pylist() == [found.op for _, found in expected]
    unfit = {}
    for name in names:
        values = [found.under(target, target.names.index(name)) for _, found in expected]
        nulled = [None if value is UNCHANGED else value for value in values]
        assert table[name].to_pylist() == nulled
        if UNCHANGED in values:
            unfit[name] = values.count(UNCHANGED)
    assert unfit_counts(table) == unfit


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_reads_show_what_was_written(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    with eventlog.open(tmp_path_factory.mktemp("log"), create=True) as log:
        source = MadeSource(log, "shop")
        model = Model(rng, source)
        last = model.fill()
        end = len(model.written)
        start = rng.randrange(end)
        names = rng.choice([list(last.names), ["renamed"], ["id", "more"]])
        read = source.stream.read(start, table="orders", columns=names)
        expected = model.selected(start, end)
        expect_shown(read.to_arrow(unfit="null"), expected, last, names)
        assert [(c.offset, c.op) for c in read] == [(at, found.op) for at, found in expected]
        times = {change.offset: change.time for change in read}
        table = read.to_arrow(unfit="null")
        assert table["_time"].to_pylist() == [times[offset] for offset, _ in expected]

        stop = rng.randrange(start, end + 1)
        rows = rng.choice([1, 3, 7, 10_000])
        at = start
        for batch in source.stream.read(start, stop, table="orders").batches(rows):
            assert at <= batch.start < batch.stop <= stop and 0 < len(batch) <= rows
            inside = model.selected(batch.start, batch.stop)
            own = {found.schema.id: found.schema for _, found in inside if found.schema}
            assert len(own) <= 1
            if own:
                (schema,) = own.values()
                table = batch.to_arrow(unfit="null")
                expect_shown(table, inside, schema, list(schema.names))
            assert [(c.offset, c.op) for c in batch] == [(o, found.op) for o, found in inside]
            assert model.selected(at, batch.start) == []
            at = batch.stop
        assert model.selected(at, stop) == []
        assert log.check() == []
        source.close()


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    return shop.table("orders", column("id", INT, key=True), column("note"))


def test_groups_of_payloads_become_one_table_with_all_misfits(
    shop: MadeSource, orders: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "GROUP_BYTES", 1)
    for number in range(4):
        note = UNCHANGED if number % 2 else f"note {number}"
        shop.commit(
            control(Op.COPY_BEGIN, orders),
            *(update(orders, number * 100 + place, note) for place in range(50)),
        )
    table = shop.stream.read(table="orders").to_arrow(unfit="null")
    assert table["id"].num_chunks > 1
    assert table.num_rows == 204 and unfit_counts(table) == {"note": 100}
    assert table.schema.field("note").metadata[b"postgres_type"] == b"text"
    with pytest.raises(ValueDoesNotFit, match=r"'note' of public.orders at offset 52"):
        shop.stream.read(table="orders").to_arrow()


def test_reading_into_arrow_makes_no_change_one_by_one(
    shop: MadeSource, orders: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.commit(*(insert(orders, number, "x") for number in range(100)))

    def refuse(self: Any) -> Any:
        raise AssertionError("read one by one")

    monkeypatch.setattr(change_view.ChangeRun, "located", refuse)
    assert shop.stream.read(table="orders").to_arrow().num_rows == 100
    (batch,) = shop.stream.follow("begin", table="orders", until="current")
    assert batch.to_arrow()["id"].to_pylist() == list(range(100))
    with pytest.raises(AssertionError, match="one by one"):
        list(batch)


def test_columns_that_are_not_asked_for_are_not_converted(shop: MadeSource, orders: Schema) -> None:
    shop.commit(insert(orders, "not a number", "x"), *(insert(orders, 1, "y") for _ in range(20)))
    read = shop.stream.read(table="orders", columns=["note"])
    assert read.to_arrow().num_rows == 21
    with pytest.raises(ValueDoesNotFit):
        shop.stream.read(table="orders").to_arrow()
    with pytest.raises(UnknownColumn):
        read.to_arrow(cast={"nonesuch": "text"})


def test_control_records_alone_are_rows_of_nulls_with_the_tables_types(
    shop: MadeSource, orders: Schema
) -> None:
    shop.commit(control(Op.COPY_BEGIN, orders), control(Op.COPY_END, orders))
    table = shop.stream.read(table="orders").to_arrow()
    assert table["_op"].to_pylist() == ["copy_begin", "copy_end"]
    assert table["id"].type == pa.int32() and table["id"].to_pylist() == [None, None]
