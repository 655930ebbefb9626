"""Transactional messages of our own, by which the stream tells where it is: watermarks (D12).

Nothing is written to a user's table. The message is flushed by the local server alone: a stand-by
that is away must not hold a capture up.
"""

from __future__ import annotations

import secrets
from itertools import count

import psycopg

from cdc.errors import PermissionMissing
from cdc.postgres.connection import Connection
from cdc.postgres.faults import failed
from cdc.postgres.protocol.lsn import Lsn

OWN_PREFIX = "eventlog"
"""Logical messages of this prefix are the capture's own and get no offset (D11)."""


class Watermarks:
    """Names and writes the watermarks of one run of a capture."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(8)
        self._numbers = count(1)

    def next(self) -> bytes:
        """A token that no other watermark has."""
        return f"copy {self._run} {next(self._numbers)}".encode()

    def write(self, conn: Connection, token: bytes) -> None:
        """Write a watermark into the source's log. See `emit`."""
        emit(conn, token.decode())


def emit(conn: Connection, content: str) -> Lsn:
    """Write a message of ours into the source's log; returns a position below its commit.

    Everything that was committed before ends below that, and a stream comes there. REQUIRES: no
    transaction is open. Raises PermissionMissing.
    """
    user = conn.info.user
    try:
        with conn.transaction():
            conn.execute("set local synchronous_commit = local")
            row = conn.execute(
                "select pg_logical_emit_message(true, %s, %s::text)::text", [OWN_PREFIX, content]
            ).fetchone()
    except psycopg.errors.InsufficientPrivilege as error:
        raise PermissionMissing(
            f"user {user!r} may not write messages of its own, by which a table is copied beside "
            "the stream",
            hint="a DBA runs: GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, "
            f"text) TO {user};",
        ) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise PermissionMissing(
            f"all transactions of user {user!r} are read-only, and a table is copied beside the "
            "stream by messages of its own",
            hint=f"a DBA runs: ALTER ROLE {user} SET default_transaction_read_only = off;",
        ) from error
    except psycopg.Error as error:
        raise failed(error, "writing a message of our own") from error
    assert row is not None
    return Lsn.parse(row[0])
