"""A bundle: a saved snapshot in one folder, for use and for proof, without the log.

::

    DIR/manifest.json
        shop.public.orders.parquet          the rows, typed, `_offset` first
        output/shop.public.orders.parquet   what the transform made of them, where there is one
        texts/shop.public.orders.parquet    the stored texts: what the manifest's digest is over
        SHA256SUMS                          of all files above, as `sha256sum -c` reads it

A file is named after its table, with `%XX` in place of what is no letter, digit, `.`, `_` or `-`.
The folder is made beside the one to come, and renamed when all of it is on the disk. What is
written is digested meanwhile, so that no bundle is made of rows that are not the manifest's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eventlog.changes.arrow import Unfit
from eventlog.engine.directory import sync_directory
from eventlog.errors import EnvironmentFault, LogExists, UsageError
from eventlog.snapshots.manifests.described_types import METADATA
from eventlog.snapshots.manifests.digest import TableDigest
from eventlog.snapshots.manifests.manifest import SavedTable
from eventlog.snapshots.manifests.progress_shares import Progress, share
from eventlog.snapshots.manifests.saved import Saved
from eventlog.snapshots.manifests.stored_rows import StoredRows, saved_rows
from eventlog.snapshots.manifests.transformed import (
    DECODER,
    Transform,
    conversion_of,
    outputs,
    saved_transform,
)
from eventlog.snapshots.shown_rows import stripped
from eventlog.snapshots.whole_file import made_parents, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
TEXTS = "texts"
OUTPUT = "output"

_CHUNK_BYTES = 1 << 20
_NAME_MAX = 200
_SAFE = re.compile(rb"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """What a bundle holds; `unfit` counts, by table and column, values that did not fit."""

    tables: int
    rows: int
    bytes: int
    unfit: dict[str, int] = field(default_factory=dict)


def write_bundle(
    saved: Saved,
    directory: str | os.PathLike[str],
    *,
    transform: Transform | None = None,
    cast: Mapping[str, str] | None = None,
    unfit: Unfit | None = None,
    progress: Progress | None = None,
) -> Bundled:
    """Write a manifest and the rows of its tables into `directory`, which must be new or empty.

    `cast` and `unfit` are those of `Table.to_arrow`, for the typed rows; a column of `cast` counts
    where a table has it. Without them, what the manifest's transform was given is written. Raises
    LogExists where something is in the way, UsageError where the log's rows are not what was saved,
    ValueDoesNotFit, EnvironmentFault; nothing is left then.
    """
    manifest = saved.manifest
    given = conversion_of(manifest.transform)
    cast, unfit = given.cast if cast is None else cast, unfit or given.unfit
    directory = Path(directory).absolute()
    _require_transform(saved, transform)
    counts: dict[str, int] = {}
    with _whole(directory) as folder:
        for place, table in enumerate(manifest.tables):
            rows = saved.rows(table, progress=share(progress, place, len(manifest.tables)))
            name = file_name(table.name)
            _write_texts(rows, table, folder / TEXTS / name)
            names = {column.name for column in rows.columns}
            casts = {column: kind for column, kind in cast.items() if column in names}
            pieces = _counting(rows.typed(cast=casts, unfit=unfit), table.name, counts)
            _write_parquet(folder / name, pieces)
            if transform is not None:
                made = outputs(rows, transform, given)
                placed = (t.add_column(0, "_offset", offsets) for offsets, t in made)
                _write_parquet(folder / OUTPUT / name, placed)
        manifest.write(folder / MANIFEST)
        sums = {str(path.relative_to(folder)): sha256_of(path) for path in _files(folder)}
        lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
        write_whole(folder / SUMS, "".join(lines).encode())
        size = sum(path.stat().st_size for path in _files(folder))
    return Bundled(
        tables=len(manifest.tables),
        rows=sum(table.stored.rows for table in manifest.tables),
        bytes=size,
        unfit=counts,
    )


def file_name(table: str) -> str:
    """The name of a table's files. Long ones are cut, and end in a digest of the whole."""
    safe = _SAFE.sub(lambda found: b"%%%02X" % found[0][0], table.encode()).decode()
    if len(safe) > _NAME_MAX:
        safe = f"{safe[:_NAME_MAX]}-{hashlib.sha256(table.encode()).hexdigest()[:16]}"
    return f"{safe}.parquet"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _require_transform(saved: Saved, transform: Transform | None) -> None:
    before = saved.manifest.transform
    if (before is None) == (transform is None):
        if transform is None or before is None:
            return
        if saved_transform(transform) == replace(before, conversion=None):
            return
        raise UsageError(
            f"transform {transform.name!r} is not the one that the manifest names",
            hint="`eventlog snapshot verify` says what differs",
        )
    if before is None:
        raise UsageError("the manifest has no transform", hint="leave out transform=")
    raise UsageError(
        f"the rows went through transform {before.name!r}, version {before.version}",
        hint="give it: transform=, --transform FILE.py:NAME",
    )


