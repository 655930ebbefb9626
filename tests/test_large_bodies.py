"""Bodies of many megabytes are stored in pieces: the same bytes, and nothing by halves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eventlog.engine import (
    Append,
    Batch,
    Engine,
    Owner,
    Plan,
    SourceUpdate,
    Transactions,
    batch_of,
    check,
    payload,
    payload_store,
    writer,
)
from eventlog.engine.payload import HEADER_BYTES, JOIN_BYTES_MAX, PART_BYTES, Body, encode
from eventlog.errors import DamagedLog

MIB = 1 << 20


def contents(kind: str, size: int) -> bytes:
    """Records that compress well, not at all, or by a fifth."""
    rng = random.Random(size)
    if kind == "random":
        return rng.randbytes(size)
    if kind == "text":
        return (b"abcdefgh" * 1000 + rng.randbytes(100)) * (size // 8100 + 1)
    return bytes(rng.choices(range(48), k=1000)) * 3 + rng.randbytes(size)[: size - 3000]


def body_of(data: bytes | memoryview) -> Body:
    return encode(3, np.array([7, len(data)], np.uint32), data)


@pytest.mark.parametrize("kind", ["random", "text", "mixed"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_body_in_pieces_has_the_bytes_of_a_whole_one(
    monkeypatch: pytest.MonkeyPatch, kind: str, zipped: bool
) -> None:
    data = contents(kind, 3 * MIB)
    pieces = body_of(memoryview(bytearray(data)))
    monkeypatch.setattr(payload, "JOIN_BYTES_MAX", 1 << 40)
    whole = body_of(data)
    assert len(pieces.pieces) > 1 and len(whole.pieces) == 1
    assert pieces.data == whole.data and pieces.size == len(whole.data)
    if zipped:
        whole = payload.compressed(whole)
        monkeypatch.undo()
        pieces = payload.compressed(pieces)
        assert pieces.compression == whole.compression
        assert pieces.compression == (kind == "text")
    found = payload.decode(pieces.data, where="it")
    assert found.data == data and found.ends.tolist() == [7, len(data)]
    assert pieces.checksum == payload.stored_checksum(pieces.data)
    assert b"".join(pieces.parts())[: pieces.size] == pieces.data


@pytest.mark.parametrize("extra", [-1, 0, 1, 17])
@pytest.mark.parametrize("least", [JOIN_BYTES_MAX, 5 * PART_BYTES, 7 * PART_BYTES])
def test_parts_are_full_but_for_the_last(least: int, extra: int) -> None:
    data = random.Random(extra).randbytes(least - HEADER_BYTES - 8 + extra)
    body = body_of(memoryview(data))
    parts = list(body.parts())
    assert body.size == least + extra
    assert len(parts) == payload.part_count(body.size)
    assert {len(part) for part in parts[:-1]} == {PART_BYTES}
    assert b"".join(parts) == body.data


# Staging


def large_batch(size: int, *, position: int = 0) -> Batch:
    return batch_of(3, [random.Random(size).randbytes(size)], transaction(position=position))


def transaction(*, position: int = 0) -> Transactions:
    return Transactions.one(time_us=5, tx=1, position=position)


@pytest.fixture
def parts_put(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bodies above 1 MiB are large; how many parts each commit of one had."""
    monkeypatch.setattr(writer, "COMMIT_BYTES_MAX", MIB)
    put: list[int] = []

    def put_parts(store: Any, txn: Any, payload_id: int, parts: list[bytes], **how: Any) -> None:
        put.append(len(parts))
        payload_store.put_parts(store, txn, payload_id, parts, **how)

    monkeypatch.setattr(writer, "put_parts", put_parts)
    return put


def test_a_large_body_takes_several_commits_and_others_come_between(
    engine: Engine, parts_put: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")
    engine.create_stream("other", "events")
    owner = engine.appender("s")
    others = 0

    def others_turn(_: float) -> None:
        nonlocal others
        others += 1
        # Large enough for a body of its own, above the one that is being stored.
        record = random.Random(others).randbytes(5_000)
        engine.commit(Plan(appends=[Append(stream="other", batches=[small(record)])]))
        assert check(engine) == [], "what is not whole yet is no damage"

    monkeypatch.setattr(writer.time, "sleep", others_turn)
    batches = [small(b"first"), large_batch(5 * MIB), small(b"between"), large_batch(3 * MIB)]
    batches.append(small(b"last"))
    owner.stage(batches)
    assert others >= 6 and max(parts_put) <= MIB // PART_BYTES + 1
    assert sum(parts_put) == sum(payload.part_count(b.body.size) for b in batches[1::2])
    engine.commit(Plan(appends=[Append(stream="s", staged=owner.id)]))
    assert records_of(engine, "s") == [payload.decode(b.body.data, where="") for b in batches]
    assert len(records_of(engine, "other")) > 0
    owner.close()


def small(record: bytes) -> Batch:
    return batch_of(3, [record], transaction())


def records_of(engine: Engine, stream: str) -> list[payload.Payload]:
    return [
        stretch.payload for stretch in engine.scan(stream, *engine.bounds(stream), lambda _: True)
    ]


def test_an_owner_that_dies_amid_a_large_body_leaves_nothing(
    log_dir: Path, parts_put: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: float) -> None:
        if len(parts_put) == 3:
            raise OSError("the disk is gone")

    monkeypatch.setattr(writer.time, "sleep", fail)
    with Engine.open(log_dir, create=True) as engine:
        engine.create_stream("s", "events")
        owner = engine.appender("s")
        with pytest.raises(OSError, match="the disk is gone"):
            owner.stage([small(b"x"), large_batch(5 * MIB)])
        with pytest.raises(DamagedLog, match="of which parts are missing"):
            engine.commit(Plan(appends=[Append(stream="s", staged=owner.id)]))
        assert check(engine) == []
        owner._lock.release()  # As its process's end does.
    with Engine.open(log_dir) as engine:
        assert engine.owners() == [] and check(engine) == []
        with engine.store.read() as txn:
            assert txn.stat(db=engine.store.payload)["entries"] == 0


def test_a_capture_publishes_large_rows_by_reference_in_their_place(
    engine: Engine, parts_put: list[int]
) -> None:
    engine.create_stream("shop", "captured")
    capturing = engine.writer("shop")
    update = SourceUpdate(stream="shop", writer_epoch=capturing.epoch, state={"position": 30})
    owner: Owner = capturing.owner
    # Of the transaction that ends at 10 the first part was staged before its end was known.
    owner.stage([large_batch(2 * MIB)])
    rows = [
        batch_of(3, [b"a"], transaction(position=10)),
        large_batch(3 * MIB, position=20),
        batch_of(3, [b"b"], transaction(position=30)),
    ]
    append = Append(stream="shop", batches=rows, staged=owner.id, staged_position=10)
    relieved = capturing.relieved(append)
    assert relieved.batches == rows[2:]
    assert capturing.relieved(relieved) is relieved
    engine.commit(Plan(appends=[relieved], sources=[update]))
    stretches = list(engine.scan("shop", 0, 4, lambda _: True))
    positions = [stretch.entry.transactions.position.tolist() for stretch in stretches]
    assert [each for some in positions for each in some] == [10, 10, 20, 30]
    sizes = [len(stretch.payload.data) for stretch in stretches]
    assert sizes == [2 * MIB, 1, 3 * MIB, 1]
    capturing.close()
