"""Tables with a column of every type that a server has, its extensions' and a user's included.

The types come from the server's catalog, so a newer server's are there too: one for which no
literal is known here is named by `Every.valueless`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from tests import nasty_values
from tests.fix_postgres import Database

COLUMNS_MAX = 90
"""Columns of one table; what they hold must fit into 8 KB beside TOAST."""

USER_TYPES = """
create type public.shade as enum ('dark', 'pale');
alter type public.shade add value 'between' before 'pale';
alter type public.shade add value 'a "quoted", \\one' before 'dark';
create type public.inner_pair as (a integer, b text, c integer[]);
create type public.nest as (p public.inner_pair, q public.inner_pair[], s public.shade, n numeric);
create type public."Odd.type ""é"" t" as (x integer);
create domain public.shade_d as public.shade;
create domain public.shades as public.shade[];
create domain public.box_d as box;
create domain public.box_dd as public.box_d;
create domain public.pair_d as public.inner_pair check ((value).a is distinct from 0);
create domain public.range_d as int4range;
create domain public.required as text check (value is null or value <> 'never');
create domain public.code as character(4);
create domain public.name_d as name;
create type public.reals as range (subtype = double precision, multirange_type_name = public.realm);
create type public.words as range (subtype = text, collation = "C");
create type public.shadows as range (subtype = public.shade);
create type public.marked;
create function public.marked_in(cstring) returns public.marked language internal immutable
    strict as 'textin';
create function public.marked_out(public.marked) returns cstring language internal immutable
    strict as 'textout';
create type public.marked (input = public.marked_in, output = public.marked_out, like = text,
    delimiter = ':');
