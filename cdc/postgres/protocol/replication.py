"""Begins to stream from a slot, by the fastest way that the connection allows."""

from __future__ import annotations

from psycopg import sql

from cdc.postgres.connection import Connection, is_unconverted
from cdc.postgres.faults import translated
from cdc.postgres.protocol.libpq import LibpqStream
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.socket_stream import SocketStream
from cdc.postgres.protocol.transport import Transport, Wake


def start_replication(
    conn: Connection, slot: str, position: Lsn, publications: list[str], wake: Wake
) -> Transport:
    """Stream from `position`, 0 meaning where the slot stands. The transport owns the connection.

    Raises SlotInUse, ConnectionLost, or what the server answers.
    """
    with translated(f"starting to stream from slot {slot!r}"):
        if is_unconverted(conn):
            conn.execute("SET client_encoding = 'SQL_ASCII'")
        statement = start_command(conn, slot, position, publications)
        plain = SocketStream.opened(conn, statement, slot, wake)
        return plain or LibpqStream(conn, slot, wake)


def start_command(conn: Connection, slot: str, position: Lsn, publications: list[str]) -> bytes:
    """The statement that begins a stream."""
    names = ",".join(sql.Identifier(name).as_string(conn) for name in publications)
    command = sql.SQL(
        "START_REPLICATION SLOT {} LOGICAL {} "
        "(proto_version '1', publication_names {}, messages 'true')"
    ).format(sql.Identifier(slot), sql.SQL(str(position)), sql.Literal(names))
    return command.as_bytes(conn)
