"""What psycopg and the server report, translated into the errors of cdc.errors.

A refused connection has no SQLSTATE in libpq, only English text: a table of phrases tells the
cause. Once a connection stands, the SQLSTATE does. Messages name host, port, user and database,
never a connection string or a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg

from cdc import errors
from cdc.errors import CaptureError, ServerError


class Target(NamedTuple):
    """Where a connection was to go, for messages."""

    host: str
    port: str
    user: str
    database: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if not self.host.startswith("/") else self.host


class _Refusal(NamedTuple):
    """A phrase of the answer, the error that it means, its cause and hint; braces name Target's."""

    phrase: str
    error: type[CaptureError]
    cause: str
    hint: str


_REFUSALS = (
    _Refusal(
        r"definition of service",
        errors.BadDsn,
        "the service that the connection string names is not in any service file",
        "add it to ~/.pg_service.conf, or name the file in PGSERVICEFILE",
    ),
    _Refusal(
        r"unrecognized configuration parameter",
        errors.BadDsn,
        "the server at {target} knows no setting of that name, given in the connection's options",
        "correct `options` in the connection string, or PGOPTIONS",
    ),
    _Refusal(
        r"unsupported startup parameter",
        errors.UnsupportedServer,
        "what answers at {target} is a connection pooler, which cannot pass on replication",
        "connect to the Postgres server itself",
    ),
    _Refusal(
        r"password authentication failed",
        errors.AuthenticationFailed,
        "the server at {target} refused the password of user {user!r}, or has no such user",
        "correct the password in ~/.pgpass, PGPASSWORD or the connection string, or the user",
    ),
    _Refusal(
        r"no password supplied",
        errors.AuthenticationFailed,
        "the server at {target} asks for a password of user {user!r} and none was given",
        "put it into ~/.pgpass, or give the connection string as env:VAR",
    ),
    _Refusal(
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        errors.AuthenticationFailed,
        "pg_hba.conf at {target} lets user {user!r} not into database {database!r} from here",
        "add a line such as `hostssl {database} {user} ADDRESS scram-sha-256`, reload the server, "
        "and try sslmode=require",
    ),
    _Refusal(
        r'role ".*" does not exist|is not permitted to log in|authentication failed',
        errors.AuthenticationFailed,
        "the server at {target} does not let user {user!r} in",
        "check the user's name, its LOGIN attribute and the method in pg_hba.conf",
    ),
    _Refusal(
        r'database ".*" does not exist',
        errors.DatabaseMissing,
        "the server at {target} has no database {database!r}",
        "list the databases with psql -l, and correct dbname",
    ),
    _Refusal(
        r"start WAL ?sender",
        errors.PermissionMissing,
        "user {user!r} may not replicate from the server at {target}",
        "a DBA runs: ALTER ROLE {user} REPLICATION; "
        "a managed service has a role for it instead, such as rds_replication",
    ),
    _Refusal(
        r"permission denied for database",
        errors.PermissionMissing,
        "user {user!r} may not connect to database {database!r}",
        "a DBA runs: GRANT CONNECT ON DATABASE {database} TO {user};",
    ),
    _Refusal(
        r"max_wal_senders",
        errors.TooManyConnections,
        "all replication connections of the server at {target} are taken",
        "raise max_wal_senders (takes a restart), or end a replication that is not needed",
    ),
    _Refusal(
        r"remaining connection slots|too many (clients|connections)",
        errors.TooManyConnections,
        "all connections of the server at {target} are taken",
        "raise max_connections, or close sessions that idle",
    ),
    _Refusal(
        r"starting up|shutting down|in recovery mode|not yet accepting|not accepting connections",
        errors.ServerStarting,
        "the server at {target} is starting up or shutting down",
        "wait until it accepts connections",
    ),
    _Refusal(
        r"SSL|certificate|GSSAPI encryption",
        errors.EncryptionFailed,
        "no encrypted connection to {target} could be agreed on",
        "check sslmode, sslrootcert and gssencmode in the connection string",
    ),
    _Refusal(
        r"Connection refused|resolve host|translate host name|timeout|timed out|unreachable"
        r"|No such file or directory|No route|Permission denied",
        errors.ConnectionRefused,
        "no Postgres server answers at {target}",
        "check host and port, that the server runs, and what firewalls lie between",
    ),
    _Refusal(
        r"closed the connection|Connection reset",
        errors.ConnectionLost,
        "the server at {target} closed the connection before it stood",
        "the server's log tells why",
    ),
)

