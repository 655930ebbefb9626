"""Payload bodies in the `payload` database: key (id u64, part u32), big-endian.

Small ones are in their index entries instead; what takes an entry knows both places.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from eventlog.engine import payload
from eventlog.engine.index import IndexEntry
from eventlog.engine.payload import Body, Payload
from eventlog.engine.store import Store, Txn
from eventlog.errors import DamagedLog

_KEY = struct.Struct(">QI")
_KEYS = 100_000


def put_bodies(store: Store, txn: Txn, first_id: int, bodies: Sequence[Body]) -> None:
    """Store bodies under consecutive ids, at the end of the database."""
    for payload_id, body in enumerate(bodies, first_id):
        put_parts(store, txn, payload_id, body.parts())


def get_parts(store: Store, txn: Txn, entry: IndexEntry) -> list[bytes]:
    """The parts of an entry's body as they are stored, whatever fills up the last one."""
    if entry.body is not None:
        return [entry.body]
    count = payload.part_count(entry.body_bytes)
    keys = (_KEY.pack(entry.payload_id, part) for part in range(count))
    found = (txn.get(key, db=store.payload) for key in keys)
    return [part for part in found if part is not None]


def put_parts(
    store: Store,
    txn: Txn,
    payload_id: int,
    parts: Iterable[bytes],
    *,
    first: int = 0,
    at_end: bool = True,
) -> None:
    """Store the parts of a body from `first` on: `at_end` of the database, or among others.

    Others may have stored bodies since an id was taken in an earlier transaction.
    """
    where = {"append": True} if at_end else {"overwrite": False}
    for part, data in enumerate(parts, first):
        if not txn.put(_KEY.pack(payload_id, part), data, db=store.payload, **where):
            raise DamagedLog(
                f"payload {payload_id} is not above every stored one",
                hint="run `eventlog check`; the counters of this log are damaged",
            )


def get_body(store: Store, txn: Txn, entry: IndexEntry) -> bytes:
    """Read an entry's body; what is missing is left out, for the decoder to notice."""
    parts = get_parts(store, txn, entry)
    stored = parts[0] if len(parts) == 1 else b"".join(parts)
    return stored if len(stored) <= entry.body_bytes else stored[: entry.body_bytes]


def load(body: bytes, entry: IndexEntry, *, stream: str) -> Payload:
    """Decode the body of an entry, and hold it against what the entry says.

    Raises DamagedLog, naming the stream and the offsets.
    """
    where = (
        f"payload {entry.payload_id} of stream {stream!r}, "
        f"offsets [{entry.first_offset}, {entry.stop})"
    )
    found = payload.decode(body, where=where)
    if len(found.ends) != entry.slots or payload.stored_checksum(body) != entry.payload_checksum:
        raise DamagedLog(
            f"{where} is damaged: it is not the body that the index names",
            hint="records outside it can still be read; `eventlog repair` drops what is damaged",
        )
    return found


def delete_body(store: Store, txn: Txn, entry: IndexEntry) -> None:
    """Delete an entry's body, where it lies outside of it."""
    if entry.body is None:
        for part in range(payload.part_count(entry.body_bytes)):
            txn.delete(_KEY.pack(entry.payload_id, part), db=store.payload)


def greatest_id(store: Store, txn: Txn) -> int:
    """The greatest payload id stored, 0 where there is none."""
    cursor = txn.cursor(db=store.payload)
    return int(_KEY.unpack(cursor.key())[0]) if cursor.last() else 0


def stored_keys(store: Store, *, stop: int) -> Iterator[list[tuple[int, int]]]:
    """The (id, part) of everything stored below id `stop`, a read transaction a list."""
    resume = b""
    while True:
        with store.read() as txn:
            cursor = txn.cursor(db=store.payload)
            if not cursor.set_range(resume):
                return
            keys = list(islice(cursor.iternext(keys=True, values=False), _KEYS))
        found = [_KEY.unpack(key) for key in keys]
        yield [(payload_id, part) for payload_id, part in found if payload_id < stop]
        if len(keys) < _KEYS or found[-1][0] >= stop:
            return
        resume = keys[-1] + b"\0"
