"""Digests of tables: what docs/format.md says, whatever the library, the pieces, or the types."""

from __future__ import annotations

import datetime as dt
import re
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.errors import UsageError
from eventlog.snapshots.manifests.digest import Digest, TableDigest
from eventlog.snapshots.manifests.typed_values import add_output, encoded, type_text
from tests.digest_oracle import Row, digest_of

FORMAT_PAGE = Path(__file__).parents[1] / "docs" / "format.md"
COLUMNS = [("id", "23/-1"), ("Ünï", "1700/786438"), ("", "25/-1")]

TEXTS = st.none() | st.binary(max_size=20)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=40)


def digested(rows: list[Row], cuts: list[int], kind: pa.DataType | None = None) -> Digest:
    """The digest of rows that come in pieces, cut at these places."""
    digest = TableDigest(COLUMNS)
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        part = rows[start:stop]
        digest.add(
            np.array([offset for offset, _ in part], np.int64),
            [pa.array([texts[i] for _, texts in part], kind or pa.binary()) for i in range(3)],
        )
    return digest.done()


@settings(max_examples=100)
@given(ROWS, st.lists(st.integers(0, 40), max_size=4), st.integers(0, 2**62))
def test_the_digest_is_the_oracles_however_the_rows_are_cut(
    values: list[Any], cuts: list[int], first: int
) -> None:
    rows: list[Row] = [(first + 3 * place, texts) for place, texts in enumerate(values)]
    cuts = sorted(min(cut, len(rows)) for cut in cuts)
    expected = digest_of(COLUMNS, rows)
    found = digested(rows, cuts)
    assert found.table == expected
    assert found == digested(rows, []) == digested(rows, cuts, pa.large_binary())
    assert found.rows == len(rows)
    assert found.bytes == sum(len(text) for _, texts in rows for text in texts if text)


def test_what_lies_under_a_null_or_beside_a_slice_is_no_part_of_it() -> None:
    texts = pa.array([b"one", b"gone", b"three", b"four"], pa.binary())
    _, ends, data = texts.buffers()
    under = pa.Array.from_buffers(pa.binary(), 4, [pa.py_buffer(b"\x0d"), ends, data], 1)
    assert under.to_pylist() == [b"one", None, b"three", b"four"]
    digest = TableDigest([("a", "25/-1")])
    digest.add(np.array([5, 6, 7], np.int64), [under.slice(1)])
    rows: list[Row] = [(5, [None]), (6, [b"three"]), (7, [b"four"])]
    assert digest.done().table == digest_of([("a", "25/-1")], rows)


def test_chunks_and_strings_and_no_columns_count_alike() -> None:
    rows: list[Row] = [(0, [b"a"]), (1, [None]), (2, [b"c"])]
    expected = digest_of([("a", "t")], rows)
    offsets = np.arange(3, dtype=np.int64)
    for array in (
        pa.chunked_array([["a"], [None, "c"]], pa.string()),
        pa.array(["a", None, "c"], pa.large_string()),
        pa.array([b"a", None, b"c"], pa.binary_view()),
    ):
        digest = TableDigest([("a", "t")])
        digest.add(offsets, [array])
        assert digest.done().table == expected
    bare = TableDigest([])
    bare.add(offsets, [])
    assert bare.done().table == digest_of([], [(0, []), (1, []), (2, [])])
    assert TableDigest(COLUMNS).done().table == digest_of(COLUMNS, [])


@pytest.mark.parametrize("change", range(7))
def test_every_part_changes_the_digest(change: int) -> None:
    rows: list[Row] = [(0, [b"ab", b"c", None]), (9, [b"", b"d", b"e"])]
    others: list[list[Row]] = [
        [(0, [b"a", b"c", None]), (9, [b"b", b"d", b"e"])],  # the same bytes, cut otherwise
        [(0, [b"ab", b"c", None]), (9, [None, b"d", b"e"])],  # NULL for an empty text
        [(0, [b"ab", b"c", None]), (8, [b"", b"d", b"e"])],
        [(0, [b"ab", b"c", None])],
        [(9, [b"", b"d", b"e"]), (0, [b"ab", b"c", None])],
        [(0, [b"c", b"ab", None]), (9, [b"", b"d", b"e"])],
        [(0, [b"ab", b"c", b""]), (9, [b"", b"d", b"e"])],
    ]
    assert digested(rows, []).table != digested(others[change], []).table


def test_a_column_that_differs_can_be_named() -> None:
    one = digested([(0, [b"a", b"b", b"c"])], [])
    other = digested([(0, [b"a", b"x", b"c"])], [])
    assert [a == b for a, b in zip(one.columns, other.columns, strict=True)] == [True, False, True]
    assert one.offsets == other.offsets and one.table != other.table


