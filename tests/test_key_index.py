"""The key index: what it stores, how it grows, and what it does without its files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import xxhash

import eventlog
from eventlog.changes.split import IS_NULL, Texts
from eventlog.engine import Append, Plan, Transactions, batch_of
from eventlog.engine.locks import FileLock
from eventlog.engine.payload import Payload
from eventlog.errors import DamagedLog, EnvironmentFault
from eventlog.history import chain, hashing, key_index, merging, run
from eventlog.history.entries import Entries, _event_keys, joined
from eventlog.history.hashing import EVENTS, key_hash, key_hashes, order_of
from eventlog.history.key_index import KeyIndex
from eventlog.history.run import Belongs, Head, MemoryRun, Run, UnusableRun, write_run
from tests.fix_log import INT, MadeSource, column, delete, insert, update

BELONGS = Belongs(log_id=b"l" * 16, generation=1, stream_id=3)
U64 = np.ndarray[Any, Any]


def mixed(state: int) -> int:
    """The mixer of the hash, in plain integers."""
    state ^= state >> 32
    state = state * 0xD6E8FEB86659FD93 % 2**64
    state ^= state >> 29
    state = state * 0xD6E8FEB86659FD93 % 2**64
    return state ^ state >> 32


def plain_hash(relation: int, key: Sequence[bytes | None]) -> int:
    """The hash as its docstring says it, in plain Python."""
    state = mixed(relation)
    for text in key:
        state = mixed(state ^ (2**64 - 1 if text is None else len(text)))
        if text is not None and len(text) > 256:
            state = mixed(state ^ xxhash.xxh3_64_intdigest(text))
        elif text:
            for at in range(0, len(text), 8):
                state = mixed(state ^ int.from_bytes(text[at : at + 8], "little"))
    return state


def test_the_hash_is_what_it_says_for_keys_of_any_length() -> None:
    draw = random.Random(1)
    lengths = [*range(20), 255, 256, 257, 1000]
    rows: list[list[bytes | None]] = [
        [draw.choice((None, draw.randbytes(draw.choice(lengths)))) for _ in range(3)]
        for _ in range(300)
    ]
    columns = []
    for place in range(3):
        data, starts, lengths_ = bytearray(b"?"), [], []
        for row in rows:
            text = row[place]
            starts.append(len(data) if text is not None else 10**12)
            lengths_.append(IS_NULL if text is None else len(text))
            data += text or b""
        columns.append(
            Texts(
                data=np.frombuffer(bytes(data), np.uint8),
                starts=np.array(starts, np.int64),
                lengths=np.array(lengths_, np.int64),
            )
        )
    expected = [plain_hash(16_400, row) for row in rows]
    assert key_hashes(16_400, columns).tolist() == expected
    assert [key_hash(16_400, row) for row in rows] == expected
    assert len(set(expected)) == len({tuple(row) for row in rows})


def test_the_hash_is_for_ever() -> None:
    """Golden: another function needs another VERSION, so that stored runs are built anew."""
    assert hashing.VERSION == 2
    assert key_hash(16_400, [b"7"]) == 0x97095EF40C84988F
    assert key_hash(16_400, [b"1", b"a key of some length", None]) == 0x58F2E370719B2E84
    assert key_hash(EVENTS, [b"x" * 300]) == 0x77EEB98E85BC344F


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_the_order_of_hashes_is_stable_even_where_they_differ_in_few_bits(size: int) -> None:
    draw = np.random.default_rng(size)
    for top in (2**64 - 1, 8, 2000):
        hashes = draw.integers(0, top, size, np.uint64)
        assert order_of(hashes).tolist() == np.argsort(hashes, kind="stable").tolist()


def test_keys_of_events_are_found_without_unpacking_the_events() -> None:
    keys = [None, "", "a", "x" * 31, "x" * 32, "ä" * 200, "y" * 70_000, None, "7"]
    records = [msgpack.packb((key, {"value": [1, "a"]})) for key in keys]
    ends = np.cumsum([len(record) for record in records]).astype(np.uint32)
    payload = Payload(codec=2, ends=ends, data=b"".join(records))
    found = _event_keys(payload, np.arange(len(keys)))
    texts = [None if key is None else key.encode() for key in keys]
    assert found.to_list() == texts
    assert _event_keys(payload, np.array([2, 5])).to_list() == [texts[2], texts[5]]
    for bad in (b"\x93\xa1ab", b"\x92\x01a", b"\x92\xa5ab", b"\x92"):
        broken = Payload(codec=2, ends=np.array([len(bad)], np.uint32), data=bad)
        with pytest.raises(DamagedLog):
            _event_keys(broken, np.arange(1))


# Runs


def entries(hashes: Sequence[int], start: int) -> Entries:
    """Made-up entries: one a record, from offset `start` on."""
    places = np.arange(start, start + len(hashes), dtype=np.uint64) << np.uint64(2)
    rare = np.array([[1, start << 2 | 1]], np.int64)
    return joined([Entries(hashes=np.array(hashes, np.uint64), places=places, rare=rare)])


def written(folder: Path, hashes: Sequence[int], start: int) -> Run:
    made = entries(hashes, start)
    head = Head(belongs=BELONGS, start=start, stop=start + len(hashes), count=len(hashes), mark=9)
    return Run(write_run(folder, head, [(made.hashes, made.places)], made.rare), BELONGS)


def found(source: Run | MemoryRun, key: int) -> list[int]:
    return [place for places in source.find(key) for place in places.tolist()]


def read_all(path: Path, hashes: Sequence[int]) -> None:
    opened = Run(path, BELONGS)
    for key in set(hashes):
        found(opened, key)


@pytest.mark.parametrize("block", [1, 3, 4096])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_a_run_finds_what_memory_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, count: int
) -> None:
    monkeypatch.setattr(run, "BLOCK", block)
    draw = random.Random(count)
    hashes = [draw.choice((0, 5, 2**63, 2**64 - 1, draw.randrange(9))) for _ in range(count)]
    stored, memory = written(tmp_path, hashes, 1000), MemoryRun(entries(hashes, 1000))
    for key in (*range(10), 2**63, 2**64 - 1, 2**64 - 2):
        assert found(stored, key) == found(memory, key) == sorted(found(memory, key))
    assert stored.rare.tolist() == memory.rare.tolist()
    assert (stored.start, stored.stop, stored.count, stored.mark) == (1000, 1000 + count, count, 9)
    assert sum(len(found(stored, key)) for key in set(hashes)) == count


def test_any_flipped_or_missing_byte_of_a_run_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BLOCK", 4)
    hashes = [1, 2, 3, 3, 3, 3, 3, 8, 9]
    path = written(tmp_path, hashes, 0).path
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UnusableRun):
            read_all(path, hashes)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UnusableRun):
            Run(path, BELONGS)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UnusableRun):
        Run(path, BELONGS)


def test_a_run_of_another_log_generation_or_stream_is_not_used(tmp_path: Path) -> None:
    path = written(tmp_path, [1, 2], 0).path
    for other in (b"k" * 16, 1, 3), (b"l" * 16, 2, 3), (b"l" * 16, 1, 4):
        log_id, generation, stream_id = other
        belongs = Belongs(log_id=log_id, generation=generation, stream_id=stream_id)
        with pytest.raises(UnusableRun, match="not of this log"):
            Run(path, belongs)


@pytest.mark.parametrize("distinct", [1, 2, 1000])
def test_merged_runs_hold_all_entries_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distinct: int
) -> None:
    """Where one hash fills many blocks of several runs, too."""
    monkeypatch.setattr(run, "BLOCK", 4)
    monkeypatch.setattr(merging, "_BLOCKS_AT_ONCE", 2)
    draw = random.Random(distinct)
    runs, all_hashes = [], []
    for _ in range(5):
        hashes = [draw.randrange(distinct) for _ in range(draw.choice((0, 3, 40, 41)))]
        runs.append(written(tmp_path, hashes, len(all_hashes)))
        all_hashes += hashes
    parts = list(merging.merged(runs))
    expected = entries(all_hashes, 0)
    assert np.concatenate([h for h, _ in parts]).tolist() == expected.hashes.tolist()
    assert np.concatenate([p for _, p in parts]).tolist() == expected.places.tolist()
    assert max(len(hashes) for hashes, _ in parts) <= 5 * 2 * 4


def test_few_runs_stay_however_many_are_written() -> None:
    counts: list[int] = []

    class Sized:
        def __init__(self, count: int, start: int) -> None:
            self.count, self.start, self.stop = count, start, start + count

    rewritten = 0
    for number in range(3000):
        counts.append(1_000 if number % 100 else 200_000)
        while due := merging.due([Sized(c, 0) for c in counts]):  # type: ignore[misc]
            rewritten += sum(counts[-due:])
            counts[-due:] = [sum(counts[-due:])]
    total = sum(counts)
    assert len(counts) <= 7 * (merging.level(total) + 1)
    assert rewritten < total * (merging.level(total) + 2) * 2


# The index of a log


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written, in small runs that are soon merged."""
    monkeypatch.setattr(key_index, "TAIL_RECORDS", 0)
    monkeypatch.setattr(key_index, "CHUNK", 10)
    monkeypatch.setattr(run, "BLOCK", 4)


