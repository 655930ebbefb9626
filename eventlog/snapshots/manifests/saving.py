"""Saving a snapshot: its tables are read and digested, and the manifest is written, pinned or not.

A pin is stored before the file is written, so that a manifest that says nothing of a failure is
pinned; where the file cannot be written the pin goes again. A transform is registered only when
all that it makes is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from eventlog.changes.arrow import Conversion
from eventlog.changes.schema import Schema
from eventlog.changes.table_name import TableName
from eventlog.engine import Engine, now_us, pins
from eventlog.engine.pins import PinRow
from eventlog.errors import UnknownStream, UsageError
from eventlog.snapshots.manifests.manifest import (
    LogIdentity,
    Manifest,
    SavedRows,
    SavedStream,
    SavedTable,
)
from eventlog.snapshots.manifests.progress_shares import Progress, share
from eventlog.snapshots.manifests.stored_rows import StoredRows
from eventlog.snapshots.manifests.transformed import (
    DECLARED,
    Transform,
    saved_output,
    saved_transform,
)
from eventlog.snapshots.table import Table
from eventlog.snapshots.transform import Transform as Registered
from eventlog.snapshots.transform.registry import register

if TYPE_CHECKING:
    from eventlog.snapshots.snapshot import Part, Snapshot

ID_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a snapshot is saved, and how it is read; see `Snapshot.save`."""

    tables: Iterable[str] | None
    columns: Mapping[str, Sequence[str]]
    as_inserts: bool
    as_is: bool
    conversion: Conversion = DECLARED


