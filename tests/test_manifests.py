"""Manifests: a snapshot written down, made again and proven equal, or what differs and why."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import eventlog
from eventlog.changes.change import Op
from eventlog.changes.change_view import source_codec
from eventlog.engine.upkeep.compact import compact
from eventlog.errors import (
    BadManifest,
    EnvironmentFault,
    SnapshotRefused,
    UnknownTable,
    UsageError,
    ValueDoesNotFit,
)
from eventlog.snapshots.manifests.manifest import manifest_of, read_manifest
from eventlog.snapshots.manifests.saved import Saved
from eventlog.snapshots.manifests.verification import Verification
from eventlog.snapshots.state.checkpoint_folder import CheckpointFolder
from eventlog.snapshots.table import Table
from tests.digest_oracle import digest_of
from tests.fix_log import (
    INT,
    NUMERIC,
    MadeSource,
    bodies_apart,
    column,
    control,
    delete,
    insert,
    truncate,
    update,
)
from tests.fix_postgres import RunCli, assert_explained
from tests.golden import make_bundle
from tests.golden.make import frozen

KEYED = (column("id", INT, key=True), column("n", INT), column("note"))
NAMES = [("id", "23/-1"), ("n", "23/-1"), ("note", "25/-1")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.json"


@pytest.fixture
def filled(log: eventlog.Log, shop: MadeSource) -> eventlog.Log:
    """Five offsets of orders, and four clicks."""
    orders = shop.table("orders", *KEYED)
    shop.commit(insert(orders, 1, 10, "a"), insert(orders, 2, None, "b"), insert(orders, 3, 3, ""))
    shop.commit(update(orders, 1, 11, "A"), delete(orders, 3, None, None))
    clicks = log.stream("clicks", create=True)
    clicks.append_many([{"n": 1}, "x", {"n": 2}, 5], keys=["7", "8", "7", None])
    return log


class Doubled:
    """A transform as helpers bring them."""

    name = "doubled"
    version = 2
    digest = "ab" * 32
    factor = 2

    def apply(self, rows: pa.Table) -> pa.Table:
        found = pc.multiply(rows.column("n"), self.factor)
        return pa.table({"twice": found, "note": rows.column("note")})


def verified(log: eventlog.Log, path: Path, **options: Any) -> Verification:
    return log.load_snapshot(path).verify(**options)


# Saving


def test_what_is_saved_is_proven_whatever_comes_later(
    filled: eventlog.Log, shop: MadeSource, path: Path
) -> None:
    manifest = filled.snapshot(["shop", "clicks"]).save(path)
    assert [table.name for table in manifest.tables] == ["shop.public.orders", "clicks"]
    stored = manifest.tables[0].stored
    rows = [(1, [b"2", None, b"b"]), (3, [b"1", b"11", b"A"])]
    assert (stored.rows, stored.bytes, stored.digest) == (2, 6, digest_of(NAMES, rows))
    assert [column.type for column in stored.columns] == ["integer", "integer", "text"]
    orders = shop.table("orders", *KEYED, column("late"))
    shop.commit(insert(orders, 9, 9, "z", "l"), truncate(orders))
    filled.stream("clicks").append("later", key="7")
    found = verified(filled, path)
    assert (found.equal, found.reasons, found.rows) == (True, [], 5)
    saved = filled.load_snapshot(path)
    assert saved.manifest == manifest and saved.tables == ["shop.public.orders", "clicks"]
    assert saved.snapshot.stops == {"shop": 5, "clicks": 4}
    assert saved.table("orders").to_arrow().column("note").to_pylist() == ["b", "A"]
    assert saved.table("clicks").num_rows == 3
    with pytest.raises(UnknownTable, match="0 tables 'parts'"):
        saved.table("parts")


def test_events_are_digested_as_they_are_stored(filled: eventlog.Log, path: Path) -> None:
    manifest = filled.snapshot("clicks").save(path)
    times = {event.offset: event.time for event in filled.stream("clicks").read()}
    micro = {at: int(time.timestamp() * 10**6 + 0.5) for at, time in times.items()}
    rows = [
        (1, [micro[1].to_bytes(8, "little"), b"8", b"\xa1x"]),
        (2, [micro[2].to_bytes(8, "little"), b"7", b"\x81\xa1n\x02"]),
        (3, [micro[3].to_bytes(8, "little"), None, b"\x05"]),
    ]
    columns = [("_time", "int64"), ("key", "text"), ("value", "msgpack")]
    assert manifest.tables[0].stored.digest == digest_of(columns, rows)


@pytest.mark.parametrize("size", [1, 31, 32, 255, 256, 70_000])
def test_keys_of_any_length_are_taken_out_of_events(
    log: eventlog.Log, path: Path, size: int
) -> None:
    log.stream("clicks", create=True).append("v", key="k" * size)
    table = log.snapshot("clicks").save(path).tables[0].stored
    assert table.bytes == 8 + size + 2
    assert verified(log, path)


def test_the_time_of_saving_is_no_part_of_what_is_equal(
    filled: eventlog.Log, path: Path, tmp_path: Path
) -> None:
    first = filled.snapshot("shop").save(path)
    with mock.patch("eventlog.snapshots.manifests.saving.datetime") as clock:
        clock.now.return_value.isoformat.return_value = "2031-01-01T00:00:00+00:00"
        second = filled.snapshot("shop").save(tmp_path / "again.json")
    assert first == second and first.digest == second.digest
    assert first.created != second.created
    assert filled.snapshot("shop", at=3).save(path) != first


def test_the_file_is_private_and_whole_or_not_there(filled: eventlog.Log, path: Path) -> None:
    filled.snapshot("shop").save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with (
        mock.patch.object(os, "replace", side_effect=OSError(28, "No space left on device")),
        pytest.raises(EnvironmentFault, match="cannot be written: No space left"),
    ):
        filled.snapshot("shop", at=3).save(path, pin=True)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob(".*")] == []
    with pytest.raises(EnvironmentFault, match="Not a directory"):
        filled.snapshot("shop").save(path / "in" / "m.json")
    filled.snapshot("shop").save(path.parent / "made" / "for it" / "m.json")
    with (
        mock.patch.object(os, "replace", side_effect=OSError(28, "No space left on device")),
        pytest.raises(EnvironmentFault),
    ):
        filled.snapshot("shop").save(path.parent / "not" / "for it" / "m.json")
    assert not (path.parent / "not").exists(), "folders made for nothing go again"


def test_columns_and_ways_of_reading_are_part_of_it(
    filled: eventlog.Log, shop: MadeSource, path: Path
) -> None:
    heap = shop.table("heap", column("a"), relation=16_500, identity="n", inserts_only=True)
    shop.commit(insert(heap, "x"), insert(heap, "x"))
    with pytest.raises(SnapshotRefused, match="no replica identity"):
        filled.snapshot("shop").save(path)
    manifest = filled.snapshot("shop").save(path, tables=["heap"], as_inserts=True)
    assert (manifest.tables[0].as_inserts, manifest.tables[0].stored.rows) == (True, 2)
    assert verified(filled, path)
    chosen = filled.snapshot("shop").save(
        path, tables=["public.orders"], columns={"orders": ["note", "id"]}
    )
    rows = [(1, [b"b", b"2"]), (3, [b"A", b"1"])]
    assert chosen.tables[0].stored.digest == digest_of([NAMES[2], NAMES[0]], rows)
    assert verified(filled, path)
    with pytest.raises(UsageError, match="no table that is saved"):
        filled.snapshot("shop").save(path, tables=["orders"], columns={"heap": ["a"]})
    with pytest.raises(UnknownTable):
        filled.snapshot("shop").save(path, tables=["nowhere"])


def test_a_start_leaves_out_older_rows_again(filled: eventlog.Log, path: Path) -> None:
    manifest = filled.snapshot({"shop": (3, 5), "clicks": (2, 4)}).save(path)
    assert [table.stored.rows for table in manifest.tables] == [1, 2]
    assert verified(filled, path)


def test_exclusions_are_named_where_there_are_any(filled: eventlog.Log, path: Path) -> None:
    assert filled.snapshot("shop").save(path).streams[0].exclusions is None
    filled.stream("shop-exclusions", create=True).append({"reason": "asked"}, key="1")
    manifest = filled.snapshot("shop").save(path)
    assert manifest.streams[0].exclusions == 1
    assert verified(filled, path)


# Reading a manifest


def spoilt(data: bytes) -> Iterator[bytes]:
    content = json.loads(data)
    yield from (data[:size] for size in range(0, len(data) - 2, 7))
    yield data + b"x"
    yield b"\xff" + data
    yield data.replace(b'"rows": 2', b'"rows": 3')
    yield data.replace(b'"rows": 2', b'"rows": 2.0')
    yield data.replace(b'"rows": 2', b'"rows": NaN')
    yield data.replace(b'"rows": 2', b'"rows": 2, "rows": 2')
    yield data.replace(b'"as_is": false', b'"as_is": 0')
    yield data.replace(b'"stop": 5', b'"stop": -5')
    for name in content:
        yield json.dumps({n: v for n, v in content.items() if n != name}).encode()
        if name != "created":
            yield json.dumps({**content, name: 7}).encode()
    yield json.dumps({**content, "more": 1}).encode()
    yield json.dumps({**content, "tables": content["tables"] * 2}).encode()
    yield json.dumps({**content, "streams": []}).encode()
    yield json.dumps([content]).encode()
    yield b"[" * 100_000
    yield data.replace(b'"rows": 2', b'"rows": ' + b"9" * 5_000)
    for log in ({"generation": -1}, {"generation": 10**9}):
        yield forged(content, log={**content["log"], **log})
    (stream,), (table,) = content["streams"], content["tables"]
    for wrong in ({"stop": 2**63}, {"retained": -1}, {"exclusions": -1}, {"time": "\ud800"}):
        yield forged(content, streams=[{**stream, **wrong}])
    stored = table["stored"]
    for wrong in ({"rows": 3}, {"rows": 2**64}, {"bytes": 2**63}, {"offsets": "0" * 64}):
        yield forged(content, tables=[{**table, "stored": {**stored, **wrong}}])
    yield forged(content, tables=[{**table, "output": stored}])
    yield forged(content, tables=[{**table, "stored": {**stored, "columns": []}}])
    yield forged(content, tables=[])


def forged(content: dict[str, Any], **changed: Any) -> bytes:
    """A manifest that was edited by somebody who knows how its digest is made."""
    bare = {**content, **changed}
    covered = {n: v for n, v in bare.items() if n not in ("digest", "created")}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**bare, "digest": hashlib.sha256(text).hexdigest()}).encode()


def test_a_manifest_that_is_cut_or_changed_is_refused(filled: eventlog.Log, path: Path) -> None:
    filled.snapshot("shop").save(path)
    whole = path.read_bytes()
    assert manifest_of(whole) == read_manifest(path)
    assert manifest_of(forged(json.loads(whole))) == manifest_of(whole)
    for count, data in enumerate(spoilt(whole)):
        assert data != whole
        path.write_bytes(data)
        with pytest.raises(BadManifest) as caught:
            read_manifest(path)
        assert caught.value.hint and "\n" not in str(caught.value), (count, data)
    path.write_bytes(whole.replace(b'"version": 1,\n "digest"', b'"version": 2,\n "digest"'))
    with pytest.raises(BadManifest, match="version 2 is not known"):
        read_manifest(path)
    with pytest.raises(BadManifest, match="cannot be read: No such file"):
        filled.load_snapshot(path.parent / "nothing.json")


def test_a_manifest_is_shown_in_one_line(filled: eventlog.Log, path: Path) -> None:
    manifest = filled.snapshot("shop").save(path)
    assert repr(manifest) == f"<Manifest shop.public.orders, 2 rows, {manifest.digest[:8]}…>"


def test_columns_that_name_no_table_are_refused(filled: eventlog.Log, path: Path) -> None:
    with pytest.raises(UsageError, match="does not say of which table") as refused:
        filled.snapshot("shop").save(path, columns=["id"])  # type: ignore[arg-type]
    assert "columns={'public.orders'" in refused.value.hint


def test_what_does_not_fit_a_transform_says_how_to_leave_it_out(
    log: eventlog.Log, shop: MadeSource, path: Path
) -> None:
    orders = shop.table("orders", *KEYED, column("price", NUMERIC, typmod=(9 << 16 | 2) + 4))
    shop.commit(insert(orders, 1, 10, "a", "NaN"))
    with pytest.raises(ValueDoesNotFit, match="a transform is given typed values") as refused:
        log.snapshot("shop").save(path, transform=Doubled())
    assert "columns={'public.t'" in refused.value.hint and "--unfit null" in refused.value.hint
    some = {"public.orders": ["id", "n", "note"]}
    assert log.snapshot("shop").save(path, transform=Doubled(), columns=some)
    assert verified(log, path, transform=Doubled())


# What verifying says


def test_another_log_is_told_by_its_id(filled: eventlog.Log, path: Path, tmp_path: Path) -> None:
    filled.snapshot("shop").save(path)
    with eventlog.open(tmp_path / "other", create=True) as other:
        found = verified(other, path)
    assert not found and found.rows == 0
    assert len(found.reasons) == 1 and found.reasons[0].startswith("another log: the manifest is")
    assert "--log" in found.hint


def test_a_backup_is_the_same_log_up_to_where_it_was_taken(
    filled: eventlog.Log, shop: MadeSource, path: Path, tmp_path: Path
) -> None:
    filled.snapshot(["shop", "clicks"]).save(path)
    filled.backup(tmp_path / "copy")
    filled.stream("clicks").append("of the first", key="7")
    later = tmp_path / "later.json"
    filled.snapshot("clicks").save(later)
    with eventlog.open(tmp_path / "copy") as copy:
        assert copy.generation == 2
        assert verified(copy, path), "all of it lies in the backup"
        short = verified(copy, later)
        assert not short and "ends at 4, below the cut at 5" in short.reasons[0]
        copy.stream("clicks").append("of the second", key="7")
        found = verified(copy, later)
        assert not found
        assert "differs in column" in found.reasons[0]
        assert "came out of a backup (generation 2), and offsets [4, 5)" in found.reasons[1]
        copy.snapshot("clicks").save(path)
        assert copy.check() == []
    back = verified(filled, path)
    assert not back and "the log of the manifest came out of a backup" in back.reasons[1]


def test_damage_is_named_with_its_offsets(log_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with bodies_apart(), eventlog.open(log_dir, create=True) as log:
        source = MadeSource(log, "shop")
        orders = source.table("orders", *KEYED)
        source.commit(insert(orders, 1, 1, "a"))
        source.commit(insert(orders, 2, 2, "b"))
        source.close()
        log.snapshot("shop").save(path)
        with log.engine.store.write() as txn:
            cursor = txn.cursor(db=log.engine.store.payload)
            assert cursor.last()
            key, value = cursor.item()
            txn.put(bytes(key), bytes(value)[:-1] + b"!", db=log.engine.store.payload)
        found = verified(log, path)
    assert not found
    assert "table shop.public.orders cannot be rebuilt" in found.reasons[0]
    assert "is damaged" in found.reasons[0]


def test_a_checkpoint_stands_for_nothing_that_the_log_has_lost(
    log_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.json"
    with bodies_apart(), eventlog.open(log_dir, create=True) as log:
        source = MadeSource(log, "shop")
        orders = source.table("orders", *KEYED)
        source.commit(*(insert(orders, key, key, "a") for key in range(9)))
        source.commit(insert(orders, 9, 2, "b"))
        source.close()
        log.snapshot("shop").save(path)
        table = log.snapshot("shop", at=9).table("orders")
        history = log._history("shop")
        folder = CheckpointFolder(log.engine, history)
        assert isinstance(table, Table)
        assert folder.write(table._state, source_codec(log.engine, history), stop=9)
        assert verified(log, path).rows == 10
        with log.engine.store.write() as txn:
            cursor = txn.cursor(db=log.engine.store.payload)
            assert cursor.first()
            key, value = cursor.item()
            txn.put(bytes(key), bytes(value)[:-1] + b"!", db=log.engine.store.payload)
        assert log.snapshot("shop").table("orders").num_rows == 10, "the checkpoint has them"
        found = verified(log, path)
    assert not found and "is damaged" in found.reasons[0]


def test_an_equal_table_of_which_the_manifest_tells_something_else_is_not_equal(
    filled: eventlog.Log, path: Path
) -> None:
    filled.snapshot("shop").save(path)
    content = json.loads(path.read_bytes())
    content["tables"][0]["stored"]["columns"][1]["name"] = "m"
    path.write_bytes(forged(content))
    assert "contradicts itself" in verified(filled, path).reasons[0]
    content["tables"][0]["stored"]["columns"][1]["name"] = "n"
    content["tables"][0]["stored"]["bytes"] += 1
    path.write_bytes(forged(content))
    assert "contradicts itself" in verified(filled, path).reasons[0]


def test_no_table_is_no_snapshot(filled: eventlog.Log, path: Path) -> None:
    with pytest.raises(UsageError, match="no table is named"):
        filled.snapshot("shop").save(path, tables=[])
    assert not path.exists()


def test_a_transform_is_proven_by_what_it_makes(filled: eventlog.Log, path: Path) -> None:
    manifest = filled.snapshot("shop").save(path, transform=Doubled())
    output = manifest.tables[0].output
    assert output is not None and manifest.transform is not None
    rows = [(1, [None, b"b"]), (3, [(22).to_bytes(8, "little"), b"A"])]
    assert output.digest == digest_of([("twice", "int64"), ("note", "text")], rows)
    assert (manifest.transform.name, manifest.transform.decoder) == ("doubled", 1)
    assert verified(filled, path, transform=Doubled())
    absent = verified(filled, path)
    assert not absent and "is not at hand" in absent.reasons[0] and absent.rows == 2
    assert absent.unproven and "--transform FILE.py:NAME" in absent.hint
    changed = Doubled()
    changed.digest = "cd" * 32
    found = verified(filled, path, transform=changed)
    assert not found and "has changed under the same version" in found.reasons[0]
    assert not found.unproven and not found.hint
    changed = Doubled()
    changed.version = 3
    assert "given is 'doubled', version 3" in verified(filled, path, transform=changed).reasons[0]
    sly = Doubled()
    sly.factor = 3
    assert "differs in column twice" in verified(filled, path, transform=sly).reasons[0]
    broken = Doubled()
    broken.factor = "x"  # type: ignore[assignment]
    failed = verified(filled, path, transform=broken).reasons[0]
    assert failed.startswith("the transform of table shop.public.orders failed: ")
    with pytest.raises(UsageError, match="of one table"):
        filled.snapshot(["shop", "clicks"]).save(path, transform=Doubled())


def test_a_transform_that_ends_the_process_proves_nothing(filled: eventlog.Log, path: Path) -> None:
    filled.snapshot("shop").save(path, transform=Doubled())
    leaving = Doubled()
    with mock.patch.object(leaving, "apply", side_effect=SystemExit(0), create=True):
        found = verified(filled, path, transform=leaving)
    assert not found and "failed: SystemExit" in found.reasons[0]


def test_what_differs_of_rows_is_said(filled: eventlog.Log, path: Path) -> None:
    manifest = filled.snapshot("shop").save(path)
    (table,) = manifest.tables

    def told(**changes: Any) -> str:
        stored = replace(table.stored, **{"digest": "0" * 64, **changes})
        other = replace(manifest, tables=(replace(table, stored=stored),))
        found = Saved(filled.engine, filled.snapshot, other).verify()
        assert not found and found.rows == 0
        return found.reasons[0]

    assert "has 2 rows, and was saved with 7" in told(rows=7)
    first, *others = table.stored.columns
    assert told(columns=(replace(first, digest="1" * 64), *others)).endswith("in column id")
    retyped = replace(first, digest="1" * 64, stored="20/-1", type="bigint")
    assert "id (it was bigint, it is integer)" in told(columns=(retyped, *others))
    assert "was saved with id, n" in told(columns=table.stored.columns[:2])
    assert told().endswith("in the offsets of its rows")


def test_streams_that_are_not_there_or_gone_by_are_said(
    filled: eventlog.Log, path: Path, tmp_path: Path
) -> None:
    manifest = filled.snapshot("clicks").save(path)
    (stream,), (table,) = manifest.streams, manifest.tables
    other = replace(
        manifest,
        streams=(replace(stream, name="gone"),),
        tables=(replace(table, stream="gone"),),
    )
    found = Saved(filled.engine, filled.snapshot, other).verify()
    assert not found and "gone" in found.reasons[0]
    other = replace(manifest, streams=(replace(stream, kind="captured"),))
    assert "is events, and was captured" in str(
        Saved(filled.engine, filled.snapshot, other).verify().reasons
    )
    filled.stream("clicks").append_many(["y" * 300_000, "z"], keys=["7", "8"])
    filled.stream("clicks").retain(below="end")
    found = verified(filled, path)
    assert not found and "were dropped by retention" in found.reasons[0]
    with pytest.raises(UsageError, match="is not a range of stream 'clicks'"):
        filled.load_snapshot(path).table("clicks")


def test_rows_that_retention_took_away_are_said_to_be_dropped(
    log: eventlog.Log, path: Path
) -> None:
    clicks = log.stream("clicks", create=True)
    clicks.append_many(["a" * 300_000, "b"], keys=["1", "2"])
    clicks.append_many(["c" * 300_000], keys=["1"])
    log.snapshot("clicks").save(path)
    only_new = path.with_name("new.json")
    log.snapshot({"clicks": (2, 3)}).save(only_new)
    clicks.retain(below=2)
    found = verified(log, path)
    assert not found
    assert "has 1 row, and was saved with 2" in found.reasons[0]
    assert "offsets [0, 2) of stream 'clicks' were dropped" in found.reasons[1]
    assert verified(log, only_new), "it needs nothing of what is gone"


def test_a_table_that_is_refused_by_now_is_proven_with_a_note(
    filled: eventlog.Log, shop: MadeSource, path: Path
) -> None:
    filled.snapshot("shop").save(path)
    shop.table("orders", *KEYED, unseen_since=3, unseen_reason="rows were moved")
    shop.announce()
    with pytest.raises(SnapshotRefused):
        filled.snapshot("shop", at=5).table("orders")
    found = verified(filled, path)
    assert found and "by now refused" in found.reasons[0]


def test_compacting_changes_nothing(log_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with eventlog.open(log_dir, create=True) as log:
        make_bundle.write(log)
        log.snapshot(make_bundle.CUTS).save(path, pin=True)
    compact(log_dir)
    with eventlog.open(log_dir) as log:
        assert verified(log, path)
        assert log.check() == []


def test_the_golden_log_gives_the_golden_manifest(log_dir: Path, tmp_path: Path) -> None:
    golden = make_bundle.BUNDLE / "manifest.json"
    with frozen(), eventlog.open(log_dir, create=True) as log:
        make_bundle.write(log)
        make_bundle.save(log, tmp_path / "m.json")
        assert read_manifest(tmp_path / "m.json") == read_manifest(golden)
        assert verified(log, golden)
        assert log.check() == []


def test_any_cut_of_a_random_history_is_proven_later() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    scratch = Path(tempfile.mkdtemp())
    with eventlog.open(scratch / "log", create=True) as log:
        source = MadeSource(log, "shop")
        orders = source.table("orders", *KEYED)
        model: dict[int, tuple[int, list[bytes | None]]] = {}
        saved = []
        at = 0
        for step in range(60):
            records, size = [], chance.randrange(1, 6)
            for _ in range(size):
                key = chance.randrange(12)
                value = chance.choice([None, chance.randrange(99)])
                note = chance.choice([None, "", "é" * chance.randrange(5)])
                stored = [str(key).encode(), value and str(value).encode(), note]
                stored[1] = None if value is None else str(value).encode()
                stored[2] = None if note is None else str(note).encode()
                if key in model and chance.random() < 0.3:
                    records.append(delete(orders, key, None, None))
                    del model[key]
                else:
                    make = update if key in model else insert
                    records.append(make(orders, key, value, note))
                    model[key] = at, stored
                at += 1
            if chance.random() < 0.05:
                records.append(truncate(orders))
                model.clear()
                at += 1
            source.commit(*records)
            if step % 7 == 0:
                path = scratch / f"{step}.json"
                manifest = log.snapshot("shop").save(path)
                expected = digest_of(NAMES, sorted(model.values()))
                assert manifest.tables[0].stored.digest == expected
                saved.append(path)
        assert [verified(log, path).equal for path in saved] == [True] * len(saved)
        source.close()
        assert log.check() == []
    shutil.rmtree(scratch)


def test_a_table_inside_a_copy_cannot_be_saved(
    log: eventlog.Log, shop: MadeSource, path: Path
) -> None:
    orders = shop.table("orders", *KEYED)
    shop.commit(control(Op.COPY_BEGIN, orders))
    shop.commit(insert(orders, 1, 1, "a"))
    with pytest.raises(SnapshotRefused, match="not complete"):
        log.snapshot("shop").save(path)
    assert not path.exists()


# The commands


def test_the_commands_save_show_and_verify(
    filled: eventlog.Log, run_cli: RunCli, path: Path
) -> None:
    at = ("--log", str(filled.path))
    made = run_cli(
        "snapshot", "create", "--at", "shop=4", "--at", "clicks=end", "--start", "clicks=1",
        "--table", "orders(id,note)", "--table", "clicks", "--out", str(path), "--pin", "--json",
        *at,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["streams"][0]["stop"] == 3, "moved back to where the transaction starts"
    assert (told["pinned"], told["tables"][0]["stored"]["rows"]) == (True, 3)
    shown = run_cli("snapshot", "show", str(path), "--json")
    assert json.loads(shown.stdout)["digest"] == told["digest"]
    text = run_cli("snapshot", "show", str(path)).stdout
    assert "shop as of offset 3 (2026-01-01T00:00:00+00:00)" in text and told["digest"] in text
    found = run_cli("snapshot", "verify", str(path), *at)
    assert (found.returncode, found.stdout) == (0, "equal: 6 rows proven\n")
    with eventlog.open(path.parent / "other", create=True) as other:
        found = run_cli("snapshot", "verify", str(path), "--log", str(other.path), "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["reasons"][0].startswith("another log")
    path.write_bytes(path.read_bytes()[:-9])
    assert_explained(run_cli("snapshot", "verify", str(path), *at))
    nothing = run_cli("snapshot", "verify", str(path.parent / "none"), "--log", str(path.parent))
    assert_explained(nothing)
    assert "none cannot be read" in nothing.stderr
    wrong = run_cli("snapshot", "create", "--at", "shop", "--out", str(path), *at)
    assert wrong.returncode == 2 and "STREAM=OFFSET|TIME|end" in wrong.stderr
    wrong = run_cli(
        "snapshot", "create", "--at", "shop=1", "--start", "a=1", "--out", str(path), *at
    )
    assert wrong.returncode == 2


def test_a_transform_is_taken_out_of_a_file(
    filled: eventlog.Log, run_cli: RunCli, path: Path, tmp_path: Path
) -> None:
    code = tmp_path / "features.py"
    code.write_text(
        "import pyarrow as pa\n"
        "class Same:\n"
        "    name, version, digest = 'same', 1, '12' * 32\n"
        "    def apply(self, rows): return rows\n"
        "same = Same()\nnothing = 7\n"
    )
    at = ("--log", str(filled.path))
    transform = ("--transform", f"{code}:same")
    done = run_cli("snapshot", "create", "--at", "shop=end", "--out", str(path), *transform, *at)
    assert done.returncode == 0, done.stderr
    assert "transform same, version 1" in done.stdout
    assert run_cli("snapshot", "verify", str(path), *transform, *at).returncode == 0
    assert run_cli("snapshot", "verify", str(path), *at).returncode == 1
    script = tmp_path / "script.py"
    script.write_text("import sys\nsame = 1\nsys.exit(0)\n")
    for bad in (
        f"{code}:nothing",
        f"{code}:missing",
        f"{script}:same",  # Its exit with 0 is no proof.
        f"{tmp_path}/no.py:x",
        "features",
    ):
        assert_explained(run_cli("snapshot", "verify", str(path), "--transform", bad, *at))
