"""Streams from real servers: plain ones are read from their sockets, encrypted ones by libpq."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import cdc
import eventlog
from cdc.errors import ConnectionLost, ServerError, SlotInUse
from cdc.postgres.connection import connect, connect_replication
from cdc.postgres.copy import copy_out
from cdc.postgres.copy.copy_socket import SocketReader
from cdc.postgres.protocol import plain_socket
from cdc.postgres.protocol.libpq import LibpqStream
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.replication import start_replication
from cdc.postgres.protocol.socket_stream import SocketStream
from cdc.postgres.protocol.transport import Transport, Wake
from cdc.postgres.protocol.wire import status_update
from cdc.postgres.server import EmbeddedServer
from eventlog.changes.change import Op
from tests.fix_capture import confirmed, until, wal_position
from tests.fix_postgres import DEBIAN, SETTINGS, Database, bindir

HEAD = 25
WORK = """
insert into t select g, repeat('d', g % 200) from generate_series(1, 3000) g;
update t set body = body || chr(65 + id % 26) where id % 3 = 0;
delete from t where id % 7 = 0;
select pg_logical_emit_message(true, 'app', 'd' || repeat(chr(1), 100));
truncate t;
insert into t values (0, 'last')
"""


@pytest.fixture
def shop(database: Database) -> Database:
    """A database with a table, a publication of it, and a slot."""
    database.execute(
        "create table t (id int primary key, body text); create publication p for table t;"
        "alter table t alter body set storage external"
    )
    database.execute("select pg_create_logical_replication_slot('first', 'pgoutput')")
    return database


@contextlib.contextmanager
def streaming(
    database: Database, slot: str = "first", publication: str = "p", **options: str
) -> Iterator[Transport]:
    conn = connect_replication(make_conninfo(database.dsn, **options))
    wake = Wake()
    try:
        stream = start_replication(conn, slot, Lsn(0), [publication], wake)
        try:
            yield stream
        finally:
            stream.close()
    finally:
        conn.close()
        wake.close()


def payloads(stream: Transport, enough: Callable[[bytes], bool]) -> list[bytes]:
    """What `pgoutput` sends, up to the message that is enough."""
    found: list[bytes] = []
    deadline = time.monotonic() + 60
    while not (found and enough(found[-1])):
        assert time.monotonic() < deadline, "the stream ended early"
        frames = stream.read(timeout_s=0.1, gather_s=0.001)
        if frames is not None:
            every = (bytes(frames[i]) for i in range(len(frames)))
            found += [frame[HEAD:] for frame in every if frame[:1] == b"w"]
            found = found[: next((i + 1 for i, each in enumerate(found) if enough(each)), None)]
    return found


def read_on(stream: Transport) -> None:
    """Read until the stream raises what ended it."""
    for _ in range(100):
        stream.read(timeout_s=0.1)
    raise AssertionError("it goes on")


def is_last(payload: bytes) -> bool:
    return payload.endswith(b"t\0\0\0\x04last")


@pytest.fixture
def by_libpq(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets streams be read by libpq from then on, as if the answer were encrypted."""
    return lambda: monkeypatch.setattr(plain_socket, "_SAYS", b"")


def test_both_transports_give_the_same_messages(
    shop: Database, by_libpq: Callable[[], None]
) -> None:
    shop.execute("select pg_copy_logical_replication_slot('first', 'second')")
    shop.execute(WORK)
    with streaming(shop, "first") as stream:
        assert isinstance(stream, SocketStream)
        plain = payloads(stream, is_last)
    by_libpq()
    with streaming(shop, "second") as stream:
        assert isinstance(stream, LibpqStream)
        assert payloads(stream, is_last) == plain
    assert len(plain) > 3000 + 1000 + 400


def test_what_the_server_remarks_meanwhile_is_no_change(shop: Database) -> None:
    """At that level the server tells the client of every status update, and much more."""
    shop.execute("insert into t values (1, 'first')")
    with streaming(shop, options="-c client_min_messages=debug3") as stream:
        for number in range(20):
            shop.execute(f"update t set body = '{number}'")
            stream.send(status_update(0, 0, 0, 0, reply=True))
            stream.read(timeout_s=0.01)
        shop.execute("insert into t values (0, 'last')")
        assert is_last(payloads(stream, is_last)[-1])


def test_a_large_value_comes_as_a_view(shop: Database) -> None:
    shop.execute("insert into t values (1, repeat('x', 3000000))")
    shop.execute("insert into t values (0, 'last')")
    with streaming(shop) as stream:
        sizes, views = [], 0
        while not sizes or sizes[-1] != 3_000_000 + HEAD + len("I....N..t....1t...."):
            frames = stream.read(timeout_s=0.1)
            if frames is not None:
                sizes.append(len(frames[0]))
                views += isinstance(frames.data, memoryview)
        assert views == 1
        assert is_last(payloads(stream, is_last)[-1])


