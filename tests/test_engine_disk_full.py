"""A disk without room: one clear error, nothing lost, and all goes on once there is space."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from eventlog.engine import Append, Engine, Plan, Transactions, batch_of, check
from eventlog.engine.upkeep.retain import retain
from eventlog.errors import DiskFull, WriterActive

MEGABYTE = 1 << 20


def append(engine: Engine, size: int, stream: str = "s") -> int:
    batch = batch_of(2, [b"x" * size], Transactions.one(time_us=0))
    return engine.commit(Plan(appends=[Append(stream=stream, batches=[batch])])).offsets[0].stop


def fill(engine: Engine, size: int) -> tuple[int, DiskFull]:
    """Append until the disk is full; returns the stream's end, and the error."""
    stop = engine.bounds("s")[1]
    for _ in range(200):
        try:
            stop = append(engine, size)
        except DiskFull as error:
            return stop, error
    raise AssertionError("the disk does not fill up")


LIMITED = """
import resource, sys
from pathlib import Path
from tests.test_engine_disk_full import *
with Engine.open(Path(sys.argv[1])) as engine:
    owner = engine.appender("s")
    limit = (8 * MEGABYTE, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    stop, error = fill(engine, 200_000)
    assert stop > 10 and error.hint.startswith("free some space"), error
    assert engine.bounds("s") == (0, stop) and check(engine) == []
    big = [batch_of(2, [b"y" * 3 * MEGABYTE], Transactions.one(time_us=0))]
    for use in (lambda: engine.stage(owner, big), lambda: append(engine, 3 * MEGABYTE)):
        try:
            use()
        except DiskFull:
            continue
        raise AssertionError
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    engine.stage(owner, big)
    assert engine.commit(Plan(appends=[Append(stream="s", staged=owner.id)])).offsets
    owner.close()
    assert append(engine, 200_000) == stop + 2 and check(engine) == []
    print(stop + 2)
"""


def test_a_file_that_may_not_grow_is_a_full_disk(engine: Engine) -> None:
    engine.create_stream("s", "events")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(engine.path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert engine.bounds("s") == (0, int(done.stdout))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; only root can mount one, and not everywhere."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = os.getuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(where)],
        capture_output=True,
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_loses_nothing_and_goes_on_once_there_is_space(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 3 * MEGABYTE)
    path = small_disk / "log"
    with Engine.open(path, create=True) as engine:
        engine.create_stream("s", "events")
        engine.create_stream("shop", "captured")
        stop, error = fill(engine, 300_000)
        assert "is full" in str(error) and error.hint
        for size in (30_000, 3_000):
            stop, _ = fill(engine, size)
        assert engine.bounds("s") == (0, stop) and check(engine) == []
        # What would register a writer fails in the same way, and holds no lock afterwards.
        for use in (lambda: engine.writer("shop"), lambda: engine.appender("s")):
            try:
                made = use()
            except DiskFull:
                continue
            with suppress(DiskFull):
                made.close()
    with Engine.open(path) as engine:
        assert engine.bounds("s") == (0, stop), "it opens, and reads, on a full disk"
        ballast.unlink()
        assert append(engine, 300_000) == stop + 1
        writer = engine.writer("shop")
        with pytest.raises(WriterActive):
            engine.writer("shop")
        writer.close()
        owner = engine.appender("s")
        owner.close()
        assert engine.owners() == [] and check(engine) == []


def test_an_owner_that_could_not_be_stored_holds_no_lock(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")
    real = type(engine.store).write

    @contextmanager
    def fails_at_commit(store: Any) -> Iterator[Any]:
        with real(store) as txn:
            yield txn
            raise DiskFull("the disk is full", hint="free some space")

    with monkeypatch.context() as patch:
        patch.setattr(type(engine.store), "write", fails_at_commit)
        with pytest.raises(DiskFull):
            engine.appender("s")
    assert [path.name for path in (engine.path / "locks").iterdir()] == ["open.lock"]
    assert engine.owners() == []
    owner = engine.appender("s")
    assert owner.id == 1
    owner.close()


def test_retention_makes_room_on_a_full_disk_whose_log_has_free_pages(small_disk: Path) -> None:
    with Engine.open(small_disk / "log", create=True) as engine:
        for name in ("s", "kept", "dropped"):
            engine.create_stream(name, "events")
        for _ in range(30):
            append(engine, 30_000, "dropped")
            append(engine, 5_000, "kept")
        assert retain(engine.store, "dropped", below=30).start == 30
        # A large record needs a longer run of pages than those that were freed.
        stop, _ = fill(engine, 300_000)
        done = retain(engine.store, "s", below=stop - 2)
        assert engine.bounds("s") == (stop - 2, stop) and done.offsets == stop - 2
        for number, size in enumerate((100, 300_000, 30_000, 300_000), 1):
            assert append(engine, size) == stop + number
        assert check(engine) == []
