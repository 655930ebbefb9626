"""The text of Postgres arrays, read into nested lists.

::

    array   = [bounds '='] braces         bounds, as in `[0:1]={7,8}`, only where not all start at 1
    braces  = '{' [item *(',' item)] '}'
    item    = braces | '"' escaped '"' | bare         a bare NULL is SQL's

Element texts go to a loader as the server wrote them. Nesting takes no recursion.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any


class ExplicitBounds(ValueError):
    """The array does not start at 1, which a list cannot tell."""


def parse_array(text: bytes, load: Callable[[bytes], Any], delimiter: bytes = b",") -> list[Any]:
    """Read an array's text; `load` makes a value of an element's.

    Raises ExplicitBounds, and ValueError for what is no array.
    """
    if text[:1] != b"{":
        raise ExplicitBounds(text) if text[:1] == b"[" else ValueError(text)
    if text == b"{}":
        return []
    flat = text.find(b"}") == len(text) - 1 and text.rfind(b"{") == 0
    if flat and not _QUOTING.search(text):
        items = text[1:-1].split(delimiter)
        if b"" in items:
            raise ValueError(text)
        return [None if item == b"NULL" else load(item) for item in items]
    return _nested(text, load, delimiter)


def _nested(text: bytes, load: Callable[[bytes], Any], delimiter: bytes) -> list[Any]:
    find = _tokens(delimiter).match
    root: list[Any] = []
    stack = [root]
    at, wants_item = 0, True
    while at < len(text):
        token = find(text, at)
        if token is None:
            raise ValueError(text)
        at, kind = token.end(), token.lastgroup
        if kind == "open" and wants_item:
            inner: list[Any] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif kind in ("quoted", "bare") and wants_item and len(stack) > 1:
            item = token[kind]
            if kind == "quoted":
                stack[-1].append(load(_ESCAPE.sub(rb"\1", item)))
            else:
                stack[-1].append(None if item == b"NULL" else load(item))
            wants_item = False
        elif kind == "close" and len(stack) > 1 and not (wants_item and stack[-1]):
            stack.pop()
            wants_item = False
        elif kind == "comma" and not wants_item and len(stack) > 1:
            wants_item = True
        else:
            raise ValueError(text)
    if len(stack) != 1 or len(root) != 1:
        raise ValueError(text)
    top: list[Any] = root[0]
    return top


_QUOTING = re.compile(rb'["\\]')
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


@cache
def _tokens(mark: bytes) -> re.Pattern[bytes]:
    """What an array's text is made of, where `mark` parts the elements."""
    return re.compile(
        rb'(?P<open>\{)|(?P<close>\})|(?P<comma>MARK)|"(?P<quoted>(?:[^"\\]|\\.)*)"'
        rb'|(?P<bare>[^{}"\\MARK]+)'.replace(b"MARK", re.escape(mark)),
        re.DOTALL,
    )
