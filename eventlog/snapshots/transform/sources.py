"""What a transform is made of: the text that its digest is taken over.

Starting at the transform's function, whatever a function names is told, each thing once:

===============================================  =========================================
what it names                                    what is told
===============================================  =========================================
itself, its defaults and its closure             source without decorators, and the values
a function or class of own code (`own_code`)     its source, what that names in turn, and
                                                 what hangs on it; a wrapper and what it wraps
a module of own code, also one that is           those of its functions and values that are
imported inside the function                     named after a dot, or imported by name
a function, class or module of a library         its name alone: libraries are not part of it
None, bool, numbers, text, bytes, dates,         the value
containers, numpy arrays, Arrow types
and arrays, compiled patterns
a fitted estimator, or any object of fields      its class (of own code: its source, too),
                                                 parameters and fitted arrays
anything else (an open file, a connection)       refused
===============================================  =========================================

Comments and layout are part of a source. What is looked up by text (`getattr(x, name)`, `eval`,
`globals()`) or read from outside cannot be seen.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from importlib.util import resolve_name
from types import CodeType, FunctionType, MethodType, ModuleType
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
        if not self._is_own(function):
            self._library_wrapper(label, function)
            return
        self._put(label, self._source(function))
        self._attributes(label, vars(function))
        for place, default in enumerate(function.__defaults__ or ()):
            self._named(f"default {place} of {function.__qualname__}", default)
        for name, default in sorted((function.__kwdefaults__ or {}).items()):
            self._named(f"default {name} of {function.__qualname__}", default)
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._named(f"{name} of {function.__qualname__}", cell.cell_contents)
        self._globals(code, function.__globals__)

    def _is_own(self, function: FunctionType) -> bool:
        """By where its code is, for a wrapper says that it were of the module that it wraps."""
        module = function.__globals__.get("__name__") or function.__module__
        return self._own.holds(module or "__main__")

    def _library_wrapper(self, label: str, function: FunctionType) -> None:
        """Own code inside of what a library's decorator made: it, and what it was given."""
        code = function.__code__
        self._put(f"{label} around", f"{function.__globals__.get('__name__')}.{code.co_qualname}")
        self._attributes(label, vars(function))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._attributes(label, {name: cell.cell_contents})

    def _attributes(self, label: str, found: Mapping[str, Any]) -> None:
        """What hangs on a function or a class besides its source; what has no text is left out."""
        for name, member in found.items():
            inner = _inner(member)
            if name == "__wrapped__" or isinstance(inner, FunctionType | type):
                self._named(f"{label}.{name}", inner)
            elif not _is_reserved(name) and not hasattr(type(member), "__get__"):
                with suppress(TransformRefused):
                    self.value(f"{label}.{name}", member)

    def _class(self, found: type) -> None:
        if id(found) in self._seen:
            return
        self._seen.add(id(found))
        label = f"class {found.__qualname__}"
        try:
            self._put(label, self._source(found))
            has_source = True
        except TransformRefused:
            has_source = False  # In a notebook a class has no source, and its methods have.
        for base in (*found.__bases__, type(found)):
            self._named(base.__qualname__, base)
        for name, member in vars(found).items():
            inner = _inner(member)
            while isinstance(inner, FunctionType) and not self._is_own(inner):
                inner = getattr(inner, "__wrapped__", None)
            if has_source and _is_generated(inner):
                continue
            if not isinstance(inner, FunctionType):
                if inner is not None and not _is_reserved(name):
                    self._attributes(label, {name: member})
            elif has_source and inner.__qualname__.startswith(f"{found.__qualname__}."):
                self._globals(inner.__code__, inner.__globals__)
            else:
                self._function(inner)

    def _globals(self, code: CodeType, scope: dict[str, Any]) -> None:
        names = _names(code)
        for module in sorted(_imports(code, scope.get("__package__") or "")):
            if self._own.may_hold(module):
                self._imported(module, names)
        for name in sorted(names):
            if name not in scope:
                continue
            found = scope[name]
            if isinstance(found, ModuleType):
                if self._own.holds(found.__name__):
                    self._members(found, names)
                continue
            self._named(name, found)

    def _imported(self, name: str, names: set[str]) -> None:
        """A module that a function imports itself."""
        try:
            found = importlib.import_module(name)
        except ImportError as error:
            raise TransformRefused(
                f"transform {self._name!r} imports {name}, which cannot be imported: {error}",
                hint="import it where the transform is defined, and see that it can be found",
            ) from error
        if self._own.holds(name):
            self._members(found, names)

    def _members(self, module: ModuleType, names: set[str]) -> None:
        for name in sorted(names & vars(module).keys()):
            found = vars(module)[name]
            if not isinstance(found, ModuleType):
                self._named(f"{module.__name__}.{name}", found)
            elif self._own.holds(found.__name__) and found.__name__.startswith(module.__name__):
                self._members(found, names)

    def _named(self, label: str, found: Any) -> None:
        inner = getattr(found, "maker", None) if type(found).__name__ == "Transform" else None
        found = found if inner is None else inner
        if not isinstance(found, MethodType):
            found = _inner(found)
        if isinstance(found, FunctionType | type):
            if not self._own.holds(found.__module__):
                self._put(label, f"{found.__module__}.{found.__qualname__}")
            elif isinstance(found, FunctionType):
                self._function(found)
            else:
                self._class(found)
        elif _is_library_code(found):
            self._put(label, getattr(found, "__qualname__", type(found).__qualname__))
        elif isinstance(found, ModuleType):
            self._put(label, found.__name__)
        else:
            self.value(label, found)

    def _source(self, found: FunctionType | type) -> str:
        # Of a wrapper, getsource() would read what it wraps.
        code = found.__code__ if isinstance(found, FunctionType) else found
        try:
            text = textwrap.dedent(inspect.getsource(code))
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
        # Those of a class are part of it, and none of them says the transform's version.
        return text if isinstance(found, type) else _without_decorators(text)


def _inner(member: Any) -> Any:
    """The function of a method, a property, or of a cache around it; anything else as it is."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    elif isinstance(member, cached_property):
        member = member.func
    while not isinstance(member, FunctionType | type) and hasattr(member, "__wrapped__"):
        member = member.__wrapped__
    return member


def _is_generated(member: Any) -> bool:
    """Whether `dataclass` or the like wrote it, after what stands in the class."""
    return isinstance(member, FunctionType) and member.__code__.co_filename == "<string>"


def _is_reserved(name: str) -> bool:
    """Python's own names, and those of `enum`, whose values may grow with use."""
    return name[:2] == "__" or (name[:1] == "_" and name[-1:] == "_")


def _imports(code: CodeType, package: str) -> set[str]:
    """The modules that code imports where it runs, by their whole names."""
    found = set()
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            level = steps[place - 2].argval
            found.add(resolve_name("." * level + step.argval, package) if level else step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _imports(constant, package)
    return found


def _names(code: CodeType) -> set[str]:
    """Global names and attributes that code uses, functions inside it too."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _is_library_code(found: Any) -> bool:
    """Callables of libraries that are no functions: ufuncs, compiled functions."""
    return type(found).__name__ in ("cython_function_or_method", "_ArrayFunctionDispatcher")


def _without_decorators(text: str) -> str:
    """A definition from its `def` or `class` on: the version that is raised is no change."""
    try:
        (node,) = ast.parse(text).body
    except (SyntaxError, ValueError):
        return text
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return "".join(text.splitlines(keepends=True)[node.lineno - 1 :]).rstrip() + "\n"
    return text
