"""Requests and facts about the tables of a source: what is stored, and what is read from it."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import eventlog
from cdc.answers import Answer, answer
from cdc.captured import CapturedTables, TableState, captured_tables
from cdc.requests import (
    Fact,
    FactKind,
    NewRequests,
    Request,
    ask,
    creation,
    facts,
    observations,
    pending,
    tables_stream,
    tell,
)
from eventlog.codecs.events import UnsuitableValue
from eventlog.engine import Plan, SourceUpdate
from eventlog.errors import StreamExists, UsageError
from tests.fix_log import MadeSource, column, insert


def told(log: eventlog.Log, *happened: Fact, **observed: Any) -> None:
    seen = {int(name.removeprefix("r")): value for name, value in observed.items()}
    log.engine.commit(Plan(create=creation("shop"), appends=[tell("shop", happened, seen)]))


def said(kind: FactKind, request: int | None = 5, **more: Any) -> Fact:
    return Fact(fact=kind, table="public.t", relation=7, request=request, **more)


def test_requests_are_read_back_in_order_from_the_offset_that_is_next(
    log: eventlog.Log, shop: MadeSource
) -> None:
    assert pending(log, "shop", 0) == []
    first = ask(log, "shop", "add", "public.a", hash=["public.a.email"])
    second = ask(log, "shop", "remove", "public.*")
    third = ask(log, "shop", "recopy", "public.b")
    asked = [
        Request(offset=first, verb="add", table="public.a", hash=("public.a.email",)),
        Request(offset=second, verb="remove", table="public.*"),
        Request(offset=third, verb="recopy", table="public.b"),
    ]
    assert pending(log, "shop", 0) == asked
    assert pending(log, "shop", second) == asked[1:]
    assert pending(log, "shop", third + 1) == []
    assert log.stream("shop-tables").kind == "events"


def test_new_requests_are_told_from_facts_and_from_older_ones(
    log: eventlog.Log, shop: MadeSource
) -> None:
    fresh = NewRequests(log, "shop")
    assert not fresh.came()
    ask(log, "shop", "add", "public.a")
    assert fresh.came() and not fresh.came()
    told(log, said("joined"), r7={"filenode": 1})
    assert not fresh.came()
    ask(log, "shop", "add", "public.b")
    assert not NewRequests(log, "shop").came()
    assert fresh.came()


@pytest.mark.parametrize("name", ["unknown", "clicks"])
def test_what_was_never_captured_can_be_asked_nothing(
    log: eventlog.Log, shop: MadeSource, name: str
) -> None:
    log.stream("clicks", create=True)
    with pytest.raises(UsageError, match="never captured") as refused:
        ask(log, name, "add", "public.t")
    assert "shop" in refused.value.hint
    assert [info.name for info in log.streams()] == ["clicks", "shop"]


def test_a_source_of_that_name_is_not_written_to(log: eventlog.Log, shop: MadeSource) -> None:
    other = MadeSource(log, tables_stream("shop"))
    with pytest.raises(StreamExists):
        ask(log, "shop", "add", "public.t")
    assert pending(log, "shop", 0) == [] and facts(log, "shop") == []
    other.close()


def test_facts_commit_with_the_changes_that_they_are_about(
    log: eventlog.Log, shop: MadeSource
) -> None:
    happened = [
        Fact(fact="joined", table="public.t", relation=7, request=3, at=0),
        Fact(fact="copied", table="public.t", relation=7, rows=2, why="it joined", request=3),
    ]
    update = SourceUpdate(
        stream="shop", writer_epoch=log.engine.stream("shop").writer_epoch, state={"requests": 4}
    )
    plan = Plan(create=creation("shop"), appends=[tell("shop", happened)], sources=[update])
    assert log.engine.commit(plan).offsets == (range(2),)
    found = facts(log, "shop")
    assert [item.fact for item in found] == happened
    assert [item.offset for item in found] == [0, 1]
    assert found[0].time.utcoffset() is not None
    assert facts(log, "shop", 1) == found[1:]


def test_the_latest_observation_of_each_relation_is_kept(
    log: eventlog.Log, shop: MadeSource
) -> None:
    assert observations(log, "shop") == {}
    told(log, r7={"filenode": 1}, r8={"filenode": 2})
    told(log, Fact(fact="joined", table="public.t", relation=7), r7={"filenode": 3, "names": ["a"]})
    told(log, r8=None)
    assert observations(log, "shop") == {7: {"filenode": 3, "names": ["a"]}}
    assert [item.fact.fact for item in facts(log, "shop")] == ["joined"]


def test_a_large_observation_is_cut_into_batches_and_is_one_transaction(
    log: eventlog.Log, shop: MadeSource
) -> None:
    columns = {f"c{n}": "x" * 300 for n in range(1600)}
    told(log, **{f"r{n}": columns for n in range(3)})
    assert observations(log, "shop") == dict.fromkeys(range(3), columns)


def test_an_observation_that_no_event_can_hold_is_refused() -> None:
    with pytest.raises(UnsuitableValue):
        tell("shop", observed={7: {"names": ("a", "b")}})


def test_other_events_of_the_stream_are_passed_over(log: eventlog.Log, shop: MadeSource) -> None:
    offset = ask(log, "shop", "add", "public.t")
    stream = log.stream("shop-tables")
    for value in (7, "x", {}, {"ask": "explode"}, {"ask": "add"}, {"fact": "odd"}, {"fact": []}):
        stream.append(value, key="relation/no")
    stream.append({"fact": "observed"}, key="relation/7")
    stream.append({"ask": ["add"], "table": "t"})
    stream.append({"ask": "add", "table": "t", "hash": 7})
    stream.append({"fact": "joined", "table": 7})
    assert [request.offset for request in pending(log, "shop", 0)] == [offset]
    assert facts(log, "shop") == [] and observations(log, "shop") == {}


def test_what_retention_dropped_is_missed_by_nobody(log: eventlog.Log, shop: MadeSource) -> None:
    for name in ("public.a", "public.b"):
        ask(log, "shop", "add", name)
    log.stream("shop-tables").retain(below=2, force=True)
    kept = ask(log, "shop", "add", "public.c")
    assert [request.offset for request in pending(log, "shop", 0)] == [kept]


# What became of a request

ADD = Request(offset=5, verb="add", table="public.t")


def judged(log: eventlog.Log, request: Request, *said: Fact, **state: Any) -> Answer:
    start = len(facts(log, "shop"))
    told(log, *said)
    return answer(request, facts(log, "shop")[start:], state)


def test_a_request_ends_when_it_is_handled_and_its_copies_are_done(
    log: eventlog.Log, shop: MadeSource
) -> None:
    other = Fact(fact="copied", table="public.u", relation=8, request=4)
    at_work = {"copies": {"7": {"rows": 1}, "8": {}}}
    elsewhere = {"copies": {"8": {"rows": 1}}}
    assert not judged(log, ADD, other, requests=5).ended
    assert not judged(log, ADD, said("joined"), requests=5).ended, "it is not handled"
    assert not judged(log, ADD, said("joined"), requests=6, **at_work).ended
    assert judged(log, ADD, said("joined"), requests=6, **elsewhere).ended
    done = judged(log, ADD, said("joined"), said("copied", rows=3), requests=6, **elsewhere)
    assert done.ended and done.told and done.failed is None
    assert done.facts == (said("copied", rows=3),)


def test_before_its_facts_every_copy_at_work_may_be_a_requests(
    log: eventlog.Log, shop: MadeSource
) -> None:
    assert not judged(log, ADD, requests=6, copies={"8": {}}).ended
    nothing = judged(log, ADD, requests=6, copies={})
    assert nothing.ended and nothing.told and nothing.facts == ()


def test_a_copy_that_has_ended_is_waited_for_until_it_is_told(
    log: eventlog.Log, shop: MadeSource
) -> None:
    for last in (said("joined"), said("copying")):
        found = judged(log, ADD, last, requests=6)
        assert found.ended and not found.told
    known = Fact(fact="joined", table="public.t", why="it was captured already", request=5)
    assert judged(log, ADD, known, requests=6).told


def test_a_copy_that_another_capture_took_up_answers_the_request(
    log: eventlog.Log, shop: MadeSource
) -> None:
    again = said("copying", None), said("copied", None, rows=9)
    found = judged(log, ADD, said("joined"), *again, requests=6)
    assert found.told and found.facts == again[1:]


def test_a_refusal_and_a_table_that_goes_meanwhile_are_failures(
    log: eventlog.Log, shop: MadeSource
) -> None:
    refused = Fact(fact="refused", table="public.t", why="there is no table public.t", request=5)
    assert judged(log, ADD, refused, requests=6).failed == "there is no table public.t"
    dropped = judged(log, ADD, said("joined"), said("dropped", None), requests=6)
    assert dropped.told and dropped.failed == "public.t is gone at the source"
    removed = judged(log, ADD, said("joined"), said("left", 6), requests=7)
    assert removed.told and removed.failed == "public.t is captured no more"
    removal = Request(offset=5, verb="remove", table="public.t")
    done = judged(log, removal, said("left"), requests=6)
    assert done.told and done.failed is None


# The list of tables


class Share:
    """A driver that can tell how much of a copy is done, and nothing else."""

    def copied_share(self, cursor: dict[str, Any]) -> float | None:
        return cursor.get("share")


def listed(log: eventlog.Log) -> CapturedTables:
    return captured_tables(log, "shop", Share())  # type: ignore[arg-type]


def store(log: eventlog.Log, shop: MadeSource, **state: Any) -> None:
    epoch = log.engine.stream("shop").writer_epoch
    state = {**(log.source("shop") or {}), **state}
    update = SourceUpdate(stream="shop", writer_epoch=epoch, state=state)
    log.engine.commit(Plan(sources=[update]))


def test_the_list_shows_each_relation_as_it_stands(log: eventlog.Log, shop: MadeSource) -> None:
    orders = shop.table("orders", column("id", key=True), column("x"), relation=1)
    odd = shop.table("Odd", column("x"), relation=2, inserts_only=True)
    old = shop.table("old", column("x"), relation=3)
    gone = shop.table("gone", column("x"), relation=4)
    shop.commit(*(insert(table, "a") for table in (odd, old, gone)), insert(orders, "a", "b"))
    told(
        log,
        Fact(fact="joined", table="public.orders", relation=1, at=2, why="it was asked for"),
        Fact(fact="copied", table="public.orders", relation=1, rows=3, why="it joined"),
        Fact(fact="left", table="public.old", relation=3, why="it was asked for"),
        Fact(fact="dropped", table="public.gone", relation=4),
        Fact(fact="joined", table="public.new", relation=5, at=4),
        Fact(fact="joined", table="public.next", relation=6, at=4),
        r9={"namespace": "public", "name": "empty"},
    )
    copies = {5: {"begun": 4, "rows": 45, "share": 0.45}, 6: {}}
    lists = {"tables": ["public.*"], "left_out": ["public.old"], "relations": [1, 2, 5, 6, 9]}
    store(log, shop, copies=copies, requests=6, **lists)
    asked = ask(log, "shop", "add", "crm.x")
    found = listed(log)
    assert (found.patterns, found.left_out) == (("public.*",), ("public.old",))
    assert [request.offset for request in found.waiting] == [asked]
    tables = {table.relation: table for table in found.tables}
    assert [table.table for table in found.tables] == sorted(t.table for t in found.tables)
    assert {table.table: table.stands for table in found.tables} == {
        'public."Odd"': "streaming, inserts only",
        "public.empty": "streaming",
        "public.gone": "dropped at the source",
        "public.new": "copying 45 %",
        "public.next": "joining",
        "public.old": "left",
        "public.orders": "streaming",
    }
    assert (tables[1].since, tables[1].rows, tables[1].why) == (2, 3, "it joined")
    assert tables[1].copied_at is not None
    assert tables[1].columns == ("id", "x")
    assert (tables[5].rows, tables[5].since, tables[5].columns) == (45, 4, ())
    assert (tables[2].since, tables[2].rows, tables[2].copied_at) == (0, None, None)


def test_a_log_without_facts_lists_its_tables(log: eventlog.Log, shop: MadeSource) -> None:
    shop.commit(insert(shop.table("t", column("x")), "a"))
    (table,) = listed(log).tables
    assert (table.table, table.state, table.since) == ("public.t", TableState.STREAMING, 0)
    assert listed(log).patterns == () and listed(log).waiting == ()


def test_the_list_names_the_process_that_captures(log: eventlog.Log, shop: MadeSource) -> None:
    assert listed(log).writer == str(os.getpid())
    shop.close()
    assert listed(log).writer is None


def test_looking_for_a_writer_keeps_none_out(log: eventlog.Log) -> None:
    source = MadeSource(log, "shop")
    source.close()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            log.engine.living_writer("shop")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            log.engine.writer("shop").close()
    finally:
        ended.set()
        for looker in lookers:
            looker.join()