create domain public.marked_d as public.marked;
create table public."Odd ""name" (id integer);
create table public.skewed as select g % 2 as a, g % 4 as b from generate_series(1, 100) g;
create statistics public.of_skewed (ndistinct, dependencies, mcv) on a, b from public.skewed;
analyze public.skewed;
"""

EXTENSIONS: dict[str, dict[str, list[str]]] = {
    "citext": {"citext": ["MiXed", "", 'q"\\,{}']},
    "cube": {"cube": ["(1, 2),(3, 4)", "(-0, 1e300)"]},
    "hstore": {"hstore": ['"a b"=>"c\\"d", n=>NULL, ""=>""', "", '"NULL"=>"NULL"']},
    "intarray": {"query_int": ["1&(2|!3)"]},
    "isn": {
        **{name: ["978-0-393-04002-9"] for name in ("isbn", "isbn13", "ean13")},
        **{name: ["1436-4522"] for name in ("issn", "issn13")},
        **{name: ["979-0-2600-0043-8"] for name in ("ismn", "ismn13")},
        "upc": ["220356483481"],
    },
    "lo": {"lo": ["16409", "0"]},
    "ltree": {
        "ltree": ["Top.Science", ""],
        "lquery": ["Top.*{2}.!b|c@*"],
        "ltxtquery": ["a & !(b | c)"],
    },
    "seg": {"seg": ["1.0 .. 2.50", "<3", "~5e-7"]},
    "vector": {
        "vector(3)": ["[1,2.5,-3e-07]"],
        "vector": ["[0]", "[" + ",".join(["0.1"] * 2000) + "]"],
        "halfvec(2)": ["[1,-0.5]"],
        "halfvec": ["[65504]"],
        "sparsevec(5)": ["{1:1.5,3:-2}/5"],
        "sparsevec": ["{}/7"],
    },
}
"""By extension and type: literals."""


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def row(*texts: str) -> str:
    """A composite value of these."""
    return f"({','.join(map(quoted, texts))})"


def array(*texts: str) -> str:
    """An array of these."""
    return f"{{{','.join(map(quoted, texts))}}}"


LITERALS: dict[str, list[str]] = {
    **nasty_values.VALUES,
    "numeric": [*nasty_values.VALUES["numeric"], "-" + "9" * 131_072 + "." + "1" * 16_383],
    "interval": [
        *nasty_values.VALUES["interval"], "-1 year +2 mons -3 days +04:05:06", "1 mon -1 day",
        "-178000000 years", "-00:00:00.000001", "1 day -24:00:00", "2147483647 days",
        "-2147483648 mons", "+2562047788:00:54.775807",
    ],
    "inet": ["192.168.0.1/24", "::1", "::ffff:10.0.0.1/100", "0.0.0.0/0"],
    "cidr": ["10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0"],
    "macaddr8": ["08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03"],
    "money": ["$1,234.50", "-$0.01", "-92233720368547758.08", "92233720368547758.07"],
    '"bit"': ["1", "10110", "0" * 200],
    "bit varying": ["", "10101", "1" * 70],
    "name": ["a name", "é" * 31, ""],
    "xml": ["<a b='c'>t&amp;<![CDATA[ x ]]></a>", "text <b/> and more", ""],
    "jsonpath": ['strict $."a b"[*] ? (@ > 1 && exists (@.c))', "$"],
    "point": ["(1.5,-0)", "(NaN,Infinity)", "(1e-300,1e300)"],
    "line": ["{1,-1,0.5}"],
    "lseg": ["[(1,2),(3,4)]"],
    "box": ["(1,1),(0,0)", "(Infinity,2),(-Infinity,-1)"],
    "path": ["((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"],
    "polygon": ["((0,0),(1,1),(2,0))", "((1,1))"],
    "circle": ["<(1,-2),3>", "<(0,0),Infinity>"],
    "tsvector": ["'a':1 'b c':2", "'it''s':3A,5B '\\\\':16383C", ""],
    "tsquery": ["'a' & !('b c':*AB | 'd') <-> 'e'", "'it''s' <3> '\\\\'", ""],
    "pg_lsn": ["16/B374D848", "0/0", "FFFFFFFF/FFFFFFFF"],
    "pg_snapshot": ["10:20:10,14,15", "1:1:"],
    "txid_snapshot": ["10:20:10,14,15", "9223372036854775806:9223372036854775807:"],
    "xid": ["0", "4294967295"],
    "xid8": ["0", "18446744073709551615"],
    "cid": ["4294967295"],
    "tid": ["(0,1)", "(4294967295,65535)"],
    "oidvector": ["1 4294967295", ""],
    "int2vector": ["1 2 3", "-32768", ""],
    "refcursor": ["<unnamed portal 1>"],
    "aclitem": ["postgres=arwdDxt/postgres", "=r*/postgres"],
    "regclass": ["pg_class", 'public."Odd ""name"', "information_schema.tables", "4000000000", "-"],
    "regtype": [
        "integer", "public.shade", '"char"', 'public."Odd.type ""é"" t"[]', "-", "3999999999",
    ],
    "regproc": ["now", "public.marked_in", "3999999999", "-"],
    "regprocedure": ["abs(integer)", "public.marked_in(cstring)", "3999999999"],
    "regoper": ["||/", "3999999999", "0"],
    "regoperator": ["+(integer,integer)", "!~~*(text,text)", "3999999999"],
    "regnamespace": ["public", "pg_catalog", "3999999999"],
    "regrole": ["postgres", "3999999999"],
    "regcollation": ['"C"', "3999999999"],
    "regconfig": ["english", "3999999999"],
    "regdictionary": ["simple", "3999999999"],
    "int4range": ["[1,5)", "empty", "(,)", "[2147483646,2147483647)", "(,-2147483648]"],
    "int8range": ["[1,5)", "empty", "[-9223372036854775808,)"],
    "numrange": ["(1.50,2]", "empty", "[NaN,NaN]", "[-Infinity,Infinity]", "(,0.00)"],
    "daterange": ["[2026-01-01,2026-02-01)", "empty", "[-infinity,infinity]", "(,0044-03-15 BC)"],
    "tsrange": [
        '["2026-01-01 00:00","2026-01-02 00:00:00.5")', "empty", "(,)", "[-infinity,infinity]",
        '["4713-01-01 00:00:00 BC","294276-12-31 23:59:59.999999"]',
    ],
    "tstzrange": ['["2026-01-01 00:00:00+00",infinity)', "empty", '(,"0044-03-15 12:00+00 BC")'],
    "int4multirange": ["{[1,3),[5,7)}", "{}", "{(,)}"],
    "int8multirange": ["{(,3),[5,)}", "{}"],
    "nummultirange": ["{[1.0,1.5],(3,Infinity]}", "{}"],
    "datemultirange": ["{(,2026-01-01),[2027-01-01,2028-01-01)}", "{}"],
    "tsmultirange": ['{["2026-01-01 00:00","2026-01-02 00:00")}', "{}"],
    "tstzmultirange": ['{["2026-01-01 00:00+00",),(,"0044-03-15 12:00+00 BC"]}', "{}"],
    "information_schema.cardinal_number": ["0", "2147483647"],
    "information_schema.character_data": ["", "x y"],
    "information_schema.sql_identifier": ["id"],
    "information_schema.time_stamp": ["2026-01-31 12:00:00.12+00"],
    "information_schema.yes_or_no": ["YES", "NO"],
    "public.shade": ["dark", "between", 'a "quoted", \\one'],
    "public.inner_pair": ["(1,,)", '(,"q"" \\\\ ,() ","{1,NULL,-3}")', '(,"",{})', "(,,)"],
    "public.nest": [
        row('(1,"a, b","{1,2}")', array('(2,"x \"\"\"\",",)'), 'a "quoted", \\one', "1.50"),
        "(,,,)", '("(,,)",{},,NaN)',
    ],
    'public."Odd.type ""é"" t"': ["(7)", "()"],
    "public.shade_d": ["pale"],
    "public.shades": ['{dark,NULL,"a \\"quoted\\", \\\\one"}', "[0:1]={pale,dark}", "{}"],
    "public.box_d": ["(1,1),(0,0)"],
    "public.box_dd": ["(2,1),(0,0)"],
    "public.pair_d": ['(1,"a,b",{3})', "(,,)"],
    "public.range_d": ["[1,5)", "empty"],
    "public.required": ["", " x "],
    "public.code": ["ab", ""],
    "public.name_d": ["n"],
    "public.reals": ["[0.5,1)", "(-Infinity,NaN]", "empty", "(,)"],
    "public.realm": ["{[0.5,1),(2,)}", "{}"],
    "public.words": ['["a,b","c\\"d")', '("",)', "empty", '[" ","\\\\]"]'],
    "public.shadows": ["[dark,pale)", '["a \\"quoted\\", \\\\one",dark]', "empty"],
    "public.marked": ["a,b", "x:y", "plain", "", "NULL"],
    "public.marked_d": ["a,b", "x:y"],
}  # fmt: skip
"""By type as `format_type` names it: literals that every server must take."""

SOME_SERVERS = {"interval": ["infinity", "-infinity"], '"char"': ["\\377", "\\000"]}
"""Literals that only newer servers take."""

TAKEN_FROM_CATALOG = {
    "pg_node_tree": "select proargdefaults from pg_proc where proargdefaults is not null limit 1",
    "pg_ndistinct": "select stxdndistinct from pg_statistic_ext_data limit 1",
    "pg_dependencies": "select stxddependencies from pg_statistic_ext_data limit 1",
    "pg_mcv_list": "select stxdmcv from pg_statistic_ext_data limit 1",
}
"""Types whose text cannot be read back: a query for a value."""

PROBES = ["0", "1", "a", "", "{}", "(0,0)", "2026-01-01"]
"""What a type that is not known here may take."""

TYPES = """
select format_type(t.oid, null), t.typtype::text, t.typdelim::text, t.typarray <> 0,
       (select count(*) from pg_attribute where attrelid = t.typrelid and attnum > 0)
  from pg_type t
 where t.typnamespace::regnamespace::text in ('pg_catalog', 'information_schema', 'public')
   and t.typtype <> 'p' and t.typisdefined
   and not exists (select from pg_type e where e.typarray = t.oid)
   and not exists (select from pg_class where oid = t.typrelid and relnamespace =
                   'public'::regnamespace and relkind <> 'c')
   and not exists (select from pg_attribute a join pg_type u on u.oid = a.atttypid
                    where a.attrelid = t.typrelid
                      and (u.typtype = 'p' or u.typname = '_pg_statistic'))
 order by t.oid
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedColumn:
    """A column, how it was declared, and how many values it has: in rows 0 to count - 1."""

    table: str
    name: str
    declared: str
    count: int
    readable: bool = True


