"""The manifest: a snapshot in a small JSON file, which says what it holds and proves it (D15).

::

    {"format": "eventlog-manifest", "version": 1, "digest": 64 hex, "created": time,
     "log": LogIdentity, "erasure_epoch": 0, "streams": [SavedStream], "tables": [SavedTable],
     "transform": SavedTransform or null}

`digest` is SHA-256 over the rest but `created`, as JSON with sorted names and no spaces: a manifest
that was cut or edited is refused, and equal manifests have equal digests, whenever they were made.
docs/format.md has every name. Reading is strict: nothing unknown, nothing missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventlog.changes.quantities import counted
from eventlog.errors import BadManifest, UnknownTable
from eventlog.snapshots.manifests import strict_json
from eventlog.snapshots.manifests.digest import combined
from eventlog.snapshots.manifests.strict_json import OPTIONAL, NotStrict
from eventlog.snapshots.whole_file import write_whole

FORMAT = "eventlog-manifest"
VERSION = 1
BYTES_MAX = 64 << 20
"""Of a manifest's file: some 100 bytes for each column of each table; more is something else."""

_HEX = re.compile(r"[0-9a-f]{64}")
_MAX = 2**63
_NAMES_SHOWN = 3
_GENERATIONS_MAX = 10_000
"""Each is a backup that was opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogIdentity:
    """Which log: its id, and the generation that it had.

    `covers` has, by generation, the first offset of each of the manifest's streams that it covers.
    """

    id: str
    generation: int
    covers: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStream:
    """A stream's cut. `retained` is the first offset that the stream had when it was saved.

    With `start`, rows whose latest version lies below it are left out. `time` is that of the last
    record below `stop`. `exclusions` is the stop of the stream `NAME-exclusions`, if there is one.
    """

    name: str
    kind: str
    retained: int
    start: int | None
    stop: int
    time: str | None
    exclusions: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedColumn:
    """A column: its name, its type as the source calls it, and `stored`, the type in the digest."""

    name: str
    type: str
    stored: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRows:
    """Rows and what proves them: digests as in `eventlog.snapshots.manifests.digest`."""

    columns: tuple[SavedColumn, ...]
    rows: int
    bytes: int
    offsets: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTable:
    """A table as of its stream's cut, or the latest events of a stream (`table` is null then).

    `chosen`: its columns were chosen, and may be fewer than the table has. `output` is what the
    transform made of the rows.
    """

    stream: str
    table: str | None
    relation: int | None
    version: int | None
    as_inserts: bool
    as_is: bool
    chosen: bool
    stored: SavedRows
    output: SavedRows | None

    @property
    def name(self) -> str:
        """`stream.schema.table`, or the name of an event stream: what `table()` takes."""
        return self.stream if self.table is None else f"{self.stream}.{self.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedConversion:
    """How a transform's input was typed: `cast` and `unfit` as in `Table.to_arrow`.

    `dropped` counts, by column, the values that did not fit and so were null.
    """

    cast: dict[str, str]
    unfit: str
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTransform:
    """A transform by its name, version and source digest; `decoder` made the types it was given.

    `conversion` is there where they are not the declared ones, or where misfits were null.
    """

    name: str
    version: int
    digest: str
    decoder: int
    conversion: SavedConversion | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a snapshot was made of. Equal ones were made of the same, whenever that was."""

    log: LogIdentity
    erasure_epoch: int
    streams: tuple[SavedStream, ...]
    tables: tuple[SavedTable, ...]
    transform: SavedTransform | None
    created: str = field(compare=False)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over all but `created`."""
        content = strict_json.plain(self)
        del content["created"]
        return hashlib.sha256(strict_json.canonical(_headed(content))).hexdigest()

    def stream(self, name: str) -> SavedStream:
        """The stream of that name."""
        return next(stream for stream in self.streams if stream.name == name)

    def to_bytes(self) -> bytes:
        """The file."""
        content = strict_json.plain(self)
        headed = _headed({"digest": self.digest, "created": content.pop("created"), **content})
        return json.dumps(headed, indent=1).encode() + b"\n"

    def write(self, path: Path) -> None:
        """Write it, whole or not at all. Raises EnvironmentFault."""
        write_whole(path, self.to_bytes())

    def __repr__(self) -> str:
        many = len(self.tables) > _NAMES_SHOWN
        names = (
            counted(len(self.tables), "table") if many else ", ".join(t.name for t in self.tables)
        )
        rows = sum(table.stored.rows for table in self.tables)
        return f"<Manifest {names}, {counted(rows, 'row')}, {self.digest[:8]}…>"


def find_table(manifest: Manifest, name: str) -> SavedTable:
    """What a manifest says of a table; its stream may be left out. Raises UnknownTable."""
    found = [table for table in manifest.tables if name in (table.name, table.table)]
    if not found and "." not in name:
        found = [table for table in manifest.tables if table.table == f"public.{name}"]
    if len(found) != 1:
        names = ", ".join(table.name for table in manifest.tables)
        raise UnknownTable(
            f"the manifest has {counted(len(found), 'table')} {name!r}", hint=f"it has {names}"
        )
    return found[0]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, strictly. Raises BadManifest."""
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise BadManifest(
            f"the manifest {path} cannot be read: {error.strerror or error}",
            hint="name the file that `eventlog snapshot create` wrote",
        ) from error
    try:
        return manifest_of(data)
    except NotStrict as error:
        raise BadManifest(
            f"{path} is no whole manifest: {error}",
            hint="take it from a copy, or make it again with `eventlog snapshot create`",
        ) from error