def _write_texts(rows: StoredRows, table: SavedTable, path: Path) -> None:
    digest = TableDigest([(column.name, column.stored) for column in rows.columns])
    _write_parquet(path, _texts(rows, digest), compression="zstd")
    if saved_rows(rows.columns, digest.done()) != table.stored:
        raise UsageError(
            f"table {table.name} is not what was saved any more",
            hint="`eventlog snapshot verify` says what differs",
        )


def _texts(rows: StoredRows, digest: TableDigest) -> Iterator[pa.Table]:
    """The stored texts as Arrow: `_offset`, then columns `c0`, `c1` and so on; at least one piece.

    Names of their own may stand twice, or be `_offset`.
    """
    import pyarrow as pa

    names = [f"c{place}" for place in range(len(rows.columns))]
    schema = pa.schema(
        [("_offset", pa.int64()), *((name, pa.large_binary()) for name in names)],
        metadata={METADATA: rows.described(DECODER).to_bytes()},
    )
    yield schema.empty_table()
    for offsets, columns in rows.texts():
        digest.add(offsets, columns)
        arrays = [column.cast(pa.large_binary()) for column in columns]
        at = pa.array(np.ascontiguousarray(offsets), pa.int64())
        yield pa.Table.from_arrays([at, *arrays], schema=schema)


def _counting(pieces: Iterator[pa.Table], table: str, counts: dict[str, int]) -> Iterator[pa.Table]:
    """The same pieces, their misfits added up, which no piece has all of in its metadata."""
    for piece in pieces:
        plain, unfit = stripped(piece)
        for column, count in unfit.items():
            name = f"{table}.{column}"
            counts[name] = counts.get(name, 0) + count
        yield plain


def _write_parquet(path: Path, pieces: Iterator[pa.Table], *, compression: str = "snappy") -> None:
    """Write pieces of one schema, at least one, as they come."""
    from pyarrow import parquet

    path.parent.mkdir(mode=0o700, exist_ok=True)
    first = next(pieces)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with parquet.ParquetWriter(file, first.schema, compression=compression) as writer:
            writer.write_table(first)
            for piece in pieces:
                writer.write_table(piece)
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A folder that takes the place of `directory` when all went well, and else is gone."""
    try:
        if directory.is_symlink() or directory.is_file() or _is_full(directory):
            raise LogExists(
                f"{directory} is there, and holds something",
                hint="a bundle is whole: name a new or an empty directory",
            )
        with made_parents(directory), _beside(directory) as folder:
            yield folder
            for inner in (folder, *(path for path in folder.iterdir() if path.is_dir())):
                sync_directory(inner)
            folder.rename(directory)
            sync_directory(directory.parent)
    except OSError as error:
        raise EnvironmentFault(
            f"the bundle {directory} cannot be written: {error.strerror or error}",
            hint="name a directory that you may write, on a disk that has room",
        ) from error


@contextmanager
def _beside(directory: Path) -> Iterator[Path]:
    """A folder beside the one to come, which is gone on a failure."""
    folder = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _is_full(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())
