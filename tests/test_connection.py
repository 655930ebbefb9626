"""Connection strings, pinned settings, and every refusal in one clear sentence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from cdc import errors
from cdc.postgres import connection as module
from cdc.postgres.connection import (
    connect,
    connect_replication,
    has_password_in_text,
    normalise,
    redact,
)
from cdc.postgres.faults import translated
from cdc.postgres.server import EmbeddedServer
from tests.fix_postgres import SETTINGS, WHEEL, Database, bindir, versions

SECRET = "hunter2"


@pytest.fixture(scope="module", params=versions())
def guarded(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server that asks for passwords, with roles that lack something."""
    small = {**SETTINGS, "max_wal_senders": "1", "max_connections": "8"}
    with EmbeddedServer.start(
        bindir=bindir(request.param), settings=small, password=SECRET
    ) as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute(f"create role plain login password '{SECRET}'")
            admin.execute(f"create role idle nologin password '{SECRET}'")
            admin.execute("create database closed")
            admin.execute("revoke connect on database closed from public")
        yield server


def dsn_with(server: EmbeddedServer, **changes: Any) -> str:
    return psycopg.conninfo.make_conninfo(server.dsn, **changes)


def assert_clear(error: errors.CaptureError) -> None:
    """One sentence, a remedy, and no secret."""
    text = str(error)
    assert text and "\n" not in text and not text.endswith(".")
    assert error.hint
    assert SECRET not in text + error.hint


