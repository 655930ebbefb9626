"""The digest of a table as docs/format.md words it, in plain Python: value by value, no library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

Row = tuple[int, Sequence[bytes | None]]
"""A row's offset and its texts."""


def digest_of(columns: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    """The table's digest; `columns` are names and types."""
    head = b"EVLD" + number(1, 4) + number(len(rows), 8) + number(len(columns), 4)
    offsets = b"".join(number(offset, 8) for offset, _ in rows)
    parts = [head, sha(offsets)]
    for place, (name, kind) in enumerate(columns):
        texts = [values[place] for _, values in rows]
        lengths = b"".join(number(-1 if text is None else len(text), 4) for text in texts)
        stored = b"".join(text for text in texts if text is not None)
        parts.append(sha(label(name) + label(kind) + sha(lengths) + sha(stored)))
    return sha(b"".join(parts)).hex()


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little", signed=value < 0)


def label(text: str) -> bytes:
    return number(len(text.encode()), 4) + text.encode()


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
