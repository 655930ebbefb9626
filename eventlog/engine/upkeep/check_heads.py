"""The integrity check of streams' heads: what a stream's row says against what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventlog.engine import ids, index, rows
from eventlog.engine.rows import TIME_MIN
from eventlog.engine.store import Store, Txn
from eventlog.engine.upkeep.violation import Report
from eventlog.errors import EventLogError

if TYPE_CHECKING:
    from eventlog.engine.upkeep.check_rows import StreamState, Survey


def check_heads(store: Store, txn: Txn, found: Survey, report: Report) -> None:
    """Report ends, times, counts and tails that contradict entries and rows, and ids."""
    for state in found.streams.values():
        for what in _end(state):
            report.add("I1", "head", what, stream=state.row.name)
        for what in (*_counts(state), *_tail(store, txn, state)):
            report.add("head", "head", what, stream=state.row.name)
    known = [state.row for state in found.streams.values()]
    for where, what in ids.damages(store, txn, known):
        report.add("ids", where, what)
    if not report.violations:
        _found_by_key(store, txn, found, report)


def _found_by_key(store: Store, txn: Txn, found: Survey, report: Report) -> None:
    # What a walk over all rows sees, a look-up may miss: a damaged page whose keys are out of
    # order. Readers look up.
    for state in found.streams.values():
        row = state.row
        try:
            if rows.stream_row(store, txn, row.name) != row:
                report.add("meta", "row", "looked up, it is another", stream=row.name)
            rows.consumer_rows(store, txn, row)
            rows.schema_maps(store, txn, row)
            rows.source_state(store, txn, row)
        except EventLogError as error:
            report.add("store", "rows", f"looked up, {error}", stream=row.name)


def _end(state: StreamState) -> list[str]:
    row, last = state.row, state.last
    faults = []
    if not 0 <= row.start <= row.end:
        faults.append(f"it begins at {row.start} and ends at {row.end}")
    if not state.entries:
        if row.end != row.start:
            faults.append(f"no entry covers [{row.start}, {row.end})")
    elif last is not None:
        if last.stop != row.end:
            faults.append(f"its last entry ends at {last.stop}, not at the end {row.end}")
        if last.time_running_max != row.time_running_max:
            what = f"its running greatest time {row.time_running_max} is not that of its"
            faults.append(f"{what} last entry, {last.time_running_max}")
    if not row.end and row.time_running_max != TIME_MIN:
        faults.append("it has no records and a greatest time")
    return faults


def _counts(state: StreamState) -> list[str]:
    row = state.row
    faults = []
    if state.consumers != row.consumers:
        faults.append(f"{row.consumers} consumers were made, {state.consumers} rows can be read")
    if len(state.schemas) != row.schemas:
        found = len(state.schemas)
        faults.append(f"{row.schemas} schema versions were stored, {found} rows can be read")
    return faults


def _tail(store: Store, txn: Txn, state: StreamState) -> list[str]:
    """Runs of a tail: each begins with an entry where the one before ends, up to the end."""
    cursor = txn.cursor(db=store.index)
    due: int | None = None
    for _, first_offset, count, _, _ in state.row.tail:
        if due is not None and first_offset != due:
            return [f"a run of its tail begins at {first_offset}, not at {due}"]
        positioned = cursor.set_range(index.key(state.row.id, first_offset))
        for place in range(count):
            key = cursor.key() if positioned else b""
            stream_id, offset = index.split_key(key) if key else (0, 0)
            if stream_id != state.row.id or (not place and offset != first_offset):
                return [f"a run of {count} entries of its tail is not at {first_offset}"]
            positioned = cursor.next()
        following = index.split_key(cursor.key()) if positioned else (0, 0)
        due = following[1] if following[0] == state.row.id else state.row.end
    if due is not None and due != state.row.end:
        return [f"the runs of its tail end at {due}, not at its end"]
    return []
