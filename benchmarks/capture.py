"""Does capture, durable, keep up with the walsender?

One slot holds a backlog of inserted rows. Each contender takes a fresh copy of that slot, in turn:
`pg_recvlogical` writes to /dev/null; the capture stores everything durably in a new log. Both are
processes of their own. The server does not flush (fsync=off), so that the disk is the log's alone.
The limit is the server's walsender, whose CPU is shown beside. It sends every row by itself, so a
receiver that lets some gather makes it faster, too: how fast is what the capture's own transport
reaches with nothing behind it (`drained`), and what it reaches through libpq, which it uses where a
connection is encrypted.

Wall time counts from the start of streaming (`rate`), and from the start of the process
(`rate, whole process`). `pg_recvlogical` starts to stream within its first hundredth of a second,
so that both of its times are of the whole process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from benchmarks.child import ChildFailed, Usage, run_child
from benchmarks.measure import Ratio, Result, Sample, figures_of, in_turn, ratio_samples
from benchmarks.options import Options
from cdc.postgres.server import EmbeddedServer, wheel_bindir

QUESTION = "does capture, durable, keep up with pg_recvlogical to /dev/null?"
SLOT = "bench"
PUBLICATION = "bench"
DSN_VARIABLE = "BENCHMARK_DSN"
FREE_S = 30.0

PEER = "pg_recvlogical"
CAPTURE = "eventlog capture"
DRAIN = "drained"
LIBPQ = "drained through libpq"
ROLES = {PEER: "peer", CAPTURE: "subject", DRAIN: "limit", LIBPQ: "peer"}

RATE = "rate"
PROCESS_RATE = "rate, whole process"
CPU = "CPU"
PROCESS_CPU = "CPU, whole process"
SENDER_CPU = "walsender's CPU"
MEMORY = "RssAnon, greatest"
UNITS = {
    RATE: "rows/s",
    PROCESS_RATE: "rows/s",
    CPU: "µs/row",
    PROCESS_CPU: "µs/row",
    SENDER_CPU: "µs/row",
    MEMORY: "MB",
}

TABLE = """
create table orders (
    id bigint primary key, customer_id integer not null, amount numeric(10, 2) not null,
    country text not null, paid boolean not null, weight double precision,
    created_at timestamptz not null, note text
)
"""

FILL = """
create procedure fill(rows integer, each integer) language plpgsql as $$
begin
    for low in 0 .. rows - 1 by each loop
        insert into orders
        select i, i * 7919 % 50000, (i * 104729 % 1000000) / 100.0,
               (array['NL', 'DE', 'FR', 'BE', 'US'])[1 + i % 5], i % 3 = 0,
               case when i % 10 > 0 then i % 977 / 7.0::float8 end,
               timestamptz '2026-01-01 00:00Z' + i * interval '731 ms',
               case when i % 4 = 0 then 'leave it with the neighbours at number ' || i % 100 end
        from generate_series(low::bigint, least(low + each, rows) - 1) as i;
        commit;
    end loop;
end $$
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """A running server whose slot holds `rows` inserts, ending at the LSN `end`."""

    server: EmbeddedServer
    rows: int
    end: str


def run(options: Options) -> Result:
    """Fill a server, then let both drain copies of its slot."""
    rows = options.rows or (100_000 if options.quick else 1_000_000)
    numbers = count(1)
    with (
        _backlog(options, rows) as backlog,
        TemporaryDirectory(prefix="benchmark-", dir=options.directory) as made,
    ):
        directory = Path(made)

        def peer() -> Sample:
            return _measured(backlog, next(numbers), directory, _pg_recvlogical)

        def subject() -> Sample:
            return _measured(backlog, next(numbers), directory, _capture)

        def limit() -> Sample:
            return _measured(backlog, next(numbers), directory, _drained)

        def libpq() -> Sample:
            return _measured(backlog, next(numbers), directory, _drained_through_libpq)

        taken = in_turn(
            {PEER: peer, CAPTURE: subject, DRAIN: limit, LIBPQ: libpq},
            samples=options.samples,
            note=lambda text: options.note(f"capture: {text}"),
        )
        version = backlog.server.version
    case = f"{rows:,} rows, {options.transaction_rows:,} a transaction"
    figures = tuple(figures_of(taken, case, roles=ROLES, units=UNITS))
    targets: dict[str, dict[str, float]] = {RATE: {"at_least": 0.95}, CPU: {"at_most": 0.8}}
    ratios = tuple(
        Ratio(
            case=case,
            quantity=quantity,
            of=CAPTURE,
            to=to,
            samples=ratio_samples(taken, quantity, of=CAPTURE, to=to),
            **(targets.get(quantity, {}) if to == PEER else {}),
        )
        for to in (PEER, DRAIN)
        for quantity in (RATE, PROCESS_RATE, CPU, PROCESS_CPU)
    )
    ratios += tuple(
        Ratio(
            case=case,
            quantity=quantity,
            of=DRAIN,
            to=LIBPQ,
            samples=ratio_samples(taken, quantity, of=DRAIN, to=LIBPQ),
        )
        for quantity in (RATE, CPU)
    )
    about: dict[str, Any] = {
        "postgres": version,
        "rows": rows,
        "transaction_rows": options.transaction_rows,
        "columns": 8,
        "connection": "loopback TCP, plain",
    }
    return Result(name="capture", question=QUESTION, about=about, figures=figures, ratios=ratios)


