"""The history of one row, against what plain Python remembers of every row."""

from __future__ import annotations

import datetime
import decimal
import random
import uuid
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import numpy
import psycopg
import pytest

import cdc
import eventlog
from eventlog.changes.change import UNCHANGED, Op
from eventlog.changes.schemas import SchemaHistory
from eventlog.engine import Engine
from eventlog.errors import DamagedLog, OffsetOutOfRange, UnknownColumn, UnknownTable, UsageError
from eventlog.history import hashing, key_index, merging, picking, run
from eventlog.history.key_index import KeyIndex
from eventlog.history.picking import Picker
from tests.fix_log import (
    BOOL,
    BYTEA,
    INT,
    NUMERIC,
    TEXT,
    TIMESTAMPTZ,
    MadeSource,
    column,
    control,
    copied,
    delete,
    insert,
    truncate,
    update,
)
from tests.fix_postgres import Database
from tests.row_world import Heard, Key, Table, World
from tests.test_engine_check import flip, payload_key


def told(stream: eventlog.Stream, table: Table, key: Key, **more: Any) -> list[tuple[int, Heard]]:
    """The history as the log tells it, in the oracle's form."""
    named = dict(zip(table.key, key, strict=True))
    found = stream.history(f'"{table.schema.name}"', key=named, **more)
    return [
        (
            version.life,
            Heard(
                version.change.offset,
                version.change.op,
                version.change.table,
                None if version.change.op in (Op.COPY_BEGIN, Op.DATA_LOSS) else version.change.row,
                None if version.changed is None else dict(version.changed),
            ),
        )
        for version in found.versions()
    ]


