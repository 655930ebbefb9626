"""Statements of a random workload that change how tables are defined."""

from __future__ import annotations

from tests.source_client import Application, Client
from tests.source_tables import quoted, source_tables

COLUMNS_MAX = 8


class Definitions(Application):
    """An application whose tables change while it runs."""

    def _columns(self, client: Client) -> None:
        table = self.table(client)
        number = self.number()
        action = self.draw.choice(("add", "add", "drop", "rename"))
        if action == "add" and len(table.columns) < COLUMNS_MAX:
            declared = self.draw.choice(
                ("int", "int default 7", "text default 'it''s'", "numeric", "varchar(10)")
            )
            change = f"add c{number} {declared}"
        elif not table.loose:
            return
        else:
            name = quoted(self.draw.choice(table.loose).name)
            renamed = quoted(f"Neu {number}")
            change = f"drop {name}" if action == "drop" else f"rename {name} to {renamed}"
        self.attempt(client, f"{action} column", f"alter table {table.name} {change}")

    def _rename(self, client: Client) -> None:
        table = self.table(client)
        base = table.name.strip('"').removesuffix("_renamed").replace('""', '"')
        other = base if table.name.strip('"').endswith("_renamed") else f"{base}_renamed"
        self.attempt(client, "rename", f"alter table {table.name} rename to {quoted(other)}")

    def _retype(self, client: Client) -> None:
        table = self.table(client)
        limited = [c for c in table.loose if c.type.startswith("character varying(")]
        if not limited:
            return
        column = self.draw.choice(limited)
        wider = int(column.type.split("(")[1][:-1]) * 2
        declared = self.draw.choice((f"varchar({wider})", "text"))
        self.attempt(
            client,
            "retype",
            f"alter table {table.name} alter {quoted(column.name)} type {declared}",
        )

    def _identity(self, client: Client) -> None:
        # Without generated columns: in a whole row they make PostgreSQL 18 refuse updates.
        with_key = client.conn.execute(
            "select c.oid::regclass::text, case when i.indisprimary then 'default'"
            " else 'using index ' || quote_ident(ic.relname) end"
            " from pg_class c join pg_index i on i.indrelid = c.oid"
            " join pg_class ic on ic.oid = i.indexrelid"
            " where c.relnamespace = 'public'::regnamespace and i.indisunique and i.indimmediate"
            " and not c.relispartition and c.relkind = 'r' and not exists"
            " (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated <> '')"
            " order by 1, 2"
        ).fetchall()
        if not with_key:
            return
        table, identity = self.draw.choice(with_key)
        identity = self.draw.choice((identity, identity, "full"))
        self.attempt(client, "identity", f"alter table {table} replica identity {identity}")

    def _no_identity(self, client: Client) -> None:
        table = self.table(client)
        self.attempt(client, "no identity", f"alter table {table.name} replica identity nothing")

    def _rewrite(self, client: Client) -> None:
        table = self.table(client)
        number = self.number()
        numbers = [c for c in table.loose if c.type == "integer"]
        if numbers and self.draw.random() < 0.5:
            name = quoted(self.draw.choice(numbers).name)
            change = f"alter {name} type int using {name} + 1"
        elif len(table.columns) < COLUMNS_MAX:
            change = f"add c{number} text default gen_random_uuid()::text"
        else:
            return
        self.attempt(client, "rewrite", f"alter table {table.name} {change}")

    def _recreate(self, client: Client) -> None:
        made = [t for t in source_tables(client.conn) if t.name.startswith(("new_", "words"))]
        if not made:
            return
        name = self.draw.choice(made).name
        if self.attempt(client, "drop table", f"drop table {name}"):
            self.attempt(
                client,
                "recreate",
                f"create table {name} (word text primary key, n int, doc jsonb);"
                f"insert into {name} values ('again', 1, null)",
            )

    def _create(self, client: Client) -> None:
        name = f"new_{self.number()}"
        self.attempt(
            client,
            "create table",
            f"create table {name} (id int primary key, v text);"
            f"insert into {name} select g, 'new' from generate_series(1, 5) g",
        )

    def _attach(self, client: Client) -> None:
        leaves = client.conn.execute(
            "select inhrelid::regclass::text, inhparent::regclass::text from pg_inherits i"
            " join pg_class p on p.oid = inhparent and p.relkind = 'p' order by 1"
        ).fetchall()
        number = self.number()
        roots = [t.name for t in source_tables(client.conn) if t.kind == "p"]
        loose = [t.name for t in source_tables(client.conn) if t.name.startswith("parts_n")]
        if leaves and self.draw.random() < 0.4:
            leaf, root = self.draw.choice(leaves)
            self.attempt(client, "detach", f"alter table {root} detach partition {leaf}")
            return
        if not roots:
            return
        low = 1000 + number * 10
        if loose and self.draw.random() < 0.5:
            leaf = self.draw.choice(loose)
            self.attempt(client, "loose row", f"insert into {leaf} (id) values ({low})")
            change = f"attach partition {leaf} for values from ({low}) to ({low + 10})"
            self.attempt(client, "attach", f"alter table {roots[0]} {change}")
        else:
            name = f"parts_n{number}"
            change = f"partition of {roots[0]} for values from ({low}) to ({low + 10})"
            self.attempt(client, "create leaf", f"create table {name} {change}")
