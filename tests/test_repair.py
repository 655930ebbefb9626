"""Repair: what is undamaged stays to the byte, what is lost is named, and the log is sound."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lmdb
import numpy as np
import pytest
from click.testing import CliRunner, Result

import eventlog
from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.cli import cli
from eventlog.engine import (
    Append,
    Engine,
    Plan,
    Transactions,
    batch,
    batch_of,
    check,
    failpoint,
    index,
    rows,
)
from eventlog.engine.upkeep.pages import BRANCH, LEAF, open_data
from eventlog.engine.upkeep.repair import Repaired, repair
from eventlog.engine.upkeep.retain import retain
from eventlog.engine.upkeep.walker import Walker
from eventlog.errors import (
    DamagedLog,
    DiskFull,
    LogInUse,
    LogVersionError,
    NotALog,
    SnapshotRefused,
)
from tests.fix_log import INT, MadeSource, bodies_apart, column, control, copied, insert, update
from tests.golden import make
from tests.test_engine_check import DAMAGES, delete, flip, get, payload_key

PAGE = 4096
Records = dict[int, tuple[bytes, int]]
"""By offset: a record's bytes, and its time."""


class Truth(NamedTuple):
    """All that a log holds, but for what a repair may rebuild."""

    streams: dict[str, tuple[str, int, int, Records]]
    consumers: set[tuple[str, str, int, int]]
    schemas: dict[str, list[dict[str, Any]]]
    sources: dict[str, Any]
    identity: dict[str, Any]


RECOVERED = {
    "recovered-1": "clicks",
    "recovered-2": "empty",
    "recovered-3": "shop",
    "recovered-4": "big",
}
"""The sample's streams by their numbers, as they are called when their names are gone."""


def truth(directory: Path) -> Truth:
    with eventlog.open(directory) as log:
        assert log.check() == []
        engine = log.engine
        streams, schemas, sources = {}, {}, {}
        for row in engine.streams():
            records: Records = {}
            for stretch in engine.scan(row.name, row.start, row.end, lambda entry: True):
                entry, found = stretch.entry, stretch.payload
                assert found is not None
                slots, offsets = entry.readable_slots(row.start, row.end)
                times = entry.transactions.time[entry.slot_transactions()].tolist()
                for slot, offset, record in zip(slots, offsets, found.records(slots), strict=True):
                    records[offset] = record, times[slot]
            streams[row.name] = (row.kind, row.start, row.end, records)
            schemas[row.name] = [dict(stored) for _, stored in engine.schemas(row.name)]
            sources[row.name] = engine.source_state(row.name)
        consumers = {(s, name, row.offset, row.epoch) for s, name, row in engine.consumers()}
        return Truth(streams, consumers, schemas, sources, engine.identity())


def write_sample(directory: Path) -> None:
    """Streams of both kinds over many pages, with consumers, ids, schema versions and a source."""
    with eventlog.open(directory, create=True) as log:
        clicks = log.stream("clicks", create=True)
        for number in range(12):
            clicks.append_many([{"n": n, "of": number, "pad": "x" * 90} for n in range(1_500)])
        for number in range(40):
            clicks.append({"tiny": number}, key=number, id=f"request-{number}")
        for number in range(30):
            clicks.consumer(f"reader-{number:02}-{'long' * 20}")
        log.stream("empty", create=True)
        shop = MadeSource(log, "shop")
        orders = shop.table("orders", column("id", INT, key=True), column("note"))
        users = shop.table("users", column("id", INT, key=True), column("name"), relation=7)
        shop.commit(
            control(Op.COPY_BEGIN, orders),
            *[copied(orders, n, "copied") for n in range(40)],
            control(Op.COPY_END, orders),
        )
        for number in range(60):
            note = f"{number} " * 400
            shop.commit(insert(orders, 1000 + number, note), update(orders, number % 40, note))
            shop.commit(*[insert(users, 10 * number + n, "u") for n in range(3)], split=True)
        shop.close()
        log.stream("shop").consumer("mailer", start=25)
        big = log.stream("big", create=True)
        for letter in "ab":
            big.append(letter * 700_000)
        with eventlog.open(directory) as again:
            assert again.check() == []


@pytest.fixture(scope="module", autouse=True)
def small_bodies_apart() -> Iterator[None]:
    """Most of these damages are of payloads, which small records would not have."""
    with bodies_apart():
        yield


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sample") / "log"
    write_sample(directory)
    return directory


@pytest.fixture(scope="module")
def known(sample: Path) -> Truth:
    return truth(sample)


@pytest.fixture
def log_copy(sample: Path, log_dir: Path) -> Iterator[Path]:
    """A copy of the sample to be damaged; it must be repaired, or sound, at the end."""
    shutil.copytree(sample, log_dir)
    yield log_dir
    with eventlog.open(log_dir) as log:
        assert log.check() == []


class Tree(NamedTuple):
    """Pages of one database."""

    branches: list[int]
    leaves: list[int]


def trees(directory: Path) -> dict[str, Tree]:
    with open_data(directory / "data.mdb") as file:
        walker = Walker(file)
        found = {}
        for name, tree in walker._trees.items():
            pages = Tree([], [])
            pending = [] if tree.root is None else [tree.root]
            while pending:
                number = pending.pop()
                kind, data = file.page(number, (BRANCH, LEAF))
                (pages.leaves if kind == LEAF else pages.branches).append(number)
                pending += [child for _, child in file.children(data)[0]] if kind == BRANCH else []
            found[name] = pages
        found["(main)"] = Tree([], [walker.meta.main.root or 0])
        found["(free)"] = Tree([], [walker.meta.free.root or 0])
        return found