@pytest.fixture
def filled(shop: MadeSource) -> Any:
    """A table of 30 rows, changed at random; what the index must find by key."""
    table = shop.table("t", column("id", INT, key=True), column("n"))
    draw = random.Random(3)
    expected: dict[int, list[int]] = {}
    for _ in range(40):
        ids = [draw.randrange(30) for _ in range(draw.choice((1, 5)))]
        offsets = shop.commit(
            *[
                draw.choice((insert(table, i, "a"), update(table, i, "b"), delete(table, i, None)))
                for i in ids
            ]
        )
        for number, offset in zip(ids, offsets, strict=True):
            expected.setdefault(number, []).append(offset)
    return table, expected


def index_of(log: eventlog.Log) -> KeyIndex:
    return log.stream("shop").key_index()


def expect_all(log: eventlog.Log, filled: Any, index: KeyIndex | None = None) -> None:
    table, expected = filled
    stop = log.stream("shop").end
    view = (index or index_of(log)).view(stop)
    for number, offsets in expected.items():
        hashes = [key_hash(table.relation, [b"%d" % number])]
        assert [offset for offset, _ in view.places(hashes, 0, stop)] == offsets
        assert [offset for offset, _ in view.places(hashes, 50, 90)] == [
            offset for offset in offsets if 50 <= offset < 90
        ]


