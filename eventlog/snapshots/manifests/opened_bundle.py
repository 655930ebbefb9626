"""A bundle that was opened: its tables, and the proof that they are the manifest's.

Nothing but the folder is needed. The proof is against the manifest: its digests over the stored
texts, the offsets and the transform's output, and the checksums of all files. It says that nothing
was changed by chance or by hand in one place; who writes all of it anew can write another bundle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eventlog.errors import BadManifest, UnknownColumn, UsageError
from eventlog.snapshots.manifests.bundle import (
    MANIFEST,
    OUTPUT,
    SUMS,
    TEXTS,
    file_name,
    sha256_of,
)
from eventlog.snapshots.manifests.digest import Digest, TableDigest
from eventlog.snapshots.manifests.manifest import (
    Manifest,
    SavedRows,
    SavedTable,
    find_table,
    read_manifest,
)
from eventlog.snapshots.manifests.progress_shares import Progress
from eventlog.snapshots.manifests.typed_values import add_output, type_text
from eventlog.snapshots.manifests.verification import Verification

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")


def open_bundle(directory: str | os.PathLike[str]) -> Bundle:
    """Open a bundle by its folder, or by the manifest in it. Raises BadManifest."""
    path = Path(directory)
    path = path.parent if path.name == MANIFEST else path
    if not (path / SUMS).is_file():
        raise BadManifest(
            f"{path} is no bundle: it has no {SUMS}",
            hint="name the folder that `eventlog snapshot bundle` made",
        )
    return Bundle(path, read_manifest(path / MANIFEST))


class Bundle:
    """A folder with a manifest and its tables. Thread safety: may be shared among threads."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def tables(self) -> list[str]:
        """The names of its tables, for `table()`."""
        return [table.name for table in self.manifest.tables]

    def table(self, name: str, *, columns: list[str] | None = None) -> pa.Table:
        """The rows of a table, typed, `_offset` first unless `columns` are named.

        Raises UnknownTable, UnknownColumn, BadManifest where the file cannot be read.
        """
        return self._read(self.path / file_name(find_table(self.manifest, name).name), columns)

    def output(self, name: str | None = None) -> pa.Table:
        """What the transform made of the rows, after `_offset`. Raises UsageError without one."""
        found = [t for t in self.manifest.tables if t.output is not None]
        if name is not None:
            found = [find_table(self.manifest, name)]
        if len(found) != 1 or found[0].output is None:
            raise UsageError("the bundle has no output of a transform there", hint="take table()")
        return self._read(self.path / OUTPUT / file_name(found[0].name), None)

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Prove that every file is what was written, and every table what was saved.

        `progress` is told of rows. Never raises for what a file lacks: the reasons tell.
        """
        total = 2 * sum(table.stored.rows for table in self.manifest.tables)
        done = rows = 0
        files = dict(self._files())
        reasons = list(files.values())
        for table in self.manifest.tables:

            def step(count: int) -> None:
                nonlocal done
                done += count
                if progress is not None:
                    progress(done, total)

            wrong = list(self._table(table, step))
            rows += 0 if wrong else table.stored.rows
            # A file that was changed, and can for that not be read, is told of once.
            reasons += [reason for file, reason in wrong if file not in files]
        return Verification(equal=not reasons, reasons=reasons, rows=rows)

    def _files(self) -> Iterator[tuple[str, str]]:
        """Files that were changed, are missing, or too many, each with what is wrong with it."""
        sums = {}
        lines = (self.path / SUMS).read_bytes().decode("utf-8", "replace").split("\n")
        if lines.pop():
            yield SUMS, f"{SUMS} does not end in a line's end"
        for line in lines:
            found = _LINE.fullmatch(line)
            if found is None:
                yield f"{SUMS} {line}", f"{SUMS} has a line that is none: {line[:80]!r}"
            else:
                sums[found[2]] = found[1]
        for name in sorted(self._expected() - sums.keys()):
            yield f"{SUMS} {name}", f"{SUMS} does not name {name}"
        for name, digest in sorted(sums.items()):
            if name not in self._expected():
                yield f"{SUMS} {name}", f"{SUMS} names {name}, which is no file of this bundle"
                continue
            try:
                if sha256_of(self.path / name) != digest:
                    yield name, f"{name} was changed: its checksum is another"
            except OSError as error:
                yield name, f"{name} cannot be read: {error.strerror or error}"

    def _expected(self) -> set[str]:
        names = {MANIFEST}
        for table in self.manifest.tables:
            name = file_name(table.name)
            names |= {name, f"{TEXTS}/{name}"}
            if table.output is not None:
                names.add(f"{OUTPUT}/{name}")
        return names

    def _table(self, table: SavedTable, step: Any) -> Iterator[tuple[str | None, str]]:
        """What is wrong with a table; first the file, where that cannot be read at all."""
        name = file_name(table.name)
        file = f"{TEXTS}/{name}"
        try:
            digest = _digest_of_texts(self.path / file, table.stored, step)
            if digest.table != table.stored.digest:
                yield None, f"table {table.name}: {_difference(table.stored, digest)}"
            file = name
            typed = _digest_of_offsets(self.path / file, step)
            if typed.rows != table.stored.rows:
                count = f"{typed.rows:,} rows, and the manifest {table.stored.rows:,}"
                yield None, f"{name} has {count}"
            elif typed.offsets != table.stored.offsets:
                yield None, f"{name} has other rows than the manifest: their offsets differ"
            if table.output is not None:
                file = f"{OUTPUT}/{name}"
                made = _digest_of_output(self.path / file)
                if made.table != table.output.digest:
                    yield None, f"{file}: {_difference(table.output, made)}"
        except (BadManifest, UsageError) as error:
            yield file, f"{error}"

    def _read(self, path: Path, columns: list[str] | None) -> pa.Table:
        import pyarrow as pa

        try:
            pieces = list(_pieces(path, columns))
            return pa.concat_tables(pieces)
        except pa.ArrowException as error:
            raise _unreadable(path, error) from error

    def __repr__(self) -> str:
        return f"<Bundle {', '.join(self.tables)}>"


def _pieces(path: Path, columns: list[str] | None) -> Iterator[pa.Table]:
    """The rows of a file by pieces; at least one. Raises BadManifest."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if columns is not None:
                _require(columns, schema.names, path)
                schema = pa.schema([schema.field(name) for name in columns])
            yield schema.empty_table()
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                yield pa.Table.from_batches([batch]).cast(schema)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _require(columns: Sequence[str], names: Sequence[str], path: Path) -> None:
    for name in columns:
        if name not in names:
            raise UnknownColumn(
                f"{path.name} has no column {name!r}", hint=f"it has {', '.join(names)}"
            )


