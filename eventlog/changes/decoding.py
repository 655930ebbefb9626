"""From raw changes to Python values, and to lines of JSON (API.md, "One line of read --json")."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from eventlog.changes.change import ABSENT, UNCHANGED, Change, RawChange, Text
from eventlog.changes.codec import Form
from eventlog.changes.cut import utc
from eventlog.changes.reading import Moment
from eventlog.changes.schema import Schema


class Located(NamedTuple):
    """A raw change with its offset, its transaction, and what it takes to decode it."""

    offset: int
    raw: RawChange
    schema: Schema | None
    codec: Any
    moment: Moment


class _Rendered(NamedTuple):
    """A moment as it is shown."""

    tx: str | None
    position: str | None
    time: datetime


class Decoder:
    """Decodes located changes; loaders are made once per codec and schema version.

    `columns` limits rows and old rows to these names; a key is always whole.
    """

    def __init__(self, *, columns: Collection[str] | None = None) -> None:
        self._columns = columns
        self._rows: dict[tuple[int, int, Form], _RowDecoder] = {}
        self._rendered: tuple[Moment | None, _Rendered] = (None, _Rendered(None, None, utc(0)))

    def change(self, located: Located) -> Change:
        """The change with typed Python values. A value never fails to decode."""
        table, key, row, old = self._values(located, "python")
        tx, position, time = self._moment(located)
        return Change(located.offset, located.raw.op, table, key, row, old, tx, position, time)

    def json(self, located: Located) -> dict[str, Any]:
        """The change as JSON values; what is unchanged is named instead."""
        raw = located.raw
        table, key, row, old = self._values(located, "json")
        tx, position, time = self._moment(located)
        line = {
            "offset": located.offset,
            "op": str(raw.op),
            "table": table,
            "key": _mapping_key(located.schema, key),
            "row": row,
            "old": old,
            "tx": tx,
            "position": position,
            "time": time.isoformat(),
        }
        if located.moment.origin:
            line["origin"] = located.moment.origin
        if raw.new is not None and row is not None:
            unchanged = [name for name, value in row.items() if value is UNCHANGED]
            if unchanged:
                line["row"] = {n: v for n, v in row.items() if v is not UNCHANGED}
                line["unchanged"] = unchanged
        elif raw.fields is not None:
            line["row"] = json_value(row)
        return line

    def _moment(self, located: Located) -> _Rendered:
        """The record's transaction; rendered once for records of one that follow each other."""
        moment, rendered = self._rendered
        if located.moment is not moment:
            moment, codec = located.moment, located.codec
            rendered = _Rendered(
                codec.transaction_text(moment.tx),
                codec.position_text(moment.position),
                utc(moment.time_us),
            )
            self._rendered = moment, rendered
        if rendered.position is None and located.raw.fields is not None:
            stated = located.raw.fields.get("position")
            return rendered._replace(position=stated if isinstance(stated, str) else None)
        return rendered

    def _values(self, located: Located, form: Form) -> tuple[str | None, Any, Any, Any]:
        """Table, key, row and old row."""
        _, raw, schema, codec, _ = located
        table = None if schema is None else schema.table
        if raw.fields is not None:
            return table, None, dict(raw.fields), None
        if schema is None or (raw.new is None and raw.old is None):
            return table, None, None, None
        cached = (codec.id, schema.id, form)
        decoder = self._rows.get(cached)
        if decoder is None:
            decoder = self._rows[cached] = _RowDecoder(codec, schema, form, self._columns)
        return (
            table,
            decoder.key(raw.new, raw.old),
            None if raw.new is None else decoder.row(raw.new),
            None if raw.old is None else decoder.old(raw.old),
        )


class _RowDecoder:
    """Decodes rows of one schema version."""

    def __init__(
        self, codec: Any, schema: Schema, form: Form, columns: Collection[str] | None
    ) -> None:
        loaders = codec.loaders(schema, form)
        fields = list(zip(range(len(loaders)), schema.names, loaders, strict=True))
        self._key_fields = [fields[place] for place in schema.key_indexes]
        self._fields = [f for f in fields if columns is None or f[1] in columns]

    def row(self, texts: tuple[Text, ...]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for place, name, load in self._fields:
            text = texts[place]
            row[name] = load(text) if text.__class__ is bytes else text
        return row

    def old(self, texts: tuple[Text, ...]) -> dict[str, Any]:
        """What the source sent of the old row; what it left out is not there."""
        return {
            name: None if (text := texts[place]) is None else load(text)
            for place, name, load in self._fields
            if texts[place] is not ABSENT and texts[place] is not UNCHANGED
        }

    def key(self, new: tuple[Text, ...] | None, old: tuple[Text, ...] | None) -> Any:
        """A scalar for a key of one column, else a mapping; None without a key."""
        values: dict[str, Any] = {}
        for place, name, load in self._key_fields:
            text = UNCHANGED if new is None else new[place]
            if text is UNCHANGED and old is not None:
                text = old[place]
            values[name] = load(text) if text.__class__ is bytes else text
        if len(values) == 1:
            return next(iter(values.values()))
        return values or None


def json_line(record: dict[str, Any]) -> str:
    """One line of JSON, without its end."""
    return _LINES.encode(record)


def json_text(value: Any) -> str:
    """A stored value as JSON text: `json_line` of its `json_value`."""
    try:
        return _VALUES.encode(value)
    except (TypeError, ValueError):  # NaN or ∞ somewhere inside; or a name that is no text
        return json_line(json_value(value))


def json_texts(values: Sequence[Any]) -> list[str | None]:
    """The `json_text` of each value, None for None.

    All are encoded at once, with a text between each two that is then looked for. One of them may
    hold that text, too: then there are too many pieces, and they are encoded one by one.
    """
    parted: list[Any] = [_BETWEEN] * (2 * len(values) - 1)
    parted[::2] = values
    try:
        found = _VALUES.encode(parted)[1:-1].split(f', "{_BETWEEN}", ')
    except (TypeError, ValueError):  # as above
        found = []
    if len(found) != len(values):
        return [None if value is None else json_text(value) for value in values]
    return [None if value is None else text for value, text in zip(values, found, strict=True)]


def json_value(value: Any) -> Any:
    """A stored value as JSON: bytes in hex after `\\x`, times in ISO 8601, NaN and ∞ as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, dict):
        # Names are texts; in a damaged record they may be bytes.
        return {
            name if name.__class__ is str else json_value(name): json_value(item)
            for name, item in value.items()
        }
    return value


_BETWEEN = "between two values"
_LINES = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_VALUES = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=json_value)


def _mapping_key(schema: Schema | None, key: Any) -> Any:
    """A line names the key's columns, be they one or many."""
    if schema is None or key is None or len(schema.key_indexes) != 1:
        return key
    return {schema.names[schema.key_indexes[0]]: key}
