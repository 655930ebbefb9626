"""Names of tables as users write them: `[STREAM.]schema.table`, quoted as in SQL (API.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eventlog.errors import UsageError


class _Any(str):
    """The sign for any name; a table that is itself named `*` is another thing."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)


ANY = _Any("*")
"""Stands for a whole part of a pattern. Only this object does: a name from elsewhere never."""

_PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([a-z_][a-z0-9_$]*)|(\*))\s*')
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableName:
    """A schema and a table; either may be ANY, which stands for the whole part."""

    schema: str
    name: str
    stream: str | None = None

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read `table`, `schema.table` or `stream.schema.table`; without schema: `public`."""
        parts = name_parts(text)
        if len(parts) > 3:
            raise _bad(text)
        stream = parts[0] if len(parts) == 3 else None
        schema = parts[-2] if len(parts) > 1 else "public"
        return cls(schema=schema, name=parts[-1], stream=stream)

    @property
    def is_pattern(self) -> bool:
        return self.schema is ANY or self.name is ANY

    def matches(self, schema: str, name: str) -> bool:
        return (self.schema is ANY or self.schema == schema) and (
            self.name is ANY or self.name == name
        )

    def __str__(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


def name_parts(text: str) -> list[str]:
    """The parts of a dotted name, unquoted. Raises UsageError."""
    parts: list[str] = []
    position = 0
    while True:
        found = _PART.match(text, position)
        if found is None:
            raise _bad(text)
        enclosed, plain, star = found.groups()
        parts.append(ANY if star else enclosed.replace('""', '"') if enclosed else plain)
        position = found.end()
        if position == len(text):
            return parts
        if text[position] != ".":
            raise _bad(text)
        position += 1


def quoted(part: str) -> str:
    """One part as SQL wants it: plain where it can be; ANY stays."""
    if part is ANY or _PLAIN.fullmatch(part):
        return part
    return '"' + part.replace('"', '""') + '"'


def _bad(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is not a table's name",
        hint="write schema.table; parts with capitals or signs in double quotes, as in SQL",
    )