def files(log: eventlog.Log) -> list[Path]:
    return sorted((log.path / "derived" / "keys" / "shop").glob("*.run"))


def fresh(log: eventlog.Log) -> KeyIndex:
    """The index as another process would have it."""
    stream = log.stream("shop")
    return KeyIndex(log.engine, stream._schemas)


@pytest.mark.usefixtures("small")
def test_an_index_is_built_in_private_files_and_read_by_others(
    log: eventlog.Log, filled: Any
) -> None:
    index = index_of(log)
    index.update(log.stream("shop").end)
    assert 0 < len(files(log)) < 8
    folder = files(log)[0].parent
    assert [p.stat().st_mode & 0o777 for p in (folder, folder.parent)] == [0o700, 0o700]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    runs = index.runs()
    assert runs[0].start == 0 and runs[-1].stop == log.stream("shop").end
    assert [one.stop for one in runs[:-1]] == [one.start for one in runs[1:]]
    expect_all(log, filled, index)
    before = files(log)
    expect_all(log, filled, fresh(log))
    assert files(log) == before, "nothing was built again"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("gone", ["first", "middle", "last", "all", "folder"])
def test_files_may_be_deleted_at_any_time(
    log: eventlog.Log, filled: Any, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr(merging, "FANOUT", 100)
    index = index_of(log)
    index.update(log.stream("shop").end)
    there = files(log)
    assert len(there) > 3
    for path in {"first": there[:1], "middle": there[2:3], "last": there[-1:]}.get(gone, there):
        path.unlink()
    if gone == "folder":
        for path in (log.path / "derived" / "keys").rglob("*"):
            if path.is_file():
                path.unlink()
        there[0].parent.rmdir()
    expect_all(log, filled, index)
    expect_all(log, filled, fresh(log))
    assert sum(one.count for one in index.runs()) == sum(map(len, filled[1].values()))


@pytest.mark.usefixtures("small")
def test_runs_of_records_that_came_while_one_looked_are_kept(
    log: eventlog.Log, shop: MadeSource, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run beyond the end that one knew was taken for one of another log, and removed."""
    index, listed = fresh(log), os.listdir

    def busy(folder: Path) -> list[str]:
        monkeypatch.setattr(chain.os, "listdir", listed)
        shop.commit(insert(filled[0], 1000, "a"))
        fresh(log).update(log.stream("shop").end)
        return listed(folder)

    monkeypatch.setattr(chain.os, "listdir", busy)
    index.runs()
    left = fresh(log).runs()
    assert left and left[-1].stop == log.stream("shop").end


@pytest.mark.usefixtures("small")
def test_what_is_damaged_is_built_anew_while_it_is_read(log: eventlog.Log, filled: Any) -> None:
    index_of(log).update(log.stream("shop").end)
    harmed = 0
    for path in files(log):
        for place in range(90, path.stat().st_size, 151):
            if path.exists():
                data = bytearray(path.read_bytes())
                data[place] ^= 4
                path.unlink()  # As a file that is mapped must not be written to.
                path.write_bytes(data)
                harmed += 1
                expect_all(log, filled, fresh(log))
                expect_all(log, filled)
    assert harmed > 5


@pytest.mark.usefixtures("small")
def test_damage_that_a_merge_comes_upon_costs_one_run(
    log: eventlog.Log, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FANOUT", 100)
    index_of(log).update(log.stream("shop").end)
    path = files(log)[1]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.unlink()
    path.write_bytes(data)
    monkeypatch.setattr(merging, "FANOUT", 3)
    files(log)[-1].unlink()
    index = fresh(log)
    index.update(log.stream("shop").end)
    expect_all(log, filled, index)


@pytest.mark.usefixtures("small")
def test_an_index_of_a_history_that_was_replaced_is_dropped(tmp_path: Path) -> None:
    """As when the data file is put back from a copy, and other records follow."""
    found = []
    for name, value in (("one", "a"), ("two", "b")):
        with eventlog.open(tmp_path / name, create=True) as log:
            stream = log.stream("shop", create=True)
            stream.append_many([value] * 20, keys=[value] * 20)
            index_of(log).update(stream.end)
            identity = log.engine.identity()
            found.append((files(log), identity))
    (ours, _), _ = found
    with eventlog.open(tmp_path / "one") as log:
        stream = log.stream("shop")
        assert [event.offset for event in stream.history(key="a")] == list(range(20))
        opened = Run(ours[0], fresh(log)._chain._belongs)
        # The same run with another mark: of a log that had another last record.
        head = Head(
            belongs=fresh(log)._chain._belongs, start=0, stop=20, count=0, mark=opened.mark + 1
        )
        for path in ours:
            path.unlink()
        write_run(ours[0].parent, head, [], np.zeros((0, 2), np.int64))
        index = fresh(log)
        assert index.runs() == []
        view = index.view(stream.end)
        assert len(list(view.places([key_hash(EVENTS, [b"a"])], 0, 20))) == 20
        longer = Head(belongs=head.belongs, start=0, stop=21, count=0, mark=opened.mark)
        write_run(ours[0].parent, longer, [], np.zeros((0, 2), np.int64))
        assert all(one.stop <= 20 for one in fresh(log).runs())


@pytest.mark.usefixtures("small")
def test_where_nothing_can_be_written_the_log_is_read_and_that_is_said(
    log: eventlog.Log, filled: Any
) -> None:
    (log.path / "derived" / "keys").write_text("in the way")
    expect_all(log, filled)
    assert index_of(log).unwritable
    history = log.stream("shop").history("t", 3)
    assert [change.offset for change in history] == filled[1][3]
    assert "cannot be written" in history.notes[0]
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        index_of(log).update(log.stream("shop").end)


def test_few_new_records_are_kept_in_memory(log: eventlog.Log, shop: MadeSource) -> None:
    table = shop.table("t", column("id", INT, key=True), column("n"))
    for number in range(30):
        shop.commit(insert(table, number, "a"))
        assert [c.offset for c in shop.stream.history("t", number)] == [number]
    assert files(log) == []
    assert len(index_of(log)._tail) <= key_index.TAIL_PARTS


@pytest.mark.usefixtures("small")
def test_a_builder_that_does_not_get_on_is_waited_for_no_longer_than_it_pays(
    log: eventlog.Log, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_index, "PATIENCE_S", 0.2)
    index = index_of(log)
    index._chain.make_folder()
    lock = FileLock.take(index._chain.folder / chain.LOCK)
    assert lock is not None
    expect_all(log, filled)
    assert files(log) == []
    with pytest.raises(EnvironmentFault, match="another process is at it"):
        index.update(log.stream("shop").end)
    threading.Timer(0.1, lock.release).start()
    monkeypatch.setattr(key_index, "PATIENCE_S", 60)
    index.update(log.stream("shop").end)
    assert files(log)


BUILD = """
import sys
import eventlog
from eventlog.history import key_index
key_index.CHUNK, key_index.TAIL_RECORDS = 10, 0
with eventlog.open(sys.argv[1]) as log:
    index = log.stream("shop").key_index()
    print(sys.stdin.readline().strip(), flush=True)
    for _ in range(5):
        index.update(log.stream("shop").end)
        index.drop()
    index.update(log.stream("shop").end)
"""


def test_processes_that_build_and_drop_at_once_do_no_harm(log: eventlog.Log, filled: Any) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(log.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    while any(child.poll() is None for child in children):
        expect_all(log, filled)
        time.sleep(0.02)
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0]
    index = fresh(log)
    index.update(log.stream("shop").end)
    assert sum(one.count for one in index.runs()) == sum(map(len, filled[1].values()))
    expect_all(log, filled, index)


@pytest.mark.usefixtures("small")
def test_what_a_writer_that_died_left_is_swept(log: eventlog.Log, filled: Any) -> None:
    index = index_of(log)
    index._chain.make_folder()
    (index._chain.folder / "half.tmp").write_bytes(b"half")
    index.update(log.stream("shop").end)
    assert list(index._chain.folder.glob("*.tmp")) == []


DIE = """
import os, signal, sys
import eventlog
from eventlog.history import chain, key_index, merging, run
key_index.CHUNK, key_index.TAIL_RECORDS, merging.FANOUT, run.BLOCK = 10, 0, 3, 4
merged, removed = chain.merged, chain.Chain._drop_taken_in

def dies_merging(runs):
    yield next(iter(merged(runs)))
    os.kill(os.getpid(), signal.SIGKILL)

def dies_removing(self):
    if any(a.start <= b.start and b.stop < a.stop for a in self._open.values()
           for b in self._open.values()):
        os.kill(os.getpid(), signal.SIGKILL)
    removed(self)

if sys.argv[2] == "merging":
    chain.merged = dies_merging
else:
    chain.Chain._drop_taken_in = dies_removing
with eventlog.open(sys.argv[1]) as log:
    log.stream("shop").key_index().update(log.stream("shop").end)
"""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("at", ["merging", "removing"])
@pytest.mark.parametrize("by", ["opening", "building"])
def test_what_a_killed_merge_left_is_mended_by_who_comes_next(
    log: eventlog.Log, shop: MadeSource, filled: Any, at: str, by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    died = subprocess.run([sys.executable, "-c", DIE, str(log.path), at], timeout=60)
    assert died.returncode == -signal.SIGKILL
    folder = files(log)[0].parent
    left = files(log)
    assert len(left) == (3 if at == "merging" else 4)
    assert len(list(folder.glob("*.tmp"))) == (1 if at == "merging" else 0)
    monkeypatch.setattr(merging, "FANOUT", 3)
    monkeypatch.setattr(key_index, "TAIL_RECORDS", 10**6)
    index = fresh(log)
    if by == "opening":
        expect_all(log, filled, index)
    else:
        index.update(log.stream("shop").end)
    runs = index.runs()
    assert len(files(log)) == len(runs) < 3
    assert list(folder.glob("*.tmp")) == []
    (whole,) = [one for one in runs if one.start == 0]
    assert whole.stop >= max(int(path.stem.partition("-")[2], 16) for path in left)
    expect_all(log, filled, fresh(log))


@pytest.mark.usefixtures("small")
def test_what_a_merge_left_is_passed_over_where_nothing_may_be_removed(
    log: eventlog.Log, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FANOUT", 3)
    subprocess.run([sys.executable, "-c", DIE, str(log.path), "removing"], timeout=60)
    left, opened = files(log), []

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".run":
            raise PermissionError(13, "no", str(path))
        os.unlink(path)

    class Counted(Run):
        def __init__(self, path: Path, belongs: Belongs) -> None:
            opened.append(path)
            super().__init__(path, belongs)

    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(chain, "Run", Counted)
    monkeypatch.setattr(key_index, "TAIL_RECORDS", 10**6)
    index = fresh(log)
    for _ in range(3):
        expect_all(log, filled, index)
    assert files(log) == sorted(opened) == left, "each was opened once"


@pytest.mark.usefixtures("small")
def test_retention_drops_runs_with_the_records(log: eventlog.Log) -> None:
    stream = log.stream("shop", create=True)
    for number in range(40):
        stream.append_many([number] * 10, keys=["a", "b"] * 5)
    index = index_of(log)
    for stop in range(20, 401, 20):
        index.update(stop)
    stream.retain(below=350)
    low = stream.start
    assert low > 0
    assert [event.offset for event in stream.history(key="a")] == list(range(low, 400, 2))
    assert index_of(log).runs() == [] or index_of(log).runs()[0].stop > low


@pytest.mark.usefixtures("small")
def test_damaged_records_make_no_index(log: eventlog.Log) -> None:
    stream = log.stream("shop", create=True)
    stream.append(1, key="a")
    bad = batch_of(2, [b"\x92\xa9"], Transactions.one(time_us=0))
    log.engine.commit(Plan(appends=[Append(stream="shop", batches=[bad])]))
    with pytest.raises(DamagedLog, match=r"offsets \[\d, 2\)"):
        index_of(log).update(2)
