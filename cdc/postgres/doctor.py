"""What stands in the way of a capture, and how to mend it: a pure judgement over facts.

::

    error      a capture would not start, or not stay correct
    warning    it would run, with something that the operator should know
    ok         looked at and found good
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cdc.errors import PermissionMissing
from cdc.postgres.connection import connect
from cdc.postgres.facts import Facts, TableFact, gather
from cdc.postgres.schema.catalog import OLDEST_VERSION
from cdc.postgres.schema.table_spec import TableSpec
from eventlog.changes.table_name import TableName, quoted

RETAINED_BYTES_NOTED = 1 << 30
"""An inactive slot that keeps at least as much WAL is worth a warning."""

SENDER_TIMEOUT_MS_MIN = 10_000
"""Below this a pause of the capturing machine ends the connection."""


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What would be stored of a table: columns as they are, hashed, and not at all."""

    stored: tuple[str, ...]
    hashed: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `remedy` is SQL, or a sentence, and empty where all is well.

    `columns`: what would be stored, in the finding that says so of a table.
    """

    severity: Severity
    subject: str
    finding: str
    remedy: str = ""
    columns: Stored | None = None


def examine(
    dsn: str, names: Sequence[TableName | TableSpec], hashes: Sequence[str] = ()
) -> list[Finding]:
    """Look at a server, the present role and these tables. Changes nothing.

    `hashes` name the columns to hash. Raises a CaptureError if no ordinary connection can be made.
    """
    with connect(dsn) as conn:
        return judge(gather(dsn, conn, names, hashes))


def judge(facts: Facts) -> list[Finding]:
    """Turn facts into findings: the server first, then the role, then each table."""
    return [*_server(facts), *_room(facts), *_retention(facts), *_role(facts), *_tables(facts)]


def _server(facts: Facts) -> Iterator[Finding]:
    major = facts.version // 10_000
    if facts.version < OLDEST_VERSION:
        yield _error("version", f"PostgreSQL {major} is too old", "upgrade to 14 or later")
    else:
        yield _ok("version", f"PostgreSQL {major}.{facts.version % 10_000}")
    if facts.wal_level != "logical":
        yield _error(
            "wal_level",
            f"is {facts.wal_level!r}, and capturing needs 'logical'",
            "ALTER SYSTEM SET wal_level = 'logical';  -- then restart the server",
        )
    else:
        yield _ok("wal_level", "is 'logical'")
    if facts.standby:
        yield _error("server", "is a standby: no publication can be made", "use the primary")
    if facts.wal_sender_timeout_ms == 0:
        yield _warning(
            "wal_sender_timeout",
            "is 0: the server never notices that a capture's machine is gone, and keeps its slot "
            "occupied",
            "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();",
        )
    elif facts.wal_sender_timeout_ms < SENDER_TIMEOUT_MS_MIN:
        yield _warning(
            "wal_sender_timeout",
            f"is {facts.wal_sender_timeout_ms} ms: short pauses end the connection",
            "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();",
        )
    else:
        yield _ok("wal_sender_timeout", f"is {facts.wal_sender_timeout_ms // 1000} s")


def _room(facts: Facts) -> Iterator[Finding]:
    for subject, what, setting, used, most in (
        ("slots", "replication slots", "max_replication_slots", facts.slots_used, facts.slots_max),
        ("senders", "WAL senders", "max_wal_senders", facts.senders_used, facts.senders_max),
    ):
        said = f"{used} of {most} {what} are in use"
        if used >= most:
            yield _error(
                subject,
                said,
                f"ALTER SYSTEM SET {setting} = {most + 10};  -- then restart the server",
            )
        else:
            yield _ok(subject, said)


def _retention(facts: Facts) -> Iterator[Finding]:
    if facts.slot_wal_keep_mb < 0:
        yield _warning(
            "max_slot_wal_keep_size",
            "is -1: a capture that stands still lets WAL grow until the server's disk is full",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();"
            "  -- what the disk can spare",
        )
    else:
        yield _ok("max_slot_wal_keep_size", f"is {facts.slot_wal_keep_mb} MB")
    if facts.idle_slot_timeout_ms:
        yield _warning(
            "idle_replication_slot_timeout",
            f"is {facts.idle_slot_timeout_ms // 1000} s: a capture that is stopped for longer "
            "loses its slot",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )
    for slot in facts.inactive_slots:
        remedy = f"SELECT pg_drop_replication_slot('{slot.name}');  -- if nothing needs it"
        if slot.wal_status == "lost":
            yield _warning(f"slot {slot.name}", "has lost WAL that it needed", remedy)
        elif slot.retained_bytes >= RETAINED_BYTES_NOTED:
            size = slot.retained_bytes / (1 << 30)
            yield _warning(f"slot {slot.name}", f"is inactive and keeps {size:.1f} GiB", remedy)


def _role(facts: Facts) -> Iterator[Finding]:
    user, fault = quoted(facts.user), facts.replication_fault
    if fault is None:
        yield _ok("replication", f"user {facts.user!r} can connect for replication")
    elif not facts.may_replicate or isinstance(fault, PermissionMissing):
        yield _error(
            "replication",
            f"user {facts.user!r} may not replicate",
            f"ALTER ROLE {user} REPLICATION;  -- on Amazon RDS: GRANT rds_replication TO {user};",
        )
    else:
        yield _error("replication", str(fault), fault.hint)
    if facts.may_create:
        yield _ok("publications", f"user {facts.user!r} can make publications")
    else:
        yield _error(
            "publications",
            f"user {facts.user!r} may not make publications in database {facts.database!r}",
            f"GRANT CREATE ON DATABASE {quoted(facts.database)} TO {user};",
        )


def _tables(facts: Facts) -> Iterator[Finding]:
    for missing in facts.missing:
        yield _error("tables", str(missing), missing.hint)
    for left in facts.passed_over:
        name = TableName(schema=left.schema, name=left.name)
        yield _warning(str(name), f"is left out: it {left.reason}", "name other tables")
    for fact in facts.tables:
        found = list(_table(facts, fact))
        yield from found
        if all(finding.severity is not Severity.ERROR for finding in found):
            yield _stored(fact)


def _table(facts: Facts, fact: TableFact) -> Iterator[Finding]:
    table, user = str(fact.table.table), quoted(facts.user)
    if not fact.owned:
        yield _error(
            table,
            f"belongs to {fact.owner!r}, and only a table's owner can publish it",
            # Never make a superuser of the user who captures.
            "a DBA makes a publication of the tables, to be named with --publication"
            if fact.owner_is_superuser
            else f"GRANT {quoted(fact.owner)} TO {user};",
        )
    if not fact.usage or not fact.select:
        yield _unreadable(facts, fact)
    elif fact.row_security:
        yield _error(
            table,
            f"hides rows from user {facts.user!r} (row security), so a copy would be incomplete",
            f"ALTER ROLE {user} BYPASSRLS;",
        )
    if fact.refusal is not None:
        yield _error(table, str(fact.refusal), fact.refusal.hint)
    if not fact.table.updatable:
        yield _warning(
            table,
            "has no replica identity: only its inserts can be captured",
            _identity_remedy(fact),
        )
    elif fact.table.kind == "p":
        yield _warning(
            table,
            "is partitioned: truncating, dropping or detaching one partition is not captured",
            "delete the rows first, or capture the table anew afterwards",
        )


def _unreadable(facts: Facts, fact: TableFact) -> Finding:
    """A table whose rows cannot be copied for want of privileges, and the SQL that grants them."""
    table, user = str(fact.table.table), quoted(facts.user)
    grants = [] if fact.usage else [f"GRANT USAGE ON SCHEMA {quoted(fact.table.schema)} TO {user};"]
    if not fact.lacking:
        if not fact.select:
            grants.append(f"GRANT SELECT ON {table} TO {user};")
        said = f"may not be read by user {facts.user!r}, so its rows cannot be copied"
        return _error(table, said, " ".join(grants))
    for name, columns in fact.lacking:
        listed = "" if columns == ("*",) else f" ({_listing(columns)})"
        grants.append(f"GRANT SELECT{listed} ON {name} TO {user};")
    missing = list(dict.fromkeys(c for _, columns in fact.lacking for c in columns if c != "*"))
    why = " (the places of rows, by which a table is copied in parts)" if "ctid" in missing else ""
    what = f"{_listing(missing)}{why}" if missing else "some of its partitions"
    said = f"may be read by user {facts.user!r} but for {what}, so its rows cannot be copied"
    return _error(table, said, " ".join(grants))


def _stored(fact: TableFact) -> Finding:
    """What of the table would be stored, in words and in lists."""
    plain = tuple(name for name in fact.table.columns if name not in fact.hashed)
    if fact.hashed or fact.left_out or fact.table.listed:
        parts = [f"stored are {_listing(plain) or 'no columns as they are'}"]
        if fact.hashed:
            parts.append(f"hashed {_listing(fact.hashed)}")
        if fact.left_out:
            parts.append(f"left out {_listing(fact.left_out)}")
        said = "; ".join(parts)
        said += "; columns added later are " + ("left out" if fact.table.listed else "stored")
    else:
        count = len(plain)
        said = f"stored {'is its one column' if count == 1 else f'are all {count} columns'}"
    return Finding(
        severity=Severity.OK,
        subject=str(fact.table.table),
        finding=f"can be captured: {said}",
        columns=Stored(stored=plain, hashed=fact.hashed, left_out=fact.left_out),
    )


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))


def _identity_remedy(fact: TableFact) -> str:
    table = fact.table.table
    if fact.table.kind == "p":
        return f"give {table} a primary key, which its partitions share, or each of them its own"
    if fact.candidate is not None:
        return f"ALTER TABLE {table} REPLICA IDENTITY USING INDEX {fact.candidate};"
    return (
        f"ALTER TABLE {table} REPLICA IDENTITY FULL;"
        "  -- costs WAL for each update and delete; a primary key is better"
    )


def _ok(subject: str, finding: str) -> Finding:
    return Finding(severity=Severity.OK, subject=subject, finding=finding)


def _warning(subject: str, finding: str, remedy: str) -> Finding:
    return Finding(severity=Severity.WARNING, subject=subject, finding=finding, remedy=remedy)


def _error(subject: str, finding: str, remedy: str) -> Finding:
    return Finding(severity=Severity.ERROR, subject=subject, finding=finding, remedy=remedy)