def _digest_of_texts(path: Path, stored: SavedRows, step: Any) -> Digest:
    digest = TableDigest([(column.name, column.stored) for column in stored.columns])
    for piece in _pieces(path, None):
        names = ["_offset", *(f"c{place}" for place in range(len(stored.columns)))]
        if piece.column_names != names:
            raise BadManifest(f"{TEXTS}/{path.name} has other columns than the manifest")
        digest.add(_offsets(piece), piece.columns[1:])
        step(piece.num_rows)
    return digest.done()


def _digest_of_offsets(path: Path, step: Any) -> Digest:
    digest = TableDigest([])
    for piece in _pieces(path, ["_offset"]):
        digest.add(_offsets(piece), [])
        step(piece.num_rows)
    return digest.done()


def _digest_of_output(path: Path) -> Digest:
    digest = None
    for piece in _pieces(path, None):
        made = piece.drop_columns(["_offset"])
        if digest is None:
            digest = TableDigest([(field.name, type_text(field.type)) for field in made.schema])
        add_output(digest, _offsets(piece), made)
    assert digest is not None, "there is at least one piece"
    return digest.done()


def _offsets(piece: pa.Table) -> Any:
    return piece.column("_offset").to_numpy().astype(np.int64)


def _difference(stored: SavedRows, found: Digest) -> str:
    if found.rows != stored.rows:
        return f"it has {found.rows:,} rows, and the manifest {stored.rows:,}"
    if len(found.columns) != len(stored.columns):
        return "it has other columns than the manifest"
    pairs = zip(stored.columns, found.columns, strict=True)
    different = [column.name for column, digest in pairs if column.digest != digest]
    return f"it differs in column {', '.join(different)}" if different else "its offsets differ"


def _unreadable(path: Path, error: Exception) -> BadManifest:
    return BadManifest(
        f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}",
        hint="take the bundle from a copy, or make it again with `eventlog snapshot bundle`",
    )
