"""The format on disk: golden files, the worked example, what is refused, what is finished."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest

from eventlog.engine import Append, Engine, Plan, Transactions, batch_of, check, directory, rows
from eventlog.engine.store import DATABASES
from eventlog.errors import DamagedLog, LogExists, LogUnreadable, LogVersionError, NotALog
from tests.fix_postgres import RunCli, assert_explained
from tests.golden import make

FORMAT_PAGE = Path(__file__).parents[1] / "docs" / "format.md"


def example_rows(page: str) -> make.Rows:
    """The keys and values of the page's hex block, without their explanations."""
    block = re.search(r"^```hex\n(.*?)^```", page, re.M | re.S)
    assert block is not None
    found: make.Rows = []
    database, key, value = "", b"", None
    for line in [*block[1].splitlines(), ""]:
        text = line.partition("#")[0].strip()
        if text in DATABASES:
            database = text
        elif not text and value is not None:
            found.append((database, key, value))
            key, value = b"", None
        elif text.startswith("="):
            value = bytes.fromhex(text[1:])
        elif value is None:
            key += bytes.fromhex(text)
        else:
            value += bytes.fromhex(text)
    return found


def test_the_worked_example_of_the_page_is_what_the_engine_writes(log_dir: Path) -> None:
    with make.frozen(), Engine.open(log_dir, create=True) as engine:
        make.write_example(engine)
        written = make.stored_rows(engine)
    assert example_rows(FORMAT_PAGE.read_text()) == written


def test_todays_code_writes_the_golden_rows(log_dir: Path) -> None:
    with make.frozen(), Engine.open(log_dir, create=True) as engine:
        make.write(engine)
        make.write_features(engine)
        written = make.stored_rows(engine)
        assert check(engine) == []
    assert make.uncompressed(written) == make.uncompressed(make.loaded(make.DUMP.read_text()))


@pytest.fixture(params=[make.FIRST_DATA, make.DATA], ids=["first", "heads"])
def golden(log_dir: Path, request: pytest.FixtureRequest) -> Path:
    log_dir.mkdir()
    shutil.copyfile(request.param, log_dir / "data.mdb")
    return log_dir


def test_todays_code_reads_what_every_feature_wrote(log_dir: Path) -> None:
    log_dir.mkdir()
    shutil.copyfile(make.DATA, log_dir / "data.mdb")
    with Engine.open(log_dir) as engine:
        assert make.dumped(make.stored_rows(engine)) == make.DUMP.read_text(), "nothing to upgrade"
        first, second = engine.scan("packed", 0, make.MANY + 2, lambda entry: True)
        assert first.payload is not None and second.payload is not None
        assert len(first.payload.records(range(make.MANY))) == make.MANY
        assert first.entry.raw_bytes > first.entry.body_bytes
        assert first.entry.transactions.time.tolist()[-1] == make.NOW_US + 39 * 7 - 3
        assert first.entry.transactions.position.tolist()[0] == 0x16_B374_D848
        assert second.payload.records([0, 1]) == [b"\x92\xc0\x01", b"\x92\xc0\x02"]
        assert engine.offset_of_id("packed", "req-81") == make.MANY
        assert engine.offset_of_id("packed", "req-82") is None


def test_a_log_of_the_first_version_is_upgraded_once_and_loses_nothing(log_dir: Path) -> None:
    log_dir.mkdir()
    shutil.copyfile(make.FIRST_DATA, log_dir / "data.mdb")
    before = {row[:2]: row[2] for row in make.loaded(make.FIRST_DUMP.read_text())}
    with Engine.open(log_dir) as engine:
        after = make.stored_rows(engine)
        changed = {key for name, key, value in after if before.get((name, key)) != value}
        assert changed == {b"format", b"stream/clicks", b"stream/shop", make.OWNER_KEY}
        clicks, shop = engine.streams()
        assert (clicks.start, clicks.end, clicks.consumers, clicks.tail) == (0, 4, 1, [])
        assert (shop.end, shop.schemas, shop.sources) == (4, 2, 1)
        assert check(engine) == []
    with Engine.open(log_dir) as engine:
        assert make.stored_rows(engine) == after


@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
def test_a_log_of_an_earlier_version_is_examined_and_stays_one(
    golden: Path, run_cli: RunCli, damaged: bool
) -> None:
    data = golden / "data.mdb"
    if damaged:
        data.write_bytes(data.read_bytes().replace(b"EVLB", b"EVLA"))
    before = data.read_bytes()
    for command in (["check"], ["repair", "--dry-run"]):
        done = run_cli(*command, "--log", str(golden))
        assert (done.returncode, done.stderr) == (int(damaged), ""), done
        assert data.read_bytes() == before
    if damaged:
        run_cli("repair", "--log", str(golden))


