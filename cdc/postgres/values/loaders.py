"""What a value's stored text becomes in Python, and in a line of JSON.

======================================  =======================  ==================
Postgres                                Python                   JSON
======================================  =======================  ==================
smallint, integer, bigint               int                      number
oid                                     int                      the text
real, double precision                  float                    number; NaN and ±Infinity the text
numeric                                 Decimal                  the text
boolean                                 bool                     boolean
bytea                                   bytes                    the text, `\\x…`
uuid                                    UUID                     the text
date, time, timetz, timestamp           date, time, datetime     the text
timestamptz                             aware datetime, UTC      the text
arrays                                  lists                    arrays
domains                                 as their base type       as their base type
everything else                         str                      the text
======================================  =======================  ==================

No text makes a loader raise. What Python cannot hold (infinite dates, BC, years past 9999, 24:00,
arrays that do not start at 1, arrays of several dimensions whose elements are arrays by a domain)
and what is no value of its type is the text as `str`. Bytes that are not UTF-8, of an SQL_ASCII
database or of a `"char"` before PostgreSQL 15, become lone surrogates in Python, so that encoding
with `surrogateescape` gives them back, and `\\xff` escapes in JSON.
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from binascii import unhexlify
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from cdc.postgres.values.arrays import parse_array
from cdc.postgres.values.builtin_types import delimiter, element, underlying
from eventlog.changes.codec import Form, Loader
from eventlog.changes.schema import Schema


def loader(schema: Schema, oid: int, form: Form) -> Loader:
    """The function from a stored text of type `oid` to a value in that form. Never raises."""
    oid, _ = underlying(schema, oid)
    inner = element(schema, oid)
    load_text = _python_text if form == "python" else _json_text
    if inner:
        load = _array(loader(schema, inner, form), delimiter(schema, inner), load_text)
        of_arrays = element(schema, underlying(schema, inner)[0])
        return _one_dimension(load, load_text) if of_arrays else load
    return (_PYTHON if form == "python" else _JSON).get(oid, load_text)


def _python_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _json_text(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


def _array(load: Loader, mark: bytes, load_text: Loader) -> Loader:
    def load_array(text: bytes) -> Any:
        try:
            return parse_array(text, load, mark)
        except ValueError:
            return load_text(text)

    return load_array


def _one_dimension(load: Loader, load_text: Loader) -> Loader:
    """Lists in a list would not tell whose dimensions they are."""
    return lambda text: load_text(text) if text[:2] == b"{{" else load(text)


def _bool(text: bytes) -> Any:
    if text == b"t":
        return True
    return False if text == b"f" else _python_text(text)


def _json_bool(text: bytes) -> Any:
    if text == b"t":
        return True
    return False if text == b"f" else _json_text(text)


def _int(text: bytes) -> Any:
    try:
        return int(text)
    except ValueError:
        return _python_text(text)


def _json_int(text: bytes) -> Any:
    try:
        return int(text)
    except ValueError:
        return _json_text(text)


def _float(text: bytes) -> Any:
    try:
        return float(text)
    except ValueError:
        return _python_text(text)


def _json_float(text: bytes) -> Any:
    try:
        value = float(text)
    except ValueError:
        return _json_text(text)
    return value if math.isfinite(value) else _json_text(text)


def _bytea(text: bytes) -> Any:
    if text[:2] == b"\\x":
        try:
            return unhexlify(text[2:])
        except ValueError:
            pass
    return _python_text(text)


def _from_str(make: Callable[[str], Any]) -> Loader:
    def load(text: bytes) -> Any:
        value = text.decode("utf-8", "surrogateescape")
        try:
            return make(value)
        except (ValueError, InvalidOperation):
            return value

    return load


def _time(text: str) -> dt.time:
    if text[:2] == "24":  # a time of its own in Postgres, midnight to newer versions of Python
        raise ValueError(text)
    return dt.time.fromisoformat(text)


def _timestamptz(text: str) -> dt.datetime:
    value = dt.datetime.fromisoformat(text)
    if value.tzinfo is not dt.UTC:
        raise ValueError(text)
    return value


_PYTHON: dict[int, Loader] = {
    16: _bool,
    17: _bytea,
    20: _int,
    21: _int,
    23: _int,
    26: _int,
    700: _float,
    701: _float,
    1082: _from_str(dt.date.fromisoformat),
    1083: _from_str(_time),
    1114: _from_str(dt.datetime.fromisoformat),
    1184: _from_str(_timestamptz),
    1266: _from_str(_time),
    1700: _from_str(Decimal),
    2950: _from_str(uuid.UUID),
}

_JSON: dict[int, Loader] = {
    16: _json_bool,
    20: _json_int,
    21: _json_int,
    23: _json_int,
    700: _json_float,
    701: _json_float,
}
