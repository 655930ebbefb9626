"""Rows whose keys are damaged: put back under the right ones, which their values prove.

A checksum covers key and value together, so a row proves itself under its own key and under no
other. Tried are the name that a stream's row holds, the names of all streams for the state of a
source, and for any row every key that differs in one bit. A damaged row that proves itself under
none of them stays where it is; nothing tells then whether its key or its value is damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgpack

from eventlog.engine import ids, index, rows
from eventlog.engine.sealed import HEAD_BYTES, unseal
from eventlog.errors import DamagedLog


def restore_keys(
    values: dict[str, dict[bytes, bytes]], doubles: Iterable[tuple[str, bytes, bytes]]
) -> list[str]:
    """Move rows in `values`, by database, under their own keys; returns what was moved, in words.

    `doubles` are further rows under keys that have one: of two, at most one is under its own key. A
    key whose row proves itself keeps it.
    """
    moved = []
    others: dict[str, list[tuple[bytes, bytes]]] = {}
    for database, key, value in doubles:
        stored = values[database]
        if not proves_itself(database, key, stored[key]) and proves_itself(database, key, value):
            value, stored[key] = stored[key], value
        others.setdefault(database, []).append((key, value))
    # Streams are told by themselves, and their names then tell the states of sources.
    for database in ("meta", "meta", "schema", "consumer", "index", "ids"):
        stored = values[database]
        names = _stream_names(values["meta"])
        for key, value in [*stored.items(), *others.get(database, ())]:
            if not value or proves_itself(database, key, value):
                continue
            own = _own_key(database, key, value, names)
            if own is not None and own not in stored:
                stored[own] = value
                if stored[key] == value:
                    del stored[key]
                moved.append(f"the key of a row in `{database}`: it is {own!r}, not {key!r}")
    return moved


def proves_itself(database: str, key: bytes, value: bytes) -> bool:
    """Whether a row is what was written under that key of a database."""
    if database == "ids":
        return ids.is_row(key, value)
    try:
        index.unpack(0, value, under=key) if database == "index" else unseal(key, value)
    except DamagedLog:
        return False
    return True


def _own_key(database: str, key: bytes, value: bytes, names: list[bytes]) -> bytes | None:
    for candidate in _candidates(database, key, value, names):
        if proves_itself(database, candidate, value):
            return candidate
    return None


def _candidates(database: str, key: bytes, value: bytes, names: list[bytes]) -> Iterator[bytes]:
    if database == "meta":
        name = _name_in(value)
        if name is not None:
            yield rows.STREAM_KEYS + name.encode()
        for stream in names:
            yield rows.SOURCE_KEYS + stream
    for place in range(8 * len(key)):
        flipped = bytearray(key)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def _name_in(value: bytes) -> str | None:
    """The name in a row's map, whose checksum nothing has proved yet."""
    try:
        found = msgpack.unpackb(value[HEAD_BYTES:], raw=False, strict_map_key=False)
        name = found.get("name") if isinstance(found, dict) else None
        return name if isinstance(name, str) and name.encode() else None
    except (ValueError, TypeError, RecursionError):
        return None


def _stream_names(meta: dict[bytes, bytes]) -> list[bytes]:
    return [k.removeprefix(rows.STREAM_KEYS) for k in meta if k.startswith(rows.STREAM_KEYS)]
