"""JSON into frozen dataclasses, strictly: every name known and there, every value of its type.

The annotations of the dataclass are the grammar: `str`, `int`, `bool`, `X | None`, `dict[str, X]`,
`tuple[X, ...]` and other dataclasses. A field with OPTIONAL is left out where it is None, so that
what does not need it is the same text as before there was such a field.
"""

from __future__ import annotations

import dataclasses
import json
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

OPTIONAL = {"optional": True}
"""Metadata of a field `X | None`, by default None: absent means None, and null is refused."""


class NotStrict(ValueError):
    """What is wrong, and where in the document."""


def parsed(data: bytes) -> Any:
    """The value of a JSON text. Raises NotStrict, too for a name that stands twice in a map."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_map, parse_constant=_refused)
    except NotStrict:
        raise
    except (ValueError, RecursionError) as error:  # Of a number too long, a ValueError alone.
        raise NotStrict(f"it is no JSON: {error}") from error


def read(cls: type[T], value: Any, where: str) -> T:
    """The dataclass that a map holds. Raises NotStrict."""
    if not isinstance(value, dict):
        raise NotStrict(f"{where} is no map")
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    for field in fields:
        if field.name not in value and field.metadata != OPTIONAL:
            raise NotStrict(f"{where} has no {field.name!r}")
        if field.metadata == OPTIONAL and value.get(field.name, "") is None:
            raise NotStrict(f"{where} has {field.name!r} without a value")
    names = [field.name for field in fields if field.name in value]
    unknown = sorted(value.keys() - set(names))
    if unknown:
        raise NotStrict(f"{where} has {unknown[0]!r}, which is not known here")
    return cls(**{name: _value(hints[name], value[name], f"{where}.{name}") for name in names})


def plain(value: Any) -> Any:
    """What JSON has for a dataclass and all that is in it; the inverse of `read`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {
            field.name: plain(inner)
            for field, inner in pairs
            if inner is not None or field.metadata != OPTIONAL
        }
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    return value


def canonical(value: Any) -> bytes:
    """One text for equal values: sorted names, no spaces, ASCII. REQUIRES: no floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _value(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        (inner,) = (arg for arg in get_args(kind) if arg is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise NotStrict(f"{where} is no list")
        inner = get_args(kind)[0]
        return tuple(_value(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise NotStrict(f"{where} is no map")
        inner = get_args(kind)[1]
        return {name: _value(inner, item, f"{where}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return read(kind, value, where)  # type: ignore[arg-type]
    if type(value) is not kind:  # A bool is no int here.
        raise NotStrict(f"{where} is {value!r:.40}, which is no {_NAMES[kind]}")
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise NotStrict(f"{where} is {value!r:.40}, which is no Unicode") from error
    return value


_NAMES = {str: "text", int: "whole number", bool: "true or false"}


def _map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotStrict(f"{twice!r} stands twice in one map")
    return found


def _refused(constant: str) -> Any:
    raise NotStrict(f"it holds {constant}, which is no JSON")
