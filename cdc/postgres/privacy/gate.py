"""The privacy gate: values of hashed columns are replaced before anything reaches the disk.

::

    stored value = hex(blake2b(text, key, 16 bytes))      32 characters, of type text
    NULL, unchanged and absent values stay what they are

The text is the one that the server sends, so the copy and the stream give the same hash, and so do
equal texts in every table and column under one key: joins, counts and keys stay usable. What a
hash does not hide: which values are equal, how often each occurs, and which are NULL. Whoever has
the key can try values out.

Which columns are hashed is decided in `hashed_columns.py`. Where there is no key, because `--hash`
names none, what must be hashed all the same is hashed with one that is thrown away.

No IO; one thread, but for `lines`, which any may call. REQUIRES: `stored` sees every version before
`records` or `lines` its rows.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cdc.postgres.copy_codec import unescape
from cdc.postgres.privacy.hashed_columns import HashedColumns
from cdc.postgres.protocol.frames import Bytes, Run
from cdc.postgres.protocol.wire import WireError
from cdc.postgres.schema.table_spec import ColumnName, TableSpec
from eventlog.changes.schema import Column, Schema

DIGEST_BYTES = 16
TEXT_TYPE = 25
"""The type of a hashed column: `text` has this number on every server."""

_HEAD = b"t" + (2 * DIGEST_BYTES).to_bytes(4, "big")
_NULL, _UNCHANGED, _TEXT = b"nut"
_NEW, _KEY, _OLD = b"NKO"
_INSERT, _UPDATE, _DELETE, _TRUNCATE = b"IUDT"
_RELATION_BYTES = 4
_STEP_BYTES = 1 << 20


class Gate:
    """Rewrites schemas, change records and copied lines of tables with hashed columns."""

    def __init__(
        self,
        columns: Sequence[ColumnName] = (),
        key: bytes | None = None,
        stored: Iterable[Schema] = (),
        specs: Iterable[TableSpec] = (),
    ) -> None:
        """`stored`: the versions that the log holds, oldest first. `key`: None without columns.

        `specs`: what `--table` says.
        """
        self._key: bytes | None = None
        self._keyed = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=DIGEST_BYTES)
        self._columns = HashedColumns()
        self._columns.limit(specs)
        if columns:
            assert key is not None
            self.widen(columns, key)
        for schema in stored:
            self._columns.learn(schema)

    def widen(self, columns: Sequence[ColumnName], key: bytes) -> None:
        """Hash these columns too, of tables that join later.

        REQUIRES: the key that the gate has, if it has one.
        """
        assert self._key in (None, key)
        self._key = key
        self._keyed = hashlib.blake2b(key=key, digest_size=DIGEST_BYTES)
        self._columns.add(columns)

    def limit(self, specs: Iterable[TableSpec]) -> None:
        """Take these lists of columns, instead of those before."""
        self._columns.limit(specs)

    @property
    def relations(self) -> frozenset[int]:
        """The relations that have, or had, a hashed column."""
        return self._columns.relations

    def covers(self, relation: int) -> bool:
        """Whether records of this relation must pass through `records` or `lines`."""
        return relation in self._columns.relations

    def digest(self, text: Bytes) -> bytes:
        """What is stored instead of a value."""
        # A copy of the keyed state takes 0.2 µs less than a new one.
        state = self._keyed.copy()
        state.update(text)
        return state.hexdigest().encode()

    def stored(self, schema: Schema, known: Schema | None) -> Schema:
        """The version as the log keeps it: hashed columns marked, of type text.

        `known` is the relation's version before this one, as stored.
        """
        columns = tuple(
            self._masked(column) if self._columns.hashes(schema, column, known) else column
            for column in schema.columns
        )
        masked = replace(schema, columns=columns)
        self._columns.learn(masked)
        return masked

    def records(
        self,
        run: Run,
        relations: npt.NDArray[np.uint32],
        schemas: Mapping[int, Schema],
    ) -> Run:
        """Change records with their hashed columns' values replaced.

        `relations` is the relation of each record, `schemas` the stored version of each relation in
        it. Raises WireError for a covered record that is not one of its schema.
        """
        covered = np.isin(relations, list(self.relations))
        if not covered.any():
            return run
        flags_of = {
            relation: tuple(column.hashed for column in schemas[relation].columns)
            for relation in np.unique(relations[covered]).tolist()
        }
        lengths = np.diff(run.ends, prepend=0)
        rewriter = _Rewriter(self, run.data)
        for i in np.flatnonzero(covered).tolist():
            flags = flags_of[int(relations[i])]
            if any(flags):
                stop = int(run.ends[i])
                lengths[i] += rewriter.record(stop - int(lengths[i]), stop, flags)
        return Run(data=rewriter.whole(), ends=np.cumsum(lengths))

    def lines(self, run: Run, schema: Schema) -> Run:
        """Lines of a COPY of one relation with their hashed columns' values replaced.

        Raises WireError for a line that is no row of the schema.
        """
        places = [i for i, column in enumerate(schema.columns) if column.hashed]
        if not places or not len(run):
            return run
        width = len(schema.columns)
        data = run.data
        if isinstance(data, memoryview) and len(run) == 1:
            return self._large_line(data, schema, places)
        data = bytes(data)
        if data[-1:] != b"\n" or int(run.ends[-1]) != len(data):
            raise WireError("a copied line is cut")
        lines = []
        start = 0
        for stop in run.ends.tolist():
            fields = data[start : stop - 1].split(b"\t")
            if len(fields) != width or data[stop - 1] != ord("\n"):
                raise _not_of(schema, len(fields))
            for place in places:
                text = unescape(fields[place])
                if text is not None:
                    fields[place] = self.digest(text)
            lines.append(b"\t".join(fields) + b"\n")
            start = stop
        ends = np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)))
        return Run(data=b"".join(lines), ends=ends)

    def _large_line(self, line: memoryview, schema: Schema, places: Sequence[int]) -> Run:
        """`lines` of one that may be of a gigabyte: what is kept is copied once, at the end."""
        bounds = [-1, *_tabs(line), len(line) - 1]
        if line[-1] != ord("\n"):
            raise WireError("a copied line is cut")
        if len(bounds) - 1 != len(schema.columns):
            raise _not_of(schema, len(bounds) - 1)
        pieces: list[Bytes] = []
        copied = 0
        for place in places:
            low, high = bounds[place] + 1, bounds[place + 1]
            text = unescape(bytes(line[low:high]))
            if text is not None:
                pieces += (line[copied:low], self.digest(text))
                copied = high
        pieces.append(line[copied:])
        whole = b"".join(pieces)
        return Run(data=whole, ends=np.array([len(whole)]))

    def _masked(self, column: Column) -> Column:
        if column.hashed:
            return column
        missing = column.missing
        if missing is not None:
            missing = self.digest(missing.encode("utf-8", "surrogateescape")).decode()
        return replace(column, type=TEXT_TYPE, typmod=-1, missing=missing, hashed=True)


def _tabs(line: memoryview) -> list[int]:
    """Where the values of a copied line are parted."""
    found: list[int] = []
    for start in range(0, len(line), _STEP_BYTES):
        part = np.frombuffer(line[start : start + _STEP_BYTES], np.uint8)
        found += (np.flatnonzero(part == ord("\t")) + start).tolist()
    return found


def _not_of(schema: Schema, found: int) -> WireError:
    wanted = len(schema.columns)
    return WireError(f"a copied line has {found} values, but {schema.table} has {wanted}")


class _Rewriter:
    """Walks records of one run in order and gathers them, with what replaces some values."""

    def __init__(self, gate: Gate, data: Bytes) -> None:
        self._gate = gate
        self._data = memoryview(data)  # Large values are kept, and so not copied before the end.
        self._pieces: list[Bytes] = []
        self._copied = 0

    def record(self, at: int, stop: int, flags: Sequence[bool]) -> int:
        """Rewrite the record `[at, stop)`; returns by how many bytes it grew."""
        data, first = self._data, at
        tag = data[at]
        if tag == _TRUNCATE:
            return 0
        at += 1 + _RELATION_BYTES
        grown = 0
        if at >= stop or tag not in (_INSERT, _UPDATE, _DELETE):
            raise self._error("is none of a row", at - first)
        kind = data[at]
        if kind in (_KEY, _OLD) and tag != _INSERT:
            at, grown = self._row(at + 1, stop, first, flags)
            if tag == _DELETE:
                return self._ended(at, stop, first, grown)
            kind = data[at] if at < stop else 0
        if kind != _NEW or tag == _DELETE:
            raise self._error("has no row where one is due", at - first)
        at, more = self._row(at + 1, stop, first, flags)
        return self._ended(at, stop, first, grown + more)

    def whole(self) -> bytes:
        """All records, end to end."""
        self._pieces.append(self._data[self._copied :])
        return b"".join(self._pieces)

    def _row(self, at: int, stop: int, first: int, flags: Sequence[bool]) -> tuple[int, int]:
        data, grown = self._data, 0
        if at + 2 > stop or int.from_bytes(data[at : at + 2], "big") != len(flags):
            raise self._error(f"has a row that is not of {len(flags)} columns", at - first)
        at += 2
        for hashed in flags:
            kind = data[at] if at < stop else 0
            if kind == _TEXT and at + 5 <= stop:
                end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
                if end > stop:
                    raise self._error("has a value that is cut", at - first)
                if hashed:
                    digest = self._gate.digest(data[at + 5 : end])
                    self._pieces += (data[self._copied : at], _HEAD, digest)
                    self._copied = end
                    grown += len(_HEAD) + len(digest) - (end - at)
                at = end
            elif kind in (_NULL, _UNCHANGED):
                at += 1
            else:
                raise self._error("has a value of unknown kind", at - first)
        return at, grown

    def _ended(self, at: int, stop: int, first: int, grown: int) -> int:
        if at != stop:
            raise self._error(f"has {stop - at} bytes too many", at - first)
        return grown

    def _error(self, problem: str, at: int) -> WireError:
        return WireError(f"a change of a table with hashed columns {problem}, at byte {at}")
