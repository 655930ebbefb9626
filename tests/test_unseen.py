"""Changes that the stream did not show: refused until a copy mends them, never silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from eventlog import Op
from eventlog.changes.schema import Column, Schema
from eventlog.changes.schemas import places
from eventlog.errors import SnapshotRefused
from tests.fix_log import INT, MadeSource, column, control, copied, insert, truncate
from tests.fix_postgres import RunCli, assert_explained

COLUMNS = (column("id", INT, key=True, attribute=1), column("n", INT, attribute=2))
WHY = "its rows were rewritten by ALTER TABLE"


def unseen(shop: MadeSource, since: int, *, name: str = "orders", relation: int = 16_400) -> Schema:
    return shop.table(name, *COLUMNS, relation=relation, unseen_since=since, unseen_reason=WHY)


def rows(log: eventlog.Log, at: Any = "end", **options: Any) -> list[Any]:
    found = log.snapshot("shop", at=at).table("orders", **options).to_arrow(offsets=True)
    return [tuple(row.values()) for row in found.to_pylist()]


def refused(log: eventlog.Log, at: Any = "end") -> SnapshotRefused:
    with pytest.raises(SnapshotRefused) as caught:
        rows(log, at)
    return caught.value


@pytest.fixture
def orders(log: eventlog.Log, shop: MadeSource) -> Schema:
    """Two rows at the offsets 0 and 1."""
    schema = shop.table("orders", *COLUMNS)
    shop.commit(insert(schema, 1, 10), insert(schema, 2, 20))
    return schema


def copy(shop: MadeSource, schema: Schema, *rows: tuple[int, int]) -> None:
    shop.commit(control(Op.COPY_BEGIN, schema))
    shop.commit(*(copied(schema, *row) for row in rows))
    shop.commit(control(Op.COPY_END, schema))


def test_the_fields_are_stored_and_old_versions_have_none() -> None:
    schema = Schema(
        id=3,
        offset=0,
        relation=1,
        namespace="public",
        name="t",
        identity="d",
        columns=(column("a", attribute=1, hashed=True),),
        unseen_since=7,
        unseen_reason=WHY,
    )
    stored = schema.to_map()
    assert Schema.from_map(3, stored) == schema
    for name in ("unseen_since", "unseen_reason"):
        del stored[name]
    del stored["columns"][0]["hashed"]
    old = Schema.from_map(3, stored)
    assert (old.unseen_since, old.unseen_reason, old.columns[0].hashed) == (None, "", False)


def test_a_cut_behind_an_unseen_change_is_refused_until_a_copy_has_ended(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 3, 30))
    marked = unseen(shop, since=2)
    shop.announce()
    assert rows(log, at=2) == [(0, 1, 10), (1, 2, 20)], "known good up to there"
    error = refused(log)
    assert str(error) == (
        "rows of table public.orders changed at the source without a record that shows it, between "
        f"offset 2 and 3: {WHY}"
    )
    assert error.hint.startswith("cut at 2 or before, or behind its next copy")
    assert "--as-is" in error.hint
    assert rows(log, as_is=True) == [(0, 1, 10), (1, 2, 20), (2, 3, 30)]
    copy(shop, marked, (1, 11), (2, 21), (3, 31))
    assert rows(log) == [(4, 1, 11), (5, 2, 21), (6, 3, 31)]
    assert "it is exact from 8 on" in refused(log, at=3).hint
    for at in (4, 6, 7):
        error = refused(log, at=at)
        assert "not complete" in str(error) and "from 8 on" in error.hint
    assert rows(log, at=7, as_is=True) == [(4, 1, 11), (5, 2, 21), (6, 3, 31)]
    assert rows(log, at=2) == [(0, 1, 10), (1, 2, 20)]


def test_a_copy_that_began_before_the_change_was_noticed_does_not_mend_it(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(control(Op.COPY_BEGIN, orders), copied(orders, 1, 10))
    marked = unseen(shop, since=2)
    shop.commit(insert(marked, 5, 50))
    shop.commit(control(Op.COPY_END, marked))
    assert "cut at 2 or before, or behind its next copy" in refused(log).hint
    assert "the copy has not ended yet" in refused(log, at=4).hint
    copy(shop, marked, (1, 11))
    assert rows(log) == [(7, 1, 11)]
    for at in (4, 5, 6):
        assert "from 9 on" in refused(log, at=at).hint


def test_later_versions_do_not_hide_it_and_each_tells_of_its_own_change(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    unseen(shop, since=2)
    wider = shop.table("orders", *COLUMNS, column("more", attribute=3))
    shop.commit(insert(wider, 3, 30, "x"))
    assert WHY in str(refused(log))
    copy(shop, shop.table("orders", *COLUMNS), (1, 11))
    assert rows(log) == [(4, 1, 11)]
    again = unseen(shop, since=6)
    shop.commit(insert(again, 4, 40))
    assert "between offset 6" in str(refused(log))
    copy(shop, again, (1, 12))
    assert rows(log) == [(8, 1, 12)]
    assert "from 10 on" in refused(log, at=7).hint


def test_a_change_that_is_known_to_lie_behind_the_cut_does_not_matter(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    users = shop.table("users", *COLUMNS, relation=2)
    shop.commit(insert(users, 1, 1))
    unseen(shop, since=3, name="users", relation=2)
    marked = unseen(shop, since=3)
    shop.commit(truncate(marked))
    assert rows(log, at=3) == [(0, 1, 10), (1, 2, 20)]
    assert WHY in str(refused(log)), "a truncate may lie before the change"
    assert log.snapshot("shop", at=3).table("users").num_rows == 1
    with pytest.raises(SnapshotRefused, match=r"public\.users changed"):
        log.snapshot("shop").table("users")


def test_a_mark_of_a_table_that_is_gone_does_not_take_the_name_back(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    again = shop.table("orders", *COLUMNS, relation=2)
    shop.commit(insert(again, 7, 70))
    unseen(shop, since=3)
    shop.commit(insert(again, 8, 80))
    assert rows(log) == [(2, 7, 70), (3, 8, 80)]


def test_a_loss_can_be_taken_as_it_is(log: eventlog.Log, shop: MadeSource, orders: Schema) -> None:
    shop.commit(control(Op.DATA_LOSS, None, **{"from": "0/1", "to": "0/9"}))
    assert "were lost" in str(refused(log))
    assert rows(log, as_is=True) == [(0, 1, 10), (1, 2, 20)]


def test_the_command_refuses_and_takes_it_as_it_is(
    log: eventlog.Log, shop: MadeSource, orders: Schema, tmp_path: Path, run_cli: RunCli
) -> None:
    unseen(shop, since=2)
    shop.commit(insert(orders, 3, 30))
    out = tmp_path / "orders.csv"
    command = ["snapshot", "export", "shop", "--table", "orders", "--out", str(out)]
    command += ["--log", str(log.path)]
    done = run_cli(*command)
    assert_explained(done)
    assert WHY in done.stderr and not out.exists()
    done = run_cli(*command, "--as-is")
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_text().split() == ['"id","n"', "1,10", "2,20", "3,30"]


# Fast defaults


def test_a_fast_default_is_kept_where_no_record_has_the_version_that_brought_it(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.table("orders", *COLUMNS, column("tier", attribute=3, missing="basic"))
    # A rewrite of the table made the source forget it, before any record came.
    last = shop.table(
        "orders",
        *COLUMNS,
        column("tier", attribute=3),
        column("also", attribute=4, missing="late"),
    )
    shop.commit(insert(last, 3, 30, "gold", "new"))
    renamed = shop.table(
        "orders",
        *COLUMNS,
        column("level", attribute=3),
        column("also", attribute=4, missing="another"),
    )
    shop.commit(insert(renamed, 4, 40, None, None))
    assert rows(log) == [
        (0, 1, 10, "basic", "late"),
        (1, 2, 20, "basic", "late"),
        (2, 3, 30, "gold", "new"),
        (3, 4, 40, None, None),
    ]
    found = log.stream("shop").read(table="orders").to_arrow()
    assert found["level"].to_pylist() == ["basic", "basic", "gold", None]


COLUMN = st.tuples(st.integers(0, 4), st.sampled_from("abcd"))


@settings(max_examples=300, deadline=None)
@given(st.lists(COLUMN, max_size=4), st.lists(COLUMN, max_size=4))
def test_columns_are_found_by_number_and_by_name_where_one_has_none(
    source: list[tuple[int, str]], target: list[tuple[int, str]]
) -> None:
    def schema(columns: list[tuple[int, str]]) -> Schema:
        numbers: set[int] = set()
        made: list[Column] = []
        for number, name in columns:
            if number in numbers or name in [c.name for c in made]:
                continue
            numbers |= {number} - {0}
            made.append(column(name, attribute=number or None))
        return Schema(
            id=0,
            offset=0,
            relation=1,
            namespace="public",
            name="t",
            identity="d",
            columns=tuple(made),
        )

    before, after = schema(source), schema(target)
    for found, wanted in zip(places(before, after), after.columns, strict=True):
        same = [
            place
            for place, other in enumerate(before.columns)
            if (
                wanted.attribute == other.attribute
                if None not in (wanted.attribute, other.attribute)
                else wanted.name == other.name
            )
        ]
        assert (found in same) if same else found is None