def test_todays_code_reads_the_golden_file(golden: Path) -> None:
    with Engine.open(golden) as engine:
        assert check(engine) == []
        assert engine.identity()["id"] == make.LOG_ID.bytes
        found = {row.name: (row.kind, row.more) for row in engine.streams()}
        assert found["clicks"] == ("events", {})
        assert found["shop"] == ("captured", {"note": "kept"})
        clicks = [
            stretch.payload.records(range(stretch.entry.slots))
            for stretch in engine.scan("clicks", 0, 4, lambda entry: True)
            if stretch.payload is not None
        ]
        assert clicks == make.CLICKS
        ((stream, name, row),) = engine.consumers()
        assert (stream, name, row.offset, row.epoch, row.filter) == (
            "clicks",
            "reader",
            2,
            1,
            "clicks",
        )
        first, second = [stretch.entry for stretch in engine.scan("shop", 0, 4, lambda entry: True)]
        assert first.readable_slots(0, 4) == ([0, 2], [0, 1]), "slot 1 dropped, slot 3 erased"
        assert first.more["name of a later version"] == [1, None]
        assert (first.stop, second.stop, second.transactions.back) == (3, 4, 2)
        assert [engine.transaction_start("shop", offset) for offset in range(5)] == [0, 1, 1, 1, 4]
        assert engine.source_state("shop") == {"kind": "postgres", "position": 0x16_B374_D900}
        assert [schema_id for schema_id, _ in engine.schemas("shop")] == [0, 1]
        assert [(row.kind, row.stream) for row in engine.owners()] == [("capture", 2)]


def test_a_golden_log_goes_on(golden: Path) -> None:
    with Engine.open(golden) as engine:
        writer = engine.writer("shop")
        assert writer.epoch == 2
        batch = batch_of(2, [b"more"], Transactions.one(time_us=make.NOW_US))
        done = engine.commit(Plan(appends=[Append(stream="clicks", batches=[batch])]))
        assert done.offsets == (range(4, 5),)
        writer.close()
        assert engine.owners() == [] and check(engine) == []


# What is refused


def change_format(engine: Engine, **changes: Any) -> None:
    store = engine.store
    with store.write() as txn:
        found = rows.read_map(store, txn, rows.FORMAT_KEY)
        assert found is not None
        rows.write_map(store, txn, rows.FORMAT_KEY, {**found, **changes})


def test_another_format_number_is_refused(log_dir: Path) -> None:
    with Engine.open(log_dir, create=True) as engine:
        change_format(engine, number=2)
    for create in (False, True):
        with pytest.raises(LogVersionError, match="has format 2, this version reads 1") as error:
            Engine.open(log_dir, create=create)
        assert error.value.hint


def test_an_unknown_feature_that_must_be_known_is_refused_by_name(log_dir: Path) -> None:
    with Engine.open(log_dir, create=True) as engine:
        change_format(engine, must_know=["tiers", "leases"])
    with pytest.raises(LogVersionError, match=r"does not know: leases, tiers$"):
        Engine.open(log_dir)


def test_an_unknown_feature_that_may_be_ignored_is_passed_over_and_kept(log_dir: Path) -> None:
    with Engine.open(log_dir, create=True) as engine:
        change_format(engine, may_ignore=["pins"], later={"a": 1})
        engine.store._env.open_db(b"pin")
    with Engine.open(log_dir, create=True) as engine:
        engine.create_stream("clicks", "events")
        found = directory.check_format(engine.store, log_dir)
        assert (found["may_ignore"], found["later"]) == (["pins"], {"a": 1})
        assert check(engine) == []


def test_a_damaged_format_row_is_damage(log_dir: Path) -> None:
    with Engine.open(log_dir, create=True) as engine, engine.store.write() as txn:
        stored = txn.get(rows.FORMAT_KEY, db=engine.store.meta)
        txn.put(rows.FORMAT_KEY, stored[:-1] + b"\x91", db=engine.store.meta)
    with pytest.raises(DamagedLog, match="format"):
        Engine.open(log_dir)


@pytest.mark.parametrize("make_it", [lambda path: None, Path.mkdir, Path.touch])
def test_what_is_no_log_is_said_so_and_left_alone(log_dir: Path, make_it: Any) -> None:
    make_it(log_dir)
    with pytest.raises(NotALog, match="holds no event log") as error:
        Engine.open(log_dir)
    assert "--log" in error.value.hint
    assert not log_dir.is_dir() or list(log_dir.iterdir()) == []


