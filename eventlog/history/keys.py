"""Keys as users give them, and as the log has them: the source's text of each column (API.md).

::

    Python          42   "x"   {"a": 1, "b": "x"}
    command line    42   col=val,col=val   {"a": 1, "b": "x"}

A scalar is for a key of one column. A value is compared as text: 7 is not 7.00 of a numeric, and a
float of Python is refused, as nothing tells which of its texts is meant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from eventlog.changes.schema import Schema
from eventlog.changes.table_name import TableName
from eventlog.errors import UnknownColumn, UsageError

KeyTexts: TypeAlias = tuple[bytes | None, ...]
"""One text for each column of the key, in the order of the schema's columns."""


class WrittenKey(str):
    """A key as the command line has it: any of its three forms."""

    __slots__ = ()


def key_names(schema: Schema) -> tuple[str, ...]:
    """The names of the key's columns. Raises UsageError for a table without a key."""
    names = tuple(schema.names[place] for place in schema.row_key)
    if names:
        return names
    name = TableName(schema=schema.namespace, name=schema.name)
    why = {
        "f": "its replica identity is FULL, and no primary key of it is known",
        "n": "it has no replica identity",
    }.get(schema.identity, "it has no key")
    hint = f"all its changes are to be had by `eventlog read --table '{name}'`"
    if schema.identity == "f":
        hint += "; a primary key that it has is known from its next change in a new capture on"
    raise UsageError(f"rows of table {schema.table} cannot be told apart: {why}", hint=hint)


def key_texts(schema: Schema, key: Any) -> KeyTexts:
    """The texts of a key. Raises UsageError, UnknownColumn."""
    names = key_names(schema)
    if isinstance(key, WrittenKey):
        key = _parsed(names, str(key))
    if not isinstance(key, Mapping):
        if len(names) > 1:
            raise UsageError(
                f"the key of table {schema.table} has {len(names)} columns: {', '.join(names)}",
                hint=f"name a value for each: {_example(names)}",
            )
        return (_text(schema.table, names[0], key),)
    for name in key:
        if name not in names:
            raise UnknownColumn(
                f"the key of table {schema.table} has no column {name!r}",
                hint=f"it has {', '.join(names)}",
            )
    missing = [name for name in names if name not in key]
    if missing:
        raise UsageError(
            f"the key of table {schema.table} lacks a value for {', '.join(missing)}",
            hint=f"name a value for each: {_example(names)}",
        )
    return tuple(_text(schema.table, name, key[name]) for name in names)


def _parsed(names: tuple[str, ...], text: str) -> str | dict[str, Any]:
    found = _json_object(text)
    if found is not None:
        return found
    if len(names) > 1 and "=" in text:
        pairs = [part.partition("=") for part in text.split(",")]
        return {name.strip(): value for name, _, value in pairs}
    # A value of a single column may have an = in it.
    name, sign, value = text.partition("=")
    return {name: value} if sign and name == names[0] else text


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        # As it is written: 1.50 of a numeric is not 1.5.
        found = json.loads(text, parse_float=str, parse_int=str)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _text(table: str, name: str, value: Any) -> bytes:
    """A value of Python as the source writes it under the log's settings (D9)."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, bytes | bytearray | memoryview):
        return b"\\x" + bytes(value).hex().encode()
    if isinstance(value, datetime):
        return _datetime_text(value).encode()
    if isinstance(value, Decimal):
        return format(value, "f").encode()
    if isinstance(value, int | UUID | date):
        return str(value).encode()
    item = getattr(value, "item", None)  # numpy's scalars
    if callable(item):
        return _text(table, name, item())
    if isinstance(value, float):
        raise UsageError(
            f"{value!r} for {name!r} in the key of table {table} is a float, and one number has "
            "several texts: 7, 7.0, 7.00",
            hint="keys are compared as the source's text: give that, as in '7'",
        )
    raise UsageError(
        f"{value!r} cannot be a value of {name!r} in the key of table {table}",
        hint="give it as the source writes it, as text",
    )


def _datetime_text(value: datetime) -> str:
    zoned = value.tzinfo is not None
    text = (value.astimezone(UTC) if zoned else value).replace(tzinfo=None).isoformat(" ")
    if "." in text:
        text = text.rstrip("0")
    return text + "+00" if zoned else text


def _example(names: tuple[str, ...]) -> str:
    return ",".join(f"{name}=…" for name in names)
