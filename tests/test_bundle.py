"""Bundles: a snapshot in one folder, which is used and proven without its log."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from pyarrow import parquet

import eventlog
from eventlog.errors import (
    BadManifest,
    EnvironmentFault,
    LogExists,
    UnknownColumn,
    UsageError,
    ValueDoesNotFit,
)
from eventlog.snapshots.manifests.bundle import file_name, write_bundle
from eventlog.snapshots.manifests.opened_bundle import Bundle
from tests.fix_log import INT, NUMERIC, MadeSource, column, insert, update
from tests.fix_postgres import RunCli, assert_explained
from tests.golden import make_bundle
from tests.test_manifests import Doubled

KEYED = (column("id", INT, key=True), column("n", INT), column("note"))


@pytest.fixture
def saved(log: eventlog.Log, tmp_path: Path) -> Any:
    make_bundle.write(log)
    make_bundle.save(log, tmp_path / "m.json")
    return log.load_snapshot(tmp_path / "m.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_golden_bundle_is_proven_and_read() -> None:
    bundle = eventlog.open_bundle(make_bundle.BUNDLE)
    found = bundle.verify()
    assert (found.equal, found.reasons, found.rows) == (True, [], 7)
    assert bundle.tables == ["shop.public.orders", 'shop.public."Odd ""name"""', "clicks"]
    rows = bundle.table("orders").to_pylist()
    assert [(row["_offset"], row["id"], row["note"]) for row in rows] == [
        (1, 2, None),
        (5, 1, "Ünïcode ✓"),
    ]
    assert bundle.table("clicks", columns=["value"]).column("value").to_pylist() == [
        '"text"',
        "true",
        '{"user": 8}',
    ]
    with pytest.raises(UnknownColumn, match="no column 'nothing'"):
        bundle.table("orders", columns=["nothing"])
    with pytest.raises(UsageError, match="no output"):
        bundle.output()


def test_a_bundle_holds_what_the_snapshot_holds(saved: Any, folder: Path) -> None:
    told: list[tuple[int, int]] = []
    done = write_bundle(saved, folder, progress=lambda *step: told.append(step))
    assert (done.tables, done.rows, done.unfit) == (3, 7, {})
    assert done.bytes == sum((folder / name).stat().st_size for name in names(folder))
    assert names(folder) == names(make_bundle.BUNDLE)
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"], "nothing is left beside it"
    modes = {stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()}
    assert modes == {0o600} and stat.S_IMODE(folder.stat().st_mode) == 0o700
    bundle = eventlog.open_bundle(folder)
    assert bundle.verify()
    for name in saved.tables:
        typed, expected = bundle.table(name), saved.table(name).to_arrow(offsets=True)
        assert typed.schema == expected.schema
        assert repr(typed.to_pylist()) == repr(expected.to_pylist()), name
    assert bundle.manifest == saved.manifest


def test_tables_of_many_pieces_and_of_none(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path, folder: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    empty = shop.table("empty", column("id", INT, key=True), relation=16_500)
    for start in range(0, 600, 100):
        shop.commit(*(insert(orders, i, i, f"n{i}") for i in range(start, start + 100)))
    shop.commit(insert(empty, 1))
    shop.commit(update(orders, 5, 55, "new"))
    log.snapshot({"shop": (0, 600)}).save(tmp_path / "m.json", tables=["orders"])
    log.snapshot({"shop": (601, 602)}).save(tmp_path / "e.json")
    with mock.patch("eventlog.snapshots.manifests.stored_rows.BATCH_ROWS", 64):
        write_bundle(log.load_snapshot(tmp_path / "m.json"), folder)
    assert eventlog.open_bundle(folder).verify().rows == 600
    write_bundle(log.load_snapshot(tmp_path / "e.json"), folder.with_name("e"))
    bundle = eventlog.open_bundle(folder.with_name("e"))
    assert bundle.verify().rows == 1
    assert bundle.table("empty").num_rows == 0 and bundle.table("empty").column_names[1:] == ["id"]


@pytest.mark.parametrize("name", names(make_bundle.BUNDLE))
def test_any_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    for place in (0, 9, -30, -1):
        folder = copied(tmp_path / f"b{place}")
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)
        try:
            found = eventlog.open_bundle(folder).verify()
        except BadManifest:
            assert name == "manifest.json"
        else:
            assert not found and found.reasons, place


