"""A bundle's typed rows are what its stored texts say, however well they were forged."""

from __future__ import annotations

import datetime as dt
import json
import os
import random
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from pyarrow import parquet

import eventlog
from eventlog.changes.schema import SourceType
from eventlog.errors import BadManifest
from eventlog.snapshots.manifests.bundle import file_name, write_bundle
from eventlog.snapshots.manifests.described_types import METADATA
from eventlog.snapshots.manifests.typed_proof import Taking
from eventlog.snapshots.manifests.verification import Verification
from tests.fix_log import BIGINT, FLOAT, INT, NUMERIC, MadeSource, column, insert
from tests.golden import make_bundle
from tests.test_bundle import copied, rewritten

ORDERS = file_name("shop.public.orders")
DOMAIN, MOOD, MOODS = 16_700, 16_710, 16_711
TYPES = {
    DOMAIN: SourceType(
        id=DOMAIN, namespace="public", name="price", kind="d", base=NUMERIC,
        base_typmod=(9 << 16 | 2) + 4,
    ),
    MOOD: SourceType(id=MOOD, namespace="public", name="mood", kind="e"),
    MOODS: SourceType(id=MOODS, namespace="public", name="_mood", kind="a", element=MOOD),
}  # fmt: skip


def forged(folder: Path, file: str, name: str, place: int, value: Any) -> list[str]:
    """The reasons once one value of a column is another, all checksums being right."""
    typed = parquet.read_table(folder / file)
    at = typed.column_names.index(name)
    values = typed.column(at).to_pylist()
    values[place] = value
    field = typed.schema.field(at)
    return rewritten(folder, file, typed.set_column(at, field, pa.array(values, field.type)))


@pytest.mark.parametrize(
    ("name", "place", "value", "offset"),
    [
        ("id", 0, 3, 1),
        ("amount", 1, Decimal("13.01"), 5),
        ("amount", 0, Decimal("0.00"), 1),
        ("note", 1, None, 5),
        ("note", 0, "", 1),
        ("paid", 1, True, 5),
        ("raw", 1, b"\x02", 5),
        ("at", 1, dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC), 5),
        ("weight", 1, 0.0, 5),
    ],
)
def test_one_forged_value_is_named_with_its_column_and_row(
    tmp_path: Path, name: str, place: int, value: Any, offset: int
) -> None:
    assert forged(copied(tmp_path / "b"), ORDERS, name, place, value) == [
        f"{ORDERS}: its values are not those of the stored texts in column {name} "
        f"(first at offset {offset})"
    ]


def test_forged_events_are_named(tmp_path: Path) -> None:
    reasons = forged(copied(tmp_path / "b"), "clicks.parquet", "value", 1, "false")
    assert "in column value (first at offset" in reasons[0] and len(reasons) == 1
    reasons = forged(copied(tmp_path / "c"), "clicks.parquet", "key", 0, "9")
    assert "in column key (first at offset" in reasons[0]


def test_forged_columns_and_types_are_named(tmp_path: Path) -> None:
    typed = parquet.read_table(make_bundle.BUNDLE / ORDERS)
    at = typed.column_names.index("id")
    wide = typed.set_column(at, "id", typed.column("id").cast(pa.int64()))
    assert rewritten(copied(tmp_path / "wide"), ORDERS, wide) == [
        f"{ORDERS}: column id is int64, and integer becomes int32"
    ]
    fewer = rewritten(copied(tmp_path / "fewer"), ORDERS, typed.drop_columns(["note"]))
    assert fewer[0].startswith(f"{ORDERS}: it has the columns _offset, id, amount, paid")
    named = typed.rename_columns(["_offset", "id", "AMOUNT", *typed.column_names[3:]])
    assert "it has the columns" in rewritten(copied(tmp_path / "named"), ORDERS, named)[0]
    bare = rewritten(copied(tmp_path / "bare"), ORDERS, typed.drop_columns(["_offset"]))
    assert bare == [f"{ORDERS}: its first column is not that of the offsets"]


