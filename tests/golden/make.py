"""Make the golden logs: every kind of row and entry of format 1, at fixed times, under a fixed id.

    python -m tests.golden.make        writes heads.txt and heads.mdb beside this file

`heads.txt` is every key and value; today's code must write the same. `heads.mdb` is the data file
that held them; today's code must read it. `log.txt` and `log.mdb` are those of the first version,
before the features of `eventlog.engine.upgrade`: today's code must upgrade and read it. None is
made anew for as long as the format is number 1.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import zstandard

from eventlog.engine import (
    Advance,
    Append,
    Engine,
    Plan,
    SourceUpdate,
    Transactions,
    batch_of,
    batches_of,
    index,
    payload,
    rows,
)
from eventlog.engine.store import DATABASES

HERE = Path(__file__).parent
DUMP = HERE / "heads.txt"
DATA = HERE / "heads.mdb"
FIRST_DUMP = HERE / "log.txt"
FIRST_DATA = HERE / "log.mdb"

NOW_US = 1_767_225_600_000_000
LOG_ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")

CLICKS = [[b"\x92\xa17\x01", b"\x92\xc0\xa3two"], [b""], [b"\x92\xa18\x93\x01\x02\x03"]]
"""The batches of stream `clicks`."""

CHANGES = [b"I\0\0\x40\x10N", b"aborted", b"D\0\0\x40\x10K", b"U\0\0\x40\x10N"]
"""The slots of stream `shop`'s first batch; the second is dropped."""

OWNER_KEY = b"owner/" + (1).to_bytes(8, "big")

MANY = 40
"""Transactions of stream `packed`'s entry."""

Rows = list[tuple[str, bytes, bytes]]


@contextmanager
def frozen() -> Iterator[None]:
    """Within it the clock stands, and a new log gets the golden id."""
    with (
        mock.patch("eventlog.engine.engine.now_us", return_value=NOW_US),
        mock.patch("uuid.uuid4", return_value=LOG_ID),
    ):
        yield


def write_example(engine: Engine) -> None:
    """The worked example of docs/format.md: an event stream of two records."""
    engine.create_stream("clicks", "events")
    batch = batch_of(2, CLICKS[0], Transactions.one(time_us=NOW_US))
    engine.commit(Plan(appends=[Append(stream="clicks", batches=[batch])]))


def write(engine: Engine) -> None:
    """The whole golden log: two streams, consumers, schemas, a source, staged batches."""
    write_example(engine)
    engine.consumer("clicks", "reader", start=0)
    batches = [batch_of(2, records, Transactions.one(time_us=NOW_US - 5)) for records in CLICKS[1:]]
    moved = Advance(
        stream="clicks",
        consumer="reader",
        offset=2,
        expected_offset=0,
        expected_epoch=1,
        filter="clicks",
    )
    engine.commit(Plan(appends=[Append(stream="clicks", batches=batches)], advances=[moved]))
    _capture(engine)


def write_features(engine: Engine) -> None:
    """What logs have since: an entry with packed transactions, a compressed body, ids."""
    engine.create_stream("packed", "events", compression="zstd")
    many = np.arange(MANY)
    transactions = Transactions(
        first=many.astype(np.uint32),
        time=NOW_US + many * 7 - 3,
        tx=(700 + many).astype(np.uint64),
        position=(0x16_B374_D848 + many * 96).astype(np.uint64),
    )
    batch = batch_of(2, [b"\x92\xc0\xc4\x64" + b"x" * 100] * MANY, transactions)
    engine.commit(Plan(appends=[Append(stream="packed", batches=[batch])]))
    batch = batch_of(2, [b"\x92\xc0\x01", b"\x92\xc0\x02"], Transactions.one(time_us=NOW_US))
    append = Append(stream="packed", batches=[batch], ids=["req-81", None])
    engine.commit(Plan(appends=[append]))


def _capture(engine: Engine) -> None:
    engine.create_stream("shop", "captured")
    writer = engine.writer("shop")
    transactions = Transactions(
        first=np.array([0, 2], np.uint32),
        time=np.array([NOW_US + 9, NOW_US + 3], np.int64),
        tx=np.array([771, 772], np.uint64),
        position=np.array([0x16_B374_D848, 0x16_B374_D900], np.uint64),
    )
    batch = batch_of(3, CHANGES, transactions, relations=((16400, 0), (16410, 1)))
    states = np.array([0, 1, 0, 2], np.uint8)
    batch = replace(batch, states=states, more={"name of a later version": [1, None]})
    goes_on = batch_of(
        3,
        CHANGES[3:],
        Transactions.one(time_us=NOW_US + 3, tx=772, position=0x16_B374_D900, back=2),
    )
    source = SourceUpdate(
        stream="shop",
        writer_epoch=writer.epoch,
        state={"kind": "postgres", "position": 0x16_B374_D900},
        schemas=[(0, {"relation": 16400, "name": "orders"}), (1, {"relation": 16410})],
    )
    engine.commit(Plan(appends=[Append(stream="shop", batches=[batch, goes_on])], sources=[source]))
    writer.owner.stage(list(batches_of(4, [b"1\tone\n", b"2\t\\N\n"], time_us=NOW_US)))
    with engine.store.write() as txn:
        row = replace(engine.stream("shop"), more={"note": "kept"})
        rows.write_stream(engine.store, txn, row)


def stored_rows(engine: Engine) -> Rows:
    """Every key and value, in the order of the databases' names in the format."""
    with engine.store.read() as txn:
        return [
            (name, bytes(key), bytes(value))
            for name in DATABASES
            for key, value in txn.cursor(db=getattr(engine.store, name))
        ]


def dumped(found: Rows) -> str:
    return "".join(f"{name} {key.hex()} {value.hex()}\n" for name, key, value in found)


def loaded(dump: str) -> Rows:
    """The rows of a dump."""
    return [
        (name, bytes.fromhex(key), bytes.fromhex(value))
        for name, key, value in (line.split(" ") for line in dump.splitlines())
    ]


def uncompressed(found: Rows) -> Rows:
    """The rows with zstd frames opened: another version of the library may write other ones."""
    return [(name, key, _opened(name, key, value)) for name, key, value in found]


def _opened(name: str, key: bytes, value: bytes) -> bytes:
    if name == "payload" and value[5] == payload.ZSTD:
        frame = value[payload.HEADER_BYTES :].rstrip(b"\0")
        return value[:24] + zstandard.ZstdDecompressor().decompress(frame)
    if name == "index" and value[5] & 2:
        entry = index.unpack(index.split_key(key)[1], value, under=key)
        return repr(replace(entry, payload_checksum=0, body_bytes=0)).encode()
    return value


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, frozen():
        path = Path(scratch) / "log"
        with Engine.open(path, create=True) as engine:
            write(engine)
            write_features(engine)
            DUMP.write_text(dumped(stored_rows(engine)))
        shutil.copyfile(path / "data.mdb", DATA)


if __name__ == "__main__":
    main()
