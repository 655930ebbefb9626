"""Derived streams: the transform of each row as it comes, exactly once, equal to the snapshot's."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import eventlog
from eventlog import UNCHANGED, Op
from eventlog.changes.fold import Filler
from eventlog.changes.plain import plain_rows
from eventlog.changes.runs import ChangeRun
from eventlog.changes.schema import Schema
from eventlog.errors import (
    ConsumerFenced,
    TransformRefused,
    UnknownStream,
    UnknownTable,
    UsageError,
    ValueDoesNotFit,
)
from eventlog.snapshots.transform.filling import SplitFiller, lacks_values
from eventlog.snapshots.transform.row_events import RowPart, parts
from tests.derived_worker import OUTPUT
from tests.fix_log import (
    FLOAT,
    INT,
    NUMERIC,
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
from tests.made_histories import MadeHistory
from tests.transform_examples import centred, filtered, taxed

MONEY = (12 << 16 | 2) + 4


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    return shop.table(
        "orders",
        column("id", INT, key=True),
        column("amount", NUMERIC, typmod=MONEY),
        column("note"),
    )


def derive(log: eventlog.Log, **options: Any) -> Any:
    options = {"source": "shop", "table": "public.orders", "output": OUTPUT, **options}
    return log.derive(options.pop("transform", taxed), **options)


def events(log: eventlog.Log) -> list[tuple[str | None, Any]]:
    return [(event.key, event.value) for event in log.stream(OUTPUT).read()]


def latest(log: eventlog.Log) -> dict[str, Any]:
    """What the output says of each key."""
    found: dict[str, Any] = {}
    for key, value in events(log):
        assert key is not None
        if value is None:
            assert found.pop(key, None) is not None, "a tombstone of a key that was not there"
        else:
            found[key] = value
    return found


def snapshot_rows(log: eventlog.Log, at: Any = "end") -> list[dict[str, Any]]:
    table = log.snapshot("shop", at=at).table("public.orders").to_arrow(offsets=True)
    return plain_rows(taxed.apply(table))


def assert_equal_to_the_snapshot(log: eventlog.Log, at: Any = "end") -> None:
    found = sorted(latest(log).values(), key=lambda row: row["_offset"])
    assert found == snapshot_rows(log, at)


def test_one_event_for_each_row_and_a_tombstone_for_each_delete(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "10.00", "a"), insert(orders, 2, "20.00", None))
    shop.commit(update(orders, 1, "11.00", "b"), delete(orders, 2, None, None))
    done = derive(log).run(until="current")
    assert (done.rows, done.tombstones, done.offset) == (3, 1, 4)
    assert events(log) == [
        ("1", {"_offset": 0, "id": 1, "gross": 11.899999999999999, "amount": "10.00", "note": "A"}),
        (
            "2",
            {"_offset": 1, "id": 2, "gross": 23.799999999999997, "amount": "20.00", "note": None},
        ),
        ("1", {"_offset": 2, "id": 1, "gross": 13.09, "amount": "11.00", "note": "B"}),
        ("2", None),
    ]
    assert_equal_to_the_snapshot(log)
    assert (derive(log).run(until="current").rows, len(events(log))) == (0, 4)
    shop.commit(insert(orders, 2, "1.00", "again"))
    assert derive(log).run(until="current").rows == 1
    assert_equal_to_the_snapshot(log)


def test_a_key_change_moves_the_row_and_unchanged_values_are_filled(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "10.00", "long text"), insert(orders, 5, "5.00", "x"))
    assert derive(log).run(until="current").rows == 2
    shop.commit(update(orders, 2, "11.00", UNCHANGED, key=(1, None, None)))
    shop.commit(update(orders, 2, "12.00", UNCHANGED))
    derive(log).run(until="current")
    assert [key for key, _ in events(log)] == ["1", "5", "1", "2", "2"]
    assert latest(log)["2"]["note"] == "LONG TEXT"
    assert_equal_to_the_snapshot(log)


def test_a_truncate_takes_every_key_that_is_there(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "1.00", "a"), insert(orders, 2, "2.00", "b"))
    derive(log).run(until="current")
    shop.commit(insert(orders, 3, "3.00", "c"), delete(orders, 2, None, None), truncate(orders))
    shop.commit(insert(orders, 2, "4.00", "d"))
    derive(log).run(until="current")
    assert [key for key, value in events(log) if value is None] == ["2", "1", "3"]
    assert list(latest(log)) == ["2"]
    assert_equal_to_the_snapshot(log)


def test_a_copy_that_begins_anew_resets_the_output(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(control(Op.COPY_BEGIN, orders))
    shop.commit(copied(orders, 1, "1.00", "a"), copied(orders, 2, "2.00", "b"))
    shop.commit(control(Op.COPY_END, orders))
    derive(log).run(until="current")
    assert_equal_to_the_snapshot(log)
    shop.commit(control(Op.COPY_BEGIN, orders))
    shop.commit(copied(orders, 2, "9.00", "b"))
    shop.commit(control(Op.COPY_END, orders))
    derive(log).run(until="current", max_rows=1)
    assert list(latest(log)) == ["2"]
    assert_equal_to_the_snapshot(log)


def test_a_key_of_several_columns_is_an_object(log: eventlog.Log, shop: MadeSource) -> None:
    lines = shop.table(
        "orders", column("id", INT, key=True), column("amount", NUMERIC, typmod=MONEY),
        column("note", key=True),
    )  # fmt: skip
    shop.commit(insert(lines, 1, "1.00", "ä b"), insert(lines, 1, "1.00", "c"))
    shop.commit(delete(lines, 1, None, "c"))
    derive(log).run(until="current")
    assert [key for key, _ in events(log)] == [
        '{"id":1,"note":"ä b"}',
        '{"id":1,"note":"c"}',
        '{"id":1,"note":"c"}',
    ]
    assert_equal_to_the_snapshot(log)


def test_other_tables_of_the_stream_are_passed_over(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    other = shop.table("other", column("id", INT, key=True), relation=3)
    shop.commit(insert(other, 1), insert(orders, 1, "1.00", "a"), truncate(other))
    derived = derive(log)
    done = derived.run(until="current")
    assert (done.rows, done.tombstones, done.offset) == (1, 0, 3)


def workload(shop: MadeSource, orders: Schema, *, seed: int, transactions: int) -> None:
    """Random inserts, updates, deletes, key changes and truncates."""
    draw = random.Random(seed)
    live: set[int] = set()
    for number in range(transactions):
        records: list[Record] = []
        for _ in range(draw.randint(1, 9)):
            key, amount = draw.randint(1, 30), f"{draw.randint(0, 9999) / 100:.2f}"
            note = draw.choice([None, "a", "ß", f"note {number}"])
            if key not in live:
                records.append(insert(orders, key, amount, note))
                live.add(key)
                continue
            free = draw.randint(100, 999)
            what = draw.random()
            if what < 0.3:
                records.append(delete(orders, key, None, None))
                live.remove(key)
            elif what < 0.4 and free not in live:
                records.append(update(orders, free, amount, UNCHANGED, key=(key, None, None)))
                live = live - {key} | {free}
            else:
                records.append(update(orders, key, amount, draw.choice([note, UNCHANGED])))
        if draw.random() < 0.04:
            records.append(truncate(orders))
            live.clear()
        shop.commit(*records)


@pytest.mark.parametrize("seed", range(3))
def test_the_output_at_a_cut_is_the_transform_of_the_snapshot_there(
    log: eventlog.Log, shop: MadeSource, orders: Schema, seed: int
) -> None:
    print("seed", seed)
    workload(shop, orders, seed=seed, transactions=40)
    draw = random.Random(seed)
    end = log.stream("shop").end
    for cut in sorted({log.snapshot("shop", at=draw.randint(0, end)).stop for _ in range(4)}):
        derive(log).run(until=cut, max_rows=draw.choice([1, 3, 1000]))
        assert_equal_to_the_snapshot(log, cut)
    derive(log).run(until="current")
    assert_equal_to_the_snapshot(log)
    assert len(latest(log)) > 3


def same(rows: pa.Table) -> pa.Table:
    return rows


def event_key(values: Any) -> str:
    """A key as text; columns of several as JSON has them."""
    if not isinstance(values, dict):
        values = {"": values}
    texts = {name: v if isinstance(v, str) else "" for name, v in values.items()}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return json.dumps(texts, ensure_ascii=False, separators=(",", ":"))


def derived_row_by_row(log: eventlog.Log) -> list[tuple[str, Any]]:
    """The events that changes of table `t` make, all columns being texts, told one by one."""
    found: list[tuple[str, Any]] = []
    live: dict[str, None] = {}

    def add(key: str, value: Any) -> None:
        found.append((key, value))
        live.pop(key, None)
        if value is not None:
            live[key] = None

    for change in log.stream("shop").read(table="t", fill=True):
        if change.op in (Op.TRUNCATE, Op.COPY_BEGIN):
            for key in list(live):
                add(key, None)
        elif change.row is None and change.old is not None:
            add(event_key(change.key), None)
        elif change.op in (Op.INSERT, Op.READ, Op.UPDATE):
            if change.old:
                names = change.key if isinstance(change.key, dict) else None
                old = {**names, **change.old} if names else next(iter(change.old.values()))
                if event_key(old) != event_key(change.key):
                    add(event_key(old), None)
            row = {n: v if isinstance(v, str) else None for n, v in change.row.items()}
            add(event_key(change.key), {"_offset": change.offset, **row})
    return found


@pytest.mark.parametrize("seed", range(5))
def test_any_history_is_derived_as_if_row_by_row_wherever_batches_end(
    log: eventlog.Log, seed: int
) -> None:
    made = MadeHistory(log, random.Random(seed), identities="ddi")
    made.write(40)
    made.source.close()
    expected = derived_row_by_row(log)
    assert len(expected) > 20 and any(value is None for _, value in expected)
    for rows in (3, 1000):
        transform = eventlog.transform("same", version=1)(same)
        made_by = {"transform": transform, "table": "t", "output": f"by{rows}", "unfit": "null"}
        derive(log, **made_by).run(until="current", max_rows=rows)
        found = [(event.key, event.value) for event in log.stream(f"by{rows}").read()]
        assert found == expected, (seed, rows)


@pytest.mark.parametrize("seed", range(5))
def test_splits_are_filled_as_their_records_one_by_one(log: eventlog.Log, seed: int) -> None:
    made = MadeHistory(log, random.Random(seed), identities="ddi")
    made.write(40)
    made.source.close()
    stream, one_by_one, at_once = log.stream("shop"), Filler(), SplitFiller()
    filled = 0
    for run in stream.followed_view("public.t").runs(0, stream.end):
        assert isinstance(run, ChangeRun)
        texts = {
            item.offset: one_by_one.apply(item.offset, item.raw, item.schema).new
            for item in run.located()
        }
        for part in parts(run):
            if not isinstance(part, RowPart):
                at_once.reset(part)
                continue
            columns = at_once.fill(part.split, part.offsets)
            for place, offset in enumerate(part.offsets.tolist()):
                if (expected := texts[offset]) is not None:
                    assert tuple(column.text(place) for column in columns) == expected
            filled += lacks_values(part.split)
    assert filled > 3


def test_rows_that_share_a_key_under_a_new_version_leave_the_latest(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    id_, amount, note = orders.columns
    wide = shop.table("orders", id_, replace(amount, key=True), note)
    shop.commit(insert(wide, 1, "1.00", "a"), insert(wide, 1, "2.00", "b"))
    shop.commit(update(wide, 1, "1.00", "latest"))
    narrow = shop.table("orders", id_, amount, note)
    shop.commit(update(narrow, 1, "3.00", UNCHANGED))
    derive(log).run(until="current")
    assert latest(log)["1"]["note"] == "LATEST"


def test_tables_of_one_name_in_one_transaction_are_derived_in_their_order(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    id_, amount, note = orders.columns
    again = shop.table("orders", note, amount, id_, relation=99)
    shop.commit(insert(orders, 1, "1.00", "a"), insert(orders, 2, "2.00", "b"))
    shop.commit(
        insert(again, "c", "3.00", 1),
        insert(orders, 3, "4.00", "d"),
        delete(again, None, None, 1),
        truncate(again),
        insert(again, "e", "5.00", 4),
    )
    derive(log).run(until="current")
    told = [(key, value and value["note"]) for key, value in events(log)]
    assert told[:4] == [("1", "A"), ("2", "B"), ("1", "C"), ("3", "D")]
    assert told[4:] == [("1", None), ("2", None), ("3", None), ("4", "E")]


def test_a_run_killed_at_any_moment_leaves_the_output_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    for name in ("killed", "whole"):
        with eventlog.open(tmp_path / name, create=True) as log:
            shop = MadeSource(log, "shop")
            columns = [column("id", INT, key=True), column("amount", NUMERIC, typmod=MONEY)]
            table = shop.table("orders", *columns, column("note"))
            workload(shop, table, seed=seed, transactions=120)
            shop.close()
    draw, kills = random.Random(seed), 0
    for _ in range(40):
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.derived_worker", str(tmp_path / "killed")],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
        )
        with worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
            if kills < 3:
                time.sleep(draw.random() * 0.03 * kills)
                worker.send_signal(signal.SIGKILL)
        if worker.returncode == 0:
            break
        kills += 1
    assert worker.returncode == 0
    assert kills > 0, "the worker was never killed before its end"
    with eventlog.open(tmp_path / "killed") as killed, eventlog.open(tmp_path / "whole") as whole:
        derive(whole).run(until="current")
        assert events(killed) == events(whole)
        assert_equal_to_the_snapshot(killed)
        assert killed.check() == [] == whole.check()


def test_an_exception_commits_nothing_and_the_next_run_goes_on(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "1.00", "a"), insert(orders, 2, "2.00", "b"))
    derived = derive(log)
    real, calls = derived.transform.maker, 0

    def failing(rows: pa.Table) -> pa.Table:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ZeroDivisionError
        return real(rows)

    derived.transform.maker = failing
    try:
        with pytest.raises(TransformRefused, match="taxed@1 fails: ZeroDivisionError") as failed:
            derived.run(until="current", max_rows=1)
        assert isinstance(failed.value.__cause__, ZeroDivisionError)
    finally:
        derived.transform.maker = real
    assert len(events(log)) == 1
    derive(log).run(until="current")
    assert_equal_to_the_snapshot(log)


def test_two_that_run_at_once_do_not_double_the_output(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "1.00", "a"), insert(orders, 2, "2.00", "b"))
    one, other = derive(log), derive(log)

    def meddle(done: int, total: int) -> None:
        other.run(until="current")

    with pytest.raises(ConsumerFenced):
        one.run(until="current", max_rows=1, progress=meddle)
    assert len(events(log)) == 2
    assert_equal_to_the_snapshot(log)


def test_what_is_not_row_wise_is_refused_before_anything_is_stored(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "1.00", "a"), insert(orders, 2, "2.00", "b"))
    for transform, cause in ((centred, "'centred'"), (filtered, "made 1 rows of 2")):
        derived = derive(log, transform=transform, output=transform.name)
        with pytest.raises(TransformRefused, match=cause):
            derived.run(until="current")
        assert log.stream(transform.name).end == 0
    # So the mended one may have the same version and output.
    assert "transforms" not in [stream.name for stream in log.streams()]


def test_one_output_has_one_origin(log: eventlog.Log, shop: MadeSource, orders: Schema) -> None:
    other = shop.table("other", column("id", INT, key=True), relation=3)
    shop.commit(insert(orders, 1, "1.00", "a"), insert(other, 1))
    derive(log).run(until="current")
    with pytest.raises(TransformRefused, match=r"is derived by taxed@1 from shop\.public\.orders"):
        derive(log, table="public.other")
    with pytest.raises(TransformRefused, match="with another transform"):
        derive(log, transform=centred)
    with pytest.raises(TransformRefused, match="with another unfit"):
        derive(log, unfit="null")
    log.stream("mine", create=True).append({"a": 1})
    with pytest.raises(TransformRefused, match="holds events that no transform made"):
        derive(log, output="mine")
    assert derive(log).run(until="current").rows == 0


def test_a_changed_source_under_the_same_version_is_refused(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "1.00", "a"))
    derive(log).run(until="current")

    def taxed_otherwise(rows: pa.Table) -> pa.Table:
        return rows

    changed = eventlog.transform("taxed", version=1)(taxed_otherwise)
    with pytest.raises(TransformRefused) as refused:
        derive(log, transform=changed, output="other")
    assert refused.value.hint == "raise its version to 2, or restore its source"
    newer = eventlog.transform("taxed", version=2)(taxed_otherwise)
    assert derive(log, transform=newer, output="other").run(until="current").rows == 1


def test_what_cannot_be_derived_from_is_refused(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    heap = shop.table("heap", column("a", INT), relation=3, identity="n", inserts_only=True)
    full = shop.table("full", column("a", INT, key=True), relation=4, identity="f")
    shop.commit(insert(orders, 1, "1.00", "a"), insert(heap, 1), insert(full, 1))
    log.stream("clicks", create=True)
    for table in ("heap", "full"):
        with pytest.raises(UsageError, match=f"table public.{table} has no key"):
            derive(log, table=table)
    with pytest.raises(UnknownTable):
        derive(log, table="public.ordrs")
    with pytest.raises(UnknownStream):
        derive(log, source="shoq")
    with pytest.raises(UsageError, match="holds events, not tables"):
        derive(log, source="clicks")
    with pytest.raises(UsageError, match="is not one table"):
        derive(log, table="public.*")


def test_a_value_that_does_not_fit_stops_the_run_unless_it_may_be_null(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, "NaN", "a"))
    with pytest.raises(ValueDoesNotFit, match="column 'amount'"):
        derive(log).run(until="current")
    assert events(log) == []
    derive(log, output="nulls", unfit="null").run(until="current")
    (event,) = log.stream("nulls").read()
    assert event.value["amount"] is None


def test_a_fitted_pipeline_derives_what_it_makes_of_the_snapshot(
    log: eventlog.Log, shop: MadeSource
) -> None:
    import pandas as pd
    from sklearn.preprocessing import StandardScaler

    points = shop.table("orders", column("id", INT, key=True), column("x", FLOAT))
    shop.commit(*(insert(points, i, i * 0.37) for i in range(20)))
    shop.commit(update(points, 3, None))
    maker = StandardScaler().fit(pd.DataFrame({"x": [0.0, 1.5, 9.25]}))
    scale = eventlog.transform("scale", version=1)(maker)
    derive(log, transform=scale).run(until="current", max_rows=7)
    table = log.snapshot("shop").table("public.orders").to_arrow(offsets=True)
    found = sorted(latest(log).values(), key=lambda row: row["_offset"])
    assert found == plain_rows(scale.apply(table))
    assert found[-1] == {"_offset": 20, "x": "NaN"}
