"""Run one query over snapshots: parse, resolve, load what it reads, answer."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eventlog.changes.arrow import require_cast
from eventlog.changes.duck import locked_connection
from eventlog.changes.quantities import byte_count
from eventlog.errors import EnvironmentFault, EventLogError, UnknownColumn, UsageError
from eventlog.snapshots.snapshot import Snapshot
from eventlog.snapshots.sql.answering import answer
from eventlog.snapshots.sql.loading import Loader, Terms
from eventlog.snapshots.sql.naming import Source, places, resolve
from eventlog.snapshots.sql.parsing import parse
from eventlog.snapshots.sql.result import Result

MEMORY = "1GiB"
"""What DuckDB may take, on every machine: where it spills may order groups otherwise (I7)."""

MEMORY_BYTES_MIN, MEMORY_BYTES_MAX = 32 << 20, 1 << 60
"""Below it fails on its own buffers; more is no number to it."""

THREADS_MAX = 256
"""DuckDB makes all of them, whatever the machine."""

_COLUMN = re.compile(r'column (?:named )?"([^"]+)"', re.IGNORECASE)
_KIND = re.compile(r"[A-Z][\w ]* Error: ")
_LINE = re.compile(r"LINE (\d+): ")


def run(
    snapshot: Snapshot,
    query: str,
    others: Mapping[str, Snapshot],
    *,
    terms: Terms,
    threads: int,
    memory_limit: str | int = MEMORY,
) -> Result:
    """Answer a query over the streams of a snapshot, and others under their aliases.

    Only the tables that it names are rebuilt, and of them only the columns that it can mean; they
    come to DuckDB piece by piece, and the rows come from it so. What outgrows
    `memory_limit` is on disk.
    Raises UsageError for what is wrong with the query, UnknownTable, SnapshotRefused,
    ValueDoesNotFit, and EnvironmentFault where memory or disk do not suffice.
    """
    known = places(snapshot, others)
    memory_bytes = _memory_bytes(memory_limit)
    _require_threads(threads)
    with _directory() as directory:
        spill = directory / "spill"
        spill.mkdir(mode=0o700)
        connection = locked_connection(
            threads=threads, spill_dir=str(spill), memory_bytes=memory_bytes
        )
        sources: dict[str, Source] = {}
        try:
            parsed = parse(connection, query)
            paths: dict[str, list[tuple[str, ...]]] = {}
            for path in parsed.paths:
                source = resolve(path, known, list(snapshot.parts))
                identity = f"{source.place.alias} {source.kind} {source.name}"
                sources[identity] = source
                paths.setdefault(identity, []).append(path)
            _require_different(paths)
            _require_casts(terms, list(sources.values()))
            loader = Loader(connection=connection, terms=terms, names=parsed.names)
            for identity, source in sources.items():
                loader.load(source, _different(paths[identity]))
            rows = answer(connection, query, directory / "rows")
        except EventLogError:
            raise
        except Exception as error:
            raise _explained(error, list(sources.values())) from error
        finally:
            connection.close()
    cuts = {source.place.alias: source.place.part.cut for source in sources.values()}
    return Result(rows, cuts=cuts, unfit=loader.unfit)


def _require_different(paths: Mapping[str, Sequence[tuple[str, ...]]]) -> None:
    """Raise UsageError where two tables have one name to DuckDB, which does not look at case."""
    owners: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {}
    for identity, written in paths.items():
        for path in written:
            # What is left out of a name is `memory.main`, and both may be names of the log's.
            whole = ("memory", "main")[: 3 - len(path)] + path
            owner, other = owners.setdefault(tuple(map(str.lower, whole)), (identity, path))
            if owner != identity:
                case = " differ by case alone" if len(path) == len(other) else " are one name"
                raise UsageError(
                    f"tables {'.'.join(other)} and {'.'.join(path)}{case}, which one query does "
                    "not tell apart",
                    hint="ask one of them under another name: schema.table, or an alias",
                )


def _require_casts(terms: Terms, sources: Sequence[Source]) -> None:
    """Raise UnknownColumn for a cast of a column that no table of the query has; UsageError."""
    require_cast(terms.cast)
    known = [name for source in sources if source.version for name in source.version.names]
    for name in terms.cast:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[:10]
            raise UnknownColumn(
                f"no table of the query has a column {name!r} to cast",
                hint=f"there is {', '.join(near) or 'no column'}",
            )


def _memory_bytes(memory: str | int) -> int:
    found = byte_count(memory)
    if found < MEMORY_BYTES_MIN:
        raise UsageError(
            f"memory of {memory} is too little for a query",
            hint=f"give it {MEMORY_BYTES_MIN >> 20} MiB or more, as in 2GB",
        )
    if found > MEMORY_BYTES_MAX:
        raise UsageError(
            f"memory of {found:,} bytes is more than there is anywhere", hint="as in 2GB"
        )
    return found


def _require_threads(threads: int) -> None:
    if type(threads) is not int or not 1 <= threads <= THREADS_MAX:
        raise UsageError(
            f"threads={threads!r} is no number of threads", hint=f"it is from 1 to {THREADS_MAX}"
        )


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory of the query's own for what outgrows memory."""
    try:
        directory = tempfile.TemporaryDirectory(prefix="eventlog-sql-")
    except OSError as error:
        raise EnvironmentFault(
            f"no directory for large intermediate results can be made: {error}",
            hint="TMPDIR names where: a directory that is there, writable, and has room",
        ) from error
    with directory as path:
        yield Path(path)


