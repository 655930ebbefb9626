"""A table of every common type with values that break readers, and its schema as captured.

Literals are texts that Postgres itself reads, so the server decides what each of them means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.postgres.values.builtin_types import BUILTIN
from eventlog.changes.schema import Column, Schema, SourceType

if TYPE_CHECKING:
    from tests.fix_postgres import Database

PINNED = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "search_path": "pg_catalog",
}
"""The session settings of D9."""

TYPES_SQL = """
    create type public.mood as enum ('sad', 'ok', 'so "so"', '');
    create type public.pair as (a integer, b text);
    create domain public.amount as numeric(12,2) check (value >= 0);
    create domain public.small_amount as public.amount;
    create domain public.int_list as integer[];
    create domain public.moment as timestamp(3) with time zone;
    create type public.span as range (subtype = double precision);
"""

BACKSLASHES = "a\\b\\\\n\\N\\.\\t"
CONTROLS = "tab\there\nnew\rline\vv\ff\bb\x01"
LONG = "1" + "0" * 5000 + "." + "3" * 900

VALUES: dict[str, list[str]] = {
    "smallint": ["0", "-32768", "32767"],
    "integer": ["0", "-2147483648", "2147483647"],
    "bigint": ["0", "-9223372036854775808", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "real": ["0", "-0", "1.1", "3.4028235e38", "1e-45", "NaN", "Infinity", "-Infinity"],
    "double precision": ["-0", "0.1", "1.7976931348623157e308", "5e-324", "NaN", "-Infinity"],
    "numeric": [
        "0", "1.50", "-0.000000001", "NaN", "Infinity", "-Infinity", LONG, "12345.6",
        "350000000000000000000000000000", "1e-130",
    ],
    "numeric(12,2)": ["0", "-9999999999.99", "9999999999.99", "NaN", "1.5"],
    "numeric(38,9)": ["99999999999999999999999999999.999999999", "-1e-9", "35"],
    "numeric(50,10)": ["9999999999999999999999999999999999999999.9999999999", "-1", "NaN"],
    "numeric(80,2)": ["9" * 78 + ".99"],
    "numeric(5,-2)": ["1234567", "-100"],
    "numeric(3,5)": ["0.00999", "-0.00001"],
    "boolean": ["t", "f"],
    "text": ["", BACKSLASHES, CONTROLS, "'\"{},NULL", "NULL", "naïve 漢字 🦔", " pad ", "x" * 9000],
    "character varying(20)": ["", "ünïcode", "\\N"],
    "character varying": ["no limit"],
    "character(6)": ["ab", "", "ab\tcd"],
    "bpchar": ["ab  "],
    '"char"': ["x", ""],
    "name": ["a name"],
    "bytea": ["\\x", "\\x00ff5c0a09", "\\x" + "ab" * 5000],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"],
    "date": [
        "2026-01-31", "0001-01-01", "9999-12-31", "10000-01-01", "5874897-12-31", "4713-01-01 BC",
        "0001-12-31 BC", "infinity", "-infinity", "0401-02-29 BC", "0005-02-28 BC", "100000-02-28",
        "2942470-01-09",
    ],
    "time without time zone": ["00:00", "23:59:59.999999", "24:00:00", "12:34:56.5", "01:02:03"],
    "time(3) without time zone": ["12:34:56.789"],
    "time with time zone": ["00:00+00", "12:34:56.5-00:30", "24:00:00+15:59", "01:02:03+05:30:15"],
    "timestamp without time zone": [
        "2026-01-31 12:00:00.123456", "0001-01-01", "9999-12-31 23:59:59.999999", "infinity",
        "-infinity", "0044-03-15 12:00:00 BC", "294247-01-09 04:00:54.775807", "10000-01-01",
        "294276-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC", "2026-01-31 12:00:00.5",
    ],
    "timestamp with time zone": [
        "2026-01-31 12:00:00.123456+05", "0001-01-01 00:00+00", "9999-12-31 23:59:59.999999+00",
        "infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "294247-01-09 04:00:54+00",
        "294276-12-31 23:59:59+00", "12345-06-07 08:09:10.5+00",
    ],
    "timestamp(3) with time zone": ["2026-01-31 12:00:00.123+00"],
    "interval": ["1 year 2 mons -3 days 04:05:06.789", "-1 us", "0", "178000000 years"],
    "interval day to second(3)": ["1 day 02:03:04.567"],
    "interval year": ["3 years"],
    "json": ['{"a": [1, null, "\\\\ \\n"]}', "null", "1e999", ' {"dup": 1, "dup": 2}'],
    "jsonb": ['{"a": "tab\\there", "n": 1.50}', "null", "[]"],
    "money": ["$1,234.50", "-$0.01"],
    "bit(4)": ["1010"],
    "bit varying(8)": ["", "1"],
    "bit varying": ["10101"],
    "inet": ["192.168.0.1/24", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "point": ["(1.5,-0)"],
    "box": ["(1,1),(0,0)"],
    "tsvector": ["'a':1 'b c':2"],
    "pg_lsn": ["16/B374D848"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "tstzrange": ['["2026-01-01 00:00:00+00",infinity)'],
    "int4multirange": ["{[1,3),[5,7)}", "{}"],
    "int2vector": ["1 2 3"],
    "public.mood": ["sad", 'so "so"', ""],
    "public.pair": ['(1,"a ""q"" \\\\ b")', "(,)", '(7,"")'],
    "public.amount": ["0.00", "9999999999.99"],
    "public.small_amount": ["1.10"],
    "public.int_list": ["{1,NULL,3}", "{}"],
    "public.moment": ["2026-01-31 12:00:00.5+00", "infinity"],
    "public.span": ["[0.5,1)"],
    "integer[]": ["{}", "{1,NULL,-3}", "{{1,2},{3,4}}", "[0:1]={7,8}", "[2:2][0:0]={{9}}"],
    "bigint[]": ["{9223372036854775807}"],
    "text[]": [
        "{}", '{"",NULL,"NULL",null}', r'{"a\"b","c\\d","{x}","e,f"," g ","h;i"}',
        '{{"a b",c},{NULL,"}"}}', "{ünï}", '{"line\nbreak","tab\t"}', "{[0:1]=}",
    ],
    "boolean[]": ["{t,f,NULL}"],
    "double precision[]": ["{NaN,Infinity,-0,0.1}"],
    "numeric(10,2)[]": ["{1.50,NULL,-2}", "{NaN}"],
    "bytea[]": [r'{"\\x00ff","\\x",NULL}'],
    "uuid[]": ["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,NULL}"],
    "date[]": ["{2026-01-31,infinity}", "{0044-03-15 BC}", "{2026-01-31,NULL}"],
    "timestamp with time zone[]": ['{"2026-01-31 12:00:00.5+00",NULL}'],
    "character varying(5)[]": ["{abc}"],
    "box[]": ["{(1,1),(0,0);(2,2),(1,1)}"],
    "jsonb[]": [r'{"{\"a\": 1}",NULL}'],
    "public.mood[]": [r'{sad,"so \"so\"",""}'],
    "public.pair[]": [r'{"(1,\"a b\")",NULL}'],
    "public.amount[]": ["{1.10,NULL}"],
    "public.int_list[]": [r'{"{1,2}","{}",NULL}'],
}  # fmt: skip

NAMES = {f"c{number}": declared for number, declared in enumerate(VALUES)}


def create(database: Database, name: str = "nasty") -> None:
    """Make the table `public.<name>`, fill it, and pin the session's settings."""
    database.execute(TYPES_SQL)
    columns = ", ".join(f"{column} {declared}" for column, declared in NAMES.items())
    database.execute(f"create table public.{name} (id integer primary key, {columns})")
    for setting, value in PINNED.items():
        database.execute("select set_config(%s, %s, false)", [setting, value])
    fill(database, name)


