"""Arrow columns: exact or named as unfit, never silently another value. Postgres is the oracle."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.postgres.copy_codec import CODEC
from cdc.postgres.pgoutput import CODEC as PGOUTPUT
from eventlog.changes.change import ABSENT, UNCHANGED, Text
from eventlog.changes.schema import Column, Schema, SourceType
from eventlog.changes.split import texts_of
from tests import nasty_values
from tests.fix_postgres import Database
from tests.test_values import equal

TYPES = {
    90001: SourceType(
        id=90001, namespace="p", name="amount", kind="d", base=1700, base_typmod=(12 << 16 | 2) + 4
    ),
    90002: SourceType(id=90002, namespace="p", name="_amount", kind="a", element=90001),
    90003: SourceType(id=90003, namespace="p", name="mood", kind="e"),
    90004: SourceType(id=90004, namespace="p", name="ints", kind="d", base=1007),
    90005: SourceType(id=90005, namespace="p", name="_ints", kind="a", element=90004),
}


def schema_with(oid: int, typmod: int = -1) -> tuple[Schema, Column]:
    column = Column(name="c", type=oid, typmod=typmod, key=False)
    schema = Schema(
        id=0,
        offset=0,
        relation=1,
        namespace="public",
        name="t",
        identity="d",
        columns=(column,),
        types=TYPES,
    )
    return schema, column


def numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


def converted(
    oid: int, texts: list[Text], target: pa.DataType | None = None, *, typmod: int = -1
) -> tuple[list[Any], list[int]]:
    schema, column = schema_with(oid, typmod)
    target = CODEC.arrow_type(schema, column) if target is None else target
    array, unfit = CODEC.arrow_array(schema, column, texts_of(texts), target)
    array.validate(full=True)
    assert array.type == target
    assert len(array) == len(texts)
    assert unfit == sorted(set(unfit))
    assert all(not array[place].is_valid for place in unfit)
    return array.to_pylist(), unfit


@pytest.mark.parametrize(
    ("oid", "typmod", "expected"),
    [
        (21, -1, pa.int16()),
        (23, -1, pa.int32()),
        (20, -1, pa.int64()),
        (26, -1, pa.uint32()),
        (700, -1, pa.float32()),
        (701, -1, pa.float64()),
        (16, -1, pa.bool_()),
        (17, -1, pa.binary()),
        (25, -1, pa.string()),
        (1043, 24, pa.string()),
        (1082, -1, pa.date32()),
        (1083, -1, pa.time64("us")),
        (1114, -1, pa.timestamp("us")),
        (1184, 3, pa.timestamp("us", "UTC")),
        (1266, -1, pa.string()),
        (1186, -1, pa.string()),
        (2950, -1, pa.string()),
        (3802, -1, pa.string()),
        (1700, -1, pa.decimal128(38, 9)),
        (1700, numeric(12, 2), pa.decimal128(12, 2)),
        (1700, numeric(38, 38), pa.decimal128(38, 38)),
        (1700, numeric(39, 0), pa.decimal256(39, 0)),
        (1700, numeric(76, 10), pa.decimal256(76, 10)),
        (1700, numeric(77, 10), pa.string()),
        (1700, numeric(5, -2), pa.string()),
        (1700, numeric(3, 5), pa.string()),
        (1007, -1, pa.list_(pa.int32())),
        (1231, numeric(10, 2), pa.list_(pa.decimal128(10, 2))),
        (90001, -1, pa.decimal128(12, 2)),
        (90002, -1, pa.list_(pa.decimal128(12, 2))),
        (90003, -1, pa.string()),
        (90004, -1, pa.list_(pa.int32())),
        (90005, -1, pa.list_(pa.list_(pa.int32()))),
        (99999, -1, pa.string()),
    ],
)
def test_types_follow_from_the_declared_type_alone(
    oid: int, typmod: int, expected: pa.DataType
) -> None:
    schema, column = schema_with(oid, typmod)
    assert CODEC.arrow_type(schema, column) == expected
    assert PGOUTPUT.arrow_type(schema, column) == expected
    empty, unfit = CODEC.arrow_array(schema, column, texts_of([]), expected)
    assert (empty.type, len(empty), unfit) == (expected, 0, [])


UNFIT = {
    "numeric": {"NaN", "Infinity", "-Infinity", nasty_values.LONG, "1e-130"}
    | {"350000000000000000000000000000"},
    "numeric(12,2)": {"NaN"},
    "numeric(50,10)": {"NaN"},
    "date": {"infinity", "-infinity"},
    "time without time zone": {"24:00:00"},
    "timestamp without time zone": {"infinity", "-infinity", "294276-12-31 23:59:59.999999"},
    "timestamp with time zone": {"infinity", "-infinity", "294276-12-31 23:59:59+00"},
    "public.moment": {"infinity"},
    "integer[]": {"{{1,2},{3,4}}", "[0:1]={7,8}", "[2:2][0:0]={{9}}"},
    "text[]": {'{{"a b",c},{NULL,"}"}}'},
    "numeric(10,2)[]": {"{NaN}"},
    "date[]": {"{2026-01-31,infinity}"},
}
"""By type: the literals that its Arrow type cannot hold."""

MICROS = "(extract(epoch from {0}) * 1000000)::numeric"
INSTANT = {
    "date": ("{0} - '1970-01-01'::date", pa.int32()),
    "time without time zone": (MICROS, pa.int64()),
    "time(3) without time zone": (MICROS, pa.int64()),
    "timestamp without time zone": (MICROS, pa.int64()),
    "timestamp with time zone": (MICROS, pa.int64()),
    "timestamp(3) with time zone": (MICROS, pa.int64()),
    "public.moment": (MICROS, pa.int64()),
    "date[]": (
        "array(select d - '1970-01-01'::date from unnest({0}) with ordinality u(d, n) order by n)",
        pa.list_(pa.int32()),
    ),
}
"""By type: what Arrow stores of it, as Postgres reckons it."""


def test_every_value_is_exact_or_named_as_unfit(database: Database) -> None:
    nasty_values.create(database)
    schema = nasty_values.schema_of(database, "nasty")
    lines = nasty_values.copied(database, "nasty")
    rows = [c.new for c in CODEC.decode(lines, range(len(lines)), {schema.relation: schema})]
    for place, column in enumerate(schema.columns[1:], 1):
        declared = nasty_values.NAMES[column.name]
        literals = nasty_values.VALUES[declared]
        texts = [row[place] for row in rows if row is not None]
        target = CODEC.arrow_type(schema, column)
        array, unfit = CODEC.arrow_array(schema, column, texts_of(texts), target)
        array.validate(full=True)
        expected = [i for i, text in enumerate(literals) if text in UNFIT.get(declared, ())]
        assert unfit == expected, (declared, [texts[i] for i in unfit])
        sql, width = INSTANT.get(declared, ("", None))
        stored = array if width is None else array.cast(width)
        for row, value in enumerate(stored.to_pylist()):
            key = str(row).encode()
            if row >= len(literals) or row in unfit:
                assert value is None
            elif sql:
                reckoned = f"select {sql.format(column.name)} from public.nasty where id = {row}"
                assert value == database.value(reckoned), (declared, texts[row], value)
            elif pa.types.is_float32(target):
                text = str(pa.scalar(value, pa.float32()))
                assert equal(database, column.name, key, text) is True
            elif pa.types.is_decimal(target):
                held = database.value(f"select {column.name} from public.nasty where id = {row}")
                assert value == held, (declared, texts[row])
            elif declared in ("public.amount[]", "double precision[]"):
                assert len(value) == (texts[row] or b"").count(b",") + 1
            else:
                assert equal(database, column.name, key, value) is True, (declared, value)


def test_markers_are_null_and_no_misfits() -> None:
    texts: list[Text] = [b"1", None, UNCHANGED, ABSENT, b"2"]
    assert converted(23, texts) == ([1, None, None, None, 2], [])
    assert converted(25, texts) == (["1", None, None, None, "2"], [])
    lists: list[Text] = [b"{1,NULL}", UNCHANGED, None, b"{}"]
    assert converted(1007, lists) == ([[1, None], None, None, []], [])


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_one_bad_value_spoils_no_other(count: int) -> None:
    texts: list[Text] = [b"2026-01-%02d" % (1 + i % 28) for i in range(count)]
    good, none = converted(1082, texts)
    assert none == []
    for place in {0, count // 2, count - 1}:
        spoilt = texts[:]
        spoilt[place] = b"infinity"
        values, unfit = converted(1082, spoilt)
        assert unfit == [place]
        assert values == [None if i == place else value for i, value in enumerate(good)]


def test_endless_values_among_others_that_do_not_fit() -> None:
    texts: list[Text] = [b"NaN", b"1.5", b"1e99", None, b"-Infinity", b"2"]
    expected = [None, Decimal("1.5"), None, None, None, Decimal(2)]
    assert converted(1700, texts) == (expected, [0, 2, 4])
    texts = [b"infinity", b"0044-03-15 BC", b"2026-02-30", UNCHANGED]
    assert converted(1082, texts, pa.string())[1] == []
    schema, column = schema_with(1082)
    days, unfit = CODEC.arrow_array(schema, column, texts_of(texts), pa.date32())
    assert days.cast(pa.int32()).to_pylist() == [None, -735160, None, None]
    assert unfit == [0, 2]


def test_arrays_that_do_not_fit_are_named_by_their_row() -> None:
    texts: list[Text] = [
        b"{1.50,NULL}",
        b"{1.50,NaN}",
        None,
        b"{}",
        b"{{1}}",
        b"[0:0]={1}",
        b"no array",
        b"{NaN,NaN}",
        b"{2}",
    ]
    values, unfit = converted(1231, texts, typmod=numeric(10, 2))
    assert unfit == [1, 4, 5, 6, 7]
    assert values[0] == [Decimal("1.50"), None]
    assert values[3] == []
    assert values[8] == [Decimal("2.00")]


def test_arrays_of_a_domain_over_arrays() -> None:
    texts: list[Text] = [b'{"{1,2}",NULL,"{}"}', b'{"{{1}}"}', b'{"{x}"}']
    assert converted(90005, texts) == ([[[1, 2], None, []], None, None], [1, 2])


@pytest.mark.parametrize(
    ("oid", "text", "target", "value"),
    [
        (1082, b"infinity", pa.string(), "infinity"),
        (1007, b"[0:1]={7,8}", pa.string(), "[0:1]={7,8}"),
        (1700, b"NaN", pa.string(), "NaN"),
        (1700, b"12345678901234567890.5", pa.float64(), 12345678901234567890.5),
        (1700, b"-Infinity", pa.float64(), float("-inf")),
        (1700, b"1.5", pa.decimal128(20, 4), Decimal("1.5000")),
        (1700, b"-0.000000001", pa.decimal256(60, 9), Decimal("-0.000000001")),
        (1700, b"3.00", pa.int64(), 3),
        (701, b"1e+20", pa.decimal128(38, 0), Decimal(10**20)),
        (701, b"2.5", pa.float32(), 2.5),
        (20, b"7", pa.int16(), 7),
        (20, b"7", pa.float64(), 7.0),
        (20, b"-7", pa.decimal128(5, 2), Decimal("-7.00")),
        (25, b"42", pa.int32(), 42),
        (25, b"1.25", pa.float64(), 1.25),
        (25, b"18446744073709551615", pa.uint64(), 18446744073709551615),
        (16, b"t", pa.string(), "t"),
        (17, b"\\x00", pa.string(), "\\x00"),
        (25, b"plain", pa.large_string(), "plain"),
        (1007, b"{1,2}", pa.list_(pa.string()), ["1", "2"]),
        (1007, b"{1,2}", pa.large_list(pa.float64()), [1.0, 2.0]),
    ],
)
def test_casts(oid: int, text: bytes, target: pa.DataType, value: Any) -> None:
    assert converted(oid, [text, None], target) == ([value, None], [])


@pytest.mark.parametrize(
    ("oid", "text", "target"),
    [
        (25, b"\xff", pa.string()),
        (20, b"70000", pa.int16()),
        (20, b"-1", pa.uint32()),
        (20, b"123456", pa.decimal128(4, 2)),
        (1700, b"3.5", pa.int64()),
        (1700, b"1e999999999", pa.int64()),
        (1700, b"NaN", pa.int64()),
        (1700, b"1" + b"0" * 400, pa.float64()),
        (701, b"1e39", pa.float32()),
        (25, b"1_000", pa.int64()),
        (25, b"0x1A", pa.int64()),
        (25, b"", pa.float64()),
        (25, b"words", pa.decimal128(5, 2)),
        (16, b"true", pa.bool_()),
        (16, b"t", pa.int64()),
        (17, b"\\x0", pa.binary()),
        (17, b"00", pa.binary()),
        (1082, b"2026-02-30", pa.date32()),
        (1082, b"10001-02-30", pa.date32()),
        (1114, b"2026-01-31 12:00:00", pa.timestamp("us", "UTC")),
        (1184, b"2026-01-31 12:00:00+00", pa.timestamp("us")),
        (1184, b"10000-01-31 12:00:00+00", pa.timestamp("us")),
        (1114, b"10000-01-31 12:00:00", pa.timestamp("us", "UTC")),
        (1114, b"10000-01-31 12:00:00", pa.timestamp("ns")),
        (1114, b"10000-01-31 12:00:00", pa.date32()),
        (1114, b"1000-01-31 12:00:00", pa.timestamp("ns")),
        (1082, b"2026-01-31", pa.list_(pa.date32())),
        (25, b"x", pa.struct([("a", pa.int32())])),
    ],
)
def test_what_does_not_fit_is_null_and_named(oid: int, text: bytes, target: pa.DataType) -> None:
    assert converted(oid, [None, text, None], target) == ([None] * 3, [1])


def test_more_digits_than_arrow_can_add_up_are_never_another_number() -> None:
    # Arrow's own cast makes 9.7e27 of the first and -1 of the last, without a word
    texts: list[Text] = [b"350000000000000000000000000000", b"9" * 45, b"9" * 200]
    values, unfit = converted(1700, texts)
    assert (values, unfit) == ([None] * 3, [0, 1, 2])
    long: list[Text] = [b"1." + b"0" * 300]  # and 0 of this one, which does fit
    assert converted(1700, long) == ([Decimal(1)], [])


decimals = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=9),
    st.builds(
        lambda digits, places: Decimal(digits).scaleb(-places) if places else Decimal(digits),
        st.integers(-(10**34), 10**34).map(lambda n: n),
        st.integers(0, 12),
    ),
    st.integers(-(10**80), 10**80).map(Decimal),
    st.integers(28, 40).flatmap(lambda n: st.integers(10**n, 10 ** (n + 1))).map(Decimal),
)
targets = st.one_of(
    st.integers(1, 38).flatmap(lambda p: st.builds(pa.decimal128, st.just(p), st.integers(0, p))),
    st.integers(1, 76).flatmap(lambda p: st.builds(pa.decimal256, st.just(p), st.integers(0, p))),
)


@given(st.lists(decimals, min_size=1, max_size=8), targets)
def test_a_decimal_is_exact_or_unfit(values: list[Decimal], target: pa.DataType) -> None:
    texts: list[Text] = [format(value, "f").encode() for value in values]
    found, unfit = converted(1700, texts, target)
    with localcontext(prec=200):
        for place, value in enumerate(values):
            scaled = value.scaleb(target.scale)
            fits = scaled == int(scaled) and abs(int(scaled)) < 10**target.precision
            assert (place not in unfit) == fits, (value, target)
            assert found[place] == (value if fits else None)


@given(
    st.lists(st.binary(max_size=12), max_size=4),
    st.sampled_from([16, 17, 20, 21, 25, 700, 701, 1007, 1082, 1083, 1114, 1184, 1700, 1231]),
)
def test_no_bytes_make_a_conversion_raise(texts: list[Text], oid: int) -> None:
    converted(oid, texts)
