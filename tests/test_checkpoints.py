"""Checkpoints: they change what a snapshot costs, and nothing that it says."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from click.testing import CliRunner

import eventlog
from eventlog import UNCHANGED, Op
from eventlog.changes.schema import Schema
from eventlog.cli import cli
from eventlog.errors import (
    EnvironmentFault,
    SnapshotRefused,
    UnknownTable,
    UsageError,
    ValueDoesNotFit,
)
from eventlog.snapshots.state import checkpoint_folder, finding, table_state
from eventlog.snapshots.state.checkpoint_folder import CheckpointFolder
from tests.fix_log import (
    BOOL,
    INT,
    NUMERIC,
    MadeSource,
    column,
    control,
    copied,
    delete,
    insert,
    update,
)

COLUMNS = (column("id", INT, key=True), column("n", INT), column("note"))


@pytest.fixture
def orders(shop: MadeSource) -> Schema:
    return shop.table("orders", *COLUMNS)


def folder(log: eventlog.Log) -> Path:
    return log.path / "derived" / "checkpoints" / "shop"


def files(log: eventlog.Log) -> list[str]:
    found = folder(log)
    return sorted(path.name for path in found.iterdir()) if found.is_dir() else []


def rows(log: eventlog.Log, at: Any = "end", **options: Any) -> list[Any]:
    table = log.snapshot("shop", at=at).table("orders", **options)
    shown = [tuple(row.values()) for row in table.to_arrow(offsets=True).to_pylist()]
    assert len(shown) == table.num_rows
    return shown


@contextmanager
def records_read() -> Iterator[list[int]]:
    """How many records each snapshot within reads from the log, checkpoints left out."""
    told: list[int] = []
    found = finding.table_state

    def spied(*args: Any, **options: Any) -> Any:
        state = found(*args, **options)
        told.append(state.records)
        return state

    with mock.patch.object(finding, "table_state", spied):
        yield told


def test_a_snapshot_starts_from_the_nearest_checkpoint_at_or_below_its_cut(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(*(insert(orders, number, 0, "first") for number in range(5)))
    shop.commit(update(orders, 1, 1, UNCHANGED))
    before = rows(log)
    done = log.stream("shop").checkpoint(table="orders")
    assert [(each.table, each.offset) for each in done.checkpoints] == [("public.orders", 6)]
    assert done.bytes == done.checkpoints[0].bytes > 0
    shop.commit(update(orders, 2, 2, UNCHANGED), delete(orders, 3, None, None))
    with records_read() as read:
        assert rows(log, at=6) == before
        after = rows(log)
        assert rows(log, at=5) == [(number, number, 0, "first") for number in range(5)]
    assert read == [0, 2, 5]
    assert after == [
        (0, 0, 0, "first"),
        (4, 4, 0, "first"),
        (5, 1, 1, "first"),
        (6, 2, 2, "first"),
    ]
    log.stream("shop").drop_checkpoints()
    assert rows(log) == after and rows(log, at=6) == before
    assert [r[0] for r in rows(log, at=6)] == [0, 2, 3, 4, 5]
    started = log.snapshot({"shop": (5, "end")}).table("orders").to_arrow(offsets=True)
    log.stream("shop").checkpoint()
    again = log.snapshot({"shop": (5, "end")}).table("orders").to_arrow(offsets=True)
    assert started["_offset"].to_pylist() == again["_offset"].to_pylist() == [5, 6]
    assert started.equals(again)


def test_typed_columns_are_what_the_texts_are(log: eventlog.Log, shop: MadeSource) -> None:
    """Casts, values that do not fit, columns chosen and twice, rows since: with and without."""
    table = shop.table(
        "orders",
        column("id", INT, key=True),
        column("price", NUMERIC, typmod=(8 << 16 | 2) + 4),
        column("any", NUMERIC),
        column("paid", BOOL),
        column("note"),
    )
    shop.commit(
        insert(table, 1, "1.50", "NaN", "t", "ä"),
        insert(table, 2, None, "2.5", "f", None),
        insert(table, 3, "3.50", None, None, ""),
        insert(table, 4, "4.50", "4", "t", "x"),
    )

    def shown() -> list[Any]:
        found: list[Any] = []
        for cut in (4, "end"):
            taken = log.snapshot("shop", at=cut).table("orders")
            found += [
                taken.to_arrow(["note", "id"], offsets=True),
                taken.to_arrow(["price", "paid"]),
                taken.to_arrow(["id", "price"], cast={"price": "text"}),
                taken.to_arrow(unfit="null"),
                taken.to_arrow(cast={"any": "float64"}).drop_columns(["any"]),
                pa.concat_tables(taken.to_batches(["id"], max_rows=1)),
                [(o.tolist(), [c.to_pylist() for c in t]) for o, t in taken.texts()],
            ]
            with pytest.raises(ValueDoesNotFit, match=r"'any' of public\.orders at offset 0"):
                taken.to_arrow()
        return found

    shop.commit(insert(table, 5, "5.50", "5", "f", "since"), delete(table, 4, *[None] * 4))
    log.stream("shop").drop_checkpoints()
    without = shown()
    with mock.patch.object(finding, "DEAR_RECORDS", 1), mock.patch.object(finding, "DEAR_TIMES", 0):
        log.snapshot("shop", at=4).table("orders")
    assert files(log) == ["16400-4.evlk"]
    for one, other in zip(without, shown(), strict=True):
        if isinstance(one, pa.Table):
            assert one.schema.equals(other.schema, check_metadata=True)
            assert one.equals(other)
        else:
            assert one == other


def test_a_column_asked_for_twice_or_called_as_ours_is_the_same_from_a_checkpoint(
    log: eventlog.Log, shop: MadeSource
) -> None:
    table = shop.table("orders", column("id", INT, key=True), column("_offset", NUMERIC))
    shop.commit(insert(table, 1, "1.5"), insert(table, 2, None))

    def shown() -> list[pa.Table]:
        taken = log.snapshot("shop").table("orders")
        return [
            taken.to_arrow(["id", "_offset", "id"]),
            taken.to_arrow(["_offset"], offsets=True),
            taken.to_arrow(offsets=True),
        ]

    without = shown()
    log.stream("shop").checkpoint()
    with records_read() as read:
        found = shown()
    assert read == [0]
    for one, other in zip(without, found, strict=True):
        assert one.schema.equals(other.schema, check_metadata=True) and one.equals(other)


def test_typed_columns_come_without_decoding(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, 20, None))
    log.stream("shop").checkpoint()
    table = log.snapshot("shop").table("orders")
    empty = table.schema.empty_table()
    with mock.patch("eventlog.snapshots.table.change_table", return_value=empty) as converted:
        assert table.to_arrow().to_pylist() == [
            {"id": 1, "n": 10, "note": "a"},
            {"id": 2, "n": 20, "note": None},
        ]
    assert [len(call.kwargs["offsets"]) for call in converted.mock_calls] == [0]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "longer"])
def test_a_damaged_checkpoint_is_passed_over_and_removed(
    log: eventlog.Log, shop: MadeSource, orders: Schema, damage: str
) -> None:
    shop.commit(*(insert(orders, number, 0, "x") for number in range(3)))
    expected = rows(log)
    log.stream("shop").checkpoint()
    (path,) = folder(log).iterdir()
    whole = path.read_bytes()
    places = range(0, len(whole), 97) if damage in ("flip", "cut") else [0]
    for place in places:
        if damage == "flip":
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        elif damage == "cut":
            path.write_bytes(whole[:place])
        elif damage == "longer":
            path.write_bytes(whole + b"\0")
        else:
            path.write_bytes(b"" if damage == "empty" else b"PAR1" * 50)
        assert rows(log) == expected
        assert files(log) == []


def test_a_checkpoint_of_another_log_or_generation_is_not_used(
    log: eventlog.Log, shop: MadeSource, orders: Schema, tmp_path: Path
) -> None:
    shop.commit(insert(orders, 1, 1, "mine"))
    log.stream("shop").checkpoint()
    with eventlog.open(tmp_path / "other", create=True) as other:
        source = MadeSource(other, "shop")
        table = source.table("orders", *COLUMNS)
        source.commit(insert(table, 1, 1, "theirs"))
        folder(other).mkdir(parents=True)
        (folder(other) / "16400-1.evlk").write_bytes((folder(log) / "16400-1.evlk").read_bytes())
        assert rows(other) == [(0, 1, 1, "theirs")]
        assert files(other) == []
        source.close()
    log.backup(tmp_path / "backup")
    with eventlog.open(tmp_path / "backup") as copy:
        folder(copy).mkdir(parents=True)
        (folder(copy) / "16400-1.evlk").write_bytes((folder(log) / "16400-1.evlk").read_bytes())
        assert rows(copy) == [(0, 1, 1, "mine")]
        assert files(copy) == []


def test_a_reader_goes_on_though_all_is_deleted(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(*(insert(orders, number, 0, "x") for number in range(100)))
    log.stream("shop").checkpoint()
    shop.commit(update(orders, 7, 1, UNCHANGED))
    expected = rows(log)
    table = log.snapshot("shop").table("orders")
    pieces = table.to_batches(offsets=True, max_rows=10)
    found = [next(pieces)]
    log.stream("shop").drop_checkpoints()
    os.rmdir(folder(log))
    found += pieces
    assert [tuple(r.values()) for t in found for r in t.to_pylist()] == expected
    assert [tuple(r.values()) for r in table.to_arrow(offsets=True).to_pylist()] == expected


def test_a_log_that_cannot_be_written_is_read_without(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(*(insert(orders, number, 0, "x") for number in range(9)))
    with (
        mock.patch.object(finding, "DEAR_RECORDS", 1),
        mock.patch.object(finding, "DEAR_TIMES", 0),
        mock.patch.object(Path, "mkdir", side_effect=PermissionError(13, "denied")),
    ):
        assert len(rows(log)) == 9
        with pytest.raises(EnvironmentFault, match="cannot be written: denied"):
            log.stream("shop").checkpoint()
    assert files(log) == []


def test_a_dear_fold_stores_what_it_found(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(insert(orders, 1, 0, "x"), insert(orders, 2, 0, "y"))
    for number in range(8):
        shop.commit(update(orders, 1, number, UNCHANGED))
    with mock.patch.object(finding, "DEAR_RECORDS", 9):
        rows(log, at=9)
        assert files(log) == ["16400-9.evlk"]
        rows(log, as_is=True)
        rows(log, as_inserts=True)
        assert files(log) == ["16400-9.evlk"]
    assert stat.S_IMODE(folder(log).stat().st_mode) == 0o700
    assert stat.S_IMODE((folder(log) / "16400-9.evlk").stat().st_mode) == 0o600
    with mock.patch.object(finding, "DEAR_RECORDS", 2), mock.patch.object(finding, "DEAR_TIMES", 1):
        rows(log)  # one record was read, and there are two rows
        assert files(log) == ["16400-9.evlk"]


def test_a_few_are_kept_and_spread_over_the_history(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    for number in range(40):
        shop.commit(insert(orders, number, 0, "x"))
        log.stream("shop").checkpoint()
    found = [each.offset for each in log.stream("shop").checkpoints()]
    assert len(found) == checkpoint_folder.KEPT and found[-1] == 40
    assert found[0] <= 30


def test_writers_at_the_same_time_leave_a_sound_one(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(*(insert(orders, number, 0, "x") for number in range(500)))
    expected = rows(log)
    threads = [threading.Thread(target=lambda: log.stream("shop").checkpoint()) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(log) == ["16400-500.evlk"]
    with records_read() as read:
        assert rows(log) == expected
    assert read == [0]


def test_there_is_none_of_what_has_no_state(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    seen = shop.table("seen", *COLUMNS, relation=2, inserts_only=True)
    lost = shop.table("lost", *COLUMNS, relation=3)
    shop.commit(insert(seen, 1, 1, "s"), update(lost, 1, 1, UNCHANGED))
    shop.commit(control(Op.COPY_BEGIN, orders), copied(orders, 1, 1, "o"))
    stream = log.stream("shop")
    done = stream.checkpoint()
    assert done.checkpoints == () and files(log) == []
    assert set(done.refused) == {"public.orders", "public.seen", "public.lost"}
    assert "cannot be kept" in done.refused["public.lost"]
    with pytest.raises(SnapshotRefused):
        stream.checkpoint(table="orders")
    with pytest.raises(UnknownTable):
        stream.checkpoint(table="ordres")
    with pytest.raises(UsageError, match="not one table"):
        stream.checkpoint(table="public.*")
    with pytest.raises(UsageError, match="holds events"):
        log.stream("clicks", create=True).checkpoint()


def test_a_copy_behind_a_checkpoint_counts_and_its_refusals_stay(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    shop.commit(control(Op.COPY_BEGIN, orders), copied(orders, 1, 1, "a"))
    shop.commit(control(Op.COPY_END, orders))
    log.stream("shop").checkpoint()
    shop.commit(control(Op.DATA_LOSS, None, **{"from": "0/1", "to": "0/2"}))
    with pytest.raises(SnapshotRefused, match="were lost"):
        rows(log)
    shop.commit(control(Op.COPY_BEGIN, orders), copied(orders, 2, 2, "b"))
    with pytest.raises(SnapshotRefused, match="not complete"):
        rows(log)
    shop.commit(control(Op.COPY_END, orders))
    assert rows(log) == [(5, 2, 2, "b")]


def test_large_tables_are_stored_by_batches(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    for first in range(0, 3000, 500):
        shop.commit(*(insert(orders, n, n % 7, "x" * (n % 50)) for n in range(first, first + 500)))
    expected = rows(log)
    with (
        mock.patch.object(table_state, "BATCH_BYTES", 20_000),
        mock.patch("eventlog.snapshots.state.checkpoint_writing.BATCH_ROWS", 700),
    ):
        log.stream("shop").checkpoint()
    checkpoint = CheckpointFolder(log.engine, log._history("shop")).nearest(orders.relation, 3000)
    assert checkpoint is not None
    sizes = [len(offsets) for offsets in checkpoint.offsets()]
    assert sum(sizes) == 3000 and len(sizes) > 4
    assert rows(log) == expected


def test_the_command_stores_lists_and_drops(
    log: eventlog.Log, shop: MadeSource, orders: Schema
) -> None:
    users = shop.table("users", *COLUMNS, relation=2)
    shop.commit(insert(orders, 1, 1, "x"), insert(users, 1, 1, "u"))

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli, ["checkpoint", "shop", *words, "--log", str(log.path)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "public.users as of offset 2" in run("--table", "users")
    told = run()
    assert "public.orders as of offset 2" in told and "there are 2 checkpoints" in told
    lines = [json.loads(line) for line in run("--json").splitlines()]
    assert [(line["table"], line["offset"]) for line in lines] == [
        ("public.orders", 2),
        ("public.users", 2),
    ]
    assert "dropped: public.users" in run("--drop", "--table", "users")
    assert "dropped 1 checkpoint of" in run("--drop")
    assert files(log) == []
    failed = CliRunner().invoke(
        cli, ["checkpoint", "shop", "--table", "no", "--log", str(log.path)]
    )
    assert failed.exit_code != 0
    assert "there is public.orders" in str(getattr(failed.exception, "hint", failed.output))


def test_names_are_told_as_they_are_asked_for(log: eventlog.Log, shop: MadeSource) -> None:
    odd = shop.table('Odd "one"', *COLUMNS, namespace="My.schema")
    shop.commit(insert(odd, 1, 1, "x"))
    name = '"My.schema"."Odd ""one"""'
    for words in ([], ["--table", name], ["--drop"]):
        done = CliRunner().invoke(cli, ["checkpoint", "shop", *words, "--log", str(log.path)])
        assert done.exit_code == 0 and f"{name} as of offset 1: " in done.output, done.output
        assert "1 checkpoint of 'shop', " in done.output
    lost = shop.table("Lost", column("a"), identity="n", inserts_only=True, relation=9)
    shop.commit(insert(lost, "x"))
    assert list(log.stream("shop").checkpoint().refused) == ['public."Lost"']