def spoil(directory: Path, page: int, content: bytes = bytes(PAGE)) -> None:
    with (directory / "data.mdb").open("r+b") as data:
        data.seek(page * PAGE)
        data.write(content)


def entries(directory: Path, stream: str) -> list[Any]:
    with Engine.open(directory) as engine:
        low, end = engine.bounds(stream)
        return [item.entry for item in engine.scan(stream, low, end, lambda entry: False)]


def require_rest(directory: Path, known: Truth, done: Repaired) -> Truth:
    """All that is not named as lost is as it was; appends go on at the old ends."""
    now = truth(directory)
    for name, (kind, start, end, records) in known.streams.items():
        gone = {
            o for lost in done.lost if lost.stream == name for o in range(lost.start, lost.stop)
        }
        assert now.streams[name][:3] == (kind, start, end)
        left = {offset: record for offset, record in records.items() if offset not in gone}
        found = now.streams[name][3]
        assert {offset: found.get(offset) for offset in left} == left
        told = {offset for offset in found if offset not in left}
        assert told <= gone and all(b"data_loss" in found[offset][0] for offset in told)
        assert bool(told) == (bool(gone) and kind == "captured")
        with eventlog.open(directory) as log:
            for offset in {start, end, *gone, *(o + 1 for o in gone)}:
                log.engine.transaction_start(name, offset)
            if kind == "events":
                assert log.stream(name).append({"after": 1}) == end
    return now


def lost(done: Repaired) -> list[tuple[str, int, int]]:
    return [(gone.stream, gone.start, gone.stop) for gone in done.lost]


# Records


@pytest.mark.parametrize("stream", ["clicks", "shop"])
@pytest.mark.parametrize("which", [[0], [5], [-1], [3, 4, 5], [2, -2]])
@pytest.mark.parametrize("what", ["a flipped payload", "no payload", "a flipped entry", "no entry"])
def test_lost_offsets_are_named_exactly_and_nothing_else_is_touched(
    log_copy: Path, known: Truth, stream: str, which: list[int], what: str
) -> None:
    found = entries(log_copy, stream)
    hit = [found[place] for place in which]
    number = {"clicks": 1, "shop": 3}[stream]
    with Engine.open(log_copy) as engine:
        for entry in hit:
            database, key = {
                True: ("payload", payload_key(entry.payload_id)),
                False: ("index", index.key(number, entry.first_offset)),
            }["payload" in what]
            (flip if "flipped" in what else delete)(engine, database, key)
    done = repair(log_copy)
    expected: list[tuple[str, int, int]] = []
    for first, stop in sorted((entry.first_offset, entry.stop) for entry in hit):
        before = expected[-1] if expected else (stream, -1, -1)
        if before[2] == first:
            expected[-1] = (stream, before[1], stop)
        else:
            expected.append((stream, first, stop))
    assert lost(done) == expected
    assert not done.sound and done.kept is not None and done.kept.is_file()
    now = require_rest(log_copy, known, done)
    assert (now.consumers, now.schemas, now.sources) == known[1:4]
    again = repair(log_copy)
    assert again.sound and again == Repaired()


def test_all_entries_of_a_stream_may_be_lost(log_copy: Path, known: Truth) -> None:
    with Engine.open(log_copy) as engine:
        for entry in entries(log_copy, "shop"):
            delete(engine, "index", index.key(3, entry.first_offset))
    done = repair(log_copy)
    end = known.streams["shop"][2]
    assert lost(done) == [("shop", 0, end)]
    now = require_rest(log_copy, known, done)
    (record,) = now.streams["shop"][3].values()
    assert b"data_loss" in record[0]


def test_times_behind_a_loss_find_the_offsets_that_they_found_before(log_copy: Path) -> None:
    with eventlog.open(log_copy) as log:
        stream = log.stream("shop")
        moments = [change.time for change in stream.read()]
        before = [stream.offset_at(moment) for moment in moments]
    found = entries(log_copy, "shop")
    with Engine.open(log_copy) as engine:
        delete(engine, "index", index.key(3, found[7].first_offset))
        flip(engine, "payload", payload_key(found[9].payload_id))
    done = repair(log_copy)
    gone = {offset for gone in done.lost for offset in range(gone.start, gone.stop)}
    with eventlog.open(log_copy) as log:
        after = [log.stream("shop").offset_at(moment) for moment in moments]
    outside = [n for n, offset in enumerate(before) if offset not in gone]
    assert len(outside) > 100
    assert [after[n] for n in outside] == [before[n] for n in outside]


def test_a_snapshot_across_the_loss_is_refused_and_reading_shows_it(
    log_copy: Path, known: Truth
) -> None:
    hit = entries(log_copy, "shop")[4]
    with Engine.open(log_copy) as engine:
        flip(engine, "payload", payload_key(hit.payload_id))
    repair(log_copy)
    span = rf"lost by damage to the log, at offsets \[{hit.first_offset}, {hit.stop}\)"
    with eventlog.open(log_copy) as log:
        assert len(log.snapshot("shop", at=hit.first_offset).table("orders").to_arrow()) > 40
        for table in ("orders", "users"):
            with pytest.raises(SnapshotRefused, match=span):
                log.snapshot("shop").table(table)
        (told,) = [change for change in log.stream("shop").read() if change.op is Op.DATA_LOSS]
        assert told.offset == hit.first_offset
        assert told.row == {"from": hit.first_offset, "to": hit.stop, "lost_in": "log"}