def _different(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Those that DuckDB tells apart."""
    return list({tuple(map(str.lower, path)): path for path in reversed(paths)}.values())


def _explained(error: Exception, sources: Sequence[Source]) -> BaseException:
    """DuckDB's error in one sentence, with its position and what could be meant."""
    import duckdb

    message = str(error)
    # Ctrl-C: DuckDB takes the signal, and raises this in place of KeyboardInterrupt.
    if isinstance(error, duckdb.InterruptException) or message == "Query interrupted":
        return KeyboardInterrupt()
    # Once rows come, what goes wrong has the words of DuckDB, and no class of its.
    of_reader = isinstance(error, OSError) and _KIND.match(message)
    if not isinstance(error, duckdb.Error) and not of_reader:
        return error
    cause, where = _cause(message)
    if message.startswith(("Out of Memory Error", "IO Error")):
        return EnvironmentFault(
            f"the query needs more than there is: {cause}",
            hint="name fewer columns, filter earlier, give it more memory (memory_limit=, "
            "--memory-limit), or a temporary directory with more room (TMPDIR)",
        )
    return UsageError(f"the query fails{where}: {cause}", hint=_hint(message, sources))


def _cause(message: str) -> tuple[str, str]:
    """The first sentence, and where DuckDB points at."""
    lines = message.splitlines()
    cause = lines[0].partition("Error: ")[2] or lines[0]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        found = _LINE.match(line)
        if found is not None:
            where = f" at line {found[1]}"
            # A long line is shown from its middle on, and then no column can be told.
            if "^" in below and not line[found.end() :].startswith("..."):
                where += f", column {below.index('^') - found.end() + 1}"
            return cause.rstrip("!."), where
    return cause.rstrip("!."), ""


def _hint(message: str, sources: Sequence[Source]) -> str:
    column = _COLUMN.search(message)
    columns = {
        name: source.name
        for source in sources
        for name in (source.version.names if source.version else _EVENT_COLUMNS)
    }
    if column is not None and column[1].lower() == "_offset":
        return "beside whole rows (*, or a table's name) it is not there: name the columns"
    if column is not None and columns:
        near = difflib.get_close_matches(column[1], columns, n=3) or list(columns)[:10]
        return f"there is {', '.join(near)}"
    meant = re.search(r'Did you mean "([^"]+)"', message)
    if meant is not None:
        return f"there is {meant[1]}"
    return "queries are written in DuckDB's SQL: https://duckdb.org/docs/stable/sql/introduction"


_EVENT_COLUMNS = ("_offset", "_time", "key", "value")


def as_snapshots(others: Mapping[str, Any]) -> Mapping[str, Snapshot]:
    """The aliases of a call. Raises UsageError for what is no snapshot."""
    for alias, other in others.items():
        if not isinstance(other, Snapshot):
            raise UsageError(
                f"{alias}= is no snapshot",
                hint=f"give one: sql(query, {alias}=log.snapshot('shop', at='2026-01-31'))",
            )
    return others
