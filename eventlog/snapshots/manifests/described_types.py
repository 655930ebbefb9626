"""What a bundle says of the way from its stored texts to its typed rows, beside the texts.

::

    metadata of texts/NAME.parquet:  eventlog_decoding = {"codec": 3, "decoder": 1, "types": [...]}

A column of a type that every server has needs no description: the manifest proves the type's
number. Types that the database made itself (domains, arrays of them, enums) are described. Where a
bundle was made before there was a description, it was made by decoder 1, and of a Postgres source.

The description itself is proven by its file's checksum alone, and not by the manifest: who forges
both can have values of such types shown otherwise (arrays parted at another sign), and no others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eventlog.changes.schema import Schema, SourceType
from eventlog.snapshots.manifests import strict_json

METADATA = b"eventlog_decoding"
MSGPACK, _PGOUTPUT = 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedType:
    """A type of the source's own; the fields are those of `SourceType`."""

    id: int
    namespace: str
    name: str
    kind: str
    base: int
    base_typmod: int
    element: int
    delimiter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The codec that knows the types, the number of the decoder that typed the rows, and types."""

    codec: int
    decoder: int
    types: tuple[DescribedType, ...]

    @property
    def source_types(self) -> dict[int, SourceType]:
        """The types as a schema has them."""
        return {kind.id: SourceType(**dataclasses.asdict(kind)) for kind in self.types}

    def to_bytes(self) -> bytes:
        """For the metadata."""
        return json.dumps(strict_json.plain(self), separators=(",", ":")).encode()


UNDESCRIBED = Described(codec=_PGOUTPUT, decoder=1, types=())
"""What is known of a bundle that says nothing."""


def described(metadata: Mapping[bytes, bytes] | None) -> Described:
    """What a file's metadata says. Raises NotStrict."""
    found = (metadata or {}).get(METADATA)
    if found is None:
        return UNDESCRIBED
    return strict_json.read(Described, strict_json.parsed(found), "the description of its types")


def describe(codec: int, decoder: int, schema: Schema, wanted: Iterable[int]) -> Described:
    """A description for columns of the `wanted` types, and of what these are made of."""
    pending, found = list(wanted), dict[int, SourceType]()
    while pending:
        kind = schema.types.get(pending.pop())
        if kind is not None and kind.id not in found:
            found[kind.id] = kind
            pending += [kind.base, kind.element]
    names = [field.name for field in dataclasses.fields(DescribedType)]
    return Described(
        codec=codec,
        decoder=decoder,
        types=tuple(
            DescribedType(**{name: getattr(found[number], name) for name in names})
            for number in sorted(found)
        ),
    )
