"""Verifying a manifest against its log: equal to the byte, or what differs, and why.

What decides is the bytes: every table is rebuilt from the log itself, without checkpoints, which
may be as wrong now as they were when it was saved, and digested. Where they differ, or where
nothing can be rebuilt, whatever is known of the log says why: that it is another one, that it came
out of a backup and went on by itself below the cut, that offsets were dropped, lost or damaged,
that the transform is another. Nothing of that raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from eventlog.changes.quantities import counted
from eventlog.engine import Engine
from eventlog.errors import EventLogError, SnapshotRefused, UnknownStream
from eventlog.snapshots.manifests.manifest import (
    LogIdentity,
    Manifest,
    SavedRows,
    SavedStream,
    SavedTable,
)
from eventlog.snapshots.manifests.progress_shares import Progress, share
from eventlog.snapshots.manifests.saving import exclusions_of
from eventlog.snapshots.manifests.transformed import (
    DECODER,
    Transform,
    conversion_of,
    saved_output,
    saved_transform,
)
from eventlog.snapshots.manifests.verification import Verification

if TYPE_CHECKING:
    from eventlog.snapshots.manifests.saved import Saved
    from eventlog.snapshots.manifests.stored_rows import StoredRows


def verify(
    saved: Saved, engine: Engine, *, transform: Transform | None, progress: Progress | None
) -> Verification:
    """Rebuild and compare; see `Saved.verify`."""
    manifest = saved.manifest
    identity = engine.identity()
    here = identity["id"].hex()
    if here != manifest.log.id:
        return Verification(
            equal=False,
            reasons=[
                f"another log: the manifest is of log {manifest.log.id}, and {engine.path} is "
                f"{here}"
            ],
            hint="name the log that it is of: --log DIR, eventlog.open(DIR)",
        )
    reasons: list[str] = []
    notes: list[str] = []
    rows = 0
    missing = dict(_missing(engine, manifest))
    reasons += missing.values()
    changed = [] if manifest.transform is None else list(_changed(manifest, transform))
    tables = [table for table in manifest.tables if table.stream not in missing]
    for place, table in enumerate(tables):
        step = share(progress, place, len(tables))
        wrong, noted = _table(saved, table, None if changed else transform, step)
        rows += 0 if wrong else table.stored.rows
        if wrong:
            why = _why(engine, manifest.log, manifest.stream(table.stream))
            wrong = [*wrong, *why]
        reasons += wrong
        notes += noted
    reasons += changed
    reasons += list(_excluded(engine, manifest))
    absent = manifest.transform is not None and transform is None
    return Verification(
        equal=not reasons,
        reasons=reasons or notes,
        rows=rows,
        unproven=absent and reasons == changed,
        hint="give the transform: --transform FILE.py:NAME, transform=" if absent else "",
    )


def _table(
    saved: Saved,
    table: SavedTable,
    transform: Transform | None,
    progress: Progress | None,
) -> tuple[list[str], list[str]]:
    """What differs of a table, and what is worth knowing of it though it is equal."""
    noted = []
    try:
        try:
            rows = saved.rows(table, from_log=True, progress=progress)
        except SnapshotRefused as refusal:
            # Something that was noticed since: what was saved may be there all the same.
            rows = saved.rows(table, as_is=True, from_log=True, progress=progress)
            noted.append(f"table {table.name}: as it was saved, but by now refused: {refusal}")
        wrong = list(_differences(table, rows, rows.saved()))
    except EventLogError as error:
        return [f"table {table.name} cannot be rebuilt: {error}"], []
    if not wrong and table.output is not None and transform is not None:
        try:
            before = saved.manifest.transform
            output, dropped = saved_output(rows, transform, conversion_of(before))
            wrong = list(_output(table, table.output, output))
            if not wrong and saved_transform(transform, conversion_of(before), dropped) != before:
                wrong = [f"the manifest contradicts itself in what did not fit of {table.name}"]
        except EventLogError as error:
            wrong = [f"the output of table {table.name} cannot be made again: {error}"]
        except (Exception, SystemExit) as error:  # Whatever a user's function raises is a reason.
            wrong = [f"the transform of table {table.name} failed: {type(error).__name__}: {error}"]
    return (wrong + noted, []) if wrong else ([], noted)


def _differences(table: SavedTable, rows: StoredRows, found: SavedRows) -> Iterator[str]:
    """What differs between the rows that were saved and those that are there."""
    stored = table.stored
    name = f"table {table.name}"
    if found.digest == stored.digest:
        if _told(found) != _told(stored):
            yield f"{name} is equal, and the manifest contradicts itself: its digest is of others"
        return
    if [c.name for c in found.columns] != [c.name for c in stored.columns]:
        yield f"{name} has the columns {_names(found)}, and was saved with {_names(stored)}"
        return
    if found.rows != stored.rows:
        yield f"{name} has {counted(found.rows, 'row')}, and was saved with {stored.rows:,}"
        return
    different = [
        f"{before.name} (it was {before.type}, it is {after.type})"
        if before.stored != after.stored
        else before.name
        for before, after in zip(stored.columns, found.columns, strict=True)
        if before.digest != after.digest
    ]
    where = f"in column {', '.join(different)}" if different else "in the offsets of its rows"
    yield f"{name} has as many rows as were saved, {found.rows:,}, and differs {where}"


def _told(rows: SavedRows) -> SavedRows:
    """All that a digest stands for: a type's own name is but shown."""
    return replace(rows, columns=tuple(replace(column, type="") for column in rows.columns))


