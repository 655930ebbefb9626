"""Values: Postgres is the oracle. What was decoded must, written back, be the value it was."""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.postgres.copy_codec import CODEC
from cdc.postgres.values.arrays import ExplicitBounds, parse_array
from cdc.postgres.values.builtin_types import ARRAYS, BUILTIN
from cdc.postgres.values.loaders import loader
from eventlog.changes.codec import Form
from eventlog.changes.schema import Column, Schema, SourceType
from tests import nasty_values
from tests.fix_postgres import Database

NO_TYPES = Schema(
    id=0, offset=0, relation=1, namespace="public", name="t", identity="d", columns=()
)


def python(oid: int, text: bytes, schema: Schema = NO_TYPES) -> Any:
    return loader(schema, oid, "python")(text)


def as_json(oid: int, text: bytes, schema: Schema = NO_TYPES) -> Any:
    return loader(schema, oid, "json")(text)


def quoted(item: str | None) -> str:
    if item is None:
        return "NULL"
    escaped = item.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def written(value: Any, *, mark: str = ",") -> Any:
    """A decoded value as the text that Postgres reads."""
    match value:
        case None:
            return None
        case list():
            items = (
                written(item, mark=mark) if isinstance(item, list) else quoted(written(item))
                for item in value
            )
            return "{" + mark.join(items) + "}"
        case bytes():
            return "\\x" + value.hex()
        case dt.date() | dt.time():
            return value.isoformat()
        case _:
            return str(value)


def equal(database: Database, column: str, key: bytes, value: Any) -> Any:
    """Whether Postgres holds that value, compared as the texts it prints of both."""
    declared = nasty_values.NAMES[column]
    if declared == "public.int_list[]":  # arrays inside are elements of their own, and quoted
        value = [written(item) for item in value]
    text = written(value, mark=";" if declared == "box[]" else ",")
    return database.value(
        f"select (%s::{declared})::text = {column}::text from public.nasty where id = %s::integer",
        [text, key.decode()],
    )


@pytest.fixture
def nasty(database: Database) -> Database:
    nasty_values.create(database)
    return database


def values(database: Database, form: Form) -> Iterator[tuple[str, bytes, bytes, Any]]:
    """Every value that is not NULL: its column, its row's key, its text and what it loads as."""
    schema = nasty_values.schema_of(database, "nasty")
    loaders = CODEC.loaders(schema, form)
    lines = nasty_values.copied(database, "nasty")
    for change in CODEC.decode(lines, range(len(lines)), {schema.relation: schema}):
        assert change.new is not None
        key, *texts = change.new
        assert isinstance(key, bytes)
        for column, load, text in zip(schema.columns[1:], loaders[1:], texts, strict=True):
            if text is None:
                where = f"from public.nasty where id = {key.decode()}"
                assert database.value(f"select {column.name} is null {where}"), column
            else:
                assert isinstance(text, bytes)
                yield column.name, key, text, load(text)


def test_every_decoded_value_written_back_is_what_postgres_holds(nasty: Database) -> None:
    seen = 0
    for column, key, text, value in values(nasty, "python"):
        assert equal(nasty, column, key, value) is True, (column, text, value)
        seen += 1
    assert seen == sum(map(len, nasty_values.VALUES.values()))


def test_json_values_are_the_source_text_or_the_same_value(nasty: Database) -> None:
    seen = 0
    for column, key, text, loaded in values(nasty, "json"):
        value = json.loads(json.dumps(loaded, allow_nan=False))
        if isinstance(value, str):
            assert value.encode() == text
        else:
            assert equal(nasty, column, key, value) is True, (column, text, value)
        seen += 1
    assert seen == sum(map(len, nasty_values.VALUES.values()))


def test_json_numbers_are_ints_and_finite_floats_alone() -> None:
    assert as_json(23, b"-7") == -7
    assert as_json(20, b"9223372036854775807") == 9223372036854775807
    assert as_json(701, b"0.1") == 0.1
    assert as_json(700, b"NaN") == "NaN"
    assert as_json(701, b"-Infinity") == "-Infinity"
    assert as_json(1700, b"12.50") == "12.50"
    assert as_json(26, b"7") == "7"
    assert as_json(16, b"t") is True
    assert as_json(17, b"\\x00ff") == "\\x00ff"
    assert as_json(3802, b'{"a": 1}') == '{"a": 1}'
    assert as_json(1007, b"{1,NULL,3}") == [1, None, 3]
    assert as_json(1022, b"{NaN,0.5}") == ["NaN", 0.5]
    assert as_json(1007, b"[0:1]={7,8}") == "[0:1]={7,8}"