def connect_until_refused(dsn: str) -> None:
    """A reload of the server's files takes effect a moment later."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        connect(dsn).close()


class TestSpellings:
    def test_uri_and_keywords_mean_the_same(self) -> None:
        uri = normalise("postgresql://cdc:p%40ss@db.internal:6432/shop?sslmode=require")
        keywords = normalise(
            "host=db.internal port=6432 user=cdc password='p@ss' dbname=shop sslmode=require"
        )
        assert conninfo_to_dict(uri) == conninfo_to_dict(keywords)

    def test_environment_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHOP_DSN", "host=a dbname=shop")
        assert conninfo_to_dict(normalise("env:SHOP_DSN")) == {"host": "a", "dbname": "shop"}

    def test_environment_variable_that_is_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SHOP_DSN", raising=False)
        with pytest.raises(errors.BadDsn, match="'SHOP_DSN' holds no connection string") as caught:
            normalise("env:SHOP_DSN")
        assert "set SHOP_DSN" in caught.value.hint

    def test_service_is_read_from_its_file(
        self, database18: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fields = conninfo_to_dict(database18.dsn)
        file = tmp_path / "services"
        file.write_text("[shop]\n" + "".join(f"{k}={v}\n" for k, v in fields.items()))
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        with connect("service=shop") as conn:
            assert conn.info.dbname == database18.name

    def test_passfile_is_read(self, guarded: EmbeddedServer, tmp_path: Path) -> None:
        file = tmp_path / "pgpass"
        file.write_text(f"127.0.0.1:{guarded.port}:*:postgres:{SECRET}\n")
        file.chmod(0o600)
        dsn = f"host=127.0.0.1 port={guarded.port} user=postgres passfile={file}"
        with connect(dsn) as conn:
            assert conn.info.user == "postgres"

    @pytest.mark.parametrize(
        "dsn",
        [
            f"password=my {SECRET} host=x",
            f"postgresql://u:a b{SECRET}@h/db",
            f"postgresql://u:{SECRET}@[::1/db",
            f"mysql://u:{SECRET}@h/db",
            f"password=a {SECRET}=1",
            SECRET,
        ],
    )
    def test_unreadable_text_is_refused_without_being_shown(self, dsn: str) -> None:
        with pytest.raises(errors.BadDsn) as caught:
            normalise(dsn)
        assert_clear(caught.value)
        assert caught.value.__context__ is None
        assert SECRET not in redact(dsn)

    @pytest.mark.parametrize(
        ("dsn", "shown"),
        [
            ("postgresql://u:secret@h/db", True),
            ("host=h password=secret", True),
            ("host=h sslpassword=secret", True),
            ("postgresql://u@h/db", False),
            ("service=shop", False),
            ("env:SHOP_DSN", False),
            ("host=h password=''", False),
            ("nonsense", False),
        ],
    )
    def test_password_in_the_text_is_noticed(self, dsn: str, shown: bool) -> None:
        assert has_password_in_text(dsn) is shown

    def test_redacted_text_keeps_all_but_secrets(self) -> None:
        text = redact(f"postgresql://cdc:{SECRET}@h:1/db?sslpassword={SECRET}")
        assert conninfo_to_dict(text) == {"user": "cdc", "host": "h", "port": "1", "dbname": "db"}


class TestSettings:
    @pytest.mark.parametrize("open_connection", [connect, connect_replication])
    def test_pinned_settings_win_over_database_and_user(
        self,
        database: Database,
        open_connection: Callable[[str], module.Connection],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name = database.name
        database.execute(f"alter database {name} set datestyle = 'German'")
        database.execute(f"alter database {name} set timezone = 'Asia/Tokyo'")
        database.execute(f"alter database {name} set statement_timeout = '1h'")
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        dsn = database.dsn + " options='-c DateStyle=SQL -c geqo_threshold=7'"
        with open_connection(dsn) as conn:
            for setting, value in module.PINNED.items():
                shown = conn.execute(f"show {setting}").fetchone()
                assert shown is not None
                assert shown[0].replace("ISO, DMY", "ISO").replace("ISO, MDY", "ISO") == value
            assert conn.execute("show geqo_threshold").fetchone() == ("7",)
            assert conn.execute("show statement_timeout").fetchone() == ("0",)
            assert conn.execute("show application_name").fetchone() == ("eventlog",)
            assert conn.autocommit

    def test_options_of_the_environment_are_kept(
        self, database18: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGOPTIONS", "-c geqo_threshold=9 -c statement_timeout=77")
        with connect(database18.dsn) as conn:
            assert conn.execute("show geqo_threshold").fetchone() == ("9",)
            assert conn.execute("show statement_timeout").fetchone() == ("77ms",)

    def test_replication_connection_speaks_to_a_walsender(self, database: Database) -> None:
        with connect_replication(database.dsn) as conn:
            row = conn.execute("IDENTIFY_SYSTEM").fetchone()
            assert row is not None and row[3] == database.name


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "kind", "cause", "hint"),
        [
            ({"password": "wrong"}, errors.AuthenticationFailed, "refused the password", "pgpass"),
            ({"password": ""}, errors.AuthenticationFailed, "asks for a password", "pgpass"),
            ({"user": "ghost"}, errors.AuthenticationFailed, "no such user", "user"),
            ({"user": "idle"}, errors.AuthenticationFailed, "does not let user 'idle'", "LOGIN"),
            ({"dbname": "ghost"}, errors.DatabaseMissing, "no database 'ghost'", "psql -l"),
            (
                {"user": "plain", "dbname": "closed"},
                errors.PermissionMissing,
                "user 'plain' may not connect to database 'closed'",
                "GRANT CONNECT ON DATABASE closed TO plain;",
            ),
            ({"port": 1}, errors.ConnectionRefused, "no Postgres server answers", "firewall"),
            ({"host": "no.such.invalid"}, errors.ConnectionRefused, "no.such.invalid", "host"),
            ({"host": "/nonexistent"}, errors.ConnectionRefused, "/nonexistent", "host"),
            ({"sslmode": "require"}, errors.EncryptionFailed, "no encrypted", "sslmode"),
            ({"options": "-c nosuch=1"}, errors.BadDsn, "no setting of that name", "options"),
            ({"service": "nosuch"}, errors.BadDsn, "not in any service file", "pg_service.conf"),
        ],
    )
    def test_each_cause_has_its_error_and_hint(
        self,
        guarded: EmbeddedServer,
        changes: dict[str, Any],
        kind: type[errors.CaptureError],
        cause: str,
        hint: str,
    ) -> None:
        with pytest.raises(errors.CaptureError) as caught:
            connect(dsn_with(guarded, **changes))
        assert type(caught.value) is kind
        assert cause in str(caught.value)
        assert hint in caught.value.hint
        assert_clear(caught.value)

    def test_role_without_replication(self, guarded: EmbeddedServer) -> None:
        with pytest.raises(errors.PermissionMissing, match="'plain' may not replicate") as caught:
            connect_replication(dsn_with(guarded, user="plain"))
        assert "ALTER ROLE plain REPLICATION;" in caught.value.hint
        assert_clear(caught.value)

    def test_no_walsender_is_free(self, guarded: EmbeddedServer) -> None:
        with (
            connect_replication(guarded.dsn),
            pytest.raises(errors.TooManyConnections, match="replication connections") as caught,
        ):
            connect_replication(guarded.dsn)
        assert "max_wal_senders" in caught.value.hint and caught.value.retry

    def test_no_connection_is_free(self, guarded: EmbeddedServer) -> None:
        def hold_all(held: ExitStack) -> None:
            for _ in range(10):
                held.enter_context(connect(dsn_with(guarded, user="plain")))

        with (
            ExitStack() as held,
            pytest.raises(errors.TooManyConnections, match="all connections") as caught,
        ):
            hold_all(held)
        assert "max_connections" in caught.value.hint and caught.value.retry

    def test_no_entry_in_pg_hba(self, guarded: EmbeddedServer) -> None:
        file = guarded.data / "pg_hba.conf"
        before = file.read_text()
        with psycopg.connect(guarded.dsn, autocommit=True) as admin:
            file.write_text("host postgres plain 127.0.0.1/32 scram-sha-256\n")
            try:
                admin.execute("select pg_reload_conf()")
                with pytest.raises(errors.AuthenticationFailed, match=r"pg_hba\.conf") as caught:
                    connect_until_refused(guarded.dsn)
            finally:
                file.write_text(before)
                admin.execute("select pg_reload_conf()")
        assert "hostssl postgres" in caught.value.hint
        assert_clear(caught.value)

    def test_server_that_is_killed_is_a_lost_connection(self) -> None:
        with EmbeddedServer.start(bindir=bindir(WHEEL), settings=SETTINGS) as server:
            conn = connect(server.dsn)
            server.kill()
            with pytest.raises(errors.ConnectionLost) as caught, translated("asking"):
                conn.execute("select 1")
            conn.close()
        assert caught.value.retry
        assert_clear(caught.value)

    def test_other_answers_keep_their_code_and_words(self, database18: Database) -> None:
        with (
            connect(database18.dsn) as conn,
            pytest.raises(errors.ServerError, match="dividing: division by zero") as caught,
            translated("dividing"),
        ):
            conn.execute("select 1 / 0")
        assert caught.value.sqlstate == "22012"
        assert_clear(caught.value)
