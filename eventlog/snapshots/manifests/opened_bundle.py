"""A bundle that was opened: its tables, and the proof that they are the manifest's.

Nothing but the folder is needed. The proof is against the manifest: its digests over the stored
texts, the offsets and the transform's output, and the checksums of all files; typed rows are held
against the texts, decoded once more. So nothing was changed that the manifest does not say, but how
types of the source's own are read (see `described_types`); who writes that anew, too, can write
another bundle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eventlog.changes.quantities import counted
from eventlog.errors import BadManifest, CodecNotInstalled, UnknownColumn, UsageError
from eventlog.snapshots.manifests.bundle import (
    MANIFEST,
    OUTPUT,
    SUMS,
    TEXTS,
    file_name,
    sha256_of,
)
from eventlog.snapshots.manifests.described_types import described
from eventlog.snapshots.manifests.digest import Digest, TableDigest
from eventlog.snapshots.manifests.manifest import (
    Manifest,
    SavedRows,
    SavedTable,
    find_table,
    read_manifest,
)
from eventlog.snapshots.manifests.progress_shares import Progress
from eventlog.snapshots.manifests.strict_json import NotStrict
from eventlog.snapshots.manifests.typed_proof import Taking, TypedProof
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
    try:
        _require_file(path / MANIFEST)
    except OSError as error:
        raise _unreadable(path / MANIFEST, error) from error
    return Bundle(path, read_manifest(path / MANIFEST))


class _Unreadable(Exception):
    """A file that cannot be read; nothing more can be said of its table."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(reason if file in reason else f"{file}: {reason}")
        self.file = file