@pytest.mark.parametrize("name", names(make_bundle.BUNDLE))
def test_a_file_that_is_gone_or_cut_is_named(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path / "gone")
    (folder / name).unlink()
    if name in ("manifest.json", "SHA256SUMS"):
        with pytest.raises(BadManifest):
            eventlog.open_bundle(folder)
    else:
        assert any(name in why for why in eventlog.open_bundle(folder).verify().reasons)
    folder = copied(tmp_path / "cut")
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    if name == "manifest.json":
        with pytest.raises(BadManifest):
            eventlog.open_bundle(folder)
    elif name != "SHA256SUMS":
        changed = f"{name} was changed: its checksum is another"
        found = eventlog.open_bundle(folder).verify()
        assert not found and found.reasons == [changed], "once, and not by its whole path, too"
        assert found.rows < 7
    else:
        assert not eventlog.open_bundle(folder).verify()


def copied(target: Path) -> Path:
    for name in names(make_bundle.BUNDLE):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((make_bundle.BUNDLE / name).read_bytes())
    return target


def rewritten(folder: Path, name: str, table: pa.Table) -> list[str]:
    """The reasons once a file was written anew, its checksum with it."""
    parquet.write_table(table, folder / name)
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    digest = subprocess.run(["sha256sum", name], cwd=folder, capture_output=True, text=True)
    kept = [line for line in sums if not line.endswith(f"  {name}")]
    (folder / "SHA256SUMS").write_text("\n".join([*kept, digest.stdout.strip()]) + "\n")
    return eventlog.open_bundle(folder).verify().reasons


def test_files_with_new_checksums_are_held_against_the_manifest(tmp_path: Path) -> None:
    name = file_name("shop.public.orders")
    texts = parquet.read_table(make_bundle.BUNDLE / "texts" / name)
    folder = copied(tmp_path / "same")
    assert rewritten(folder, f"texts/{name}", texts) == [], "its bytes as a file do not matter"
    folder = copied(tmp_path / "fewer")
    assert rewritten(folder, f"texts/{name}", texts.slice(1)) == [
        "table shop.public.orders: it has 1 row, and the manifest 2"
    ]
    folder = copied(tmp_path / "other")
    changed = texts.set_column(2, "c1", pa.array([b"9.99", b"13.00"], pa.large_binary()))
    assert rewritten(folder, f"texts/{name}", changed) == [
        "table shop.public.orders: it differs in column amount"
    ]
    folder = copied(tmp_path / "typed")
    typed = parquet.read_table(folder / name)
    assert "has 1 row," in rewritten(folder, name, typed.slice(1))[0]
    moved = typed.set_column(0, "_offset", pa.array([1, 6]))
    assert "their offsets differ" in rewritten(copied(tmp_path / "moved"), name, moved)[0]
    folder = copied(tmp_path / "columns")
    assert "other columns" in rewritten(folder, f"texts/{name}", texts.drop_columns(["c1"]))[0]


def test_sums_that_name_other_files_are_noticed(tmp_path: Path) -> None:
    folder = copied(tmp_path / "b")
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines()
    sums.write_text("\n".join([*lines[1:], "0" * 64 + "  ../../etc/passwd", "nonsense"]) + "\n")
    reasons = eventlog.open_bundle(folder).verify().reasons
    assert len(reasons) == 3, reasons


def test_sha256sum_agrees(saved: Any, folder: Path) -> None:
    write_bundle(saved, folder)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert done.returncode == 0, done


def test_what_is_in_the_way_is_left_alone(saved: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "mine").write_text("precious")
    with pytest.raises(LogExists, match="holds something"):
        write_bundle(saved, folder)
    (folder / "mine").unlink()
    write_bundle(saved, folder)
    with pytest.raises(LogExists):
        write_bundle(saved, folder)
    with pytest.raises(LogExists):
        write_bundle(saved, folder / "manifest.json")


def test_a_failure_leaves_nothing(saved: Any, folder: Path) -> None:
    with (
        mock.patch.object(os, "fsync", side_effect=OSError(28, "No space left on device")),
        pytest.raises(EnvironmentFault, match="No space left"),
    ):
        write_bundle(saved, folder)
    assert not folder.parent.exists(), "what was made above it goes, too"


