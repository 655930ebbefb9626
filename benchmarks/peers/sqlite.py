"""SQLite: WAL, synchronous=FULL, one transaction a call."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.appender import Appender
from benchmarks.load import Load
from eventlog.engine import now_us

INSERT = "insert into events (time, value) values (?, ?)"


def of_records(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Records encoded before, as blobs."""
    found = database(directory / "records.sqlite", "blob", end)

    def append_all() -> None:
        for call in load.records:
            rows = [(now_us(), record) for record in call]
            with found:
                found.executemany(INSERT, rows)

    return Appender(append_all=append_all, stored=_count(found), version=sqlite3.sqlite_version)


def of_json(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Mappings, through json.dumps into text."""
    found = database(directory / "json.sqlite", "text", end)

    def append_all() -> None:
        for call in load.values:
            rows = [(now_us(), json.dumps(value)) for value in call]
            with found:
                found.executemany(INSERT, rows)

    return Appender(append_all=append_all, stored=_count(found), version=sqlite3.sqlite_version)


def database(path: Path, kind: str, end: ExitStack) -> sqlite3.Connection:
    """A new database with the table `events (id, time, value)`, as durable as SQLite can be."""
    made = sqlite3.connect(path)
    end.callback(made.close)
    mode = made.execute("pragma journal_mode = wal").fetchone()
    assert mode == ("wal",)
    made.execute("pragma synchronous = full")
    made.execute(f"create table events (id integer primary key, time integer, value {kind})")
    return made


def reader(path: Path, end: ExitStack) -> sqlite3.Connection:
    """Another connection to a database, with nothing of it in its own cache yet."""
    opened = sqlite3.connect(path)
    end.callback(opened.close)
    return opened


def _count(found: sqlite3.Connection) -> Callable[[], int]:
    def stored() -> int:
        number: int = found.execute("select count(*) from events").fetchone()[0]
        return number

    return stored
