"""Whole columns of texts to Arrow: as each value alone, as the row decoder; nothing leaks in."""

from __future__ import annotations

import datetime as dt
import random
import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.postgres.copy_codec import CODEC
from cdc.postgres.values.columnar import exact, fixed, gather
from eventlog.changes.change import ABSENT, UNCHANGED, Text
from eventlog.changes.split import IS_ABSENT, IS_NULL, Texts, texts_of
from tests import every_type, nasty_values
from tests.test_arrow_values import numeric, schema_with

SAMPLES: dict[tuple[int, int], list[bytes]] = {
    (16, -1): [b"t", b"f"],
    (17, -1): [b"\\x", b"\\x00", b"\\x0aFf", b"\\x" + b"5c" * 40],
    (20, -1): [b"0", b"-1", b"99999999", b"123456789012", b"-9223372036854775808"],
    (21, -1): [b"0", b"-32768", b"32767"],
    (23, -1): [b"7", b"-2147483648", b"2147483647"],
    (25, -1): [b"", b"x", b"twelve bytes", b"thirteen byte", "naïve 漢字 🦔".encode(), b"y" * 300],
    (26, -1): [b"0", b"4294967295"],
    (700, -1): [b"1.5", b"-0", b"1e-45", b"NaN", b"-Infinity"],
    (701, -1): [b"0.1", b"-1.7976931348623157e+308", b"NaN", b"Infinity"],
    (1082, -1): [b"2026-01-31", b"0001-01-01", b"9999-12-31", b"2024-02-29"],
    (1083, -1): [b"00:00:00", b"23:59:59.999999", b"12:34:56.5"],
    (1114, -1): [b"2026-01-31 12:34:56", b"0001-01-01 00:00:00.1", b"9999-12-31 23:59:59.999999"],
    (1184, -1): [b"2026-01-31 12:34:56+00", b"2026-01-31 12:34:56.5+00"],
    (1700, -1): [b"0", b"-12.5", b"0.000000001", b"123456789.123456789", b"1.10"],
    (1700, numeric(12, 2)): [b"0.00", b"-9999999999.99", b"12.50"],
    (1700, numeric(18, 0)): [b"0", b"-999999999999999999"],
    (1700, numeric(38, 17)): [b"0.00000000000000001", b"-1.12345678901234567"],
    (1700, numeric(38, 20)): [b"123456789012345678.12345678901234567890"],
    (1700, numeric(50, 10)): [b"-1.0123456789", b"9" * 40 + b".0123456789"],
    (2950, -1): [b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
}
"""By type and modifier: texts as Postgres writes them."""

ODD = [
    b"",
    b"-",
    b".",
    b"-.5",
    b"5.",
    b"+5",
    b"007",
    b"-0",
    b"-0.00",
    b"0x1A",
    b" 1",
    b"1 ",
    b"1_0",
]
ODD += [b"1e3", b"1e-3", b"9" * 18, b"9" * 19, b"9" * 20, b"0" * 30 + b"1", b"18446744073709551615"]
ODD += [b"9223372036854775808", b"-9223372036854775809", b"1.2.3", b"--1", b"1-", b"99999999999.99"]
ODD += [b"2026-02-30", b"2026-13-01", b"2026-00-10", b"2026-01-00", b"0000-01-01", b"1900-02-29"]
ODD += [b"10000-01-01", b"0044-03-15 BC", b"24:00:00", b"12:60:00", b"12:00:60", b"12:00:00."]
ODD += [
    b"12:00:00.1234567",
    b"2026-01-31 24:00:00",
    b"2026-01-31T12:00:00",
    b"2026-01-31 12:00:00.",
]
ODD += [b"2026-01-31 12:00:00+01", b"2026-01-31 12:00:00.5+0", b"2026-01-31 12:00:00+00 BC"]
ODD += [
    b"true",
    b"T",
    b"\\x0",
    b"\\xzz",
    b"\\X00",
    b"00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc3",
    b"\x80",
]
ODD += [b"infinity", b"-infinity", b"NaN", b"Infinity", b"1e400", b"1e39", b"\0", b"2026-01-3\xb1"]

NEIGHBOURS = b"0123456789-.:+ \\tfxE\x00\x80\xff"

Bytes = Sequence[Text]


def target_of(oid: int, typmod: int) -> pa.DataType:
    schema, column = schema_with(oid, typmod)
    return CODEC.arrow_type(schema, column)


def column_of(
    oid: int, texts: Texts, target: pa.DataType, *, typmod: int = -1
) -> tuple[pa.Array, list[int]]:
    schema, column = schema_with(oid, typmod)
    array, unfit = CODEC.arrow_array(schema, column, texts, target)
    array.validate(full=True)
    assert array.type == target
    assert len(array) == len(texts)
    return array, unfit


def alone(oid: int, texts: Bytes, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Convert one value after the other, the exact way."""
    arrays, unfit = [pa.nulls(0, target)], []
    for place, text in enumerate(texts):
        held = text if isinstance(text, bytes) else None
        array, bad = exact.convert(oid, pa.array([held], pa.binary()), target)
        arrays.append(array)
        unfit += [place] * len(bad)
    return pa.concat_arrays(arrays), unfit


def same(found: pa.Array, expected: pa.Array) -> bool:
    """Whether all values are, and nulls; floats by what they print, as NaN is not itself."""
    if pa.types.is_floating(found.type):
        return repr(found.to_pylist()) == repr(expected.to_pylist())
    equal: bool = found.equals(expected)
    return equal


def assert_as_alone(oid: int, texts: Texts, target: pa.DataType, *, typmod: int = -1) -> None:
    found, unfit = column_of(oid, texts, target, typmod=typmod)
    expected, misfits = alone(oid, texts.to_list(), target)
    assert unfit == misfits, [texts.text(place) for place in {*unfit} ^ {*misfits}]
    assert same(found, expected)


def laid_out(texts: Bytes, order: Sequence[int], gaps: Sequence[bytes]) -> Texts:
    """Texts in a buffer in any order, something between them; gaps repeat."""
    starts, lengths = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    data = bytearray(gaps[0])
    for turn, place in enumerate(order, 1):
        text = texts[place]
        starts[place], lengths[place] = len(data), IS_NULL
        if isinstance(text, bytes):
            lengths[place] = len(text)
            data += text + gaps[turn % len(gaps)]
        else:
            starts[place] = (-1) ** place * 10**9  # means nothing
    return Texts(data=np.frombuffer(bytes(data), np.uint8), starts=starts, lengths=lengths)


every_sample = [text for texts in SAMPLES.values() for text in texts] + ODD
some_texts = st.one_of(
    st.sampled_from(every_sample),
    st.binary(max_size=30),
    st.integers(-(10**20), 10**20).map(lambda n: str(n).encode()),
    st.decimals(places=4, allow_nan=False, allow_infinity=False).map(lambda d: f"{d:f}".encode()),
    st.datetimes().map(lambda t: str(t).encode()),
    st.dates().map(lambda d: str(d).encode()),
    st.text(max_size=30).map(lambda s: s.encode("utf-8", "surrogatepass")),
)


values_of_a_type = st.sampled_from(sorted(SAMPLES)).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.lists(st.one_of(st.sampled_from([*SAMPLES[kind], None]), some_texts), max_size=12),
    )
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(values_of_a_type, st.integers(0, 2**32))
def test_a_column_is_what_its_values_are_alone(
    drawn: tuple[tuple[int, int], list[Text]], layout: int
) -> None:
    kind, values = drawn
    rng = random.Random(layout)
    order = rng.sample(range(len(values)), len(values))
    gaps = [bytes(rng.choices(NEIGHBOURS, k=rng.randrange(10))) for _ in range(4)]
    texts = laid_out(values, order, gaps)
    assert texts.to_list() == values
    assert_as_alone(kind[0], texts, target_of(*kind), typmod=kind[1])


def equal(found: Any, decoded: Any, target: pa.DataType) -> bool:
    """Whether Arrow holds the row decoder's value."""
    if isinstance(decoded, float) and pa.types.is_float32(target):
        decoded = float(np.float32(decoded))
    if isinstance(decoded, float):
        return struct.pack("d", found) == struct.pack("d", decoded)
    if isinstance(decoded, dt.datetime) and found.tzinfo != decoded.tzinfo:
        return (found.tzinfo is None) == (decoded.tzinfo is None) and found == decoded
    return found == (str(decoded) if isinstance(decoded, UUID) else decoded)


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_a_column_holds_what_the_row_decoder_reads(kind: tuple[int, int]) -> None:
    schema, column = schema_with(*kind)
    (load,) = CODEC.loaders(schema, "python")
    target = CODEC.arrow_type(schema, column)
    found, unfit = column_of(kind[0], texts_of(SAMPLES[kind]), target, typmod=kind[1])
    assert unfit == []
    for text, value in zip(SAMPLES[kind], found.to_pylist(), strict=True):
        assert equal(value, load(text), target), text


def test_any_text_in_any_column_is_what_it_is_alone() -> None:
    literals = [text for texts in every_type.LITERALS.values() for text in texts]
    literals += [text for texts in nasty_values.VALUES.values() for text in texts]
    texts = [text.encode() for text in sorted(set(literals))] + every_sample
    texts = [text for text in texts if len(text) < 40] + [None]
    random.Random(6).shuffle(texts)
    column = laid_out(texts, range(len(texts)), [b"9", b"", b"-1"])
    for oid in (16, 17, 20, 25, 701, 1082, 1083, 1184):
        assert_as_alone(oid, column, target_of(oid, -1))
    others = [pa.decimal128(5, 2), pa.uint64(), pa.date64(), pa.large_string(), pa.timestamp("ns")]
    for target in others:
        assert_as_alone(1700, column, target)


def is_read_whole(kind: tuple[int, int]) -> bool:
    """Whether the type has a way of its own, which takes all its samples."""
    target = target_of(*kind)
    wide = pa.types.is_decimal(target) and any(len(text) > 20 for text in SAMPLES[kind])
    return not (wide or pa.types.is_string(target) or pa.types.is_floating(target))


@pytest.mark.parametrize("kind", [*filter(is_read_whole, sorted(SAMPLES))])
def test_what_postgres_writes_needs_no_exact_way(
    kind: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(oid: int, texts: pa.Array, target: pa.DataType) -> None:
        raise AssertionError(texts)

    monkeypatch.setattr(exact, "convert", refuse)
    values = [*SAMPLES[kind], None, *SAMPLES[kind]]
    found, unfit = column_of(kind[0], texts_of(values), target_of(*kind), typmod=kind[1])
    assert (found.null_count, unfit) == (1, [])


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_no_neighbour_leaks_into_a_value(kind: tuple[int, int]) -> None:
    oid, typmod = kind
    values = [*SAMPLES[kind], b"-", b""]
    target = target_of(*kind)
    expected, misfits = alone(oid, values, target)
    for neighbour in NEIGHBOURS:
        gap = bytes([neighbour]) * 33
        texts = laid_out(values, range(len(values)), [gap])
        found, unfit = column_of(oid, texts, target, typmod=typmod)
        assert (unfit, same(found, expected)) == (misfits, True), gap


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_values_at_both_ends_of_the_buffer(kind: tuple[int, int]) -> None:
    oid, typmod = kind
    target = target_of(*kind)
    for value in [*SAMPLES[kind], b"-", b""]:
        expected, misfits = alone(oid, [value], target)
        for before in (0, 3, 4, 40):
            for behind in (0, 1, 40):
                texts = laid_out([value], [0], [b"8" * before, b"8" * behind])
                found, unfit = column_of(oid, texts, target, typmod=typmod)
                assert (unfit, same(found, expected)) == (misfits, True), (value, before, behind)


def test_nothings_are_null_wherever_they_point() -> None:
    lengths = np.array([1, -1, -2, -3, 1], np.int64)
    starts = np.array([0, -(2**63), 2**63 - 1, 1, 1], np.int64)
    data = np.frombuffer(b"12", np.uint8)
    expect_nothings(Texts(data=data, starts=starts, lengths=lengths))
    expect_nothings(Texts(data=np.resize(data, 64), starts=starts, lengths=lengths))


def expect_nothings(texts: Texts) -> None:
    """The three in the middle are null, in a column of any type."""
    for oid, typmod in SAMPLES:
        target = target_of(oid, typmod)
        found, unfit = column_of(oid, texts, target, typmod=typmod)
        assert found.is_null().to_pylist()[1:4] == [True] * 3
        assert not {1, 2, 3} & {*unfit}
        nothings, none = column_of(oid, texts.take(np.array([1, 2, 3])), target, typmod=typmod)
        assert (nothings.null_count, none) == (3, [])
        empty, none = column_of(oid, texts_of([]), target, typmod=typmod)
        assert (len(empty), none) == (0, [])


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_a_column_in_blocks_is_the_same(
    kind: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    oid, typmod = kind
    nothings: list[Text] = [None, UNCHANGED, ABSENT, None, None]
    values = [*SAMPLES[kind], *nothings, *ODD, *SAMPLES[kind], *nothings, *ODD[::-1]]
    target = target_of(*kind)
    whole, misfits = column_of(oid, texts_of(values), target, typmod=typmod)
    for rows in (1, 2, 7):
        monkeypatch.setattr(fixed, "ROWS_MAX", rows)
        found, unfit = column_of(oid, texts_of(values), target, typmod=typmod)
        assert (unfit, same(found, whole)) == (misfits, True)


@pytest.mark.parametrize("oid", [17, 23, 25, 701, 1007])
def test_more_bytes_than_one_array_holds_are_cut_up(
    oid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[Text] = [b"{1,2}", None, b"\\x0011", b"7", b"1234567890123", b"", b"2.5", None]
    texts, target = texts_of(values * 3), target_of(oid, -1)
    whole, misfits = column_of(oid, texts, target)
    for limit in (1, 6, 13, 20):
        monkeypatch.setattr(gather, "BYTES_MAX", limit)
        found, unfit = column_of(oid, texts, target)
        assert isinstance(found, pa.ChunkedArray)
        assert (unfit, found.to_pylist()) == (misfits, whole.to_pylist())


def test_a_buffer_beyond_the_reach_of_one_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_BUFFER_BITS", 5)
    values: list[Text] = [bytes([65 + n % 26]) * (n % 32) for n in range(100)]
    found, _ = column_of(25, texts_of(values), pa.string())
    assert [value.encode() for value in found.to_pylist()] == values


@pytest.mark.parametrize("size", [1, 4, 12, 13, 256, 257])
def test_texts_of_one_length_among_nothings(size: int) -> None:
    present: list[Text] = [bytes([65 + n % 26]) * size for n in range(30)]
    nothings: list[Text] = [None, UNCHANGED, ABSENT]
    for values in (present, [*nothings, *present, None], [present[0]], [None, present[0]]):
        found, misfits = column_of(25, texts_of(values), pa.string())
        texts = [value.decode() if isinstance(value, bytes) else None for value in values]
        assert (found.to_pylist(), misfits) == (texts, [])
        found.validate(full=True)


@pytest.mark.parametrize("month", [b"2026-02", b"2024-02", b"2026-00", b"2026-13", b"x026-01"])
def test_a_column_of_one_month_is_read_like_any_other(month: bytes) -> None:
    for oid, rest in [(1082, b""), (1114, b" 12:34:56.5"), (1184, b" 12:34:56.5+00")]:
        days = [b"%s-%02d%s" % (month, day, rest) for day in (0, 1, 28, 29, 30)]
        for values in (days, days[:1], days[2:3]):
            alike, other = texts_of(values), texts_of([*values, b"2026-07-14" + rest])
            found, misfits = column_of(oid, alike, target_of(oid, -1))
            mixed, wrong = column_of(oid, other, target_of(oid, -1))
            assert misfits == wrong
            assert found.to_pylist() == mixed.to_pylist()[:-1]


def test_a_text_outside_its_buffer_is_refused() -> None:
    data = np.frombuffer(b"123", np.uint8)
    for start, length in [(-1, 1), (3, 1), (0, 4), (2**62, 2**62), (4, 0)]:
        one = Texts(data=data, starts=np.array([start]), lengths=np.array([length]))
        for oid, typmod in SAMPLES:
            with pytest.raises(IndexError, match="beyond its buffer of 3 bytes"):
                column_of(oid, one, target_of(oid, typmod))


def test_a_text_longer_than_any_database_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "TEXT_MAX", 8)
    assert column_of(25, texts_of([b"12345678"]), pa.string())[1] == []
    with pytest.raises(ValueError, match="a value has 9 bytes"):
        column_of(25, texts_of([b"1", None, b"123456789"]), pa.string())


def test_huge_texts() -> None:
    long = "é".encode() * 3_000_000
    values: list[Text] = [b"1", long, b"9" * 200_000, b"-1." + b"0" * 100_000, None]
    assert column_of(25, texts_of(values), pa.string())[0].to_pylist()[1] == long.decode()
    amounts, unfit = column_of(1700, texts_of(values), pa.decimal128(38, 9))
    assert (amounts.to_pylist(), unfit) == ([1, None, None, -1, None], [1, 2])
    image = random.Random(7).randbytes(3_000_000)
    coded: list[Text] = [b"\\x" + image.hex().encode(), None, b"\\x"]
    assert column_of(17, texts_of(coded), pa.binary())[0].to_pylist() == [image, None, b""]


def in_a_row(texts: Any) -> Texts:
    """A numpy array of texts of one length."""
    width = texts.dtype.itemsize
    starts = np.arange(len(texts), dtype=np.int64) * width
    lengths = np.full(len(texts), width, np.int64)
    return Texts(data=texts.view(np.uint8), starts=starts, lengths=lengths)


def test_every_day_of_the_calendar() -> None:
    cycle = np.arange(np.datetime64("1800-01-01"), np.datetime64("2200-01-01"))
    rest = np.arange(np.datetime64("0001-01-01"), np.datetime64("9999-12-31"), 97)
    days = np.concatenate([cycle, rest, [np.datetime64("9999-12-31")]])
    texts = np.datetime_as_string(days).astype("S10")
    found, unfit = column_of(1082, in_a_row(texts), pa.date32())
    assert unfit == []
    assert np.array_equal(found.cast(pa.int32()).to_numpy(), days.astype(np.int32))


def test_no_day_outside_the_calendar() -> None:
    values: list[Text] = []
    expected: list[dt.date | None] = []
    for year in (1, 4, 100, 1900, 2000, 2023, 2024, 9999):
        for month in range(15):
            for day in range(34):
                values.append(b"%04d-%02d-%02d" % (year, month, day))
                try:
                    expected.append(dt.date(year, month, day))
                except ValueError:
                    expected.append(None)
    assert column_of(1082, texts_of(values), pa.date32())[0].to_pylist() == expected
    moments: list[Text] = [text + b" 01:02:03" for text in values if isinstance(text, bytes)]
    found, unfit = column_of(1114, texts_of(moments), pa.timestamp("us"))
    clock = dt.time(1, 2, 3)
    assert found.to_pylist() == [day and dt.datetime.combine(day, clock) for day in expected]
    assert unfit == [place for place, day in enumerate(expected) if day is None]


def test_moments_with_every_length_of_fraction() -> None:
    rng = random.Random(8)
    print("seed 8")
    moments = [
        dt.datetime(1, 1, 1) + dt.timedelta(rng.randrange(3_652_059), second, rng.randrange(10**6))
        for second in range(0, 86_400, 7)
    ]
    places = [rng.randrange(7) for _ in moments]
    cut = [
        moment.replace(microsecond=moment.microsecond // 10 ** (6 - n) * 10 ** (6 - n))
        for moment, n in zip(moments, places, strict=True)
    ]
    texts = [
        f"{moment:%H:%M:%S}" + f".{moment.microsecond:06d}"[: n + 1 if n else 0]
        for moment, n in zip(cut, places, strict=True)
    ]
    dated = [f"{m.date()} {text}".encode() for m, text in zip(cut, texts, strict=True)]
    times, unfit = column_of(1083, texts_of(text.encode() for text in texts), pa.time64("us"))
    assert (times.to_pylist(), unfit) == ([moment.time() for moment in cut], [])
    unzoned, unfit = column_of(1114, texts_of(dated), pa.timestamp("us"))
    assert (unzoned.to_pylist(), unfit) == (cut, [])
    zoned = texts_of(text + b"+00" for text in dated)
    instants, unfit = column_of(1184, zoned, pa.timestamp("us", "UTC"))
    assert (instants.to_pylist(), unfit) == ([m.replace(tzinfo=dt.UTC) for m in cut], [])


@pytest.mark.parametrize(
    ("oid", "target", "low", "high"),
    [
        (21, pa.int16(), -(2**15), 2**15 - 1),
        (23, pa.int32(), -(2**31), 2**31 - 1),
        (20, pa.int64(), -(2**63), 2**63 - 1),
        (26, pa.uint32(), 0, 2**32 - 1),
        (20, pa.uint64(), 0, 2**64 - 1),
    ],
)
def test_whole_numbers_around_every_edge(
    oid: int, target: pa.DataType, low: int, high: int
) -> None:
    edges = {0, low, high, *(10**n for n in range(21)), *(2**n for n in range(66))}
    numbers = sorted(
        {sign * edge + step for edge in edges for sign in (1, -1) for step in (-1, 0, 1)}
    )
    found, unfit = column_of(oid, texts_of(str(n).encode() for n in numbers), target)
    assert found.to_pylist() == [n if low <= n <= high else None for n in numbers]
    assert unfit == [place for place, n in enumerate(numbers) if not low <= n <= high]
    for number in numbers:  # Beside a negative one, and as the longest.
        found, unfit = column_of(oid, texts_of([b"-1", str(number).encode()]), target)
        assert found[1].as_py() == (number if low <= number <= high else None), number


@pytest.mark.parametrize(
    ("precision", "scale"),
    [(1, 0), (17, 8), (18, 0), (18, 9), (18, 17), (18, 18), (19, 1), (38, 9), (38, 38), (76, 16)],
)
def test_decimals_around_every_edge(precision: int, scale: int) -> None:
    make = pa.decimal128 if precision <= 38 else pa.decimal256
    edges = [10**n for n in (0, 1, 7, 8, 9, 15, 16, 17, 18, 19, 20, 37, 38, 41)]
    steps = [edge * d + s for edge in edges for d in (1, 9) for s in (-1, 0, 1)]
    values: list[Text] = []
    expected: list[Decimal | None] = []
    for decimals in (0, 1, 7, 8, 9, 16, 17, 18):
        for step in [*steps, *(-step for step in steps)]:
            sign, digits = "-" * (step < 0), str(abs(step)).zfill(decimals + 1)
            cut = len(digits) - decimals
            values.append(f"{sign}{digits[:cut]}{'.' * (decimals > 0)}{digits[cut:]}".encode())
            unscaled, lost = divmod(abs(step) * 10**scale, 10**decimals)
            fits = not lost and unscaled < 10**precision
            exactly = f"{sign}{unscaled}e-{scale}"
            expected.append(Decimal(exactly) if fits else None)
    found, unfit = column_of(1700, texts_of(values), make(precision, scale))
    assert unfit == [place for place, value in enumerate(expected) if value is None]
    assert found.to_pylist() == expected


def test_an_exponent_far_out_is_no_harm() -> None:
    # Arrow's own cast reads foreign memory for the first
    values: list[Text] = [b"7E-58975172", b"1e3", b"1e-2", b"1E58975172", b"12.5"]
    found, unfit = column_of(1700, texts_of(values), pa.decimal128(38, 2))
    assert found.to_pylist() == [None, Decimal(1000), Decimal("0.01"), None, Decimal("12.5")]
    assert unfit == [0, 3]


def test_absent_rows_alone_make_a_column_of_nulls() -> None:
    lengths = np.full(3, IS_ABSENT, np.int64)
    texts = Texts(data=np.zeros(0, np.uint8), starts=np.zeros(3, np.int64), lengths=lengths)
    found, unfit = column_of(1184, texts, pa.timestamp("us", "UTC"))
    assert (found.null_count, unfit) == (3, [])
