"""The difference of two manifests: against a plain comparison, with and without keys."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from eventlog.errors import UnknownTable, UsageError
from eventlog.snapshots.manifests.diff import TableDiff, diff
from eventlog.snapshots.manifests.matching import by_key, by_values
from eventlog.snapshots.manifests.saved import Saved
from tests.fix_log import INT, MadeSource, column, delete, insert, update
from tests.fix_postgres import RunCli, assert_explained

KEYED = (
    column("id", INT, key=True, attribute=1),
    column("n", INT, attribute=2),
    column("note", attribute=3),
)


def saved(log: eventlog.Log, path: Path, cuts: Any, **options: Any) -> Saved:
    log.snapshot(cuts).save(path, **options)
    return log.load_snapshot(path)


def compared(
    log: eventlog.Log, tmp_path: Path, before: Any, after: Any, **options: Any
) -> list[TableDiff]:
    a = saved(log, tmp_path / "a.json", before)
    b = saved(log, tmp_path / "b.json", after)
    return diff(log.engine, a, b, **options)


def test_rows_that_went_came_and_changed(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(
        insert(orders, 1, 10, "a"),
        insert(orders, 2, 20, "b"),
        insert(orders, 3, 30, "c"),
        insert(orders, 4, 40, "d"),
    )
    shop.commit(update(orders, 1, 11, None), delete(orders, 2, None, None))
    shop.commit(insert(orders, 5, 50, "e"), update(orders, 3, 30, "c"))
    (found,) = compared(log, tmp_path, {"shop": 4}, {"shop": "end"})
    assert (found.removed, found.added, found.changed, found.key) == (1, 1, 1, ["id"])
    assert found.changed_columns == {"n": 1, "note": 1}
    assert [(row.kind, row.offset, row.before, row.after, row.columns) for row in found.rows] == [
        ("removed", 1, {"id": 2, "n": 20, "note": "b"}, None, []),
        (
            "changed",
            4,
            {"id": 1, "n": 10, "note": "a"},
            {"id": 1, "n": 11, "note": None},
            ["n", "note"],
        ),
        ("added", 6, None, {"id": 5, "n": 50, "note": "e"}, []),
    ]
    (back,) = compared(log, tmp_path, {"shop": "end"}, {"shop": 4})
    assert (back.removed, back.added, back.changed) == (1, 1, 1)
    (same,) = compared(log, tmp_path, {"shop": "end"}, {"shop": "end"})
    assert same.equal and not found.equal


def test_counts_are_whole_where_rows_are_limited(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(*(insert(orders, i, i, "a") for i in range(50)))
    shop.commit(*(update(orders, i, i + 1, "a") for i in range(30)))
    (found,) = compared(log, tmp_path, {"shop": 50}, {"shop": 80}, limit=3)
    assert (found.changed, len(found.rows), found.limit) == (30, 3, 3)
    assert [row.offset for row in found.rows] == [50, 51, 52]
    (bare,) = compared(log, tmp_path, {"shop": 50}, {"shop": 80}, limit=0)
    assert (bare.changed, bare.rows) == (30, [])


def test_without_a_key_whole_rows_are_matched_as_a_multiset(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    heap = shop.table("heap", column("a"), column("b", INT), identity="f")
    shop.commit(*(insert(heap, a, b) for a, b in [("x", 1), ("x", 1), (None, 2), ("y", None)]))
    shop.commit(
        delete(heap, "x", 1),
        insert(heap, "z", 9),
        update(heap, None, 3, old=(None, 2)),
        delete(heap, "y", None),
        insert(heap, "y", None),
    )
    (found,) = compared(log, tmp_path, {"shop": 4}, {"shop": "end"})
    assert (found.removed, found.added, found.changed, found.key) == (2, 2, 0, [])
    rows = [(row.kind, row.before or row.after) for row in found.rows]
    assert rows == [
        ("removed", {"a": "x", "b": 1}),
        ("removed", {"a": None, "b": 2}),
        ("added", {"a": "z", "b": 9}),
        ("added", {"a": None, "b": 3}),
    ]


def test_across_schema_versions_columns_are_named(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, 20, "b"), insert(orders, 3, 3, "c"))
    changed = shop.table(
        "orders",
        KEYED[0],
        replace(KEYED[2], name="remark"),
        column("late", attribute=4, missing="no"),
    )
    shop.commit(update(changed, 1, "A", "yes"), insert(changed, 4, "d", "no"))
    (found,) = compared(log, tmp_path, {"shop": 3}, {"shop": "end"})
    assert (found.removed, found.added, found.changed) == (0, 1, 1)
    assert (found.columns_added, found.columns_dropped) == (["late"], ["n"])
    assert found.columns_renamed == {"note": "remark"}
    (row, _) = found.rows
    assert row.columns == ["remark"]
    assert (row.before, row.after) == (
        {"id": 1, "n": 10, "remark": "a"},
        {"id": 1, "remark": "A", "late": "yes"},
    )


def test_events_are_matched_by_their_keys(log: eventlog.Log, tmp_path: Path) -> None:
    clicks = log.stream("clicks", create=True)
    clicks.append_many([{"n": 1}, "x", 5, "same"], keys=["7", "8", None, "9"])
    clicks.append_many([{"n": 2}, None, b"\1", "same"], keys=["7", "8", None, "9"])
    (found,) = compared(log, tmp_path, {"clicks": 4}, {"clicks": 8})
    assert (found.removed, found.added, found.changed) == (1, 1, 1)
    assert found.changed_columns == {"value": 1}
    assert [(row.kind, row.offset) for row in found.rows] == [
        ("removed", 1),
        ("changed", 4),
        ("added", 6),
    ]
    changed = found.rows[1]
    assert changed.after is not None and changed.after["value"] == {"n": 2}


def test_tables_of_one_side_alone_and_one_table_alone(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(insert(orders, 1, 10, "a"))
    other = shop.table("other", column("id", INT, key=True), relation=16_500)
    shop.commit(insert(other, 1))
    a = saved(log, tmp_path / "a.json", {"shop": 1}, tables=["orders"])
    b = saved(log, tmp_path / "b.json", {"shop": 2})
    found = diff(log.engine, a, b)
    assert [(one.table, one.equal, one.only_in) for one in found] == [
        ("shop.public.orders", True, None),
        ("shop.public.other", False, "B"),
    ]
    (one,) = diff(log.engine, a, b, table="other")
    assert one.only_in == "B"
    with pytest.raises(UnknownTable):
        diff(log.engine, a, b, table="nothing")


def test_a_table_made_again_is_compared_by_its_key(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, 20, "b"))
    again = shop.table("orders", *KEYED, relation=16_999)
    shop.commit(insert(again, 1, 10, "a"), insert(again, 2, 21, "b"))
    (found,) = compared(log, tmp_path, {"shop": 2}, {"shop": "end"})
    assert (found.removed, found.added, found.changed) == (0, 0, 1)


def test_what_cannot_be_compared_is_refused(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(insert(orders, 1, 10, "a"))
    a = saved(log, tmp_path / "a.json", {"shop": 0})
    b = saved(log, tmp_path / "b.json", {"shop": 1})
    with (
        eventlog.open(tmp_path / "other", create=True) as other,
        pytest.raises(UsageError, match="the first manifest is of another log"),
    ):
        diff(other.engine, other.load_snapshot(tmp_path / "a.json"), b)
    (table,) = b.manifest.tables
    wrong = replace(table, stored=replace(table.stored, rows=7))
    false = Saved(log.engine, log.snapshot, replace(b.manifest, tables=(wrong,)))
    with pytest.raises(UsageError, match="has 1 row, and was saved with 7") as caught:
        diff(log.engine, a, false)
    assert "eventlog snapshot verify" in caught.value.hint


def test_a_random_history_is_compared_as_dictionaries_are(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    orders = shop.table("orders", *KEYED)
    model: dict[int, tuple[int | None, str]] = {}
    states, cuts = [], []
    for step in range(40):
        key = chance.randrange(15)
        value = chance.choice([None, 1, 2]), chance.choice(["", "a", "b"])
        if key in model and chance.random() < 0.4:
            shop.commit(delete(orders, key, None, None))
            del model[key]
        else:
            shop.commit((update if key in model else insert)(orders, key, *value))
            model[key] = value
        if step % 8 == 7:
            states.append(dict(model))
            cuts.append(step + 1)
    for i, j in [(0, 1), (0, 4), (3, 1), (2, 4)]:
        a, b = states[i], states[j]
        (found,) = compared(log, tmp_path, {"shop": cuts[i]}, {"shop": cuts[j]}, limit=99)
        kinds: dict[str, set[int]] = {"removed": set(), "changed": set(), "added": set()}
        for row in found.rows:
            kinds[row.kind].add((row.after or row.before or {})["id"])
        assert kinds == {
            "removed": a.keys() - b.keys(),
            "added": b.keys() - a.keys(),
            "changed": {key for key in a.keys() & b.keys() if a[key] != b[key]},
        }
        assert found.removed + found.added + found.changed == len(found.rows)


TEXT = st.none() | st.sampled_from([b"", b"a", b"b", b"ab"])
ROWS = st.lists(st.tuples(TEXT, TEXT), max_size=12)


def table_of(rows: list[Any]) -> pa.Table:
    arrays = [pa.array([row[i] for row in rows], pa.large_binary()) for i in range(2)]
    return pa.table(arrays, names=["0", "1"])


@settings(max_examples=150)
@given(ROWS, ROWS)
def test_matching_by_values_is_the_difference_of_multisets(a: list[Any], b: list[Any]) -> None:
    found = by_values(table_of(a), table_of(b))
    assert Counter(a[i] for i in found.removed) == Counter(a) - Counter(b)
    assert Counter(b[j] for j in found.added) == Counter(b) - Counter(a)
    assert not len(found.changed[0])


@settings(max_examples=80)
@given(
    st.dictionaries(st.sampled_from(b"abcdefgh"), TEXT),
    st.dictionaries(st.sampled_from(b"abcdefgh"), TEXT),
)
def test_matching_by_key_is_the_difference_of_dictionaries(
    a: dict[int, Any], b: dict[int, Any]
) -> None:
    left = [(bytes([key]), value) for key, value in a.items()]
    right = [(bytes([key]), value) for key, value in b.items()]
    found = by_key(table_of(left), table_of(right), key=[0], compared=[1])
    assert {left[i][0][0] for i in found.removed} == a.keys() - b.keys()
    assert {right[j][0][0] for j in found.added} == b.keys() - a.keys()
    pairs = list(zip(*found.changed, strict=True))
    assert all(left[i][0] == right[j][0] for i, j in pairs)
    assert {left[i][0][0] for i, _ in pairs} == {k for k in a.keys() & b.keys() if a[k] != b[k]}
    assert all(found.differs[0])


def test_the_command_prints_signs_or_json(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path, run_cli: RunCli
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, 20, "b"))
    shop.commit(update(orders, 1, 11, "a"), *(insert(orders, i, i, "n") for i in (3, 4, 5)))
    saved(log, tmp_path / "a.json", {"shop": 2})
    saved(log, tmp_path / "b.json", {"shop": "end"})
    files = (str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    at = ("--log", str(log.path))
    text = run_cli("snapshot", "diff", *files, "--limit", "2", *at)
    assert text.stdout.splitlines() == [
        "shop.public.orders: 0 removed, 3 added, 1 changed",
        "  changed columns: n 1",
        "  ~ id=1: n 10 → 11",
        "  + id=3 n=3 note=n",
        "  + id=4 n=4 note=n",
        "  1 more added: --limit lists them",
    ], text
    done = run_cli("snapshot", "diff", *files, "--json", "--table", "orders", *at)
    told = json.loads(done.stdout)
    assert (told["added"], told["equal"], len(told["rows"])) == (3, False, 4)
    same = run_cli("snapshot", "diff", files[0], files[0], *at)
    assert (same.returncode, same.stdout) == (0, "shop.public.orders: equal\n")
    assert_explained(run_cli("snapshot", "diff", *files, "--table", "nothing", *at))
    assert run_cli("snapshot", "diff", files[0], *at).returncode == 2
