"""The codec protocol: what a package must bring so that the log can read its payloads (D2).

The engine stores opaque bytes under a codec number; a codec registers itself under the entry point
group `eventlog.codecs`. A payload whose codec is not installed is refused, never read wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol

from eventlog.changes.change import RawChange
from eventlog.changes.schema import Column, Schema
from eventlog.changes.split import SplitPayload, Texts
from eventlog.engine.payload import Payload
from eventlog.errors import CodecNotInstalled

if TYPE_CHECKING:
    import pyarrow as pa

Form = Literal["python", "json"]
"""What a loader makes of a value's text: a typed Python value, or a JSON one (API.md)."""

Loader = Callable[[bytes], Any]

CODEC_PACKAGES = {1: "control", 2: "msgpack", 3: "pgoutput", 4: "copy"}
"""The numbers that docs/format.md assigns."""


class Codec(Protocol):
    """What every codec has: a number in the format's table, and a name."""

    id: int
    name: str


class ChangeCodec(Codec, Protocol):
    """Reads the payloads of captured streams."""

    def decode(
        self,
        records: Sequence[bytes],
        slots: Sequence[int],
        schemas: dict[int, Schema],
    ) -> Iterator[RawChange]:
        """Split `records` (with their places `slots` in the payload) into raw changes.

        `schemas` has, by relation, the schema version under which this batch was written.
        """
        ...

    def split(
        self,
        payload: Payload,
        slots: Sequence[int],
        schemas: dict[int, Schema],
    ) -> SplitPayload:
        """Find every value of the records at `slots`, without decoding any.

        Says the same as `decode`, for whole columns. Raises DamagedLog where `decode` would.
        """
        ...

    def loaders(self, schema: Schema, form: Form) -> tuple[Loader, ...]:
        """One function per column, from stored text to a value. Never raises for bad values."""
        ...

    def arrow_type(self, schema: Schema, column: Column) -> pa.DataType:
        """The Arrow type that follows from the declared type alone (API.md)."""
        ...

    def arrow_array(
        self, schema: Schema, column: Column, texts: Texts, target: pa.DataType
    ) -> tuple[pa.Array, list[int]]:
        """Convert texts to `target`, and name the places whose value does not fit it.

        Nothings become null. Places that do not fit, ascending, hold null as well; the caller
        raises or counts. More bytes than one array holds come as a ChunkedArray.
        """
        ...

    def type_name(self, schema: Schema, column: Column) -> str:
        """The source's own name of the column's type, such as `numeric(12,2)`."""
        ...

    def transaction_text(self, word: int) -> str | None:
        """A transaction id as the source writes it; None for 0."""
        ...

    def position_text(self, word: int) -> str | None:
        """A position as the source writes it; None for 0."""
        ...


@cache
def codec(codec_id: int) -> Any:
    """The installed codec of that number.

    Raises CodecNotInstalled, naming the codec where the format's table knows it.
    """
    name = CODEC_PACKAGES.get(codec_id)
    for point in entry_points(group="eventlog.codecs"):
        if name is None or point.name == name:
            found = point.load()
            if found.id == codec_id:
                return found
    label = f"{codec_id} ({name})" if name else str(codec_id)
    raise CodecNotInstalled(
        f"this log holds payloads of codec {label}, which is not installed here",
        hint="install the package that brings this codec, or a newer eventlog-cdc",
    )