@pytest.fixture
def odd(log: eventlog.Log, shop: MadeSource, tmp_path: Path) -> Any:
    """A saved table of types that only the database knows, and of odd numbers."""
    table = shop.table(
        "odd",
        column("id", INT, key=True),
        column("price", DOMAIN),
        column("moods", MOODS),
        column("f", FLOAT),
        column("n", NUMERIC),
        types=TYPES,
    )
    shop.commit(
        insert(table, 1, "12.50", '{sad,"ok, so",NULL}', "-0", "NaN"),
        insert(table, 2, "7.00", "{}", "NaN", "1.5"),
        insert(table, 3, None, None, "Infinity", None),
    )
    log.snapshot("shop").save(tmp_path / "m.json")
    return log.load_snapshot(tmp_path / "m.json")


def test_types_of_the_database_and_casts_are_proven(odd: Any, tmp_path: Path) -> None:
    file = file_name("shop.public.odd")
    write_bundle(odd, tmp_path / "cast", cast={"n": "text", "price": "float64"})
    found = eventlog.open_bundle(tmp_path / "cast").verify()
    assert (found.equal, found.reasons, found.rows) == (True, [], 3)
    reasons = forged(tmp_path / "cast", file, "price", 1, 7.5)
    assert reasons[0].endswith("in column price (first at offset 1)")
    for name, value in (("moods", ["sad", "ok", None]), ("f", 0.0), ("price", Decimal("12.51"))):
        folder = tmp_path / name
        write_bundle(odd, folder, unfit="null")
        kept = eventlog.open_bundle(folder).verify()
        note = f"{file}: 1 value of column n did not fit decimal128(38, 9), and is null"
        assert (kept.equal, kept.reasons) == (True, [note])
        reasons = forged(folder, file, name, 0, value)
        assert reasons[0].endswith(f"in column {name} (first at offset 0)"), reasons
    folder = tmp_path / "made up"
    write_bundle(odd, folder, unfit="null")
    assert "in column n (first at offset 0)" in forged(folder, file, "n", 0, Decimal(1))[0]


def test_texts_say_how_they_become_typed_rows(odd: Any, tmp_path: Path) -> None:
    """As docs/format.md has it: later versions must read this."""
    write_bundle(odd, tmp_path / "b", unfit="null")
    texts = tmp_path / "b" / "texts" / file_name("shop.public.odd")
    names = ("id", "namespace", "name", "kind", "base", "base_typmod", "element", "delimiter")
    types = [
        (DOMAIN, "public", "price", "d", NUMERIC, 589_830, 0, ","),
        (MOOD, "public", "mood", "e", 0, -1, 0, ","),
        (MOODS, "public", "_mood", "a", 0, -1, MOOD, ","),
    ]
    assert json.loads(parquet.read_schema(texts).metadata[b"eventlog_decoding"]) == {
        "codec": 3,
        "decoder": 1,
        "types": [dict(zip(names, kind, strict=True)) for kind in types],
    }


def redescribed(folder: Path, change: Any) -> Verification:
    """What is found once the texts of the table say something else of their types."""
    file = f"texts/{file_name('shop.public.odd')}"
    texts = parquet.read_table(folder / file)
    said = json.loads(texts.schema.metadata[METADATA])
    data = change(said)
    rewritten(folder, file, texts.replace_schema_metadata(data and {METADATA: data}))
    return eventlog.open_bundle(folder).verify()


def test_what_is_not_described_is_told_as_unproven(odd: Any, tmp_path: Path) -> None:
    write_bundle(odd, tmp_path / "b", unfit="null")
    without = redescribed(tmp_path / "b", lambda said: None)
    assert not without and without.unproven and "make it again" in without.hint
    assert len(without.reasons) == 1
    assert "what is in column price, moods cannot be proven" in without.reasons[0]
    broken = redescribed_anew(odd, tmp_path / "c", lambda said: b"{}")
    assert broken.unproven and "of table shop.public.odd cannot be proven" in broken.reasons[0]
    codec = redescribed_anew(odd, tmp_path / "d", lambda s: json.dumps({**s, "codec": 99}).encode())
    assert codec.unproven and "codec 99" in codec.reasons[0]


