"""A checkpoint: the state of one table at a cut, as a file that proves itself.

::

    Arrow IPC file                     record batches, lz4: `_offset`, `s0`… `t0`…
    head        msgpack                what it is of: log id, generation, stream, relation, schema
                                       version, offset, erasure epoch, what the fold knows, which
                                       `t` columns are whole
    u64, u32    little-endian          lengths of the two
    "EVLK", version u32
    xxh3-64 of everything before it

`s` columns are the stored texts as binary, null for NULL; `t` columns the same values as their
Arrow types, of columns that are not text. A `t` column in which a value did not fit is not whole,
and never used. The checksum is made sure of before anything else is looked at.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import xxhash

from eventlog.changes.change import Op
from eventlog.changes.schema import Schema
from eventlog.changes.split import IS_NULL, OP_NUMBER, Bytes, Places, Rows
from eventlog.snapshots.state.facts import Facts
from eventlog.snapshots.state.steps import Chunk, Holds

if TYPE_CHECKING:
    import pyarrow as pa

MAGIC = b"EVLK"
VERSION = 1
TAIL = struct.Struct("<QI4sI")
SUM = struct.Struct("<Q")
_VERIFY_BYTES = 4 << 20


class BadCheckpoint(Exception):
    """The file is damaged, or of something else: it is passed over, and made anew some day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which log a checkpoint is of; `at` are the words and the time of the cut's last record."""

    log_id: bytes
    generation: int
    stream: str
    relation: int
    offset: int
    erasure_epoch: int
    at: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a checkpoint says of itself. `made_by` names what its typed columns were made by."""

    origin: Origin
    schema_id: int
    rows: int
    facts: Facts
    typed: tuple[int, ...]
    made_by: str

    def packed(self) -> bytes:
        """The stored form."""
        packed: bytes = msgpack.packb(asdict(self))
        return packed

    @classmethod
    def unpacked(cls, stored: bytes) -> Head:
        """Read it back. Raises BadCheckpoint."""
        try:
            fields: Mapping[str, Any] = msgpack.unpackb(stored)
            origin = {**fields["origin"], "at": tuple(fields["origin"]["at"])}
            return cls(
                origin=Origin(**origin),
                schema_id=fields["schema_id"],
                rows=fields["rows"],
                facts=Facts(**fields["facts"]),
                typed=tuple(fields["typed"]),
                made_by=fields["made_by"],
            )
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise BadCheckpoint(f"its head cannot be read: {error}") from error


def made_by() -> str:
    """What typed columns are made by: a later version may read texts otherwise."""
    import pyarrow as pa

    return f"eventlog-cdc {metadata.version('eventlog-cdc')}, pyarrow {pa.__version__}"


class Checkpoint:
    """An opened checkpoint, which stays readable though its file is deleted.

    Thread safety: may be shared among threads.
    """

    def __init__(self, head: Head, schema: Schema, ipc: memoryview) -> None:
        self.head = head
        self.schema = schema
        self.offset = head.origin.offset
        self._ipc = ipc

    def offsets(self) -> Iterator[Places]:
        """The offsets of the rows, by batches."""
        for batch in self._batches(["_offset"]):
            yield batch.column(0).to_numpy()

    def chunks(self, holds: Holds | None, places: Sequence[int]) -> Iterator[Chunk]:
        """The rows as copied ones; of the columns only those at `places` are there."""
        if holds is not None and not holds(0, self.offset):
            return
        for batch in self._batches(["_offset", *(f"s{place}" for place in places)]):
            yield self._chunk(batch, places)

    def typed(self, places: Sequence[int]) -> Iterator[tuple[Places, list[pa.Array]]]:
        """Offsets, and the columns at these places as their Arrow types, by batches.

        REQUIRES: `has_typed` of each.
        """
        import pyarrow as pa

        whole = set(self.head.typed)
        names = [f"{'s' if self._is_text(place) else 't'}{place}" for place in places]
        assert whole.issuperset(places)
        for batch in self._batches(["_offset", *dict.fromkeys(names)]):
            columns = [batch.column(name) for name in names]
            yield (
                batch.column("_offset").to_numpy(),
                [
                    column.view(pa.string()) if name[0] == "s" else column
                    for name, column in zip(names, columns, strict=True)
                ],
            )

    def has_typed(self, place: int, kind: pa.DataType) -> bool:
        """Whether that column is there as this type, made by the same version."""
        import pyarrow as pa

        if place not in self.head.typed or self.head.made_by != made_by():
            return False
        stored = self._schema()
        if f"t{place}" in stored.names:
            return bool(stored.field(f"t{place}").type == kind)
        return bool(kind == pa.string())

    def _is_text(self, place: int) -> bool:
        return f"t{place}" not in self._schema().names

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.ipc.open_file(pa.py_buffer(self._ipc)).schema

    def _batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        fields = self._schema().names
        options = pa.ipc.IpcReadOptions(included_fields=sorted(map(fields.index, set(names))))
        reader = pa.ipc.open_file(pa.py_buffer(self._ipc), options=options)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)

    def _chunk(self, batch: pa.RecordBatch, places: Sequence[int]) -> Chunk:
        count, width = batch.num_rows, len(self.schema.columns)
        starts = np.zeros((width, count), np.int64)
        lengths = np.full((width, count), IS_NULL, np.int64)
        buffers: list[Bytes] = [np.zeros(0, np.uint8)]
        size = 0
        for place in places:
            array = batch.column(f"s{place}")
            _, ends, data = array.buffers()
            bounds = np.frombuffer(ends, np.int32, count + 1).astype(np.int64)
            starts[place] = bounds[:-1] + size
            lengths[place] = np.diff(bounds)
            if array.null_count:
                lengths[place][array.is_null().to_numpy(zero_copy_only=False)] = IS_NULL
            if data is not None:
                buffers.append(np.frombuffer(data, np.uint8))
                size += len(buffers[-1])
        return Chunk(
            schema=self.schema,
            offsets=batch.column("_offset").to_numpy(),
            ops=np.full(count, OP_NUMBER[Op.READ], np.uint8),
            data=np.concatenate(buffers),
            new=Rows(starts=starts, lengths=lengths),
            old=None,
        )


def opened(path: Path) -> tuple[Head, memoryview]:
    """Map a checkpoint and make sure of every byte. Raises BadCheckpoint, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size < TAIL.size + SUM.size:
            raise BadCheckpoint("it is cut short")
        view = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise BadCheckpoint(str(error)) from error
    finally:
        os.close(descriptor)
    body = view[: size - SUM.size]
    state = xxhash.xxh3_64()
    for at in range(0, len(body), _VERIFY_BYTES):
        state.update(body[at : at + _VERIFY_BYTES])
    if SUM.unpack_from(view, size - SUM.size) != (state.intdigest(),):
        raise BadCheckpoint("its checksum is wrong")
    ipc_bytes, head_bytes, magic, version = TAIL.unpack_from(body, len(body) - TAIL.size)
    if magic != MAGIC or version != VERSION or ipc_bytes + head_bytes + TAIL.size != len(body):
        raise BadCheckpoint("it is of another format")
    return Head.unpacked(bytes(body[ipc_bytes : ipc_bytes + head_bytes])), body[:ipc_bytes]