def save(
    snapshot: Snapshot,
    engine: Engine,
    path: str | os.PathLike[str],
    choice: Choice,
    transform: Transform | None,
    *,
    pin: bool,
    progress: Progress | None,
) -> Manifest:
    """Write the manifest of a snapshot's tables; see `Snapshot.save`."""
    parts = list(snapshot.parts.values())
    retained = {part.stream: engine.bounds(part.stream)[0] for part in parts}
    names = list(dict.fromkeys(_named(parts, choice.tables)))
    if not names:
        raise UsageError(
            "no table is named, so there is nothing to save", hint="leave out tables= for all"
        )
    if transform is not None and len(names) != 1:
        raise UsageError(
            f"a transform is of one table, and this snapshot would save {len(names)}",
            hint="name one: tables=['public.orders']",
        )
    if transform is None and choice.conversion != DECLARED:
        raise UsageError(
            "cast= and unfit= type what a transform is given, and there is none: a manifest is "
            "over stored texts, which always fit",
            hint="leave them out here; to_arrow, export and bundle take them, too",
        )
    chosen = _chosen(parts, names, choice.columns)
    if isinstance(transform, Registered):
        register(engine, transform, only_check=True)
    saved = []
    dropped: dict[str, int] = {}
    for place, (stream, name) in enumerate(names):
        table = snapshot.table(
            name if stream == name else f"{stream}.{name}",
            as_inserts=choice.as_inserts,
            as_is=choice.as_is,
            progress=share(progress, place, len(names)),
        )
        rows = StoredRows(table, chosen.get((stream, name)))
        output = None
        if transform is not None:
            output, dropped = saved_output(rows, transform, choice.conversion)
        saved.append(_saved_table(stream, rows, output, choice))
    manifest = Manifest(
        log=_identity(engine, [part.stream for part in parts]),
        erasure_epoch=0,
        streams=tuple(_saved_stream(engine, part, retained[part.stream]) for part in parts),
        tables=tuple(saved),
        transform=None
        if transform is None
        else saved_transform(transform, choice.conversion, dropped),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if isinstance(transform, Registered):
        register(engine, transform)
    _write(engine, manifest, Path(path), pin=pin)
    return manifest


def quoted_name(schema: Schema) -> str:
    """`schema.table`, as it is written in a command."""
    return str(TableName(schema=schema.namespace, name=schema.name))


def pin_id(manifest: Manifest) -> str:
    """The id of a manifest's pin."""
    return manifest.digest[:ID_DIGITS]


def exclusions_of(engine: Engine, stream: str) -> tuple[int, int] | None:
    """The bounds of the stream that tells what is excluded from another; None without one."""
    try:
        return engine.bounds(f"{stream}-exclusions")
    except UnknownStream:
        return None


def _named(parts: Sequence[Part], tables: Iterable[str] | None) -> Iterable[tuple[str, str]]:
    """Stream and table of all that is named, or of all that is there; of events the stream twice.

    Raises UnknownTable.
    """
    if tables is None:
        tables = [p.stream if p.kind == "events" else f"{p.stream}.*.*" for p in parts]
    kinds = {part.stream: part.kind for part in parts}
    for text in [tables] if isinstance(tables, str) else tables:
        if kinds.get(text) == "events":
            yield text, text
            continue
        name = TableName.parse(text)
        captured = [part for part in parts if part.kind == "captured"]
        if name.stream is not None:
            captured = [part for part in captured if part.stream == name.stream]
        if not name.is_pattern and len(captured) != 1:
            yield text, text  # The snapshot says what is wrong with it.
            continue
        for part in captured:
            for schema in part.history.named(name, part.cut.stop):
                yield part.stream, quoted_name(schema)


def _chosen(
    parts: Sequence[Part],
    names: Sequence[tuple[str, str]],
    columns: Mapping[str, Sequence[str]],
) -> dict[tuple[str, str], Sequence[str]]:
    """The chosen columns by stream and table. Raises UsageError for tables that are not saved."""
    if not isinstance(columns, Mapping):
        raise UsageError(
            f"columns={columns!r} does not say of which table",
            hint="name them by table: columns={'public.orders': ['id', 'amount']}",
        )
    found = {}
    for text, chosen in columns.items():
        for pair in _named(parts, [text]):
            if pair not in names or pair[0] == pair[1]:
                raise UsageError(
                    f"columns are chosen of {text!r}, which is no table that is saved",
                    hint="name the table in tables=, too",
                )
            found[pair] = chosen
    return found


def _saved_table(
    stream: str, rows: StoredRows, output: SavedRows | None, choice: Choice
) -> SavedTable:
    table = rows.table
    version = table.version if isinstance(table, Table) else None
    return SavedTable(
        stream=stream,
        table=None if version is None else quoted_name(version),
        relation=None if version is None else version.relation,
        version=None if version is None else version.id,
        as_inserts=choice.as_inserts,
        as_is=choice.as_is,
        chosen=rows.chosen is not None,
        stored=rows.saved(),
        output=output,
    )


def _saved_stream(engine: Engine, part: Part, retained: int) -> SavedStream:
    excluded = exclusions_of(engine, part.stream)
    return SavedStream(
        name=part.stream,
        kind=part.kind,
        retained=retained,
        start=part.start,
        stop=part.cut.stop,
        time=None if part.cut.time is None else part.cut.time.isoformat(),
        exclusions=None if excluded is None else excluded[1],
    )


def _identity(engine: Engine, streams: Sequence[str]) -> LogIdentity:
    found = engine.identity()
    covers = {
        generation: {name: offset for name, offset in ends.items() if name in streams}
        for generation, ends in found["covers"].items()
    }
    return LogIdentity(id=found["id"].hex(), generation=found["generation"], covers=covers)


def _write(engine: Engine, manifest: Manifest, path: Path, *, pin: bool) -> None:
    if not pin:
        manifest.write(path)
        return
    before = {row.id for row in pins.pins(engine.store)}
    row = pin_of(engine, manifest, name=path.name)
    pins.put(engine.store, row)
    try:
        manifest.write(path)
    except BaseException:
        if row.id not in before:
            pins.drop(engine.store, row.id)
        raise


def pin_of(engine: Engine, manifest: Manifest, *, name: str) -> PinRow:
    """The pin of a manifest: of event streams what lies behind its start, of others all."""
    ranges = {}
    for stream in manifest.streams:
        start = stream.retained
        if stream.kind == "events":
            start = max(start, stream.start or 0)
        ranges[stream.name] = [min(start, stream.stop), stream.stop]
        excluded = exclusions_of(engine, stream.name)
        if stream.exclusions is not None and excluded is not None:
            ranges[f"{stream.name}-exclusions"] = [
                min(excluded[0], stream.exclusions),
                stream.exclusions,
            ]
    return PinRow(
        id=pin_id(manifest),
        name=name,
        digest=manifest.digest,
        created_us=now_us(),
        ranges=ranges,
        manifest=manifest.to_bytes(),
    )