@dataclass(slots=True, kw_only=True)
class Every:
    """What was made. `valueless`: types of which no value could be had."""

    columns: list[TypedColumn] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    valueless: set[str] = field(default_factory=set)
    extensions: set[str] = field(default_factory=set)


def create(database: Database) -> Every:
    """Make and fill the tables, all with the key `id`; what a column has no value for is NULL."""
    every = Every()
    database.execute("set search_path = pg_catalog")  # so that every type has its full name
    available = {name for (name,) in database.fetch("select name from pg_available_extensions")}
    every.extensions = available & set(EXTENSIONS)
    for name in sorted(every.extensions):
        database.execute(f"create extension {name} schema public")
    database.execute(nasty_values.TYPES_SQL)
    database.execute(USER_TYPES)
    found = list(_declarations(database, every))
    for start in range(0, len(found), COLUMNS_MAX):
        _table(database, every, f"every_{len(every.tables)}", found[start : start + COLUMNS_MAX])
    return every


def _declarations(database: Database, every: Every) -> Iterator[tuple[str, list[str | sql.SQL]]]:
    known = dict(LITERALS)
    for name in every.extensions:
        known |= {f"public.{declared}": texts for declared, texts in EXTENSIONS[name].items()}
    rows = database.fetch(TYPES)
    names = {row[0] for row in rows}
    yield from ((name, [*texts]) for name, texts in known.items() if name not in names)
    for name, kind, mark, has_array, width in rows:
        if name in TAKEN_FROM_CATALOG:
            yield name, [sql.SQL(f"({TAKEN_FROM_CATALOG[name]})")]
            continue
        texts = known.get(name)
        if texts is None:
            offered = [f"({',' * (width - 1)})"] if kind == "c" else PROBES
            texts = [text for text in offered if _takes(database, name, text)]
        elif not _takes(database, name, texts[0]) and name == "xml":
            texts = []  # the server was built without it
        texts = [*texts, *(t for t in SOME_SERVERS.get(name, ()) if _takes(database, name, t))]
        if not texts:
            every.valueless.add(name)
        yield name, [*texts]
        if has_array and texts and (kind != "c" or name.startswith("public.")):
            yield f"{name}[]", [*_arrays(texts, mark)]


