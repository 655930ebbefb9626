"""An application of a Postgres source: its clients, and what they do when they are refused."""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg

from tests.source_tables import SourceTable, TableColumn, source_tables

LOCK_TIMEOUT_MS = 15


class Kind(enum.Flag):
    """Classes of statements, for a test to choose those whose outcome it can compare."""

    ROWS = enum.auto()
    KEYS = enum.auto()
    """Key changes, also across partitions, and swaps of unique values."""
    SAVEPOINTS = enum.auto()
    ABORTS = enum.auto()
    TRUNCATE = enum.auto()
    COPY = enum.auto()
    MESSAGES = enum.auto()
    PREPARED = enum.auto()
    LEAVES = enum.auto()
    """Rows written to a partition by its own name."""
    COLUMNS = enum.auto()
    """Columns added, with a constant default or without, dropped and renamed."""
    RENAMES = enum.auto()
    TYPES = enum.auto()
    """Changes of a column's type that keep every text and rewrite nothing."""
    IDENTITIES = enum.auto()
    """Replica identities switched between those that show every change."""
    NO_IDENTITY = enum.auto()
    REWRITES = enum.auto()
    """ALTER TABLE that gives existing rows new values, which no stream shows."""
    RECREATE = enum.auto()
    NEW_TABLES = enum.auto()
    ATTACH = enum.auto()
    """Partitions attached, detached and made."""
    LEAF_TRUNCATE = enum.auto()
    """A partition truncated by its own name, which a stream of its root does not show."""

    DML = ROWS | KEYS | SAVEPOINTS | ABORTS | TRUNCATE | COPY | MESSAGES | PREPARED | LEAVES
    DDL = COLUMNS | RENAMES | TYPES | IDENTITIES
    UNSEEN = NO_IDENTITY | REWRITES | RECREATE | NEW_TABLES | ATTACH | LEAF_TRUNCATE
    ALL = DML | DDL | UNSEEN


REFUSALS = (
    psycopg.errors.CheckViolation,
    psycopg.errors.DatatypeMismatch,
    psycopg.errors.DependentObjectsStillExist,
    psycopg.errors.DuplicateColumn,
    psycopg.errors.DuplicateTable,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.ForeignKeyViolation,
    psycopg.errors.GeneratedAlways,
    psycopg.errors.InFailedSqlTransaction,
    psycopg.errors.InvalidObjectDefinition,
    psycopg.errors.InvalidTableDefinition,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.NotNullViolation,
    psycopg.errors.ObjectInUse,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.StringDataRightTruncation,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UniqueViolation,
    psycopg.errors.WrongObjectType,
)
"""How a server may refuse a statement that another transaction or the tables' state forbids."""


class Client:
    """One connection of the application, with how many steps its transaction still has."""

    def __init__(self, dsn: str) -> None:
        self.conn = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
        self.conn.execute(f"set lock_timeout = {LOCK_TIMEOUT_MS}; set client_min_messages = error")
        self.open = False
        self.savepoints = 0
        self.left = 0


class Application:
    """Runs statements; `done` counts those that went through by name, `refused` the others."""

    def __init__(self, dsn: str, *, seed: int, kinds: Kind, clients: int) -> None:
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.kinds = kinds
        self.draw = random.Random(seed)
        self.clients = [Client(dsn) for _ in range(clients)]
        self._last_number = 0

    def number(self) -> int:
        """A number that was not used before."""
        self._last_number += 1
        return self._last_number

    def attempt(self, client: Client, what: str, sql: str, values: Sequence[Any] = ()) -> bool:
        """Run a statement; one that is refused takes its (sub)transaction with it."""
        try:
            client.conn.execute(sql, values or None)
        except REFUSALS as error:
            self.refuse(client, what, error)
            return False
        self.done[what] += 1
        return True

    def refuse(self, client: Client, what: str, error: psycopg.Error) -> None:
        self.refused[f"{what}: {type(error).__name__}"] += 1
        if client.open and client.savepoints:
            client.conn.execute("rollback to savepoint s")
        elif client.conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            client.conn.execute("rollback")
            client.open = False

    def table(self, client: Client, *, leaves: bool = False) -> SourceTable:
        leaves = leaves and Kind.LEAVES in self.kinds
        return self.draw.choice(source_tables(client.conn, leaves=leaves))

    # Words and numbers

    def scope(self, table: SourceTable) -> str:
        return table.scope if self.draw.random() < 0.3 else table.name

    def some(self, parts: int) -> str:
        """A condition that about one row of `parts` meets, whatever the table."""
        parts = self.draw.choice((parts, parts, parts * 4, 2))
        return f"mod(abs(hashtext(t::text)::bigint), {parts}) = 0"

    def value(self, column: TableColumn) -> str | None:
        draw = self.draw
        if not column.required and draw.random() < 0.15:
            return None
        if column.type in ("integer", "bigint"):
            return str(draw.randint(1, 60) if column.key else draw.randint(-9999, 9999))
        if column.type.startswith("numeric"):
            return draw.choice(("NaN", "0", f"{draw.randint(-999, 999)}.{draw.randint(0, 99):02}"))
        if column.type == "bytea":
            return "\\x" + draw.randbytes(draw.choice((0, 3, 3000))).hex()
        if column.type == "jsonb":
            return draw.choice(("{}", '{"a": [1, null, "\\"q\\""]}', f'{{"n": {draw.random()}}}'))
        if column.external:
            return _word(draw, draw.choice((0, 5, 2500, 9000)))
        return _word(draw, draw.choice((2, 3)) if column.key else draw.choice((0, 1, 8)))


def _word(draw: random.Random, length: int) -> str:
    return "".join(draw.choices("ab'\"\\é漢\t\n %{},", k=length))
