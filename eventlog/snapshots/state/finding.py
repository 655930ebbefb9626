"""Finding a table's state at a cut, or the reason why it has none (D12 to D15)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from eventlog.changes.change import Op
from eventlog.changes.change_view import source_codec
from eventlog.changes.cut import utc
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.split import OPS
from eventlog.engine import Engine
from eventlog.errors import SnapshotRefused
from eventlog.snapshots.state.checkpoint_folder import CheckpointFolder
from eventlog.snapshots.state.live_pass import Progress
from eventlog.snapshots.state.steps import Chunk, Steps, relation_parts
from eventlog.snapshots.state.table_state import TableState, table_state

DEAR_RECORDS = 500_000
DEAR_TIMES = 4
"""A fold that read at least so many records, and so many times the rows that it found, is dear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """One table of a captured stream, as the version at the cut `stop` names it."""

    engine: Engine
    history: SchemaHistory
    stop: int
    table: Schema


def found_state(
    cut: Cutting,
    *,
    start: int | None,
    as_inserts: bool,
    as_is: bool,
    progress: Progress | None,
    from_log: bool = False,
) -> TableState:
    """Fold the table up to the cut; rows before `start` are left out. Raises SnapshotRefused.

    With `from_log` no checkpoint has a say in it.
    """
    table, stop = cut.table, cut.stop
    if table.inserts_only and not as_inserts:
        raise SnapshotRefused(
            f"table {table.table} has no replica identity, so its updates and deletes are not "
            "captured, and its state is not known",
            hint="take as_inserts=True (--as-inserts) for every row inserted, or give the table a "
            "primary key and copy it again",
        )
    folder = CheckpointFolder(cut.engine, cut.history)
    state = table_state(
        cut.engine,
        cut.history,
        table,
        stop=stop,
        base=None if as_inserts or from_log else folder.nearest(table.relation, stop),
        as_inserts=as_inserts,
        progress=progress,
    )
    facts = state.facts
    if not facts.seen or (facts.copying is not None and not as_is):
        _refuse_incomplete(cut, copying=facts.copying)
    if not as_is:
        _refuse_unseen(cut, facts.copied_from)
    if facts.lost is not None and not as_is:
        raise SnapshotRefused(
            f"changes of table {table.table} below offset {stop} were lost {_span(facts.lost)}",
            hint="cut behind the next complete copy of the table, or copy it again",
        )
    if not (as_inserts or as_is or from_log):
        _keep_if_dear(cut, state, folder)
    return state if start is None else state.from_start(start)


def _keep_if_dear(cut: Cutting, state: TableState, folder: CheckpointFolder) -> None:
    """Store a state that took much more reading than it has rows, where the log can be written."""
    if state.records >= max(DEAR_RECORDS, DEAR_TIMES * state.num_rows):
        with suppress(OSError):
            folder.write(state, source_codec(cut.engine, cut.history), stop=cut.stop)


def _refuse_incomplete(cut: Cutting, *, copying: int | None) -> None:
    """Refuse a cut inside an open copy, or before the table's first one begins."""
    if copying is None:
        first = next(_later(cut), None)
        if first is None or first[1] is not Op.COPY_BEGIN:
            return
    exact = _first_exact(cut, begun=copying)
    raise SnapshotRefused(
        f"the copy of table {cut.table.table} is not complete at offset {cut.stop}",
        hint="the copy has not ended yet"
        if exact is None
        else f"its state is whole from {_dated(cut, exact)}",
    )


def _refuse_unseen(cut: Cutting, copied_from: int | None) -> None:
    """Refuse a cut at which rows may differ from the source's without a record that says so."""
    stop = cut.stop
    found = cut.history.unseen(cut.table.relation, stop, copied_from=copied_from)
    if found is None:
        return
    exact = _first_exact(cut, begun=None)
    advice = f"cut at {found.unseen_since} or before, or behind its next copy"
    when = advice if exact is None else f"it is exact from {_dated(cut, exact)}"
    since = found.unseen_since
    assert since is not None
    if since < 0:
        when = "its copy has not ended yet" if exact is None else when
        raise SnapshotRefused(
            f"table {cut.table.table} has no state at offset {stop}: {found.unseen_reason}",
            hint=f"{when}; as_is=True (--as-is) takes what the log holds",
        )
    raise SnapshotRefused(
        f"rows of table {cut.table.table} changed at the source without a record that shows it, "
        f"between offset {since} and {stop}: {found.unseen_reason}",
        hint=f"{when}; as_is=True (--as-is) takes what the log holds",
    )


def _dated(cut: Cutting, exact: int) -> str:
    """An offset behind a record, beside that record's time: a cut by time lies behind that."""
    last = cut.engine.transaction_time(cut.history.stream, exact - 1)
    return f"{exact} on, by time after {utc(last).isoformat()}"


def _first_exact(cut: Cutting, *, begun: int | None) -> int | None:
    """The first offset behind the cut at which the table's state is known again.

    `begun` is where a copy began that is open at the cut.
    """
    for offset, op in _later(cut):
        if op is Op.COPY_BEGIN:
            begun = offset
        elif op is Op.COPY_END and begun is not None:
            if cut.history.unseen(cut.table.relation, offset + 1, copied_from=begun) is None:
                return offset + 1
            begun = None
    return None


def _later(cut: Cutting) -> Iterator[tuple[int, Op]]:
    """The table's records behind the cut; of rows that follow each other, the first."""
    _, end = cut.engine.bounds(cut.history.stream)
    read = relation_parts(cut.engine, cut.history, cut.table.relation)
    steps = Steps(read, keep_bytes=0)
    for part in steps.walk(cut.stop, end):
        for step in part.steps:
            if isinstance(step, Chunk):
                yield int(step.offsets[0]), OPS[step.ops[0]]
            elif step.raw.relation is not None and step.raw.op is not Op.RENAME:
                yield step.offset, step.raw.op


def _span(lost: Mapping[str, Any]) -> str:
    start, stop = lost.get("from"), lost.get("to")
    if lost.get("lost_in") == "log":
        return f"by damage to the log, at offsets [{start}, {stop})"
    span = "" if start is None or stop is None else f", from {start} to {stop}"
    return f"at the source{span}"
