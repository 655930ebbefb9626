"""What the server answers, and connections that break, as errors of this package."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import pq

from cdc.errors import ConnectionLost
from cdc.postgres.faults import failed
from cdc.postgres.publishing.slot import slot_in_use

CANCEL_S = 10.0
"""How long a server may take to accept a request to cancel."""

CANCELLED = "57014"
"""The SQLSTATE of a statement that was cancelled."""

_IN_USE = b"55006"


def lost(error: Exception | None) -> ConnectionLost:
    """The error for a connection that broke; None: the server closed it without a word."""
    said = str(error or "").strip().splitlines()
    return ConnectionLost(
        f"the connection to the server was lost: {said[0] if said else 'no reason given'}",
        hint="it is made anew with growing pauses; stop the capture with Ctrl-C",
    )


def stream_ended() -> ConnectionLost:
    """The error for a replication stream that the server ended without an error."""
    return ConnectionLost(
        "the server ended the replication stream",
        hint="it is taken up again as soon as the server answers",
    )


def server_said(
    result: pq.abc.PGresult | None, doing: str, *, slot: str | None = None
) -> Exception:
    """The error for a result of libpq that is not what was asked for."""
    if result is None:
        return ConnectionLost(f"the server did not answer {doing}", hint="is it running?")
    code = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
    return answered(code, message, doing, slot=slot)


def answered(code: bytes, message: bytes, doing: str, *, slot: str | None = None) -> Exception:
    """The error for an SQLSTATE and a message of the server; `slot` is what is streamed from."""
    if slot is not None and code == _IN_USE:
        words = message.decode("utf-8", "replace").replace(",", " ").split()
        pid = next((int(word) for word in words if word.isdigit()), None)
        return slot_in_use(slot, pid)
    kind: type[psycopg.Error] = psycopg.OperationalError
    if code:
        try:
            kind = psycopg.errors.lookup(code.decode())
        except (KeyError, UnicodeDecodeError):  # a code of the user's own, raised by a function
            kind = psycopg.DatabaseError
    text = message.decode("utf-8", "replace")
    return failed(kind(text or "no reason given", encoding="utf-8"), doing)


def error_fields(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The fields of an ErrorResponse, by their one-byte codes."""
    for field in content.split(b"\0"):
        if field:
            yield field[:1], field[1:]