@pytest.fixture(params=["tail", "runs", "small runs", "collisions"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How much of the index is on disk, and how finely cut; or every eighth key collides."""
    if request.param != "tail":
        monkeypatch.setattr(key_index, "TAIL_RECORDS", 5)
    if request.param in ("small runs", "collisions"):
        monkeypatch.setattr(key_index, "CHUNK", 7)
        monkeypatch.setattr(merging, "FANOUT", 3)
        monkeypatch.setattr(run, "BLOCK", 4)
    if request.param == "collisions":
        monkeypatch.setattr(hashing, "KEPT", 7)
    return str(request.param)


@pytest.mark.parametrize("seed", range(3))
def test_any_history_is_what_the_rows_went_through(shop: MadeSource, kind: str, seed: int) -> None:
    world = World(shop, seed)
    draw = random.Random(seed)
    for _ in range(3):
        world.run(25)
        world.settle()
        for table in world.tables:
            keys = sorted(set(world.keys(table)))
            for key in draw.sample(keys, min(len(keys), 8)):
                expected = table.history(key)
                assert told(shop.stream, table, key) == expected, (seed, kind, key)
                start = draw.randrange(shop.stream.end)
                later = [version for version in expected if version[1].offset >= start]
                assert told(shop.stream, table, key, start=start) == later, (seed, kind, key)


@pytest.fixture
def orders(shop: MadeSource) -> Any:
    """Row 5 is copied, changed, becomes 7, is deleted; another 5 comes; a third row is 7 again."""
    table = shop.table(
        "orders", column("id", INT, key=True), column("amount", NUMERIC), column("n")
    )
    shop.commit(control(Op.COPY_BEGIN, table))
    shop.commit(copied(table, 5, "1.50", "a"), copied(table, 6, "2.50", None))
    shop.commit(control(Op.COPY_END, table))
    shop.commit(update(table, 5, "1.75", UNCHANGED))
    shop.commit(update(table, 7, "1.75", UNCHANGED, key=(5, None, None)))
    shop.commit(insert(table, 5, "9.00", "other"))
    shop.commit(delete(table, 7, None, None))
    shop.commit(insert(table, 7, "8.00", "third"))
    return table


def offsets(found: Any) -> list[tuple[int, int]]:
    return [(version.life, version.change.offset) for version in found.versions()]


@pytest.mark.usefixtures("orders")
def test_a_row_is_followed_to_and_from_the_keys_that_it_had(shop: MadeSource) -> None:
    stream = shop.stream
    first = [(1, 1), (1, 4), (1, 5)]
    assert offsets(stream.history("orders", key=7)) == [*first, (1, 7), (2, 8)]
    assert offsets(stream.history("orders", key=5)) == [*first, (2, 6), (1, 7)]
    assert offsets(stream.history("orders", key=6)) == [(1, 2)]
    assert offsets(stream.history("orders", key=8)) == []


@pytest.mark.usefixtures("orders")
def test_iterating_gives_filled_changes_as_often_as_one_likes(shop: MadeSource) -> None:
    found = shop.stream.history("public.orders", key="7")
    changes = list(found)
    assert [change.row and change.row["n"] for change in changes] == ["a", "a", "a", None, "third"]
    assert [change.key for change in changes] == [5, 5, 7, 7, 7]
    assert list(found) == changes
    before = [c for c in shop.stream.read(fill=True) if c.offset in {c.offset for c in changes}]
    assert changes == before


@pytest.mark.usefixtures("orders")
def test_a_range_of_offsets_or_of_time_limits_what_is_told(shop: MadeSource) -> None:
    stream = shop.stream
    assert offsets(stream.history("orders", 7, 5)) == [(1, 5), (1, 7), (2, 8)]
    assert offsets(stream.history("orders", 7, 4, 7)) == [(1, 4), (1, 5)]
    assert offsets(stream.history("orders", 7, stop=5)) == [], "no row was 7 by then"
    deleted = next(iter(stream.history("orders", 7, 7)))
    assert offsets(stream.history("orders", 7, deleted.time)) == [(1, 7), (2, 8)]
    assert offsets(stream.history("orders", 7, stop=deleted.time.isoformat()))[-1] == (1, 5)
    with pytest.raises(OffsetOutOfRange):
        stream.history("orders", 7, 5, 99)


@pytest.mark.usefixtures("orders")
def test_lines_of_json_are_those_of_read_with_life_and_changes(shop: MadeSource) -> None:
    lines = list(shop.stream.history("orders", key=7).as_json())
    read = {line["offset"]: line for line in shop.stream.read(fill=True).as_json()}
    for line in lines:
        assert list(line)[-2:] == ["life", "changed"]
        assert {k: v for k, v in line.items() if k not in ("life", "changed")} == read[
            line["offset"]
        ]
    assert [line["changed"] for line in lines] == [
        None,
        {"amount": ["1.50", "1.75"]},
        {"id": [5, 7]},
        None,
        None,
    ]


def test_a_table_that_is_copied_anew_or_truncated_ends_its_rows(shop: MadeSource) -> None:
    table = shop.table("t", column("id", INT, key=True), column("n"))
    shop.commit(insert(table, 1, "a"))
    shop.commit(control(Op.COPY_BEGIN, table))
    shop.commit(copied(table, 1, "b"), copied(table, 1, "b"))
    shop.commit(control(Op.COPY_END, table))
    shop.commit(control(Op.DATA_LOSS, **{"from": "0/1", "to": "0/2"}))
    shop.commit(truncate(table))
    shop.commit(truncate(table), control(Op.DATA_LOSS, **{"from": "0/1", "to": "0/2"}))
    shop.commit(insert(table, 1, "c"))
    found = [(v.life, str(v.change.op), v.changed) for v in shop.stream.history("t", 1).versions()]
    assert found == [
        (1, "insert", None),
        (1, "copy_begin", None),
        (2, "read", None),
        (2, "read", {}),
        (2, "data_loss", None),
        (2, "truncate", None),
        (3, "insert", None),
    ]


def test_a_table_is_followed_through_renames_and_other_columns(shop: MadeSource) -> None:
    key, n = column("id", INT, key=True, attribute=1), column("n", attribute=2)
    shop.commit(insert(shop.table("old", key, n), 1, "a"))
    more = shop.table("new", key, n, column("m", INT, attribute=3, missing="5"))
    shop.commit(update(more, 1, "a", 5))
    shop.commit(update(more, 1, "a", 6))
    less = shop.table("new", column("nr", INT, key=True, attribute=1), more.columns[2])
    shop.commit(update(less, 1, 6))
    again = shop.table("old", column("id", INT, key=True), relation=77)
    shop.commit(insert(again, 1))
    found = list(shop.stream.history("new", {"nr": 1}).versions())
    assert [v.change.table for v in found] == ["public.old", *["public.new"] * 3]
    assert [v.changed for v in found] == [None, {}, {"m": (5, 6)}, {}]
    assert list(found[0].change.row or ()) == ["id", "n"]
    assert list(found[-1].change.row or ()) == ["nr", "m"]
    assert offsets(shop.stream.history("old", 1)) == [(1, 4)], "another table of the name"
    assert offsets(shop.stream.history("old", 1, stop=1)) == [(1, 0)]


def test_a_key_of_more_columns_before_is_followed_by_those_that_are_left(shop: MadeSource) -> None:
    a, b = column("a", key=True, attribute=1), column("b", key=True, attribute=2)
    wide = shop.table("t", a, b)
    shop.commit(insert(wide, "1", "x"), insert(wide, "2", "x"))
    shop.commit(update(wide, "1", "y", key=("1", "x")))
    narrow = shop.table("t", a, column("b", attribute=2))
    shop.commit(update(narrow, "1", "z"))
    found = shop.stream.history("t", "1")
    assert offsets(found) == [(1, 0), (1, 2), (1, 3)]
    assert found.notes == []
    assert offsets(shop.stream.history("t", {"a": "2"})) == [(1, 1)]


def test_behind_another_key_a_history_begins_late_and_says_so(shop: MadeSource) -> None:
    a, b = column("a", attribute=1), column("b", attribute=2)
    one = shop.table("t", column("a", key=True, attribute=1), b)
    shop.commit(insert(one, "1", "x"))
    other = shop.table("t", a, column("b", key=True, attribute=2))
    shop.commit(update(other, "2", "x"))
    found = shop.stream.history("t", "x")
    assert offsets(found) == [(1, 1)]
    assert "below offset 1 the table had another key" in found.notes[0]


def test_under_full_identity_a_row_is_known_by_the_primary_key_that_the_catalog_told(
    shop: MadeSource,
) -> None:
    a, b = (column(name, INT, key=True, primary=True) for name in "ab")
    table = shop.table("t", a, column("n", key=True), b, identity="f")
    shop.commit(insert(table, 1, "x", 2), insert(table, 1, "x", 3))
    shop.commit(update(table, 1, UNCHANGED, 2, old=(1, "x", 2)))
    shop.commit(update(table, 4, "y", 2, old=(1, "x", 2)), delete(table, 1, "x", 3))
    shop.commit(delete(table, 4, "y", 2), insert(table, 1, "z", 2))
    first = [(1, 0), (1, 2), (1, 3), (1, 5)]
    found = shop.stream.history("t", {"a": 1, "b": 2})
    assert offsets(found) == [*first, (2, 6)]
    assert [v.changed for v in found.versions()][1:3] == [{}, {"a": (1, 4), "n": ("x", "y")}]
    assert offsets(shop.stream.history("t", {"a": 4, "b": 2})) == first
    assert offsets(shop.stream.history("t", {"a": 1, "b": 3})) == [(1, 1), (1, 4)]
    in_index = (
        shop.stream.key_index()
        .view(7)
        .places([hashing.key_hash(table.relation, [b"1", b"2"])], 0, 7)
    )
    assert [offset for offset, _ in in_index] == [0, 2, 3, 6]
    with pytest.raises(UsageError, match="has 2 columns: a, b"):
        shop.stream.history("t", 1)


def test_what_a_state_is_does_not_rest_on_what_the_catalog_told(
    log: eventlog.Log, shop: MadeSource
) -> None:
    found = []
    for relation, primary in ((1, False), (2, True)):
        a = column("a", INT, key=True, primary=primary)
        table = shop.table(
            f"t{relation}", a, column("n", key=True), relation=relation, identity="f"
        )
        shop.commit(insert(table, 1, "x"), insert(table, 1, "x"), insert(table, 1, "y"))
        shop.commit(update(table, 1, "z", old=(1, "x")), delete(table, 1, "y"))
        found.append(log.snapshot("shop").table(f"t{relation}").to_arrow().to_pylist())
    assert found[0] == found[1] == [{"a": 1, "n": "x"}, {"a": 1, "n": "z"}]


def test_versions_under_full_identity_with_another_primary_key_or_none_are_read_whole(
    shop: MadeSource,
) -> None:
    a, b = column("a", INT, key=True), column("b", INT, key=True)
    plain = shop.table("t", a, b, identity="f")
    shop.commit(insert(plain, 1, 5))
    other = shop.table("t", a, replace(b, primary=True), identity="f")
    shop.commit(update(other, 1, 6, old=(1, 5)))
    full = shop.table("t", replace(a, primary=True), b, identity="f")
    shop.commit(update(full, 1, 7, old=(1, 6)))
    keyed = shop.table("t", a, replace(b, key=False))
    shop.commit(update(keyed, 2, 7, key=(1, None)))
    for stop, key in ((3, 1), (4, 1), (4, 2)):
        found = shop.stream.history("t", key, stop=stop)
        assert offsets(found) == [(1, offset) for offset in range(stop)]
        assert found.notes == []
    with pytest.raises(UsageError, match="no primary key of it is known"):
        shop.stream.history("t", 1, stop=1)


def test_what_the_stream_could_not_show_is_noted(shop: MadeSource) -> None:
    key = column("id", INT, key=True)
    shop.commit(insert(shop.table("t", key), 1))
    marked = shop.table("t", key, unseen_since=1, unseen_reason="a partition was truncated")
    shop.commit(update(marked, 1))
    found = shop.stream.history("t", 1)
    assert offsets(found) == [(1, 0), (1, 1)]
    assert found.notes[0].startswith("from offset 1 on rows changed in a way that the stream")
    assert "(a partition was truncated)" in found.notes[0]
    before = shop.stream.history("t", 1, stop=1)
    assert (offsets(before), before.notes) == ([(1, 0)], [])


def test_rows_that_were_there_before_the_capture_are_no_gap(shop: MadeSource) -> None:
    key = column("id", INT, key=True)
    awaited = shop.table("t", key, unseen_since=-1, unseen_reason="the rows are not copied yet")
    shop.commit(insert(awaited, 1))
    found = shop.stream.history("t", 1)
    assert (offsets(found), found.notes) == ([(1, 0)], [])


@pytest.mark.usefixtures("apart")
def test_a_damaged_batch_keeps_only_the_rows_in_it_from_being_told(fragile: Engine) -> None:
    with eventlog.open(fragile.path) as log:
        source = MadeSource(log, "shop")
        table = source.table("t", column("id", INT, key=True))
        for number in range(3):
            source.commit(insert(table, number))
        source.stream.key_index().update(3)
        flip(fragile, "payload", payload_key(3))
        for number in (0, 1):
            assert offsets(source.stream.history("t", number)) == [(1, number)]
        with pytest.raises(DamagedLog, match="damaged"):
            list(source.stream.history("t", 2))
        index = KeyIndex(fragile, SchemaHistory(fragile, "shop"))
        assert [one.stop for one in index.runs()] == [3], "an index that cannot be proven is kept"
        source.close()


def test_values_that_nothing_tells_stay_unchanged_and_count_as_no_change(shop: MadeSource) -> None:
    table = shop.table("t", column("id", INT, key=True), column("n"))
    shop.commit(update(table, 1, UNCHANGED))
    shop.commit(update(table, 1, "b"))
    first, second = shop.stream.history("t", 1).versions()
    assert first.change.row == {"id": 1, "n": UNCHANGED}
    assert second.changed == {}
    (line, _) = shop.stream.history("t", 1).as_json()
    assert (line["row"], line["unchanged"]) == ({"id": 1}, ["n"])


@pytest.mark.parametrize(
    ("kind", "key", "text"),
    [
        (INT, 42, "42"),
        (INT, "42", "42"),
        (NUMERIC, decimal.Decimal("7.50"), "7.50"),
        (BYTEA, b"\x00\xff", "\\x00ff"),
        (BOOL, True, "t"),
        (TEXT, "grün", "grün"),
        (TEXT, "a=1,b", "a=1,b"),
        (TEXT, uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (TEXT, datetime.date(2026, 1, 31), "2026-01-31"),
        (
            TIMESTAMPTZ,
            datetime.datetime(2026, 1, 31, 13, 5, 0, 120_000, ZoneInfo("Europe/Berlin")),
            "2026-01-31 12:05:00.12+00",
        ),
        (TEXT, datetime.datetime(2026, 1, 31, 13, 5), "2026-01-31 13:05:00"),
        (INT, numpy.int64(42), "42"),
    ],
)
def test_keys_of_python_are_compared_as_the_sources_text(
    shop: MadeSource, kind: int, key: Any, text: str
) -> None:
    table = shop.table("t", column("id", kind, key=True))
    shop.commit(insert(table, text), insert(table, text + "0"))
    assert offsets(shop.stream.history("t", key)) == [(1, 0)]
    assert offsets(shop.stream.history("t", {"id": key})) == [(1, 0)]


@pytest.mark.parametrize(
    ("table", "key", "error", "says"),
    [
        ("nosuch", 1, UnknownTable, "has no table public.nosuch"),
        ("public.*", 1, UsageError, "names several tables"),
        ("t", {"i": 1}, UnknownColumn, "has no column 'i'"),
        ("t", None, UsageError, "is that of a key"),
        ("t", object(), UsageError, "cannot be a value of 'id'"),
        ("two", 1, UsageError, "has 2 columns: a, b"),
        ("two", {"a": 1}, UsageError, "lacks a value for b"),
        ("full", 1, UsageError, "cannot be told apart: its replica identity is FULL"),
        ("none", 1, UsageError, "cannot be told apart: it has no replica identity"),
        (None, 1, UsageError, "is that of one of them"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_hint(
    shop: MadeSource, table: str | None, key: Any, error: type[UsageError], says: str
) -> None:
    shop.table("t", column("id", INT, key=True), relation=1)
    shop.table("two", column("a", key=True), column("b", key=True), relation=2)
    shop.table("full", column("a", key=True), relation=3, identity="f")
    shop.table("none", column("a"), relation=4, identity="n")
    shop.announce()
    with pytest.raises(error, match=says) as caught:
        shop.stream.history(table, key)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("note", "expected"), [("short", [1, 3, 0, 2]), ("long" * 2000, [1, 3, 0, 1])]
)
def test_a_record_that_told_the_way_is_read_again_only_where_it_is_large(
    shop: MadeSource, monkeypatch: pytest.MonkeyPatch, note: str, expected: list[int]
) -> None:
    table = shop.table("t", column("id", INT, key=True), column("n"))
    shop.commit(insert(table, 1, "a"))
    shop.commit(update(table, 2, note, key=(1, None)), update(table, 2, "b"))
    shop.commit(delete(table, 2, None))
    read: list[int] = []
    pieces = picking.pieces

    def counted(engine: Any, history: Any, start: int, stop: int) -> Any:
        read.append(start)
        return pieces(engine, history, start, stop)

    monkeypatch.setattr(picking, "pieces", counted)
    assert offsets(shop.stream.history("t", 1)) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    # The key change leads to where the row ends; then all in order, batch by batch.
    assert read == expected


def test_a_row_of_many_versions_is_read_as_it_is_asked_for(
    shop: MadeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = shop.table("t", column("id", INT, key=True), column("n"))
    shop.commit(insert(table, 1, "a"))
    for number in range(20):
        shop.commit(*[update(table, 1, "x" * 9_000 + str(number)) for _ in range(20)])
    list(shop.stream.history("t", 1))
    read: list[int] = []
    load = Picker._load

    def counted(self: Picker, offset: int) -> Any:
        read.append(offset)
        return load(self, offset)

    monkeypatch.setattr(Picker, "_load", counted)
    versions = shop.stream.history("t", 1).versions()
    assert next(versions).change.op is Op.INSERT
    assert len(read) <= 2
    assert sum(1 for _ in versions) == 400
    assert len(read) > 10


def test_events_have_histories_by_their_keys(log: eventlog.Log) -> None:
    stream = log.stream("clicks", create=True)
    stream.append_many([{"n": 1}, {"n": 1}, {"n": 2, "m": 1.0}, 5, None], keys=[7, "8", 7, 7, 7])
    stream.append({"n": 1})
    stream.append(True, key="7")
    stream.append(1, key="7")
    stream.append(1, key="7")
    found = list(stream.history(key=7).versions())
    assert [(v.life, v.change.offset, v.changed) for v in found] == [
        (1, 0, None),
        (1, 2, {"n": (1, 2), "m": (None, 1.0)}),
        (1, 3, {"value": ({"n": 2, "m": 1.0}, 5)}),
        (1, 4, None),
        (2, 6, None),
        (2, 7, {"value": (True, 1)}),
        (2, 8, {}),
    ]
    assert list(stream.history(key="7")) == [event for event in stream.read() if event.key == "7"]
    lines = list(stream.history(key="7", start=2).as_json())
    assert lines[0]["changed"] == {"n": [1, 2], "m": [None, 1.0]}
    read = [line for line in stream.read(2).as_json() if line["key"] == "7"]
    assert [
        {k: v for k, v in line.items() if k not in ("life", "changed")} for line in lines
    ] == read
    assert list(stream.history(key="nobody")) == []
    with pytest.raises(UsageError, match="holds events"):
        stream.history("public.t", key=7)
    with pytest.raises(UsageError, match="is that of a key"):
        stream.history()


AUDITED = """
create table items (a int, b text, body text, primary key (a, b));
alter table items alter body set storage external;
create table audit (seq bigserial primary key, op text, old items, new items);
create function note() returns trigger language plpgsql as $$ begin
    insert into audit (op, old, new) values (
        lower(tg_op), case when tg_op <> 'INSERT' then old end,
        case when tg_op <> 'DELETE' then new end);
    return null; end $$;
create trigger t after insert or update or delete on items for each row execute function note();
"""


@pytest.mark.parametrize("identity", ["default", "full"])
def test_every_history_is_what_an_audit_trigger_wrote_down(
    database18: Database, log: eventlog.Log, identity: str
) -> None:
    database18.execute(AUDITED + f"alter table items replica identity {identity}")
    source = cdc.Source("shop", database18.dsn, ("public.items",))
    source.capture(log, until="current")
    stream, draw = log.stream("shop"), random.Random(11)
    begun = stream.end
    for number in range(120):
        a, other, size = draw.randrange(4), draw.randrange(4), draw.randrange(3) * 3_000
        database18.execute(
            draw.choice(
                (
                    f"insert into items select {a}, g, repeat('x', {size}) from "
                    "generate_series(1, 2) g on conflict do nothing",
                    f"update items set body = body || '{number}' where a = {a}",
                    f"update items set body = body where a = {a}",
                    f"update items set a = {other} where a = {a} and b = '1' and not exists "
                    f"(select from items where a = {other} and b = '1')",
                    f"delete from items where a = {a} and b = '{other % 2 + 1}'",
                )
            )
        )
    source.capture(log, until="current")
    with psycopg.connect(database18.dsn) as conn:
        noted = conn.execute(
            "select op, (old).a::text, (old).b, (new).a, (new).b, (new).body "
            "from audit order by seq"
        ).fetchall()
    table = Table(schema=stream._schemas.in_force(stream.end).popitem()[1], key=("a", "b"))
    for change, (op, old_a, old_b, a, b, body) in zip(stream.read(begun), noted, strict=True):
        before = None if old_a is None else (old_a, old_b)
        after = None if a is None else (str(a), b)
        row = None if a is None else {"a": a, "b": b, "body": body}
        table.hear(change.offset, Op(op), before, after, row)
    keys = sorted(set().union(*(row.keys for row in table.rows)))
    assert len(keys) == 8
    for key in keys:
        assert told(stream, table, key) == table.history(key), key
    assert any(len(row.keys) > 1 for row in table.rows)
