"""The name of a column's type as Postgres writes it, modifier included.

Equal to `format_type(oid, typmod)` under `search_path = pg_catalog`, but for two things that only
the server knows: names that would need quotes stand without them, and PostGIS's types without
their modifier, which is no plain number as that of `vector(3)` is.
"""

from __future__ import annotations

from collections.abc import Callable

from cdc.postgres.values.builtin_types import BUILTIN, element
from eventlog.changes.schema import Schema

_OWN_MODIFIERS = frozenset({"geometry", "geography"})

_HEADER = 4
"""Lengths and precisions are stored with the size of a varlena header added."""


def type_name(schema: Schema, oid: int, typmod: int) -> str:
    """Such as `numeric(12,2)`, `character varying(20)`, `integer[]`, `public.mood`."""
    inner = element(schema, oid)
    if inner:
        return type_name(schema, inner, typmod) + "[]"
    if oid in BUILTIN:
        name = BUILTIN[oid][0]
        write = _MODIFIERS.get(oid)
        return write(name, typmod) if write and typmod >= 0 else name
    kind = schema.types.get(oid)
    if kind is None:
        return f"oid {oid}"
    name = kind.name if kind.namespace == "pg_catalog" else f"{kind.namespace}.{kind.name}"
    return name if typmod < 0 or kind.name in _OWN_MODIFIERS else f"{name}({typmod})"


def numeric_modifier(typmod: int) -> tuple[int, int] | None:
    """Precision and scale of a numeric, None where it is unconstrained. The scale may be < 0."""
    if typmod < _HEADER:
        return None
    packed = typmod - _HEADER
    return packed >> 16 & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024


def _numeric(name: str, typmod: int) -> str:
    modifier = numeric_modifier(typmod)
    return f"{name}({modifier[0]},{modifier[1]})" if modifier else name


def _length(name: str, typmod: int) -> str:
    return f"{name}({typmod - _HEADER})" if typmod > _HEADER else name


def _char(_: str, typmod: int) -> str:
    return f"character({typmod - _HEADER})" if typmod > _HEADER else "bpchar"


def _bit(_: str, typmod: int) -> str:
    return f"bit({typmod})"


def _varbit(name: str, typmod: int) -> str:
    return f"{name}({typmod})"


def _clock(name: str, typmod: int) -> str:
    first, _, rest = name.partition(" ")
    return f"{first}({typmod}) {rest}"


def _interval(name: str, typmod: int) -> str:
    fields, precision = _INTERVAL_FIELDS.get(typmod >> 16 & 0x7FFF, ""), typmod & 0xFFFF
    return name + fields + ("" if precision == 0xFFFF else f"({precision})")


_YEAR, _MONTH, _DAY, _HOUR, _MINUTE, _SECOND = 1 << 2, 1 << 1, 1 << 3, 1 << 10, 1 << 11, 1 << 12

_INTERVAL_FIELDS = {
    _YEAR: " year",
    _MONTH: " month",
    _DAY: " day",
    _HOUR: " hour",
    _MINUTE: " minute",
    _SECOND: " second",
    _YEAR | _MONTH: " year to month",
    _DAY | _HOUR: " day to hour",
    _DAY | _HOUR | _MINUTE: " day to minute",
    _DAY | _HOUR | _MINUTE | _SECOND: " day to second",
    _HOUR | _MINUTE: " hour to minute",
    _HOUR | _MINUTE | _SECOND: " hour to second",
    _MINUTE | _SECOND: " minute to second",
}

_MODIFIERS: dict[int, Callable[[str, int], str]] = {
    1042: _char,
    1043: _length,
    1083: _clock,
    1114: _clock,
    1184: _clock,
    1186: _interval,
    1266: _clock,
    1560: _bit,
    1562: _varbit,
    1700: _numeric,
}
