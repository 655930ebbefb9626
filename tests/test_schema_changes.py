"""Random changes of a table's columns, late or live: every snapshot is right or refused."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

import cdc
import eventlog
from eventlog import Op
from eventlog.errors import SnapshotRefused
from tests.fix_capture import SAME_TEXT, captured_in_background, wal_position
from tests.fix_postgres import Database

NAMES = ("a", "b", "c", "d")
TYPES = ("int", "bigint", "text", "varchar(30)", "numeric(12, 3)")
DEFAULTS = {"int": "7", "bigint": "8", "text": "'t'", "varchar(30)": "'v'", "numeric(12, 3)": "1.5"}
VOLATILE = "(random() * 1000)::int"

Rows = Counter[tuple[Any, ...]]


@dataclass
class Actor:
    """Changes table `t` at random, and writes down how it was at each mark."""

    database: Database
    chance: random.Random
    gently: bool
    """Without what rewrites rows: then most of the log stays exact."""
    columns: dict[str, str] = field(default_factory=lambda: {"a": "int", "b": "text"})
    marks: dict[str, tuple[list[str], Rows]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    next_id: int = 1

    def begin(self) -> None:
        self.run("create table t (id int primary key, a int, b text)")
        self.run(self.insert())

    def run(self, *statements: str) -> None:
        """One transaction."""
        self.said += statements
        with psycopg.connect(self.database.dsn) as conn:
            for statement in statements:
                conn.execute(statement)

    def insert(self) -> str:
        first, self.next_id = self.next_id, self.next_id + 3
        names = ", ".join(["id", *self.columns])
        values = ", ".join(["g", *("g + 1" for _ in self.columns)])
        return (
            f"insert into t ({names}) select {values} from generate_series({first}, {first + 2}) g"
        )

    def write(self) -> str:
        one = self.chance.randrange(1, self.next_id)
        named = self.chance.choice([*self.columns, ""])
        return self.chance.choice(
            [
                self.insert(),
                f"delete from t where id = {one}",
                f"update t set {named} = {one} where id <> {one}" if named else self.insert(),
            ]
        )

    def alter(self) -> str:
        chance, columns = self.chance, self.columns
        free = [name for name in NAMES if name not in columns]
        kinds = ["add", "add", "add", "drop", "drop", "rename", "rename"]
        kind = chance.choice(kinds if self.gently else [*kinds, "retype"])
        if kind == "add" and free:
            name, type_ = chance.choice(free), chance.choice(TYPES)
            columns[name] = type_
            defaults = ["", f" default {DEFAULTS[type_]}"]
            default = chance.choice(
                defaults if self.gently else [*defaults, f" default {VOLATILE}"]
            )
            return f"alter table t add column {name} {type_}{default}"
        if kind == "rename" and free and columns:
            name, new = chance.choice(list(columns)), chance.choice(free)
            columns[new] = columns.pop(name)
            return f"alter table t rename column {name} to {new}"
        if kind == "retype" and columns:
            name, type_ = chance.choice(list(columns)), chance.choice(["text", "varchar(30)"])
            columns[name] = type_
            changed = chance.choice(["", f" using {name}::text || 'x'"])
            return (
                f"alter table t alter {name} drop default;"
                f"alter table t alter {name} type {type_}{changed}"
            )
        if columns:
            name = chance.choice(list(columns))
            del columns[name]
            return f"alter table t drop column {name}"
        return "alter table t alter id set statistics 10"

    def step(self) -> None:
        """A transaction or two, and a mark behind them."""
        kind = self.chance.randrange(6)
        if kind < 2:
            self.run(self.alter())
        elif kind == 2:
            self.run(self.alter())
            self.run(self.write())
            self.run(self.alter())
        elif kind == 3:
            self.run(self.write(), self.alter(), self.write(), self.alter(), self.write())
        elif kind == 4:
            with psycopg.connect(self.database.dsn, autocommit=True) as conn:
                statement = self.chance.choice(["vacuum full t", "truncate t", "cluster t"])
                self.said.append(statement)
                conn.execute(statement + (" using t_pkey" if statement == "cluster t" else ""))
        self.run(self.write())
        self.mark()

    def mark(self) -> None:
        """Have the log name this moment. A row before it has the columns told."""
        name = f"mark {len(self.marks)}"
        self.said.append(name)
        with psycopg.connect(self.database.dsn) as conn:
            conn.execute(self.insert())
            conn.execute("select pg_logical_emit_message(true, 'test', %s)", [name])
        with psycopg.connect(self.database.dsn) as conn:
            conn.execute(SAME_TEXT)
            names = [c.name for c in conn.execute("select * from t limit 0").description or ()]
            texts = ", ".join(f'"{name}"::text' for name in names)
            rows: Rows = Counter(conn.execute(f"select {texts} from t").fetchall())
        self.marks[name] = names, rows


def marked(log: eventlog.Log) -> dict[str, int]:
    """The cut behind each mark."""
    return {
        change.row["content"].decode(): change.offset + 1
        for change in log.stream("shop").read()
        if change.op is Op.MESSAGE and change.row is not None
    }


def compare(log: eventlog.Log, actor: Actor) -> int:
    """Every cut is exact or refused; returns how many are exact."""
    exact = 0
    for name, at in marked(log).items():
        names, expected = actor.marks[name]
        try:
            found = log.snapshot("shop", at=at).table("t")
        except SnapshotRefused:
            continue
        rows = found.to_arrow(cast=dict.fromkeys(found.schema.names, "text")).to_pylist()
        assert found.schema.names == names, (name, actor.said)
        assert Counter(tuple(row.values()) for row in rows) == expected, (name, actor.said)
        exact += 1
    return exact


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_snapshot_is_right_or_refused_however_the_columns_changed(
    seed: int, database18: Database, log: eventlog.Log
) -> None:
    assert_every_snapshot(seed, database18, log)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 150))
def test_the_same_for_many_histories(seed: int, database: Database, log: eventlog.Log) -> None:
    assert_every_snapshot(seed, database, log)


def assert_every_snapshot(seed: int, database: Database, log: eventlog.Log) -> None:
    print("seed", seed)
    actor = Actor(database, random.Random(seed), gently=seed % 2 == 0)
    actor.begin()
    source = cdc.Source("shop", database.dsn, ("public.t",))
    source.capture(log, until="current")
    actor.mark()
    for turn in range(3):
        if turn % 2:
            with captured_in_background(log, source) as running:
                running.saw("streaming")
                for _ in range(3):
                    actor.step()
                running.reached(wal_position(database))
        else:
            for _ in range(3):
                actor.step()
        source.capture(log, until="current")
        actor.mark()
        source.capture(log, until="current")
    exact = compare(log, actor)
    print(f"{exact} of {len(actor.marks)} cuts are exact")
    assert len(marked(log)) == len(actor.marks)
    last = list(actor.marks)[-1]
    log.snapshot("shop", at=marked(log)[last]).table("t")