@dataclass(slots=True, kw_only=True)
class _Found:
    """What a verification found: wrong, not to be proven, worth knowing; and what would help."""

    reasons: list[str]
    unproven: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hint: str = "verify it with the version of eventlog-cdc that made it, or make it again"

    def proof(self, table: SavedTable, metadata: Any, schema: pa.Schema) -> TypedProof | None:
        """What compares a table's typed rows; None where they cannot be decoded here."""
        try:
            return TypedProof(table, described(metadata), schema)
        except (NotStrict, CodecNotInstalled) as error:
            self.unproven.append(f"the typed rows of table {table.name} cannot be proven: {error}")
            return None

    def take_in(self, file: str, proof: TypedProof) -> None:
        """Tell what a proof that saw all rows has found."""
        if proof.unknown:
            names = ", ".join(proof.unknown)
            self.unproven.append(
                f"{file}: what is in column {names} cannot be proven: the bundle does not describe "
                "its type"
            )
        different = proof.differences()
        if proof.other_decoder and different:
            self.unproven += [
                f"{file} cannot be proven: {proof.other_decoder}, and {why}" for why in different
            ]
        else:
            self.reasons += [f"{file}: {why}" for why in different]
        self.notes += [
            f"{file}: {counted(count, 'value')} of column {name} did not fit {kind}, and "
            f"{'is' if count == 1 else 'are'} null"
            for name, count, kind in proof.dropped()
        ]


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
        found = _Found(reasons=list(files.values()))

        def step(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        for table in self.manifest.tables:
            before = len(found.reasons) + len(found.unproven)
            try:
                self._table(table, found, step)
            except _Unreadable as error:
                # A file that was changed, and can for that not be read, is told of once.
                found.reasons += [] if error.file in files else [str(error)]
                continue
            rows += table.stored.rows if len(found.reasons) + len(found.unproven) == before else 0
        return Verification(
            equal=not found.reasons and not found.unproven,
            reasons=found.reasons + found.unproven or found.notes,
            rows=rows,
            unproven=not found.reasons and bool(found.unproven),
            hint=found.hint if found.unproven else "",
        )

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
                _require_file(self.path / name)
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

    def _table(self, table: SavedTable, found: _Found, step: Any) -> None:
        """Tell what is wrong with a table. Raises _Unreadable where that ends at a file."""
        name = file_name(table.name)
        texts = f"{TEXTS}/{name}"
        with _reading(texts):
            digest = _digest_of_texts(self.path / texts, table.stored, step)
        proven = digest.table == table.stored.digest
        if not proven:
            found.reasons.append(f"table {table.name}: {_difference(table.stored, digest)}")
        with _reading(name):
            self._typed(table, found, step, proven=proven)
        if table.output is not None:
            file = f"{OUTPUT}/{name}"
            with _reading(file):
                made = _digest_of_output(self.path / file)
            if made.table != table.output.digest:
                found.reasons.append(f"{file}: {_difference(table.output, made)}")

    def _typed(self, table: SavedTable, found: _Found, step: Any, *, proven: bool) -> None:
        """Hold typed rows against the manifest's offsets, and against texts that are proven."""
        name = file_name(table.name)
        typed = _pieces(self.path / name, None)
        first = next(typed)
        proof = None
        if proven:
            texts = _pieces(self.path / TEXTS / name, None)
            head = next(texts)
            beside = Taking(chain([head], texts))
            proof = found.proof(table, head.schema.metadata, first.schema)
        digest = TableDigest([])
        for piece in chain([first], typed):
            offsets = _offsets(piece)
            digest.add(offsets, [])
            step(piece.num_rows)
            if proof is not None and len(offsets):
                rows = beside.take(len(offsets))
                proof.add(offsets[: rows.num_rows], piece.slice(0, rows.num_rows), rows)
        made = digest.done()
        if made.rows != table.stored.rows:
            count = f"{counted(made.rows, 'row')}, and the manifest {table.stored.rows:,}"
            found.reasons.append(f"{name} has {count}")
        elif made.offsets != table.stored.offsets:
            found.reasons.append(f"{name} has other rows than the manifest: their offsets differ")
        elif proof is not None:
            found.take_in(name, proof)

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
        _require_file(path)
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = schema.names  # Here, where what is no Unicode among them is caught.
            if columns is not None:
                _require(columns, names, path)
                schema = pa.schema([schema.field(name) for name in columns])
            yield schema.empty_table()
            # One row group at a time: where values are long, a group has fewer rows.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    yield pa.Table.from_batches([batch]).cast(schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _require_file(path: Path) -> None:
    """Raise OSError for a pipe or a device, which might never end."""
    if path.exists() and not path.is_file():
        raise OSError("it is no plain file")


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
        if piece.column_names != names or not all(map(_holds_texts, piece.schema.types[1:])):
            raise BadManifest(f"{TEXTS}/{path.name} has other columns than the manifest")
        digest.add(_offsets(piece), piece.columns[1:])
        step(piece.num_rows)
    return digest.done()


def _holds_texts(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _digest_of_output(path: Path) -> Digest:
    digest = None
    for piece in _pieces(path, None):
        offsets = _offsets(piece)
        made = piece.remove_column(0)
        if digest is None:
            digest = TableDigest([(field.name, type_text(field.type)) for field in made.schema])
        add_output(digest, offsets, made)
    assert digest is not None, "there is at least one piece"
    return digest.done()


def _offsets(piece: pa.Table) -> Any:
    """The first column; a table may have one of the same name. Raises BadManifest."""
    import pyarrow as pa

    if piece.schema.names[:1] != ["_offset"] or piece.schema.types[0] != pa.int64():
        raise BadManifest("its first column is not that of the offsets")
    if piece.column(0).null_count:
        raise BadManifest("a row has no offset")
    return piece.column(0).to_numpy().astype(np.int64)


@contextmanager
def _reading(file: str) -> Iterator[None]:
    """Within it, what cannot be read is of that file."""
    try:
        yield
    except _Unreadable:
        raise
    except (BadManifest, UsageError) as error:
        raise _Unreadable(file, str(error)) from error


def _difference(stored: SavedRows, found: Digest) -> str:
    if found.rows != stored.rows:
        return f"it has {counted(found.rows, 'row')}, and the manifest {stored.rows:,}"
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
