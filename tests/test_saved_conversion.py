"""What a saved transform was given: casts and dropped misfits, written down and proven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import eventlog
from eventlog.errors import BadManifest, UsageError, ValueDoesNotFit
from eventlog.snapshots.manifests.bundle import write_bundle
from eventlog.snapshots.manifests.manifest import SavedConversion, manifest_of
from eventlog.snapshots.manifests.strict_json import NotStrict
from eventlog.snapshots.manifests.verification import Verification
from tests.fix_log import INT, NUMERIC, MadeSource, column, insert
from tests.fix_postgres import RunCli, assert_explained
from tests.test_manifests import forged

MODULE = """
import pyarrow as pa
import pyarrow.compute as pc
import eventlog

@eventlog.transform("known", version=1)
def known(rows):
    return pa.table({"id": rows.column("id"), "known": pc.is_valid(rows.column("price"))})
"""


class Known:
    """Tells whether there is a price, and of which type."""

    name = "known"
    version = 1
    digest = "cd" * 32

    def apply(self, rows: pa.Table) -> pa.Table:
        price = rows.column("price")
        return pa.table({"known": pc.is_valid(price), "type": [str(price.type)] * len(price)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.json"


@pytest.fixture
def priced(log: eventlog.Log, shop: MadeSource) -> eventlog.Log:
    """Three orders, of which two have a price that no decimal is."""
    price = column("price", NUMERIC, typmod=(9 << 16 | 2) + 4)
    orders = shop.table("orders", column("id", INT, key=True), price)
    shop.commit(insert(orders, 1, "NaN"), insert(orders, 2, "1.50"), insert(orders, 3, "NaN"))
    return log


def verified(log: eventlog.Log, path: Path) -> Verification:
    return log.load_snapshot(path).verify(transform=Known())


def made(log: eventlog.Log, path: Path, folder: Path) -> list[dict[str, Any]]:
    """What the transform made, out of a bundle that is proven."""
    write_bundle(log.load_snapshot(path), folder, transform=Known())
    bundle = eventlog.open_bundle(folder)
    assert bundle.verify(), bundle.verify().reasons
    found: list[dict[str, Any]] = bundle.output().to_pylist()
    return found


def test_misfits_that_were_null_are_counted_and_null_again(
    priced: eventlog.Log, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueDoesNotFit):
        priced.snapshot("shop").save(path, transform=Known())
    manifest = priced.snapshot("shop").save(path, transform=Known(), unfit="null")
    assert manifest.transform is not None
    wanted = SavedConversion(cast={}, unfit="null", dropped={"price": 2})
    assert manifest.transform.conversion == wanted
    assert priced.load_snapshot(path).manifest == manifest
    assert verified(priced, path).reasons == []
    rows = made(priced, path, tmp_path / "b")
    assert [row["known"] for row in rows] == [False, True, False]
    typed = eventlog.open_bundle(tmp_path / "b").table("orders")
    assert typed.column("price").null_count == 2, "typed as the transform was given it"


def test_casts_are_part_of_what_is_saved(priced: eventlog.Log, path: Path, tmp_path: Path) -> None:
    text = priced.snapshot("shop").save(path, transform=Known(), cast={"price": "text"})
    assert verified(priced, path)
    rows = made(priced, path, tmp_path / "b")
    assert [(row["known"], row["type"]) for row in rows] == [(True, "string")] * 3
    other = priced.snapshot("shop").save(path, transform=Known(), cast={"price": "float64"})
    assert text != other and text.digest != other.digest
    assert verified(priced, path)
    with pytest.raises(UsageError, match="cannot be cast to 'money'"):
        priced.snapshot("shop").save(path, transform=Known(), cast={"price": "money"})
    with pytest.raises(UsageError, match="no column 'prise'"):
        priced.snapshot("shop").save(path, transform=Known(), cast={"prise": "text"})


@pytest.mark.parametrize("cast", ["text", {"price": None}, {"price": 5}, {5: "text"}, ["price"]])
def test_a_cast_that_maps_no_names_to_types_is_refused_wherever_it_is_given(
    priced: eventlog.Log, path: Path, cast: Any
) -> None:
    snapshot = priced.snapshot("shop")
    for call in (
        lambda: snapshot.save(path, transform=Known(), cast=cast),
        lambda: snapshot.table("orders").to_arrow(cast=cast),
        lambda: priced.stream("shop").read(table="orders").to_arrow(cast=cast),
        lambda: snapshot.sql("select id from orders", cast=cast),
    ):
        with pytest.raises(UsageError, match="does not map names of columns to types") as refused:
            call()
        assert refused.value.hint
    assert not path.exists()


def test_a_manifest_that_needs_none_says_nothing_of_it(priced: eventlog.Log, path: Path) -> None:
    chosen = {"public.orders": ["id"]}
    plain = priced.snapshot("shop").save(path, columns=chosen)
    assert b"conversion" not in path.read_bytes() and plain.transform is None

    class Same(Known):
        def apply(self, rows: pa.Table) -> pa.Table:
            return rows

    priced.snapshot("shop").save(path, columns=chosen, transform=Same())
    assert b"conversion" not in path.read_bytes(), "as every version before wrote it"
    for options in ({"cast": {"price": "text"}}, {"unfit": "null"}):
        with pytest.raises(UsageError, match="there is none") as refused:
            priced.snapshot("shop").save(path, **options)
        assert "to_arrow" in refused.value.hint


def test_a_conversion_is_read_strictly_and_held_against_the_rows(
    priced: eventlog.Log, path: Path
) -> None:
    priced.snapshot("shop").save(path, transform=Known(), unfit="null")
    content = json.loads(path.read_bytes())
    transform = content["transform"]
    for wrong in (
        None,
        {},
        {"cast": {}, "unfit": "raise", "dropped": {}},
        {"cast": {}, "unfit": "maybe", "dropped": {}},
        {"cast": {"price": 1}, "unfit": "null", "dropped": {}},
        {"cast": {}, "unfit": "null", "dropped": {}, "more": 1},
    ):
        with pytest.raises((NotStrict, BadManifest)):
            manifest_of(forged(content, transform={**transform, "conversion": wrong}))
    for other in ({"price": 1}, {}):
        lie = {**transform["conversion"], "dropped": other}
        path.write_bytes(forged(content, transform={**transform, "conversion": lie}))
        found = verified(priced, path)
        assert not found
        assert found.reasons == [
            "the manifest contradicts itself in what did not fit of shop.public.orders"
        ]
    lie = {**transform["conversion"], "cast": {"price": "text"}}
    path.write_bytes(forged(content, transform={**transform, "conversion": lie}))
    assert "what the transform makes of them differs" in verified(priced, path).reasons[0]


def test_the_commands_take_and_tell_it(
    priced: eventlog.Log, run_cli: RunCli, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "known.py").write_text(MODULE)
    given = ("--transform", f"{tmp_path / 'known.py'}:known", "--log", str(priced.path))
    create = ("snapshot", "create", "--at", "shop=end", "--out", str(path))
    assert_explained(run_cli(*create, *given))
    done = run_cli(*create, *given, "--unfit", "null")
    assert done.returncode == 0, done.stderr
    assert "price: null for 2 values that did not fit\n" in done.stdout
    shown = json.loads(run_cli("snapshot", "show", str(path), "--json").stdout)
    assert shown["transform"]["conversion"]["dropped"] == {"price": 2}
    assert run_cli("snapshot", "verify", str(path), *given).returncode == 0
    bundle = ("snapshot", "bundle", str(path), *given, "--json", "--out")
    as_saved = json.loads(run_cli(*bundle, str(tmp_path / "a")).stdout)
    assert as_saved["unfit"] == {"shop.public.orders.price": 2}
    assert_explained(run_cli(*bundle, str(tmp_path / "b"), "--unfit", "raise"))
    text = json.loads(run_cli(*bundle, str(tmp_path / "c"), "--cast", "price=text").stdout)
    assert text["unfit"] == {}
    assert run_cli("snapshot", "verify", str(tmp_path / "c")).returncode == 0
    alone = run_cli(*create, "--cast", "price=text", "--log", str(priced.path))
    assert_explained(alone)
    assert "there is none" in alone.stderr