def _arrays(texts: list[str], mark: str) -> Iterator[str]:
    """Arrays of every rank and bounds, made of these elements."""
    items = [quoted(text) for text in texts if len(text) < 1000]
    first, last = items[0], items[-1]
    yield "{" + mark.join([*items, "NULL"]) + "}"
    yield "{}"
    yield f"[0:1]={{{last}{mark}{first}}}"
    yield f"{{{{{first}{mark}NULL}}{mark}{{{last}{mark}{last}}}}}"
    yield f"[-2:-1][3:3][0:0]={{{{{{{first}}}}}{mark}{{{{NULL}}}}}}"
    yield f"{{{{{{{first}}}{mark}{{{last}}}}}}}"
    yield f"{{{first}}}"


def _takes(database: Database, declared: str, text: str) -> bool:
    try:
        database.fetch(f"select %s::{declared}", [text])
    except psycopg.Error:
        return False
    return True


def _table(
    database: Database, every: Every, table: str, found: list[tuple[str, list[str | sql.SQL]]]
) -> None:
    columns = {f"c{place}": declared for place, (declared, _) in enumerate(found)}
    # A domain may have a default, as information_schema's have.
    declarations = ", ".join(
        f"{name} {declared} default null" for name, declared in columns.items()
    )
    database.execute(f"create table public.{table} (id integer primary key, {declarations})")
    for number in range(max(len(texts) for _, texts in found) + 1):
        held = {
            f"c{at}": texts[number] for at, (_, texts) in enumerate(found) if number < len(texts)
        }
        values = [
            v.as_string() if isinstance(v, sql.SQL) else f"%s::{columns[c]}"
            for c, v in held.items()
        ]
        statement = f"insert into public.{table} ({', '.join(['id', *held])}) values ("
        database.execute(
            statement + ", ".join([str(number), *values]) + ")",
            [value for value in held.values() if isinstance(value, str)],
        )
    every.tables.append(table)
    every.columns += [
        TypedColumn(
            table=table,
            name=name,
            declared=declared,
            count=len(found[place][1]),
            readable=declared not in TAKEN_FROM_CATALOG,
        )
        for place, (name, declared) in enumerate(columns.items())
    ]