@pytest.mark.parametrize(
    ("oid", "text", "value"),
    [
        (20, b"-5", -5),
        (26, b"4294967295", 4294967295),
        (701, b"-Infinity", -math.inf),
        (1700, b"1.50", Decimal("1.50")),
        (1700, b"Infinity", Decimal("Infinity")),
        (16, b"f", False),
        (17, b"\\x00ff", b"\x00\xff"),
        (2950, b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", UUID("a0eebc999c0b4ef8bb6d6bb9bd380a11")),
        (1082, b"2026-01-31", dt.date(2026, 1, 31)),
        (1083, b"12:34:56.5", dt.time(12, 34, 56, 500_000)),
        (1266, b"12:00:00+02", dt.time(12, tzinfo=dt.timezone(dt.timedelta(hours=2)))),
        (1114, b"2026-01-31 12:00:00.000001", dt.datetime(2026, 1, 31, 12, 0, 0, 1)),
        (1184, b"2026-01-31 12:00:00+00", dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)),
        (3802, b"null", "null"),
        (1186, b"P1Y", "P1Y"),
        (1009, b'{a,NULL,"NULL","x,y"}', ["a", None, "NULL", "x,y"]),
        (1007, b"{{1,2},{3,NULL}}", [[1, 2], [3, None]]),
        (1020, b"{(1,1),(0,0);(2,2),(1,1)}", ["(1,1),(0,0)", "(2,2),(1,1)"]),
    ],
)
def test_python_types(oid: int, text: bytes, value: Any) -> None:
    found = python(oid, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (1082, "infinity"),
        (1082, "0044-03-15 BC"),
        (1082, "10000-01-01"),
        (1083, "24:00:00"),
        (1266, "24:00:00+00"),
        (1114, "-infinity"),
        (1114, "294247-01-09 04:00:54.775807"),
        (1114, "10000-01-01 00:00:00"),
        (1184, "0044-03-15 12:00:00+00 BC"),
        (1184, "2026-01-31 12:00:00"),  # no zone: not what the pinned settings print
        (1007, "[0:1]={7,8}"),
        (23, "seven"),
        (701, "1,5"),
        (1700, "1.2.3"),
        (16, "true"),
        (17, "\\x0"),
        (17, "escape\\\\000"),
        (2950, "not-a-uuid"),
    ],
)
def test_what_python_cannot_hold_is_its_text(oid: int, text: str) -> None:
    assert python(oid, text.encode()) == text


def test_nan_is_a_float_and_a_decimal() -> None:
    assert math.isnan(python(700, b"NaN"))
    assert python(1700, b"NaN").is_nan()


@given(st.sampled_from([*BUILTIN, *ARRAYS]), st.binary())
def test_no_bytes_make_a_loader_raise(oid: int, text: bytes) -> None:
    python(oid, text)
    json.dumps(as_json(oid, text), allow_nan=False).encode()


@given(st.sampled_from([*ARRAYS]), st.text(alphabet='{}",;\\NUL1 t[]:=', max_size=30))
def test_no_array_text_makes_a_loader_raise(oid: int, text: str) -> None:
    python(oid, text.encode())
    as_json(oid, text.encode())


def test_bytes_that_are_not_utf8_survive() -> None:
    text = python(25, b"caf\xe9")
    assert text.encode("utf-8", "surrogateescape") == b"caf\xe9"
    assert as_json(25, b"caf\xe9") == "caf\\xe9"


@given(st.lists(st.one_of(st.none(), st.text()), min_size=1))
def test_any_strings_survive_in_an_array(items: list[str | None]) -> None:
    text = "{" + ",".join(map(quoted, items)) + "}"
    assert parse_array(text.encode(), bytes.decode) == items


