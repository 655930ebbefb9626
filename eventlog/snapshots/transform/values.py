"""Values as text that is the same in every process and with every version of a library.

Floats are written in hexadecimal, arrays by the SHA-256 of their elements in little-endian order,
sets in the order of their texts, mappings in their own, objects as their class and fields: those
that they have, or that they would hand to a copy. What holds itself is named where it comes again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np

Code: TypeAlias = Callable[[Any], str]
"""Tells a function or a class that stands inside a value."""

_SHOWN = (int, str, bytes, bool, date, datetime, time, timedelta, timezone, Decimal, Fraction)
_OUTSIDE = frozenset({"builtins", "io", "_io", "_socket", "_thread", "socket", "threading"})
"""Modules whose objects stand for something outside of themselves."""

_ARROW_TYPES = ("DataType", "Field", "Schema")


class Untold(Exception):
    """A value without a text; `str()` says of what kind."""


def told_value(value: Any, code: Code) -> str:
    """A value's text. Raises Untold."""
    return _Teller(code).tell(value)


class _Teller:
    def __init__(self, code: Code) -> None:
        self._code = code
        self._above: list[Any] = []

    def tell(self, value: Any) -> str:
        if type(value).__module__ != "builtins" and not isinstance(value, type):
            self._code(type(value))  # Its methods are part of what it does.
        if isinstance(value, Enum):
            return f"{_class_name(value)}.{value.name} {self.tell(value.value)}"
        simple = _simple(value)
        if simple is not None:
            return simple
        for depth, holder in enumerate(self._above):
            if holder is value:
                return f"<the value {len(self._above) - depth} above>"
        self._above.append(value)
        try:
            return self._compound(value)
        finally:
            self._above.pop()

    def _compound(self, value: Any) -> str:
        if isinstance(value, FunctionType | type):
            return f"code {self._code(value)}"
        if isinstance(value, MethodType):
            return f"method {self.tell(value.__func__)} of {self.tell(value.__self__)}"
        if isinstance(value, BuiltinFunctionType):
            return f"code {value.__qualname__}{self._bound(value)}"
        if isinstance(value, np.ufunc):
            if value.__name__.endswith(" (vectorized)"):
                raise Untold("a ufunc made of a Python function")
            return f"code {value.__name__}"
        held = self._held(value)
        if held is not None:
            fields = getattr(value, "__dict__", None)
            return held + (f" {self._fields(fields)}" if fields else "")
        if isinstance(value, np.ma.MaskedArray):
            parts = (value.filled(), np.ma.getmaskarray(value), value.fill_value)
            return f"masked {self._many(parts)}"
        if isinstance(value, np.ndarray):
            return self._array(np.asarray(value))
        if type(value).__module__.partition(".")[0] == "pyarrow":
            return self._arrow(value)
        return self._object(value)

    def _bound(self, function: BuiltinFunctionType) -> str:
        """What a method of a value is bound to: `rates.get`."""
        owner = function.__self__
        return "" if owner is None or isinstance(owner, ModuleType) else f" of {self.tell(owner)}"

    def _held(self, value: Any) -> str | None:
        """The items of a container, also of one that adds to a list, a set or a mapping."""
        name = type(value).__name__
        if isinstance(value, list | tuple):
            return f"{name}[{self._many(value)}]"
        if isinstance(value, set | frozenset):
            return f"{name}{{{', '.join(sorted(map(self.tell, value)))}}}"
        if isinstance(value, dict | MappingProxyType):
            # In their order: it may be that of the columns that a transform makes.
            pairs = [f"{self.tell(k)}: {self.tell(v)}" for k, v in value.items()]
            return f"{name}{{{', '.join(pairs)}}}"
        return None

    def _fields(self, fields: Mapping[str, Any]) -> str:
        """The fields of an object, in the order of their names."""
        return f"dict{{{', '.join(sorted(f'str {n!r}: {self.tell(fields[n])}' for n in fields))}}}"

    def _many(self, values: Iterable[Any]) -> str:
        return ", ".join(map(self.tell, values))

    def _array(self, array: np.ndarray[Any, Any]) -> str:
        shape = "x".join(map(str, array.shape))
        if array.dtype.names is not None:  # by field: what lies between fields is no value
            fields = [f"{name}: {self._array(array[name])}" for name in array.dtype.names]
            return f"records[{shape}]{{{', '.join(fields)}}}"
        if array.dtype.hasobject or array.dtype.kind in "TV":
            return f"array object[{shape}][{self._many(array.ravel().tolist())}]"
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        kind = plain.dtype.str.replace("|", "<")
        return f"array {kind}[{shape}] {hashlib.sha256(plain.tobytes()).hexdigest()}"

    def _arrow(self, value: Any) -> str:
        if isinstance(value, _arrow_kinds()):
            return f"arrow {value}"
        if hasattr(value, "to_pylist") and hasattr(value, "type"):
            return f"arrow {value.type}[{self._many(value.to_pylist())}]"
        if hasattr(value, "as_py"):
            return f"arrow {value.type} {self.tell(value.as_py())}"
        raise Untold(_kind(value))

    def _object(self, value: Any) -> str:
        """An object by its class and its fields."""
        if isinstance(value, np.random.RandomState | np.random.Generator):
            raise Untold(f"{_kind(value)}, which gives other numbers at each use")
        if type(value).__module__ in _OUTSIDE:
            raise Untold(_kind(value))
        fields = {**_slots(value), **getattr(value, "__dict__", {})}
        if not fields and callable(getattr(value, "tolist", None)):  # an index or a series
            fields = {"values": value.tolist()}
        if not fields:
            fields = _state(value)
        return f"object {_class_name(value)} {self._fields(fields)}"


def _simple(value: Any) -> str | None:
    """The text of a value that holds no other; None for others."""
    if value is None or value is Ellipsis or value is NotImplemented:
        return repr(value)
    if isinstance(value, np.generic):
        return f"{value.dtype.str[1:]} {_number(value.item())}"
    if isinstance(value, float | complex):
        return _number(value)
    if type(value) in _SHOWN:
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, re.Pattern):
        return f"pattern {value.pattern!r} {value.flags}"
    if isinstance(value, range | slice):
        return repr(value)
    return f"zone {value.key}" if isinstance(value, ZoneInfo) else None


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"float {value.hex()}"
    if isinstance(value, complex):
        return f"complex {value.real.hex()} {value.imag.hex()}"
    return repr(value)


def _slots(value: Any) -> dict[str, Any]:
    """The fields that its classes keep in slots."""
    found = {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name[:2] != "__" and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _state(value: Any) -> dict[str, Any]:
    """What an object without fields of its own would hand to a copy of itself."""
    try:
        _, *rest = value.__reduce_ex__(2)
    except Exception as error:
        raise Untold(_kind(value)) from error
    if not rest:
        raise Untold(_kind(value))
    arguments, state = rest[0], rest[1] if len(rest) > 1 else None
    own = [a for a in arguments if a is not type(value)]
    return {"arguments": own, "state": state}


def _arrow_kinds() -> tuple[type, ...]:
    import pyarrow as pa

    return tuple(getattr(pa, name) for name in _ARROW_TYPES)


def _class_name(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def _kind(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