def test_rows_that_are_not_the_manifests_make_no_bundle(
    log: eventlog.Log, tmp_path: Path, folder: Path
) -> None:
    clicks = log.stream("clicks", create=True)
    clicks.append_many(["a" * 300_000, "b"], keys=["1", "2"])
    clicks.append_many(["c" * 300_000], keys=["1"])
    log.snapshot("clicks").save(tmp_path / "m.json")
    clicks.retain(below=2)
    with pytest.raises(UsageError, match="is not what was saved any more"):
        write_bundle(log.load_snapshot(tmp_path / "m.json"), folder)
    assert not folder.parent.exists()


def test_values_that_do_not_fit_are_refused_cast_or_counted(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path, folder: Path
) -> None:
    table = shop.table("t", column("id", INT, key=True), column("n", NUMERIC))
    shop.commit(insert(table, 1, "NaN"), insert(table, 2, "1.5"))
    log.snapshot("shop").save(tmp_path / "m.json")
    saved = log.load_snapshot(tmp_path / "m.json")
    with pytest.raises(ValueDoesNotFit):
        write_bundle(saved, folder)
    done = write_bundle(saved, folder, unfit="null")
    assert done.unfit == {"shop.public.t.n": 1}
    other = folder.with_name("cast")
    write_bundle(saved, other, cast={"n": "text"})
    bundle = eventlog.open_bundle(other)
    assert bundle.verify() and bundle.table("t").column("n").to_pylist() == ["NaN", "1.5"]


def test_what_a_transform_made_is_proven_without_it(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path, folder: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, None, None))
    log.snapshot("shop").save(tmp_path / "m.json", transform=Doubled())
    saved = log.load_snapshot(tmp_path / "m.json")
    with pytest.raises(UsageError, match="went through transform 'doubled'"):
        write_bundle(saved, folder)
    write_bundle(saved, folder, transform=Doubled())
    bundle = eventlog.open_bundle(folder / "manifest.json")
    assert bundle.verify()
    assert bundle.output().to_pylist() == [
        {"_offset": 0, "twice": 20, "note": "a"},
        {"_offset": 1, "twice": None, "note": None},
    ]
    name = f"output/{file_name('shop.public.orders')}"
    made = parquet.read_table(folder / name)
    other = made.set_column(1, "twice", pa.array([20, 1], made.schema.field(1).type))
    assert rewritten(folder, name, other) == [f"{name}: it differs in column twice"]


def test_names_of_files_are_safe_and_differ() -> None:
    odd = ['a."/../etc"', 'a."é"', "a." + "x" * 300, "a." + "x" * 301, "shop.public.orders"]
    found = [file_name(name) for name in odd]
    assert found[0] == "a.%22%2F..%2Fetc%22.parquet" and found[-1] == "shop.public.orders.parquet"
    assert len(set(found)) == len(odd) and max(map(len, found)) <= 240


READS = """
import sys
import eventlog
bundle = eventlog.open_bundle(sys.argv[1])
print(bundle.verify().rows, bundle.table("orders").num_rows)
"""


def test_a_bundle_needs_no_log(tmp_path: Path, run_cli: RunCli) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READS, str(make_bundle.BUNDLE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "7 2\n", done.stderr
    for path in (make_bundle.BUNDLE, make_bundle.BUNDLE / "manifest.json"):
        found = run_cli("snapshot", "verify", str(path), "--log", str(tmp_path / "nothing"))
        assert (found.returncode, found.stdout) == (0, "equal: 7 rows proven\n")
    with pytest.raises(BadManifest, match="is no bundle"):
        eventlog.open_bundle(tmp_path)
    assert isinstance(eventlog.open_bundle(make_bundle.BUNDLE), Bundle)


def test_the_command_makes_and_proves_one(saved: Any, run_cli: RunCli, folder: Path) -> None:
    manifest = str(folder.parents[1] / "m.json")
    at = ("--log", str(make_log(saved)))
    done = run_cli("snapshot", "bundle", manifest, "--out", str(folder), "--json", *at)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 7
    assert_explained(run_cli("snapshot", "bundle", manifest, "--out", str(folder), *at))
    (folder / "texts" / "clicks.parquet").unlink()
    found = run_cli("snapshot", "verify", str(folder), "--json")
    assert found.returncode == 1
    assert "texts/clicks.parquet" in json.loads(found.stdout)["reasons"][0]


def make_log(saved: Any) -> Path:
    path: Path = saved._engine.path
    return path
