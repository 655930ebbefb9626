"""A random workload for a Postgres database, out of a seed: what an application may do to tables.

Nothing is modelled: every statement looks the tables up in the catalog, as its own transaction
sees them, and one that fails is rolled back, as an application would. Several clients hold open
transactions at once. One thread drives them all, so a statement that another client blocks cannot
succeed and soon gives up.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from tests.source_client import REFUSALS, Client, Kind
from tests.source_definitions import Definitions
from tests.source_tables import SourceTable, TableColumn, quoted, source_tables

PREPARED_MAX = 3
SAVEPOINTS_MAX = 3
STATEMENTS_MAX = 8


class Workload(Definitions):
    """Does random things to a database, always the same ones for one seed and no other writers."""

    def __init__(self, dsn: str, *, seed: int, kinds: Kind = Kind.DML, clients: int = 3) -> None:
        super().__init__(dsn, seed=seed, kinds=kinds, clients=clients)
        self._prepared: list[str] = []
        self._database = self.clients[0].conn.info.dbname
        print(f"source workload: seed {seed}, {kinds}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for client in self.clients:
            client.conn.close()

    @property
    def transactions(self) -> int:
        """How many transactions were committed."""
        return self.done["commit"] + self.done["commit prepared"]

    def run(self, steps: int) -> None:
        """Take random steps; afterwards no transaction is open, prepared ones included."""
        for _ in range(steps):
            client = self.draw.choice(self.clients)
            if not client.open:
                self._start(client)
            elif client.left <= 0:
                self._end(client)
            else:
                client.left -= 1
                self._statement(client)
        for client in self.clients:
            if client.open:
                self._end(client, whole=True)
        while self._prepared:
            self._settle(self.clients[0])

    def show_every_table(self) -> None:
        """Write one row into each table, with which the stream tells how it is defined now."""
        client = self.clients[0]
        left = source_tables(client.conn)
        while left:
            refused = [table for table in left if not self._last_row(client, table)]
            made = [table for table in refused if table.kind == "p" and self._room(client, table)]
            assert made or len(refused) < len(left), refused
            left = refused

    def _room(self, client: Client, table: SourceTable) -> bool:
        leaf = f"create table parts_n{self.number()} partition of {table.name} default"
        return self.attempt(client, "create leaf", leaf)

    def _last_row(self, client: Client, table: SourceTable) -> bool:
        columns = [column for column in table.stored if column.key or column.required]
        names = ", ".join(quoted(column.name) for column in columns)
        values = ", ".join(
            "99999" if c.type in ("integer", "bigint", "numeric") else "'last'" for c in columns
        )
        row = f"({names}) values ({values})" if columns else "default values"
        return self.attempt(client, "last row", f"insert into {table.name} {row}")

    # Transactions

    def _start(self, client: Client) -> None:
        if self._prepared and self.draw.random() < 0.3:
            self._settle(client)
        # Some statements are transactions of their own.
        if self.draw.random() < 0.2:
            return self._statement(client)
        client.conn.execute("begin")
        client.open, client.savepoints = True, 0
        client.left = self.draw.randint(1, STATEMENTS_MAX)
        return None

    def _end(self, client: Client, *, whole: bool = False) -> None:
        chance = self.draw.random()
        client.open = False
        if Kind.ABORTS in self.kinds and chance < 0.15:
            client.conn.execute("rollback")
            self.done["rollback"] += 1
        elif (
            Kind.PREPARED in self.kinds
            and chance < 0.3
            and not whole
            and len(self._prepared) < PREPARED_MAX
        ):
            gid = f"{self._database}_{self.number()}"
            if self.attempt(client, "prepare", f"prepare transaction '{gid}'"):
                self._prepared.append(gid)
        else:
            self.attempt(client, "commit", "commit")

    def _settle(self, client: Client) -> None:
        gid = self._prepared.pop(self.draw.randrange(len(self._prepared)))
        verb = "rollback prepared" if self.draw.random() < 0.25 else "commit prepared"
        client.conn.execute(f"{verb} '{gid}'")
        self.done[verb] += 1

    # Statements

    def _statement(self, client: Client) -> None:
        rows = {
            self._insert: 10, self._update: 10, self._delete: 3, self._upsert: 3,
        }  # fmt: skip
        choices: dict[Any, int] = rows if Kind.ROWS in self.kinds else {}
        for kind, action, weight in (
            (Kind.KEYS, self._change_key, 4),
            (Kind.KEYS, self._swap, 2),
            (Kind.TRUNCATE, self._truncate, 1),
            (Kind.COPY, self._copy, 2),
            (Kind.MESSAGES, self._message, 2),
            (Kind.COLUMNS, self._columns, 3),
            (Kind.RENAMES, self._rename, 1),
            (Kind.TYPES, self._retype, 1),
            (Kind.IDENTITIES, self._identity, 1),
            (Kind.NO_IDENTITY, self._no_identity, 1),
            (Kind.REWRITES, self._rewrite, 1),
            (Kind.RECREATE, self._recreate, 1),
            (Kind.NEW_TABLES, self._create, 1),
            (Kind.ATTACH, self._attach, 1),
            (Kind.LEAF_TRUNCATE, self._truncate_leaf, 1),
        ):
            if kind in self.kinds:
                choices[action] = weight
        if Kind.SAVEPOINTS in self.kinds and client.open:
            choices[self._savepoint] = 5
        (action,) = self.draw.choices(list(choices), list(choices.values()))
        action(client)

    def _savepoint(self, client: Client) -> None:
        if client.savepoints and self.draw.random() < 0.5:
            verb = self.draw.choice(("rollback to savepoint s", "release savepoint s"))
            client.savepoints -= 1
            client.conn.execute(verb)
            if verb.startswith("rollback") and self.draw.random() < 0.5:
                # It stays after a rollback to it, until it is released.
                client.conn.execute("release savepoint s")
            elif verb.startswith("rollback"):
                client.savepoints += 1
            self.done[verb] += 1
        elif client.savepoints < SAVEPOINTS_MAX:
            client.conn.execute("savepoint s")
            client.savepoints += 1
            self.done["savepoint"] += 1

    def _insert(self, client: Client, conflict: str = "") -> None:
        table = self.table(client, leaves=True)
        columns = [c for c in table.stored if c.required or self.draw.random() < 0.9]
        if not columns:
            self.attempt(client, "insert", f"insert into {table.name} default values")
            return
        count = self.draw.choice((1, 1, 2, 5, 30))
        rows = [[self.value(column) for column in columns] for _ in range(count)]
        names = ", ".join(quoted(column.name) for column in columns)
        row = ", ".join(f"%s::text::{column.type}" for column in columns)
        self.attempt(
            client,
            f"insert{conflict[:12]}",
            f"insert into {table.name} ({names.replace('%', '%%')})"
            f" values {', '.join(f'({row})' for _ in rows)}{conflict}",
            [value for values in rows for value in values],
        )

    def _upsert(self, client: Client) -> None:
        if self.draw.random() < 0.5:
            self._insert(client, " on conflict do nothing")
            return
        # The tables' names are the generator's own here: an upsert must know its index.
        table, key, target = self.draw.choice(
            [("plain", "id", "note"), ("words", "word", "n"), ("parts", "id", "v")]
        )
        loose = "note" if table == "plain" else "n" if table == "words" else "v"
        kind = {"plain": "bigint", "words": "text", "parts": "integer"}[table]
        value = {"words": "7"}.get(table, "upserted")
        self.attempt(
            client,
            "upsert",
            f"insert into {table} ({key}, {loose}) values (%s::text::{kind}, {value!r})"
            f" on conflict ({key}) do update set {target} = excluded.{target}",
            [self.value(TableColumn(key, kind, True, False, False, True))],
        )

    def _update(self, client: Client) -> None:
        table = self.table(client, leaves=True)
        loose = table.loose
        if not loose:
            return
        chosen = self.draw.sample(loose, self.draw.randint(1, min(2, len(loose))))
        assignments = ", ".join(
            f"{quoted(column.name).replace('%', '%%')} = %s::text::{column.type}"
            for column in chosen
        )
        self.attempt(
            client,
            "update",
            f"update {self.scope(table)} t set {assignments} where {self.some(5)}",
            [self.value(column) for column in chosen],
        )

    def _delete(self, client: Client) -> None:
        table = self.table(client, leaves=True)
        self.attempt(client, "delete", f"delete from {self.scope(table)} t where {self.some(7)}")

    def _change_key(self, client: Client) -> None:
        table = self.table(client)
        keys = [column for column in table.columns if column.key]
        if not keys:
            return
        column = self.draw.choice(keys)
        name = quoted(column.name)
        if column.type in ("integer", "bigint"):
            change = self.draw.choice((f"{name} + 17", f"-{name}", f"{name} * 3 - 40"))
        else:
            change = self.draw.choice((f"{name} || '''x'", f"reverse({name})"))
        self.attempt(
            client,
            "key change",
            f"update {table.name} t set {name} = {change} where {self.some(6)}",
        )

    def _swap(self, client: Client) -> None:
        unique = client.conn.execute(
            "select c.conrelid::regclass::text, a.attname::text from pg_constraint c"
            " join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]"
            " where c.contype = 'u' and c.condeferrable"
        ).fetchone()
        if unique is None:
            return
        table, column = unique[0], quoted(unique[1])
        self.attempt(
            client,
            "swap",
            f"update {table} set {column} = case when {column} % 2 = 0 then {column} + 1"
            f" else {column} - 1 end where {column} < {self.draw.randint(4, 40)}",
        )

    def _truncate(self, client: Client) -> None:
        tables = source_tables(client.conn)
        chosen = self.draw.sample(tables, self.draw.choice((1, 1, 2, 3)))
        names = ", ".join(table.name for table in chosen)
        options = self.draw.choice(("", " cascade", " restart identity", " cascade"))
        self.attempt(client, "truncate", f"truncate {names}{options}")

    def _truncate_leaf(self, client: Client) -> None:
        leaves = [t for t in source_tables(client.conn, leaves=True) if t.partition]
        if leaves:
            name = self.draw.choice(leaves).name
            self.attempt(client, "truncate leaf", f"truncate {name}")

    def _copy(self, client: Client) -> None:
        table = self.table(client, leaves=True)
        columns = table.stored
        if not columns:
            return
        names = ", ".join(quoted(column.name) for column in columns)
        rows = [[self.value(column) for column in columns] for _ in range(10)]
        try:
            with client.conn.cursor().copy(f"copy {table.name} ({names}) from stdin") as copy:
                for row in rows:
                    copy.write_row(row)
        except REFUSALS as error:
            self.refuse(client, "copy", error)
        else:
            self.done["copy"] += 1

    def _message(self, client: Client) -> None:
        transactional = self.draw.random() < 0.6
        self.attempt(
            client,
            "message",
            "select pg_logical_emit_message(%s, 'app', %s)",
            [transactional, f"message {self.number()}"],
        )