_LOST = ("the connection to the server was lost", "the server's log tells why, if it ran on")

_STATES: dict[str, tuple[type[CaptureError], str]] = {
    "22021": (
        errors.ServerError,
        "this SQL_ASCII database has a name, an enum's label or a default that is no UTF-8: "
        "change it; rows may hold any bytes",
    ),
    "22P05": (
        errors.ServerError,
        "a text has no form in UTF-8, in which all is captured; its change stays in the WAL: "
        "capture the source anew under another name once the text was corrected",
    ),
    "40P01": (
        errors.TableLocked,
        "the other transaction went on; it is tried again, or try again when that has ended",
    ),
    "42501": (errors.PermissionMissing, "a DBA must grant the role what is missing"),
    "53300": (errors.TooManyConnections, "raise max_connections, or close sessions that idle"),
    "55006": (errors.SlotInUse, "stop the process that uses it, or choose another name"),
    "55P03": (
        errors.TableLocked,
        "wait for the end of the transaction that holds the lock, or end it",
    ),
    "57P01": (errors.ConnectionLost, "an administrator ended the session, or the server stopped"),
    "57P02": (errors.ConnectionLost, "the server crashed and recovers; its log tells why"),
    "57P03": (errors.ServerStarting, "wait until the server accepts connections"),
    "57P05": (errors.ConnectionLost, "the server ends idle sessions (idle_session_timeout)"),
}


def refused(error: psycopg.Error, fallback: Target) -> CaptureError:
    """Translate why a connection could not be made."""
    text = str(error)
    target = _target(error, fallback)
    for refusal in _REFUSALS:
        if re.search(refusal.phrase, text, re.IGNORECASE):
            fields = {**target._asdict(), "target": target}
            return refusal.error(refusal.cause.format(**fields), hint=refusal.hint.format(**fields))
    return ServerError(
        f"the server at {target} refused the connection: {_first_sentence(text)}",
        hint="the server's log tells more",
    )


def failed(error: psycopg.Error, doing: str) -> CaptureError:
    """Translate what went wrong on a standing connection; `doing` starts the message."""
    state = error.sqlstate
    if state is None:
        if isinstance(error, psycopg.OperationalError):
            return errors.ConnectionLost(f"{doing}: {_LOST[0]}", hint=_LOST[1])
        return ServerError(f"{doing}: {_first_sentence(str(error))}")
    said = error.diag.message_primary or _first_sentence(str(error))
    if state in _STATES:
        kind, hint = _STATES[state]
        return kind(f"{doing}: {said}", hint=hint)
    if state.startswith("08"):
        return errors.ConnectionLost(f"{doing}: {said}", hint=_LOST[1])
    hint = error.diag.message_hint or error.diag.message_detail or "the server's log tells more"
    return ServerError(f"{doing}: {said}", hint=hint, sqlstate=state)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Translate every psycopg error inside the block; `doing` tells what was tried."""
    try:
        yield
    except psycopg.Error as error:
        raise failed(error, doing) from error


def _target(error: psycopg.Error, fallback: Target) -> Target:
    """What libpq itself resolved, a service file included, where it got that far."""
    conn = error.pgconn
    if conn is None:
        return fallback
    known = (conn.host, conn.port, conn.user, conn.db)
    resolved = (value.decode("utf-8", "replace") for value in known)
    return Target(*(now or before for now, before in zip(resolved, fallback, strict=True)))


def _first_sentence(text: str) -> str:
    """The cause in libpq's text, without its prefixes, details and hints."""
    line = text.strip().splitlines()[0] if text.strip() else "no reason was given"
    return re.sub(r"^.*?(?:FATAL|ERROR): +", "", line)