def redescribed_anew(saved: Any, folder: Path, change: Any) -> Verification:
    write_bundle(saved, folder, unfit="null")
    return redescribed(folder, change)


def test_a_description_says_nothing_of_types_that_every_server_has(
    odd: Any, tmp_path: Path
) -> None:
    def lying(said: dict[str, Any]) -> bytes:
        lie = {**said["types"][0], "id": INT, "name": "integer", "kind": "d", "base": 25}
        return json.dumps({**said, "types": [*said["types"], lie]}).encode()

    assert redescribed_anew(odd, tmp_path / "b", lying).equal
    typed = parquet.read_table(tmp_path / "b" / file_name("shop.public.odd"))
    text = typed.set_column(1, "id", typed.column("id").cast(pa.string()))
    file = file_name("shop.public.odd")
    assert len(rewritten(tmp_path / "b", file, text)) == 1, "as after a cast to text"
    number = typed.set_column(1, "id", pa.array(["1", "2", "4"]))
    assert "in column id (first at offset 2)" in rewritten(tmp_path / "b", file, number)[0]


def test_another_decoder_that_agrees_proves_and_one_that_differs_does_not(
    tmp_path: Path,
) -> None:
    newer = mock.patch("eventlog.snapshots.manifests.typed_proof.DECODER", 2)
    with newer:
        assert eventlog.open_bundle(make_bundle.BUNDLE).verify().equal
        folder = copied(tmp_path / "b")
        reasons = forged(folder, ORDERS, "amount", 1, Decimal("13.01"))
        found = eventlog.open_bundle(folder).verify()
    assert reasons == [
        f"{ORDERS} cannot be proven: it was typed by decoder 1, this one is 2, and its values are "
        "not those of the stored texts in column amount (first at offset 5)"
    ]
    assert (found.equal, found.unproven) == (False, True) and found.hint
    assert found.rows == 5, "those of the other tables"


def test_any_value_of_many_pieces_is_found_wherever_pieces_end(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    table = shop.table(
        "t", column("id", INT, key=True), column("big", BIGINT), column("note"), column("f", FLOAT)
    )
    rows = [
        (
            i,
            chance.choice([None, chance.randrange(-(2**63), 2**63)]),
            chance.choice([None, "", "x" * chance.randrange(9)]),
            chance.choice([None, "NaN", "-0", "0", "-Infinity", "1e300", "0.1"]),
        )
        for i in range(500)
    ]
    shop.commit(*(insert(table, *row) for row in rows))
    log.snapshot("shop").save(tmp_path / "m.json")
    folder, file = tmp_path / "b", file_name("shop.public.t")
    with mock.patch("eventlog.snapshots.manifests.stored_rows.BATCH_ROWS", 64):
        write_bundle(log.load_snapshot(tmp_path / "m.json"), folder)
    typed = parquet.read_table(folder / file)
    with mock.patch("eventlog.snapshots.manifests.opened_bundle.BATCH_ROWS", 37):
        for size in (50, 499, 1_000):
            parquet.write_table(typed, folder / file, row_group_size=size)
            assert all("checksum" in why for why in eventlog.open_bundle(folder).verify().reasons)
        for _ in range(12):
            place, name = chance.randrange(500), chance.choice(["id", "big", "note", "f"])
            before = typed.column(name)[place].as_py()
            other = {"note": "other", "f": 0.5}.get(name, 7 if before != 7 else 8)
            value = chance.choice([other, other if before is None else None])
            reasons = forged(folder, file, name, place, value)
            assert [why.rpartition(" in ")[2] for why in reasons] == [
                f"column {name} (first at offset {place})"
            ]
            parquet.write_table(typed, folder / file)


def test_rows_are_taken_across_pieces() -> None:
    whole = pa.table({"a": list(range(8))})
    pieces = [whole.slice(start, stop - start) for start, stop in ((0, 3), (3, 3), (3, 8))]
    taking = Taking(iter(pieces))
    taken = [taking.take(rows).column("a").to_pylist() for rows in (2, 4, 9)]
    assert taken == [[0, 1], [2, 3, 4, 5], [6, 7]]


def test_a_table_whose_texts_are_gone_and_rows_are_not_is_told(tmp_path: Path) -> None:
    folder = copied(tmp_path / "b")
    texts = parquet.read_table(folder / "texts" / ORDERS)
    reasons = rewritten(folder, f"texts/{ORDERS}", texts.slice(0, 0))
    assert reasons == ["table shop.public.orders: it has 0 rows, and the manifest 2"]


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.bool_(), pa.list_(pa.int8()), pa.string()], ids=str
)
def test_texts_of_another_type_are_told(tmp_path: Path, kind: pa.DataType) -> None:
    folder = copied(tmp_path / "b")
    texts = parquet.read_table(folder / "texts" / ORDERS)
    other = texts.set_column(1, "c0", pa.nulls(texts.num_rows, kind))
    reasons = rewritten(folder, f"texts/{ORDERS}", other)
    assert reasons == [f"texts/{ORDERS} has other columns than the manifest"]