def test_the_worked_example_of_the_page_is_what_is_computed() -> None:
    page = FORMAT_PAGE.read_text("utf-8")
    block = re.search(r"^```digest\n(.*?)^```", page, re.M | re.S)
    assert block is not None
    lines = dict(line.split(" = ") for line in block[1].splitlines())
    rows: list[Row] = [(1, [b"2", None]), (3, [b"1", b"12.50"])]
    columns = [("id", "23/-1"), ("amount", "1700/786438")]
    digest = TableDigest(columns)
    digest.add(
        np.array([1, 3], np.int64),
        [pa.array([b"2", b"1"], pa.binary()), pa.array([None, b"12.50"], pa.binary())],
    )
    done = digest.done()
    assert lines == {
        "offsets": done.offsets,
        "column id": done.columns[0],
        "column amount": done.columns[1],
        "table": done.table,
    }
    assert done.table == digest_of(columns, rows)


# Typed values, as a transform makes them

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)

FORMS: list[tuple[pa.Array, str, list[bytes | None]]] = [
    (pa.array([1, None, -2], pa.int32()), "int32", [b"\1\0\0\0", None, b"\xfe\xff\xff\xff"]),
    (pa.array([1], pa.uint8()), "uint8", [b"\1"]),
    (pa.array([1.5], pa.float32()), "float32", [struct.pack("<f", 1.5)]),
    (pa.array([-0.0, None], pa.float64()), "float64", [struct.pack("<d", -0.0), None]),
    (pa.array([True, None, False]), "bool", [b"\1", None, b"\0"]),
    (pa.array(["é", None, ""]), "text", ["é".encode(), None, b""]),
    (pa.array([b"\0"], pa.large_binary()), "bytes", [b"\0"]),
    (pa.array([dt.date(1970, 1, 3)]), "date32", [b"\2\0\0\0"]),
    (
        pa.array([NOON], pa.timestamp("us", "UTC")),
        "timestamp(us,UTC)",
        [struct.pack("<q", int(NOON.timestamp()) * 1_000_000)],
    ),
    (pa.array([dt.time(0, 0, 1)], pa.time64("us")), "time64(us)", [struct.pack("<q", 10**6)]),
    (
        pa.array([Decimal("-1.25")], pa.decimal128(12, 2)),
        "decimal128(12,2)",
        [(-125).to_bytes(16, "little", signed=True)],
    ),
    (pa.nulls(2), "null", [None, None]),
    (pa.array(["b", "a", None]).dictionary_encode(), "text", [b"b", b"a", None]),
    (
        pa.array([[1, None], [], None, [2]], pa.list_(pa.int8())),
        "list(int8)",
        [b"\1\0\0\0\1\xff\xff\xff\xff", b"", None, b"\1\0\0\0\2"],
    ),
    (
        pa.array([[["x"], []], None], pa.list_(pa.list_(pa.string()))),
        "list(list(text))",
        [b"\5\0\0\0\1\0\0\0x\0\0\0\0", None],
    ),
]


@pytest.mark.parametrize(("array", "name", "stored"), FORMS, ids=[name for _, name, _ in FORMS])
def test_typed_values_have_one_form(array: pa.Array, name: str, stored: list[bytes | None]) -> None:
    assert type_text(array.type) == name
    assert encoded(array).to_pylist() == stored
    padded = pa.concat_arrays([array, array])
    assert encoded(padded.slice(1, len(array))).to_pylist() == (stored * 2)[1 : 1 + len(array)]
    assert encoded(array.slice(0, 0)).to_pylist() == []


def test_every_nan_is_one_nan() -> None:
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    assert set(encoded(pa.array(odd)).to_pylist()) == {struct.pack("<d", float("nan"))}


def test_a_type_without_a_form_is_refused() -> None:
    with pytest.raises(UsageError, match="no form that could be digested"):
        type_text(pa.struct([("a", pa.int8())]))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_output_is_digested_alike_in_any_pieces(size: int) -> None:
    table = pa.table({"a": pa.array(range(10), pa.int16()), "b": [str(i) for i in range(10)]})
    digest = TableDigest([("a", "int16"), ("b", "text")])
    for start in range(0, 10, size):
        part = table.slice(start, size)
        add_output(digest, np.arange(start, start + part.num_rows, dtype=np.int64), part)
    rows: list[Row] = [(i, [i.to_bytes(2, "little"), str(i).encode()]) for i in range(10)]
    assert digest.done().table == digest_of([("a", "int16"), ("b", "text")], rows)
