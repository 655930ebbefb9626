"""Pins: what a pinned manifest needs stays, through retention, backup, compaction and repair."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import eventlog
from eventlog.engine import pins, rows, upgrade
from eventlog.engine.pins import PinRow, fault
from eventlog.engine.sealed import seal
from eventlog.engine.upkeep.compact import compact
from eventlog.engine.upkeep.repair import repair
from eventlog.errors import (
    DamagedLog,
    EnvironmentFault,
    LogVersionError,
    OffsetOutOfRange,
    OffsetsDropped,
    UsageError,
)
from eventlog.snapshots.manifests.manifest import manifest_of
from tests.fix_log import INT, MadeSource, column, insert
from tests.fix_postgres import RunCli, assert_explained


def fill(log: eventlog.Log, *, batches: int = 6) -> eventlog.Stream:
    """Batches of two events, too large to be merged with others."""
    stream = log.stream("clicks", create=True)
    for number in range(batches):
        stream.append_many(["." * 150_000, f"{number}"], keys=[str(number), "same"])
    return stream


def pinned(log: eventlog.Log, path: Path, start: int, stop: int) -> str:
    log.snapshot({"clicks": (start, stop)}).save(path, pin=True)
    return pins.pins(log.engine.store)[-1].id


def must_know(log: eventlog.Log) -> list[str]:
    with log.engine.store.read() as txn:
        found = rows.read_map(log.engine.store, txn, rows.FORMAT_KEY)
    assert found is not None
    return list(found["must_know"])


def test_retention_stops_at_what_a_pin_needs_unless_forced(
    log: eventlog.Log, tmp_path: Path
) -> None:
    clicks = fill(log)
    path = tmp_path / "m.json"
    name = pinned(log, path, 4, 8)
    done = clicks.retain(below=6)
    assert (done.start, done.asked, done.pinned_by, done.held_by) == (4, 6, (name,), ())
    assert clicks.retain(below="end", dry_run=True).pinned_by == (name,)
    assert log.load_snapshot(path).verify()
    slow = clicks.consumer("slow", start="begin")
    both = clicks.retain(below=8)
    assert (both.start, both.held_by, both.pinned_by) == (4, ("slow",), (name,))
    slow.rewind(to="end")
    forced = clicks.retain(below=8, force=True)
    assert (forced.start, forced.pinned_by) == (8, ())
    assert not log.load_snapshot(path).verify()
    assert clicks.retain(below=10).start == 10, "what is gone holds nothing back"


def test_what_lies_outside_a_pin_goes(log: eventlog.Log, tmp_path: Path) -> None:
    clicks = fill(log)
    pinned(log, tmp_path / "a.json", 8, 10)
    assert clicks.retain(below=8).pinned_by == ()
    assert clicks.start == 8
    assert clicks.retain(below=9).pinned_by != ()
    pins.drop(log.engine.store, pins.pins(log.engine.store)[0].id)
    assert clicks.retain(below="end").start == 12


def test_a_pin_holds_the_manifest_and_its_exclusions(log: eventlog.Log, tmp_path: Path) -> None:
    clicks = fill(log, batches=2)
    log.stream("clicks-exclusions", create=True).append({"why": "asked"}, key="1")
    manifest = log.snapshot("clicks").save(tmp_path / "train.json", pin=True)
    (row,) = pins.pins(log.engine.store)
    assert (row.name, row.digest, row.id) == (
        "train.json",
        manifest.digest,
        manifest.digest[:16],
    )
    assert dict(row.ranges) == {"clicks": [0, 4], "clicks-exclusions": [0, 1]}
    assert manifest_of(row.manifest) == manifest
    assert log.stream("clicks-exclusions").retain(below="end").pinned_by == (row.id,)
    log.snapshot("clicks").save(tmp_path / "again.json", pin=True)
    (row,) = pins.pins(log.engine.store)
    assert row.name == "again.json", "the same manifest is one pin"
    assert clicks.retain(below="end").pinned_by == (row.id,)


def test_a_captured_stream_can_be_pinned(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    orders = shop.table("orders", column("id", INT, key=True))
    shop.commit(insert(orders, 1), insert(orders, 2))
    log.snapshot("shop").save(tmp_path / "m.json", pin=True)
    assert dict(pins.pins(log.engine.store)[0].ranges) == {"shop": [0, 2]}


def test_a_log_gets_the_feature_with_its_first_pin(log_dir: Path, tmp_path: Path) -> None:
    with eventlog.open(log_dir, create=True) as log:
        fill(log, batches=1)
        assert "pins" not in must_know(log) and pins.pins(log.engine.store) == []
        name = pinned(log, tmp_path / "m.json", 0, 2)
        assert "pins" in must_know(log)
        pins.drop(log.engine.store, name)
        assert pins.pins(log.engine.store) == []
    with (
        mock.patch("eventlog.engine.directory.KNOWN", frozenset(upgrade.FEATURES)),
        pytest.raises(LogVersionError, match="does not know: pins"),
    ):
        eventlog.open(log_dir)
    with eventlog.open(log_dir) as log:
        assert log.check() == []


def row_of(log: eventlog.Log, number: int = 0, **ranges: list[int]) -> PinRow:
    return PinRow(
        id=f"{number:016x}", name="m", digest="0" * 64, created_us=0, ranges=ranges, manifest=b"{}"
    )


def test_what_cannot_be_kept_is_not_pinned(log: eventlog.Log) -> None:
    clicks = fill(log)
    clicks.retain(below=4)
    store = log.engine.store
    with pytest.raises(OffsetsDropped, match="the first retained one is 4"):
        pins.put(store, row_of(log, clicks=[2, 6]))
    with pytest.raises(OffsetOutOfRange, match="ends at 12, below 13"):
        pins.put(store, row_of(log, clicks=[4, 13]))
    with (
        mock.patch.object(pins, "MANIFEST_BYTES_MAX", 1),
        pytest.raises(UsageError, match="cannot be pinned"),
    ):
        pins.put(store, row_of(log, clicks=[4, 6]))
    with mock.patch.object(pins, "PINS_MAX", 2):
        pins.put(store, row_of(log, 0, clicks=[4, 6]))
        pins.put(store, row_of(log, 1, clicks=[4, 6]))
        pins.put(store, row_of(log, 1, clicks=[4, 8]))
        with pytest.raises(UsageError, match="keeps no more"):
            pins.put(store, row_of(log, 2, clicks=[4, 6]))
    assert [list(row.ranges["clicks"]) for row in pins.pins(store)] == [[4, 6], [4, 8]]
    with pytest.raises(UsageError, match="no pin 'x'") as caught:
        pins.drop(store, "x")
    assert "0000000000000001" in caught.value.hint


def test_a_manifest_that_cannot_be_written_is_not_pinned(log: eventlog.Log, tmp_path: Path) -> None:
    fill(log, batches=1)
    with (
        mock.patch.object(os, "replace", side_effect=OSError(28, "No space left on device")),
        pytest.raises(EnvironmentFault),
    ):
        log.snapshot("clicks").save(tmp_path / "m.json", pin=True)
    assert pins.pins(log.engine.store) == []
    log.snapshot("clicks").save(tmp_path / "m.json", pin=True)
    with (
        mock.patch.object(os, "replace", side_effect=OSError(28, "No space left on device")),
        pytest.raises(EnvironmentFault),
    ):
        log.snapshot("clicks").save(tmp_path / "other.json", pin=True)
    assert len(pins.pins(log.engine.store)) == 1, "it was pinned before"


def test_backup_and_compaction_carry_pins(log_dir: Path, tmp_path: Path) -> None:
    with eventlog.open(log_dir, create=True) as log:
        clicks = fill(log)
        name = pinned(log, tmp_path / "m.json", 4, 8)
        clicks.retain(below=4)
        log.backup(tmp_path / "copy")
    compact(log_dir)
    for path in (log_dir, tmp_path / "copy"):
        with eventlog.open(path) as log:
            assert [row.id for row in pins.pins(log.engine.store)] == [name]
            assert log.stream("clicks").retain(below="end").pinned_by == (name,)
            assert log.load_snapshot(tmp_path / "m.json").verify()
            assert log.check() == []


def put_meta(log: eventlog.Log, key: bytes, value: bytes | None) -> None:
    store = log.engine.store
    with store.write() as txn:
        if value is None:
            txn.delete(key, db=store.meta)
        else:
            txn.put(key, value, db=store.meta)


def test_the_check_names_what_is_wrong_with_pins(log_dir: Path, tmp_path: Path) -> None:
    with eventlog.open(log_dir, create=True) as log:
        fill(log, batches=1)
        name = pinned(log, tmp_path / "m.json", 0, 2)
        key = pins.PIN_KEYS + name.encode()
        store = log.engine.store
        with store.read() as txn:
            value = bytes(txn.get(key, db=store.meta))
            stored = rows.read_map(store, txn, key)
        assert stored is not None and log.check() == []
        for other, what in (
            ({**stored, "id": "other"}, "names another pin"),
            ({**stored, "ranges": {"clicks": [3, 2]}}, "is no range"),
            ({**stored, "ranges": {"clicks": [0, 99]}}, "that are not there"),
            ({**stored, "manifest": None}, "has no manifest"),
        ):
            put_meta(log, key, seal(key, other))
            found = [str(violation) for violation in log.check()]
            assert len(found) in (1, 2) and what in found[0], found
        put_meta(log, key, value[:-1] + b"\0")
        assert {v.invariant for v in log.check()} == {"meta", "pins"}
        put_meta(log, key, None)
        assert [v.invariant for v in log.check()] == ["pins"]
        with pytest.raises(DamagedLog, match="1 manifests are pinned, and 0 pins are there"):
            log.stream("clicks").retain(below="end")
        put_meta(log, key, value)
        assert log.check() == []


def test_a_repair_keeps_the_pins_that_can_be_read(log_dir: Path, tmp_path: Path) -> None:
    with eventlog.open(log_dir, create=True) as log:
        fill(log)
        good = pinned(log, tmp_path / "a.json", 4, 8)
        bad = pinned(log, tmp_path / "b.json", 2, 6)
        key = pins.PIN_KEYS + bad.encode()
        with log.engine.store.read() as txn:
            value = bytes(txn.get(key, db=log.engine.store.meta))
        put_meta(log, key, value[:30] + b"\xff" + value[31:])
    done = repair(log_dir)
    assert any(f"pin {bad}" in what for what in done.dropped), done
    with eventlog.open(log_dir) as log:
        assert [row.id for row in pins.pins(log.engine.store)] == [good]
        assert "pins" in must_know(log)
        assert log.check() == []
        put_meta(log, pins.PIN_KEYS + good.encode(), None)
    done = repair(log_dir)
    assert any("pins that are gone: 1" in what for what in done.dropped), done
    with eventlog.open(log_dir) as log:
        assert pins.pins(log.engine.store) == [] and log.check() == []


def test_the_format_row_that_a_repair_makes_anew_names_pins(log_dir: Path, tmp_path: Path) -> None:
    with eventlog.open(log_dir, create=True) as log:
        fill(log, batches=1)
        name = pinned(log, tmp_path / "m.json", 0, 2)
        put_meta(log, rows.FORMAT_KEY, None)
    repair(log_dir)
    with eventlog.open(log_dir) as log:
        assert "pins" in must_know(log)
        assert [row.id for row in pins.pins(log.engine.store)] == [name]
        assert log.check() == []
    shutil.rmtree(log_dir)


def test_the_commands_list_drop_and_tell(
    log: eventlog.Log, tmp_path: Path, run_cli: RunCli
) -> None:
    fill(log)
    at = ("--log", str(log.path))
    name = pinned(log, tmp_path / "train.json", 4, 8)
    listed = run_cli("snapshot", "pins", *at)
    assert name in listed.stdout and "clicks [4, 8)" in listed.stdout
    told = json.loads(run_cli("snapshot", "pins", "--json", *at).stdout)
    assert (told["id"], told["streams"]) == (name, {"clicks": [4, 8]})
    held = run_cli("retain", "clicks", "--below", "end", *at)
    assert f"kept for pinned snapshots {name}: up to 12" in held.stdout
    assert log.stream("clicks").start == 4
    assert json.loads(run_cli("retain", "clicks", "--below", "end", "--json", *at).stdout)[
        "pinned_by"
    ] == [name]
    gone = run_cli("snapshot", "pins", "--drop", name, *at)
    assert gone.stdout == f"train.json ({name}) is pinned no more\n"
    assert_explained(run_cli("snapshot", "pins", "--drop", name, *at))
    assert run_cli("retain", "clicks", "--below", "end", *at).returncode == 0
    assert log.stream("clicks").start == 12


@pytest.mark.parametrize("pair", [[None, 3], ["0", "3"], [0, True], [0.0, 1], [3, 0], [1], None])
def test_a_pin_without_a_range_is_a_fault_and_no_failure(pair: Any) -> None:
    whole = {"id": "ab", "name": "n", "digest": "d", "manifest": b"m", "created_us": 1}
    assert fault(b"pin/ab", {**whole, "ranges": {"clicks": [0, 3]}}) is None
    assert "is no range" in str(fault(b"pin/ab", {**whole, "ranges": {"clicks": pair}}))
