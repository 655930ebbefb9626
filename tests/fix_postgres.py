"""Real Postgres servers for tests: one a version and session, and a fresh database a test."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.errors import EmbeddedServerFault
from cdc.postgres.server import EmbeddedServer, wheel_bindir
from tests.forked import Forked, Nursery

WHEEL = "18"
DEBIAN = "15"
DEBIAN_ROOT = Path("/usr/lib/postgresql")
EXTRA = ("14", "16", "17")
"""Versions that are tested too where their programs are found."""

SETTINGS = {
    "fsync": "off",
    "max_connections": "100",
    "max_wal_senders": "40",
    "max_replication_slots": "40",
    "max_prepared_transactions": "10",
    "logical_decoding_work_mem": "64kB",
}

_numbers = count(1)


def bindir(version: str) -> Path:
    """Where that version's programs are; skips the test where it is not installed."""
    if version == WHEEL:
        try:
            return wheel_bindir()
        except EmbeddedServerFault as error:
            pytest.skip(f"{error}: {error.hint}")
    found = DEBIAN_ROOT / version / "bin"
    if not (found / "initdb").exists():
        pytest.skip(f"PostgreSQL {version} is not installed: apt-get install postgresql-{version}")
    return found


def versions() -> list[str]:
    """The versions that `database` goes through: two always, the others where installed."""
    found = [version for version in EXTRA if (DEBIAN_ROOT / version / "bin/initdb").exists()]
    return sorted([DEBIAN, WHEEL, *found])


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, EmbeddedServer]]:
    """The servers that this session has started, by version; all are stopped at its end."""
    started: dict[str, EmbeddedServer] = {}
    yield started
    for server in started.values():
        server.close()


def _server(servers: dict[str, EmbeddedServer], version: str) -> EmbeddedServer:
    if version not in servers:
        servers[version] = EmbeddedServer.start(bindir=bindir(version), settings=SETTINGS)
    return servers[version]


@pytest.fixture(scope="session", params=versions())
def postgres(request: pytest.FixtureRequest, servers: dict[str, EmbeddedServer]) -> EmbeddedServer:
    """A running server of each supported version in turn: wal_level logical, no password."""
    return _server(servers, request.param)


@pytest.fixture(scope="session")
def postgres18(servers: dict[str, EmbeddedServer]) -> EmbeddedServer:
    """The running server of the wheel alone."""
    return _server(servers, WHEEL)


class Database:
    """A database of one test on a running server."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.name = f"test_{os.getpid()}_{next(_numbers)}"
        self.dsn = server.dsn_of(self.name)
        self._connection: psycopg.Connection[Any] | None = None
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute(f'create database "{self.name}"')

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """An ordinary connection in autocommit mode, kept for the test."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.dsn, autocommit=True)
        return self._connection

    def execute(self, sql: str, parameters: Any = None) -> None:
        """Run statements; several, split by semicolons, only without parameters."""
        self.connection.execute(sql, parameters)

    def fetch(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def value(self, sql: str, parameters: Any = None) -> Any:
        """The one value of a query's one row."""
        ((value,),) = self.fetch(sql, parameters)
        return value

    def drop(self) -> None:
        """Drop the database, the slots in it, and the prepared transactions; end its sessions."""
        if not self.server.running:
            return
        if self._connection is not None:
            self._connection.close()
        with psycopg.connect(self.dsn, autocommit=True) as inside:
            for (gid,) in inside.execute(
                "select gid from pg_prepared_xacts where database = current_database()"
            ).fetchall():
                inside.execute(f"rollback prepared '{gid}'")
        with psycopg.connect(self.server.dsn, autocommit=True) as admin:
            admin.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s",
                [self.name],
            )
            admin.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                " where database = %s",
                [self.name],
            )
            admin.execute(f'drop database "{self.name}" with (force)')


@pytest.fixture
def database(postgres: EmbeddedServer) -> Iterator[Database]:
    """A fresh database on each version in turn."""
    fresh = Database(postgres)
    yield fresh
    fresh.drop()


@pytest.fixture
def database18(postgres18: EmbeddedServer) -> Iterator[Database]:
    """A fresh database on the wheel's server."""
    fresh = Database(postgres18)
    yield fresh
    fresh.drop()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts processes that need not import anything."""
    made = Nursery()
    yield made
    made.close()


class RunCli:
    """Runs `eventlog` with these arguments as a process of its own, and waits for its end."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery

    def __call__(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        return self._nursery.run("eventlog.cli", args, env=env, input=input)

    def spawn(self, *args: str) -> Forked:
        """The same without waiting, with pipes."""
        return self._nursery.spawn("eventlog.cli", args)


@pytest.fixture
def run_cli(nursery: Nursery) -> RunCli:
    return RunCli(nursery)


def assert_explained(done: subprocess.CompletedProcess[str]) -> None:
    """The promise of every command that fails: exit 1, one cause, one hint, no traceback."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr, done.stderr
    assert re.match(r"Error: \S[^\n]*\nHint: \S", done.stderr), done.stderr
