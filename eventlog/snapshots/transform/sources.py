"""What a transform is made of: the text that its digest is taken over.

Starting at the transform's function, whatever a function names is told, each thing once:

===============================================  =========================================
what it names                                    what is told
===============================================  =========================================
itself, its defaults and its closure             source without decorators, and the values
a function or class of own code (`own_code`)     its source, and what that names in turn
a module of own code                             those of its functions and values that are
                                                 named after a dot
a function, class or module of a library         its name alone: libraries are not part of it
None, bool, numbers, text, bytes, dates,         the value
containers, numpy arrays, Arrow types
and arrays, compiled patterns
a fitted estimator, or any object of fields      its class, parameters and fitted arrays
anything else (an open file, a connection)       refused
===============================================  =========================================

Comments and layout are part of a source. What is looked up by text (`getattr(x, name)`), imported
inside a function from one's own package under another name, or read from outside cannot be seen.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from eventlog.errors import TransformRefused
from eventlog.snapshots.transform.own_code import OwnCode
from eventlog.snapshots.transform.values import Untold, told_value


class Told:
    """Collects sources and values, in a fixed order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._parts: dict[str, str] = {}
        self._own = OwnCode(None)
        self._seen: set[int] = set()

    def text(self) -> str:
        """Everything told, each under a line that names it."""
        return "\n".join(f"# {label}\n{text}" for label, text in self._parts.items())

    def hexdigest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text().encode("utf-8", "surrogatepass")).hexdigest()

    def function(self, maker: FunctionType) -> None:
        """Tell a transform's function and all that it names. Raises TransformRefused."""
        self._own = OwnCode(maker.__module__ or "__main__")
        self._function(maker)

    def value(self, label: str, value: Any) -> None:
        """Tell a value by itself. Raises TransformRefused."""
        try:
            text = told_value(value, self._code)
        except Untold as error:
            raise TransformRefused(
                f"transform {self._name!r} uses {label}, {error}, whose value cannot be told",
                hint="a transform uses values that can be written down; make such things inside it",
            ) from error
        self._put(label, text)

    def _put(self, label: str, text: str) -> None:
        number, free = 1, label
        while self._parts.get(free, text) != text:
            number += 1
            free = f"{label} ({number})"
        self._parts[free] = text

    def _code(self, found: FunctionType | type) -> str:
        """A function or class inside a value: its name; its source is told besides."""
        if self._own.holds(found.__module__):
            self._named(found.__qualname__, found)
            return found.__qualname__
        return f"{found.__module__}.{found.__qualname__}"

    def _function(self, function: FunctionType) -> None:
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        label = f"function {function.__qualname__}"
        self._put(label, self._source(function))
        for place, default in enumerate(function.__defaults__ or ()):
            self._named(f"default {place} of {function.__qualname__}", default)
        for name, default in sorted((function.__kwdefaults__ or {}).items()):
            self._named(f"default {name} of {function.__qualname__}", default)
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._named(f"{name} of {function.__qualname__}", cell.cell_contents)
        self._globals(code, function.__globals__)

    def _class(self, found: type) -> None:
        if id(found) in self._seen:
            return
        self._seen.add(id(found))
        try:
            self._put(f"class {found.__qualname__}", self._source(found))
        except TransformRefused:
            # In a notebook a class has no source, and its methods have.
            members = vars(found).items()
            told = {n: v for n, v in members if not isinstance(_inner(v), FunctionType | type)}
            self.value(f"class {found.__qualname__}", {n: told[n] for n in told if n[:2] != "__"})
            for _, member in members:
                if isinstance(_inner(member), FunctionType):
                    self._function(_inner(member))
        for base in found.__bases__:
            self._named(base.__qualname__, base)
        for member in vars(found).values():
            inner = _inner(member)
            if isinstance(inner, FunctionType):
                self._globals(inner.__code__, inner.__globals__)

    def _globals(self, code: CodeType, scope: dict[str, Any]) -> None:
        names = _names(code)
        for name in sorted(names):
            if name not in scope:
                continue
            found = scope[name]
            if isinstance(found, ModuleType):
                if self._own.holds(found.__name__):
                    self._members(found, names)
                continue
            self._named(name, found)

    def _members(self, module: ModuleType, names: set[str]) -> None:
        for name in sorted(names & vars(module).keys()):
            found = vars(module)[name]
            if not isinstance(found, ModuleType):
                self._named(f"{module.__name__}.{name}", found)

    def _named(self, label: str, found: Any) -> None:
        inner = getattr(found, "maker", None) if type(found).__name__ == "Transform" else None
        found = _inner(found if inner is None else inner)
        if isinstance(found, FunctionType | type):
            if not self._own.holds(found.__module__):
                self._put(label, f"{found.__module__}.{found.__qualname__}")
            elif isinstance(found, FunctionType):
                self._function(found)
            else:
                self._class(found)
        elif isinstance(found, BuiltinFunctionType) or _is_library_code(found):
            self._put(label, getattr(found, "__qualname__", type(found).__qualname__))
        elif isinstance(found, ModuleType):
            self._put(label, found.__name__)
        else:
            self.value(label, found)

    def _source(self, found: FunctionType | type) -> str:
        try:
            text = textwrap.dedent(inspect.getsource(found))
        except (OSError, TypeError) as error:
            raise TransformRefused(
                f"transform {self._name!r} uses {found.__qualname__}, whose source cannot be read",
                hint="write it into a file or a notebook cell; a prompt, exec and eval keep none",
            ) from error
        if isinstance(found, FunctionType) and found.__name__ == "<lambda>":
            raise TransformRefused(
                f"transform {self._name!r} uses a lambda, whose own source cannot be told",
                hint="write it as a function with def",
            )
        return _without_decorators(text)


def _inner(member: Any) -> Any:
    """The function of a method, a property, or what wraps one; anything else as it is."""
    member = getattr(member, "__func__", getattr(member, "fget", member))
    return inspect.unwrap(member) if callable(member) else member


def _names(code: CodeType) -> set[str]:
    """Global names and attributes that code uses, functions inside it too."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _is_library_code(found: Any) -> bool:
    """Callables of libraries that are no functions: ufuncs, compiled functions."""
    kind = type(found)
    return kind.__name__ in ("ufunc", "cython_function_or_method", "_ArrayFunctionDispatcher")


def _without_decorators(text: str) -> str:
    """A definition from its `def` or `class` on: the version that is raised is no change."""
    try:
        (node,) = ast.parse(text).body
    except (SyntaxError, ValueError):
        return text
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return "".join(text.splitlines(keepends=True)[node.lineno - 1 :]).rstrip() + "\n"
    return text