def manifest_of(data: bytes) -> Manifest:
    """The manifest that a file's bytes hold. Raises NotStrict, BadManifest for a newer version."""
    if len(data) > BYTES_MAX:
        raise NotStrict(f"it is longer than {BYTES_MAX:,} bytes")
    content = strict_json.parsed(data)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise NotStrict(f"its format is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise BadManifest(
            f"a manifest of version {content.get('version')!r} is not known, only {VERSION} is",
            hint="read it with the version of eventlog-cdc that wrote it, or a newer one",
        )
    stated = content.get("digest")
    bare = {n: v for n, v in content.items() if n not in ("format", "version", "digest")}
    manifest = strict_json.read(Manifest, bare, "the manifest")
    _check(manifest)
    if manifest.digest != stated:
        raise NotStrict("its digest is not that of what it says: it was changed")
    return manifest


def _headed(content: dict[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, **content}


def _check(manifest: Manifest) -> None:
    """What types alone do not say. Raises NotStrict."""
    if not 0 <= manifest.log.generation <= _GENERATIONS_MAX:
        raise NotStrict(f"the log has no generation {manifest.log.generation}")
    names = [stream.name for stream in manifest.streams]
    if len(set(names)) != len(names):
        raise NotStrict("a stream stands in it twice")
    for stream in manifest.streams:
        if stream.kind not in ("events", "captured"):
            raise NotStrict(f"stream {stream.name!r} is of no kind that is known")
        numbers = (stream.retained, stream.start or 0, stream.stop, stream.exclusions or 0)
        if not 0 <= min(numbers) <= max(numbers) < _MAX or (stream.start or 0) > stream.stop:
            raise NotStrict(f"stream {stream.name!r} has no range of offsets")
    conversion = None if manifest.transform is None else manifest.transform.conversion
    if conversion is not None:
        if conversion.unfit not in ("raise", "null"):
            raise NotStrict(f"misfits are {conversion.unfit!r}, which is not known here")
        if not (conversion.cast or conversion.unfit == "null"):
            raise NotStrict("its transform has a conversion that does nothing")
    if not manifest.tables:
        raise NotStrict("it names no table, so it proves nothing")
    for table in manifest.tables:
        if (table.output is None) != (manifest.transform is None):
            raise NotStrict(f"the table {table.name} has no output, or no transform for it")
        if table.stream not in names:
            raise NotStrict(f"the table {table.name} is of a stream that it does not name")
        for rows in filter(None, (table.stored, table.output)):
            digests = [rows.digest, rows.offsets, *(column.digest for column in rows.columns)]
            sizes = (rows.rows, rows.bytes)
            if not all(map(_HEX.fullmatch, digests)) or not 0 <= min(sizes) <= max(sizes) < _MAX:
                raise NotStrict(f"the table {table.name} has no digest, or no number of rows")
            columns = [column.digest for column in rows.columns]
            if combined(rows.rows, rows.offsets, columns) != rows.digest:
                raise NotStrict(f"the digest of table {table.name} is not that of its parts")
    if len({table.name for table in manifest.tables}) != len(manifest.tables):
        raise NotStrict("a table stands in it twice")