def test_an_event_stream_is_read_past_what_is_lost(log_copy: Path, known: Truth) -> None:
    hit = entries(log_copy, "clicks")[2]
    with Engine.open(log_copy) as engine:
        flip(engine, "payload", payload_key(hit.payload_id))
    repair(log_copy)
    with eventlog.open(log_copy) as log:
        read = [event.offset for event in log.stream("clicks").read()]
    _, start, end, _ = known.streams["clicks"]
    gone = set(range(hit.first_offset, hit.stop))
    assert read == [offset for offset in range(start, end) if offset not in gone]


def test_an_append_under_an_id_that_was_lost_is_stored_again(log_copy: Path, known: Truth) -> None:
    hit = entries(log_copy, "clicks")[-1]
    with Engine.open(log_copy) as engine:
        flip(engine, "payload", payload_key(hit.payload_id))
    done = repair(log_copy)
    end = known.streams["clicks"][2]
    assert any("of the ids of stream 'clicks'" in what for what in done.dropped)
    with eventlog.open(log_copy) as log:
        clicks = log.stream("clicks")
        assert clicks.append({"tiny": 0}, key=0, id="request-0") == end - 40
        assert clicks.append({"tiny": 39}, key=39, id="request-39") == end
        assert clicks.append({"tiny": 39}, key=39, id="request-39") == end


