"""The throw-away server: it starts anywhere, stops cleanly, and dies with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from cdc.errors import EmbeddedServerFault
from cdc.postgres import server as module
from cdc.postgres.server import EmbeddedServer
from tests.fix_postgres import WHEEL, bindir, versions

FAST = {"fsync": "off"}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("version", versions())
def test_starts_on_port_and_socket_and_leaves_nothing(version: str) -> None:
    with EmbeddedServer.start(bindir=bindir(version), settings=FAST) as server:
        assert server.version.split(".")[0] == version
        for dsn in (server.dsn, server.socket_dsn):
            with psycopg.connect(dsn) as connection:
                assert connection.execute("show wal_level").fetchone() == ("logical",)
        assert server.directory.stat().st_mode & 0o077 == 0
        pid = server.pid
    assert not alive(pid)
    assert not server.directory.exists()


def test_port_none_leaves_the_socket_alone() -> None:
    with EmbeddedServer.start(bindir=bindir(WHEEL), port=None, settings=FAST) as server:
        assert server.dsn == server.socket_dsn
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("show listen_addresses").fetchone() == ("",)


def test_password_is_asked_on_every_way_in() -> None:
    secret = "it's \\ a secret"
    with EmbeddedServer.start(bindir=bindir(WHEEL), password=secret, settings=FAST) as server:
        with psycopg.connect(server.dsn) as connection:
            connection.execute("select 1")
        for host in ("127.0.0.1", str(server.directory / "run")):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(host=host, port=server.port, user="postgres", password="wrong")
        files = [f for f in server.directory.glob("*") if f.is_file()]
        assert not any(secret in f.read_text() for f in files)


def test_kill_loses_nothing_committed_and_restart_keeps_the_port() -> None:
    with EmbeddedServer.start(bindir=bindir(WHEEL)) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("create table t as select generate_series(1, 1000) as n")
        before, port = server.pid, server.port
        server.kill()
        assert not alive(before) and not server.running
        with pytest.raises(EmbeddedServerFault, match="does not run"):
            _ = server.pid
        server.restart(settings={"wal_level": "replica"})
        assert server.port == port
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("select count(*) from t").fetchone() == (1000,)
            assert connection.execute("show wal_level").fetchone() == ("replica",)


def test_server_dies_with_a_parent_that_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cdc.postgres.server import EmbeddedServer\n"
        "server = EmbeddedServer.start(bindir=Path(sys.argv[1]), settings={'fsync': 'off'})\n"
        "print(server.pid, server.directory, flush=True)\n"
        "time.sleep(600)\n"
    )
    arguments = [sys.executable, "-c", program, str(bindir(WHEEL))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        assert alive(int(pid))
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while alive(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    module.shutil.rmtree(directory)


def test_directory_that_is_not_empty_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(EmbeddedServerFault, match="not empty"):
        EmbeddedServer.start(tmp_path, bindir=bindir(WHEEL))
    assert (tmp_path / "mine").read_text() == "precious"


def test_too_long_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerFault, match="too long for a Unix socket"):
        EmbeddedServer.start(tmp_path / ("d" * 100), bindir=bindir(WHEEL))


def test_directory_without_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerFault, match="holds no program initdb"):
        EmbeddedServer.start(bindir=tmp_path)


def test_a_bad_setting_is_told_in_the_servers_words() -> None:
    with pytest.raises(EmbeddedServerFault, match=r"did not start.*no_such_setting"):
        EmbeddedServer.start(bindir=bindir(WHEEL), settings={"no_such_setting": "1"})


def test_a_missing_wheel_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedServerFault, match="not installed") as caught:
        EmbeddedServer.start()
    assert "pip install" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another user")
class TestAsRoot:
    def test_directory_closed_to_the_server_is_refused(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(EmbeddedServerFault, match="cannot enter"):
            EmbeddedServer.start(closed / "server", bindir=bindir(WHEEL))

    def test_programs_closed_to_the_server_are_copied(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reach = module._others_reach
        real = bindir(WHEEL)
        monkeypatch.setattr(module, "_others_reach", lambda path: path != real and reach(path))
        with EmbeddedServer.start(settings=FAST) as server:
            assert server.bindir.is_relative_to(server.directory)
            with psycopg.connect(server.dsn) as connection:
                connection.execute("select 1")