def test_a_directory_of_other_things_is_not_made_a_log(log_dir: Path) -> None:
    log_dir.mkdir()
    (log_dir / "thesis.tex").touch()
    with pytest.raises(LogExists, match=r"there is 'thesis.tex'"):
        Engine.open(log_dir, create=True)
    assert [path.name for path in log_dir.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused(log_dir: Path) -> None:
    log_dir.touch()
    with pytest.raises(LogUnreadable, match="cannot make the log directory"):
        Engine.open(log_dir, create=True)


@pytest.mark.parametrize("content", [b"x", b"\0" * 8192, b"SQLite format 3\0" * 1000])
@pytest.mark.parametrize("create", [False, True])
def test_a_data_file_of_another_program_is_refused(
    log_dir: Path, content: bytes, create: bool
) -> None:
    log_dir.mkdir()
    (log_dir / "data.mdb").write_bytes(content)
    with pytest.raises(NotALog, match=r"data\.mdb that is no LMDB file"):
        Engine.open(log_dir, create=create)
    assert (log_dir / "data.mdb").read_bytes() == content


@pytest.mark.parametrize("create", [False, True])
def test_an_environment_of_another_program_is_refused(log_dir: Path, create: bool) -> None:
    with lmdb.open(str(log_dir), max_dbs=3, lib_version=0) as other, other.begin(write=True) as txn:
        txn.put(b"answer", b"42")
    with pytest.raises(NotALog, match="no event log"):
        Engine.open(log_dir, create=create)
    with lmdb.open(str(log_dir), max_dbs=3) as other, other.begin() as txn:
        assert list(txn.cursor()) == [(b"answer", b"42")]


# What was cut off is finished


def cut_before_any_byte(path: Path) -> None:
    (path / "data.mdb").touch()
    (path / "lock.mdb").touch()


def cut_before_the_environment(path: Path) -> None:
    (path / "locks").mkdir()


def cut_after_databases(count: int) -> Any:
    def cut(path: Path) -> None:
        with lmdb.open(str(path), max_dbs=9, lib_version=0) as env:
            for name in DATABASES[:count]:
                env.open_db(name.encode())

    return cut


CUTS = [
    cut_before_any_byte,
    cut_before_the_environment,
    *[cut_after_databases(count) for count in (0, 1, 5, 6)],
]


@pytest.mark.parametrize("cut", CUTS)
def test_an_interrupted_creation_is_finished(log_dir: Path, cut: Any) -> None:
    log_dir.mkdir()
    cut(log_dir)
    before = sorted(path.name for path in log_dir.iterdir())
    with pytest.raises(NotALog):
        Engine.open(log_dir)
    assert before[0] in [path.name for path in log_dir.iterdir()]
    with Engine.open(log_dir, create=True) as engine:
        engine.create_stream("clicks", "events")
        assert engine.store._env.lib_version()[0] == 0
        assert check(engine) == []


def test_everything_is_private_to_its_owner(log_dir: Path) -> None:
    with Engine.open(log_dir, create=True) as engine:
        engine.create_stream("shop", "captured")
        writer = engine.writer("shop")
        modes = {path.name: path.stat().st_mode & 0o777 for path in log_dir.rglob("*")}
        writer.close()
    folders = dict.fromkeys(["locks", "blobs", "derived"], 0o700)
    files = ["data.mdb", "lock.mdb", "open.lock", "stream-1.lock", "owner-1.lock"]
    assert modes == folders | dict.fromkeys(files, 0o600)
    assert log_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size", [None, 0])
@pytest.mark.parametrize("left", ["all", "blobs/" + "0" * 64, "locks/stream-1.lock"])
def test_a_log_whose_data_file_is_gone_does_not_begin_anew(
    log_dir: Path, run_cli: RunCli, size: int | None, left: str
) -> None:
    if left == "all":
        with Engine.open(log_dir, create=True):
            pass
        (log_dir / "data.mdb").unlink()
    else:
        (log_dir / left).parent.mkdir(parents=True)
        (log_dir / left).touch()
    if size is not None:
        (log_dir / "data.mdb").touch()
    with pytest.raises(LogExists, match=r"the data file of .* is gone") as caught:
        Engine.open(log_dir, create=True)
    assert "restore it from a backup" in caught.value.hint
    with pytest.raises(NotALog, match="is gone"):
        Engine.open(log_dir)
    done = run_cli("append", "clicks", "--create", "--log", str(log_dir), input="1\n")
    assert_explained(done)
    assert not (log_dir / "data.mdb").exists() or not (log_dir / "data.mdb").stat().st_size


def test_where_no_log_is_the_ways_to_make_one_are_named(log_dir: Path) -> None:
    with pytest.raises(NotALog) as caught:
        Engine.open(log_dir)
    assert "eventlog.open(..., create=True)" in caught.value.hint
