"""High watermarks: transactional messages of our own, by which the stream tells where it is (D12).

Nothing is written to a user's table. The message is flushed by the local server alone: a stand-by
that is away must not hold a copy up.
"""

from __future__ import annotations

import secrets
from itertools import count

import psycopg

from cdc.errors import PermissionMissing
from cdc.postgres.connection import Connection
from cdc.postgres.faults import failed

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
        """Write a watermark into the source's log. REQUIRES: no transaction is open.

        Raises PermissionMissing.
        """
        try:
            with conn.transaction():
                conn.execute("set local synchronous_commit = local")
                conn.execute(
                    "select pg_logical_emit_message(true, %s, %s::text)",
                    [OWN_PREFIX, token.decode()],
                )
        except psycopg.errors.InsufficientPrivilege as error:
            raise PermissionMissing(
                f"user {conn.info.user!r} may not write the messages by which a table is copied "
                "beside the stream",
                hint="a DBA runs: GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, "
                f"text) TO {conn.info.user};",
            ) from error
        except psycopg.Error as error:
            raise failed(error, "writing a watermark") from error
