"""Checkpoints of a log's tables: made by hand, listed, dropped.

Snapshots make them by themselves where a fold was dear, and use whichever is there; they change
what a snapshot costs, and nothing else. They lie in the log's directory under `derived/`.
"""

from __future__ import annotations

from dataclasses import dataclass

from eventlog.changes.change_view import source_codec
from eventlog.changes.schema import Schema
from eventlog.changes.schemas import SchemaHistory
from eventlog.changes.table_choice import named_at
from eventlog.changes.table_name import TableName
from eventlog.engine import Engine
from eventlog.errors import EnvironmentFault, SnapshotRefused, UsageError
from eventlog.snapshots.state.checkpoint_folder import CheckpointFolder, Stored
from eventlog.snapshots.state.finding import Cutting, found_state
from eventlog.snapshots.state.live_pass import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint of a table, called as it is now; None where its name is another's by now.

    `table` is a name as users write it, parts quoted as in SQL.
    """

    stream: str
    table: str | None
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """What was done: the checkpoints that are there now, and why tables have none at this cut."""

    checkpoints: tuple[CheckpointInfo, ...]
    refused: dict[str, str]

    @property
    def bytes(self) -> int:
        """What they take in all."""
        return sum(each.bytes for each in self.checkpoints)


def make(
    engine: Engine,
    history: SchemaHistory,
    stop: int,
    *,
    table: str | None,
    progress: Progress | None = None,
) -> Checkpointed:
    """Store the state of one table as of `stop`, or of all that have one.

    Raises SnapshotRefused where the table that was named has none, UnknownTable, EnvironmentFault
    where the directory cannot be written.
    """
    folder = CheckpointFolder(engine, history)
    refused = {}
    for schema in _tables(history, stop, table):
        cut = Cutting(engine=engine, history=history, stop=stop, table=schema)
        try:
            state = found_state(cut, start=None, as_inserts=False, as_is=False, progress=progress)
            written = folder.write(state, source_codec(engine, history), stop=stop)
        except SnapshotRefused as error:
            if table is not None:
                raise
            refused[_called(schema)] = str(error)
            continue
        except OSError as error:
            raise EnvironmentFault(
                f"a checkpoint cannot be written: {error.strerror or error}",
                hint="the log's directory must be writable, and have room",
            ) from error
        if not written:
            refused[_called(schema)] = f"its state at offset {stop} cannot be kept"
    return Checkpointed(checkpoints=listed(engine, history), refused=refused)


def drop(engine: Engine, history: SchemaHistory, *, table: str | None) -> Checkpointed:
    """Remove the checkpoints of one table, or of the stream; returns those that were there."""
    folder = CheckpointFolder(engine, history)
    _, end = engine.bounds(history.stream)
    gone: list[Stored] = []
    try:
        if table is None:
            gone = folder.drop()
        else:
            for schema in _tables(history, end, table):
                gone += folder.drop(schema.relation)
    except OSError as error:
        raise EnvironmentFault(
            f"a checkpoint cannot be removed: {error.strerror or error}",
            hint="the log's directory must be writable",
        ) from error
    return Checkpointed(checkpoints=_infos(history, end, gone), refused={})


def listed(engine: Engine, history: SchemaHistory) -> tuple[CheckpointInfo, ...]:
    """The checkpoints of a stream, by table and offset; whether they are sound is not looked at."""
    _, end = engine.bounds(history.stream)
    return _infos(history, end, CheckpointFolder(engine, history).stored())


def _infos(history: SchemaHistory, end: int, found: list[Stored]) -> tuple[CheckpointInfo, ...]:
    tables = {schema.relation: _called(schema) for schema in history.in_force(end).values()}
    infos = [
        CheckpointInfo(
            stream=history.stream,
            table=tables.get(each.relation),
            offset=each.offset,
            bytes=each.bytes,
        )
        for each in found
    ]
    return tuple(sorted(infos, key=lambda each: (each.table or "", each.offset)))


def _called(schema: Schema) -> str:
    return str(TableName(schema=schema.namespace, name=schema.name))


def _tables(history: SchemaHistory, stop: int, table: str | None) -> list[Schema]:
    if table is None:
        return list(history.in_force(stop).values())
    found = named_at(history, table, None, stop).table
    if found is None:
        raise UsageError(f"{table!r} is not one table", hint="name one, or leave it out for all")
    return [found]