@given(st.recursive(st.lists(st.integers(), min_size=1), lambda inner: st.lists(inner, min_size=1)))
def test_nested_arrays(nested: list[Any]) -> None:
    text = json.dumps(nested, separators=(",", ":")).replace("[", "{").replace("]", "}")
    assert parse_array(text.encode(), int) == nested


def test_nesting_takes_no_recursion() -> None:
    depth = 20_000
    value = parse_array(b"{" * depth + b"1" + b"}" * depth, int)
    for _ in range(depth):
        (value,) = value
    assert value == 1


@pytest.mark.parametrize(
    "text",
    ["", "1", "{", "}", "{1", "1}", "{1}{2}", "{1,}", "{,1}", "{1,,2}", '{"a}', '{a"b"}', "{{1}2}",
     "{1}2}", "{1},", "{1} ", "{{1},}", '{"a"b}'],
)  # fmt: skip
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_array(text.encode(), bytes)


def test_explicit_bounds_are_told_apart() -> None:
    with pytest.raises(ExplicitBounds):
        parse_array(b"[0:1]={7,8}", int)


def test_domains_and_their_arrays_load_as_the_base_type() -> None:
    types = {
        90001: SourceType(id=90001, namespace="p", name="d", kind="d", base=1007, base_typmod=-1),
        90002: SourceType(id=90002, namespace="p", name="_d", kind="a", element=90001),
        90003: SourceType(id=90003, namespace="p", name="dd", kind="d", base=90001),
        90004: SourceType(id=90004, namespace="p", name="mood", kind="e"),
    }
    schema = Schema(
        id=0,
        offset=0,
        relation=1,
        namespace="public",
        name="t",
        identity="d",
        columns=tuple(Column(name=str(oid), type=oid, typmod=-1, key=False) for oid in types),
        types=types,
    )
    assert python(90001, b"{1,2}", schema) == [1, 2]
    assert python(90003, b"{1,2}", schema) == [1, 2]
    assert python(90002, b'{"{1,2}",NULL}', schema) == [[1, 2], None]
    assert python(90004, b"sad", schema) == "sad"
    assert python(99999, b"unknown to all", schema) == "unknown to all"
    assert len(CODEC.loaders(schema, "python")) == len(types)


def test_a_type_names_itself_in_a_circle_and_does_not_hang() -> None:
    types = {
        1_000_001: SourceType(id=1_000_001, namespace="p", name="a", kind="d", base=1_000_002),
        1_000_002: SourceType(id=1_000_002, namespace="p", name="b", kind="d", base=1_000_001),
        1_000_003: SourceType(id=1_000_003, namespace="p", name="c", kind="a", element=1_000_003),
    }
    schema = Schema(
        id=0, offset=0, relation=1, namespace="p", name="t", identity="d", columns=(), types=types
    )
    assert python(1_000_001, b"x", schema) == "x"
    assert python(1_000_003, b"x", schema) == "x"


def test_builtin_types_are_those_of_the_server(database: Database) -> None:
    held = {
        oid: (name, array)
        for oid, name, array in database.fetch(
            "select oid::bigint, format_type(oid, -1), typarray::bigint from pg_type"
        )
    }
    assert {oid: held[oid] for oid in BUILTIN} == BUILTIN
    arrays = database.fetch(
        "select oid::bigint, typelem::bigint from pg_type"
        " where typcategory = 'A' and typelem <> 0 and oid = any(%s)",
        [list(ARRAYS)],
    )
    assert dict(arrays) == ARRAYS


def test_type_names_are_format_types(nasty: Database) -> None:
    schema = nasty_values.schema_of(nasty, "nasty")
    expected = dict(
        nasty.fetch(
            "select attname::text, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = %s and attnum > 0",
            [schema.relation],
        )
    )
    found = {column.name: CODEC.type_name(schema, column) for column in schema.columns}
    assert found == expected
    assert found["c7"] == "numeric(12,2)"


@given(st.floats(width=32))
def test_a_real_prints_and_loads_as_the_shortest_text(value: float) -> None:
    text = repr(value).encode()
    if not math.isnan(value):
        assert struct.pack(">d", python(700, text)) == struct.pack(">d", value)