@pytest.mark.parametrize("round_", range(6))
def test_any_losses_of_a_captured_stream_leave_whole_transactions(
    log_copy: Path, known: Truth, round_: int
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    found = entries(log_copy, "shop")
    with Engine.open(log_copy) as engine:
        for entry in found:
            draw = chance.random()
            if draw < 0.2:
                flip(engine, "payload", payload_key(entry.payload_id))
            elif draw < 0.4:
                delete(engine, "index", index.key(3, entry.first_offset))
    done = repair(log_copy)
    require_rest(log_copy, known, done)
    assert repair(log_copy).sound


@pytest.mark.parametrize("name", ["the row", "the first entry", "all entries"])
def test_a_stream_that_was_dropped_from_below_keeps_its_start(log_dir: Path, name: str) -> None:
    with eventlog.open(log_dir, create=True) as log:
        clicks = log.stream("clicks", create=True)
        for _ in range(4):
            clicks.append_many([{"pad": "x" * 90}] * 1_500)
        retain(log.engine.store, "clicks", below=3_000)
        assert clicks.start == 3_000
    with Engine.open(log_dir) as engine:
        if name == "the row":
            flip(engine, "meta", b"stream/clicks")
        for offset in {"the first entry": (3_000,), "all entries": (3_000, 4_500)}.get(name, ()):
            delete(engine, "index", index.key(1, offset))
    done = repair(log_dir)
    expected = {"the row": [], "the first entry": [("clicks", 3_000, 4_500)]}
    assert lost(done) == expected.get(name, [("clicks", 3_000, 6_000)])
    with eventlog.open(log_dir) as log:
        assert log.check() == []
        assert log.engine.bounds("clicks") == (3_000, 6_000)
        gone = 3_000 - sum(1 for _ in log.stream("clicks").read())
        assert gone == sum(stop - start for _, start, stop in lost(done))


def test_a_loss_of_more_slots_than_an_entry_may_have(log_dir: Path) -> None:
    with eventlog.open(log_dir, create=True) as log:
        log.stream("clicks", create=True)
        shop = MadeSource(log, "shop")
        table = shop.table("t", column("id", INT, key=True))
        one = Transactions(
            first=np.zeros(1, np.uint32),
            time=np.array([5], np.int64),
            tx=np.array([9], np.uint64),
            position=np.array([77], np.uint64),
        )
        shop.commit(insert(table, 1))
        for back in (0, 50_000, 100_000, 150_000):
            words = replace(one, back=back, time=np.array([shop.now_us]), tx=one.tx + 800)
            words = replace(words, position=words.position + (900 << 8))
            batch = batch_of(3, [b""] * 50_000, words, relations=((16_400, 0),))
            state = shop._update(state={"codec": 3, "position": (900 << 8) + 77})
            append = Append(stream="shop", batches=[batch])
            log.engine.commit(Plan(appends=[append], sources=[state]))
        shop.close()
    with Engine.open(log_dir) as engine:
        for offset in (1, 50_001, 100_001):
            delete(engine, "index", index.key(2, offset))
    done = repair(log_dir)
    assert lost(done) == [("shop", 1, 150_001)]
    with eventlog.open(log_dir) as log:
        assert log.check() == []
        assert log.engine.bounds("shop") == (0, 200_001)
        (told,) = [c for c in log.stream("shop").read(0, 150_001) if c.op is Op.DATA_LOSS]
        assert told.offset == 1 and told.row["to"] == 150_001
        assert log.engine.transaction_start("shop", 160_000) == 1


# Pages


def test_what_hangs_from_a_damaged_branch_is_found_page_by_page(
    log_copy: Path, known: Truth
) -> None:
    found = trees(log_copy)
    branches = {number for tree in found.values() for number in tree.branches}
    assert len(branches) >= 3 and found["payload"].branches and found["index"].branches
    for number in (*branches, *found["(main)"].leaves):
        spoil(log_copy, number)
    done = repair(log_copy)
    assert (done.lost, done.dropped) == ((), ())
    now = require_rest(log_copy, known, done)
    assert (now.consumers, now.schemas, now.sources, now.identity) == known[1:]


def test_without_the_list_of_free_pages_rows_behind_a_branch_are_not_guessed(
    log_copy: Path, known: Truth
) -> None:
    found = trees(log_copy)
    spoil(log_copy, *found["(free)"].leaves)
    for number in found["payload"].branches:
        spoil(log_copy, number)
    for number in found["consumer"].branches:
        spoil(log_copy, number)
    done = repair(log_copy)
    assert [gone for gone in lost(done) if gone[0] != "big"] == []
    assert done.dropped == (
        "30 of the consumers of stream 'clicks', whose names are gone too",
        "1 of the consumers of stream 'shop', whose names are gone too",
    )
    require_rest(log_copy, known, done)


@pytest.mark.parametrize("content", [b"\0", b"\xff", b"\x5a"])
def test_each_page_of_each_tree_may_be_damaged(
    sample: Path, known: Truth, tmp_path: Path, content: bytes
) -> None:
    for name, tree in trees(sample).items():
        for number in tree.leaves:
            log_dir = tmp_path / f"{name}-{number}"
            shutil.copytree(sample, log_dir)
            spoil(log_dir, number, content * PAGE)
            done = repair(log_dir)
            assert not done.sound
            now = require_rest(log_dir, known, done)
            if name in ("(main)", "(free)"):
                assert (done.lost, done.dropped) == ((), ())
            if name not in ("index", "payload", "schema"):
                assert done.lost == ()
            if name not in ("consumer", "meta"):
                assert now.consumers == known.consumers
            if name not in ("schema", "meta"):
                assert now.schemas == known.schemas
            if name == "meta":
                assert done.dropped[0].startswith("the identity of the log")
                assert now.identity["id"] != known.identity["id"]
                assert any("source of stream 'shop'" in what for what in done.dropped)
            assert repair(log_dir).sound
            shutil.rmtree(log_dir)


def test_a_damaged_page_of_a_payload_loses_that_payload(log_copy: Path, known: Truth) -> None:
    data = (log_copy / "data.mdb").read_bytes()
    hit = entries(log_copy, "clicks")[3]
    with Engine.open(log_copy) as engine:
        body = get(engine, "payload", payload_key(hit.payload_id))
    at = data.index(body[:40])
    spoil(log_copy, at // PAGE + 1)
    done = repair(log_copy)
    assert [str(gone) for gone in done.lost] == [
        f"stream 'clicks': offsets [{hit.first_offset}, {hit.stop}) are lost: "
        "their payload is damaged: its checksum is wrong"
    ]
    require_rest(log_copy, known, done)


def test_damage_to_many_pages_at_once_never_makes_a_wrong_value(
    sample: Path, known: Truth, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    data = (sample / "data.mdb").read_bytes()
    pages = len(data) // PAGE
    for number in range(25):
        damaged = bytearray(data)
        for _ in range(chance.choice([2, 5, 20, 60])):
            at = chance.randrange(2, pages) * PAGE
            other = chance.randrange(pages) * PAGE
            damaged[at : at + PAGE] = chance.choice(
                [bytes(PAGE), chance.randbytes(PAGE), data[other : other + PAGE]]
            )
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "data.mdb").write_bytes(damaged)
        done = repair(directory)
        for name, (_, _, _, records) in truth(directory).streams.items():
            gone = [range(g.start, g.stop) for g in done.lost if g.stream == name]
            source = known.streams[RECOVERED.get(name, name)][3]
            for offset, record in records.items():
                told = b"data_loss" in record[0] and any(offset in span for span in gone)
                assert source.get(offset) == record or told
        assert repair(directory).sound
        shutil.rmtree(directory)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_a_file_that_was_cut_short_keeps_what_is_left(
    log_copy: Path, known: Truth, keep: float
) -> None:
    size = (log_copy / "data.mdb").stat().st_size
    os.truncate(log_copy / "data.mdb", int(size * keep))
    done = repair(log_copy)
    now = truth(log_copy)
    assert not done.sound
    found = {name: records for name, (_, _, _, records) in now.streams.items()}
    for name, (_, _, _, records) in known.streams.items():
        for offset, record in found.get(name, {}).items():
            assert records.get(offset) == record or b"data_loss" in record[0]


@pytest.mark.parametrize("gone", ["its meta page", "all that its meta page leads to"])
def test_the_state_before_the_last_commit_is_taken_where_nothing_leads_to_the_last(
    log_copy: Path, known: Truth, gone: str
) -> None:
    with eventlog.open(log_copy) as log:
        assert log.stream("clicks").append({"last": True}) == known.streams["clicks"][2]
    data = (log_copy / "data.mdb").read_bytes()
    newest = max((0, 1), key=lambda s: int(struct.unpack_from("=Q", data, s * PAGE + 144)[0]))
    found = trees(log_copy)
    roots = [found[name].leaves[0] for name in ("(main)", "(free)")]
    for page in [newest] if gone == "its meta page" else roots:
        spoil(log_copy, page)
    done = repair(log_copy)
    assert done.lost == ()
    assert done.dropped == ("the last commit, perhaps: what leads to one of two states is damaged",)
    now = require_rest(log_copy, known, done)
    assert now.streams == known.streams


def test_a_sector_that_the_disk_cannot_read_loses_what_lies_there(
    log_copy: Path, known: Truth
) -> None:
    hit = entries(log_copy, "clicks")[3]
    with Engine.open(log_copy) as engine:
        body = get(engine, "payload", payload_key(hit.payload_id))
    bad = (log_copy / "data.mdb").read_bytes().index(body[:40]) + 5_000
    pread = os.pread

    def failing(descriptor: int, size: int, at: int) -> bytes:
        if at <= bad < at + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, at)

    with mock.patch("os.pread", failing):
        done = repair(log_copy)
    assert "cannot be read: Input/output error" in done.damages[0]
    assert [str(gone) for gone in done.lost] == [
        f"stream 'clicks': offsets [{hit.first_offset}, {hit.stop}) are lost: "
        "their payload is damaged: it cannot be read: Input/output error"
    ]
    require_rest(log_copy, known, done)


def test_an_environment_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with (
        lmdb.open(str(tmp_path), max_dbs=3, lib_version=0) as other,
        other.begin(write=True) as txn,
    ):
        txn.put(b"answer", b"42")
    with pytest.raises(NotALog, match="nothing of an event log"):
        repair(tmp_path)
    assert run("check", tmp_path).exit_code == 1
    with lmdb.open(str(tmp_path), max_dbs=3) as other, other.begin() as txn:
        assert list(txn.cursor()) == [(b"answer", b"42")]


def test_with_neither_meta_page_nothing_is_a_log(log_copy: Path) -> None:
    data = (log_copy / "data.mdb").read_bytes()
    spoil(log_copy, 0, bytes(2 * PAGE))
    with pytest.raises(NotALog, match="both meta pages"):
        repair(log_copy)
    assert (log_copy / "data.mdb").read_bytes()[2 * PAGE :] == data[2 * PAGE :]
    (log_copy / "data.mdb").write_bytes(data)


# Rows


def test_format_identity_and_counters_are_made_anew(log_copy: Path, known: Truth) -> None:
    with Engine.open(log_copy) as engine:
        for key in (b"format", b"log", b"counters"):
            flip(engine, "meta", key)
    done = repair(log_copy)
    assert set(done.rebuilt) >= {"the row of the format", "the counters"}
    assert done.dropped == ("the identity of the log: it has a new one, of generation 1",)
    now = require_rest(log_copy, known, done)
    assert now.identity["id"] != known.identity["id"] and now.identity["generation"] == 1
    assert now[1:4] == known[1:4]
    with eventlog.open(log_copy) as log:
        log.stream("new", create=True)
        assert {row.name: row.id for row in log.engine.streams()} == {
            "clicks": 1,
            "empty": 2,
            "shop": 3,
            "big": 4,
            "new": 5,
        }


def test_a_consumer_that_cannot_be_read_is_dropped_by_name(log_copy: Path, known: Truth) -> None:
    with Engine.open(log_copy) as engine:
        flip(engine, "consumer", rows.consumer_key(3, "mailer"))
    done = repair(log_copy)
    assert done.dropped == (
        "consumer 'mailer' of stream 'shop': its row is damaged, its name may be wrong",
    )
    now = require_rest(log_copy, known, done)
    assert known.consumers - now.consumers == {("shop", "mailer", 25, 1)}
    with eventlog.open(log_copy) as log:
        assert log.stream("shop").consumer("mailer").offset == 0


KEYS = {
    "a stream": ("meta", b"stream/clicks"),
    "a captured stream": ("meta", b"stream/shop"),
    "a source": ("meta", b"source/shop"),
    "the counters": ("meta", rows.COUNTERS_KEY),
    "the identity": ("meta", rows.LOG_KEY),
    "a consumer": ("consumer", rows.consumer_key(3, "mailer")),
    "a schema version": ("schema", bytes(3) + b"\x03" + bytes(4)),
    "an entry": ("index", index.key(1, 0)),
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("bit", [0, -1])
def test_a_row_under_a_flipped_key_is_put_back_whole(
    log_copy: Path, known: Truth, name: str, bit: int
) -> None:
    database, key = KEYS[name]
    flipped = bytearray(key)
    flipped[bit] ^= 0x40
    rename(log_copy, database, key, bytes(flipped))
    told = repair(log_copy, dry_run=True)
    assert (told.lost, told.dropped) == ((), ())
    assert any(f"it is {key!r}, not {bytes(flipped)!r}" in what for what in told.rebuilt)
    done = repair(log_copy)
    assert require_rest(log_copy, known, done) == known


def rename(directory: Path, database: str, key: bytes, to: bytes) -> None:
    with Engine.open(directory) as engine:
        store = engine.store
        db = getattr(store, database)
        with store.write() as txn:
            assert txn.put(to, txn.get(key, db=db), db=db, overwrite=False)
            txn.delete(key, db=db)


@pytest.mark.parametrize("number", [0, 1])
def test_a_key_that_became_the_one_beside_it_costs_neither_row(
    log_copy: Path, known: Truth, number: int
) -> None:
    # In the page itself: no other way leads to two rows under one key.
    (page,) = trees(log_copy)["schema"].leaves
    content = bytearray((log_copy / "data.mdb").read_bytes()[page * PAGE :][:PAGE])
    wrong = content.find(bytes(3) + b"\x03" + bytes(3) + bytes([number]))
    assert wrong > 0
    content[wrong + 7] ^= 1
    spoil(log_copy, page, content=bytes(content))
    told = repair(log_copy, dry_run=True)
    assert (told.lost, told.dropped) == ((), ()) and told.rebuilt
    assert require_rest(log_copy, known, repair(log_copy)) == known


def test_a_stream_under_quite_another_key_has_the_name_that_its_row_holds(
    log_copy: Path, known: Truth
) -> None:
    rename(log_copy, "meta", b"stream/clicks", b"garbage")
    assert require_rest(log_copy, known, repair(log_copy)) == known


def test_what_is_known_by_its_key_alone_may_bear_a_wrong_name_and_that_is_a_loss(
    log_copy: Path,
) -> None:
    with Engine.open(log_copy) as engine:
        flip(engine, "meta", b"stream/clicks")
        flip(engine, "consumer", rows.consumer_key(3, "mailer"))
        flip(engine, "meta", b"source/shop")
    rename(log_copy, "meta", b"stream/clicks", b"stream/blicks")
    rename(log_copy, "consumer", rows.consumer_key(3, "mailer"), rows.consumer_key(3, "nailer"))
    rename(log_copy, "meta", b"source/shop", b"source/shoq")
    with mock.patch("eventlog.engine.upkeep.findings._gather_former"):
        told = run("repair", log_copy, "--dry-run")
        assert told.exit_code == 1 and "nothing is lost" not in told.output
        dropped = repair(log_copy).dropped
    doubts = [what for what in dropped if "name may be wrong" in what]
    assert [name for name in ("'blicks'", "'nailer'", "'shoq'") if name in " ".join(doubts)] == [
        "'blicks'",
        "'nailer'",
        "'shoq'",
    ]
    with eventlog.open(log_copy) as log:
        assert log.stream("blicks").end and log.check() == []
        assert all(info.name not in ("mailer", "nailer") for info in log.consumers())


@pytest.mark.parametrize("stream", ["clicks", "empty", "shop"])
def test_a_stream_whose_row_is_damaged_is_made_anew(
    log_copy: Path, known: Truth, stream: str
) -> None:
    with Engine.open(log_copy) as engine:
        flip(engine, "meta", b"stream/" + stream.encode())
    done = repair(log_copy)
    assert (done.lost, done.dropped) == ((), ())
    kind = known.streams[stream][0]
    assert f"the row of stream {stream!r}, as a stream of {kind}" in done.rebuilt
    now = require_rest(log_copy, known, done)
    assert now[1:] == known[1:]


def test_streams_whose_names_are_gone_keep_their_records(log_copy: Path, known: Truth) -> None:
    with mock.patch("eventlog.engine.upkeep.findings._gather_former"):
        spoil(log_copy, *trees(log_copy)["meta"].leaves)
        done = repair(log_copy)
    now = truth(log_copy)
    assert done.lost == ()
    assert now.streams["recovered-1"] == known.streams["clicks"]
    assert now.streams["recovered-3"][0] == "captured"
    assert now.streams["recovered-3"][3] == known.streams["shop"][3]
    assert any("source of stream 'recovered-3'" in what for what in done.dropped)


def test_records_under_a_schema_version_that_is_gone_are_lost(log_copy: Path, known: Truth) -> None:
    with Engine.open(log_copy) as engine:
        flip(engine, "schema", struct.pack(">II", 3, 0))
    done = repair(log_copy)
    assert done.dropped == ("schema version 0 of stream 'shop': its row is damaged",)
    assert {gone.why for gone in done.lost} == {
        "schema version 0, under which they were written, is gone"
    }
    now = require_rest(log_copy, known, done)
    assert now.schemas["shop"] == known.schemas["shop"][1:]
    with eventlog.open(log_copy) as log:
        users = [c for c in log.stream("shop").read() if c.table == "public.users"]
        assert users and all(change.row["name"] == "u" for change in users)


def test_a_source_whose_state_is_gone_must_be_captured_anew(log_copy: Path, known: Truth) -> None:
    with Engine.open(log_copy) as engine:
        flip(engine, "meta", b"source/shop")
    done = repair(log_copy)
    assert done.dropped == (
        "the state of the source of stream 'shop': capture it anew, under another name",
    )
    now = require_rest(log_copy, known, done)
    assert now.sources["shop"] is None


BEYOND = {
    "positions go back": (DamagedLog, "would leave a log that is not sound"),
    "another format": (LogVersionError, "has format 2"),
}


@pytest.mark.parametrize("name", sorted(DAMAGES.keys() - BEYOND.keys()))
def test_whatever_the_check_names_is_mended(log_dir: Path, name: str) -> None:
    with make.frozen(), Engine.open(log_dir, create=True) as engine:
        make.write(engine)
        DAMAGES[name][0](engine)
    done = repair(log_dir)
    assert not done.sound
    with eventlog.open(log_dir) as log:
        assert log.check() == []
        assert log.engine.owners() == []
    assert repair(log_dir).sound


@pytest.mark.parametrize("name", sorted(BEYOND))
def test_what_cannot_be_mended_is_left_alone(log_dir: Path, name: str) -> None:
    error, message = BEYOND[name]
    with make.frozen(), Engine.open(log_dir, create=True) as engine:
        make.write(engine)
        DAMAGES[name][0](engine)
    before = (log_dir / "data.mdb").read_bytes()
    with pytest.raises(error, match=message):
        repair(log_dir)
    assert (log_dir / "data.mdb").read_bytes() == before
    assert [path.name for path in log_dir.glob("data.mdb*")] == ["data.mdb"]
    assert list((log_dir / "derived").iterdir()) == []


def test_what_a_newer_version_wrote_is_left_alone(log_dir: Path) -> None:
    with Engine.open(log_dir, create=True) as engine:
        engine.create_stream("clicks", "events")
        flip(engine, "meta", b"stream/clicks")
        with engine.store.write() as txn:
            found = rows.read_map(engine.store, txn, rows.FORMAT_KEY) or {}
            newer = {**found, "must_know": [*found["must_know"], "leases"]}
            rows.write_map(engine.store, txn, rows.FORMAT_KEY, newer)
    for main in trees(log_dir)["(main)"].leaves:
        with pytest.raises(LogVersionError, match="leases"):
            repair(log_dir)
        spoil(log_dir, main)  # Now LMDB cannot say so.
    before = (log_dir / "data.mdb").read_bytes()
    with pytest.raises(LogVersionError, match=r"a newer version wrote this log.* leases"):
        repair(log_dir)
    assert (log_dir / "data.mdb").read_bytes() == before


def test_a_log_of_the_first_version_is_repaired_and_brought_up(log_dir: Path) -> None:
    log_dir.mkdir()
    data = bytearray(make.FIRST_DATA.read_bytes())
    data[data.rindex(b"\x92\xa18\x93\x01\x02\x03")] ^= 1  # Offset 3 of `clicks`.
    (log_dir / "data.mdb").write_bytes(data)
    spoil(log_dir, *trees(log_dir)["(main)"].leaves)
    done = repair(log_dir)
    assert lost(done) == [("clicks", 3, 4)] and done.dropped == ()
    now = truth(log_dir)
    assert now.streams["clicks"][1:3] == (0, 4) and now.streams["shop"][1:3] == (0, 4)
    assert now.consumers == {("clicks", "reader", 2, 1)}
    assert now.identity["id"] == make.LOG_ID.bytes
    assert now.sources["shop"] == {"kind": "postgres", "position": 0x16_B374_D900}
    with Engine.open(log_dir) as engine:
        assert engine.stream("shop").more == {"note": "kept"}
        assert (engine.stream("shop").schemas, engine.stream("shop").sources) == (2, 1)


def test_flipped_bits_are_mended_or_harmless_and_never_a_wrong_value(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    source = tmp_path / "source"
    with make.frozen(), Engine.open(source, create=True) as engine:
        make.write(engine)
        with engine.store.write() as txn:  # A newest meta page whose loss costs nothing.
            rows.write_map(engine.store, txn, b"later", {})
    data = (source / "data.mdb").read_bytes()
    known = truth(source)
    mended = 0
    for number in range(120):
        directory = tmp_path / str(number)
        directory.mkdir()
        flipped = bytearray(data)
        at = chance.randrange(len(data))
        flipped[at] ^= 1 << chance.randrange(8)
        (directory / "data.mdb").write_bytes(flipped)
        done = repair(directory)
        mended += not done.sound
        require_rest(directory, known, done)
        shutil.rmtree(directory)
    assert mended


# Safe at any moment


def test_a_sound_log_is_left_alone(log_copy: Path) -> None:
    with eventlog.open(log_copy):
        before = (log_copy / "data.mdb").read_bytes()
    for dry_run in (True, False):
        assert repair(log_copy, dry_run=dry_run) == Repaired()
    assert (log_copy / "data.mdb").read_bytes() == before
    assert sorted(path.name for path in log_copy.glob("data.mdb*")) == ["data.mdb"]


def flip_a_payload(directory: Path) -> tuple[int, int]:
    hit = entries(directory, "clicks")[1]
    with Engine.open(directory) as engine:
        flip(engine, "payload", payload_key(hit.payload_id))
    return hit.first_offset, hit.stop


def test_a_dry_run_tells_and_changes_nothing(log_copy: Path) -> None:
    start, stop = flip_a_payload(log_copy)
    before = (log_copy / "data.mdb").read_bytes()
    told = repair(log_copy, dry_run=True)
    assert lost(told) == [("clicks", start, stop)] and told.kept is None
    assert (log_copy / "data.mdb").read_bytes() == before
    done = repair(log_copy)
    assert replace(done, kept=None) == told
    assert done.kept is not None and done.kept.read_bytes() == before


REPAIR = """
import sys
from pathlib import Path
from eventlog.engine.upkeep.repair import repair
repair(Path(sys.argv[1]))
"""
STEPS = [name for name in failpoint.NAMES if name.startswith("repair.")]


@pytest.mark.parametrize("step", [*STEPS, "commit.before", "commit.after:2"])
def test_killed_at_any_step_the_log_is_the_damaged_one_or_the_repaired_one(
    log_copy: Path, known: Truth, step: str
) -> None:
    start, stop = flip_a_payload(log_copy)
    before = (log_copy / "data.mdb").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", REPAIR, str(log_copy)],
        env={**os.environ, failpoint.VARIABLE: step},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == failpoint.EXIT_CODE, done.stderr
    if step == "repair.renamed":
        require_rest(log_copy, known, replace(Repaired(), lost=lost_of("clicks", start, stop)))
    else:
        assert (log_copy / "data.mdb").read_bytes() == before
    after = repair(log_copy)
    assert after.sound == (step == "repair.renamed")
    assert list((log_copy / "derived").iterdir()) == []


def lost_of(stream: str, start: int, stop: int) -> tuple[Any, ...]:
    from eventlog.engine.upkeep.mending import LostRange

    return (LostRange(stream=stream, start=start, stop=stop, why=""),)


def test_without_room_it_does_not_begin(log_copy: Path) -> None:
    flip_a_payload(log_copy)
    before = (log_copy / "data.mdb").read_bytes()
    full = mock.Mock(f_bavail=100, f_frsize=4096)
    with (
        mock.patch("os.statvfs", return_value=full),
        pytest.raises(DiskFull, match=r"needs [\d,]+ bytes for the new file"),
    ):
        repair(log_copy)
    assert (log_copy / "data.mdb").read_bytes() == before
    assert not (log_copy / "derived" / "repairing").exists()
    assert repair(log_copy).lost


def test_an_open_log_is_refused_and_whoever_has_it_open_is_named(log_copy: Path) -> None:
    with eventlog.open(log_copy), pytest.raises(LogInUse, match=rf"process {os.getpid()}"):
        repair(log_copy)


# The commands


def run(command: str, directory: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, [command, "--log", str(directory), *options])


def test_the_command_names_what_is_lost_and_where_the_damaged_file_is(log_copy: Path) -> None:
    assert run("repair", log_copy).stdout == "the log is sound, and was left alone\n"
    start, stop = flip_a_payload(log_copy)
    tried = run("repair", log_copy, "--dry-run")
    line = f"stream 'clicks': offsets [{start}, {stop}) are lost: their payload is damaged"
    assert tried.exit_code == 1 and tried.stdout.startswith(line)
    assert tried.stdout.endswith("nothing was changed: this is what a repair would do\n")
    done = run("repair", log_copy, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["lost"] == [
        {
            "stream": "clicks",
            "start": start,
            "stop": stop,
            "why": "their payload is damaged: its checksum is wrong",
        }
    ]
    assert Path(found["kept"]).is_file() and not found["sound"]
    assert re.fullmatch(r"data\.mdb\.damaged-\d{8}-\d{6}", Path(found["kept"]).name)
    assert json.loads(run("repair", log_copy, "--json").stdout)["sound"]
    assert run("repair", log_copy, "--dry-run").exit_code == 0


def test_the_check_serves_a_log_that_cannot_be_opened(log_copy: Path) -> None:
    with Engine.open(log_copy) as engine:
        flip(engine, "meta", b"format")
    done = run("check", log_copy)
    assert done.exit_code == 1
    assert "store: opening: the checksum of the value under b'format' is wrong" in done.stdout
    assert "a repair rebuilds it: the row of the format" in done.stdout
    repair(log_copy)
    assert run("check", log_copy).stdout == "the log is sound\n"


@pytest.mark.parametrize("database", ["(main)", "(free)", "index", "payload", "meta"])
def test_the_check_names_broken_pages_and_hands_none_to_the_c_library(
    log_copy: Path, database: str
) -> None:
    tree = trees(log_copy)[database]
    spoil(log_copy, (tree.branches or tree.leaves)[0], b"\xff" * PAGE)
    with mock.patch("lmdb.open", side_effect=AssertionError("opened")):
        done = run("check", log_copy, "--json")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[0]["invariant"] == "store" and found[0]["where"] == "data.mdb"
    repair(log_copy)


def test_the_check_runs_beside_others_that_have_the_log_open(log_copy: Path) -> None:
    with eventlog.open(log_copy):
        assert run("check", log_copy).stdout == "the log is sound\n"


def test_a_loss_is_mended_for_snapshots_by_a_new_copy(log_copy: Path) -> None:
    hit = entries(log_copy, "shop")[4]
    with Engine.open(log_copy) as engine:
        flip(engine, "payload", payload_key(hit.payload_id))
    repair(log_copy)
    with eventlog.open(log_copy) as log:
        orders = copy_again(log)
        rows_ = log.snapshot("shop").table("orders").to_arrow()
        assert rows_.num_rows == 2 and orders.name == "orders"


def copy_again(log: eventlog.Log) -> Schema:
    """What a capture does that copies a table once more."""
    stored = dict(log.engine.schemas("shop"))[0]
    orders = Schema.from_map(0, stored)
    again = MadeSource(log, "shop")
    again._transactions = 10_000
    again.commit(
        control(Op.COPY_BEGIN, orders),
        *[copied(orders, n, "again") for n in range(2)],
        control(Op.COPY_END, orders),
    )
    again.close()
    return orders


def test_bodies_inside_entries_are_kept_and_lost_with_their_entries(log_dir: Path) -> None:
    with mock.patch.object(batch, "INLINE_BYTES_MAX", 1024):
        with Engine.open(log_dir, create=True) as engine:
            engine.create_stream("clicks", "events")
            for number in range(10):
                made = batch_of(2, [b"%d" % number], Transactions.one(time_us=number))
                engine.commit(Plan(appends=[Append(stream="clicks", batches=[made])]))
            flip(engine, "index", index.key(1, 4))
        done = repair(log_dir)
        assert [(gone.start, gone.stop) for gone in done.lost] == [(4, 5)]
        with Engine.open(log_dir) as engine:
            found: list[bytes] = []
            for stretch in engine.scan("clicks", 0, 10, lambda entry: True):
                assert stretch.payload is not None
                found += stretch.payload.records(stretch.readable_slots()[0])
            assert found == [b"%d" % number for number in range(10) if number != 4]
            assert check(engine) == []
            assert [entry.states is not None for entry in entries_of(engine)].count(True) == 1


def entries_of(engine: Engine) -> list[index.IndexEntry]:
    walk = engine.scan("clicks", *engine.bounds("clicks"), lambda entry: False)
    return [stretch.entry for stretch in walk]