def _output(table: SavedTable, before: SavedRows, after: SavedRows) -> Iterator[str]:
    if before.digest == after.digest:
        if _told(after) != _told(before):
            yield f"the manifest contradicts itself in what the transform made of {table.name}"
        return
    if [(c.name, c.stored) for c in before.columns] != [(c.name, c.stored) for c in after.columns]:
        yield (
            f"the transform makes {_typed(after)} of table {table.name}, and made {_typed(before)}"
        )
        return
    pairs = zip(before.columns, after.columns, strict=True)
    different = ", ".join(a.name for a, b in pairs if a.digest != b.digest)
    yield (
        f"the rows of table {table.name} are equal, and what the transform makes of them differs "
        f"in column {different}"
    )


def _missing(engine: Engine, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Streams that are not there, or have not got so far, and what there is instead."""
    for stream in manifest.streams:
        named = f"stream {stream.name!r}"
        try:
            row = engine.stream(stream.name)
        except UnknownStream as error:
            yield stream.name, f"{error}"
            continue
        if row.kind != stream.kind:
            yield stream.name, f"{named} is {row.kind}, and was {stream.kind}"
        elif row.end < stream.stop:
            ends = f"{named} ends at {row.end}, below the cut at {stream.stop}"
            yield stream.name, "; ".join([ends, *_generations(engine, manifest.log, stream)])
        elif row.start > stream.stop:
            why = f"{named} begins at {row.start}: offsets up to the cut at {stream.stop}"
            yield stream.name, f"{why} were dropped by retention"


def _why(engine: Engine, log: LogIdentity, stream: SavedStream) -> list[str]:
    """What may be the cause where a stream's rows are others than were saved."""
    reasons = list(_generations(engine, log, stream))
    start = engine.bounds(stream.name)[0]
    needed = max(stream.retained, stream.start or 0)
    if start > needed:
        reasons.append(
            f"offsets [{needed}, {start}) of stream {stream.name!r} were dropped by retention"
        )
    return reasons


def _generations(engine: Engine, log: LogIdentity, stream: SavedStream) -> Iterator[str]:
    """Where this log and the one that was saved parted below the cut, one out of a backup."""
    identity = engine.identity()
    mine, theirs = identity["generation"], log.generation
    covers = identity["covers"] if mine > theirs else log.covers
    for generation in range(min(mine, theirs) + 1, max(mine, theirs) + 1):
        first = covers.get(str(generation), {}).get(stream.name, 0)
        if first < stream.stop:
            whose = "this log" if mine > theirs else "the log of the manifest"
            yield (
                f"{whose} came out of a backup (generation {generation}), and offsets [{first}, "
                f"{stream.stop}) of stream {stream.name!r} were written after that"
            )


def _changed(manifest: Manifest, transform: Transform | None) -> Iterator[str]:
    """Why the output cannot be rebuilt: the transform is not given, or is another."""
    before = manifest.transform
    assert before is not None
    called = f"transform {before.name!r}, version {before.version}"
    if transform is None:
        yield f"{called}, is not at hand, so that what it made cannot be proven"
        return
    now = saved_transform(transform)
    if (now.name, now.version) != (before.name, before.version):
        yield f"the rows went through {called}; given is {now.name!r}, version {now.version}"
    elif now.digest != before.digest:
        yield f"{called}, has changed under the same version: its source is not what it was"
    elif before.decoder != DECODER:
        yield f"{called}, was given values of decoder {before.decoder}, and this one is {DECODER}"


def _excluded(engine: Engine, manifest: Manifest) -> Iterator[str]:
    for stream in manifest.streams:
        bounds = exclusions_of(engine, stream.name)
        if stream.exclusions is not None and (bounds is None or bounds[1] < stream.exclusions):
            name = f"{stream.name}-exclusions"
            yield f"stream {name!r} does not reach {stream.exclusions}, where it was saved"


def _names(rows: SavedRows) -> str:
    return ", ".join(column.name for column in rows.columns)


def _typed(rows: SavedRows) -> str:
    return ", ".join(f"{column.name} {column.type}" for column in rows.columns)