def fill(database: Database, name: str) -> None:
    """Insert as many rows as the longest list of values; what is left over is NULL."""
    for row in range(max(map(len, VALUES.values())) + 1):
        held = {c: VALUES[t][row] for c, t in NAMES.items() if row < len(VALUES[t])}
        places = ", ".join(f"%s::{NAMES[column]}" for column in held)
        database.execute(
            f"insert into public.{name} ({', '.join(['id', *held])})"
            f" values ({', '.join(filter(None, [str(row), places]))})",
            list(held.values()),
        )


def schema_of(database: Database, name: str, *, identity: str = "d") -> Schema:
    """The schema as capture would store it, read from the catalog."""
    relation = database.value("select %s::regclass::oid::bigint", [f"public.{name}"])
    columns = tuple(
        Column(name=column, type=oid, typmod=typmod, key=column == "id")
        for column, oid, typmod in database.fetch(
            "select attname::text, atttypid::bigint, atttypmod from pg_attribute"
            " where attrelid = %s and attnum > 0 and not attisdropped order by attnum",
            [relation],
        )
    )
    types: dict[int, SourceType] = {}
    wanted = {column.type for column in columns}
    while wanted := {oid for oid in wanted if oid and oid not in types and oid not in BUILTIN}:
        found = database.fetch(
            "select t.oid::bigint, nspname::text, typname::text, typtype::text, typcategory::text,"
            " typbasetype::bigint, typtypmod, typelem::bigint"
            " from pg_type t join pg_namespace n on n.oid = typnamespace where t.oid = any(%s)",
            [list(wanted)],
        )
        for oid, namespace, label, kind, category, base, base_typmod, inner in found:
            types[oid] = SourceType(
                id=oid,
                namespace=namespace,
                name=label,
                kind="a" if category == "A" and kind == "b" else kind,
                base=base,
                base_typmod=base_typmod,
                element=inner,
            )
        wanted = {oid for kind in types.values() for oid in (kind.base, kind.element)}
    return Schema(
        id=0,
        offset=0,
        relation=relation,
        namespace="public",
        name=name,
        identity=identity,
        columns=columns,
        types=types,
    )


def copied(database: Database, name: str) -> list[bytes]:
    """The lines of COPY, one a row, in order of the key."""
    sql = f"copy (select * from public.{name} order by id) to stdout"
    with database.connection.cursor().copy(sql) as copy:
        return [bytes(line) for line in copy]
