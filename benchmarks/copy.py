"""Does the initial copy, durable, keep up with `COPY ... TO STDOUT` to /dev/null?

One table, which the server holds in memory. `psql` copies it to /dev/null; so does a bare loop over
libpq's rows, which is how a program usually takes them; the capture stores every row durably in a
new log, with the number of connections that it has by default, and with one. All are processes of
their own. The server does not flush (fsync=off), so that the disk is the log's alone.

The capture's time runs from where its snapshot is there to the last row's commit (`rate`), and of
its whole process, with slot, publications and a moment of streaming (`rate, whole process`). Both
times of `psql` are its process's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from benchmarks.capture import (
    CPU,
    DSN_VARIABLE,
    FILL,
    MEMORY,
    PROCESS_CPU,
    PROCESS_RATE,
    RATE,
    TABLE,
    client_bindir,
    server_of,
)
from benchmarks.child import ChildFailed, Usage, run_child
from benchmarks.measure import Ratio, Result, Sample, figures_of, in_turn, ratio_samples
from benchmarks.options import Options
from cdc.options import Options as CaptureOptions
from cdc.postgres.server import EmbeddedServer

QUESTION = "does the initial copy, durable, keep up with COPY TO STDOUT to /dev/null?"
COPIED = "public.orders"
WORKERS = CaptureOptions(tables=()).copy_workers

PSQL = "psql"
LIBPQ = "a libpq loop"
COPY = f"eventlog capture, {WORKERS} connections"
COPY_ONE = "eventlog capture, 1 connection"
ROLES = {PSQL: "peer", LIBPQ: "peer", COPY: "subject", COPY_ONE: "subject"}

SIZE_RATE = "text"
UNITS = {
    RATE: "rows/s",
    SIZE_RATE: "MB/s",
    PROCESS_RATE: "rows/s",
    CPU: "µs/row",
    PROCESS_CPU: "µs/row",
    MEMORY: "MB",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A running server whose table has `rows` rows, `text_bytes` as COPY writes them."""

    server: EmbeddedServer
    rows: int
    text_bytes: int


def run(options: Options) -> Result:
    """Fill a table, then let all copy it."""
    rows = options.rows or (200_000 if options.quick else 3_000_000)
    with (
        _filled(options, rows) as filled,
        TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made,
    ):
        directory = Path(made)
        taken = in_turn(
            {
                PSQL: lambda: _psql(filled, directory),
                LIBPQ: lambda: _libpq(filled, directory),
                COPY: lambda: _copy(filled, directory, WORKERS),
                COPY_ONE: lambda: _copy(filled, directory, 1),
            },
            samples=options.samples,
            note=lambda text: options.note(f"copy: {text}"),
        )
        version = filled.server.version
    case = f"{rows:,} rows"
    figures = tuple(figures_of(taken, case, roles=ROLES, units=UNITS))
    ratios = tuple(
        Ratio(
            case=case,
            quantity=quantity,
            of=subject,
            to=peer,
            samples=ratio_samples(taken, quantity, of=subject, to=peer),
            at_least=0.85 if (subject, peer, quantity) == (COPY, PSQL, RATE) else None,
        )
        for peer in (PSQL, LIBPQ)
        for subject in (COPY, COPY_ONE)
        for quantity in (RATE, PROCESS_RATE, PROCESS_CPU)
    )
    about: dict[str, Any] = {
        "postgres": version,
        "rows": rows,
        "text_bytes": filled.text_bytes,
        "columns": 8,
        "connection": "loopback TCP, plain",
    }
    return Result(name="copy", question=QUESTION, about=about, figures=figures, ratios=ratios)


@contextmanager
def _filled(options: Options, rows: int) -> Iterator[Filled]:
    with server_of(options) as server:
        options.note(f"copy: filling PostgreSQL {server.version} with {rows:,} rows")
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(TABLE)
            conn.execute(FILL)
            conn.execute("call fill(%s, %s)", (rows, options.transaction_rows))
            # Hint bits and visibility are set once, for whoever reads first.
            conn.execute("vacuum analyze orders")
            with conn.cursor().copy(f"copy {COPIED} to stdout") as lines:
                text_bytes = sum(map(len, lines))
        yield Filled(server=server, rows=rows, text_bytes=text_bytes)


def _psql(filled: Filled, directory: Path) -> Sample:
    program = client_bindir(filled.server, "psql") / "psql"
    words = ["--no-psqlrc", f"--dbname={filled.server.dsn}", "--output=/dev/null"]
    used = run_child([str(program), *words, f"--command=copy {COPIED} to stdout"], {}, directory)
    return _sample(filled, used, seconds=used.ended - used.started, cpu_s=used.cpu_s)


def _libpq(filled: Filled, directory: Path) -> Sample:
    command = [sys.executable, "-m", "benchmarks.libpq_process", DSN_VARIABLE, COPIED]
    return _sample_told(filled, run_child(command, {DSN_VARIABLE: filled.server.dsn}, directory))


def _copy(filled: Filled, directory: Path, workers: int) -> Sample:
    with TemporaryDirectory(prefix="log-", dir=directory) as made:
        command = [sys.executable, "-m", "benchmarks.copy_process", DSN_VARIABLE]
        command += [str(Path(made) / "log"), str(workers)]
        used = run_child(command, {DSN_VARIABLE: filled.server.dsn}, directory)
    return _sample_told(filled, used)


def _sample_told(filled: Filled, used: Usage) -> Sample:
    """A sample of a process of ours, which must have got every row."""
    told = json.loads(used.output)
    if told["rows"] != filled.rows:
        raise ChildFailed(f"{told['rows']} rows came, not {filled.rows}")
    seconds = told["ended"] - told["started"]
    sample = _sample(filled, used, seconds=seconds, cpu_s=told["cpu_s"])
    return {**sample, MEMORY: used.anonymous_bytes / 1e6}


def _sample(filled: Filled, used: Usage, *, seconds: float, cpu_s: float) -> dict[str, float]:
    return {
        RATE: filled.rows / seconds,
        SIZE_RATE: filled.text_bytes / seconds / 1e6,
        PROCESS_RATE: filled.rows / (used.ended - used.started),
        CPU: cpu_s / filled.rows * 1e6,
        PROCESS_CPU: used.cpu_s / filled.rows * 1e6,
    }