@pytest.mark.parametrize("file", [ORDERS, f"texts/{ORDERS}", "clicks.parquet"])
def test_a_row_without_an_offset_is_told(tmp_path: Path, file: str) -> None:
    folder = copied(tmp_path / "b")
    found = parquet.read_table(folder / file)
    offsets = pa.array([None, *found.column(0).to_pylist()[1:]], pa.int64())
    bare = found.set_column(0, "_offset", offsets)
    assert rewritten(folder, file, bare) == [f"{file}: a row has no offset"]


@pytest.mark.parametrize("codec", [1, 2])
def test_a_codec_that_knows_no_types_proves_nothing(odd: Any, tmp_path: Path, codec: int) -> None:
    found = redescribed_anew(
        odd, tmp_path / "b", lambda said: json.dumps({**said, "codec": codec}).encode()
    )
    assert found.unproven and f"codec {codec} knows no types" in found.reasons[0]


def test_types_that_no_database_has_are_told_as_unproven(odd: Any, tmp_path: Path) -> None:
    def of_itself(said: dict[str, Any]) -> bytes:
        price, mood, moods = said["types"]
        types = [price, {**mood, "kind": "a", "element": MOODS}, moods]
        return json.dumps({**said, "types": types}).encode()

    def without_digits(said: dict[str, Any]) -> bytes:
        price, *others = said["types"]
        return json.dumps({**said, "types": [{**price, "base_typmod": 4}, *others]}).encode()

    for place, change in enumerate((of_itself, without_digits)):
        found = redescribed_anew(odd, tmp_path / f"{place}", change)
        assert not found and found.reasons, found


@pytest.mark.parametrize("file", [ORDERS, f"texts/{ORDERS}", "manifest.json"])
def test_a_pipe_in_a_bundle_is_refused_and_not_waited_for(tmp_path: Path, file: str) -> None:
    folder = copied(tmp_path / "b")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    if file == "manifest.json":
        with pytest.raises(BadManifest, match="it is no plain file"):
            eventlog.open_bundle(folder)
        return
    reasons = eventlog.open_bundle(folder).verify().reasons
    assert reasons == [f"{file} cannot be read: it is no plain file"]


def test_names_that_are_no_unicode_are_told(tmp_path: Path) -> None:
    folder = copied(tmp_path / "b")
    data = (folder / ORDERS).read_bytes()
    assert b"amount" in data
    (folder / ORDERS).write_bytes(data.replace(b"amount", b"am\xffunt"))
    reasons = eventlog.open_bundle(folder).verify().reasons
    assert reasons == [f"{ORDERS} was changed: its checksum is another"]
