"""Processes that begin with everything imported: `python -m MODULE` in a tenth of the time.

::

    Nursery ──connection: module, arguments, environment, descriptors──▶ python -m tests.forked
       ▲                                                                     │ fork
       └──── pid, then the exit status, from whoever waits for it ◀──────── a child: runs MODULE

The nursery has imported what commands and captures need, and is one thread, so forking it is
safe. What is started is a process of its own: it has its own descriptors, signals and exit, runs
MODULE as `python -m` does, and can be killed. Modules that start threads when they are imported
(pyarrow) are left to it.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
READY = "ready"
MODULES = [
    *("numpy", "lmdb", "msgpack", "xxhash", "zstandard", "psycopg", "rich.progress", "rich.table"),
    *("eventlog.cli", "eventlog.log", "eventlog.stream", "eventlog.changes.reading"),
    *("cdc.captured", "cdc.source", "cdc.postgres.capture", "cdc.postgres.doctor"),
    *("cdc.commands.capture", "cdc.commands.capture_report", "cdc.commands.tables_report"),
]
_STATUS_S = 120.0


class Forked:
    """A process that the nursery started, with a part of the interface of `subprocess.Popen`."""

    def __init__(self, link: socket.socket, stdout: TextIO | None, stderr: TextIO | None) -> None:
        self._link = link
        self._answers = link.makefile("r")
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self.pid: int = json.loads(self._answers.readline())

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        try:
            return self.wait(timeout=0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float = _STATUS_S) -> int:
        if self.returncode is None:
            self._link.settimeout(timeout or 1e-6)
            try:
                peeked = self._link.recv(64, socket.MSG_PEEK)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a forked process", timeout) from None
            assert peeked, "whoever waits for it is gone"
            self._link.settimeout(_STATUS_S)
            self.returncode = int(json.loads(self._answers.readline()))
        return self.returncode

    def communicate(self, timeout: float = _STATUS_S) -> tuple[str, str]:
        """Wait for its end; returns what is left of stdout and stderr, nothing a second time.

        REQUIRES: that fits into their pipes, or somebody reads them.
        """
        self.wait(timeout)
        streams = (self.stdout, self.stderr)
        said = ["" if stream is None or stream.closed else stream.read() for stream in streams]
        self.close()
        return said[0], said[1]

    @property
    def is_open(self) -> bool:
        """Whether its end may still be asked for."""
        return self._link.fileno() >= 0

    def close(self) -> None:
        for stream in (self.stdout, self.stderr, self._answers, self._link):
            if stream is not None:
                stream.close()


class Nursery:
    """Starts processes; a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._place = os.path.join(self._folder.name, "nursery")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", self._place],
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == READY
        self._open: list[Forked] = []

    def close(self) -> None:
        """Kill what a test that failed left running, and end."""
        for left in self._open:
            if left.is_open:
                left.kill()
                left.close()
        # It ends when its stdin does; and with this process, however that dies.
        self._process.communicate()
        self._folder.cleanup()

    def start(
        self,
        module: str,
        args: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        env: Mapping[str, str] | None = None,
    ) -> Forked:
        """Run a module with these arguments and descriptors, which stay the caller's."""
        link = socket.socket(socket.AF_UNIX)
        link.connect(self._place)
        wanted = {
            "module": module,
            "args": list(args),
            "env": {**os.environ, **(env or {})},
            "cwd": os.getcwd(),
        }
        text = json.dumps(wanted).encode()
        socket.send_fds(link, [len(text).to_bytes(8, "big")], [stdin, stdout, stderr])
        link.sendall(text)
        started = Forked(link, None, None)
        self._open = [other for other in self._open if other.is_open] + [started]
        return started

    def spawn(self, module: str, args: Sequence[str]) -> Forked:
        """Run a module with pipes for its stdout and stderr, as text; without input."""
        reading, writing = zip(*(os.pipe() for _ in range(2)), strict=True)
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            started = self.start(module, args, stdin=nothing, stdout=writing[0], stderr=writing[1])
        finally:
            for descriptor in (*writing, nothing):
                os.close(descriptor)
        started.stdout, started.stderr = (os.fdopen(descriptor) for descriptor in reading)
        return started

    def run(
        self,
        module: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002
        timeout: float = _STATUS_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a module to its end."""
        with (
            tempfile.TemporaryFile("w+") as fed,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            fed.write(input or "")
            fed.seek(0)
            places = {"stdin": fed.fileno(), "stdout": out.fileno(), "stderr": err.fileno()}
            started = self.start(module, args, env=env, **places)
            try:
                code = started.wait(timeout)
            except subprocess.TimeoutExpired:
                started.kill()
                raise
            finally:
                started.close()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([module, *args], code, out.read(), err.read())


# The nursery itself


def serve(place: str) -> None:
    """Fork a child for each connection, until stdin ends. In a child this returns, too."""
    for name in MODULES:
        import_module(name)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, "a forked child would have but one of them"
    # Nobody asks how the processes in between end, which wait for those that were asked for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen(64)
        print(READY, flush=True)
        while True:
            ready, _, _ = select.select([server, sys.stdin], [], [])
            if server not in ready:
                return
            link, _ = server.accept()
            if os.fork():
                link.close()
                continue
            break
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _start(link)


def _start(link: socket.socket) -> None:
    """Fork what was asked for, and wait for it; in the child run it."""
    head, descriptors, _, _ = socket.recv_fds(link, 8, 3)
    size = int.from_bytes(head, "big")
    with link.makefile("rb") as stream:
        wanted: dict[str, Any] = json.loads(stream.read(size))
    pid = os.fork()
    if pid:
        for descriptor in (0, 1, 2, *descriptors):
            os.close(descriptor)
        link.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):  # Whoever asked may have gone.
            link.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    link.close()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(wanted["env"])
    time.tzset()
    os.chdir(wanted["cwd"])
    sys.stdin = sys.__stdin__ = os.fdopen(0)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w")
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    sys.argv = [wanted["module"], *wanted["args"]]
    runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1])
