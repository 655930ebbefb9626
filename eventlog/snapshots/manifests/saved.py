"""A manifest that was read back, with the log that it is held against."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventlog.engine import Engine
from eventlog.snapshots.manifests.manifest import Manifest, SavedTable, find_table, read_manifest
from eventlog.snapshots.manifests.progress_shares import Progress
from eventlog.snapshots.manifests.stored_rows import StoredRows
from eventlog.snapshots.table import EventTable, Table

if TYPE_CHECKING:
    from eventlog.snapshots.manifests.transformed import Transform
    from eventlog.snapshots.manifests.verification import Verification
    from eventlog.snapshots.snapshot import Snapshot

Take = Callable[[Mapping[str, Any]], "Snapshot"]
"""Makes a snapshot of streams at their own cuts, as `Log.snapshot` does."""


class Saved:
    """A manifest and its log. Nothing of the log is read before it is asked for.

    Thread safety: may be shared among threads.
    """

    def __init__(self, engine: Engine, take: Take, manifest: Manifest) -> None:
        self.manifest = manifest
        self._engine = engine
        self._take = take
        self._snapshot: Snapshot | None = None

    @classmethod
    def load(cls, engine: Engine, take: Take, path: str | os.PathLike[str]) -> Saved:
        """Read a manifest's file. Raises BadManifest."""
        return cls(engine, take, read_manifest(Path(path)))

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that was saved. Raises UnknownStream, OffsetOutOfRange."""
        if self._snapshot is None:
            cuts: dict[str, Any] = {}
            for stream in self.manifest.streams:
                start = stream.start
                if start is not None and stream.kind == "events":
                    # What was dropped since is missed by its rows; the rest can still be read.
                    start = min(max(start, self._engine.bounds(stream.name)[0]), stream.stop)
                cuts[stream.name] = stream.stop if start is None else (start, stream.stop)
            self._snapshot = self._take(cuts)
        return self._snapshot

    @property
    def tables(self) -> list[str]:
        """The names of the saved tables, for `table()`."""
        return [table.name for table in self.manifest.tables]

    def table(self, name: str, *, progress: Progress | None = None) -> Table | EventTable:
        """A saved table, read from the log as it was saved, all of its columns.

        Raises UnknownTable, and what `snapshot` and `Snapshot.table` raise. `verify` proves that it
        is what was saved.
        """
        return self.rows(self.saved_table(name), progress=progress).table

    def verify(
        self, *, transform: Transform | None = None, progress: Progress | None = None
    ) -> Verification:
        """Rebuild all tables, and tell whether each is what was saved, to the byte.

        A manifest with a transform needs that again, to prove its output. Never raises for what the
        log lacks: the reasons tell.
        """
        from eventlog.snapshots.manifests.verifying import verify

        return verify(self, self._engine, transform=transform, progress=progress)

    def saved_table(self, name: str) -> SavedTable:
        """What the manifest says of a table; its stream may be left out. Raises UnknownTable."""
        return find_table(self.manifest, name)

    def rows(
        self,
        table: SavedTable,
        *,
        as_is: bool = False,
        from_log: bool = False,
        progress: Progress | None = None,
    ) -> StoredRows:
        """The stored rows of a saved table, as they are now; `as_is` beside how it was saved.

        With `from_log` no checkpoint stands for what the log holds.
        """
        found = self.snapshot.table(
            table.name,
            as_inserts=table.as_inserts,
            as_is=table.as_is or as_is,
            from_log=from_log,
            progress=progress,
        )
        chosen = [column.name for column in table.stored.columns] if table.chosen else None
        return StoredRows(found, chosen)

    def __repr__(self) -> str:
        return f"<Saved {', '.join(self.tables)}>"