def server_of(options: Options) -> EmbeddedServer:
    """Start a server of the version that was asked for, which has no work but what is measured."""
    wheel = options.postgres == 18
    bindir = None if wheel else Path(f"/usr/lib/postgresql/{options.postgres}/bin")
    # Checkpoints would make the server's disk work fall into some samples and not into others.
    settings = {"fsync": "off", "max_wal_size": "8GB", "checkpoint_timeout": "1h"}
    settings["autovacuum"] = "off"
    return EmbeddedServer.start(bindir=bindir, settings=settings)


@contextmanager
def _backlog(options: Options, rows: int) -> Iterator[Backlog]:
    with server_of(options) as server:
        options.note(f"capture: filling PostgreSQL {server.version} with {rows:,} rows")
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(TABLE)
            conn.execute(f"create publication {PUBLICATION} for table orders")
            conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
            conn.execute(FILL)
            conn.execute("call fill(%s, %s)", (rows, options.transaction_rows))
            end = conn.execute("select pg_current_wal_lsn()").fetchone()
            # What lies behind the end lets the server tell that it has passed it.
            conn.execute("create table behind ()")
        assert end is not None
        yield Backlog(server=server, rows=rows, end=str(end[0]))


def _measured(
    backlog: Backlog,
    number: int,
    directory: Path,
    contender: Callable[[Backlog, str, Path], dict[str, float]],
) -> Sample:
    """Run a contender on a copy of the slot, and take its walsender's CPU."""
    slot = f"{SLOT}_{number}"
    with psycopg.connect(backlog.server.dsn, autocommit=True) as conn:
        conn.execute("select pg_copy_logical_replication_slot(%s, %s)", (SLOT, slot))
        used_before = _ended_backends_cpu_s(backlog.server)
        sample = contender(backlog, slot, directory)
        _await_free(conn, slot)
        sender_cpu_s = _ended_backends_cpu_s(backlog.server) - used_before
        conn.execute("select pg_drop_replication_slot(%s)", (slot,))
    return {**sample, SENDER_CPU: sender_cpu_s / backlog.rows * 1e6}


def _await_free(conn: psycopg.Connection[Any], slot: str) -> None:
    """Wait until the slot's walsender has ended and the server has taken note of that."""
    deadline = time.monotonic() + FREE_S
    sender = "select active_pid from pg_replication_slots where slot_name = %s"
    while conn.execute(sender, (slot,)).fetchone() != (None,):
        if time.monotonic() > deadline:
            raise TimeoutError(f"slot {slot!r} is still in use after {FREE_S:g} s")
        time.sleep(0.01)
    time.sleep(0.1)


def _ended_backends_cpu_s(server: EmbeddedServer) -> float:
    """CPU seconds of the server's processes that have ended: fields cutime and cstime."""
    fields = Path(f"/proc/{server.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _pg_recvlogical(backlog: Backlog, slot: str, directory: Path) -> dict[str, float]:
    command = [
        str(client_bindir(backlog.server, "pg_recvlogical") / "pg_recvlogical"),
        f"--dbname={backlog.server.dsn}",
        f"--slot={slot}",
        "--start",
        "--option=proto_version=1",
        f"--option=publication_names={PUBLICATION}",
        "--file=/dev/null",
        f"--endpos={backlog.end}",
    ]
    used = run_child(command, {}, directory)
    seconds = used.ended - used.started
    return _sample(backlog, used, seconds=seconds, cpu_s=used.cpu_s)


def _capture(backlog: Backlog, slot: str, directory: Path) -> dict[str, float]:
    with TemporaryDirectory(prefix="log-", dir=directory) as made:
        command = [sys.executable, "-m", "benchmarks.capture_process"]
        command += [DSN_VARIABLE, str(Path(made) / "log"), slot, PUBLICATION, backlog.end]
        used = run_child(command, {DSN_VARIABLE: backlog.server.dsn}, directory)
    return _sample_told(backlog, used)


def _drained_through_libpq(backlog: Backlog, slot: str, directory: Path) -> dict[str, float]:
    return _drained(backlog, slot, directory, "libpq")


def _drained(backlog: Backlog, slot: str, directory: Path, *way: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.drain_process"]
    command += [DSN_VARIABLE, slot, PUBLICATION, str(backlog.rows), *way]
    return _sample_told(backlog, run_child(command, {DSN_VARIABLE: backlog.server.dsn}, directory))


def _sample_told(backlog: Backlog, used: Usage) -> dict[str, float]:
    """A sample of a process of ours; what it received must be the backlog, at the first try."""
    told = json.loads(used.output)
    if told["records"] != backlog.rows or told["connections"] != 1:
        raise ChildFailed(
            f"{told['records']} records came over {told['connections']} connections, "
            f"not {backlog.rows} over one"
        )
    return _sample(
        backlog,
        used,
        seconds=told["ended"] - told["started"],
        cpu_s=told["cpu_ended"] - told["cpu_started"],
    )


def _sample(backlog: Backlog, used: Usage, *, seconds: float, cpu_s: float) -> dict[str, float]:
    return {
        RATE: backlog.rows / seconds,
        PROCESS_RATE: backlog.rows / (used.ended - used.started),
        CPU: cpu_s / backlog.rows * 1e6,
        PROCESS_CPU: used.cpu_s / backlog.rows * 1e6,
        MEMORY: used.anonymous_bytes / 1e6,
    }


def client_bindir(server: EmbeddedServer, program: str) -> Path:
    """The server's programs, or the wheel's where those were copied for another user."""
    return server.bindir if (server.bindir / program).exists() else wheel_bindir()
