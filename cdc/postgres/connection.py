"""Connections to a Postgres source, and the ways a user may write where it is.

::

    host=db.internal dbname=shop user=cdc      libpq's keywords and values
    postgresql://cdc@db.internal/shop          a URI
    service=shop                               an entry of ~/.pg_service.conf
    env:SHOP_DSN                               any of these, in an environment variable

Every connection, replicating or not, has the same pinned settings, because the text that the
server writes under them is stored for ever (D9). They are given last among the connection's
`options`, so that they win over what the user or PGOPTIONS put there, which is kept. (Options in a
service file are not: libpq reads that file only where the connection string has none.)
"""

from __future__ import annotations

import os
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.errors import BadDsn
from cdc.postgres.faults import Target, refused, translated

APPLICATION_NAME = "eventlog"
CONNECT_TIMEOUT_S = 10

PINNED = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "search_path": "pg_catalog",
    # What regclass, regtype and their like are written with.
    "quote_all_identifiers": "off",
    # A copy under row security would leave rows out that the WAL has: fail instead.
    "row_security": "off",
    # Publications are made, and messages written, whatever the role's transactions begin as.
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
}

_YIELDING = {
    # A limit meant for an application's queries must not end a copy; the user's own options may.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

_TIMEOUT_FROM_17 = "transaction_timeout"
"""A limit too; among the options it would make an older server refuse the connection."""

_SQL_ASCII = "SQL_ASCII"

_DEFAULTS = {
    "connect_timeout": str(CONNECT_TIMEOUT_S),
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}

_SECRETS = (
    "password",
    "sslpassword",
    "scram_client_key",
    "scram_server_key",
    "oauth_client_secret",
)

Connection = psycopg.Connection[tuple[Any, ...]]


def normalise(dsn: str) -> str:
    """The connection string that `dsn` stands for, as libpq's keywords and values.

    Reads `env:VAR`. The result holds a password if `dsn` did: print `redact(dsn)`, never this.
    Raises BadDsn.
    """
    return make_conninfo(**_parameters(dsn))


def redact(dsn: str) -> str:
    """The connection string without its secrets, for messages."""
    try:
        parameters = _parameters(dsn)
    except BadDsn:
        return "(a connection string that cannot be read)"
    return make_conninfo(**{k: v for k, v in parameters.items() if k not in _SECRETS})


def has_password_in_text(dsn: str) -> bool:
    """Whether the text itself shows a secret, which other users see in the list of processes."""
    if dsn.startswith("env:"):
        return False
    try:
        return any(_parameters(dsn).get(name) for name in _SECRETS)
    except BadDsn:
        return False


def connect(dsn: str) -> Connection:
    """An ordinary connection in autocommit mode, with the pinned settings.

    Raises a CaptureError that names the cause.
    """
    return _connect(dsn, {})


def connect_replication(dsn: str) -> Connection:
    """A connection to a walsender of the database, with the pinned settings.

    A walsender takes the simple protocol only: run statements without parameters.
    Raises a CaptureError that names the cause.
    """
    return _connect(dsn, {"replication": "database"})


def _connect(dsn: str, extra: dict[str, str]) -> Connection:
    given = _parameters(dsn)
    parameters: dict[str, Any] = {**given, **extra}
    for name, value in _DEFAULTS.items():
        if name not in given and not os.environ.get(f"PG{name.upper()}"):
            parameters[name] = value
    parameters.setdefault("fallback_application_name", APPLICATION_NAME)
    parameters["client_encoding"] = PINNED["client_encoding"]
    own = given.get("options", os.environ.get("PGOPTIONS", ""))
    parameters["options"] = " ".join(filter(None, (_options(_YIELDING), own, _options(PINNED))))
    try:
        conn = psycopg.connect(make_conninfo(**parameters), autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise refused(error, _expected(given)) from error
    if conn.info.server_version >= 170_000 and _TIMEOUT_FROM_17 not in own:
        with translated("preparing the session"):
            conn.execute(f"SET {_TIMEOUT_FROM_17} = 0")
    return conn


def is_unconverted(conn: Connection) -> bool:
    """Whether the database is SQL_ASCII: its text is bytes of no known encoding, kept as they are.

    Under any other client encoding the server would refuse to send what is no UTF-8: text that is
    stored must be asked for in SQL_ASCII.
    """
    return conn.info.parameter_status("server_encoding") == _SQL_ASCII


def _options(settings: dict[str, str]) -> str:
    escaped = ((name, value.replace(" ", "\\ ")) for name, value in settings.items())
    return " ".join(f"-c {name}={value}" for name, value in escaped)


def _parameters(dsn: str) -> dict[str, Any]:
    text = dsn
    if dsn.startswith("env:"):
        variable = dsn.removeprefix("env:")
        text = os.environ.get(variable, "")
        if not text:
            raise BadDsn(
                f"the environment variable {variable!r} holds no connection string",
                hint=f"set {variable}, or write the connection string after --dsn",
            )
    try:
        # libpq's own words quote the text, of which any part may be a password.
        return conninfo_to_dict(text)
    except psycopg.Error:
        pass
    if text.startswith(("postgresql://", "postgres://")):
        raise BadDsn(
            "the connection URI cannot be read",
            hint="percent-encode special characters: postgresql://user:p%40ss@host:5432/database",
        )
    raise BadDsn(
        "the connection string is neither libpq's keywords and values nor a postgresql:// URI",
        hint="write e.g. 'host=localhost dbname=shop user=cdc'; quote values that hold spaces",
    )


def _expected(given: dict[str, Any]) -> Target:
    """Where the connection goes by its string and the environment."""
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val is not None
    }
    names = ("host", "port", "user", "dbname")
    host, port, user, database = (str(given.get(n) or defaults.get(n) or "") for n in names)
    return Target(host or "localhost", port or "5432", user, database or user)
