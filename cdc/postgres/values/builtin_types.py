"""Which type a column's text follows: the types that every server has, and the captured ones.

Built-in types have the same numbers on every server and version; what a server adds to them comes
with the schema (`Schema.types`). A domain's text is its base type's, an array's is made of its
element's, and everything unknown is text.
"""

from __future__ import annotations

from eventlog.changes.schema import Schema

BUILTIN: dict[int, tuple[str, int]] = {
    16: ("boolean", 1000),
    17: ("bytea", 1001),
    18: ('"char"', 1002),
    19: ("name", 1003),
    20: ("bigint", 1016),
    21: ("smallint", 1005),
    22: ("int2vector", 1006),
    23: ("integer", 1007),
    24: ("regproc", 1008),
    25: ("text", 1009),
    26: ("oid", 1028),
    27: ("tid", 1010),
    28: ("xid", 1011),
    29: ("cid", 1012),
    30: ("oidvector", 1013),
    114: ("json", 199),
    142: ("xml", 143),
    600: ("point", 1017),
    601: ("lseg", 1018),
    602: ("path", 1019),
    603: ("box", 1020),
    604: ("polygon", 1027),
    628: ("line", 629),
    650: ("cidr", 651),
    700: ("real", 1021),
    701: ("double precision", 1022),
    718: ("circle", 719),
    774: ("macaddr8", 775),
    790: ("money", 791),
    829: ("macaddr", 1040),
    869: ("inet", 1041),
    1033: ("aclitem", 1034),
    1042: ("bpchar", 1014),
    1043: ("character varying", 1015),
    1082: ("date", 1182),
    1083: ("time without time zone", 1183),
    1114: ("timestamp without time zone", 1115),
    1184: ("timestamp with time zone", 1185),
    1186: ("interval", 1187),
    1266: ("time with time zone", 1270),
    1560: ('"bit"', 1561),
    1562: ("bit varying", 1563),
    1700: ("numeric", 1231),
    1790: ("refcursor", 2201),
    2202: ("regprocedure", 2207),
    2203: ("regoper", 2208),
    2204: ("regoperator", 2209),
    2205: ("regclass", 2210),
    2206: ("regtype", 2211),
    2950: ("uuid", 2951),
    2970: ("txid_snapshot", 2949),
    3220: ("pg_lsn", 3221),
    3614: ("tsvector", 3643),
    3615: ("tsquery", 3645),
    3642: ("gtsvector", 3644),
    3734: ("regconfig", 3735),
    3769: ("regdictionary", 3770),
    3802: ("jsonb", 3807),
    3904: ("int4range", 3905),
    3906: ("numrange", 3907),
    3908: ("tsrange", 3909),
    3910: ("tstzrange", 3911),
    3912: ("daterange", 3913),
    3926: ("int8range", 3927),
    4072: ("jsonpath", 4073),
    4089: ("regnamespace", 4090),
    4096: ("regrole", 4097),
    4191: ("regcollation", 4192),
    4451: ("int4multirange", 6150),
    4532: ("nummultirange", 6151),
    4533: ("tsmultirange", 6152),
    4534: ("tstzmultirange", 6153),
    4535: ("datemultirange", 6155),
    4536: ("int8multirange", 6157),
    5038: ("pg_snapshot", 5039),
    5069: ("xid8", 271),
}
"""By oid: the name without a modifier, as `format_type` gives it, and the array type's oid.

Taken from pg_type of PostgreSQL 15 and 18, which agree.
"""

ARRAYS = {array: oid for oid, (_, array) in BUILTIN.items() if array}
"""By the array type's oid: its element's."""

BOX = 603
"""The one built-in type whose arrays part their elements with a semicolon."""

_DEPTH_MAX = 64
"""Domains stand on domains, a few deep; a circle of them ends here, as text."""


def underlying(schema: Schema, oid: int, typmod: int = -1) -> tuple[int, int]:
    """Go past domains: the type whose text is stored, and its modifier."""
    for _ in range(_DEPTH_MAX):
        kind = schema.types.get(oid)
        if kind is None or kind.kind != "d" or not kind.base or oid in BUILTIN:
            break
        oid, typmod = kind.base, kind.base_typmod
    return oid, typmod


def element(schema: Schema, oid: int) -> int:
    """The type of an array's elements; 0 for a type that is no array."""
    if oid in ARRAYS:
        return ARRAYS[oid]
    kind = schema.types.get(oid)
    if kind is None or kind.kind != "a" or kind.element == oid:
        return 0
    return kind.element


def delimiter(schema: Schema, element_oid: int) -> bytes:
    """What parts the elements in an array's text. A domain has the one of its base type."""
    oid, _ = underlying(schema, element_oid)
    if oid == BOX:
        return b";"
    kind = schema.types.get(oid)
    return b"," if kind is None else kind.delimiter.encode()