def test_an_acknowledgement_moves_the_slot_and_the_end_frees_it(shop: Database) -> None:
    shop.execute("insert into t values (0, 'last')")
    at = wal_position(shop)
    with streaming(shop) as stream:
        payloads(stream, is_last)
        stream.send(status_update(at, at, at, 0))
        until(lambda: confirmed(shop, "first") >= at, "the slot's move")
    assert shop.value("select active from pg_replication_slots") is False


def test_a_slot_in_use_is_told_with_its_pid(shop: Database) -> None:
    with streaming(shop):
        pid = shop.value("select active_pid from pg_replication_slots")
        with pytest.raises(SlotInUse, match=str(pid)), streaming(shop):
            pass
    starting = "starting to stream from slot 'none'"
    with pytest.raises(ServerError, match=starting), streaming(shop, "none"):
        pass


def test_a_sender_that_is_ended_says_why(shop: Database) -> None:
    with streaming(shop) as stream:
        shop.execute("select pg_terminate_backend(active_pid) from pg_replication_slots")
        with pytest.raises(ConnectionLost, match="streaming changes: terminating connection"):
            read_on(stream)


def test_an_error_amid_the_stream_is_told(shop: Database) -> None:
    """The output plugin finds only at the first change that it cannot go on."""
    shop.execute("insert into t values (1, 'first')")
    if int(shop.server.version.split(".")[0]) >= 18:
        pytest.skip("a publication that is missing is no error there; none else is made so easily")
    said = 'publication "none" does not exist'
    with streaming(shop, publication="none") as stream, pytest.raises(ServerError, match=said):
        read_on(stream)


@pytest.fixture(scope="module")
def encrypting() -> Iterator[EmbeddedServer]:
    """A server with TLS, whose certificate is signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate: apt-get install openssl")
    with EmbeddedServer.start(bindir=bindir(DEBIAN), settings=SETTINGS) as server:
        with psycopg.connect(server.dsn) as conn:
            row = conn.execute("show data_directory").fetchone()
        assert row is not None
        data = Path(row[0])
        key, certificate = data / "server.key", data / "server.crt"
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        make += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(make, check=True, capture_output=True)
        owner = data.stat()
        for path in (key, certificate):
            path.chmod(0o600)
            os.chown(path, owner.st_uid, owner.st_gid)
        server.restart(settings={"ssl": "on"})
        yield server


@pytest.fixture
def encrypted(encrypting: EmbeddedServer) -> Iterator[Database]:
    database = Database(encrypting)
    database.execute("create table t (id int primary key, body text)")
    database.execute("insert into t select g, repeat('d', g % 50) from generate_series(1, 5000) g")
    yield database
    database.drop()


def over_tls(dsn: str) -> str:
    return make_conninfo(dsn, sslmode="require")


def test_an_encrypted_connection_is_read_by_libpq(encrypted: Database) -> None:
    encrypted.execute("create publication p for table t")
    encrypted.execute("select pg_create_logical_replication_slot('first', 'pgoutput')")
    encrypted.execute("insert into t values (0, 'last')")
    with streaming(encrypted, sslmode="require") as stream:
        assert isinstance(stream, LibpqStream)
        assert is_last(payloads(stream, is_last)[-1])
    with streaming(encrypted, sslmode="disable") as stream:
        assert isinstance(stream, SocketStream)
    with contextlib.closing(connect(over_tls(encrypted.dsn))) as conn:
        copy = sql.Composed([sql.SQL("copy public.t to stdout")])
        reader = copy_out.start(conn, copy, "copying")
        assert not isinstance(reader, SocketReader)
        rows = 0
        while not reader.ended:
            run = reader.read(timeout_s=1)
            rows += 0 if run is None else len(run)
        reader.finish("copying")
    assert rows == 5_001


def test_a_capture_over_tls_gives_what_a_plain_one_does(
    encrypted: Database, tmp_path: Path
) -> None:
    told = {}
    sources = {"plain": encrypted.dsn, "tls": over_tls(encrypted.dsn)}
    with eventlog.open(tmp_path / "log", create=True) as log:
        for round_ in range(2):
            for name, dsn in sources.items():
                cdc.Source(name, dsn, ["public.*"]).capture(log, until="current")
                told[name] = [
                    (change.op, change.table, change.key, change.row, change.old)
                    for change in log.stream(name).read()
                    if change.op not in (Op.COPY_BEGIN, Op.COPY_END)  # They name positions.
                ]
            assert told["tls"] == told["plain"]
            if not round_:
                encrypted.execute("delete from t;" + WORK)
        assert len(told["tls"]) > 5_000 + 3_000
        assert log.check() == []
