"""Sharing a log: who has it open, what a fork may do, and that no reader makes the file grow."""

from __future__ import annotations

import copy
import errno
import gc
import inspect
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import eventlog
from eventlog.cli import cli
from eventlog.engine import Append, Engine, Plan, Transactions, batch_of, check, locks, mounts
from eventlog.engine.locks import OpenLock, holders
from eventlog.errors import (
    ForkedLog,
    LogInUse,
    LogUnreadable,
    NetworkFileSystemWarning,
    WriterActive,
)
from tests.fix_postgres import RunCli, assert_explained

PRELUDE = """
import sys
import eventlog
from eventlog.engine.locks import OpenLock
from pathlib import Path
path = Path(sys.argv[1])
"""


@contextmanager
def running(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said `ready`; killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def told(child: subprocess.Popen[str], line: str = "") -> str:
    """Send a line to a process; returns the line that it answers."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()
    return child.stdout.readline().rstrip("\n")


def append(engine: Engine, stream: str, *records: bytes) -> range:
    batch = batch_of(2, list(records), Transactions.one(time_us=0))
    (offsets,) = engine.commit(Plan(appends=[Append(stream=stream, batches=[batch])])).offsets
    return range(offsets[0], offsets[-1] + 1)


# The open lock

OPENS = """
log = eventlog.open(path)
print("ready", flush=True)
sys.stdin.readline()
log.close()
print("closed", flush=True)
sys.stdin.readline()
"""

ALONE = """
lock = OpenLock.alone(path, doing="repairing")
print("ready", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def closed(log_dir: Path) -> Iterator[Path]:
    """A log that nobody has open; it must be sound at the end."""
    Engine.open(log_dir, create=True).close()
    yield log_dir
    with Engine.open(log_dir) as engine:
        assert check(engine) == []


def test_who_needs_the_log_alone_is_told_which_processes_have_it_open(closed: Path) -> None:
    with running(OPENS, closed) as one, running(OPENS, closed) as other:
        pids = ", ".join(map(str, sorted([one.pid, other.pid])))
        with pytest.raises(LogInUse, match=f"processes {pids} have it open") as error:
            OpenLock.alone(closed, doing="compacting")
        assert str(error.value).startswith("compacting ") and "captures" in error.value.hint
        assert told(one) == "closed"
        with pytest.raises(LogInUse, match=f"process {other.pid} has it open"):
            OpenLock.alone(closed, doing="compacting")
    # The other one was killed.
    OpenLock.alone(closed, doing="compacting").release()


def test_a_log_that_a_process_has_alone_is_opened_by_nobody_else(closed: Path) -> None:
    with running(ALONE, closed) as child:
        with pytest.raises(LogInUse, match=f"process {child.pid} is repairing the log") as error:
            Engine.open(closed)
        assert error.value.hint == "try again when it is done"
        with pytest.raises(LogInUse, match=f"process {child.pid} is repairing the log"):
            OpenLock.alone(closed, doing="compacting")
        assert told(child) == "released"
        Engine.open(closed).close()
    with running(ALONE, closed):
        pass
    Engine.open(closed).close()


def test_a_command_explains_that_the_log_is_held_by_another(closed: Path, run_cli: RunCli) -> None:
    with running(ALONE, closed) as child:
        done = run_cli("streams", "--log", str(closed))
    assert_explained(done)
    assert f"process {child.pid} is repairing the log {closed}" in done.stderr


def test_an_open_log_of_this_process_is_in_the_way_too(engine: Engine) -> None:
    with pytest.raises(LogInUse, match=re.escape(f"process {os.getpid()} (this one) has it open")):
        OpenLock.alone(engine.path, doing="compacting")


def test_a_log_from_before_the_open_lock_gets_one(closed: Path) -> None:
    (closed / "locks" / "open.lock").unlink()
    (closed / "locks").rmdir()
    with Engine.open(closed), pytest.raises(LogInUse):
        OpenLock.alone(closed, doing="compacting")


def test_a_lock_file_that_is_removed_while_it_is_taken_is_made_again(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path = locks.fcntl.flock, closed / "locks" / "open.lock"

    def removed_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(locks.fcntl, "flock", real)
        path.unlink()
        real(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", removed_first)
    held = OpenLock.share(closed)
    assert path.exists()
    with pytest.raises(LogInUse):
        OpenLock.alone(closed, doing="compacting")
    held.release()


@pytest.mark.parametrize("text", [None, "", "1: POSIX  ADVISORY  WRITE 1 08:01:1 0 EOF\n"])
def test_without_the_kernels_list_the_holder_is_another_process(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    listed = tmp_path / "locks"
    if text is not None:
        listed.write_text(text)
    monkeypatch.setattr(locks, "PROC_LOCKS", listed)
    with running(OPENS, closed), pytest.raises(LogInUse, match="and another process has it open"):
        OpenLock.alone(closed, doing="compacting")
    with running(ALONE, closed) as child, pytest.raises(LogInUse, match=f"{child.pid} is repair"):
        Engine.open(closed)


def test_a_place_for_locks_that_cannot_be_used_is_explained(closed: Path) -> None:
    (closed / "locks" / "open.lock").unlink()
    (closed / "locks" / "open.lock").mkdir()
    with pytest.raises(LogUnreadable, match=r"open\.lock") as error:
        Engine.open(closed)
    assert error.value.hint
    (closed / "locks" / "open.lock").rmdir()


LISTED = """\
1: POSIX  ADVISORY  WRITE 3568 08:01:13107 0 EOF
2: FLOCK  ADVISORY  READ 4711 08:01:13107 0 EOF
2: -> FLOCK  ADVISORY  WRITE 4713 08:01:13107 0 EOF
3: FLOCK  ADVISORY  READ 4712 08:01:13107 0 EOF
4: FLOCK  ADVISORY  READ 4714 00:2a:13107 0 EOF
5: FLOCK  ADVISORY  WRITE 4715 08:01:13108 0 EOF
6: OFDLCK ADVISORY  READ -1 00:06:13107 0 0
7: FLOCK  ADVISORY  READ 0 08:01:13107 0 EOF
8: FLOCK
"""


@pytest.mark.parametrize(
    ("inode", "device", "expected"),
    [
        (13107, (8, 1), {4711: True, 4712: True}),
        (13107, (0, 42), {4714: True}),
        (13107, (9, 9), {4711: True, 4712: True, 4714: True}),
        (13108, (8, 1), {4715: False}),
        (1, (8, 1), {}),
    ],
)
def test_holders_are_found_by_inode_and_by_device_where_it_is_shown(
    inode: int, device: tuple[int, int], expected: dict[int, bool]
) -> None:
    assert holders(LISTED, inode=inode, device=os.makedev(*device)) == expected


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_lock_needs_no_room_on_the_disk(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    engine.create_stream("shop", "captured")
    engine.close()

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", full)
    OpenLock.alone(engine.path, doing="checking").release()
    for command in (["check"], ["repair", "--dry-run"], ["compact"]):
        done = CliRunner().invoke(cli, [*command, "--log", str(engine.path)])
        assert done.exit_code == 0, done.output
    with Engine.open(engine.path) as again:
        writer = again.writer("shop")
        with pytest.raises(WriterActive, match="process unknown"):
            again.writer("shop")
        writer.close()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", ["open.lock", "lock.mdb"])
def test_a_log_that_one_may_not_write_is_to_be_copied_and_read_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    engine.close()
    real = os.open

    def refused(path: Any, flags: int, *more: Any, **names: Any) -> int:
        if Path(path).name == name:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *more, **names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(LogUnreadable, match=name) as caught:
            Engine.open(engine.path)
    assert "copy the directory, and read the copy" in caught.value.hint


@pytest.mark.parametrize("how", [pickle.dumps, copy.deepcopy], ids=["pickled", "copied"])
def test_what_belongs_to_an_open_log_cannot_be_sent_to_another_process(
    log: eventlog.Log, how: Callable[[Any], Any]
) -> None:
    clicks = log.stream("clicks", create=True)
    clicks.append_many(range(3))
    parts = [log, log.engine, clicks, clicks.consumer("c"), clicks.read(), clicks.follow(0)]
    for part in [*parts, log.transaction(), log.snapshot("clicks"), next(clicks.read().batches())]:
        with pytest.raises(TypeError, match="send its path, and open it there"):
            how(part)
    assert [event.value for event in pickle.loads(pickle.dumps(list(clicks.read())))] == [0, 1, 2]


# One log, several ways to it


def test_a_log_opened_by_several_paths_in_a_process_is_shared(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")
    link = tmp_path / "link"
    link.symlink_to(engine.path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    ways = [link, Path(engine.path.name), engine.path / "locks" / "..", Path("./link")]
    opened = [Engine.open(way) for way in ways]
    assert {id(other.store) for other in opened} == {id(engine.store)}
    for number, other in enumerate(opened):
        assert append(other, "s", b"x") == range(number, number + 1)
        other.close()
    assert engine.bounds("s") == (0, len(ways)), "the last of them closes it"


# Network file systems

MOUNTED = r"""22 27 0:20 / /proc rw,nosuid shared:5 - proc proc rw
27 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
36 27 0:48 / /srv rw,relatime shared:9 - nfs4 server:/export rw,vers=4.2
37 36 259:3 / /srv/local rw,relatime - xfs /dev/nvme0n1p3 rw
38 27 0:49 /sub /mnt/my\040data\134x rw master:2 propagate_from:1 - fuse.sshfs me@host:/ rw
39 27 0:50 / /home rw - autofs systemd-1 rw
40 39 0:51 / /home rw - cifs //host/home rw
41 27 cut
"""


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/var/lib/log", "/", "ext4"),
        ("/", "/", "ext4"),
        ("/srv", "/srv", "nfs4"),
        ("/srv/log", "/srv", "nfs4"),
        ("/srvlog", "/", "ext4"),
        ("/srv/local/log", "/srv/local", "xfs"),
        ("/mnt/my data\\x/log", "/mnt/my data\\x", "fuse.sshfs"),
        ("/home/log", "/home", "cifs"),
    ],
)
def test_a_path_lies_on_the_longest_and_last_mount_that_leads_to_it(
    path: str, point: str, kind: str
) -> None:
    assert mounts.mount_of(path, MOUNTED) == (point, kind)
    assert (kind in mounts.NETWORK) == (kind not in ("ext4", "xfs"))


def test_no_mounts_no_answer() -> None:
    assert mounts.mount_of("/var", "") is None
    real = mounts.mount_of(str(Path.cwd()), mounts.MOUNTINFO.read_text())
    assert real is not None and Path.cwd().is_relative_to(real.point)


@pytest.fixture
def on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if all were mounted from a file server."""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", mountinfo)
    monkeypatch.setattr(mounts, "_warned", set())
    return mountinfo


def test_opening_on_a_network_file_system_warns_once(closed: Path, on_nfs: Path) -> None:
    said = r"log lies on a network file system \(nfs4 at /\)"
    with pytest.warns(NetworkFileSystemWarning, match=said) as caught:
        Engine.open(closed).close()
    assert len(caught) == 1 and issubclass(NetworkFileSystemWarning, UserWarning)
    Engine.open(closed).close()  # A second warning would be an error here.
    mounts._warned.clear()
    on_nfs.unlink()
    Engine.open(closed).close()


def test_a_warning_that_is_an_error_leaves_nothing_open(closed: Path, on_nfs: Path) -> None:
    with pytest.raises(NetworkFileSystemWarning):
        Engine.open(closed)
    OpenLock.alone(closed, doing="compacting").release()


def test_the_command_line_warns_in_one_line(closed: Path, tmp_path: Path) -> None:
    program = """
import sys
from eventlog.engine import mounts
from eventlog.cli import main
mounts.MOUNTINFO = type(mounts.MOUNTINFO)(sys.argv.pop(1))
main()
"""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("2 1 0:2 / / rw - nfs4 server:/ rw\n")
    done = subprocess.run(
        [sys.executable, "-c", program, str(mountinfo), "check", "--log", str(closed)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "the log is sound\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Warning: the log {closed} lies on a network file system (nfs4 at /)")


# Forks

FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
PATIENCE_S = 60


def in_child(work: Callable[[], Any]) -> str:
    """The text of what `work` returns, or raises, in a forked child; it is killed if it hangs."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE_S)
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return text if status == 0 else f"the child ended with {status}"


ARGUMENTS: dict[str, Any] = {
    "name": "clicks",
    "kind": "events",
    "start": 0,
    "stop": 1,
    "offset": 0,
    "below": 0,
    "time_us": 0,
    "time": "2026-01-01",
    "wanted": lambda entry: True,
    "seen": -1,
    "timeout_s": 0,
    "plan": Plan(),
    "event_id": "x",
    "consumer": "c",
    "streams": "clicks",
    "directory": "backup",
    "value": 1,
    "values": [1],
    "to": 0,
    "table": None,
    "path": "train.json",
    "transform": None,
    "source": "clicks",
    "output": "made",
}
"""What the parameters without a default get, by their names."""

GIVEN = {"retain": ["below"]}
"""Methods that must be told one thing or another."""

HARMLESS = {"path", "open", "register", "close", "followed_view"}
"""What needs no open log, and the ways in and out."""


def used(made: Any) -> None:
    """Do what the thing that a call returned is there for."""
    if isinstance(made, eventlog.Transaction):
        with made as tx:
            tx.append("clicks", 1)
    elif isinstance(made, Iterator):
        next(made)


def errors_of_all_uses(thing: Any, **more: Any) -> dict[str, str]:
    """Use every public attribute; returns the errors by name."""
    found = {}
    for name, attribute in vars(type(thing)).items():
        if name.startswith("_") or name in HARMLESS:
            continue
        try:
            if isinstance(attribute, property):
                getattr(thing, name)
            else:
                _, *parameters = inspect.signature(attribute).parameters.values()
                required = [p.name for p in parameters if p.default is p.empty]
                required += GIVEN.get(name, [])
                values = {**ARGUMENTS, **more}
                used(getattr(thing, name)(**{each: values[each] for each in required}))
        except Exception as error:
            found[name] = type(error).__name__
        else:
            found[name] = "nothing"
    return found


@FORKS
def test_every_use_of_a_log_in_a_forked_child_is_refused(
    log: eventlog.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clicks = log.stream("clicks", create=True)
    log.engine.create_stream("shop", "captured")
    clicks.append_many(range(5))
    consumer = clicks.consumer("c")
    (batch,) = clicks.follow(start=0, until=5)
    writer = log.engine.writer("shop")
    owner = log.engine.appender("clicks")
    following = iter(clicks.follow(start=5))
    reading = iter(clicks.read())
    engine_batch = batch_of(2, [b"x"], Transactions.one(time_us=0))

    def everything() -> dict[str, str]:
        things = (log, log.engine, clicks, consumer, owner)
        more = {"batch": batch, "batches": [engine_batch], "owner": owner}
        found = {
            f"{type(thing).__name__}.{name}": error
            for thing in things
            for name, error in errors_of_all_uses(thing, **more).items()
        }
        for name, iterator in (("following", following), ("reading", reading)):
            try:
                next(iterator)
            except Exception as error:
                found[name] = type(error).__name__
        for closes in (owner.close, writer.close):
            with pytest.raises(ForkedLog):
                closes()
        log.close()
        return {name: error for name, error in found.items() if error != ForkedLog.__name__}

    assert in_child(everything) == "{}"
    assert not (tmp_path / "backup").exists()

    # The parent goes on, and holds what it held.
    assert clicks.append("next") == 5 and [e.value for e in next(following)] == ["next"]
    assert next(reading).value == 0
    owner.stage([engine_batch])
    with Engine.open(log.path), pytest.raises(LogInUse):
        OpenLock.alone(log.path, doing="compacting")
    assert [row.kind for row in log.engine.owners()] == ["capture", "append"]
    owner.close()
    writer.close()


@FORKS
def test_a_child_that_is_forked_amid_commits_and_opens_is_refused_and_never_hangs(
    log: eventlog.Log,
) -> None:
    clicks = log.stream("clicks", create=True)
    ends: list[int] = []
    stopping = threading.Event()

    def busy() -> None:
        while not stopping.is_set():
            eventlog.open(log.path).close()
            ends.append(clicks.append(1))

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(25):
            assert in_child(lambda: clicks.append(1)).startswith("ForkedLog: ")
            assert in_child(lambda: eventlog.open(log.path)).startswith("ForkedLog: ")
            assert in_child(log.close) == "None"
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert sorted(ends) == list(range(clicks.end)), "its own commits went on"


FORKS_AND_ENDS = """
import os, time
log = eventlog.open(path)
clicks = log.stream("clicks")
if os.fork() == 0:
    sys.exit()          # As any program ends: whatever is left is finalised.
os.wait()
child = os.fork()
if child == 0:
    os.close(0)
    os.close(1)
    time.sleep(600)
assert clicks.append(1) == 1
print("ready", flush=True)
sys.stdin.readline()
log.close()
print(child, flush=True)
sys.stdin.readline()
"""


@FORKS
def test_a_child_that_ends_or_stays_holds_nothing_of_its_parents(log_dir: Path) -> None:
    with eventlog.open(log_dir, create=True) as log:
        log.stream("clicks", create=True).append(0)
    with running(FORKS_AND_ENDS, log_dir) as parent:
        with pytest.raises(LogInUse, match=f"process {parent.pid} has it open"):
            OpenLock.alone(log_dir, doing="compacting")
        with eventlog.open(log_dir) as log:
            assert log.stream("clicks").append(2) == 2 and log.check() == []
        child = int(told(parent))
        try:
            OpenLock.alone(log_dir, doing="compacting").release()
        finally:
            os.kill(child, signal.SIGKILL)


# Readers that stand still

STANDS_STILL = """
import hashlib
import numpy as np
log = eventlog.open(path)
clicks = log.stream("clicks")

def shown(held):
    return hashlib.sha256(repr(held).encode()).hexdigest()

def stand_still(held):
    before = shown(held())
    print("ready", flush=True)
    sys.stdin.readline()
    print(before == shown(held()), flush=True)
    sys.stdin.readline()

if sys.argv[2] == "read":
    for event in clicks.read():
        if event.offset == 3:
            stand_still(lambda: event)
elif sys.argv[2] == "batches":
    for batch in clicks.read().batches():
        stand_still(lambda: list(batch))
elif sys.argv[2] == "follow":
    for batch in clicks.follow(start=0, max_rows=3):
        stand_still(lambda: list(batch))
elif sys.argv[2] == "consumer":
    for batch in clicks.consumer("c").follow(max_rows=3):
        stand_still(lambda: list(batch))
elif sys.argv[2] == "waiting":
    import threading
    next(iter(clicks.follow(start=0)))
    threading.Thread(target=lambda: next(iter(clicks.follow())), daemon=True).start()
    stand_still(lambda: 0)
elif sys.argv[2] == "pinned":
    with log.engine.store.read():
        stand_still(lambda: 0)
"""

CHURN = 400
FEW_PAGES = 16
"""Of 4 KiB: how much later a page is used again differs a little from run to run."""


def churned(directory: Path) -> int:
    """Append in small commits, which merge tails and so free pages; returns the pages added."""
    with eventlog.open(directory, create=True) as log:
        clicks = log.stream("clicks", create=True)
        data = directory / "data.mdb"
        before = data.stat().st_size
        for number in range(CHURN):
            clicks.append({"number": number, "padding": "x" * 100}, key=number % 7)
        assert log.check() == []
        return (data.stat().st_size - before) // 4096


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> int:
    return churned(begun(tmp_path_factory.mktemp("undisturbed") / "log"))


def begun(directory: Path) -> Path:
    with eventlog.open(directory, create=True) as log:
        clicks = log.stream("clicks", create=True)
        for number in range(10):
            clicks.append({"number": number, "text": "y" * 500})
    return directory


@pytest.mark.parametrize("how", ["read", "batches", "follow", "consumer", "waiting"])
def test_a_reader_that_stands_still_does_not_make_the_file_grow(
    how: str, log_dir: Path, undisturbed: int
) -> None:
    with running(STANDS_STILL, begun(log_dir), how) as child:
        assert churned(log_dir) <= undisturbed + FEW_PAGES
        assert told(child) == "True", "what it was given is as it was"


def test_a_read_transaction_that_is_held_would_make_it_grow(
    log_dir: Path, undisturbed: int
) -> None:
    with running(STANDS_STILL, begun(log_dir), "pinned"):
        assert churned(log_dir) > undisturbed + 10 * FEW_PAGES


def owner_of_memory(array: np.ndarray[Any, Any]) -> object:
    base: Any = array
    while getattr(base, "base", None) is not None:
        base = base.base
    return base.obj if isinstance(base, memoryview) else base


@pytest.mark.parametrize("count", [1, 2, 500])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_what_is_handed_out_owns_its_memory(engine: Engine, count: int, compression: Any) -> None:
    engine.create_stream("s", "events", compression=compression)
    records = [b"%04d" % number + bytes(90) for number in range(500)]
    many = Transactions(
        first=np.arange(count, dtype=np.uint32),
        time=np.arange(count, dtype=np.int64) * 977,
        tx=np.arange(count, dtype=np.uint64),
        position=np.arange(count, dtype=np.uint64) * 3,
    )
    batch = replace(batch_of(2, records, many), states=np.zeros(500, np.uint8))
    if compression == "zstd":
        batch = batch.compressed()
    engine.commit(Plan(appends=[Append(stream="s", batches=[batch])]))
    (stretch,) = engine.scan("s", 0, 500, lambda entry: True)
    entry, payload = stretch.entry, stretch.payload
    assert payload is not None and entry.states is not None
    arrays = [*entry_arrays(entry), payload.ends]
    for array in arrays:
        assert isinstance(owner_of_memory(array), np.ndarray | bytes), array.dtype
    assert type(payload.data) is bytes
    before = [array.copy() for array in arrays]
    # Its pages are freed by each of these, and used again by the next but one.
    for _ in range(6):
        with engine.store.write() as txn:
            for database in ("payload", "index"):
                for key, value in list(txn.cursor(db=getattr(engine.store, database))):
                    txn.put(key, bytes(len(value)), db=getattr(engine.store, database))
                    txn.put(key, value, db=getattr(engine.store, database))
    for array, kept in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)
    assert payload.records(range(500)) == records


def entry_arrays(entry: Any) -> list[np.ndarray[Any, Any]]:
    words = entry.transactions
    return [words.first, words.time, words.tx, words.position, entry.states]


# Readers that died

DIES_READING = """
log = eventlog.open(path)
with log.engine.store.read():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def readers_of(engine: Engine) -> set[int]:
    """The processes that have a slot in the table of readers."""
    lines = engine.store._env.readers().splitlines()
    return {
        int(line.split()[0]) for line in lines if line.split()[:1] and line.split()[0].isdigit()
    }


def test_the_slot_of_a_reader_that_died_is_cleared_by_the_next_open(engine: Engine) -> None:
    with running(DIES_READING, engine.path) as child:
        assert child.pid in readers_of(engine)
    assert child.pid in readers_of(engine), "it was killed, and pins what it read"
    program = "eventlog.open(path).close()"
    subprocess.run([sys.executable, "-c", PRELUDE + program, str(engine.path)], check=True)
    assert child.pid not in readers_of(engine)


def test_a_writer_clears_the_slots_of_dead_readers_each_minute(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_stream("s", "events")
    now_s = time.monotonic()
    monkeypatch.setattr("eventlog.engine.store.time.monotonic", lambda: now_s)
    with running(DIES_READING, engine.path) as child, running(DIES_READING, engine.path) as alive:
        child.kill()
        child.wait()
        now_s += 50
        append(engine, "s", b"x")
        assert {child.pid, alive.pid} <= readers_of(engine)
        now_s += 11
        append(engine, "s", b"x")
        assert child.pid not in readers_of(engine) and alive.pid in readers_of(engine)


# One process


def test_a_handle_that_nobody_has_any_more_does_not_keep_the_log_open(closed: Path) -> None:
    log = eventlog.open(closed)
    stream = log.stream("s", create=True)
    del log
    gc.collect()
    assert stream.append("the stream still has the log") == 0
    log = eventlog.open(closed)
    del stream
    gc.collect()
    log.close()
    OpenLock.alone(closed, doing="compacting").release()


def test_a_cell_that_is_run_again_and_closed_once_leaves_nothing_open(closed: Path) -> None:
    for _ in range(3):
        log = eventlog.open(closed)
        gc.collect()
    log.close()
    OpenLock.alone(closed, doing="compacting").release()


@pytest.mark.parametrize("create", [False, True])
def test_a_log_that_was_removed_meanwhile_is_not_handed_out_again(
    log_dir: Path, create: bool
) -> None:
    log = eventlog.open(log_dir, create=True)
    moved = log_dir.with_name("moved")
    log_dir.rename(moved)
    with pytest.raises(LogUnreadable, match="was removed or replaced while") as error:
        eventlog.open(log_dir, create=create)
    assert "close it everywhere" in error.value.hint
    log.close()
    with eventlog.open(log_dir, create=True) as anew, eventlog.open(moved) as before:
        assert anew.engine.identity()["id"] != before.engine.identity()["id"]
        assert anew.check() == before.check() == []


def test_the_lock_file_has_its_room_on_the_disk_from_the_start(closed: Path) -> None:
    """A sparse one would kill whoever touches a page of it while the disk is full."""
    lock = closed / "lock.mdb"
    for _ in range(2):
        with Engine.open(closed):
            found = lock.stat()
            assert found.st_size >= 131_200 and found.st_blocks * 512 >= found.st_size
        lock.unlink()
